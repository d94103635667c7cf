/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef FERRY_PASS_H
#define FERRY_PASS_H

#include <linux/types.h>

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
	struct ferry_hold hold;
};

int ferry_pass_chunk(struct ferry_pass *pass, unsigned long base);
void ferry_pass_hold(struct ferry_pass *pass, unsigned long word);
int ferry_pass_word(struct ferry_pass *pass, unsigned long word, unsigned long pages,
		    unsigned long *taken);
void ferry_pass_look_again(struct ferry_pass *pass);
unsigned long ferry_pass_finish(const struct ferry_pass *pass, unsigned long first,
				unsigned long npages);

#endif
