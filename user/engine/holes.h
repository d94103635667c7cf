/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_ENGINE_HOLES_H
#define FERRY_ENGINE_HOLES_H

#include <time.h>

#include "base/error.h"
#include "ram/bitmap.h"
#include "ram/ram.h"

/*
 * Which pages are holes, found out while the guest is stopped at the price of a stat(2) and
 * not of a walk over all of RAM: the walk is made before, and stands as long as the file's
 * change time does. That also changes with the first write to a page after a scan, so this helps
 * guests that are idle, and costs others nothing but the walk.
 */
struct ferry_holes {
	const struct ferry_ram *ram;
	struct ferry_bitmap data;  /* was not a hole at the last look */
	struct timespec *changed;  /* change time of each block's file, from before that look */
	bool *stands;		   /* a later hole would show in it */
};

/** ferry_holes_init() - nothing is known. Return: 0 or -ENOMEM; free it in any case. */
int ferry_holes_init(struct ferry_holes *holes, const struct ferry_ram *ram);

void ferry_holes_free(struct ferry_holes *holes);

/** ferry_holes_known() - does what the last look saw in this block still hold? */
bool ferry_holes_known(const struct ferry_holes *holes, unsigned int block);

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
