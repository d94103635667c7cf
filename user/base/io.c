// SPDX-License-Identifier: GPL-2.0-or-later
#include "base/io.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"

int ferry_io_wait(int fd, short events, uint64_t deadline_ns)
{
	struct pollfd p = { .fd = fd, .events = events };

	for (;;) {
		int n = poll(&p, 1, ferry_clock_poll_ms(deadline_ns));

		if (n > 0)
			return p.revents;
		if (n == 0) {
			if (ferry_clock_ns() >= deadline_ns)
				return -ETIMEDOUT;
			continue;
		}
		if (errno != EINTR)
			return -errno;
	}
}

/* Wait before a call that would block past the deadline, or after EAGAIN. */
static int io_ready(int fd, short events, uint64_t deadline_ns)
{
	int r = ferry_io_wait(fd, events, deadline_ns);

	return r < 0 ? r : 0;
}

int ferry_io_read(int fd, void *buf, size_t len, uint64_t deadline_ns)
{
	size_t done = 0;

	while (done < len) {
		ssize_t n;

		if (deadline_ns != FERRY_CLOCK_NEVER) {
			int r = io_ready(fd, POLLIN, deadline_ns);

			if (r)
				return r;
		}
		n = read(fd, (char *)buf + done, len - done);
		if (n > 0) {
			done += (size_t)n;
		} else if (n == 0) {
			return done ? -EPIPE : -ENODATA;
		} else if (errno == EAGAIN) {
			int r = io_ready(fd, POLLIN, deadline_ns);

			if (r)
				return r;
		} else if (errno != EINTR) {
			return -errno;
		}
	}
	return 0;
}

ssize_t ferry_io_read_some(int fd, void *buf, size_t len, uint64_t deadline_ns)
{
	for (;;) {
		ssize_t n = read(fd, buf, len);
		int r;

		if (n > 0)
			return n;
		if (!n)
			return -ENODATA;
		if (errno == EINTR)
			continue;
		if (errno != EAGAIN)
			return -errno;
		r = io_ready(fd, POLLIN, deadline_ns);
		if (r)
			return r;
	}
}

/* writev(2) for anything, sendmsg(2) for sockets so that no SIGPIPE comes. */
static ssize_t io_writev_once(int fd, struct iovec *iov, int n, int more)
{
	struct msghdr msg = { .msg_iov = iov, .msg_iovlen = (size_t)n };
	ssize_t r = sendmsg(fd, &msg, MSG_NOSIGNAL | (more ? MSG_MORE : 0));

	if (r < 0 && errno == ENOTSOCK)
		r = writev(fd, iov, n);
	return r;
}

int ferry_io_writev(int fd, struct iovec *iov, int n, int more, uint64_t deadline_ns)
{
	while (n > 0) {
		ssize_t w;

		if (iov->iov_len == 0) {
			iov++;
			n--;
			continue;
		}
		w = io_writev_once(fd, iov, n, more);
		if (w < 0) {
			int r;

			if (errno == EINTR)
				continue;
			if (errno != EAGAIN)
				return -errno;
			r = io_ready(fd, POLLOUT, deadline_ns);
			if (r)
				return r;
			continue;
		}
		while (n > 0 && (size_t)w >= iov->iov_len) {
			w -= (ssize_t)iov->iov_len;
			iov++;
			n--;
		}
		if (n > 0 && w > 0) {
			iov->iov_base = (char *)iov->iov_base + w;
			iov->iov_len -= (size_t)w;
		}
	}
	return 0;
}

int ferry_io_write(int fd, const void *buf, size_t len, uint64_t deadline_ns)
{
	struct iovec iov = { .iov_base = (void *)(uintptr_t)buf, .iov_len = len };

	return ferry_io_writev(fd, &iov, 1, 0, deadline_ns);
}

int ferry_io_pread(int fd, void *buf, size_t len, off_t off)
{
	size_t done = 0;

	while (done < len) {
		ssize_t n = pread(fd, (char *)buf + done, len - done, off + (off_t)done);

		if (n > 0)
			done += (size_t)n;
		else if (n == 0)
			return -EPIPE;
		else if (errno != EINTR)
			return -errno;
	}
	return 0;
}

int ferry_io_pwrite(int fd, const void *buf, size_t len, off_t off)
{
	size_t done = 0;

	while (done < len) {
		ssize_t n = pwrite(fd, (const char *)buf + done, len - done, off + (off_t)done);

		if (n >= 0)
			done += (size_t)n;
		else if (errno != EINTR)
			return -errno;
	}
	return 0;
}

union io_cmsg {
	struct cmsghdr hdr;
	char room[CMSG_SPACE(sizeof(int) * FERRY_IO_MAX_FDS)];
};

int ferry_io_send_fds(int fd, const void *buf, size_t len, const int *fds, unsigned int n,
		      uint64_t deadline_ns)
{
	struct iovec iov = { .iov_base = (void *)(uintptr_t)buf, .iov_len = len };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
	union io_cmsg cmsg;
	ssize_t sent;

	if (n > FERRY_IO_MAX_FDS || !len)
		return -EINVAL;
	if (n) {
		struct cmsghdr *c;

		memset(&cmsg, 0, sizeof(cmsg));
		msg.msg_control = cmsg.room;
		msg.msg_controllen = CMSG_SPACE(sizeof(int) * n);
		c = CMSG_FIRSTHDR(&msg);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int) * n);
		memcpy(CMSG_DATA(c), fds, sizeof(int) * n);
	}
	for (;;) {
		int r;

		sent = sendmsg(fd, &msg, MSG_NOSIGNAL);
		if (sent >= 0)
			break;
		if (errno == EINTR)
			continue;
		if (errno != EAGAIN)
			return -errno;
		r = io_ready(fd, POLLOUT, deadline_ns);
		if (r)
			return r;
	}
	return ferry_io_write(fd, (const char *)buf + sent, len - (size_t)sent, deadline_ns);
}

/* Take the descriptors out of one received message; those past @room are closed. */
static unsigned int io_take_fds(struct msghdr *msg, int *fds, unsigned int room)
{
	unsigned int got = 0;
	struct cmsghdr *c;

	for (c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR(msg, c)) {
		size_t i, count;

		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		for (i = 0; i < count; i++) {
			int one;

			memcpy(&one, CMSG_DATA(c) + i * sizeof(int), sizeof(int));
			if (got < room)
				fds[got++] = one;
			else
				close(one);
		}
	}
	return got;
}

ssize_t ferry_io_recv_fds(int fd, void *buf, size_t len, int *fds, unsigned int *n,
			  uint64_t deadline_ns)
{
	union io_cmsg cmsg;
	struct iovec iov = { .iov_base = buf, .iov_len = len };
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = cmsg.room,
		.msg_controllen = sizeof(cmsg.room),
	};
	unsigned int room = *n;

	*n = 0;
	for (;;) {
		int r = io_ready(fd, POLLIN, deadline_ns);
		ssize_t got;

		if (r)
			return r;
		got = recvmsg(fd, &msg, MSG_CMSG_CLOEXEC);
		if (got >= 0) {
			*n = io_take_fds(&msg, fds, room);
			return got;
		}
		if (errno != EINTR && errno != EAGAIN)
			return -errno;
	}
}

int ferry_io_nonblock(int fd, int on)
{
	int flags = fcntl(fd, F_GETFL);

	if (flags < 0)
		return -errno;
	flags = on ? flags | O_NONBLOCK : flags & ~O_NONBLOCK;
	return fcntl(fd, F_SETFL, flags) ? -errno : 0;
}

void ferry_io_close(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}
