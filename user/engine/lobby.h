/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_ENGINE_LOBBY_H
#define FERRY_ENGINE_LOBBY_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "wire/wire.h"

/*
 * Where connections to the destination wait until they have said HELLO. One
 * that says nothing, or something else, is dropped and keeps nobody out.
 */
#define FERRY_LOBBY_SEATS 32

struct ferry_lobby_seat {
	int fd; /* -1 free */
	uint64_t deadline_ns;
	unsigned int got;
	uint8_t bytes[FERRY_WIRE_HELLO_BYTES];
};

struct ferry_lobby {
	int listen_fd; /* not owned */
	int wake_fd;   /* not owned: ends a wait when readable; -1 none */
	struct ferry_lobby_seat seats[FERRY_LOBBY_SEATS];
};

void ferry_lobby_init(struct ferry_lobby *lobby, int listen_fd, int wake_fd);

/**
 * ferry_lobby_wait() - until somebody has said a whole HELLO, or @other has something
 * @other: a descriptor to watch as well (POLLIN), -1 none
 * @hello: what was said: decoded, versions checked; the answer is up to the caller
 * @fd: the connection, the caller's from then on
 *
 * Peers of another version are told so and dropped here.
 *
 * Return: 1 a guest, 0 @other is readable, -EINTR wake_fd is, -ETIMEDOUT, -errno.
 */
int ferry_lobby_wait(struct ferry_lobby *lobby, int other, uint64_t deadline_ns,
		     struct ferry_wire_hello *hello, int *fd, struct ferry_error *err);

/** ferry_lobby_answer() - HELLO back. Return: 0 or -errno; the descriptor stays open. */
int ferry_lobby_answer(int fd, const struct ferry_wire_hello *hello,
		       enum ferry_wire_status status);

/** ferry_lobby_clear() - drop all that wait. */
void ferry_lobby_clear(struct ferry_lobby *lobby);

#endif
