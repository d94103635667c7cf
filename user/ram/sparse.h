/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_RAM_SPARSE_H
#define FERRY_RAM_SPARSE_H

#include <stdbool.h>
#include <stdint.h>

#include "ram/ram.h"

/**
 * ferry_sparse_next() - the next stretch of a block that holds data (is no hole)
 * @block: the block; its memory is not touched (SEEK_DATA, SEEK_HOLE)
 * @page: in: page to look from; out: first page of the stretch
 * @pages: out: its length
 * @end_page: where to stop looking (exclusive); the stretch is cut there
 *
 * Return: 1 found, 0 nothing but holes up to @end_page, -errno.
 */
int ferry_sparse_next(const struct ferry_ram_block *block, uint64_t *page, uint64_t *pages,
		      uint64_t end_page);

/**
 * ferry_sparse_first() - the first page from *@page on, before @end_page, that is not a hole
 *
 * What comes behind it is not looked at: ferry_sparse_next() takes time for each page of data.
 *
 * Return: 1 found, 0 none, -errno.
 */
int ferry_sparse_first(const struct ferry_ram_block *block, uint64_t *page, uint64_t end_page);

#endif
