// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * All decoders of the wire. The first byte picks one, the rest is its input.
 * What a decoder lets through, encoded again, must be the same bytes: nothing
 * is dropped, guessed or normalised, and the encoders know all there is.
 *
 *	clang -fsanitize=fuzzer,address,undefined -Iuser fuzz_wire.c user/wire/... (make fuzz)
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "wire/wire.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(int good)
{
	if (!good)
		abort();
}

static void same(const uint8_t *a, const uint8_t *b, size_t len)
{
	must(!memcmp(a, b, len));
}

static void fuzz_hello(const uint8_t *data, size_t size)
{
	uint8_t again[FERRY_WIRE_HELLO_BYTES];
	struct ferry_wire_hello h;

	if (size < sizeof(again) || ferry_wire_hello_decode(&h, data))
		return;
	(void)ferry_wire_hello_check(&h);
	must(ferry_wire_status_text(h.status) != NULL);
	ferry_wire_hello_encode(&h, again);
	/* The reserved bytes of a newer version are the one thing that is let pass unread. */
	same(again, data, h.version > FERRY_WIRE_VERSION ? 48 : sizeof(again));
}

static void fuzz_frame(const uint8_t *data, size_t size)
{
	uint8_t again[FERRY_WIRE_FRAME_BYTES];
	struct ferry_wire_frame f;
	int r;

	if (size < sizeof(again))
		return;
	r = ferry_wire_frame_decode(&f, data);
	must(ferry_wire_type_name(f.type) != NULL);
	ferry_wire_frame_encode(&f, again);
	same(again, data, sizeof(again));
	if (!r)
		must(f.length <= FERRY_WIRE_MAX_PACKAGE);
}

static void fuzz_blocks(const uint8_t *data, size_t size)
{
	static struct ferry_wire_block blocks[FERRY_WIRE_MAX_BLOCKS];
	unsigned int count = FERRY_WIRE_MAX_BLOCKS, i;
	uint8_t *again;

	if (ferry_wire_blocks_decode(blocks, &count, data, size))
		return;
	must(count >= 1 && count <= FERRY_WIRE_MAX_BLOCKS);
	for (i = 0; i < count; i++) {
		must(strlen(blocks[i].name) >= 1 && strlen(blocks[i].name) <= FERRY_WIRE_MAX_NAME);
		must(blocks[i].size_bytes && blocks[i].size_bytes % blocks[i].page_size == 0);
	}
	must(ferry_wire_blocks_bytes(blocks, count) == size);
	again = malloc(size);
	if (!again)
		return;
	ferry_wire_blocks_encode(blocks, count, again);
	same(again, data, size);
	free(again);
}

static void fuzz_config(const uint8_t *data, size_t size)
{
	uint8_t again[FERRY_WIRE_CONFIG_BYTES];
	struct ferry_wire_config c;

	if (ferry_wire_config_decode(&c, data, size))
		return;
	ferry_wire_config_encode(&c, again);
	same(again, data, sizeof(again));
}

static void fuzz_summary(const uint8_t *data, size_t size)
{
	uint8_t again[FERRY_WIRE_SUMMARY_BYTES];
	struct ferry_wire_summary s;

	if (ferry_wire_summary_decode(&s, data, size))
		return;
	ferry_wire_summary_encode(&s, again);
	same(again, data, sizeof(again));
}

/* That a checked packet is as promised, found out the slow way. */
static void verify_packet(const struct ferry_wire_packet *p, const struct ferry_wire_extent *e,
			  const uint64_t *block_pages, unsigned int blocks)
{
	uint64_t sum = 0;
	unsigned int i, j;

	for (i = 0; i < p->extents; i++) {
		must(e[i].block < blocks);
		must(e[i].first_page < block_pages[e[i].block]);
		must(e[i].pages <= block_pages[e[i].block] - e[i].first_page);
		sum += e[i].data_bytes;
		for (j = 0; j < i; j++)
			must(e[i].block != e[j].block ||
			     e[i].first_page >= e[j].first_page + e[j].pages ||
			     e[j].first_page >= e[i].first_page + e[i].pages);
	}
	must(sum == p->data_bytes);
}

static void fuzz_packet(const uint8_t *data, size_t size)
{
	static const uint64_t block_pages[] = { 1, 300, 1ull << 34 };
	static struct ferry_wire_extent extents[FERRY_WIRE_MAX_EXTENTS];
	static uint16_t scratch[FERRY_WIRE_MAX_EXTENTS];
	uint8_t again[FERRY_WIRE_PACKET_BYTES];
	struct ferry_wire_packet p;
	unsigned int i;

	if (size < sizeof(again) || ferry_wire_packet_decode(&p, data))
		return;
	ferry_wire_packet_encode(&p, again);
	same(again, data, sizeof(again));
	data += sizeof(again);
	size -= sizeof(again);
	must(p.extents <= FERRY_WIRE_MAX_EXTENTS);
	for (i = 0; i < p.extents; i++) {
		if (size < FERRY_WIRE_EXTENT_BYTES || ferry_wire_extent_decode(&extents[i], data))
			return;
		ferry_wire_extent_encode(&extents[i], again);
		same(again, data, FERRY_WIRE_EXTENT_BYTES);
		data += FERRY_WIRE_EXTENT_BYTES;
		size -= FERRY_WIRE_EXTENT_BYTES;
	}
	if (!ferry_wire_packet_check(&p, extents, block_pages, 3, scratch))
		verify_packet(&p, extents, block_pages, 3);
}

static void fuzz_postcopy(const uint8_t *data, size_t size)
{
	static const uint64_t block_pages[] = { 1, 300, 1ull << 34 };
	uint8_t again[FERRY_WIRE_RUN_BYTES];
	struct ferry_wire_received received;
	struct ferry_wire_run run;

	if (!ferry_wire_run_decode(&run, data, size, block_pages, 3)) {
		must(run.block < 3 && run.pages && run.first_page < block_pages[run.block]);
		must(run.pages <= block_pages[run.block] - run.first_page);
		ferry_wire_run_encode(&run, again);
		same(again, data, FERRY_WIRE_RUN_BYTES);
	}
	run.block = 1;
	if (!ferry_wire_request_decode(&run, data, size, block_pages, 3)) {
		must(run.pages <= 300 - run.first_page && run.first_page < 300);
		ferry_wire_request_encode(&run, again);
		same(again, data, FERRY_WIRE_REQUEST_BYTES);
	}
	if (!ferry_wire_received_decode(&received, data, size, block_pages, 3)) {
		must(received.block < 3 && received.first_page < block_pages[received.block]);
		ferry_wire_received_encode(&received, again);
		same(again, data, FERRY_WIRE_RECEIVED_BYTES);
	}
}

static void fuzz_numbers(const uint8_t *data, size_t size)
{
	uint8_t again[8];
	uint32_t u32;
	uint64_t u64;

	if (!ferry_wire_u32_decode(&u32, data, size)) {
		ferry_wire_u32_encode(u32, again);
		same(again, data, 4);
	}
	if (!ferry_wire_u64_decode(&u64, data, size)) {
		ferry_wire_u64_encode(u64, again);
		same(again, data, 8);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static void (*const targets[])(const uint8_t *, size_t) = {
		fuzz_hello,   fuzz_frame,  fuzz_blocks,	 fuzz_config,
		fuzz_summary, fuzz_packet, fuzz_numbers, fuzz_postcopy,
	};

	if (size)
		targets[data[0] % (sizeof(targets) / sizeof(targets[0]))](data + 1, size - 1);
	return 0;
}
