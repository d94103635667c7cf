// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A stream of bytes to ferry_frame_recv() through a socket, until it ends; read piece by piece,
 * and again ahead of what is asked for.
 * Every frame that comes out is one the codec allows, ends in a NUL, and can be
 * sent again; every failure has a text.
 */
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "xport/frame.h"

#define AHEAD 32	/* frames end inside of it, and it inside of frames */
#define MAX_INPUT 65536 /* fits a socket's buffer: no thread is needed */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(int good)
{
	if (!good)
		abort();
}

static void drain(struct ferry_ahead *from)
{
	struct ferry_wire_frame f;
	struct ferry_error err;
	uint8_t *body;
	int r;

	for (;;) {
		err.errnum = 0;
		r = ferry_frame_recv_ahead(from, &f, &body, FERRY_CLOCK_NEVER, &err);
		if (r)
			break;
		must(f.type > 0 && f.type < FERRY_WIRE_TYPE_COUNT);
		must(!body == !f.length);
		if (body) {
			must(body[f.length] == 0);
			if (f.type == FERRY_WIRE_ABORT || f.type == FERRY_WIRE_REFUSED)
				must(strlen((char *)body) == f.length);
		}
		free(body);
	}
	must(!body && err.errnum == -r && err.text[0]);
}

static void read_all(const uint8_t *data, size_t size, size_t room)
{
	uint8_t buf[AHEAD];
	struct ferry_ahead from = { .buf = buf, .room = room };
	int sv[2];

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv))
		return;
	from.fd = sv[1];
	if (!size || write(sv[0], data, size) == (ssize_t)size) {
		close(sv[0]);
		drain(&from);
	} else {
		close(sv[0]);
	}
	close(sv[1]);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (size > MAX_INPUT)
		return 0;
	read_all(data, size, 0);
	read_all(data, size, AHEAD);
	return 0;
}
