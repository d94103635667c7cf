/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef FERRY_PROTECT_H
#define FERRY_PROTECT_H

struct ferry_tracker;

/**
 * struct ferry_hold - pages that somebody may still write without a fault
 * @held: bits of a word
 * @unsure: those of @held that perhaps are held by an LRU batch only, which does not write;
 *	    ferry_protect_drain() and another look tell
 */
struct ferry_hold {
	unsigned long held;
	unsigned long unsure;
};

int ferry_protect_word(struct ferry_tracker *tracker, unsigned long word, unsigned long pages,
		       bool protect, struct ferry_hold *hold);
void ferry_protect_drain(void);
int ferry_protect_init(void);
void ferry_protect_exit(void);

#endif
