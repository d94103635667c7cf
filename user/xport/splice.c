// SPDX-License-Identifier: GPL-2.0-or-later
#include "xport/splice.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/io.h"

/*
 * What is written at once is allocated at once, and one turn of the file's lock. Everybody may
 * have a pipe of this size, unless he has very many.
 */
#define PIPE_BYTES (1 << 20)

int ferry_splice_init(struct ferry_splice *s)
{
	int room;

	if (pipe2(s->pipe, O_CLOEXEC))
		return -errno;
	room = fcntl(s->pipe[1], F_SETPIPE_SZ, PIPE_BYTES);
	if (room < 0)
		room = fcntl(s->pipe[1], F_GETPIPE_SZ);
	s->room_bytes = room > 0 ? (size_t)room : 4096;
	return 0;
}

void ferry_splice_free(struct ferry_splice *s)
{
	if (!s->room_bytes)
		return;
	close(s->pipe[0]);
	close(s->pipe[1]);
	s->room_bytes = 0;
}

/*
 * Fill the pipe from the socket, at most with @len bytes. A socket's buffers are small and each
 * takes a place in the pipe however small, so it may be full early: only the first call waits.
 * Return: bytes, or -errno.
 */
static ssize_t fill(struct ferry_splice *s, int sock, size_t len)
{
	size_t done = 0, most = len < s->room_bytes ? len : s->room_bytes;

	while (done < most) {
		ssize_t n = splice(sock, NULL, s->pipe[1], NULL, most - done,
				   SPLICE_F_MOVE | (done ? SPLICE_F_NONBLOCK : 0));

		if (n > 0) {
			done += (size_t)n;
		} else if (n == 0) {
			return -EPIPE;
		} else if (errno == EAGAIN && done) {
			break;
		} else if (errno == EAGAIN) {
			int r = ferry_io_wait(sock, POLLIN, FERRY_CLOCK_NEVER);

			if (r < 0)
				return r;
		} else if (errno != EINTR) {
			return -errno;
		}
	}
	return (ssize_t)done;
}

/* Write all that is in the pipe. */
static int drain(struct ferry_splice *s, int file, off_t off, size_t len)
{
	while (len) {
		ssize_t n = splice(s->pipe[0], NULL, file, &off, len, SPLICE_F_MOVE);

		if (n > 0)
			len -= (size_t)n;
		else if (!n)
			return -EIO;
		else if (errno != EINTR)
			return -errno;
	}
	return 0;
}

int ferry_splice_to_file(struct ferry_splice *s, int sock, int file, off_t off, size_t len,
			 pthread_mutex_t *writing, bool *at_file)
{
	*at_file = false;
	while (len) {
		ssize_t n = fill(s, sock, len);
		int r;

		if (n < 0)
			return (int)n;
		pthread_mutex_lock(writing);
		r = drain(s, file, off, (size_t)n);
		pthread_mutex_unlock(writing);
		if (r) {
			*at_file = true;
			return r;
		}
		off += n;
		len -= (size_t)n;
	}
	return 0;
}
