// SPDX-License-Identifier: GPL-2.0-or-later
/* Packing and unpacking runs of pages, and what becomes of bytes that nobody packed. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <zstd.h>

#include "ram/hash.h"
#include "xport/compress.h"

#define PAGE 4096u
#define RUN (FERRY_COMPRESS_PAGES * PAGE)
#define GUARD 64u

static const uint8_t codecs[] = { FERRY_WIRE_CODEC_ZSTD, FERRY_WIRE_CODEC_LZ4 };

static uint64_t random_state = 88172645463325252ull;

static uint64_t random_word(void)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return random_state;
}

static void fill_text(uint8_t *at, size_t bytes)
{
	size_t i;

	for (i = 0; i < bytes; i++)
		at[i] = (uint8_t)("the quick brown fox "[i % 20] + (i / 997) % 3);
}

static void fill_random(uint8_t *at, size_t bytes)
{
	size_t i;

	for (i = 0; i < bytes; i += 8) {
		uint64_t w = random_word();

		memcpy(at + i, &w, 8);
	}
}

struct bench {
	struct ferry_compress *pack, *unpack;
	uint8_t *plain, *packed, *back; /* back has a guard behind it */
};

static struct bench make(unsigned int codec)
{
	struct bench b;

	assert_int_equal(ferry_compress_create(codec, FERRY_COMPRESS_PACK, &b.pack), 0);
	assert_int_equal(ferry_compress_create(codec, FERRY_COMPRESS_UNPACK, &b.unpack), 0);
	b.plain = malloc(RUN);
	b.packed = malloc(RUN);
	b.back = malloc(RUN + GUARD);
	assert_true(b.plain && b.packed && b.back);
	memset(b.back, 0x5a, RUN + GUARD);
	return b;
}

static void check_guard(const struct bench *b, size_t want)
{
	size_t i;

	for (i = want; i < want + GUARD; i++)
		assert_int_equal(b->back[i], 0x5a);
}

static void end(struct bench *b)
{
	check_guard(b, RUN);
	ferry_compress_free(b->pack);
	ferry_compress_free(b->unpack);
	free(b->plain);
	free(b->packed);
	free(b->back);
}

static void there_and_back(void **state)
{
	static const unsigned int pages[] = { 1, 2, 7, FERRY_COMPRESS_PAGES };
	size_t i, j;

	(void)state;
	for (i = 0; i < 2; i++) {
		struct bench b = make(codecs[i]);

		for (j = 0; j < 4; j++) {
			size_t bytes = pages[j] * PAGE, n;

			fill_text(b.plain, bytes);
			n = ferry_compress_pack(b.pack, b.plain, bytes, b.packed);
			assert_in_range(n, 1, bytes / 2);
			assert_int_equal(ferry_compress_unpack(b.unpack, b.packed, n, b.back, bytes), 0);
			assert_memory_equal(b.plain, b.back, bytes);
		}
		end(&b);
	}
}

/* Random bytes go raw; after some runs of them only a sample is tried, until one shrinks. */
static void incompressible(void **state)
{
	size_t i;

	(void)state;
	for (i = 0; i < 2; i++) {
		struct bench b = make(codecs[i]);
		unsigned int tries;

		fill_random(b.plain, RUN);
		for (tries = 0; tries < 40; tries++)
			assert_int_equal(ferry_compress_pack(b.pack, b.plain, RUN, b.packed), 0);
		fill_text(b.plain, RUN);
		for (tries = 1; tries < 40; tries++)
			if (ferry_compress_pack(b.pack, b.plain, RUN, b.packed))
				break;
		assert_in_range(tries, 1, 16);
		/* From then on all are tried again. */
		for (tries = 0; tries < 4; tries++)
			assert_true(ferry_compress_pack(b.pack, b.plain, RUN, b.packed) > 0);
		end(&b);
	}
}

static void no_context(void **state)
{
	struct ferry_compress *c = (struct ferry_compress *)(uintptr_t)1;

	(void)state;
	assert_int_equal(ferry_compress_create(FERRY_WIRE_CODEC_RAW, FERRY_COMPRESS_PACK, &c), 0);
	assert_null(c);
	assert_int_equal(ferry_compress_create(77, FERRY_COMPRESS_PACK, &c), -EINVAL);
	assert_null(c);
	ferry_compress_free(NULL);
}

/* One bit wrong, cut short, too long, another length wanted: an error or, for LZ4, other bytes. */
static void damaged(void **state)
{
	size_t i, at, n;
	unsigned int found = 0;

	(void)state;
	for (i = 0; i < 2; i++) {
		struct bench b = make(codecs[i]);

		fill_text(b.plain, RUN);
		n = ferry_compress_pack(b.pack, b.plain, RUN, b.packed);
		for (at = 0; at < n; at++) {
			b.packed[at] ^= 0x10;
			if (ferry_compress_unpack(b.unpack, b.packed, n, b.back, RUN) == -EBADMSG)
				found++;
			check_guard(&b, RUN);
			b.packed[at] ^= 0x10;
		}
		assert_true(found > 0);
		for (at = 0; at < n; at++)
			assert_int_equal(ferry_compress_unpack(b.unpack, b.packed, at, b.back, RUN),
					 -EBADMSG);
		memcpy(b.packed + n, b.packed, n); /* two in a row */
		assert_int_equal(ferry_compress_unpack(b.unpack, b.packed, 2 * n, b.back, RUN),
				 -EBADMSG);
		assert_int_equal(ferry_compress_unpack(b.unpack, b.packed, n, b.back, RUN), 0);
		end(&b);
	}
}

/* Bytes that become far more than was announced: nothing is written beyond that. */
static void bombs(void **state)
{
	size_t i, n, big = 64u << 20;
	uint8_t *zeros = calloc(1, big), *bomb = malloc(1u << 20);

	(void)state;
	assert_true(zeros && bomb);
	for (i = 0; i < 2; i++) {
		struct bench b = make(codecs[i]);

		if (codecs[i] == FERRY_WIRE_CODEC_ZSTD) {
			n = ZSTD_compress(bomb, 1u << 20, zeros, big, 1);
			assert_false(ZSTD_isError(n));
			assert_true(n < 16384);
		} else { /* by hand: a literal, then a match of 255 bytes more for each byte */
			memset(bomb, 0xff, 65536);
			memcpy(bomb, "\x1f\0\1\0", 4);
			n = 65536;
		}
		memset(b.back, 0x5a, RUN + GUARD);
		assert_int_equal(ferry_compress_unpack(b.unpack, bomb, n, b.back, PAGE), -EBADMSG);
		check_guard(&b, PAGE);
		assert_int_equal(ferry_compress_unpack(b.unpack, bomb, n, b.back, RUN), -EBADMSG);
		end(&b);
	}
	free(zeros);
	free(bomb);
}

/* Frames that the library would take: without their size, empty, to be skipped. */
static void strange_frames(void **state)
{
	struct bench b = make(FERRY_WIRE_CODEC_ZSTD);
	ZSTD_CCtx *ctx = ZSTD_createCCtx();
	size_t n;

	(void)state;
	fill_text(b.plain, RUN);
	ZSTD_CCtx_setParameter(ctx, ZSTD_c_contentSizeFlag, 0);
	n = ZSTD_compress2(ctx, b.packed, RUN, b.plain, RUN);
	assert_false(ZSTD_isError(n));
	assert_int_equal(ferry_compress_unpack(b.unpack, b.packed, n, b.back, RUN), -EBADMSG);
	n = ZSTD_compress(b.packed, RUN, b.plain, 0, 1);
	assert_int_equal(ferry_compress_unpack(b.unpack, b.packed, n, b.back, PAGE), -EBADMSG);
	memcpy(b.packed, "\x50\x2a\x4d\x18\0\0\0\0", 8);
	n = ZSTD_compress(b.packed + 8, RUN - 8, b.plain, PAGE, 1);
	assert_int_equal(ferry_compress_unpack(b.unpack, b.packed, n + 8, b.back, PAGE), -EBADMSG);
	assert_int_equal(ferry_compress_unpack(b.unpack, b.packed + 8, n, b.back, PAGE), 0);
	ZSTD_freeCCtx(ctx);
	end(&b);
}

/* The checksum tells bytes, places and lengths apart, and is never "none". */
static void checksum(void **state)
{
	static uint8_t run[2 * PAGE];
	uint32_t sum;

	(void)state;
	fill_text(run, sizeof(run));
	sum = ferry_hash_extent(1, 5, 2, run);
	assert_int_equal(sum, ferry_hash_extent(1, 5, 2, run));
	assert_int_not_equal(sum, ferry_hash_extent(0, 5, 2, run));
	assert_int_not_equal(sum, ferry_hash_extent(1, 6, 2, run));
	assert_int_not_equal(sum, ferry_hash_extent(1, 5, 1, run));
	run[8191] ^= 1;
	assert_int_not_equal(sum, ferry_hash_extent(1, 5, 2, run));
	assert_int_not_equal(ferry_hash_extent(1, 5, 2, NULL), ferry_hash_extent(1, 5, 3, NULL));
	assert_int_not_equal(ferry_hash_extent(0, 0, 1, NULL), 0);
	/* A promise of the wire: these numbers never change. */
	memset(run, 0xa5, sizeof(run));
	assert_int_equal(ferry_hash_extent(3, 7, 2, run), 0x7e3844d5u);
	assert_int_equal(ferry_hash_extent(3, 7, 2, NULL), 0x20356d4bu);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(there_and_back),
		cmocka_unit_test(incompressible),
		cmocka_unit_test(no_context),
		cmocka_unit_test(damaged),
		cmocka_unit_test(bombs),
		cmocka_unit_test(strange_frames),
		cmocka_unit_test(checksum),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
