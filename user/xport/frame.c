// SPDX-License-Identifier: GPL-2.0-or-later
#include "xport/frame.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/io.h"

/* Optional frames of unknown types are read into this much at a time. */
#define SKIP_BYTES 4096u

int ferry_frame_send_hello(int fd, const struct ferry_wire_hello *hello, uint64_t deadline_ns)
{
	uint8_t buf[FERRY_WIRE_HELLO_BYTES];

	ferry_wire_hello_encode(hello, buf);
	return ferry_io_write(fd, buf, sizeof(buf), deadline_ns);
}

int ferry_frame_recv_hello(int fd, struct ferry_wire_hello *hello, uint64_t deadline_ns)
{
	uint8_t buf[FERRY_WIRE_HELLO_BYTES];
	int r = ferry_io_read(fd, buf, sizeof(buf), deadline_ns);

	return r ? r : ferry_wire_hello_decode(hello, buf);
}

int ferry_frame_send(int fd, enum ferry_wire_type type, const void *body, uint32_t length,
		     uint64_t deadline_ns)
{
	struct ferry_wire_frame frame = { .type = (uint16_t)type, .length = length };
	uint8_t head[FERRY_WIRE_FRAME_BYTES];
	struct iovec iov[2] = {
		{ .iov_base = head, .iov_len = sizeof(head) },
		{ .iov_base = (void *)(uintptr_t)body, .iov_len = length },
	};
	int r;

	ferry_wire_frame_encode(&frame, head);
	/* What we would refuse we do not send either. */
	r = ferry_wire_frame_decode(&frame, head);
	if (r)
		return r;
	return ferry_io_writev(fd, iov, 2, 0, deadline_ns);
}

static int skip(struct ferry_ahead *from, uint32_t length, uint64_t deadline_ns)
{
	uint8_t buf[SKIP_BYTES];

	while (length) {
		uint32_t n = length < sizeof(buf) ? length : (uint32_t)sizeof(buf);
		int r = ferry_ahead_read(from, buf, n, deadline_ns);

		if (r)
			return r == -ENODATA ? -EPIPE : r;
		length -= n;
	}
	return 0;
}

/* Texts end on terminals and in logs: nothing in them may steer those. */
static void make_printable(uint8_t *text, uint32_t length)
{
	uint32_t i;

	for (i = 0; i < length; i++)
		if (text[i] < 0x20 || text[i] > 0x7e)
			text[i] = text[i] == '\n' || text[i] == '\t' ? ' ' : '?';
}

static int header_error(int r, const struct ferry_wire_frame *f, struct ferry_error *err)
{
	switch (r) {
	case -EPROTONOSUPPORT:
		return ferry_error_set(err, EPROTONOSUPPORT,
				       "the other side sent a frame of unknown type %u; "
				       "install the same release of ferry on both hosts", f->type);
	case -EMSGSIZE:
		return ferry_error_set(err, EMSGSIZE, "the other side sent a frame %s (type %u) of "
				       "%u bytes, which is not a length it can have",
				       ferry_wire_type_name(f->type), f->type, f->length);
	default:
		return ferry_error_set(err, EPROTO, "the other side sent a frame %s (type %u) with "
				       "unknown flags 0x%x", ferry_wire_type_name(f->type), f->type,
				       f->flags);
	}
}

static int read_error(int r, const struct ferry_wire_frame *f, struct ferry_error *err)
{
	if (r == -ENODATA && !f)
		return ferry_error_set(err, ENODATA, "the other side closed the connection");
	if (r == -ENODATA || r == -EPIPE)
		return ferry_error_set(err, EPIPE, "the connection ended inside a frame%s%s",
				       f ? " " : "", f ? ferry_wire_type_name(f->type) : "");
	if (r == -ETIMEDOUT)
		return ferry_error_set(err, ETIMEDOUT, "no answer from the other side in time");
	return ferry_error_set(err, -r, "connection lost: %s", strerror(-r));
}

int ferry_frame_recv_ahead(struct ferry_ahead *from, struct ferry_wire_frame *frame,
			   uint8_t **body, uint64_t deadline_ns, struct ferry_error *err)
{
	uint8_t head[FERRY_WIRE_FRAME_BYTES];
	uint8_t *buf;
	int r;

	*body = NULL;
	for (;;) {
		r = ferry_ahead_read(from, head, sizeof(head), deadline_ns);
		if (r)
			return read_error(r, NULL, err);
		r = ferry_wire_frame_decode(frame, head);
		if (r)
			return header_error(r, frame, err);
		if (frame->type && frame->type < FERRY_WIRE_TYPE_COUNT)
			break;
		r = skip(from, frame->length, deadline_ns);
		if (r)
			return read_error(r, frame, err);
	}
	if (!frame->length)
		return 0;
	buf = malloc((size_t)frame->length + 1);
	if (!buf)
		return ferry_error_set(err, ENOMEM, "no memory for a frame %s of %u bytes",
				       ferry_wire_type_name(frame->type), frame->length);
	r = ferry_ahead_read(from, buf, frame->length, deadline_ns);
	if (r) {
		free(buf);
		return read_error(r, frame, err);
	}
	buf[frame->length] = 0;
	if (frame->type == FERRY_WIRE_REFUSED || frame->type == FERRY_WIRE_ABORT ||
	    frame->type == FERRY_WIRE_CANNOT)
		make_printable(buf, frame->length);
	*body = buf;
	return 0;
}

int ferry_frame_recv(int fd, struct ferry_wire_frame *frame, uint8_t **body, uint64_t deadline_ns,
		     struct ferry_error *err)
{
	struct ferry_ahead plain = { .fd = fd };

	return ferry_frame_recv_ahead(&plain, frame, body, deadline_ns, err);
}
