// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/lobby.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/io.h"
#include "base/log.h"
#include "xport/frame.h"
#include "xport/sock.h"

/* A peer has its HELLO ready before it connects; more time only helps those who stall. */
#define LOBBY_HELLO_MS 5000

/* For the few bytes of an answer. */
#define LOBBY_ANSWER_MS 2000

void ferry_lobby_init(struct ferry_lobby *lobby, int listen_fd, int wake_fd)
{
	unsigned int i;

	memset(lobby, 0, sizeof(*lobby));
	lobby->listen_fd = listen_fd;
	lobby->wake_fd = wake_fd;
	for (i = 0; i < FERRY_LOBBY_SEATS; i++)
		lobby->seats[i].fd = -1;
}

static void lobby_drop(struct ferry_lobby_seat *seat, const char *why)
{
	ferry_log_debug("a connection is dropped: %s", why);
	ferry_io_close(&seat->fd);
}

int ferry_lobby_answer(int fd, const struct ferry_wire_hello *hello, enum ferry_wire_status status)
{
	struct ferry_wire_hello answer = *hello;

	answer.version = FERRY_WIRE_VERSION;
	answer.min_version = FERRY_WIRE_MIN_VERSION;
	answer.features = FERRY_WIRE_FEATURES;
	answer.role = FERRY_WIRE_ROLE_DESTINATION;
	answer.status = (uint16_t)status;
	answer.page_size = 4096;
	return ferry_frame_send_hello(fd, &answer, ferry_clock_in_ms(LOBBY_ANSWER_MS));
}

/* A new connection takes a free seat, or that of the one who has waited longest. */
static void lobby_seat(struct ferry_lobby *lobby)
{
	struct ferry_lobby_seat *best = &lobby->seats[0];
	unsigned int i;
	int fd;

	fd = ferry_sock_accept(lobby->listen_fd, ferry_clock_ns());
	if (fd < 0)
		return;
	for (i = 0; i < FERRY_LOBBY_SEATS; i++) {
		struct ferry_lobby_seat *seat = &lobby->seats[i];

		if (seat->fd < 0) {
			best = seat;
			break;
		}
		if (seat->deadline_ns < best->deadline_ns)
			best = seat;
	}
	if (best->fd >= 0)
		lobby_drop(best, "too many wait");
	best->fd = fd;
	best->got = 0;
	best->deadline_ns = ferry_clock_in_ms(LOBBY_HELLO_MS);
}

/* Read on at one seat. Return: 1 when its HELLO is whole and sane. */
static int lobby_read(struct ferry_lobby_seat *seat, struct ferry_wire_hello *hello)
{
	ssize_t n = recv(seat->fd, seat->bytes + seat->got, sizeof(seat->bytes) - seat->got,
			 MSG_DONTWAIT);
	int r;

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return 0;
	if (n <= 0) {
		lobby_drop(seat, "closed before HELLO");
		return 0;
	}
	seat->got += (unsigned int)n;
	if (seat->got < sizeof(seat->bytes))
		return 0;
	r = ferry_wire_hello_decode(hello, seat->bytes);
	if (!r && hello->role != FERRY_WIRE_ROLE_SOURCE)
		r = -EPROTO;
	if (!r)
		r = ferry_wire_hello_check(hello);
	if (r == -EPROTONOSUPPORT)
		ferry_lobby_answer(seat->fd, hello, FERRY_WIRE_STATUS_VERSION);
	if (r) {
		ferry_log_warn("a connection was refused: %s",
			       r == -EPROTONOSUPPORT ? "it speaks another protocol version" :
						       "what it sent is no ferry HELLO");
		lobby_drop(seat, "bad HELLO");
		return 0;
	}
	return 1;
}

int ferry_lobby_wait(struct ferry_lobby *lobby, int other, uint64_t deadline_ns,
		     struct ferry_wire_hello *hello, int *fd, struct ferry_error *err)
{
	for (;;) {
		struct pollfd p[FERRY_LOBBY_SEATS + 3];
		uint64_t now = ferry_clock_ns(), soonest = deadline_ns;
		unsigned int i;
		int n;

		p[0] = (struct pollfd){ .fd = lobby->listen_fd, .events = POLLIN };
		p[1] = (struct pollfd){ .fd = other, .events = POLLIN };
		p[2] = (struct pollfd){ .fd = lobby->wake_fd, .events = POLLIN };
		for (i = 0; i < FERRY_LOBBY_SEATS; i++) {
			struct ferry_lobby_seat *seat = &lobby->seats[i];

			if (seat->fd >= 0 && seat->deadline_ns <= now)
				lobby_drop(seat, "no HELLO in time");
			if (seat->fd >= 0 && seat->deadline_ns < soonest)
				soonest = seat->deadline_ns;
			p[i + 3] = (struct pollfd){ .fd = seat->fd, .events = POLLIN };
		}
		if (now >= deadline_ns)
			return -ETIMEDOUT;
		n = poll(p, FERRY_LOBBY_SEATS + 3, ferry_clock_poll_ms(soonest));
		if (n < 0 && errno != EINTR)
			return ferry_error_set(err, errno, "cannot wait for connections: %s",
					       errno == EINVAL ? "too few open files are allowed "
					       "(ulimit -n)" : strerror(errno));
		if (n <= 0)
			continue;
		if (p[2].revents)
			return -EINTR;
		for (i = 0; i < FERRY_LOBBY_SEATS; i++) {
			if (!p[i + 3].revents || !lobby_read(&lobby->seats[i], hello))
				continue;
			*fd = lobby->seats[i].fd;
			lobby->seats[i].fd = -1;
			return 1;
		}
		if (p[0].revents)
			lobby_seat(lobby);
		if (p[1].revents)
			return 0;
	}
}

void ferry_lobby_clear(struct ferry_lobby *lobby)
{
	unsigned int i;

	for (i = 0; i < FERRY_LOBBY_SEATS; i++)
		ferry_io_close(&lobby->seats[i].fd);
}
