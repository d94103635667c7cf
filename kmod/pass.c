// SPDX-License-Identifier: GPL-2.0-only
/*
 * The cleaning of pages, word by word, that FERRY_SYNC, FERRY_CLEAR, FERRY_SCAN and, without
 * bits to take, FERRY_START have in common.
 *
 * A page is cleaned in this order: take its bit, protect it, set the bit again if somebody
 * may still write to it (protect.c). A store before the page is protected is in what the
 * caller reads when the command is done; one after it faults and sets the bit anew. The
 * other order, protect and then take, would clear the bit of a fault in between.
 *
 * Pages that an LRU batch may hold are looked at again, once, after the batches were
 * emptied. Their bits were set meanwhile, and they are reported whatever comes of it, so a
 * store in between is not lost.
 *
 * Invariant, while the tracker is started: a page that can be written through a view without
 * a fault has its bit set, but for pages of the word that a pass is at.
 */
#include <linux/bitops.h>
#include <linux/jiffies.h>
#include <linux/sched/signal.h>
#include <linux/string.h>

#include "bitmap.h"
#include "broken.h"
#include "pass.h"
#include "protect.h"
#include "tracker.h"
#include "trace.h"

/*
 * When emptying the LRU batches freed no page, the references are somebody else's and it is
 * not tried again for this long: with direct I/O under way every FERRY_CLEAR would ask it of
 * all CPUs.
 */
#define DRAIN_PAUSE_MS 100

/**
 * ferry_pass_chunk - go on with another chunk
 * @pass: the pass
 * @base: the chunk's first word
 *
 * A TiB that is all dirty takes minutes, and no folio's lock may ever have to be waited for.
 *
 * Return: 0; or -EINTR on a fatal signal, and then nothing of the chunk was changed.
 */
int ferry_pass_chunk(struct ferry_pass *pass, unsigned long base)
{
	if (fatal_signal_pending(current))
		return -EINTR;
	pass->base = base;
	pass->unsure = false;
	return 0;
}

/**
 * ferry_pass_hold - remember which pages are worth a second look
 * @pass: the pass
 * @word: the word that it is at, of its chunk, each once
 */
void ferry_pass_hold(struct ferry_pass *pass, unsigned long word)
{
	unsigned long *unsure = pass->tracker->scratch->unsure;

	if (!pass->hold.unsure)
		return;
	if (!pass->unsure)
		memset(unsure, 0, sizeof(pass->tracker->scratch->unsure));
	pass->unsure = true;
	unsure[word - pass->base] = pass->hold.unsure;
}

/**
 * ferry_pass_rest - count what became of the words so far, and let others run
 * @pass: the pass
 *
 * Context: tracker->lock held.
 */
void ferry_pass_rest(struct ferry_pass *pass)
{
	if (pass->change)
		ferry_event_dirty(pass->tracker, pass->change);
	pass->change = 0;
	pass->rest = pass->taken + BITS_PER_LONG;
	cond_resched();
}

/**
 * ferry_pass_keep - some pages of a word can be written still
 * @pass: the pass
 * @word: the word that it is at, of its chunk, each once
 *
 * Context: tracker->lock held.
 */
void ferry_pass_keep(struct ferry_pass *pass, unsigned long word)
{
	pass->held += hweight_long(pass->hold.held);
	ferry_pass_hold(pass, word);
}

/**
 * ferry_pass_look_again - the end of a chunk, with the second look
 * @pass: the pass
 *
 * Context: tracker->lock held; takes folio locks, and may wait for every CPU.
 */
void ferry_pass_look_again(struct ferry_pass *pass)
{
	struct ferry_tracker *tracker = pass->tracker;
	unsigned long i, freed = 0;

	ferry_pass_rest(pass);
	if (!pass->unsure || (!pass->drained && time_before(jiffies, tracker->drain_after)))
		return;
	if (!pass->drained)
		ferry_protect_drain();
	pass->drained = true;
	for (i = 0; i < FERRY_CHUNK_WORDS; i++) {
		unsigned long word = pass->base + i, taken;
		struct ferry_hold *hold = &pass->hold;
		int err;

		if (!tracker->scratch->unsure[i])
			continue;
		taken = ferry_bitmap_take(tracker, word, tracker->scratch->unsure[i]);
		err = ferry_protect_word(tracker, word, taken, pass->protect, hold);
		if (err)
			hold->held = taken;
		ferry_bitmap_settle(tracker, word, taken, hold->held);
		freed += hweight_long(taken & ~hold->held);
		if (err)
			break;
	}
	pass->held -= freed;
	if (!freed)
		tracker->drain_after = jiffies + msecs_to_jiffies(DRAIN_PAUSE_MS);
}

/**
 * ferry_pass_finish - a command that cleared pages is done: count it
 * @pass: the pass
 * @first: the command's first page
 * @npages: how many it went over
 *
 * Return: how many are clean now.
 */
unsigned long ferry_pass_finish(const struct ferry_pass *pass, unsigned long first,
				 unsigned long npages)
{
	struct ferry_tracker *tracker = pass->tracker;
	unsigned long cleaned = pass->taken - pass->held;

	/* Netlink reads them without the lock. */
	WRITE_ONCE(tracker->syncs, tracker->syncs + 1);
	WRITE_ONCE(tracker->cleaned_pages, tracker->cleaned_pages + cleaned);
	WRITE_ONCE(tracker->pinned_pages, tracker->pinned_pages + pass->held);
	trace_ferry_sync(tracker, first, npages, cleaned, pass->held);
	return cleaned;
}
