// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A stream of bytes to ferry_frame_recv() through a socket, until it ends.
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

#define MAX_INPUT 65536 /* fits a socket's buffer: no thread is needed */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(int good)
{
	if (!good)
		abort();
}

static void drain(int fd)
{
	struct ferry_wire_frame f;
	struct ferry_error err;
	uint8_t *body;
	int r;

	for (;;) {
		err.errnum = 0;
		r = ferry_frame_recv(fd, &f, &body, FERRY_CLOCK_NEVER, &err);
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

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	int sv[2];

	if (size > MAX_INPUT || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv))
		return 0;
	if (!size || write(sv[0], data, size) == (ssize_t)size) {
		close(sv[0]);
		drain(sv[1]);
	} else {
		close(sv[0]);
	}
	close(sv[1]);
	return 0;
}
