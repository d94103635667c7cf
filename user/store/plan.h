/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_STORE_PLAN_H
#define FERRY_STORE_PLAN_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "store/reader.h"

#define FERRY_STORE_PLAN_ASKED 256

struct ferry_store_place {
	unsigned int block;
	uint64_t extent;
};

/*
 * In which order the extents of a file are read for a guest that runs already:
 *
 *   1. those with a page that somebody waits for, in the order they were asked for
 *   2. in the order of first touch, if the file has it (save --record)
 *   3. on from behind the extent that was asked for last
 *   4. whatever is left, in the file's order
 *
 * Each is given out once, and what the file holds nothing of never. No locks: the caller's.
 */
struct ferry_store_plan {
	const struct ferry_store_file *file;
	bool **taken; /* of each block: given out, or empty */
	struct ferry_store_place asked[FERRY_STORE_PLAN_ASKED]; /* a ring */
	unsigned int asked_first, asked_count;
	uint64_t order_at;	       /* how far the recorded order has been followed */
	struct ferry_store_place near; /* behind the last one that was asked for */
	bool is_near;
	struct ferry_store_place at; /* how far the file has been */
};

/** ferry_store_plan_init() - Return: 0 or -ENOMEM; free() it either way. */
int ferry_store_plan_init(struct ferry_store_plan *plan, const struct ferry_store_file *file,
			  struct ferry_error *err);
void ferry_store_plan_free(struct ferry_store_plan *plan);

/** ferry_store_plan_ask() - somebody waits for this page. */
void ferry_store_plan_ask(struct ferry_store_plan *plan, unsigned int block, uint64_t page);

/**
 * ferry_store_plan_next() - the next extent to read
 * @ahead: not only what is waited for
 *
 * Return: false when there is none: with @ahead all of the file has been given out.
 */
bool ferry_store_plan_next(struct ferry_store_plan *plan, bool ahead,
			   struct ferry_store_place *place);

#endif
