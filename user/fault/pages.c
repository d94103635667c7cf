// SPDX-License-Identifier: GPL-2.0-or-later
#include "fault/pages.h"

#include <errno.h>
#include <string.h>

/* What an earlier worker left: claims of its own died with it. */
static void take_over(struct ferry_fault_pages *p)
{
	unsigned int i;

	for (i = 0; i < p->placed.count; i++)
		p->missing += p->placed.pages[i];
	p->missing -= ferry_bitmap_count(&p->placed);
	ferry_bitmap_or(&p->claimed, &p->placed);
}

int ferry_fault_pages_init(struct ferry_fault_pages *p, const struct ferry_ram *ram, int fd,
			   bool fresh, struct ferry_error *err)
{
	unsigned int i;
	int r;

	memset(p, 0, sizeof(*p));
	r = ferry_bitmap_init(&p->claimed, ram);
	if (!r)
		r = ferry_bitmap_init_file(&p->placed, ram, fd);
	if (r) {
		ferry_bitmap_free(&p->claimed);
		return ferry_error_set(err, -r, "the map of pages that are here: %s",
				       r == -EINVAL ? "it is of a guest with other memory blocks" :
						      strerror(-r));
	}
	for (i = 0; fresh && i < ram->count; i++)
		ferry_bitmap_set(&p->placed, i, 0, ferry_ram_block_pages(&ram->blocks[i]));
	take_over(p);
	return 0;
}

void ferry_fault_pages_free(struct ferry_fault_pages *p)
{
	ferry_bitmap_free(&p->claimed);
	ferry_bitmap_free(&p->placed);
}

void ferry_fault_pages_lack(struct ferry_fault_pages *p, unsigned int block, uint64_t first,
			    uint64_t pages)
{
	uint64_t page = first, end = first + pages;

	/* By words: a guest waits to be started for as long as this takes for all of its RAM. */
	while ((page = ferry_bitmap_next_atomic(&p->placed, block, page, end)) < end) {
		uint64_t n = ferry_bitmap_take_atomic(&p->placed, block, page, end - page);

		p->missing += n;
		page += n;
	}
	ferry_bitmap_clear_atomic(&p->claimed, block, first, pages);
}

enum ferry_page_state ferry_fault_pages_state(const struct ferry_fault_pages *p,
					      unsigned int block, uint64_t page)
{
	/* In this order: a page may become placed between the looks, never less than it was. */
	if (!ferry_bitmap_test(&p->claimed, block, page))
		return FERRY_PAGE_ABSENT;
	return ferry_bitmap_test(&p->placed, block, page) ? FERRY_PAGE_PLACED :
							    FERRY_PAGE_RECEIVING;
}

enum ferry_page_state ferry_fault_pages_unit(const struct ferry_fault_pages *p,
					     unsigned int block, uint64_t first, uint64_t pages)
{
	enum ferry_page_state least = FERRY_PAGE_PLACED;
	uint64_t page;

	for (page = first; page < first + pages && least != FERRY_PAGE_ABSENT; page++) {
		enum ferry_page_state state = ferry_fault_pages_state(p, block, page);

		if (state < least)
			least = state;
	}
	return least;
}

uint64_t ferry_fault_pages_claim(struct ferry_fault_pages *p, unsigned int block, uint64_t first,
				 uint64_t pages)
{
	return ferry_bitmap_claim_atomic(&p->claimed, block, first, pages);
}

uint64_t ferry_fault_pages_skip(const struct ferry_fault_pages *p, unsigned int block,
				uint64_t first, uint64_t pages)
{
	uint64_t n = 0;

	while (n < pages && ferry_bitmap_test(&p->claimed, block, first + n))
		n++;
	return n;
}

void ferry_fault_pages_unclaim(struct ferry_fault_pages *p, unsigned int block, uint64_t first,
			       uint64_t pages)
{
	ferry_bitmap_clear_atomic(&p->claimed, block, first, pages);
}

void ferry_fault_pages_place(struct ferry_fault_pages *p, unsigned int block, uint64_t first,
			     uint64_t pages)
{
	ferry_bitmap_set_atomic(&p->placed, block, first, pages);
	__atomic_sub_fetch(&p->missing, pages, __ATOMIC_ACQ_REL);
}

uint64_t ferry_fault_pages_missing(const struct ferry_fault_pages *p)
{
	return __atomic_load_n(&p->missing, __ATOMIC_ACQUIRE);
}
