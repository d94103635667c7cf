// SPDX-License-Identifier: GPL-2.0-only
/*
 * FERRY_SCAN: dirty pages as extents.
 *
 * Words are looked at once each, in order, so that extents ascend; pages that touch become
 * one extent also across words. Of a word only as many runs are taken as the caller has room
 * for. Extents collect in tracker->scratch and are handed over when that is nearly full, all
 * but the last, which may grow. Example, with room for two:
 *
 *	bits 0-2, 62-64, 70	->	{0, 3} {62, 3}, and next_page is 70
 */
#include <linux/bitops.h>
#include <linux/sched.h>
#include <linux/uaccess.h>
#include <linux/ferry.h>

#include "bitmap.h"
#include "broken.h"
#include "dev.h"
#include "pass.h"
#include "scan.h"
#include "tracker.h"

#define EXTENTS_MAX ARRAY_SIZE(((struct ferry_scratch *)0)->extents)
/* A word has at most every other bit set. */
#define EXTENTS_PER_WORD (BITS_PER_LONG / 2)

/**
 * struct scan - extents on their way to the caller
 * @tracker: the tracker
 * @extents: in its scratch: not yet handed over; the last may grow
 * @count: how many
 * @delivered: how many were handed over before
 * @room: how many the caller has room for
 * @pages: sum of all
 * @user: the caller's array
 */
struct scan {
	struct ferry_tracker *tracker;
	struct ferry_extent *extents;
	unsigned int count;
	u64 delivered;
	u64 room;
	unsigned long pages;
	struct ferry_extent __user *user;
};

static bool scan_touches(const struct scan *scan, unsigned long page)
{
	const struct ferry_extent *last;

	if (!scan->count)
		return false;
	last = &scan->extents[scan->count - 1];
	return last->first_page + last->npages == page;
}

/* Those of a word's dirty pages for which there is room. */
static unsigned long scan_fit(const struct scan *scan, unsigned long word, unsigned long dirty)
{
	u64 room = scan->room - scan->delivered - scan->count;
	unsigned long starts = dirty & ~(dirty << 1);

	/* A run that goes on from the word before needs no room of its own. */
	if ((starts & 1) && scan_touches(scan, word * BITS_PER_LONG))
		starts &= ~1UL;
	while (starts && room) {
		starts &= starts - 1;
		room--;
	}
	return starts ? dirty & (BIT(__ffs(starts)) - 1) : dirty;
}

/* Append pages of a word, as they come after all pages so far. */
static void scan_add(struct scan *scan, unsigned long word, unsigned long pages)
{
	scan->pages += hweight_long(pages);
	while (pages) {
		unsigned long start = __ffs(pages);
		unsigned long filled = pages | (BIT(start) - 1);
		unsigned long end = ~filled ? ffz(filled) : BITS_PER_LONG;
		unsigned long page = word * BITS_PER_LONG + start;

		if (!scan_touches(scan, page))
			scan->extents[scan->count++] = (struct ferry_extent){ .first_page = page };
		scan->extents[scan->count - 1].npages += end - start;
		pages &= ~GENMASK(end - 1, start);
	}
}

/* Hand over all extents but the last @keep. */
static int scan_flush(struct scan *scan, unsigned int keep)
{
	unsigned int n = scan->count - keep;

	if (!n)
		return 0;
	if (copy_to_user(scan->user + scan->delivered, scan->extents, n * sizeof(*scan->extents)))
		return -EFAULT;
	scan->delivered += n;
	memmove(scan->extents, scan->extents + n, keep * sizeof(*scan->extents));
	scan->count = keep;
	return 0;
}

/*
 * After an error the caller does not learn how many extents it has, so even those that were
 * handed over are dirty again. Which they were is not remembered: all pages so far are.
 */
static void scan_put_back(struct scan *scan, unsigned long first, unsigned long next)
{
	unsigned int i;

	if (ferry_broken(FERRY_BROKEN_NOPUTBACK))
		return;
	if (scan->delivered)
		ferry_bitmap_mark(scan->tracker, first, next - first);
	for (i = 0; i < scan->count; i++)
		ferry_bitmap_mark(scan->tracker, scan->extents[i].first_page,
				  scan->extents[i].npages);
}

/* Which bits of a word are in [first, end). */
static unsigned long word_mask(unsigned long word, unsigned long first, unsigned long end)
{
	unsigned long mask = ~0UL;

	if (word == first / BITS_PER_LONG)
		mask &= ~0UL << first % BITS_PER_LONG;
	if (word == end / BITS_PER_LONG)
		mask &= BIT(end % BITS_PER_LONG) - 1;
	return mask;
}

/*
 * Look at pages from *@next to @end and clear what is found if there is a pass. *@next is
 * where it ended, because there is no room for more or all was seen.
 */
static int scan_pages(struct scan *scan, struct ferry_pass *pass, unsigned long *next,
		      unsigned long end)
{
	unsigned long word = *next / BITS_PER_LONG, first = *next;
	int err;

	if (pass) {
		err = ferry_pass_chunk(pass, word);
		if (err)
			return err;
	}
	for (; word < BITS_TO_LONGS(end); word++) {
		unsigned long dirty, fit;

		if (pass && word == pass->base + FERRY_CHUNK_WORDS) {
			ferry_pass_look_again(pass);
			err = ferry_pass_chunk(pass, word);
			if (err)
				return err;
		}
		dirty = ferry_bitmap_peek(scan->tracker, word) & word_mask(word, first, end);
		fit = scan_fit(scan, word, dirty);
		if (pass && fit) {
			err = ferry_pass_word(pass, word, fit, &fit);
			if (err)
				return err;
		}
		scan_add(scan, word, fit);
		if (scan->count > EXTENTS_MAX - EXTENTS_PER_WORD) {
			err = scan_flush(scan, 1);
			if (err)
				return err;
		}
		*next = min((word + 1) * BITS_PER_LONG, end);
		if (fit != dirty) {
			*next = word * BITS_PER_LONG + __ffs(dirty & ~fit);
			break;
		}
		cond_resched();
	}
	if (pass)
		ferry_pass_look_again(pass);
	return 0;
}

static int scan_check(const struct ferry_tracker *tracker, const struct ferry_scan *arg)
{
	if (!arg->npages || !arg->max_extents || arg->extents % sizeof(u64))
		return -EINVAL;
	if (arg->first_page >= tracker->npages ||
	    arg->npages > tracker->npages - arg->first_page)
		return -ERANGE;
	return 0;
}

/**
 * ferry_scan_run - FERRY_SCAN
 * @call: with struct ferry_scan
 *
 * Return: 0 or a negative errno as the UAPI header says.
 */
int ferry_scan_run(struct ferry_call *call)
{
	struct ferry_tracker *tracker = call->tracker;
	struct ferry_scan *arg = call->arg;
	bool clear = arg->flags & FERRY_SCAN_CLEAR;
	struct ferry_pass pass = { .tracker = tracker, .protect = true };
	struct scan scan = {
		.tracker = tracker,
		.extents = tracker->scratch->extents,
		.room = arg->max_extents,
		.user = u64_to_user_ptr(arg->extents),
	};
	unsigned long next = arg->first_page;
	int err;

	err = scan_check(tracker, arg);
	if (err)
		return err;
	if (mutex_lock_killable(&tracker->lock))
		return -EINTR;
	err = scan_pages(&scan, clear ? &pass : NULL, &next, arg->first_page + arg->npages);
	if (!err)
		err = scan_flush(&scan, 0);
	if (err && clear) {
		/* It may have ended in the middle of a chunk. */
		ferry_pass_rest(&pass);
		scan_put_back(&scan, arg->first_page, next);
	}
	if (!err && clear)
		ferry_pass_finish(&pass, arg->first_page, next - arg->first_page);
	mutex_unlock(&tracker->lock);

	arg->out_extents = scan.delivered;
	arg->out_next_page = next;
	arg->out_pages = scan.pages;
	return err;
}
