// SPDX-License-Identifier: GPL-2.0-or-later
#include "ram/hash.h"

#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <xxhash.h>

#include "ram/peek.h"
#include "ram/sparse.h"
#include "ram/zero.h"

/* 256 KiB: large enough to hide the cost of a pread, small enough for the L2 cache. */
#define CHUNK_PAGES 64u

uint64_t ferry_hash_page(const void *page)
{
	return XXH3_64bits(page, FERRY_PAGE_SIZE);
}

uint32_t ferry_hash_extent(unsigned int block, uint64_t first_page, uint32_t pages,
			   const void *bytes)
{
	/* Blocks have 2^34 pages at most: no two places have one seed. */
	uint64_t seed = (uint64_t)block << 48 ^ first_page;
	uint32_t count = htole32(pages), sum;

	if (bytes)
		sum = (uint32_t)XXH3_64bits_withSeed(bytes, (size_t)pages << FERRY_PAGE_SHIFT,
						     seed);
	else
		sum = (uint32_t)XXH3_64bits_withSeed(&count, sizeof(count), seed);
	return sum ? sum : 1;
}

static void add_pages(const uint8_t *bytes, uint64_t first, uint64_t pages, uint64_t sum[2])
{
	uint64_t i;

	for (i = 0; i < pages; i++, bytes += FERRY_PAGE_SIZE) {
		XXH128_hash_t h;

		if (ferry_zero_is(bytes, FERRY_PAGE_SIZE))
			continue;
		h = XXH3_128bits_withSeed(bytes, FERRY_PAGE_SIZE, first + i);
		sum[1] += h.high64 + __builtin_add_overflow(sum[0], h.low64, &sum[0]);
	}
}

static int hash_stretch(const struct ferry_ram_block *block, uint64_t page, uint64_t pages,
			void *buf, uint64_t sum[2])
{
	const uint8_t *bytes;
	int ret;

	while (pages) {
		uint64_t n = pages < CHUNK_PAGES ? pages : CHUNK_PAGES;

		ret = ferry_peek_pages(block, page, n, buf, &bytes);
		if (ret)
			return ret;
		add_pages(bytes, page, n, sum);
		page += n;
		pages -= n;
	}
	return 0;
}

int ferry_hash_block(const struct ferry_ram_block *block, uint64_t out[2])
{
	uint64_t end = ferry_ram_block_pages(block);
	uint64_t page = 0, pages = 0;
	void *buf = NULL;
	int ret;

	if (!block->map) {
		buf = malloc(CHUNK_PAGES << FERRY_PAGE_SHIFT);
		if (!buf)
			return -ENOMEM;
	}
	out[0] = 0;
	out[1] = 0;
	while ((ret = ferry_sparse_next(block, &page, &pages, end)) > 0) {
		ret = hash_stretch(block, page, pages, buf, out);
		if (ret)
			break;
		page += pages;
	}
	free(buf);
	return ret;
}
