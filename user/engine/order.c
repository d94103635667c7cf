// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/order.h"

#include <stdlib.h>
#include <string.h>

#define NOT_ASKED UINT64_MAX
#define ASKED_SHIFT 48 /* the block is above, the page below: 2^48 pages a block at most */

enum ferry_order_kind ferry_order_kind(void)
{
	static const char *const names[FERRY_ORDER_COUNT] = {
		[FERRY_ORDER_ADDRESS] = "address",
		[FERRY_ORDER_NEAR] = "near",
		[FERRY_ORDER_HOT] = "hot",
		[FERRY_ORDER_BOTH] = "both",
	};
	const char *name = getenv("FERRY_POSTCOPY_ORDER");
	int i;

	for (i = 0; name && i < FERRY_ORDER_COUNT; i++)
		if (!strcmp(name, names[i]))
			return (enum ferry_order_kind)i;
	return FERRY_ORDER_NEAR;
}

void ferry_order_init(struct ferry_order *order, enum ferry_order_kind kind)
{
	memset(order, 0, sizeof(*order));
	order->kind = kind;
	order->asked = NOT_ASKED;
}

void ferry_order_free(struct ferry_order *order)
{
	ferry_bitmap_free(&order->hot);
	order->heated = false;
}

bool ferry_order_hot(const struct ferry_order *order)
{
	return order->kind == FERRY_ORDER_HOT || order->kind == FERRY_ORDER_BOTH;
}

int ferry_order_heat(struct ferry_order *order, const struct ferry_ram *ram,
		     const struct ferry_bitmap *written)
{
	int r = ferry_bitmap_init(&order->hot, ram);

	if (r)
		return r;
	ferry_bitmap_or(&order->hot, written);
	order->heated = true;
	return 0;
}

void ferry_order_asked(struct ferry_order *order, unsigned int block, uint64_t page)
{
	__atomic_store_n(&order->asked, (uint64_t)block << ASKED_SHIFT | page, __ATOMIC_RELAXED);
}

/* Until the last of a huge page is there, the others are of no use. Return: its pages, or 1. */
static uint64_t unit_of(const struct ferry_order *o, unsigned int block)
{
	return o->ram ? ferry_ram_unit_pages(&o->ram->blocks[block]) : 1;
}

/* Each hot page is looked at once. */
static uint64_t take_hot(struct ferry_order *o, struct ferry_bitmap *left, uint64_t most,
			 unsigned int *block, uint64_t *first)
{
	for (; o->hot_block < o->hot.count; o->hot_block++, o->hot_page = 0) {
		uint64_t end = o->hot.pages[o->hot_block], unit = unit_of(o, o->hot_block);
		uint64_t n, taken;

		while ((o->hot_page = ferry_bitmap_next_atomic(&o->hot, o->hot_block, o->hot_page,
							       end)) < end) {
			o->hot_page -= o->hot_page % unit;
			for (n = unit; n < most && o->hot_page + n < end &&
			     ferry_bitmap_test(&o->hot, o->hot_block, o->hot_page + n); n++)
				;
			taken = ferry_bitmap_take_atomic(left, o->hot_block, o->hot_page, n);
			*block = o->hot_block;
			*first = o->hot_page;
			o->hot_page += taken > unit ? taken : unit;
			if (taken)
				return taken;
		}
	}
	o->heated = false;
	return 0;
}

/* From where we are on and once around. */
static uint64_t take_next(struct ferry_order *o, struct ferry_bitmap *left, uint64_t most,
			  unsigned int *block, uint64_t *first)
{
	unsigned int turn;

	for (turn = 0; turn <= left->count; turn++) {
		uint64_t end = left->pages[o->block], unit = unit_of(o, o->block), n;

		while ((o->page = ferry_bitmap_next_atomic(left, o->block, o->page, end)) < end) {
			n = end - o->page < most ? end - o->page : most;
			if (unit > 1)
				n = unit - o->page % unit;
			n = ferry_bitmap_take_atomic(left, o->block, o->page, n);
			if (!n)
				continue;
			*block = o->block;
			*first = o->page;
			o->page += n;
			return n;
		}
		o->block = (o->block + 1) % left->count;
		o->page = 0;
	}
	return 0;
}

uint64_t ferry_order_take(struct ferry_order *o, struct ferry_bitmap *left, uint64_t most,
			  unsigned int *block, uint64_t *first)
{
	uint64_t asked = __atomic_exchange_n(&o->asked, NOT_ASKED, __ATOMIC_RELAXED), n = 0;
	bool near = asked != NOT_ASKED &&
		    (o->kind == FERRY_ORDER_NEAR || o->kind == FERRY_ORDER_BOTH);

	if (near) {
		o->block = (unsigned int)(asked >> ASKED_SHIFT);
		o->page = asked & ((1ull << ASKED_SHIFT) - 1);
	} else if (o->heated) {
		n = take_hot(o, left, most, block, first);
	}
	return n ? n : take_next(o, left, most, block, first);
}
