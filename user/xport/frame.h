/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_XPORT_FRAME_H
#define FERRY_XPORT_FRAME_H

#include <stdint.h>

#include "base/ahead.h"
#include "base/error.h"
#include "wire/wire.h"

/* Whole frames over a main-channel socket. One reader and one writer at a time. */

int ferry_frame_send_hello(int fd, const struct ferry_wire_hello *hello, uint64_t deadline_ns);

/** ferry_frame_recv_hello() - decoded, not checked. Return: 0, -EPROTO, -ETIMEDOUT, -errno. */
int ferry_frame_recv_hello(int fd, struct ferry_wire_hello *hello, uint64_t deadline_ns);

int ferry_frame_send(int fd, enum ferry_wire_type type, const void *body, uint32_t length,
		     uint64_t deadline_ns);

/**
 * ferry_frame_recv() - the next frame; unknown optional ones are skipped
 * @body: *@body is malloc'ed (freed by the caller; NULL when empty), never more than the bound
 *        of its type, with one NUL behind it so that texts can be printed
 *
 * Return: 0; -ENODATA the peer closed between frames; -EPIPE inside one; -ETIMEDOUT;
 * -EPROTONOSUPPORT, -EMSGSIZE, -EPROTO as the codec says, naming the type; -errno.
 */
int ferry_frame_recv(int fd, struct ferry_wire_frame *frame, uint8_t **body, uint64_t deadline_ns,
		     struct ferry_error *err);

/** ferry_frame_recv_ahead() - the same, of a stream of small frames. */
int ferry_frame_recv_ahead(struct ferry_ahead *from, struct ferry_wire_frame *frame,
			   uint8_t **body, uint64_t deadline_ns, struct ferry_error *err);

#endif
