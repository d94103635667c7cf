// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/release.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "base/clock.h"

/* So much is kept longer than needed; the channels run dry once each time. */
#define RELEASE_PAGES 8192u

#define RELEASE_LOOK_NS (1 * FERRY_NS_PER_MS)

int ferry_release_init(struct ferry_release *rel, const struct ferry_ram *ram)
{
	int r;

	memset(rel, 0, sizeof(*rel));
	r = ferry_bitmap_init(&rel->spent, ram);
	if (!r)
		r = ferry_bitmap_init(&rel->due, ram);
	rel->ram = ram;
	rel->on = !r;
	return r;
}

void ferry_release_free(struct ferry_release *rel)
{
	ferry_bitmap_free(&rel->spent);
	ferry_bitmap_free(&rel->due);
	rel->on = false;
}

void ferry_release_served(struct ferry_release *rel, unsigned int block, uint64_t first,
			  uint64_t pages)
{
	if (!rel->on || !pages)
		return;
	/* The count before the bits: whoever sees the bits waits for as many (step()). */
	__atomic_add_fetch(&rel->served, pages, __ATOMIC_ACQ_REL);
	ferry_bitmap_set_atomic(&rel->spent, block, first, pages);
}

void ferry_release_queued(struct ferry_release *rel, unsigned int block, uint64_t first,
			  uint64_t pages)
{
	if (!rel->on)
		return;
	ferry_bitmap_set_atomic(&rel->spent, block, first, pages);
	rel->noted += pages;
}

/* Bits that are set while this goes on are the next step's. */
static void take_due(struct ferry_release *rel)
{
	unsigned int i;

	for (i = 0; i < rel->ram->count; i++) {
		uint64_t end = rel->spent.pages[i], page = 0, n;

		while ((page = ferry_bitmap_next_atomic(&rel->spent, i, page, end)) < end) {
			n = ferry_bitmap_take_atomic(&rel->spent, i, page, end - page);
			ferry_bitmap_set(&rel->due, i, page, n);
			page += n;
		}
	}
}

static int await_server(struct ferry_page_server *server, uint64_t pages, struct ferry_error *err)
{
	struct ferry_page_server_stats stats;
	int r;

	for (;;) {
		ferry_page_server_stats(server, &stats);
		if (stats.pages >= pages)
			return 0;
		r = ferry_page_server_why(server, err);
		if (r)
			return r;
		ferry_clock_sleep_ns(RELEASE_LOOK_NS);
	}
}

/* Part of a huge page frees nothing: it stays due until the rest is. */
static int free_due(struct ferry_release *rel, struct ferry_error *err)
{
	struct ferry_bitmap_run run = { 0 };

	while (ferry_bitmap_next_run(&rel->due, &run, 0)) {
		const struct ferry_ram_block *b = &rel->ram->blocks[run.block];
		uint64_t unit = ferry_ram_unit_pages(b);
		uint64_t page = (run.first_page + unit - 1) / unit * unit;
		uint64_t end = (run.first_page + run.pages) / unit * unit;

		if (page >= end)
			continue;
		if (fallocate(b->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			      (off_t)(b->fd_off_bytes + (page << FERRY_PAGE_SHIFT)),
			      (off_t)((end - page) << FERRY_PAGE_SHIFT)))
			return ferry_error_set(err, errno, "freeing memory block '%s' that was sent: "
					       "%s", b->name, strerror(errno));
		ferry_bitmap_clear(&rel->due, run.block, page, end - page);
	}
	return 0;
}

int ferry_release_step(struct ferry_release *rel, struct ferry_multifd_send *pool,
		       struct ferry_page_server *server, bool all, struct ferry_error *err)
{
	uint64_t served;
	int r;

	if (!rel->on || (!all && rel->noted < RELEASE_PAGES))
		return 0;
	rel->noted = 0;
	take_due(rel);
	served = __atomic_load_n(&rel->served, __ATOMIC_ACQUIRE);
	r = ferry_multifd_send_drain(pool, FERRY_CLOCK_NEVER, err);
	if (!r)
		r = await_server(server, served, err);
	return r ? r : free_due(rel, err);
}
