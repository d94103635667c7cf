// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Holes, told by counting.
 *
 * A walk over all data of a memory file takes about 8 ms a GiB. It is made while the guest
 * runs. When the guest stands still two cheap numbers say whether it still holds:
 *
 *   L   the pages that were data at the walk, a bitmap and its count
 *   S   the pages that are data now: the file's blocks, which the kernel counts: one stat(2)
 *   N   those of S that are not in L: found by looking into the gaps of L only
 *
 * |S| - |N| is how many pages of L are data now. If that is |L|, all are, and no page of
 * L became a hole, whatever else came and went, at whatever time. If it is not, somebody made
 * holes since the walk (a balloon at work), and all is walked over again. New data is added
 * to L, so the next count starts from there.
 *
 * That needs blocks to mean pages that lseek(2) calls data. It is tested once, at the walk: both
 * counts must be the same then, or the block is walked over each time. (They differ when
 * somebody allocates pages without writing, by fallocate(2), or while much is allocated.) What
 * might make them differ later is kept out: a file that does not belong to one block alone, and
 * one whose end may lie within a huge page. Only who punches pages between the walk and the stop and
 * allocates exactly as many, still without writing, would pass unseen: no VMM known does.
 */
#include "engine/holes.h"

#include <errno.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include "ram/sparse.h"

#define HUGE_BYTES (2ull << 20)

/* A guest that runs may take new pages during a walk; once more, only the gaps, is soon done. */
#define HOLES_TRIES 4

/* stat(2) counts in these, whatever the file system has. */
#define STAT_BLOCK_BYTES 512

int ferry_holes_init(struct ferry_holes *holes, const struct ferry_ram *ram)
{
	memset(holes, 0, sizeof(*holes));
	holes->ram = ram;
	holes->counts = calloc(ram->count, sizeof(holes->counts[0]));
	if (!holes->counts)
		return -ENOMEM;
	return ferry_bitmap_init(&holes->data, ram);
}

void ferry_holes_free(struct ferry_holes *holes)
{
	ferry_bitmap_free(&holes->data);
	free(holes->counts);
	memset(holes, 0, sizeof(*holes));
}

/* Pages that the file has. Return: false where that does not say how many are data. */
static bool file_pages(const struct ferry_ram_block *b, uint64_t *pages)
{
	struct statfs fs;
	struct stat st;

	if (b->fd_off_bytes || b->size_bytes % HUGE_BYTES || fstatfs(b->fd, &fs) ||
	    fs.f_type != TMPFS_MAGIC || fstat(b->fd, &st) || st.st_size < 0 ||
	    (uint64_t)st.st_size != b->size_bytes)
		return false;
	*pages = (uint64_t)st.st_blocks * STAT_BLOCK_BYTES / FERRY_PAGE_SIZE;
	return true;
}

static int look_error(const struct ferry_ram_block *b, int r, struct ferry_error *err)
{
	return ferry_error_set(err, -r, "cannot look for holes in block %s: %s", b->name,
			       strerror(-r));
}

/* What is data in a gap between the runs of L, page by page: where it ends nobody needs to know. */
static int look_into_gap(struct ferry_holes *holes, unsigned int block, uint64_t page,
			 uint64_t end, uint64_t *found)
{
	while (page < end) {
		int r = ferry_sparse_first(&holes->ram->blocks[block], &page, end);

		if (r <= 0)
			return r;
		ferry_bitmap_set(&holes->data, block, page++, 1);
		++*found;
	}
	return 0;
}

static int look_into_gaps(struct ferry_holes *holes, unsigned int block, uint64_t *found)
{
	uint64_t end = ferry_ram_block_pages(&holes->ram->blocks[block]), gap = 0;
	struct ferry_bitmap_run run = { .block = block };

	*found = 0;
	while (ferry_bitmap_next_run(&holes->data, &run, 0) && run.block == block) {
		uint64_t next = run.first_page + run.pages;
		int r = look_into_gap(holes, block, gap, run.first_page, found);

		if (r)
			return r;
		gap = next;
	}
	return look_into_gap(holes, block, gap, end, found);
}

bool ferry_holes_known(struct ferry_holes *holes, unsigned int block)
{
	struct ferry_holes_count *count = &holes->counts[block];
	uint64_t now, found;

	if (!count->stands)
		return false;
	/* In this order: a page that comes in between makes it fail, not pass. */
	count->stands = file_pages(&holes->ram->blocks[block], &now) &&
			!look_into_gaps(holes, block, &found) && now == count->pages + found;
	if (count->stands)
		count->pages = now;
	return count->stands;
}

static int walk(struct ferry_holes *holes, unsigned int block, struct ferry_error *err)
{
	const struct ferry_ram_block *b = &holes->ram->blocks[block];
	uint64_t end = ferry_ram_block_pages(b), page = 0, pages, sum = 0;
	int r;

	ferry_bitmap_clear(&holes->data, block, 0, end);
	while ((r = ferry_sparse_next(b, &page, &pages, end)) > 0) {
		ferry_bitmap_set(&holes->data, block, page, pages);
		sum += pages;
		page += pages;
	}
	holes->counts[block].pages = sum;
	return r ? look_error(b, r, err) : 0;
}

int ferry_holes_look(struct ferry_holes *holes, struct ferry_error *err)
{
	unsigned int i, try;

	for (i = 0; i < holes->ram->count; i++) {
		struct ferry_holes_count *count = &holes->counts[i];
		uint64_t pages;
		int r;

		if (ferry_holes_known(holes, i) || !file_pages(&holes->ram->blocks[i], &pages))
			continue;
		r = walk(holes, i, err);
		if (r)
			return r;
		for (try = 0; try < HOLES_TRIES && !count->stands; try++) {
			uint64_t found;

			if (!file_pages(&holes->ram->blocks[i], &pages))
				break;
			r = look_into_gaps(holes, i, &found);
			if (r)
				return look_error(&holes->ram->blocks[i], r, err);
			count->pages += found;
			count->stands = count->pages == pages;
		}
	}
	return 0;
}

/* The first run of data that ends behind @page; behind all pages when there is none. */
static int next_data(const struct ferry_ram_block *b, uint64_t page, struct ferry_bitmap_run *data,
		     struct ferry_error *err)
{
	uint64_t end = ferry_ram_block_pages(b);
	int r;

	data->first_page = page;
	r = ferry_sparse_next(b, &data->first_page, &data->pages, end);
	if (r < 0)
		return look_error(b, r, err);
	if (!r) {
		data->first_page = end;
		data->pages = 1;
	}
	return 0;
}

/*
 * Finding the end of data means walking there, so what was found serves all runs up to it: no
 * page is walked over twice, however many the runs.
 */
static int drop_data(const struct ferry_ram *ram, struct ferry_bitmap *pages,
		     struct ferry_error *err)
{
	struct ferry_bitmap_run run = { 0 }, data = { .block = UINT32_MAX };

	while (ferry_bitmap_next_run(pages, &run, 0)) {
		uint64_t page = run.first_page, end = run.first_page + run.pages;

		while (page < end) {
			uint64_t upto;

			if (data.block != run.block || data.first_page + data.pages <= page) {
				int r = next_data(&ram->blocks[run.block], page, &data, err);

				if (r)
					return r;
				data.block = run.block;
			}
			upto = data.first_page + data.pages;
			upto = upto < end ? upto : end;
			if (data.first_page > page)
				page = data.first_page;
			if (page < upto)
				ferry_bitmap_clear(pages, run.block, page, upto - page);
			page = upto;
		}
	}
	return 0;
}

int ferry_holes_find(struct ferry_holes *holes, struct ferry_bitmap *pages,
		     struct ferry_error *err)
{
	unsigned int i;

	for (i = 0; i < holes->ram->count; i++) {
		if (!ferry_holes_known(holes, i))
			ferry_bitmap_clear(&holes->data, i, 0,
					   ferry_ram_block_pages(&holes->ram->blocks[i]));
	}
	ferry_bitmap_andnot(pages, &holes->data);
	return drop_data(holes->ram, pages, err);
}
