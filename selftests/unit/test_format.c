// SPDX-License-Identifier: GPL-2.0-or-later
/* The snapshot file's codec: what is written is read, and what is wrong is refused as what. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <xxhash.h>

#include "store/format.h"

#define MIB (1ull << 20)

static const struct ferry_store_header header = {
	.version = FERRY_STORE_VERSION,
	.min_version = FERRY_STORE_MIN_VERSION,
	.features = 0x123, /* unknown ones that may be */
	.uuid = { 1, 2, 3, 16 },
	.blocks = 2,
	.created_s = 1790000000,
	.kind = "port my-vmm/1",
	.vmm = "My VMM 3",
};

static void headers(void **state)
{
	uint8_t buf[FERRY_STORE_HEADER_BYTES];
	struct ferry_store_header got;
	unsigned int i;

	(void)state;
	ferry_store_header_encode(&header, buf);
	assert_memory_equal(buf, "FERRYRAM", 8);
	assert_int_equal(ferry_store_header_decode(&got, buf, NULL), 0);
	assert_memory_equal(&got, &header, sizeof(got));
	/* Any changed byte is noticed. */
	for (i = 0; i < sizeof(buf); i += i < 200 ? 1 : 97) {
		buf[i] ^= 0x40;
		assert_true(ferry_store_header_decode(&got, buf, NULL) < 0);
		buf[i] ^= 0x40;
	}
}

/* Whoever makes a header can make its checksum. */
static int decode_changed(size_t off, const void *bytes, size_t len)
{
	uint8_t buf[FERRY_STORE_HEADER_BYTES];
	struct ferry_store_header got;
	uint64_t sum;

	ferry_store_header_encode(&header, buf);
	memcpy(buf + off, bytes, len);
	sum = XXH3_64bits(buf, sizeof(buf) - 8);
	memcpy(buf + sizeof(buf) - 8, &sum, 8);
	return ferry_store_header_decode(&got, buf, NULL);
}

static void bad_headers(void **state)
{
	char full[FERRY_STORE_MAX_KIND + 1];

	(void)state;
	memset(full, 'x', sizeof(full));
	assert_int_equal(decode_changed(0, "F", 1), 0);
	assert_int_equal(decode_changed(0, "G", 1), -EPROTO);
	assert_int_equal(decode_changed(8, "\0\0", 2), -EPROTONOSUPPORT); /* version 0 */
	assert_int_equal(decode_changed(8, "\7\0", 2), 0);		    /* a newer one ... */
	assert_int_equal(decode_changed(10, "\7\0", 2), -EPROTONOSUPPORT); /* ... that needs 7 */
	assert_int_equal(decode_changed(12, "\0\0\0\0", 4), -EPROTO);	    /* no blocks */
	assert_int_equal(decode_changed(12, "\1\1\0\0", 4), -EPROTO);	    /* 257 */
	assert_int_equal(decode_changed(23, "\1", 1), -EPROTONOSUPPORT); /* a needed feature */
	assert_int_equal(decode_changed(48, "\0", 1), -EPROTO);
	assert_int_equal(decode_changed(48, full, sizeof(full)), -EPROTO);
	assert_int_equal(decode_changed(48 + 40, "x", 1), -EPROTO); /* after its end */
	assert_int_equal(decode_changed(112, "\x1b", 1), -EPROTO);
	assert_int_equal(decode_changed(112, full, sizeof(full)), -EPROTO);
	assert_int_equal(decode_changed(4000, "x", 1), -EPROTO);
}

static void layout(void **state)
{
	struct ferry_store_block b[3] = {
		{ .name = "a", .size_bytes = 4096, .page_size = 4096 },
		{ .name = "b", .size_bytes = 5 * MIB + 4096, .page_size = 4096 },
		{ .name = "c", .size_bytes = 1ull << 40, .page_size = 2 * MIB },
	};
	struct ferry_store_places p;

	(void)state;
	assert_int_equal(ferry_store_layout(b, 3, &p), 0);
	assert_int_equal(b[0].bitmap_off, 12288); /* after three entries of 256 bytes */
	assert_int_equal(b[0].bitmap_bytes, 8);
	assert_int_equal(b[0].sums_off, 16384);
	assert_int_equal(b[0].sums_bytes, 8);
	assert_int_equal(b[1].bitmap_off, 20480);
	assert_int_equal(b[1].bitmap_bytes, 168); /* 1281 pages */
	assert_int_equal(b[1].sums_bytes, 48);	  /* 6 extents, the last one of a page */
	assert_int_equal(b[2].bitmap_bytes, 1ull << 25);
	assert_int_equal(b[0].pages_off % MIB, 0);
	assert_true(b[0].pages_off >= p.meta_end);
	assert_int_equal(b[1].pages_off, b[0].pages_off + MIB);
	assert_int_equal(b[2].pages_off, b[1].pages_off + 6 * MIB);
	assert_int_equal(p.device_off, b[2].pages_off + (1ull << 40));

	assert_int_equal(ferry_store_layout(b, 0, &p), -EINVAL);
	assert_int_equal(ferry_store_layout(b, 257, &p), -E2BIG);
	b[1].size_bytes = 4095;
	assert_int_equal(ferry_store_layout(b, 3, &p), -EINVAL);
	b[1].size_bytes = 0;
	assert_int_equal(ferry_store_layout(b, 3, &p), -EINVAL);
	b[1] = (struct ferry_store_block){ .size_bytes = 4096, .page_size = 12288 };
	assert_int_equal(ferry_store_layout(b, 3, &p), -EINVAL);
	b[1] = (struct ferry_store_block){ .size_bytes = 1ull << 46, .page_size = 4096 };
	assert_int_equal(ferry_store_layout(b, 3, &p), -E2BIG);
	b[1].size_bytes = (1ull << 46) + 4096;
	assert_int_equal(ferry_store_layout(b, 3, &p), -EINVAL);
}

static void blocks(void **state)
{
	struct ferry_store_block b[2] = {
		{ .name = "a", .size_bytes = 4096, .page_size = 4096 },
		{ .name = "b", .size_bytes = 6 * MIB, .page_size = 2 * MIB },
	}, got[2], scratch[2];
	uint8_t buf[FERRY_STORE_BLOCK_BYTES];
	struct ferry_store_places p;
	uint64_t *places[] = { &got[1].bitmap_off, &got[1].bitmap_bytes, &got[1].sums_off,
			       &got[1].sums_bytes, &got[0].pages_off };
	unsigned int i;

	(void)state;
	assert_int_equal(ferry_store_layout(b, 2, &p), 0);
	for (i = 0; i < 2; i++) {
		ferry_store_block_encode(&b[i], buf);
		assert_int_equal(ferry_store_block_decode(&got[i], buf, NULL), 0);
	}
	assert_memory_equal(got, b, sizeof(b));
	assert_int_equal(ferry_store_blocks_check(got, 2, scratch, &p, NULL), 0);
	for (i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
		*places[i] += 8;
		assert_int_equal(ferry_store_blocks_check(got, 2, scratch, &p, NULL), -EPROTO);
		*places[i] -= 8;
	}
	memcpy(got[1].name, "a", 2);
	assert_int_equal(ferry_store_blocks_check(got, 2, scratch, &p, NULL), -EPROTO);
	assert_int_equal(ferry_store_blocks_check(got, 0, scratch, &p, NULL), -EPROTO);

	buf[140] ^= 1; /* reserved */
	assert_int_equal(ferry_store_block_decode(got, buf, NULL), -EPROTO);
	buf[140] ^= 1;
	buf[255] ^= 1;
	assert_int_equal(ferry_store_block_decode(got, buf, NULL), -EPROTO);
	buf[255] ^= 1;
	buf[128] ^= 1; /* a size that is no number of pages */
	assert_int_equal(ferry_store_block_decode(got, buf, NULL), -EPROTO);
	buf[128] ^= 1;
	memset(buf, 'n', 128);
	assert_int_equal(ferry_store_block_decode(got, buf, NULL), -EPROTO);
}

static void commits(void **state)
{
	const struct ferry_store_places p = { .device_off = 16 * MIB };
	struct ferry_store_commit c = {
		.flags = FERRY_STORE_COMMIT_PAUSED, .uuid = { 1, 2, 3, 16 },
		.device_off = 16 * MIB, .device_bytes = 5000, .device_sum = 5, .meta_sum = 6,
		.pages = 7, .file_bytes = 16 * MIB + 5000,
	}, got;
	uint8_t buf[FERRY_STORE_COMMIT_BYTES];
	unsigned int i;

	(void)state;
	ferry_store_commit_encode(&c, buf);
	assert_int_equal(ferry_store_commit_decode(&got, buf, NULL), 0);
	assert_memory_equal(&got, &c, sizeof(c));
	for (i = 0; i < sizeof(buf); i += i < 120 ? 1 : 97) {
		buf[i] ^= 0x40;
		assert_int_equal(ferry_store_commit_decode(&got, buf, NULL), -EPROTO);
		buf[i] ^= 0x40;
	}
	memset(buf, 0, sizeof(buf));
	assert_int_equal(ferry_store_commit_decode(&got, buf, NULL), -ENODATA);
	c.flags = 8;
	ferry_store_commit_encode(&c, buf);
	assert_int_equal(ferry_store_commit_decode(&got, buf, NULL), -EPROTO);
	c.flags = 0;

	assert_int_equal(ferry_store_commit_check(&c, &header, &p, NULL), 0);
	got = c;
	got.uuid[15] = 1; /* of another file, or of an earlier save into this one */
	assert_int_equal(ferry_store_commit_check(&got, &header, &p, NULL), -EPROTO);
	got = c;
	got.device_off += 4096;
	assert_int_equal(ferry_store_commit_check(&got, &header, &p, NULL), -EPROTO);
	got = c;
	got.device_bytes = FERRY_STORE_MAX_DEVICE + 1;
	assert_int_equal(ferry_store_commit_check(&got, &header, &p, NULL), -EPROTO);
	got = c;
	got.file_bytes++;
	assert_int_equal(ferry_store_commit_check(&got, &header, &p, NULL), -EPROTO);
	got = c;
	got.order_count = 1;
	assert_int_equal(ferry_store_commit_check(&got, &header, &p, NULL), -EPROTO);
	got.order_off = 16 * MIB + 8192;
	got.file_bytes = got.order_off + 8;
	assert_int_equal(ferry_store_commit_check(&got, &header, &p, NULL), 0);
	got.order_count = 0;
	assert_int_equal(ferry_store_commit_check(&got, &header, &p, NULL), -EPROTO);
	got.order_count = UINT64_MAX / 8;
	assert_int_equal(ferry_store_commit_check(&got, &header, &p, NULL), -EPROTO);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(headers),
		cmocka_unit_test(bad_headers),
		cmocka_unit_test(layout),
		cmocka_unit_test(blocks),
		cmocka_unit_test(commits),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
