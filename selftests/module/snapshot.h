/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef MODULE_SNAPSHOT_H
#define MODULE_SNAPSHOT_H

#include <linux/ferry.h>
#include <stdint.h>

struct tracker;

/* Room for a tracker of 256 pages. */
#define SNAPSHOT_WORDS 4

/* All that a command that fails must leave alone. */
struct snapshot {
	struct ferry_tracker_stats stats;
	uint64_t words[SNAPSHOT_WORDS];
	uint32_t trackers;
	int next_fd;		/* differs when a descriptor was left behind */
};

/* Aborts if it cannot. */
void snapshot_take(struct snapshot *snapshot, struct tracker *tracker);

/* For tests whose fixture has a struct tracker t. */
#define EXPECT_UNCHANGED(before) do {					\
	struct snapshot after_;						\
									\
	snapshot_take(&after_, &self->t);				\
	EXPECT_EQ(0, memcmp(before, &after_, sizeof(after_))) {		\
		TH_LOG("the tracker is not as it was before the error");	\
	}								\
} while (0)

#endif
