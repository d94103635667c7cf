// SPDX-License-Identifier: GPL-2.0-or-later
#include "base/ahead.h"

#include <errno.h>
#include <string.h>

#include "base/io.h"

int ferry_ahead_read(struct ferry_ahead *a, void *buf, size_t len, uint64_t deadline_ns)
{
	size_t done = 0;

	if (!a->room)
		return ferry_io_read(a->fd, buf, len, deadline_ns);
	while (done < len) {
		size_t n = a->end - a->at;

		if (!n) {
			ssize_t got = ferry_io_read_some(a->fd, a->buf, a->room, deadline_ns);

			if (got < 0)
				return got == -ENODATA && done ? -EPIPE : (int)got;
			a->at = 0;
			a->end = (size_t)got;
			continue;
		}
		n = n < len - done ? n : len - done;
		memcpy((uint8_t *)buf + done, a->buf + a->at, n);
		a->at += n;
		done += n;
	}
	return 0;
}
