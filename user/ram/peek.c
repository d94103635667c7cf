// SPDX-License-Identifier: GPL-2.0-or-later
#include "ram/peek.h"

#include "base/io.h"

int ferry_peek_pages(const struct ferry_ram_block *block, uint64_t page, uint64_t pages,
		     void *buf, const uint8_t **out)
{
	uint64_t off = page << FERRY_PAGE_SHIFT;

	if (block->map) {
		*out = block->map + off;
		return 0;
	}
	*out = buf;
	return ferry_io_pread(block->fd, buf, pages << FERRY_PAGE_SHIFT,
			      (off_t)(block->fd_off_bytes + off));
}
