// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Reading ahead gives the same bytes and the same ends as reading each piece.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/ahead.h"
#include "base/clock.h"
#include "base/io.h"

#define ROOM 16u
#define BYTES 200u
#define SOON_MS 5000

struct lab {
	int sv[2];
	uint8_t room[ROOM];
	struct ferry_ahead ahead;
};

static uint8_t byte_at(unsigned int i)
{
	return (uint8_t)(i * 7 + 1);
}

static void begin(struct lab *lab, size_t room, unsigned int bytes)
{
	uint8_t out[BYTES];
	unsigned int i;

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, lab->sv),
			 0);
	for (i = 0; i < bytes; i++)
		out[i] = byte_at(i);
	assert_int_equal(ferry_io_write(lab->sv[0], out, bytes, ferry_clock_in_ms(SOON_MS)), 0);
	lab->ahead = (struct ferry_ahead){ .fd = lab->sv[1], .buf = lab->room, .room = room };
}

static void end(struct lab *lab)
{
	ferry_io_close(&lab->sv[0]);
	ferry_io_close(&lab->sv[1]);
}

/* Pieces of 1, 2, 3... bytes, smaller and larger than the buffer, and across its end. */
static void pieces(size_t room)
{
	unsigned int at = 0, n, i;
	uint8_t piece[BYTES];
	struct lab lab;

	begin(&lab, room, BYTES);
	for (n = 1; at + n <= BYTES; at += n, n++) {
		assert_int_equal(ferry_ahead_read(&lab.ahead, piece, n, ferry_clock_in_ms(SOON_MS)),
				 0);
		for (i = 0; i < n; i++)
			assert_int_equal(piece[i], byte_at(at + i));
	}
	assert_true(n > ROOM);
	/* The rest ends inside of what is asked for, and then there is nothing. */
	ferry_io_close(&lab.sv[0]);
	assert_true(at < BYTES);
	assert_int_equal(ferry_ahead_read(&lab.ahead, piece, n, ferry_clock_in_ms(SOON_MS)), -EPIPE);
	assert_int_equal(ferry_ahead_read(&lab.ahead, piece, 1, ferry_clock_in_ms(SOON_MS)), -ENODATA);
	end(&lab);
}

static void every_piece_from_the_stream(void **state)
{
	(void)state;
	pieces(0);
}

static void ahead_of_what_is_asked(void **state)
{
	(void)state;
	pieces(ROOM);
}

/* What it is for: the pieces that came with the first are not in the stream any more. */
static void one_read_for_many(void **state)
{
	uint8_t piece[4];
	struct lab lab;

	(void)state;
	begin(&lab, ROOM, 12);
	assert_int_equal(ferry_ahead_read(&lab.ahead, piece, 4, ferry_clock_in_ms(SOON_MS)), 0);
	assert_int_equal(recv(lab.sv[1], piece, 1, MSG_PEEK), -1);
	assert_int_equal(errno, EAGAIN);
	assert_int_equal(ferry_ahead_read(&lab.ahead, piece, 4, 0), 0);
	assert_int_equal(piece[0], byte_at(4));
	assert_int_equal(ferry_ahead_read(&lab.ahead, piece, 4, 0), 0);
	assert_int_equal(piece[3], byte_at(11));
	assert_int_equal(ferry_ahead_read(&lab.ahead, piece, 4, ferry_clock_in_ms(20)), -ETIMEDOUT);
	end(&lab);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_piece_from_the_stream),
		cmocka_unit_test(ahead_of_what_is_asked),
		cmocka_unit_test(one_read_for_many),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
