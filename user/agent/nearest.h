/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_AGENT_NEAREST_H
#define FERRY_AGENT_NEAREST_H

#include <stddef.h>

/* The best candidate so far for what somebody meant who typed @word; zero it but for that. */
struct ferry_nearest {
	const char *word;
	size_t length; /* of word, which need not end there */
	const char *best;
	unsigned int mistakes; /* that lead from best to word */
};

/**
 * ferry_nearest_try() - is @name what was meant?
 *
 * It is if nothing else that was tried is nearer, and at most a third of it was typed wrong: a
 * letter that is missing, too many or another one, two that changed places, and an end that was left
 * off are a mistake each.
 */
void ferry_nearest_try(struct ferry_nearest *n, const char *name);

#endif
