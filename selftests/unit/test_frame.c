// SPDX-License-Identifier: GPL-2.0-or-later
/* Whole frames over a socket: there and back, cut off, unknown, hostile. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/io.h"
#include "xport/frame.h"

#define SOON_MS 5000

static int setup(void **state)
{
	int *sv = calloc(2, sizeof(*sv));

	if (!sv || socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, sv))
		return -1;
	*state = sv;
	return 0;
}

static int teardown(void **state)
{
	int *sv = *state;

	ferry_io_close(&sv[0]);
	ferry_io_close(&sv[1]);
	free(sv);
	return 0;
}

static void put(int fd, uint16_t type, uint16_t flags, uint32_t length, const void *body,
		size_t body_bytes)
{
	struct ferry_wire_frame f = { .type = type, .flags = flags, .length = length };
	uint8_t head[FERRY_WIRE_FRAME_BYTES];

	ferry_wire_frame_encode(&f, head);
	assert_int_equal(ferry_io_write(fd, head, sizeof(head), ferry_clock_in_ms(SOON_MS)), 0);
	assert_int_equal(ferry_io_write(fd, body, body_bytes, ferry_clock_in_ms(SOON_MS)), 0);
}

static int get(int fd, struct ferry_wire_frame *f, uint8_t **body, struct ferry_error *err)
{
	return ferry_frame_recv(fd, f, body, ferry_clock_in_ms(SOON_MS), err);
}

static void every_type(void **state)
{
	static const uint32_t lengths[FERRY_WIRE_TYPE_COUNT] = {
		[FERRY_WIRE_CONFIG] = 16,   [FERRY_WIRE_BLOCKS] = 25, [FERRY_WIRE_FLUSH] = 4,
		[FERRY_WIRE_FLUSHED] = 4,   [FERRY_WIRE_HASHES] = 32, [FERRY_WIRE_PACKAGE] = 5000,
		[FERRY_WIRE_PING] = 4,	    [FERRY_WIRE_PONG] = 4,    [FERRY_WIRE_RUNNING] = 8,
		[FERRY_WIRE_REFUSED] = 100, [FERRY_WIRE_ACK] = 72,    [FERRY_WIRE_ABORT] = 1024,
		[FERRY_WIRE_ANSWER] = 4,    [FERRY_WIRE_RUN] = 4,     [FERRY_WIRE_GUEST] = 71,
		[FERRY_WIRE_CANNOT] = 50,   [FERRY_WIRE_DISCARD] = 48, [FERRY_WIRE_RUNNING_LACKS] = 8,
		[FERRY_WIRE_RECEIVED] = 32, [FERRY_WIRE_RECEIVED_END] = 8,
		[FERRY_WIRE_REQUEST] = 12,  [FERRY_WIRE_REQUEST_BLOCK] = 16,
	};
	struct ferry_wire_frame f;
	uint8_t out[5000], *body;
	int *sv = *state;
	unsigned int t;

	memset(out, 'x', sizeof(out));
	for (t = 1; t < FERRY_WIRE_TYPE_COUNT; t++) {
		assert_int_equal(ferry_frame_send(sv[0], t, out, lengths[t],
						  ferry_clock_in_ms(SOON_MS)), 0);
		assert_int_equal(get(sv[1], &f, &body, NULL), 0);
		assert_int_equal(f.type, t);
		assert_int_equal(f.length, lengths[t]);
		if (lengths[t]) {
			assert_memory_equal(body, out, lengths[t]);
			assert_int_equal(body[lengths[t]], 0);
		} else {
			assert_null(body);
		}
		free(body);
	}
}

static void own_mistakes(void **state)
{
	int *sv = *state;

	assert_int_equal(ferry_frame_send(sv[0], FERRY_WIRE_PING, "12345", 5, 0), -EMSGSIZE);
	assert_int_equal(ferry_frame_send(sv[0], FERRY_WIRE_TYPE_COUNT, NULL, 0, 0),
			 -EPROTONOSUPPORT);
}

static void hello(void **state)
{
	struct ferry_wire_hello h = {
		.version = 1, .min_version = 1, .role = FERRY_WIRE_ROLE_SOURCE,
		.kind = FERRY_WIRE_KIND_MAIN, .channels = 2, .page_size = 4096,
	}, back;
	uint8_t rubbish[FERRY_WIRE_HELLO_BYTES] = "GET / HTTP/1.1";
	int *sv = *state;

	assert_int_equal(ferry_frame_send_hello(sv[0], &h, ferry_clock_in_ms(SOON_MS)), 0);
	assert_int_equal(ferry_frame_recv_hello(sv[1], &back, ferry_clock_in_ms(SOON_MS)), 0);
	assert_int_equal(back.channels, 2);
	assert_int_equal(ferry_io_write(sv[0], rubbish, sizeof(rubbish), FERRY_CLOCK_NEVER), 0);
	assert_int_equal(ferry_frame_recv_hello(sv[1], &back, ferry_clock_in_ms(SOON_MS)), -EPROTO);
	assert_int_equal(ferry_frame_recv_hello(sv[1], &back, ferry_clock_in_ms(20)), -ETIMEDOUT);
	assert_int_equal(ferry_io_write(sv[0], rubbish, 10, FERRY_CLOCK_NEVER), 0);
	ferry_io_close(&sv[0]);
	assert_int_equal(ferry_frame_recv_hello(sv[1], &back, ferry_clock_in_ms(SOON_MS)), -EPIPE);
}

static void skips_optional(void **state)
{
	static const uint8_t body_out[9000];
	struct ferry_wire_frame f;
	struct ferry_error err = { 0 };
	uint8_t *body;
	int *sv = *state;

	put(sv[0], 4711, FERRY_WIRE_OPTIONAL, sizeof(body_out), body_out, sizeof(body_out));
	put(sv[0], 0, FERRY_WIRE_OPTIONAL, 0, NULL, 0);
	put(sv[0], FERRY_WIRE_PONG, 0, 4, "\7\0\0\0", 4);
	assert_int_equal(get(sv[1], &f, &body, &err), 0);
	assert_int_equal(f.type, FERRY_WIRE_PONG);
	free(body);

	put(sv[0], 4711, FERRY_WIRE_OPTIONAL, 100, body_out, 50);
	ferry_io_close(&sv[0]);
	assert_int_equal(get(sv[1], &f, &body, &err), -EPIPE);
	assert_null(body);
}

static void refuses(int *sv, uint16_t type, uint16_t flags, uint32_t length, int want,
		    const char *says)
{
	struct ferry_wire_frame f;
	struct ferry_error err = { 0 };
	uint8_t *body;

	put(sv[0], type, flags, length, NULL, 0);
	assert_int_equal(get(sv[1], &f, &body, &err), want);
	assert_null(body);
	assert_int_equal(err.errnum, -want);
	if (!strstr(err.text, says))
		fail_msg("'%s' is not in '%s'", says, err.text);
}

static void bad_headers(void **state)
{
	int *sv = *state;

	refuses(sv, 4711, 0, 0, -EPROTONOSUPPORT, "unknown type 4711");
	refuses(sv, FERRY_WIRE_PACKAGE, 0, FERRY_WIRE_MAX_PACKAGE + 1, -EMSGSIZE, "PACKAGE");
	refuses(sv, FERRY_WIRE_ASK, 0, 1, -EMSGSIZE, "ASK");
	refuses(sv, FERRY_WIRE_CONFIG, 0, 15, -EMSGSIZE, "CONFIG");
	refuses(sv, FERRY_WIRE_ASK, 0x8000, 0, -EPROTO, "flags 0x8000");
	refuses(sv, 4711, FERRY_WIRE_OPTIONAL, UINT32_MAX, -EMSGSIZE, "4294967295");
}

static void cut_off(void **state)
{
	struct ferry_wire_frame f;
	struct ferry_error err = { 0 };
	uint8_t *body;
	int *sv = *state;

	assert_int_equal(ferry_frame_recv(sv[1], &f, &body, ferry_clock_in_ms(20), &err),
			 -ETIMEDOUT);
	put(sv[0], FERRY_WIRE_PACKAGE, 0, 1000, "abc", 3);
	assert_int_equal(ferry_frame_recv(sv[1], &f, &body, ferry_clock_in_ms(20), &err),
			 -ETIMEDOUT);
	assert_null(body);
	put(sv[0], FERRY_WIRE_PACKAGE, 0, 1000, "abc", 3);
	ferry_io_close(&sv[0]);
	assert_int_equal(get(sv[1], &f, &body, &err), -EPIPE);
	assert_non_null(strstr(err.text, "inside a frame PACKAGE"));
	assert_int_equal(get(sv[1], &f, &body, &err), -ENODATA);
	assert_non_null(strstr(err.text, "closed the connection"));
}

static void half_header(void **state)
{
	struct ferry_wire_frame f;
	struct ferry_error err = { 0 };
	uint8_t *body;
	int *sv = *state;

	assert_int_equal(write(sv[0], "\1\0\0", 3), 3);
	ferry_io_close(&sv[0]);
	assert_int_equal(get(sv[1], &f, &body, &err), -EPIPE);
	assert_null(body);
}

static void texts_are_harmless(void **state)
{
	struct ferry_wire_frame f;
	uint8_t *body;
	int *sv = *state;

	put(sv[0], FERRY_WIRE_ABORT, 0, 12, "no\33[2J\nroom\0", 12);
	assert_int_equal(get(sv[1], &f, &body, NULL), 0);
	assert_string_equal((char *)body, "no?[2J room?");
	free(body);
}

static void nobody_there(void **state)
{
	int *sv = *state;

	ferry_io_close(&sv[1]);
	/* An error, not a SIGPIPE. */
	assert_int_equal(ferry_frame_send(sv[0], FERRY_WIRE_ASK, NULL, 0,
					  ferry_clock_in_ms(SOON_MS)), -EPIPE);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(every_type),  TEST(own_mistakes), TEST(hello),	  TEST(skips_optional),
		TEST(bad_headers), TEST(cut_off),      TEST(half_header), TEST(texts_are_harmless),
		TEST(nobody_there),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
