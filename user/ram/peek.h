/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_RAM_PEEK_H
#define FERRY_RAM_PEEK_H

#include <stdint.h>

#include "ram/ram.h"

/**
 * ferry_peek_pages() - look at some pages of a block
 * @block: mapped by us or not
 * @page: first page
 * @pages: how many; they must hold data (ferry_sparse_next()), because reading a hole
 *         through a mapping allocates a page
 * @buf: room for @pages pages, used when the block is not mapped
 * @out: where the bytes are: in our mapping or in @buf
 *
 * Return: 0 or -errno.
 */
int ferry_peek_pages(const struct ferry_ram_block *block, uint64_t page, uint64_t pages,
		     void *buf, const uint8_t **out);

#endif
