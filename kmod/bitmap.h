/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef FERRY_BITMAP_H
#define FERRY_BITMAP_H

#include <linux/compiler.h>

#include "tracker.h"

struct ferry_call;

/**
 * ferry_bitmap_peek - a word as it is now
 * @tracker: the tracker
 * @word: index of a word
 *
 * Return: its bits; only valid ones are ever set.
 */
static inline unsigned long ferry_bitmap_peek(const struct ferry_tracker *tracker,
					      unsigned long word)
{
	return READ_ONCE(tracker->bitmap[word]);
}

unsigned long *ferry_bitmap_alloc(size_t bytes);
void ferry_bitmap_free(unsigned long *bitmap);
unsigned long ferry_bitmap_mark(struct ferry_tracker *tracker, unsigned long first,
				unsigned long npages);
unsigned long ferry_bitmap_valid(const struct ferry_tracker *tracker, unsigned long word);
unsigned long ferry_bitmap_take(struct ferry_tracker *tracker, unsigned long word,
				unsigned long pages);
void ferry_bitmap_settle(struct ferry_tracker *tracker, unsigned long word,
			 unsigned long taken, unsigned long kept);
int ferry_bitmap_export(struct ferry_call *call);

#endif
