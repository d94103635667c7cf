// SPDX-License-Identifier: GPL-2.0-or-later
/* The codec: every structure there and back, its bytes, and the exact error of each bad one. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "wire/wire.h"

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

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

/* One byte of a good encoding changed, and what must come of it. */
struct poke {
	size_t at;
	uint8_t value;
	int want;
};

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
		cmocka_unit_test(hello_round_trip),
		cmocka_unit_test(hello_errors),
		cmocka_unit_test(hello_of_others),
		cmocka_unit_test(texts),
		cmocka_unit_test(frame_bounds),
		cmocka_unit_test(small_bodies),
		cmocka_unit_test(summary),
		cmocka_unit_test(blocks_round_trip),
		cmocka_unit_test(blocks_errors),
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
