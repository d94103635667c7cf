/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef FERRY_BITMAP_H
#define FERRY_BITMAP_H

#include <linux/atomic.h>
#include <linux/bitops.h>
#include <linux/compiler.h>
#include <linux/lockdep.h>

#include "event.h"
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

/**
 * ferry_bitmap_mark_page - note that a page was written
 * @tracker: the tracker
 * @page: which; one beyond the tracker's is left out
 *
 * What ferry_bitmap_mark() does, for every first store to a page: nothing is called.
 *
 * Context: any that may take watch.lock; faults call it with the folio locked.
 * Return: whether it was not noted before.
 */
static inline bool ferry_bitmap_mark_page(struct ferry_tracker *tracker, unsigned long page)
{
	/* Often it is set already and the cache line need not be ours. */
	if (unlikely(page >= tracker->npages) || test_bit(page, tracker->bitmap) ||
	    test_and_set_bit(page, tracker->bitmap))
		return false;
	ferry_event_dirty(tracker, 1);
	return true;
}

/* Return: how many of some pages of a word were not noted before; the caller counts them. */
static inline unsigned long ferry_bitmap_set(struct ferry_tracker *tracker, unsigned long word,
					     unsigned long pages)
{
	/* As above. */
	if (!(pages & ~ferry_bitmap_peek(tracker, word)))
		return 0;
	return hweight_long(pages & ~atomic_long_fetch_or(pages,
					(atomic_long_t *)&tracker->bitmap[word]));
}

/**
 * ferry_bitmap_take - clear bits, to be settled when their pages were protected
 * @tracker: the tracker
 * @word: index of a word
 * @pages: which of its bits
 *
 * A full barrier: a fault that finds a page noted already, because it looked before, has
 * the folio locked and is waited for by who protects the page afterwards.
 *
 * Context: tracker->lock held.
 * Return: those that were set.
 */
static inline unsigned long ferry_bitmap_take(struct ferry_tracker *tracker, unsigned long word,
					      unsigned long pages)
{
	atomic_long_t *bits = (atomic_long_t *)&tracker->bitmap[word];

	lockdep_assert_held(&tracker->lock);
	if (pages == ~0UL)
		return atomic_long_xchg(bits, 0);
	return atomic_long_fetch_andnot(pages, bits) & pages;
}

/**
 * ferry_bitmap_keep - what became of the bits that were taken, to be counted by the caller
 * @tracker: the tracker
 * @word: index of a word
 * @taken: what ferry_bitmap_take() returned
 * @kept: those that are to be set again; may have bits that were not taken
 *
 * Context: tracker->lock held.
 * Return: what ferry_event_dirty() has to be told.
 */
static __always_inline long ferry_bitmap_keep(struct ferry_tracker *tracker,
					      unsigned long word, unsigned long taken,
					      unsigned long kept)
{
	long change = -(long)hweight_long(taken);

	lockdep_assert_held(&tracker->lock);
	if (unlikely(kept))
		change += ferry_bitmap_set(tracker, word, kept);
	return change;
}

/**
 * ferry_bitmap_settle - ferry_bitmap_keep(), and count it
 * @tracker: the tracker
 * @word: index of a word
 * @taken: what ferry_bitmap_take() returned
 * @kept: those that are to be set again; may have bits that were not taken
 *
 * Context: tracker->lock held.
 */
static inline void ferry_bitmap_settle(struct ferry_tracker *tracker, unsigned long word,
				       unsigned long taken, unsigned long kept)
{
	long change = ferry_bitmap_keep(tracker, word, taken, kept);

	if (change)
		ferry_event_dirty(tracker, change);
}

unsigned long *ferry_bitmap_alloc(size_t bytes);
void ferry_bitmap_free(unsigned long *bitmap);
unsigned long ferry_bitmap_mark(struct ferry_tracker *tracker, unsigned long first,
				unsigned long npages);
unsigned long ferry_bitmap_valid(const struct ferry_tracker *tracker, unsigned long word);
int ferry_bitmap_export(struct ferry_call *call);

#endif
