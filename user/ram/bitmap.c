// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Every block has an array of 64-bit words in private anonymous memory of its
 * own (or in a file, for bits that must outlive us): never reserved, zero until
 * touched, given back by ferry_bitmap_zero(). A bitmap of a large, mostly clean
 * RAM therefore costs next to nothing, and the functions here keep it so: they
 * do not write a word that stays zero.
 *
 * Bits past the last page of a block are always zero, so that counting and
 * searching need no special case for the last word.
 *
 * An index out of range is a mistake of the caller, who has checked whatever
 * came from outside; it is asserted here because the alternative is a stray write.
 */
#include "ram/bitmap.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define WORD_BITS 64ul

static_assert(sizeof(unsigned long) * 8 == WORD_BITS, "words are 64 bits");

static size_t words_of(uint64_t pages)
{
	return (pages + WORD_BITS - 1) / WORD_BITS;
}

static size_t bytes_of(uint64_t pages)
{
	return words_of(pages) * sizeof(unsigned long);
}

/* A block's bits begin at a page of the file. */
static uint64_t file_bytes_of(uint64_t pages)
{
	return (bytes_of(pages) + FERRY_PAGE_SIZE - 1) & ~(uint64_t)(FERRY_PAGE_SIZE - 1);
}

/* Bits in the file at @fd, one block after the other, or in memory of our own for -1. */
static int init(struct ferry_bitmap *map, const struct ferry_ram *ram, int fd)
{
	int flags = fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE : MAP_SHARED;
	off_t off = 0;
	unsigned int i;

	map->count = 0;
	map->words = NULL;
	map->pages = NULL;
	if (ram->count == 0)
		return 0;
	map->words = calloc(ram->count, sizeof(*map->words));
	map->pages = calloc(ram->count, sizeof(*map->pages));
	if (!map->words || !map->pages)
		goto err_free;
	for (i = 0; i < ram->count; i++) {
		uint64_t pages = ferry_ram_block_pages(&ram->blocks[i]);
		void *mem = mmap(NULL, bytes_of(pages), PROT_READ | PROT_WRITE, flags, fd, off);

		if (mem == MAP_FAILED)
			goto err_free;
		map->words[i] = mem;
		map->pages[i] = pages;
		map->count++;
		off += (off_t)file_bytes_of(pages);
	}
	return 0;

err_free:
	ferry_bitmap_free(map);
	return -ENOMEM;
}

int ferry_bitmap_init(struct ferry_bitmap *map, const struct ferry_ram *ram)
{
	return init(map, ram, -1);
}

int ferry_bitmap_init_file(struct ferry_bitmap *map, const struct ferry_ram *ram, int fd)
{
	uint64_t bytes = 0;
	struct stat st;
	unsigned int i;

	for (i = 0; i < ram->count; i++)
		bytes += file_bytes_of(ferry_ram_block_pages(&ram->blocks[i]));
	if (fstat(fd, &st))
		return -errno;
	if (!st.st_size && ftruncate(fd, (off_t)bytes))
		return -errno;
	if (st.st_size && (uint64_t)st.st_size != bytes)
		return -EINVAL;
	return init(map, ram, fd);
}

void ferry_bitmap_free(struct ferry_bitmap *map)
{
	unsigned int i;

	for (i = 0; i < map->count; i++)
		munmap(map->words[i], bytes_of(map->pages[i]));
	free(map->words);
	free(map->pages);
	*map = (struct ferry_bitmap){ 0 };
}

static void check_range(const struct ferry_bitmap *map, unsigned int block, uint64_t first,
			uint64_t pages)
{
	assert(block < map->count);
	assert(first <= map->pages[block] && pages <= map->pages[block] - first);
}

/* The bits of word @w that belong to [first, end). */
static unsigned long word_mask(size_t w, uint64_t first, uint64_t end)
{
	unsigned long mask = ~0ul;

	if (w == first / WORD_BITS)
		mask &= ~0ul << (first % WORD_BITS);
	if (w == end / WORD_BITS)
		mask &= ~(~0ul << (end % WORD_BITS));
	return mask;
}

bool ferry_bitmap_test(const struct ferry_bitmap *map, unsigned int block, uint64_t page)
{
	unsigned long word;

	check_range(map, block, page, 1);
	/* pairs with the release in the _atomic setters */
	word = __atomic_load_n(&map->words[block][page / WORD_BITS], __ATOMIC_ACQUIRE);
	return word >> (page % WORD_BITS) & 1;
}

void ferry_bitmap_set(struct ferry_bitmap *map, unsigned int block, uint64_t first, uint64_t pages)
{
	uint64_t end = first + pages;
	size_t w;

	check_range(map, block, first, pages);
	for (w = first / WORD_BITS; w < words_of(end) && pages; w++)
		map->words[block][w] |= word_mask(w, first, end);
}

void ferry_bitmap_clear(struct ferry_bitmap *map, unsigned int block, uint64_t first,
			uint64_t pages)
{
	uint64_t end = first + pages;
	size_t w;

	check_range(map, block, first, pages);
	for (w = first / WORD_BITS; w < words_of(end) && pages; w++) {
		unsigned long mask = word_mask(w, first, end);

		if (map->words[block][w] & mask)
			map->words[block][w] &= ~mask;
	}
}

void ferry_bitmap_set_atomic(struct ferry_bitmap *map, unsigned int block, uint64_t first,
			     uint64_t pages)
{
	uint64_t end = first + pages;
	size_t w;

	check_range(map, block, first, pages);
	for (w = first / WORD_BITS; w < words_of(end) && pages; w++)
		__atomic_fetch_or(&map->words[block][w], word_mask(w, first, end),
				  __ATOMIC_ACQ_REL);
}

void ferry_bitmap_clear_atomic(struct ferry_bitmap *map, unsigned int block, uint64_t first,
			       uint64_t pages)
{
	uint64_t end = first + pages;
	size_t w;

	check_range(map, block, first, pages);
	for (w = first / WORD_BITS; w < words_of(end) && pages; w++)
		__atomic_fetch_and(&map->words[block][w], ~word_mask(w, first, end),
				   __ATOMIC_ACQ_REL);
}

/* Flip bits from @first on that are as @invert has them: 0 those that are clear, ~0 those set. */
static uint64_t flip_atomic(struct ferry_bitmap *map, unsigned int block, uint64_t first,
			    uint64_t pages, unsigned long invert)
{
	uint64_t page = first, end = first + pages;

	check_range(map, block, first, pages);
	while (page < end) {
		unsigned long *word = &map->words[block][page / WORD_BITS];
		unsigned long old = __atomic_load_n(word, __ATOMIC_ACQUIRE);
		unsigned long bits;

		do {
			unsigned long taken = (old ^ invert) & (~0ul << (page % WORD_BITS));

			bits = word_mask(page / WORD_BITS, page, end);
			if (taken)
				bits &= (1ul << __builtin_ctzl(taken)) - 1;
			if (!bits)
				return page - first;
		} while (!__atomic_compare_exchange_n(word, &old, old ^ bits, false,
						      __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE));
		page += (uint64_t)__builtin_popcountl(bits);
		if (page % WORD_BITS)
			break; /* the end, or a bit that is another's */
	}
	return page - first;
}

uint64_t ferry_bitmap_claim_atomic(struct ferry_bitmap *map, unsigned int block, uint64_t first,
				   uint64_t pages)
{
	return flip_atomic(map, block, first, pages, 0);
}

uint64_t ferry_bitmap_take_atomic(struct ferry_bitmap *map, unsigned int block, uint64_t first,
				  uint64_t pages)
{
	return flip_atomic(map, block, first, pages, ~0ul);
}

uint64_t ferry_bitmap_next_atomic(const struct ferry_bitmap *map, unsigned int block,
				  uint64_t page, uint64_t end)
{
	while (page < end) {
		unsigned long word = __atomic_load_n(&map->words[block][page / WORD_BITS],
						     __ATOMIC_ACQUIRE) >> (page % WORD_BITS);

		if (word) {
			page += (unsigned int)__builtin_ctzl(word);
			return page < end ? page : end;
		}
		page = (page / WORD_BITS + 1) * WORD_BITS;
	}
	return end;
}

void ferry_bitmap_wipe(struct ferry_bitmap *map)
{
	unsigned int i;

	for (i = 0; i < map->count; i++)
		memset(map->words[i], 0, bytes_of(map->pages[i]));
}

void ferry_bitmap_zero(struct ferry_bitmap *map)
{
	unsigned int i;

	for (i = 0; i < map->count; i++) {
		size_t len = bytes_of(map->pages[i]);

		/* Refused only for locked memory (an agent under mlockall). */
		if (madvise(map->words[i], len, MADV_DONTNEED))
			memset(map->words[i], 0, len);
	}
}

uint64_t ferry_bitmap_count(const struct ferry_bitmap *map)
{
	uint64_t sum = 0;
	unsigned int i;
	size_t w;

	for (i = 0; i < map->count; i++) {
		for (w = 0; w < words_of(map->pages[i]); w++)
			sum += (uint64_t)__builtin_popcountl(map->words[i][w]);
	}
	return sum;
}

void ferry_bitmap_or(struct ferry_bitmap *to, const struct ferry_bitmap *from)
{
	unsigned int i;
	size_t w;

	assert(to->count == from->count);
	for (i = 0; i < to->count; i++) {
		assert(to->pages[i] == from->pages[i]);
		for (w = 0; w < words_of(to->pages[i]); w++) {
			if (from->words[i][w])
				to->words[i][w] |= from->words[i][w];
		}
	}
}

void ferry_bitmap_andnot(struct ferry_bitmap *to, const struct ferry_bitmap *from)
{
	unsigned int i;
	size_t w;

	assert(to->count == from->count);
	for (i = 0; i < to->count; i++) {
		assert(to->pages[i] == from->pages[i]);
		for (w = 0; w < words_of(to->pages[i]); w++) {
			if (to->words[i][w] & from->words[i][w])
				to->words[i][w] &= ~from->words[i][w];
		}
	}
}

/* The first page at or after @page whose bit, after @invert, is set; @end when none is. */
static uint64_t find_bit(const unsigned long *words, uint64_t page, uint64_t end,
			 unsigned long invert)
{
	size_t w = page / WORD_BITS;
	unsigned long word;

	if (page >= end)
		return end;
	word = (words[w] ^ invert) & (~0ul << (page % WORD_BITS));
	while (!word) {
		if (++w >= words_of(end))
			return end;
		word = words[w] ^ invert;
	}
	page = w * WORD_BITS + (uint64_t)__builtin_ctzl(word);
	return page < end ? page : end;
}

bool ferry_bitmap_next_run(const struct ferry_bitmap *map, struct ferry_bitmap_run *run,
			   uint64_t max_pages)
{
	uint64_t page = run->first_page + run->pages;
	unsigned int block;

	for (block = run->block; block < map->count; block++, page = 0) {
		uint64_t end = map->pages[block];

		page = find_bit(map->words[block], page, end, 0);
		if (page == end)
			continue;
		if (max_pages && end - page > max_pages)
			end = page + max_pages;
		run->block = block;
		run->first_page = page;
		run->pages = find_bit(map->words[block], page, end, ~0ul) - page;
		return true;
	}
	return false;
}
