// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/holes.h"

#include <errno.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include "base/clock.h"
#include "ram/sparse.h"

/*
 * Two changes within a tick of the kernel's coarse clock show the same time, so a time says
 * nothing about what comes after it until it is older than a tick (10 ms at most).
 */
#define HOLES_TICK_NS (30 * (int64_t)FERRY_NS_PER_MS)

int ferry_holes_init(struct ferry_holes *holes, const struct ferry_ram *ram)
{
	memset(holes, 0, sizeof(*holes));
	holes->ram = ram;
	holes->changed = calloc(ram->count, sizeof(holes->changed[0]));
	holes->stands = calloc(ram->count, sizeof(holes->stands[0]));
	if (!holes->changed || !holes->stands)
		return -ENOMEM;
	return ferry_bitmap_init(&holes->data, ram);
}

void ferry_holes_free(struct ferry_holes *holes)
{
	ferry_bitmap_free(&holes->data);
	free(holes->changed);
	free(holes->stands);
	memset(holes, 0, sizeof(*holes));
}

/* Only tmpfs is known to set it for every hole; hugetlbfs does not. Return: false, do not ask. */
static bool change_time(const struct ferry_ram_block *block, struct timespec *time)
{
	struct statfs fs;
	struct stat st;

	if (fstatfs(block->fd, &fs) || fs.f_type != TMPFS_MAGIC || fstat(block->fd, &st))
		return false;
	*time = st.st_ctim;
	return true;
}

/* Would a hole that is made from now on have another time than @time? */
static bool time_has_passed(const struct timespec *time)
{
	struct timespec now;
	int64_t age_ns;

	clock_gettime(CLOCK_REALTIME, &now);
	age_ns = (int64_t)(now.tv_sec - time->tv_sec) * (int64_t)FERRY_NS_PER_S +
		 (now.tv_nsec - time->tv_nsec);
	return age_ns > HOLES_TICK_NS;
}

bool ferry_holes_known(const struct ferry_holes *holes, unsigned int block)
{
	const struct timespec *then = &holes->changed[block];
	struct timespec now;

	return holes->stands[block] && change_time(&holes->ram->blocks[block], &now) &&
	       now.tv_sec == then->tv_sec && now.tv_nsec == then->tv_nsec;
}

static int look_error(const struct ferry_ram_block *b, int r, struct ferry_error *err)
{
	return ferry_error_set(err, -r, "cannot look for holes in block %s: %s", b->name,
			       strerror(-r));
}

int ferry_holes_look(struct ferry_holes *holes, struct ferry_error *err)
{
	unsigned int i;

	for (i = 0; i < holes->ram->count; i++) {
		const struct ferry_ram_block *b = &holes->ram->blocks[i];
		uint64_t end = ferry_ram_block_pages(b), page = 0, pages;
		int r;

		if (ferry_holes_known(holes, i))
			continue;
		holes->stands[i] = change_time(b, &holes->changed[i]) &&
				   time_has_passed(&holes->changed[i]);
		if (!holes->stands[i])
			continue;
		ferry_bitmap_clear(&holes->data, i, 0, end);
		while ((r = ferry_sparse_next(b, &page, &pages, end)) > 0) {
			ferry_bitmap_set(&holes->data, i, page, pages);
			page += pages;
		}
		if (r)
			return look_error(b, r, err);
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
		holes->stands[i] = ferry_holes_known(holes, i);
		if (!holes->stands[i])
			ferry_bitmap_clear(&holes->data, i, 0,
					   ferry_ram_block_pages(&holes->ram->blocks[i]));
	}
	ferry_bitmap_andnot(pages, &holes->data);
	return drop_data(holes->ram, pages, err);
}
