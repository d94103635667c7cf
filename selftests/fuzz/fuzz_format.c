// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A snapshot file's header, commit record and block table from anybody. The checksums are made
 * to fit, or nothing would come behind them. What the codec takes it must give back byte for
 * byte, and all places it lets pass must lie in order and within the file.
 */
#include <endian.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "store/format.h"

#define TABLE_OFF FERRY_STORE_BLOCKS_OFF
#define MAX_BLOCKS 8u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(int good)
{
	if (!good)
		abort();
}

static void fix(uint8_t *buf, size_t len)
{
	uint64_t sum = htole64(XXH3_64bits(buf, len - 8));

	memcpy(buf + len - 8, &sum, 8);
}

static int take_blocks(const uint8_t *file, const struct ferry_store_header *h,
		       struct ferry_store_places *places)
{
	struct ferry_store_block blocks[MAX_BLOCKS], scratch[MAX_BLOCKS];
	uint8_t again[FERRY_STORE_BLOCK_BYTES];
	const char *field = NULL;
	unsigned int i;

	if (h->blocks > MAX_BLOCKS)
		return 0;
	for (i = 0; i < h->blocks; i++) {
		const uint8_t *entry = file + TABLE_OFF + i * FERRY_STORE_BLOCK_BYTES;

		if (ferry_store_block_decode(&blocks[i], entry, &field)) {
			must(field && *field);
			return 0;
		}
		ferry_store_block_encode(&blocks[i], again);
		must(!memcmp(entry, again, sizeof(again)));
	}
	/* Places that follow from the sizes: only then is there more to see. */
	if (file[TABLE_OFF + 127] == 0 && ferry_store_layout(blocks, h->blocks, places))
		return 0;
	if (ferry_store_blocks_check(blocks, h->blocks, scratch, places, &field)) {
		must(field && *field);
		return 0;
	}
	for (i = 0; i < h->blocks; i++) {
		must(blocks[i].pages_off >= places->meta_end);
		must(blocks[i].pages_off % FERRY_STORE_ALIGN == 0);
		must(blocks[i].pages_off + blocks[i].size_bytes <= places->device_off);
		must(blocks[i].bitmap_off + blocks[i].bitmap_bytes <= blocks[i].sums_off);
		must(!i || blocks[i].pages_off >= blocks[i - 1].pages_off +
						   blocks[i - 1].size_bytes);
	}
	return 1;
}

static void take_commit(const uint8_t *buf, const struct ferry_store_header *h,
			const struct ferry_store_places *places)
{
	uint8_t again[FERRY_STORE_COMMIT_BYTES];
	struct ferry_store_commit c;
	const char *field = NULL;

	if (ferry_store_commit_decode(&c, buf, &field)) {
		must(field && *field);
		return;
	}
	ferry_store_commit_encode(&c, again);
	must(!memcmp(buf, again, sizeof(again)));
	if (!places)
		return;
	if (ferry_store_commit_check(&c, h, places, &field)) {
		must(field && *field);
		return;
	}
	must(c.device_off == places->device_off);
	must(c.file_bytes >= c.device_off + c.device_bytes);
	must(!c.order_off || c.file_bytes == c.order_off + c.order_count * 8);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static uint8_t file[TABLE_OFF + MAX_BLOCKS * FERRY_STORE_BLOCK_BYTES];
	/* The reserved ends of header and record are zeros unless the input is long. */
	static const struct { size_t off, len; } parts[] = {
		{ FERRY_STORE_HEADER_OFF, 176 }, { FERRY_STORE_COMMIT_OFF, 104 },
		{ TABLE_OFF, MAX_BLOCKS * FERRY_STORE_BLOCK_BYTES },
	};
	uint8_t again[FERRY_STORE_HEADER_BYTES];
	struct ferry_store_places places;
	struct ferry_store_header h;
	const char *field = NULL;
	size_t i, n;

	memset(file, 0, sizeof(file));
	if (size > sizeof(file) / 2) {
		memcpy(file, data, size < sizeof(file) ? size : sizeof(file));
	} else {
		for (i = 0; i < 3; i++, data += n, size -= n) {
			n = size < parts[i].len ? size : parts[i].len;
			memcpy(file + parts[i].off, data, n);
		}
	}
	fix(file, FERRY_STORE_HEADER_BYTES);
	fix(file + FERRY_STORE_COMMIT_OFF, FERRY_STORE_COMMIT_BYTES);
	if (ferry_store_header_decode(&h, file, &field)) {
		must(field && *field);
		take_commit(file + FERRY_STORE_COMMIT_OFF, &h, NULL);
		return 0;
	}
	ferry_store_header_encode(&h, again);
	must(!memcmp(file, again, sizeof(again)));
	take_commit(file + FERRY_STORE_COMMIT_OFF, &h,
		    take_blocks(file, &h, &places) ? &places : NULL);
	return 0;
}
