/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_FAULT_PAGES_H
#define FERRY_FAULT_PAGES_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "ram/bitmap.h"
#include "ram/ram.h"

/*
 * What is known of each page while a guest runs with RAM that is not all here:
 *
 *   absent     its bytes are elsewhere; whoever touches it waits
 *   receiving  somebody has claimed it and brings its bytes
 *   placed     its bytes are in the memory file (a hole is a page of zeros), for good
 *
 * The map alone decides; what the kernel says of a fault (missing, minor) does not, for
 * pages that were never brought can be in the page cache. "placed" is kept in a memory file, so
 * that a worker that takes over knows; what was "receiving" when its worker died is absent.
 */
enum ferry_page_state { FERRY_PAGE_ABSENT, FERRY_PAGE_RECEIVING, FERRY_PAGE_PLACED };

struct ferry_fault_pages {
	struct ferry_bitmap claimed; /* receiving or placed */
	struct ferry_bitmap placed;
	uint64_t missing;	     /* pages that are not placed; atomic */
};

/**
 * ferry_fault_pages_init() - every page is placed in a new file, as it was left in an old one
 * @fd: memfd for the placed bits; stays the caller's
 * @fresh: the file is new and empty
 *
 * Return: 0; -EINVAL the file is of another RAM, -ENOMEM.
 */
int ferry_fault_pages_init(struct ferry_fault_pages *p, const struct ferry_ram *ram, int fd,
			   bool fresh, struct ferry_error *err);
void ferry_fault_pages_free(struct ferry_fault_pages *p);

/** ferry_fault_pages_lack() - placed pages become absent. Before the guest can touch them. */
void ferry_fault_pages_lack(struct ferry_fault_pages *p, unsigned int block, uint64_t first,
			    uint64_t pages);

enum ferry_page_state ferry_fault_pages_state(const struct ferry_fault_pages *p,
					      unsigned int block, uint64_t page);

/**
 * ferry_fault_pages_unit() - the same of what the host shows as one: a huge page's @pages
 *
 * Absent if any of it is, placed if all of it is.
 */
enum ferry_page_state ferry_fault_pages_unit(const struct ferry_fault_pages *p,
					     unsigned int block, uint64_t first, uint64_t pages);

/**
 * ferry_fault_pages_claim() - the right to bring pages, from @first on. Any thread.
 *
 * Return: how many pages from @first on are the caller's to bring now; 0 when @first is
 * another's or placed.
 */
uint64_t ferry_fault_pages_claim(struct ferry_fault_pages *p, unsigned int block, uint64_t first,
				 uint64_t pages);

/** ferry_fault_pages_skip() - how many pages from @first on are not absent, at most @pages. */
uint64_t ferry_fault_pages_skip(const struct ferry_fault_pages *p, unsigned int block,
				uint64_t first, uint64_t pages);

/** ferry_fault_pages_unclaim() - claimed pages did not come: absent again. */
void ferry_fault_pages_unclaim(struct ferry_fault_pages *p, unsigned int block, uint64_t first,
			       uint64_t pages);

/** ferry_fault_pages_place() - claimed pages are in the memory file, for good. */
void ferry_fault_pages_place(struct ferry_fault_pages *p, unsigned int block, uint64_t first,
			     uint64_t pages);

/** ferry_fault_pages_missing() - how many pages are not placed. Any thread. */
uint64_t ferry_fault_pages_missing(const struct ferry_fault_pages *p);

#endif
