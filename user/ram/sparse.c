// SPDX-License-Identifier: GPL-2.0-or-later
#include "ram/sparse.h"

#include <errno.h>
#include <unistd.h>

#include "ram/hugetlb.h"

int ferry_sparse_next(const struct ferry_ram_block *block, uint64_t *page, uint64_t *pages,
		      uint64_t end_page)
{
	off_t base = (off_t)block->fd_off_bytes;
	uint64_t first, last;
	off_t data, hole, end;

	if (end_page > ferry_ram_block_pages(block))
		end_page = ferry_ram_block_pages(block);
	if (*page >= end_page)
		return 0;
	if (block->hugetlb)
		return ferry_hugetlb_next(block, page, pages, end_page, UINT64_MAX);
	end = base + (off_t)(end_page << FERRY_PAGE_SHIFT);

	data = lseek(block->fd, base + (off_t)(*page << FERRY_PAGE_SHIFT), SEEK_DATA);
	if (data < 0)
		return errno == ENXIO ? 0 : -errno;
	if (data >= end)
		return 0;
	hole = lseek(block->fd, data, SEEK_HOLE);
	/* Punched in between: the page was data a moment ago, so give just that page. */
	if (hole < 0 && errno == ENXIO)
		hole = data + 1;
	if (hole < 0)
		return -errno;

	first = (uint64_t)(data - base) >> FERRY_PAGE_SHIFT;
	last = ((uint64_t)(hole - base) + FERRY_PAGE_SIZE - 1) >> FERRY_PAGE_SHIFT;
	/* ... or punched so that its own beginning is a hole now. */
	if (last <= first)
		last = first + 1;
	if (last > end_page)
		last = end_page;
	*page = first;
	*pages = last - first;
	return 1;
}

int ferry_sparse_first(const struct ferry_ram_block *block, uint64_t *page, uint64_t end_page)
{
	off_t base = (off_t)block->fd_off_bytes;
	uint64_t pages;
	off_t data;

	if (block->hugetlb)
		return ferry_hugetlb_next(block, page, &pages, end_page, 1);
	data = lseek(block->fd, base + (off_t)(*page << FERRY_PAGE_SHIFT), SEEK_DATA);
	if (data < 0)
		return errno == ENXIO ? 0 : -errno;
	*page = (uint64_t)(data - base) >> FERRY_PAGE_SHIFT;
	return *page < end_page;
}
