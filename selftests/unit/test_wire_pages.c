// SPDX-License-Identifier: GPL-2.0-or-later
/* The codec of what names pages: packets, their extents, and the runs of postcopy. */
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

static void packet_errors(void **state)
{
	static const struct poke pokes[] = {
		{ 0, 'X', -EPROTO },	  /* magic */
		{ 4, 2, -EPROTO },	  /* unknown flag */
		{ 4, 1, -EPROTO },	  /* SYNC with extents */
		{ 6, 0, -EPROTO },	  /* neither extents nor SYNC */
		{ 7, 3, -EMSGSIZE },	  /* too many extents */
		{ 14, 0x11, -EMSGSIZE },  /* data: too much */
		{ 15, 0x80, -EMSGSIZE },  /* data: far too much */
		{ 24, 1, -EPROTO },	  /* reserved */
		{ 31, 1, -EPROTO },	  /* reserved */
		{ 14, 0x10, 0 },	  /* exactly 1 MiB */
	};
	static const struct ferry_wire_packet good = {
		.extents = 2, .round = 7, .sequence = 1ull << 40,
	}, sync = { .flags = FERRY_WIRE_PACKET_SYNC, .round = 7, .sequence = 3 };
	uint8_t buf[FERRY_WIRE_PACKET_BYTES];
	struct ferry_wire_packet back;
	size_t i;

	(void)state;
	ferry_wire_packet_encode(&good, buf);
	assert_memory_equal(buf, "FRMP\0\0\2\0\7\0\0\0", 12);
	assert_int_equal(ferry_wire_packet_decode(&back, buf), 0);
	assert_int_equal(back.extents, 2);
	assert_int_equal(back.round, 7);
	assert_int_equal(back.data_bytes, 0);
	assert_int_equal(back.sequence, 1ull << 40);
	ferry_wire_packet_encode(&sync, buf);
	assert_int_equal(ferry_wire_packet_decode(&back, buf), 0);
	assert_int_equal(back.flags, FERRY_WIRE_PACKET_SYNC);
	assert_int_equal(back.sequence, 3);
	buf[13] = 0x10; /* SYNC with data */
	assert_int_equal(ferry_wire_packet_decode(&back, buf), -EPROTO);
	for (i = 0; i < COUNT(pokes); i++) {
		ferry_wire_packet_encode(&good, buf);
		buf[pokes[i].at] = pokes[i].value;
		if (ferry_wire_packet_decode(&back, buf) != pokes[i].want)
			fail_msg("byte %zu = %u", pokes[i].at, pokes[i].value);
	}
}

static void extent_errors(void **state)
{
	static const struct ferry_wire_extent good = {
		.block = 2, .pages = 16, .first_page = 1ull << 33, .data_bytes = 16 * 4096,
	}, zero = { .block = 2, .kind = FERRY_WIRE_EXTENT_ZERO, .pages = UINT32_MAX },
	packed = { .pages = 16, .codec = FERRY_WIRE_CODEC_LZ4, .checksum = 0x89abcdef,
		   .data_bytes = 16 * 4096 - 1 };
	static const struct poke pokes[] = {
		{ 2, 2, -EPROTO },	/* kind */
		{ 2, 1, -EPROTO },	/* zero with data */
		{ 3, 1, -EPROTO },	/* a codec, and no byte saved */
		{ 3, 3, -EPROTO },	/* a codec that does not exist */
		{ 4, 0, -EPROTO },	/* no pages */
		{ 4, 15, -EPROTO },	/* pages and data do not fit */
		{ 5, 0x10, -EMSGSIZE },	/* too many pages */
		{ 20, 1, 0 },		/* a checksum is for the receiver to judge */
	};
	uint8_t buf[FERRY_WIRE_EXTENT_BYTES];
	struct ferry_wire_extent back;
	size_t i;

	(void)state;
	ferry_wire_extent_encode(&good, buf);
	assert_memory_equal(buf, "\2\0\0\0\20\0\0\0\0\0\0\0\2\0\0\0\0\0\1\0\0\0\0\0", 24);
	assert_int_equal(ferry_wire_extent_decode(&back, buf), 0);
	assert_memory_equal(&back, &good, sizeof(good));
	ferry_wire_extent_encode(&zero, buf);
	assert_int_equal(ferry_wire_extent_decode(&back, buf), 0);
	assert_memory_equal(&back, &zero, sizeof(zero));
	ferry_wire_extent_encode(&packed, buf);
	assert_int_equal(ferry_wire_extent_decode(&back, buf), 0);
	assert_memory_equal(&back, &packed, sizeof(packed));
	buf[3] = 0; /* raw with less */
	assert_int_equal(ferry_wire_extent_decode(&back, buf), -EPROTO);
	buf[3] = FERRY_WIRE_CODEC_ZSTD;
	buf[16] = buf[17] = buf[18] = 0; /* packed to nothing */
	assert_int_equal(ferry_wire_extent_decode(&back, buf), -EPROTO);
	ferry_wire_extent_encode(&zero, buf);
	buf[3] = FERRY_WIRE_CODEC_LZ4; /* zero with a codec */
	assert_int_equal(ferry_wire_extent_decode(&back, buf), -EPROTO);
	for (i = 0; i < COUNT(pokes); i++) {
		ferry_wire_extent_encode(&good, buf);
		buf[pokes[i].at] = pokes[i].value;
		if (ferry_wire_extent_decode(&back, buf) != pokes[i].want)
			fail_msg("byte %zu = %u", pokes[i].at, pokes[i].value);
	}
}

static int check_two(unsigned int block_a, uint64_t first_a, uint32_t pages_a,
		     unsigned int block_b, uint64_t first_b, uint32_t pages_b)
{
	static const uint64_t block_pages[] = { 100, 50 };
	struct ferry_wire_extent e[2] = {
		{ .block = (uint16_t)block_a, .kind = 1, .pages = pages_a, .first_page = first_a },
		{ .block = (uint16_t)block_b, .kind = 1, .pages = pages_b, .first_page = first_b },
	};
	struct ferry_wire_packet p = { .extents = 2 };
	uint16_t scratch[2];

	return ferry_wire_packet_check(&p, e, block_pages, 2, scratch);
}

static void packet_check(void **state)
{
	static const uint64_t block_pages[] = { 100 };
	struct ferry_wire_extent e = { .pages = 2, .data_bytes = 8192 };
	struct ferry_wire_packet p = { .extents = 1, .data_bytes = 8192 };
	uint16_t scratch[1];

	(void)state;
	assert_int_equal(check_two(0, 0, 50, 0, 50, 50), 0);
	assert_int_equal(check_two(0, 50, 50, 0, 0, 50), 0);
	assert_int_equal(check_two(0, 0, 50, 1, 0, 50), 0);
	assert_int_equal(check_two(0, 0, 51, 0, 50, 50), -EEXIST);
	assert_int_equal(check_two(0, 50, 50, 0, 0, 51), -EEXIST);
	assert_int_equal(check_two(1, 7, 1, 1, 7, 1), -EEXIST);
	assert_int_equal(check_two(0, 0, 1, 0, 50, 51), -ERANGE);
	assert_int_equal(check_two(0, 0, 1, 0, 100, 1), -ERANGE);
	assert_int_equal(check_two(0, 0, 1, 0, UINT64_MAX, 2), -ERANGE);
	assert_int_equal(check_two(0, 0, 1, 0, 1, UINT32_MAX), -ERANGE);
	assert_int_equal(check_two(0, 0, 1, 2, 0, 1), -ERANGE);
	assert_int_equal(check_two(0, 0, 1, UINT16_MAX, 0, 1), -ERANGE);

	assert_int_equal(ferry_wire_packet_check(&p, &e, block_pages, 1, scratch), 0);
	p.data_bytes = 4096;
	assert_int_equal(ferry_wire_packet_check(&p, &e, block_pages, 1, scratch), -EPROTO);
	p.data_bytes = 0;
	assert_int_equal(ferry_wire_packet_check(&p, &e, block_pages, 1, scratch), -EPROTO);
}

/* Few bytes that would unpack to more pages than a raw packet may bring. */
static void packet_check_unpacked(void **state)
{
	static const uint64_t block_pages[] = { 100000 };
	struct ferry_wire_extent e[2] = {
		{ .codec = FERRY_WIRE_CODEC_ZSTD, .pages = 200, .data_bytes = 10 },
		{ .codec = FERRY_WIRE_CODEC_ZSTD, .pages = 56, .first_page = 200, .data_bytes = 10 },
	};
	struct ferry_wire_packet p = { .extents = 2, .data_bytes = 20 };
	uint16_t scratch[2];

	(void)state;
	assert_int_equal(ferry_wire_packet_check(&p, e, block_pages, 1, scratch), 0);
	e[1].pages = 57;
	assert_int_equal(ferry_wire_packet_check(&p, e, block_pages, 1, scratch), -EPROTO);
	e[1].kind = FERRY_WIRE_EXTENT_ZERO; /* zero pages cost nothing */
	assert_int_equal(ferry_wire_packet_check(&p, e, block_pages, 1, scratch), 0);
}

/* Many extents in a scrambled order: one overlap anywhere among them is found. */
static void packet_check_many(void **state)
{
	static const uint64_t block_pages[] = { 8192, 8192 };
	static struct ferry_wire_extent e[FERRY_WIRE_MAX_EXTENTS];
	struct ferry_wire_packet p = { .extents = FERRY_WIRE_MAX_EXTENTS };
	uint16_t scratch[FERRY_WIRE_MAX_EXTENTS];
	unsigned int i;

	(void)state;
	for (i = 0; i < FERRY_WIRE_MAX_EXTENTS; i++)
		e[i] = (struct ferry_wire_extent){
			.block = i & 1,
			.kind = FERRY_WIRE_EXTENT_ZERO,
			.pages = 16,
			.first_page = (i * 197 % FERRY_WIRE_MAX_EXTENTS) * 16,
		};
	assert_int_equal(ferry_wire_packet_check(&p, e, block_pages, 2, scratch), 0);
	for (i = 0; i < FERRY_WIRE_MAX_EXTENTS; i += 17) {
		/* 197 is odd, so each block has every second slot: 17 pages still fit, 33 do not. */
		e[i].pages = 32;
		assert_int_equal(ferry_wire_packet_check(&p, e, block_pages, 2, scratch),
				 e[i].first_page + 32 > 8192 ? -ERANGE : 0);
		e[i].pages = 33;
		assert_int_equal(ferry_wire_packet_check(&p, e, block_pages, 2, scratch),
				 e[i].first_page + 33 > 8192 ? -ERANGE : -EEXIST);
		e[i].pages = 16;
	}
}

static const uint64_t run_blocks[] = { 100, 1ull << 33 };

static void runs(void **state)
{
	static const struct ferry_wire_run good = { .first_page = 0x102030405, .pages = 7,
						    .block = 1 };
	static const uint8_t want[] = { 5, 4, 3, 2, 1, 0, 0, 0, 7, 0, 0, 0, 1, 0, 0, 0 };
	static const struct {
		struct ferry_wire_run run;
		int want;
	} bad[] = {
		{ { 0, 0, 0 }, -EPROTO },
		{ { 0, 1, 2 }, -ERANGE },
		{ { 100, 1, 0 }, -ERANGE },
		{ { 99, 2, 0 }, -ERANGE },
		{ { UINT64_MAX, UINT32_MAX, 1 }, -ERANGE },
		{ { 99, 1, 0 }, 0 },
		{ { 0, 100, 0 }, 0 },
		{ { (1ull << 33) - 1, 1, 1 }, 0 },
	};
	struct ferry_wire_run back;
	uint8_t buf[FERRY_WIRE_RUN_BYTES];
	size_t i;

	(void)state;
	ferry_wire_run_encode(&good, buf);
	assert_memory_equal(buf, want, sizeof(want));
	assert_int_equal(ferry_wire_run_decode(&back, buf, 16, run_blocks, 2), 0);
	assert_memory_equal(&back, &good, sizeof(good));
	assert_int_equal(ferry_wire_run_decode(&back, buf, 15, run_blocks, 2), -EMSGSIZE);
	assert_int_equal(ferry_wire_run_decode(&back, buf, 17, run_blocks, 2), -EMSGSIZE);
	buf[14] = 1;
	assert_int_equal(ferry_wire_run_decode(&back, buf, 16, run_blocks, 2), -EPROTO);
	for (i = 0; i < COUNT(bad); i++) {
		ferry_wire_run_encode(&bad[i].run, buf);
		assert_int_equal(ferry_wire_run_decode(&back, buf, 16, run_blocks, 2), bad[i].want);
	}
}

static void requests(void **state)
{
	const struct ferry_wire_run good = { .first_page = 99, .pages = 1, .block = 0 };
	struct ferry_wire_run back = { .block = 0 };
	uint8_t buf[FERRY_WIRE_REQUEST_BYTES];

	(void)state;
	ferry_wire_request_encode(&good, buf);
	assert_int_equal(ferry_wire_request_decode(&back, buf, 12, run_blocks, 2), 0);
	assert_memory_equal(&back, &good, sizeof(good));
	/* The same bytes mean another page when another block was named. */
	back.block = 1;
	assert_int_equal(ferry_wire_request_decode(&back, buf, 12, run_blocks, 2), 0);
	assert_int_equal(back.block, 1);
	back.block = 2;
	assert_int_equal(ferry_wire_request_decode(&back, buf, 12, run_blocks, 2), -ERANGE);
	back.block = 0;
	buf[0] = 100;
	assert_int_equal(ferry_wire_request_decode(&back, buf, 12, run_blocks, 2), -ERANGE);
	assert_int_equal(ferry_wire_request_decode(&back, buf, 16, run_blocks, 2), -EMSGSIZE);
}

static void received(void **state)
{
	struct ferry_wire_received good = { .first_page = 64, .block = 0 }, back;
	uint8_t buf[FERRY_WIRE_RECEIVED_BYTES + 16] = { 0 };

	(void)state;
	ferry_wire_received_encode(&good, buf);
	memset(buf + 16, 0xff, 4);
	buf[20] = 0x0f; /* pages 64..99: to the end of the block */
	assert_int_equal(ferry_wire_received_decode(&back, buf, 24, run_blocks, 2), 0);
	assert_int_equal(back.first_page, 64);
	assert_int_equal(back.block, 0);
	buf[20] = 0x1f;
	assert_int_equal(ferry_wire_received_decode(&back, buf, 24, run_blocks, 2), -EPROTO);
	assert_int_equal(ferry_wire_received_decode(&back, buf, 32, run_blocks, 2), -ERANGE);
	assert_int_equal(ferry_wire_received_decode(&back, buf, 16, run_blocks, 2), -EMSGSIZE);
	assert_int_equal(ferry_wire_received_decode(&back, buf, 23, run_blocks, 2), -EMSGSIZE);
	buf[0] = 63;
	assert_int_equal(ferry_wire_received_decode(&back, buf, 24, run_blocks, 2), -EPROTO);
	buf[0] = 128;
	assert_int_equal(ferry_wire_received_decode(&back, buf, 24, run_blocks, 2), -ERANGE);
	good.block = 2;
	ferry_wire_received_encode(&good, buf);
	assert_int_equal(ferry_wire_received_decode(&back, buf, 24, run_blocks, 2), -ERANGE);
	good.block = 1;
	ferry_wire_received_encode(&good, buf);
	assert_int_equal(ferry_wire_received_decode(&back, buf, 32, run_blocks, 2), 0);
	buf[15] = 1;
	assert_int_equal(ferry_wire_received_decode(&back, buf, 32, run_blocks, 2), -EPROTO);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(packet_errors),
		cmocka_unit_test(extent_errors),
		cmocka_unit_test(packet_check),
		cmocka_unit_test(packet_check_unpacked),
		cmocka_unit_test(packet_check_many),
		cmocka_unit_test(runs),
		cmocka_unit_test(requests),
		cmocka_unit_test(received),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
