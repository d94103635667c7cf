// SPDX-License-Identifier: GPL-2.0-or-later
#include "store/plan.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static uint64_t extents_of(const struct ferry_store_plan *plan, unsigned int block)
{
	return ferry_store_extents(plan->file->blocks[block].size_bytes);
}

int ferry_store_plan_init(struct ferry_store_plan *plan, const struct ferry_store_file *file,
			  struct ferry_error *err)
{
	unsigned int i;
	uint64_t k;

	memset(plan, 0, sizeof(*plan));
	plan->file = file;
	plan->taken = calloc(file->header.blocks, sizeof(*plan->taken));
	for (i = 0; plan->taken && i < file->header.blocks; i++) {
		plan->taken[i] = calloc(extents_of(plan, i), sizeof(bool));
		for (k = 0; plan->taken[i] && k < extents_of(plan, i); k++) {
			struct ferry_store_set set;

			ferry_store_pages(file, i, k, &set);
			plan->taken[i][k] = ferry_store_set_empty(&set);
		}
		if (!plan->taken[i])
			break;
	}
	if (plan->taken && i == file->header.blocks)
		return 0;
	return ferry_error_set(err, ENOMEM, "no memory for the map of what was read");
}

void ferry_store_plan_free(struct ferry_store_plan *plan)
{
	unsigned int i;

	for (i = 0; plan->taken && i < plan->file->header.blocks; i++)
		free(plan->taken[i]);
	free(plan->taken);
	plan->taken = NULL;
}

static bool is_taken(const struct ferry_store_plan *plan, const struct ferry_store_place *place)
{
	return plan->taken[place->block][place->extent];
}

void ferry_store_plan_ask(struct ferry_store_plan *plan, unsigned int block, uint64_t page)
{
	struct ferry_store_place place = { block, page / FERRY_STORE_EXTENT_PAGES };

	/* A full list is not lost: the page is read in its turn. */
	if (!is_taken(plan, &place) && plan->asked_count < FERRY_STORE_PLAN_ASKED)
		plan->asked[(plan->asked_first + plan->asked_count++) % FERRY_STORE_PLAN_ASKED] = place;
	place.extent++;
	plan->near = place;
	plan->is_near = true;
}

static bool next_asked(struct ferry_store_plan *plan, struct ferry_store_place *place)
{
	while (plan->asked_count) {
		*place = plan->asked[plan->asked_first];
		plan->asked_first = (plan->asked_first + 1) % FERRY_STORE_PLAN_ASKED;
		plan->asked_count--;
		if (!is_taken(plan, place))
			return true;
	}
	return false;
}

static bool next_recorded(struct ferry_store_plan *plan, struct ferry_store_place *place)
{
	while (plan->order_at < plan->file->commit.order_count) {
		uint64_t entry = plan->file->order[plan->order_at++];

		place->block = (unsigned int)(entry >> 48);
		place->extent = (entry & ((1ull << 48) - 1)) / FERRY_STORE_EXTENT_PAGES;
		if (!is_taken(plan, place))
			return true;
	}
	return false;
}

/* From behind what was asked for last, until there is a piece that was read already. */
static bool next_near(struct ferry_store_plan *plan, struct ferry_store_place *place)
{
	if (!plan->is_near)
		return false;
	*place = plan->near;
	plan->near.extent++;
	plan->is_near = place->extent < extents_of(plan, place->block) && !is_taken(plan, place);
	return plan->is_near;
}

static bool next_in_file(struct ferry_store_plan *plan, struct ferry_store_place *place)
{
	for (; plan->at.block < plan->file->header.blocks; plan->at.block++, plan->at.extent = 0) {
		while (plan->at.extent < extents_of(plan, plan->at.block)) {
			*place = plan->at;
			plan->at.extent++;
			if (!is_taken(plan, place))
				return true;
		}
	}
	return false;
}

bool ferry_store_plan_next(struct ferry_store_plan *plan, bool ahead,
			   struct ferry_store_place *place)
{
	bool found = next_asked(plan, place);

	if (!found && ahead)
		found = next_recorded(plan, place) || next_near(plan, place) ||
			next_in_file(plan, place);
	if (found)
		plan->taken[place->block][place->extent] = true;
	return found;
}
