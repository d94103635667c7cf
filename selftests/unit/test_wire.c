// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The codec: every structure there and back, its bytes, and the exact error of each bad one.
 * Those that name pages are in test_wire_pages.c.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "wire/wire.h"
#include "wire_poke.h"

static const struct ferry_wire_hello good_hello = {
	.version = FERRY_WIRE_VERSION,
	.min_version = FERRY_WIRE_MIN_VERSION,
	.features = 0x11223344,
	.uuid = { 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16 },
	.epoch = 0x01020304,
	.role = FERRY_WIRE_ROLE_SOURCE,
	.kind = FERRY_WIRE_KIND_MULTIFD,
	.channel = 3,
	.channels = 4,
	.page_size = 4096,
};

static void hello_round_trip(void **state)
{
	static const uint8_t want[FERRY_WIRE_HELLO_BYTES] = {
		'F', 'R', 'R', 'Y', 1, 0, 1, 0, 0x44, 0x33, 0x22, 0x11, 0, 0, 0, 0,
		1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16,
		4, 3, 2, 1, 1, 2, 3, 0, 4, 0, 0, 0, 0, 0x10, 0, 0,
	};
	uint8_t buf[FERRY_WIRE_HELLO_BYTES];
	struct ferry_wire_hello back;

	(void)state;
	ferry_wire_hello_encode(&good_hello, buf);
	assert_memory_equal(buf, want, sizeof(want));
	assert_int_equal(ferry_wire_hello_decode(&back, buf), 0);
	memset(buf, 0xee, sizeof(buf));
	ferry_wire_hello_encode(&back, buf);
	assert_memory_equal(buf, want, sizeof(want));
	assert_int_equal(ferry_wire_hello_check(&back), 0);
}

static void hello_errors(void **state)
{
	static const struct poke pokes[] = {
		{ 0, 'X', -EPROTO },	/* magic */
		{ 3, 0, -EPROTO },	/* magic */
		{ 4, 0, -EPROTO },	/* version below min_version */
		{ 6, 0, -EPROTO },	/* no min_version */
		{ 6, 2, -EPROTO },	/* min_version above version */
		{ 36, 0, -EPROTO },	/* role */
		{ 36, 3, -EPROTO },	/* role */
		{ 37, 0, -EPROTO },	/* kind */
		{ 37, 5, -EPROTO },	/* kind */
		{ 38, 4, -EPROTO },	/* channel = channels */
		{ 40, 65, -EPROTO },	/* channels */
		{ 40, 0, -EPROTO },	/* multifd of no channels */
		{ 42, 1, -EPROTO },	/* a source that refuses */
		{ 43, 1, -EPROTO },	/* unknown status */
		{ 48, 1, -EPROTO },	/* reserved */
		{ 63, 1, -EPROTO },	/* reserved */
		{ 40, 64, 0 },		/* as many as there can be */
		{ 32, 9, 0 },		/* epoch */
	};
	uint8_t buf[FERRY_WIRE_HELLO_BYTES];
	struct ferry_wire_hello h;
	size_t i;

	(void)state;
	for (i = 0; i < COUNT(pokes); i++) {
		ferry_wire_hello_encode(&good_hello, buf);
		buf[pokes[i].at] = pokes[i].value;
		if (ferry_wire_hello_decode(&h, buf) != pokes[i].want)
			fail_msg("byte %zu = %u", pokes[i].at, pokes[i].value);
	}
}

static void hello_of_others(void **state)
{
	struct ferry_wire_hello h = good_hello, back;
	uint8_t buf[FERRY_WIRE_HELLO_BYTES];

	(void)state;
	h.version = 9; /* newer, but speaks our version too */
	ferry_wire_hello_encode(&h, buf);
	buf[48] = 7; /* and uses what is reserved to us */
	assert_int_equal(ferry_wire_hello_decode(&back, buf), 0);
	assert_int_equal(ferry_wire_hello_check(&back), 0);
	back.min_version = 2;
	assert_int_equal(ferry_wire_hello_check(&back), -EPROTONOSUPPORT);
	back = good_hello;
	back.version = back.min_version = 0;
	assert_int_equal(ferry_wire_hello_check(&back), -EPROTONOSUPPORT);
	back = good_hello;
	back.features = 1ull << 32; /* it cannot do without */
	assert_int_equal(ferry_wire_hello_check(&back), -EPROTONOSUPPORT);
	back = good_hello;
	back.page_size = 65536;
	assert_int_equal(ferry_wire_hello_check(&back), -EPROTONOSUPPORT);

	/* A destination may answer a channel number that is wrong, and say why. */
	h = good_hello;
	h.role = FERRY_WIRE_ROLE_DESTINATION;
	h.channel = 9;
	h.status = FERRY_WIRE_STATUS_CHANNEL;
	ferry_wire_hello_encode(&h, buf);
	assert_int_equal(ferry_wire_hello_decode(&back, buf), 0);
	assert_int_equal(back.status, FERRY_WIRE_STATUS_CHANNEL);
	buf[42] = FERRY_WIRE_STATUS_CHANNEL + 1;
	assert_int_equal(ferry_wire_hello_decode(&back, buf), -EPROTO);
}

static void texts(void **state)
{
	unsigned int i;

	(void)state;
	for (i = FERRY_WIRE_STATUS_OK; i <= FERRY_WIRE_STATUS_CHANNEL; i++)
		assert_non_null(ferry_wire_status_text(i));
	assert_string_equal(ferry_wire_status_text(4711), "an answer of unknown meaning");
	for (i = 1; i < FERRY_WIRE_TYPE_COUNT; i++)
		assert_string_not_equal(ferry_wire_type_name(i), "unknown");
	assert_string_equal(ferry_wire_type_name(FERRY_WIRE_PACKAGE), "PACKAGE");
	assert_string_equal(ferry_wire_type_name(0), "unknown");
	assert_string_equal(ferry_wire_type_name(FERRY_WIRE_TYPE_COUNT), "unknown");
}

static int decode_frame(uint16_t type, uint16_t flags, uint32_t length)
{
	struct ferry_wire_frame f = { .type = type, .flags = flags, .length = length }, back;
	uint8_t buf[FERRY_WIRE_FRAME_BYTES], again[FERRY_WIRE_FRAME_BYTES];
	int r;

	ferry_wire_frame_encode(&f, buf);
	r = ferry_wire_frame_decode(&back, buf);
	/* What it was is told in any case: an error must be able to name it. */
	assert_int_equal(back.type, type);
	assert_int_equal(back.length, length);
	ferry_wire_frame_encode(&back, again);
	assert_memory_equal(buf, again, sizeof(buf));
	return r;
}

static void frame_bounds(void **state)
{
	static const struct {
		uint16_t type;
		uint32_t min, max;
	} bounds[] = {
		{ FERRY_WIRE_CONFIG, 16, 16 },
		{ FERRY_WIRE_BLOCKS, 25, 8 + 256 * (16 + 127) },
		{ FERRY_WIRE_READY, 0, 0 },
		{ FERRY_WIRE_FLUSH, 4, 4 },
		{ FERRY_WIRE_FLUSHED, 4, 4 },
		{ FERRY_WIRE_HASHES, 16, 16 * 256 },
		{ FERRY_WIRE_VERIFIED, 0, 0 },
		{ FERRY_WIRE_PACKAGE, 0, 64u << 20 },
		{ FERRY_WIRE_PING, 4, 4 },
		{ FERRY_WIRE_PONG, 4, 4 },
		{ FERRY_WIRE_RUN, 4, 4 },
		{ FERRY_WIRE_RUNNING, 8, 8 },
		{ FERRY_WIRE_REFUSED, 0, 1024 },
		{ FERRY_WIRE_ACK, 72, 72 },
		{ FERRY_WIRE_ABORT, 0, 1024 },
		{ FERRY_WIRE_ASK, 0, 0 },
		{ FERRY_WIRE_ANSWER, 4, 4 },
		{ FERRY_WIRE_GUEST, 1, 71 },
		{ FERRY_WIRE_CANNOT, 0, 1024 },
		{ FERRY_WIRE_DISCARD, 16, 16 * 4096 },
		{ FERRY_WIRE_POSTCOPY, 0, 0 },
		{ FERRY_WIRE_RUNNING_LACKS, 8, 8 },
		{ FERRY_WIRE_PLACED, 0, 0 },
		{ FERRY_WIRE_RECEIVED, 16 + 8, 16 + 65536 },
		{ FERRY_WIRE_RECEIVED_END, 8, 8 },
		{ FERRY_WIRE_REQUEST, 12, 12 },
		{ FERRY_WIRE_REQUEST_BLOCK, 16, 16 },
	};
	size_t i;

	(void)state;
	assert_int_equal(COUNT(bounds), FERRY_WIRE_TYPE_COUNT - 1);
	for (i = 0; i < COUNT(bounds); i++) {
		uint16_t type = bounds[i].type;

		assert_int_equal(decode_frame(type, 0, bounds[i].min), 0);
		assert_int_equal(decode_frame(type, 0, bounds[i].max), 0);
		assert_int_equal(decode_frame(type, FERRY_WIRE_OPTIONAL, bounds[i].max), 0);
		assert_int_equal(decode_frame(type, 0, bounds[i].max + 1), -EMSGSIZE);
		assert_int_equal(decode_frame(type, 0, UINT32_MAX), -EMSGSIZE);
		if (bounds[i].min)
			assert_int_equal(decode_frame(type, 0, bounds[i].min - 1), -EMSGSIZE);
		assert_int_equal(decode_frame(type, 2, bounds[i].min), -EPROTO);
	}
	assert_int_equal(decode_frame(FERRY_WIRE_HASHES, 0, 24), -EMSGSIZE);
	assert_int_equal(decode_frame(0, 0, 0), -EPROTONOSUPPORT);
	assert_int_equal(decode_frame(4711, 0, 8), -EPROTONOSUPPORT);
	assert_int_equal(decode_frame(4711, FERRY_WIRE_OPTIONAL, 8), 0);
	assert_int_equal(decode_frame(4711, FERRY_WIRE_OPTIONAL, FERRY_WIRE_MAX_OPTIONAL), 0);
	assert_int_equal(decode_frame(4711, FERRY_WIRE_OPTIONAL, FERRY_WIRE_MAX_OPTIONAL + 1),
			 -EMSGSIZE);
}

static void small_bodies(void **state)
{
	struct ferry_wire_config c = { .flags = FERRY_WIRE_CONFIG_VERIFY,
				       .codec = FERRY_WIRE_CODEC_LZ4, .ram_bytes = 1ull << 40 };
	uint8_t buf[16];
	uint32_t u32;
	uint64_t u64;

	(void)state;
	ferry_wire_config_encode(&c, buf);
	memset(&c, 0xee, sizeof(c));
	assert_int_equal(ferry_wire_config_decode(&c, buf, 16), 0);
	assert_int_equal(c.flags, FERRY_WIRE_CONFIG_VERIFY);
	assert_int_equal(c.codec, FERRY_WIRE_CODEC_LZ4);
	assert_int_equal(c.ram_bytes, 1ull << 40);
	assert_int_equal(ferry_wire_config_decode(&c, buf, 15), -EMSGSIZE);
	buf[4] = FERRY_WIRE_CODEC_COUNT;
	assert_int_equal(ferry_wire_config_decode(&c, buf, 16), -EPROTO);
	buf[4] = 0;
	buf[5] = 1;
	assert_int_equal(ferry_wire_config_decode(&c, buf, 16), -EPROTO);
	buf[5] = 0;
	buf[3] = 0x80;
	assert_int_equal(ferry_wire_config_decode(&c, buf, 16), -EPROTO);

	ferry_wire_u32_encode(0x04030201, buf);
	assert_memory_equal(buf, "\1\2\3\4", 4);
	assert_int_equal(ferry_wire_u32_decode(&u32, buf, 4), 0);
	assert_int_equal(u32, 0x04030201);
	assert_int_equal(ferry_wire_u32_decode(&u32, buf, 3), -EMSGSIZE);
	ferry_wire_u64_encode(0x0807060504030201, buf);
	assert_memory_equal(buf, "\1\2\3\4\5\6\7\10", 8);
	assert_int_equal(ferry_wire_u64_decode(&u64, buf, 8), 0);
	assert_int_equal(u64, 0x0807060504030201);
	assert_int_equal(ferry_wire_u64_decode(&u64, buf, 9), -EMSGSIZE);
}

static void summary(void **state)
{
	struct ferry_wire_summary s = { 1, 2, 3, 4, 5, 6, 7, "pagemap" }, back;
	uint8_t buf[FERRY_WIRE_SUMMARY_BYTES];

	(void)state;
	memset(s.tracker + 8, 'x', 8); /* rubbish behind the name does not travel */
	ferry_wire_summary_encode(&s, buf);
	assert_memory_equal(buf + 63, "\0\0\0\0\0\0\0\0\0", 9);
	memset(&back, 0xee, sizeof(back));
	assert_int_equal(ferry_wire_summary_decode(&back, buf, sizeof(buf)), 0);
	assert_memory_equal(&back, &s, 56);
	assert_string_equal(back.tracker, "pagemap");
	assert_int_equal(ferry_wire_summary_decode(&back, buf, sizeof(buf) - 1), -EMSGSIZE);
	buf[65] = 'y';
	assert_int_equal(ferry_wire_summary_decode(&back, buf, sizeof(buf)), -EPROTO);
	buf[65] = 0;
	buf[57] = '\33';
	assert_int_equal(ferry_wire_summary_decode(&back, buf, sizeof(buf)), -EPROTO);
	memset(buf + 56, 'a', 16);
	assert_int_equal(ferry_wire_summary_decode(&back, buf, sizeof(buf)), -EPROTO);
}

static const struct ferry_wire_block good_blocks[] = {
	{ .size_bytes = 1 << 20, .page_size = 4096, .name = "/objects/m" },
	{ .size_bytes = 4 << 20, .page_size = 2 << 20, .name = "n" },
};

/* The table: 8, then (16 + 10) for the first block, then (16 + 1): 51 bytes. */
static void blocks_round_trip(void **state)
{
	struct ferry_wire_block back[FERRY_WIRE_MAX_BLOCKS];
	unsigned int count = 2;
	uint8_t buf[64];

	(void)state;
	assert_int_equal(ferry_wire_blocks_bytes(good_blocks, 2), 51);
	ferry_wire_blocks_encode(good_blocks, 2, buf);
	assert_int_equal(ferry_wire_blocks_decode(back, &count, buf, 51), 0);
	assert_int_equal(count, 2);
	assert_memory_equal(back, good_blocks, sizeof(good_blocks));
}

static void blocks_errors(void **state)
{
	static const struct poke pokes[] = {
		{ 0, 0, -EPROTO },	 /* no blocks */
		{ 0, 1, -EMSGSIZE },	 /* bytes behind the last */
		{ 0, 3, -EMSGSIZE },	 /* more than there are */
		{ 1, 1, -EMSGSIZE },	 /* 258 */
		{ 4, 1, -EPROTO },	 /* reserved */
		{ 8, 1, -EPROTO },	 /* size not of whole pages */
		{ 10, 0, -EPROTO },	 /* size 0 */
		{ 14, 0x41, -EPROTO },	 /* size too large */
		{ 17, 0, -EPROTO },	 /* page size 0 */
		{ 17, 0x18, -EPROTO },	 /* page size no power of two */
		{ 19, 0x80, -EPROTO },	 /* page size too large */
		{ 20, 0, -EPROTO },	 /* no name */
		{ 20, 128, -EPROTO },	 /* name too long */
		{ 21, 1, -EPROTO },	 /* name too long */
		{ 20, 100, -EMSGSIZE },	 /* name runs out of the table */
		{ 22, 1, -EPROTO },	 /* reserved */
		{ 24, '\n', -EPROTO },	 /* control character */
		{ 24, 0, -EPROTO },	 /* NUL */
		{ 24, 0x80, -EPROTO },	 /* not ASCII */
		{ 24, 0x7f, -EPROTO },	 /* DEL */
		{ 24, ' ', 0 },
	};
	struct ferry_wire_block out[4], twins[2] = { good_blocks[0], good_blocks[0] };
	unsigned int count;
	uint8_t buf[64];
	size_t i;

	(void)state;
	for (i = 0; i < COUNT(pokes); i++) {
		ferry_wire_blocks_encode(good_blocks, 2, buf);
		buf[pokes[i].at] = pokes[i].value;
		count = 4;
		if (ferry_wire_blocks_decode(out, &count, buf, 51) != pokes[i].want)
			fail_msg("byte %zu = %u", pokes[i].at, pokes[i].value);
	}
	for (i = 0; i < 51; i++) {
		ferry_wire_blocks_encode(good_blocks, 2, buf);
		count = 4;
		assert_int_equal(ferry_wire_blocks_decode(out, &count, buf, i), -EMSGSIZE);
	}
	count = 1;
	assert_int_equal(ferry_wire_blocks_decode(out, &count, buf, 51), -EMSGSIZE);
	ferry_wire_blocks_encode(twins, 2, buf);
	count = 4;
	assert_int_equal(ferry_wire_blocks_decode(out, &count, buf,
						  ferry_wire_blocks_bytes(twins, 2)), -EEXIST);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(hello_round_trip),
		cmocka_unit_test(hello_errors),
		cmocka_unit_test(hello_of_others),
		cmocka_unit_test(texts),
		cmocka_unit_test(frame_bounds),
		cmocka_unit_test(small_bodies),
		cmocka_unit_test(summary),
		cmocka_unit_test(blocks_round_trip),
		cmocka_unit_test(blocks_errors),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
