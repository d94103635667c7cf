// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What packets may hold: made by hand with one thing wrong, compressed, with checksums, and
 * for memory that refuses them.
 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/io.h"
#include "multifd_rig.h"
#include "ram/hash.h"
#include "wire/wire.h"
#include "xport/compress.h"

#define MS(ms) ((ms) * FERRY_NS_PER_MS)

/* One packet of up to two extents, sent to channel 0 of two; both must end. */
struct bad {
	const char *says;
	int want;
	struct ferry_wire_packet packet;
	struct ferry_wire_extent extents[2];
	uint32_t magic_error;
	size_t cut; /* send only so many bytes, then close; 0: all, and stay */
};

#define ZERO_EXTENT(b, first, n) \
	{ .block = (b), .kind = FERRY_WIRE_EXTENT_ZERO, .pages = (n), .first_page = (first) }

static const struct bad bads[] = {
	{ "makes no sense", -EPROTO, { .flags = 1, .round = 1 }, { { 0 } }, 1, 0 },
	{ "makes no sense", -EPROTO, { .flags = 4, .round = 1 }, { { 0 } }, 0, 0 },
	{ "makes no sense", -EPROTO, { .round = 1 }, { { 0 } }, 0, 0 },
	{ "out of bounds", -EMSGSIZE, { .round = 1, .extents = 513 }, { { 0 } }, 0, 0 },
	{ "sequence number", -EPROTO, { .flags = 1, .round = 1, .sequence = 1 }, { { 0 } }, 0, 0 },
	{ "another round", -EPROTO, { .flags = 1, .round = 2 }, { { 0 } }, 0, 0 },
	{ "another round", -EPROTO, { .extents = 1, .round = 0 }, { ZERO_EXTENT(0, 0, 1) }, 0, 0 },
	{ "an extent makes no sense", -EPROTO, { .extents = 1, .round = 1 },
	  { ZERO_EXTENT(0, 0, 0) }, 0, 0 },
	{ "outside of guest memory", -ERANGE, { .extents = 1, .round = 1 },
	  { ZERO_EXTENT(3, 0, 1) }, 0, 0 },
	{ "outside of guest memory", -ERANGE, { .extents = 1, .round = 1 },
	  { ZERO_EXTENT(1, 500, 16) }, 0, 0 },
	{ "outside of guest memory", -ERANGE, { .extents = 1, .round = 1 },
	  { ZERO_EXTENT(1, UINT64_MAX, 2) }, 0, 0 },
	{ "overlap", -EEXIST, { .extents = 2, .round = 1 },
	  { ZERO_EXTENT(1, 10, 10), ZERO_EXTENT(1, 5, 6) }, 0, 0 },
	{ "do not add up", -EPROTO, { .extents = 1, .round = 1, .data_bytes = 4096 },
	  { ZERO_EXTENT(0, 0, 1) }, 0, 0 },
	{ "inside packet 0 of round 1", -EPIPE, { .flags = 1, .round = 1 }, { { 0 } }, 0, 31 },
	{ "inside packet 0 of round 1", -EPIPE, { .extents = 2, .round = 1 },
	  { ZERO_EXTENT(0, 0, 1), ZERO_EXTENT(0, 1, 1) }, 0, 40 },
	{ "inside packet 0 of round 1", -EPIPE, { .extents = 1, .round = 1, .data_bytes = 4096 },
	  { { .pages = 1, .data_bytes = 4096 } }, 0, 56 },
	{ "inside packet 0 of round 1", -EPIPE, /* so many are not read into a buffer first */
	  { .extents = 1, .round = 1, .data_bytes = 131072 },
	  { { .pages = 32, .data_bytes = 131072 } }, 0, 56 },
};

static void garbage(void **state)
{
	uint8_t buf[FERRY_WIRE_PACKET_BYTES + 2 * FERRY_WIRE_EXTENT_BYTES];
	size_t i, len;

	(void)state;
	for (i = 0; i < sizeof(bads) / sizeof(bads[0]); i++) {
		const struct bad *b = &bads[i];
		struct rig *rig = rig_make(2, false);
		int r;

		rig_start_recv(rig);
		ferry_wire_packet_encode(&b->packet, buf);
		buf[0] ^= (uint8_t)b->magic_error;
		ferry_wire_extent_encode(&b->extents[0], buf + 32);
		ferry_wire_extent_encode(&b->extents[1], buf + 56);
		len = 32 + (b->packet.extents < 2 ? b->packet.extents : 2) * 24u;
		len = b->cut ? b->cut : len;
		assert_int_equal(ferry_io_write(rig->ours[0], buf, len, rig_soon()), 0);
		if (b->cut)
			ferry_io_close(&rig->ours[0]);
		r = ferry_multifd_recv_wait(rig->recv, 1, rig_soon(), &rig->err);
		if (r != b->want)
			fail_msg("case %zu: %d %s", i, r, rig->err.text);
		rig_expect_error(rig, r, b->says);
		rig_expect_error(rig, r, "multifd channel 0: ");
		assert_int_equal(rig_allocated_pages(&rig->to), 0);
		assert_int_equal(ferry_bitmap_count(&rig->received), 0);
		rig_free(rig);
	}
}

/* Memory that cannot be written, met on both ways into it. */
static void memory_refuses(void **state)
{
	unsigned int pages;

	(void)state;
	for (pages = 1; pages <= 64; pages += 63) {
		struct rig *rig = rig_make(1, false);
		int fd = memfd_create("ferry-sealed", MFD_CLOEXEC | MFD_ALLOW_SEALING);
		uint64_t p;
		int r;

		assert_int_equal(ftruncate(fd, (off_t)rig->to.blocks[0].size_bytes), 0);
		assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE), 0);
		close(rig->to.blocks[0].fd);
		rig->to.blocks[0].fd = fd;
		for (p = 0; p < pages; p++)
			rig_write_page(rig, 0, p, 1);
		rig_start_send(rig, NULL, NULL);
		rig_start_recv(rig);
		rig_queue(rig, 0, 0, pages, false);
		r = ferry_multifd_recv_wait(rig->recv, 1, rig_soon(), &rig->err);
		assert_int_equal(r, -EPERM);
		rig_expect_error(rig, r, "multifd channel 0: writing to memory block 'block0': ");
		assert_int_equal(ferry_bitmap_count(&rig->received), 0);
		rig_free(rig);
	}
}

static void fill_random(struct rig *rig, unsigned int block, uint64_t first, uint64_t pages)
{
	static uint64_t x = 88172645463325252ull;
	uint64_t words[FERRY_PAGE_SIZE / 8], p;
	unsigned int i;

	for (p = first; p < first + pages; p++) {
		for (i = 0; i < FERRY_PAGE_SIZE / 8; i++) {
			x ^= x << 13;
			x ^= x >> 7;
			x ^= x << 17;
			words[i] = x;
		}
		assert_int_equal(ferry_io_pwrite(rig->from.blocks[block].fd, words, sizeof(words),
						 rig_page_off(block, p)), 0);
	}
}

/* What is packed arrives as it was, takes less of the line, and pages count as before. */
static void check_packed(uint8_t codec, bool checksum, unsigned int channels)
{
	struct rig *rig = rig_make(channels, false);
	uint64_t data = rig_fill(rig), all = ferry_ram_pages(&rig->from);
	struct ferry_multifd_send_stats sent, then;
	struct ferry_multifd_recv_stats got;
	unsigned int i;

	rig->codec = codec;
	rig->checksum = checksum;
	rig_move_all(rig, &sent, &got);
	assert_int_equal(sent.normal_pages, data);
	assert_int_equal(sent.zero_pages, all - data);
	assert_int_equal(got.normal_pages, data);
	assert_int_equal(got.received_bytes, sent.sent_bytes);
	assert_int_equal(rig_allocated_pages(&rig->to), data);
	if (codec)
		assert_true(sent.sent_bytes < data * FERRY_PAGE_SIZE * 2 / 3);

	/* Random bytes are not made larger than their headers make them. */
	fill_random(rig, 0, 0, 600);
	rig_queue(rig, 0, 0, 600, false);
	rig_queue(rig, 0, 700, 50, true);
	rig_finish_round(rig, 2);
	for (i = 700; i < 750; i++)
		rig_write_page(rig, 0, i, 0);
	rig_check_equal(rig);
	ferry_multifd_send_stats(rig->send, &then);
	assert_in_range(then.sent_bytes - sent.sent_bytes, 600 * FERRY_PAGE_SIZE,
			604 * FERRY_PAGE_SIZE);
	rig_free(rig);
}

static void packed(void **state)
{
	unsigned int codec, checksum;

	(void)state;
	for (codec = 0; codec < FERRY_WIRE_CODEC_COUNT; codec++)
		for (checksum = 0; checksum < 2; checksum++)
			check_packed((uint8_t)codec, checksum, 1 + codec);
}

/* The rate limit is one of the line: what packs to a tenth goes ten times as fast. */
static void rate_counts_what_is_on_the_wire(void **state)
{
	struct rig *rig = rig_make(2, false);
	uint64_t start, p;

	(void)state;
	rig->codec = FERRY_WIRE_CODEC_ZSTD;
	for (p = 0; p < 1280; p++) /* 5 MiB of one byte */
		assert_int_equal(fallocate(rig->from.blocks[0].fd, 0, rig_page_off(0, p), 4096), 0);
	for (p = 0; p < 1280; p++)
		assert_int_equal(pwrite(rig->from.blocks[0].fd, "x", 1, rig_page_off(0, p)), 1);
	ferry_rate_set(&rig->rate, 1 << 20);
	rig_start_recv(rig);
	rig_start_send(rig, NULL, NULL);
	start = ferry_clock_ns();
	rig_queue(rig, 0, 0, 1280, false);
	rig_finish_round(rig, 1);
	/* Raw it would be 5 s. */
	assert_true(ferry_clock_ns() - start < MS(2500));
	rig_check_equal(rig);
	rig_free(rig);
}

/* Packets of one extent, pages 5 and 6 of block 0, with one thing wrong. */
struct wrong {
	const char *name, *says;
	int want;
	uint8_t agreed, codec;	 /* of the migration, of the extent */
	bool agreed_sum;
	uint32_t xor_sum;	 /* into a right checksum; 1 with none: leave it out */
	int flip;		 /* a byte of the data, -1 none */
	uint64_t claim_page;	 /* instead of 5 */
};

static const struct wrong wrongs[] = {
	{ "codec", "compressed in a way that was not agreed on", -EPROTO, 0,
	  FERRY_WIRE_CODEC_ZSTD, false, 0, -1, 5 },
	{ "other codec", "compressed in a way that was not agreed on", -EPROTO,
	  FERRY_WIRE_CODEC_ZSTD, FERRY_WIRE_CODEC_LZ4, false, 0, -1, 5 },
	{ "sum not agreed on", "an extent has a checksum, which was not agreed on", -EPROTO, 0, 0,
	  false, 2, -1, 5 },
	{ "no sum", "an extent has no checksum", -EPROTO, 0, 0, true, 1, -1, 5 },
	{ "wrong sum", "block 'block0', pages 5 to 6, in packet 0 of round 1: its checksum is wrong",
	  -EBADMSG, 0, 0, true, 0x100, -1, 5 },
	{ "wrong byte", "block 'block0', pages 5 to 6, in packet 0 of round 1: its checksum is wrong",
	  -EBADMSG, 0, 0, true, 0, 4097, 5 },
	{ "wrong place", "block 'block0', pages 9 to 10, in packet 0 of round 1: its checksum is "
	  "wrong", -EBADMSG, 0, 0, true, 0, -1, 9 },
	{ "damaged zstd", "block 'block0', pages 5 to 6, in packet 0 of round 1: its compressed data "
	  "is damaged", -EBADMSG, FERRY_WIRE_CODEC_ZSTD, FERRY_WIRE_CODEC_ZSTD, false, 0, 0, 5 },
	{ "damaged lz4", "block 'block0', pages 5 to 6, in packet 0 of round 1: its compressed data "
	  "is damaged", -EBADMSG, FERRY_WIRE_CODEC_LZ4, FERRY_WIRE_CODEC_LZ4, false, 0, 0, 5 },
};

static void put_wrong(struct rig *rig, const struct wrong *w)
{
	struct ferry_wire_extent e = { .pages = 2, .first_page = w->claim_page, .codec = w->codec,
				       .data_bytes = 8192 };
	uint8_t buf[FERRY_WIRE_PACKET_BYTES + FERRY_WIRE_EXTENT_BYTES], out[8192];
	struct ferry_wire_packet p = { .extents = 1, .round = 1 };
	struct ferry_compress *c;
	uint64_t pages[1024];

	rig_make_page(pages, 0, 5, 1);
	rig_make_page(pages + 512, 0, 6, 1);
	memcpy(out, pages, sizeof(out));
	if (w->codec) {
		assert_int_equal(ferry_compress_create(w->codec, FERRY_COMPRESS_PACK, &c), 0);
		e.data_bytes = (uint32_t)ferry_compress_pack(c, pages, sizeof(pages), out);
		assert_true(e.data_bytes);
		ferry_compress_free(c);
	}
	if (w->agreed_sum || w->xor_sum)
		e.checksum = ferry_hash_extent(0, 5, 2, pages) ^ w->xor_sum;
	if (w->xor_sum == 1)
		e.checksum = 0;
	if (w->flip >= 0)
		out[w->flip] ^= 0x40;
	p.data_bytes = e.data_bytes;
	ferry_wire_packet_encode(&p, buf);
	ferry_wire_extent_encode(&e, buf + FERRY_WIRE_PACKET_BYTES);
	assert_int_equal(ferry_io_write(rig->ours[0], buf, sizeof(buf), rig_soon()), 0);
	/* It may have hung up over the head alone. */
	ferry_io_write(rig->ours[0], out, e.data_bytes, rig_soon());
}

static void damaged(void **state)
{
	size_t i;

	(void)state;
	for (i = 0; i < sizeof(wrongs) / sizeof(wrongs[0]); i++) {
		const struct wrong *w = &wrongs[i];
		struct rig *rig = rig_make(2, false);
		int r;

		rig->codec = w->agreed;
		rig->checksum = w->agreed_sum;
		rig_start_recv(rig);
		put_wrong(rig, w);
		r = ferry_multifd_recv_wait(rig->recv, 1, rig_soon(), &rig->err);
		if (r != w->want)
			fail_msg("%s: %d %s", w->name, r, rig->err.text);
		rig_expect_error(rig, r, w->says);
		/* Not one byte of it was used. */
		assert_int_equal(rig_allocated_pages(&rig->to), 0);
		assert_int_equal(ferry_bitmap_count(&rig->received), 0);
		rig_free(rig);
	}
}

/* The same packets with nothing wrong: it is what is wrong that makes them fail. */
static void undamaged(void **state)
{
	unsigned int codec, sum;

	(void)state;
	for (codec = 0; codec < FERRY_WIRE_CODEC_COUNT; codec++) {
		for (sum = 0; sum < 2; sum++) {
			struct wrong w = { "none", "", 0, (uint8_t)codec, (uint8_t)codec, sum, 0,
					   -1, 5 };
			struct rig *rig = rig_make(1, false);

			rig->codec = w.agreed;
			rig->checksum = w.agreed_sum;
			rig_start_recv(rig);
			put_wrong(rig, &w);
			rig_put_packet(rig, 0, 1, 1, 0, 0);
			if (ferry_multifd_recv_wait(rig->recv, 1, rig_soon(), &rig->err))
				fail_msg("%s", rig->err.text);
			rig_check_page(rig, 0, 5, 1);
			rig_check_page(rig, 0, 6, 1);
			rig_free(rig);
		}
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(garbage),
		cmocka_unit_test(memory_refuses),
		cmocka_unit_test(packed),
		cmocka_unit_test(rate_counts_what_is_on_the_wire),
		cmocka_unit_test(damaged),
		cmocka_unit_test(undamaged),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
