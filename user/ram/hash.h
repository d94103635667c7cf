/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_RAM_HASH_H
#define FERRY_RAM_HASH_H

#include <stdint.h>

#include "ram/ram.h"

/** ferry_hash_page() - xxh3 of one 4 KiB page. */
uint64_t ferry_hash_page(const void *page);

/**
 * ferry_hash_extent() - checksum of a run of pages and of where they belong
 * @bytes: the pages; NULL for a run of zero pages
 *
 * Return: never 0, which means none. Drawn in Documentation/wire.rst.
 */
uint32_t ferry_hash_extent(unsigned int block, uint64_t first_page, uint32_t pages,
			   const void *bytes);

/**
 * ferry_hash_block() - hash of a whole block's contents
 * @out: 128 bits. Holes and zero pages count alike, so two copies that differ only in
 *       what is allocated are equal: the sum over all non-zero pages of
 *       XXH3_128(page, seed = page number).
 *
 * Reads every page that holds data, allocates none. The contents must not change meanwhile.
 *
 * Return: 0 or -errno.
 */
int ferry_hash_block(const struct ferry_ram_block *block, uint64_t out[2]);

#endif
