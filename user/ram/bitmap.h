/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_RAM_BITMAP_H
#define FERRY_RAM_BITMAP_H

#include <stdbool.h>
#include <stdint.h>

#include "ram/ram.h"

/*
 * One bit a page for every block of a RAM. Memory is zero pages until touched.
 * The _atomic functions may race with each other; the others need one owner.
 */
struct ferry_bitmap {
	unsigned long **words; /* one array a block */
	uint64_t *pages;       /* length of each, in bits */
	unsigned int count;
};

struct ferry_bitmap_run {
	unsigned int block;
	uint64_t first_page;
	uint64_t pages;
};

int ferry_bitmap_init(struct ferry_bitmap *map, const struct ferry_ram *ram);

/**
 * ferry_bitmap_init_file() - the same, with the bits in a memory file
 * @fd: a memfd, made as large as is needed; stays the caller's
 *
 * Who maps the same file for the same RAM later sees the bits as they were left: they
 * outlive this process. ferry_bitmap_zero() is not for such a bitmap.
 *
 * Return: 0; -EINVAL the file has another size than this RAM needs, -errno.
 */
int ferry_bitmap_init_file(struct ferry_bitmap *map, const struct ferry_ram *ram, int fd);

void ferry_bitmap_free(struct ferry_bitmap *map);

bool ferry_bitmap_test(const struct ferry_bitmap *map, unsigned int block, uint64_t page);
void ferry_bitmap_set(struct ferry_bitmap *map, unsigned int block, uint64_t first, uint64_t pages);
void ferry_bitmap_clear(struct ferry_bitmap *map, unsigned int block, uint64_t first,
			uint64_t pages);
void ferry_bitmap_set_atomic(struct ferry_bitmap *map, unsigned int block, uint64_t first,
			     uint64_t pages);
void ferry_bitmap_clear_atomic(struct ferry_bitmap *map, unsigned int block, uint64_t first,
			       uint64_t pages);

/**
 * ferry_bitmap_claim_atomic() - set bits from @first on, up to @pages or a bit that is set
 *
 * Of callers that race for a page exactly one gets it.
 * Return: how many bits this call set, 0 if @first was set already.
 */
uint64_t ferry_bitmap_claim_atomic(struct ferry_bitmap *map, unsigned int block, uint64_t first,
				   uint64_t pages);

/**
 * ferry_bitmap_take_atomic() - clear bits from @first on, up to @pages or a bit that is clear
 *
 * Of callers that race for a page exactly one gets it.
 * Return: how many bits this call cleared, 0 if @first was clear already.
 */
uint64_t ferry_bitmap_take_atomic(struct ferry_bitmap *map, unsigned int block, uint64_t first,
				  uint64_t pages);

/** ferry_bitmap_next_atomic() - the first page from @page on whose bit is set; @end: none is. */
uint64_t ferry_bitmap_next_atomic(const struct ferry_bitmap *map, unsigned int block,
				  uint64_t page, uint64_t end);

/** ferry_bitmap_zero() - clear all, and give back the memory it took. */
void ferry_bitmap_zero(struct ferry_bitmap *map);

/** ferry_bitmap_wipe() - clear all, and have the memory for all bits: no later set faults. */
void ferry_bitmap_wipe(struct ferry_bitmap *map);

uint64_t ferry_bitmap_count(const struct ferry_bitmap *map);

/** ferry_bitmap_or() - @to |= @from; both made for the same RAM. */
void ferry_bitmap_or(struct ferry_bitmap *to, const struct ferry_bitmap *from);

/** ferry_bitmap_andnot() - @to &= ~@from. */
void ferry_bitmap_andnot(struct ferry_bitmap *to, const struct ferry_bitmap *from);

/**
 * ferry_bitmap_next_run() - the next run of set bits
 * @run: in: where to go on (a zeroed struct to begin; afterwards leave it as it was
 *       returned); out: a run within one block
 * @max_pages: longest run wanted, 0 for no limit
 *
 * Return: false when there are no more.
 */
bool ferry_bitmap_next_run(const struct ferry_bitmap *map, struct ferry_bitmap_run *run,
			   uint64_t max_pages);

#endif
