/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef FERRY_PASS_H
#define FERRY_PASS_H

#include <linux/bitops.h>
#include <linux/compiler.h>
#include <linux/types.h>

#include "bitmap.h"
#include "broken.h"
#include "protect.h"

struct ferry_tracker;

/**
 * struct ferry_pass - a clearing command under way
 * @tracker: the tracker
 * @protect: not only look who holds pages
 * @base: the chunk's first word
 * @unsure: some of them are worth a second look
 * @drained: LRU batches were emptied already
 * @taken: pages that were reported
 * @held: those of them that are dirty still
 * @change: of the count of dirty pages, which was not told yet
 * @rest: of @taken, when that is due
 * @hold: of the word that it is at
 */
struct ferry_pass {
	struct ferry_tracker *tracker;
	bool protect;
	unsigned long base;
	bool unsure;
	bool drained;
	unsigned long taken;
	unsigned long held;
	long change;
	unsigned long rest;
	struct ferry_hold hold;
};

int ferry_pass_chunk(struct ferry_pass *pass, unsigned long base);
void ferry_pass_hold(struct ferry_pass *pass, unsigned long word);
void ferry_pass_keep(struct ferry_pass *pass, unsigned long word);
void ferry_pass_rest(struct ferry_pass *pass);
void ferry_pass_look_again(struct ferry_pass *pass);
unsigned long ferry_pass_finish(const struct ferry_pass *pass, unsigned long first,
				unsigned long npages);

/**
 * ferry_pass_word - clean pages of a word
 * @pass: the pass
 * @word: a word of its chunk, each once
 * @pages: which
 * @taken: receives those that were dirty
 *
 * With one dirty page in a word what is here is paid for each, so it is inlined and has the
 * rest done for many words at a time.
 *
 * Context: tracker->lock held; takes folio locks.
 * Return: 0; or -EINTR on a fatal signal, and then nothing was changed.
 */
static __always_inline int ferry_pass_word(struct ferry_pass *pass, unsigned long word,
					   unsigned long pages, unsigned long *taken)
{
	struct ferry_tracker *tracker = pass->tracker;
	bool late = ferry_broken(FERRY_BROKEN_LATECLEAR);
	int err;

	*taken = late ? ferry_bitmap_peek(tracker, word) & pages :
			ferry_bitmap_take(tracker, word, pages);
	err = ferry_protect_word(tracker, word, *taken, pass->protect, &pass->hold);
	ferry_broken_widen(FERRY_BROKEN_LATECLEAR);
	if (late)
		ferry_bitmap_take(tracker, word, *taken);
	pass->change += ferry_bitmap_keep(tracker, word, *taken, err ? *taken : pass->hold.held);
	if (unlikely(err)) {
		ferry_pass_rest(pass);
		return err;
	}
	pass->taken += hweight_long(*taken);
	if (unlikely(pass->hold.held))
		ferry_pass_keep(pass, word);
	if (pass->taken >= pass->rest)
		ferry_pass_rest(pass);
	return 0;
}

#endif
