// SPDX-License-Identifier: GPL-2.0-or-later
/* Bytes from a socket into a file, however they come; ends and errors on both sides. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/io.h"
#include "xport/splice.h"

/* More than the pipe takes, and no whole number of pages. */
#define BYTES ((3u << 20) + 12345)
#define OFF 777

static pthread_mutex_t writing = PTHREAD_MUTEX_INITIALIZER;

struct peer {
	int fd;
	size_t step; /* written at once */
	size_t bytes;
	uint8_t *data;
	pthread_t thread;
};

static void *feed(void *arg)
{
	struct peer *peer = arg;
	size_t done = 0;

	while (done < peer->bytes) {
		size_t n = peer->bytes - done < peer->step ? peer->bytes - done : peer->step;

		if (ferry_io_write(peer->fd, peer->data + done, n, FERRY_CLOCK_NEVER))
			break;
		done += n;
	}
	close(peer->fd);
	return NULL;
}

/* Start to send @bytes of random data, @step at a time. Return: the other end. */
static int start(struct peer *peer, size_t bytes, size_t step, int flags)
{
	size_t i;
	int sv[2];

	peer->data = malloc(bytes);
	assert_non_null(peer->data);
	for (i = 0; i < bytes; i++)
		peer->data[i] = (uint8_t)(i * 2654435761u >> 13);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | flags, 0, sv), 0);
	peer->fd = sv[0];
	peer->step = step;
	peer->bytes = bytes;
	assert_int_equal(pthread_create(&peer->thread, NULL, feed, peer), 0);
	return sv[1];
}

static void all_arrives(void **state)
{
	static const size_t steps[] = { BYTES, 100000, 999 };
	unsigned int i;

	(void)state;
	for (i = 0; i < 6; i++) {
		int fd = memfd_create("splice", MFD_CLOEXEC), sock;
		uint8_t *got = malloc(BYTES);
		struct ferry_splice s = { 0 };
		struct peer peer;
		bool at_file;

		assert_int_equal(ferry_splice_init(&s), 0);
		sock = start(&peer, BYTES, steps[i / 2], i % 2 ? SOCK_NONBLOCK : 0);
		assert_int_equal(ferry_splice_to_file(&s, sock, fd, OFF, BYTES, &writing,
						      &at_file), 0);
		assert_int_equal(lseek(fd, 0, SEEK_END), OFF + BYTES);
		assert_int_equal(ferry_io_pread(fd, got, BYTES, OFF), 0);
		assert_memory_equal(got, peer.data, BYTES);
		pthread_join(peer.thread, NULL);
		ferry_splice_free(&s);
		free(peer.data);
		free(got);
		close(sock);
		close(fd);
	}
}

/* Not one byte more than was asked for is taken: the next packet's head follows. */
static void no_more_than_asked(void **state)
{
	int fd = memfd_create("splice", MFD_CLOEXEC), sock;
	struct ferry_splice s = { 0 };
	uint8_t rest[100];
	struct peer peer;
	bool at_file;

	(void)state;
	assert_int_equal(ferry_splice_init(&s), 0);
	sock = start(&peer, 70100, 70100, 0);
	assert_int_equal(ferry_splice_to_file(&s, sock, fd, 0, 70000, &writing, &at_file), 0);
	assert_int_equal(ferry_io_read(sock, rest, sizeof(rest), FERRY_CLOCK_NEVER), 0);
	assert_memory_equal(rest, peer.data + 70000, sizeof(rest));
	pthread_join(peer.thread, NULL);
	ferry_splice_free(&s);
	ferry_splice_free(&s); /* harmless */
	free(peer.data);
	close(sock);
	close(fd);
}

static void the_stream_ends(void **state)
{
	int fd = memfd_create("splice", MFD_CLOEXEC), sock;
	struct ferry_splice s = { 0 };
	bool at_file = true;
	struct peer peer;

	(void)state;
	assert_int_equal(ferry_splice_init(&s), 0);
	sock = start(&peer, 70000, 5000, 0);
	assert_int_equal(ferry_splice_to_file(&s, sock, fd, 0, 70001, &writing, &at_file), -EPIPE);
	assert_false(at_file);
	pthread_join(peer.thread, NULL);
	ferry_splice_free(&s);
	free(peer.data);
	close(sock);
	close(fd);
}

static void the_file_refuses(void **state)
{
	int fd = memfd_create("splice", MFD_CLOEXEC | MFD_ALLOW_SEALING), sock;
	struct ferry_splice s = { 0 };
	bool at_file = false;
	struct peer peer;

	(void)state;
	assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE), 0);
	assert_int_equal(ferry_splice_init(&s), 0);
	sock = start(&peer, 70000, 70000, 0);
	assert_int_equal(ferry_splice_to_file(&s, sock, fd, 0, 70000, &writing, &at_file), -EPERM);
	assert_true(at_file);
	assert_int_equal(pthread_mutex_trylock(&writing), 0); /* nobody holds it any more */
	pthread_mutex_unlock(&writing);
	close(sock);
	pthread_join(peer.thread, NULL);
	ferry_splice_free(&s);
	free(peer.data);
	close(fd);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(all_arrives),
		cmocka_unit_test(no_more_than_asked),
		cmocka_unit_test(the_stream_ends),
		cmocka_unit_test(the_file_refuses),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
