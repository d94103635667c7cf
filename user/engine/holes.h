/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_ENGINE_HOLES_H
#define FERRY_ENGINE_HOLES_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "ram/bitmap.h"
#include "ram/ram.h"

/*
 * Which pages are holes, found out while the guest is stopped without a walk over all of RAM:
 * the walk is made before, and the memory file's number of blocks tells whether it still holds.
 */
struct ferry_holes_count {
	uint64_t pages; /* in ferry_holes.data */
	bool stands;	/* and in the file */
};

struct ferry_holes {
	const struct ferry_ram *ram;
	struct ferry_bitmap data; /* was not a hole at the last look */
	struct ferry_holes_count *counts; /* one a block */
};

/** ferry_holes_init() - nothing is known. Return: 0 or -ENOMEM; free it in any case. */
int ferry_holes_init(struct ferry_holes *holes, const struct ferry_ram *ram);

void ferry_holes_free(struct ferry_holes *holes);

/** ferry_holes_known() - is what the last look saw data in this block still? New data is noted. */
bool ferry_holes_known(struct ferry_holes *holes, unsigned int block);

/** ferry_holes_look() - walk over the blocks of which nothing is known. Return: 0 or -errno. */
int ferry_holes_look(struct ferry_holes *holes, struct ferry_error *err);

/**
 * ferry_holes_find() - which of these pages are holes now
 * @pages: in: the pages in question; out: those of them that are holes
 *
 * Return: 0 or -errno
 */
int ferry_holes_find(struct ferry_holes *holes, struct ferry_bitmap *pages,
		     struct ferry_error *err);

#endif
