/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_STORE_EXTENT_H
#define FERRY_STORE_EXTENT_H

#include <stdbool.h>
#include <stdint.h>

#include "store/format.h"

/*
 * A set of the pages of one extent (1 MiB, the unit of checksums and of work): one bit a
 * page. Four words of a block's bitmap, which whoever works on the extent has for itself.
 */
#define FERRY_STORE_EXTENT_WORDS (FERRY_STORE_EXTENT_PAGES / 64)
#define FERRY_STORE_EXTENT_BYTES (FERRY_STORE_EXTENT_PAGES * FERRY_STORE_PAGE_BYTES)

struct ferry_store_set {
	uint64_t words[FERRY_STORE_EXTENT_WORDS];
};

/** ferry_store_extents() - how many a block of that size has. */
uint64_t ferry_store_extents(uint64_t size_bytes);

/** ferry_store_set_load() - the pages of an extent in a block's bitmap of @words words. */
void ferry_store_set_load(struct ferry_store_set *set, const uint64_t *bitmap, uint64_t words,
			  uint64_t extent);
void ferry_store_set_store(const struct ferry_store_set *set, uint64_t *bitmap, uint64_t words,
			   uint64_t extent);

void ferry_store_set_add(struct ferry_store_set *set, unsigned int first, unsigned int pages);
bool ferry_store_set_empty(const struct ferry_store_set *set);
unsigned int ferry_store_set_count(const struct ferry_store_set *set);

/**
 * ferry_store_set_run() - the next run of pages of the set from *@first on
 *
 * Return: its length, with *@first where it begins; 0 there is none.
 */
unsigned int ferry_store_set_run(const struct ferry_store_set *set, unsigned int *first);

/**
 * ferry_store_set_sum() - xxh3 of the set's pages, in order; 0 for none
 * @buf: the whole extent
 *
 * Return: 0 or -ENOMEM.
 */
int ferry_store_set_sum(const struct ferry_store_set *set, const uint8_t *buf, uint64_t *sum);

#endif
