// SPDX-License-Identifier: LGPL-2.1-or-later
#include "port/channel.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

/* More than one descriptor is never right; a few more fit so that they can be closed. */
#define ROOM_FDS 4

union control {
	struct cmsghdr align;
	char room[CMSG_SPACE(sizeof(int) * ROOM_FDS) + CMSG_SPACE(sizeof(struct ucred))];
};

int ferry_channel_send(int sock, const struct ferry_channel_message *m)
{
	uint8_t head[FERRY_PROTO_HEAD_BYTES];
	struct iovec iov[2] = {
		{ .iov_base = head, .iov_len = sizeof(head) },
		{ .iov_base = (void *)(uintptr_t)m->body, .iov_len = m->head.length },
	};
	struct msghdr msg = { .msg_iov = iov, .msg_iovlen = 2 };
	union control control;
	ssize_t n;

	ferry_proto_head_encode(&m->head, head);
	if (m->fd >= 0) {
		struct cmsghdr *c;

		memset(&control, 0, sizeof(control));
		msg.msg_control = control.room;
		msg.msg_controllen = CMSG_SPACE(sizeof(int));
		c = CMSG_FIRSTHDR(&msg);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(c), &m->fd, sizeof(int));
	}
	do
		n = sendmsg(sock, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return errno == ECONNRESET ? -EPIPE : -errno;
	return (size_t)n == sizeof(head) + m->head.length ? 0 : -EMSGSIZE;
}

/* All descriptors and the sender of a packet. Return: how many; the first is in m->fd. */
static unsigned int take_control(struct msghdr *msg, struct ferry_channel_message *m)
{
	unsigned int count = 0;
	struct cmsghdr *c;

	for (c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR(msg, c)) {
		size_t i, n;

		if (c->cmsg_level != SOL_SOCKET)
			continue;
		if (c->cmsg_type == SCM_CREDENTIALS) {
			struct ucred cred;

			memcpy(&cred, CMSG_DATA(c), sizeof(cred));
			m->pid = cred.pid;
		}
		if (c->cmsg_type != SCM_RIGHTS)
			continue;
		n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		for (i = 0; i < n; i++, count++) {
			int fd;

			memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(int));
			if (m->fd < 0)
				m->fd = fd;
			else
				close(fd);
		}
	}
	return count;
}

static int check(const struct msghdr *msg, struct ferry_channel_message *m, const uint8_t *head,
		 size_t bytes, unsigned int fds)
{
	int r;

	if (msg->msg_flags & (MSG_TRUNC | MSG_CTRUNC))
		return -EMSGSIZE;
	r = ferry_proto_head_decode(&m->head, head, bytes);
	if (r)
		return r;
	if (fds < ferry_proto_min_fds(&m->head) || fds > ferry_proto_max_fds(&m->head))
		return -EPROTO;
	return 0;
}

int ferry_channel_receive(int sock, struct ferry_channel_message *m)
{
	uint8_t head[FERRY_PROTO_HEAD_BYTES];
	struct iovec iov[2] = {
		{ .iov_base = head, .iov_len = sizeof(head) },
		{ .iov_base = m->body, .iov_len = sizeof(m->body) },
	};
	union control control;
	struct msghdr msg = {
		.msg_iov = iov,
		.msg_iovlen = 2,
		.msg_control = control.room,
		.msg_controllen = sizeof(control.room),
	};
	unsigned int fds;
	ssize_t n;
	int r;

	m->fd = -1;
	m->pid = 0;
	memset(head, 0, sizeof(head));
	do
		n = recvmsg(sock, &msg, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return errno == ECONNRESET ? -EPIPE : -errno;
	fds = take_control(&msg, m);
	if (!n && !fds)
		return -EPIPE;
	r = check(&msg, m, head, (size_t)n, fds);
	if (r && m->fd >= 0) {
		close(m->fd);
		m->fd = -1;
	}
	return r;
}

int ferry_channel_connect(const char *path)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int sock, r;

	if (!*path || strlen(path) >= sizeof(addr.sun_path))
		return -ENAMETOOLONG;
	strcpy(addr.sun_path, path);
	sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (sock < 0)
		return -errno;
	do
		r = connect(sock, (struct sockaddr *)&addr, sizeof(addr));
	while (r && errno == EINTR);
	if (r) {
		r = -errno;
		close(sock);
		return r;
	}
	return sock;
}

static uint64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

/* Until the socket is ready, the deadline, or a signal. Return: 0, -ETIMEDOUT. */
static int wait_ready(int sock, short events, uint64_t deadline_ms)
{
	struct pollfd p = { .fd = sock, .events = events };
	uint64_t now = now_ms();

	if (now >= deadline_ms)
		return -ETIMEDOUT;
	if (poll(&p, 1, (int)(deadline_ms - now)) < 0 && errno != EINTR)
		return -errno;
	return 0;
}

int ferry_channel_call(int sock, struct ferry_channel_message *m, unsigned int timeout_ms)
{
	uint64_t deadline_ms = now_ms() + timeout_ms;
	uint32_t sequence = m->head.sequence;
	uint16_t type = m->head.type;
	int r;

	m->head.flags = 0;
	m->head.status = 0;
	while ((r = ferry_channel_send(sock, m)) == -EAGAIN) {
		r = wait_ready(sock, POLLOUT, deadline_ms);
		if (r)
			return r;
	}
	if (r)
		return r;
	for (;;) {
		r = ferry_channel_receive(sock, m);
		if (r == -EAGAIN) {
			r = wait_ready(sock, POLLIN, deadline_ms);
			if (r)
				return r;
			continue;
		}
		if (r)
			return r == -EOPNOTSUPP ? -EPROTO : r;
		if ((m->head.flags & FERRY_PROTO_REPLY) && m->head.type == type &&
		    m->head.sequence == sequence)
			return 0;
		if (m->fd >= 0)
			close(m->fd);
	}
}
