/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_ENGINE_ORDER_H
#define FERRY_ENGINE_ORDER_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "ram/bitmap.h"
#include "ram/ram.h"

/*
 * Postcopy: which of the pages that are left goes next when nobody asks for one. A switchover
 * must not wait for the answer, so it is made of what is known anyway: where somebody asked last,
 * and what was written right before the guest stopped.
 */
enum ferry_order_kind {
	FERRY_ORDER_ADDRESS, /* from the first page to the last */
	FERRY_ORDER_NEAR,    /* on behind the page that was asked for last */
	FERRY_ORDER_HOT,     /* what was written last, then by address */
	FERRY_ORDER_BOTH,    /* a step behind each page asked for, else what was written last */
	FERRY_ORDER_COUNT,
};

struct ferry_order {
	enum ferry_order_kind kind;
	const struct ferry_ram *ram; /* of huge pages whole ones are taken; NULL: there are none */
	struct ferry_bitmap hot; /* written last; may be sent already */
	bool heated;		 /* @hot is there, and not used up */
	unsigned int hot_block;
	uint64_t hot_page;
	unsigned int block; /* where it goes on */
	uint64_t page;
	uint64_t asked; /* behind the page asked for last; atomic */
};

/** ferry_order_kind() - FERRY_POSTCOPY_ORDER, for comparisons; without it the best that is known. */
enum ferry_order_kind ferry_order_kind(void);

void ferry_order_init(struct ferry_order *order, enum ferry_order_kind kind);
void ferry_order_free(struct ferry_order *order);

/** ferry_order_hot() - does @order want ferry_order_heat()? */
bool ferry_order_hot(const struct ferry_order *order);

/** ferry_order_heat() - @written was written right before the stop. Return: 0 or -ENOMEM. */
int ferry_order_heat(struct ferry_order *order, const struct ferry_ram *ram,
		     const struct ferry_bitmap *written);

/** ferry_order_asked() - somebody asked for the page before this one. Any thread. */
void ferry_order_asked(struct ferry_order *order, unsigned int block, uint64_t page);

/**
 * ferry_order_take() - the next pages, taken out of @left, from which others take too
 *
 * Return: how many, up to @most or to the end of a huge page, from *@first of *@block on; 0
 * nothing is left.
 */
uint64_t ferry_order_take(struct ferry_order *order, struct ferry_bitmap *left, uint64_t most,
			  unsigned int *block, uint64_t *first);

#endif
