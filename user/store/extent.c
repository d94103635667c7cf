// SPDX-License-Identifier: GPL-2.0-or-later
#include "store/extent.h"

#include <errno.h>
#include <string.h>
#include <xxhash.h>

uint64_t ferry_store_extents(uint64_t size_bytes)
{
	return (size_bytes + FERRY_STORE_EXTENT_BYTES - 1) / FERRY_STORE_EXTENT_BYTES;
}

/* How many words of the bitmap there are for an extent: the last one may have fewer. */
static uint64_t words_of(uint64_t words, uint64_t extent)
{
	uint64_t left = words - extent * FERRY_STORE_EXTENT_WORDS;

	return left < FERRY_STORE_EXTENT_WORDS ? left : FERRY_STORE_EXTENT_WORDS;
}

void ferry_store_set_load(struct ferry_store_set *set, const uint64_t *bitmap, uint64_t words,
			  uint64_t extent)
{
	memset(set, 0, sizeof(*set));
	memcpy(set->words, bitmap + extent * FERRY_STORE_EXTENT_WORDS,
	       words_of(words, extent) * sizeof(*bitmap));
}

void ferry_store_set_store(const struct ferry_store_set *set, uint64_t *bitmap, uint64_t words,
			   uint64_t extent)
{
	memcpy(bitmap + extent * FERRY_STORE_EXTENT_WORDS, set->words,
	       words_of(words, extent) * sizeof(*bitmap));
}

void ferry_store_set_add(struct ferry_store_set *set, unsigned int first, unsigned int pages)
{
	while (pages) {
		unsigned int bit = first % 64, n = 64 - bit < pages ? 64 - bit : pages;

		set->words[first / 64] |= (n == 64 ? ~0ull : (1ull << n) - 1) << bit;
		first += n;
		pages -= n;
	}
}

bool ferry_store_set_empty(const struct ferry_store_set *set)
{
	return !(set->words[0] | set->words[1] | set->words[2] | set->words[3]);
}

unsigned int ferry_store_set_count(const struct ferry_store_set *set)
{
	unsigned int i, n = 0;

	for (i = 0; i < FERRY_STORE_EXTENT_WORDS; i++)
		n += (unsigned int)__builtin_popcountll(set->words[i]);
	return n;
}

/* The first page from @at on whose bit is not @skipped; FERRY_STORE_EXTENT_PAGES: none. */
static unsigned int next(const struct ferry_store_set *set, unsigned int at, bool skipped)
{
	while (at < FERRY_STORE_EXTENT_PAGES) {
		uint64_t word = set->words[at / 64];

		word = (skipped ? ~word : word) >> at % 64;
		if (word)
			return at + (unsigned int)__builtin_ctzll(word);
		at = (at / 64 + 1) * 64;
	}
	return FERRY_STORE_EXTENT_PAGES;
}

unsigned int ferry_store_set_run(const struct ferry_store_set *set, unsigned int *first)
{
	*first = next(set, *first, false);
	return next(set, *first, true) - *first;
}

int ferry_store_set_sum(const struct ferry_store_set *set, const uint8_t *buf, uint64_t *sum)
{
	unsigned int first = 0, pages = ferry_store_set_run(set, &first);
	XXH3_state_t *state;

	*sum = 0;
	if (!pages)
		return 0;
	/* Most extents are one run. */
	if (pages == ferry_store_set_count(set)) {
		*sum = XXH3_64bits(buf + (size_t)first * FERRY_STORE_PAGE_BYTES,
				   (size_t)pages * FERRY_STORE_PAGE_BYTES);
		return 0;
	}
	state = XXH3_createState();
	if (!state)
		return -ENOMEM;
	XXH3_64bits_reset(state);
	for (; pages; first += pages, pages = ferry_store_set_run(set, &first))
		XXH3_64bits_update(state, buf + (size_t)first * FERRY_STORE_PAGE_BYTES,
				   (size_t)pages * FERRY_STORE_PAGE_BYTES);
	*sum = XXH3_64bits_digest(state);
	XXH3_freeState(state);
	return 0;
}
