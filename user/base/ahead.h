/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_BASE_AHEAD_H
#define FERRY_BASE_AHEAD_H

#include <stddef.h>
#include <stdint.h>

/*
 * Reading small pieces of a stream, of which each would cost a system call: what there is is
 * read in one go, up to a buffer's worth. Whoever reads so must read all of the stream so.
 */
struct ferry_ahead {
	int fd;
	uint8_t *buf; /* the caller's */
	size_t room;  /* of buf; 0: every piece is read from the stream itself */
	size_t at, end;
};

/** ferry_ahead_read() - the next @len bytes. Return: as ferry_io_read(). */
int ferry_ahead_read(struct ferry_ahead *a, void *buf, size_t len, uint64_t deadline_ns);

#endif
