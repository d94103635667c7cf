// SPDX-License-Identifier: GPL-2.0-only
/*
 * The commands that begin and end a round: start, stop, and those that speak of pages as
 * bitmaps. How a page is cleaned is in pass.c and protect.c.
 *
 * They work on chunks of FERRY_CHUNK_WORDS words in tracker->scratch. What was taken and
 * cannot be handed to the caller is set again, after a fatal signal too.
 */
#include <linux/pagemap.h>
#include <linux/sched.h>
#include <linux/uaccess.h>
#include <linux/ferry.h>

#include "bitmap.h"
#include "broken.h"
#include "compat.h"
#include "dev.h"
#include "pass.h"
#include "protect.h"
#include "sync.h"
#include "tracker.h"

/* --- start and stop --------------------------------------------------------- */

/* The first page at or after @index that is in the page cache; beyond the tracker if none. */
static unsigned long next_present(struct ferry_tracker *tracker, unsigned long index)
{
	struct folio_batch batch;
	pgoff_t next = index;

	folio_batch_init(&batch);
	if (!filemap_get_folios(tracker->mapping, &next, tracker->npages - 1, &batch))
		return tracker->npages;
	index = max_t(unsigned long, index, batch.folios[0]->index);
	folio_batch_release(&batch);
	return index;
}

/* Protect all that is there, and mark what is held. Return: 0 or -EINTR. */
static int start_protect(struct ferry_tracker *tracker)
{
	struct ferry_pass pass = {
		.tracker = tracker,
		.protect = atomic_read(&tracker->views) &&
			   !ferry_broken(FERRY_BROKEN_NOSTARTPROTECT),
	};
	unsigned long page = 0;
	int err;

	err = ferry_pass_chunk(&pass, 0);
	while (!err && (page = next_present(tracker, page)) < tracker->npages) {
		unsigned long word = page / BITS_PER_LONG;

		if (word >= pass.base + FERRY_CHUNK_WORDS) {
			ferry_pass_look_again(&pass);
			err = ferry_pass_chunk(&pass, word);
			if (err)
				break;
		}
		err = ferry_protect_word(tracker, word, ferry_bitmap_valid(tracker, word),
					 pass.protect, &pass.hold);
		if (err)
			break;
		ferry_bitmap_settle(tracker, word, 0, pass.hold.held);
		ferry_pass_hold(&pass, word);
		page = (word + 1) * BITS_PER_LONG;
		cond_resched();
	}
	if (!err)
		ferry_pass_look_again(&pass);
	return err;
}

static void clear_all(struct ferry_tracker *tracker)
{
	unsigned long word;

	for (word = 0; word < BITS_TO_LONGS(tracker->npages); word++) {
		if (!ferry_bitmap_peek(tracker, word))
			continue;
		ferry_bitmap_settle(tracker, word, ferry_bitmap_take(tracker, word, ~0UL), 0);
		cond_resched();
	}
}

/**
 * ferry_sync_start - FERRY_START
 * @call: with struct ferry_start
 *
 * Return: 0, -EALREADY, -EINTR.
 */
int ferry_sync_start(struct ferry_call *call)
{
	struct ferry_tracker *tracker = call->tracker;
	int err = -EALREADY;

	if (mutex_lock_killable(&tracker->lock))
		return -EINTR;
	if (tracker->started)
		goto out;
	clear_all(tracker);
	WRITE_ONCE(tracker->started, true);
	/*
	 * Pairs with the barrier in view_page_mkwrite(): a fault whose folio, or whose view,
	 * is not seen from here on sees that it started. One that holds its folio's lock and
	 * did not is waited for, and its page protected.
	 */
	smp_mb();
	err = start_protect(tracker);
	if (err)
		WRITE_ONCE(tracker->started, false);
out:
	mutex_unlock(&tracker->lock);
	return err;
}

/**
 * ferry_sync_stop - FERRY_STOP
 * @call: with struct ferry_start
 *
 * Return: 0, -EALREADY, -EINTR.
 */
int ferry_sync_stop(struct ferry_call *call)
{
	struct ferry_tracker *tracker = call->tracker;
	int err = -EALREADY;

	if (mutex_lock_killable(&tracker->lock))
		return -EINTR;
	if (tracker->started) {
		WRITE_ONCE(tracker->started, false);
		err = 0;
	}
	mutex_unlock(&tracker->lock);
	return err;
}

/* --- bitmaps ------------------------------------------------------------------ */

/**
 * struct span - the words of a bitmap command
 * @first: first word
 * @end: behind the last word
 * @user: the caller's words
 */
struct span {
	unsigned long first;
	unsigned long end;
	u64 __user *user;
};

static int span_check(const struct ferry_tracker *tracker, const struct ferry_pages *arg,
		       struct span *span)
{
	if (!arg->npages || arg->first_page % BITS_PER_LONG || arg->bitmap % sizeof(u64))
		return -EINVAL;
	if (arg->first_page >= tracker->npages ||
	    arg->npages > tracker->npages - arg->first_page)
		return -ERANGE;
	if (arg->npages % BITS_PER_LONG && arg->first_page + arg->npages != tracker->npages)
		return -EINVAL;
	span->first = arg->first_page / BITS_PER_LONG;
	span->end = span->first + BITS_TO_LONGS(arg->npages);
	span->user = u64_to_user_ptr(arg->bitmap);
	return 0;
}

/* Bits that were taken and did not reach the caller are dirty again. */
static void put_back(struct ferry_tracker *tracker, unsigned long base,
		     const unsigned long *words, unsigned long n)
{
	unsigned long i;

	if (ferry_broken(FERRY_BROKEN_NOPUTBACK))
		return;
	for (i = 0; i < n; i++)
		ferry_bitmap_settle(tracker, base + i, 0, words[i]);
}

static unsigned long chunk_words(const struct span *span, unsigned long base)
{
	return min_t(unsigned long, span->end - base, FERRY_CHUNK_WORDS);
}

static int sync_chunk(struct ferry_pass *pass, unsigned long base, unsigned long n,
		      u64 __user *user)
{
	struct ferry_tracker *tracker = pass->tracker;
	const unsigned long *bitmap = tracker->bitmap + base;
	unsigned long *words = tracker->scratch->words;
	unsigned long i;
	int err;

	err = ferry_pass_chunk(pass, base);
	if (err)
		return err;
	for (i = 0; i < n; i++) {
		/* Most are clean, and then this loop is all there is. */
		unsigned long dirty = READ_ONCE(bitmap[i]);

		if (dirty) {
			err = ferry_pass_word(pass, base + i, ~0UL, &dirty);
			if (err) {
				/* This one is dirty already; the others were taken. */
				put_back(tracker, base, words, i);
				return err;
			}
		}
		words[i] = dirty;
	}
	ferry_pass_look_again(pass);
	if (copy_to_user(user, words, n * sizeof(*words))) {
		put_back(tracker, base, words, n);
		return -EFAULT;
	}
	return 0;
}

/**
 * ferry_sync_sync - FERRY_SYNC
 * @call: with struct ferry_pages
 *
 * Return: 0 or a negative errno as the UAPI header says.
 */
int ferry_sync_sync(struct ferry_call *call)
{
	struct ferry_tracker *tracker = call->tracker;
	struct ferry_pass pass = { .tracker = tracker, .protect = true };
	struct ferry_pages *arg = call->arg;
	unsigned long base, n;
	struct span span;
	int err;

	err = span_check(tracker, arg, &span);
	if (err)
		return err;
	if (mutex_lock_killable(&tracker->lock))
		return -EINTR;
	for (base = span.first; base < span.end && !err; base += n) {
		n = chunk_words(&span, base);
		err = sync_chunk(&pass, base, n, span.user + (base - span.first));
	}
	if (!err)
		ferry_pass_finish(&pass, arg->first_page, arg->npages);
	mutex_unlock(&tracker->lock);
	arg->out_pages = pass.taken;
	return err;
}

/**
 * ferry_sync_get - FERRY_GET
 * @call: with struct ferry_pages
 *
 * Return: 0 or a negative errno as the UAPI header says.
 */
int ferry_sync_get(struct ferry_call *call)
{
	struct ferry_tracker *tracker = call->tracker;
	unsigned long *words = tracker->scratch->words;
	unsigned long base, n, i, pages = 0;
	struct ferry_pages *arg = call->arg;
	struct span span;
	int err;

	err = span_check(tracker, arg, &span);
	if (err)
		return err;
	if (mutex_lock_killable(&tracker->lock))
		return -EINTR;
	for (base = span.first; base < span.end && !err; base += n) {
		n = chunk_words(&span, base);
		for (i = 0; i < n; i++) {
			words[i] = ferry_bitmap_peek(tracker, base + i);
			pages += hweight_long(words[i]);
		}
		if (copy_to_user(span.user + (base - span.first), words, n * sizeof(*words)))
			err = -EFAULT;
		else if (fatal_signal_pending(current))
			err = -EINTR;
		cond_resched();
	}
	mutex_unlock(&tracker->lock);
	arg->out_pages = pages;
	return err;
}

static int clear_chunk(struct ferry_pass *pass, unsigned long base, unsigned long n,
		       const u64 __user *user)
{
	struct ferry_tracker *tracker = pass->tracker;
	unsigned long *words = tracker->scratch->words;
	unsigned long i;
	int err;

	err = ferry_pass_chunk(pass, base);
	if (err)
		return err;
	if (copy_from_user(words, user, n * sizeof(*words)))
		return -EFAULT;
	for (i = 0; i < n && !err; i++) {
		words[i] &= ferry_bitmap_peek(tracker, base + i);
		if (words[i])
			err = ferry_pass_word(pass, base + i, words[i], &words[i]);
	}
	if (err)
		put_back(tracker, base, words, i - 1);
	else
		ferry_pass_look_again(pass);
	return err;
}

/**
 * ferry_sync_clear - FERRY_CLEAR
 * @call: with struct ferry_pages
 *
 * Which pages of earlier chunks were cleared is not remembered, so all of them are dirty
 * after an error. That @user cannot be read is found out before, unless another thread
 * unmaps it meanwhile.
 *
 * Return: 0 or a negative errno as the UAPI header says.
 */
int ferry_sync_clear(struct ferry_call *call)
{
	struct ferry_tracker *tracker = call->tracker;
	struct ferry_pass pass = { .tracker = tracker, .protect = true };
	struct ferry_pages *arg = call->arg;
	unsigned long base, n, word;
	struct span span;
	int err;

	err = span_check(tracker, arg, &span);
	if (err)
		return err;
	if (fault_in_readable((const char __user *)span.user,
			      (span.end - span.first) * sizeof(u64)))
		return -EFAULT;
	if (mutex_lock_killable(&tracker->lock))
		return -EINTR;
	for (base = span.first; base < span.end; base += n) {
		n = chunk_words(&span, base);
		err = clear_chunk(&pass, base, n, span.user + (base - span.first));
		if (err)
			break;
	}
	if (!err)
		arg->out_pages = ferry_pass_finish(&pass, arg->first_page, arg->npages);
	else
		for (word = span.first; word < base; word++)
			ferry_bitmap_settle(tracker, word, 0, ferry_bitmap_valid(tracker, word));
	mutex_unlock(&tracker->lock);
	return err;
}
