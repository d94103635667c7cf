/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef MODULE_SHADOW_H
#define MODULE_SHADOW_H

#include <stdint.h>

struct tracker;

/*
 * What a migration's destination would have: a copy of the memfd, brought up to date only
 * by what the tracker says is dirty. A page that differs when nobody writes is a lost write.
 */
struct shadow {
	int memfd;
	uint64_t npages;
	char *copy;
	char *page;
};

int shadow_make(struct shadow *shadow, int memfd, uint64_t npages);
void shadow_end(struct shadow *shadow);
void shadow_all(struct shadow *shadow);
void shadow_copy(struct shadow *shadow, uint64_t first, const uint64_t *bits, uint64_t npages);

/*
 * How many pages differ; *where is the first of them. A page of the file that is all zero
 * is right whatever the copy has: a hole is no store, and is looked for by SEEK_HOLE.
 */
long shadow_stale(struct shadow *shadow, uint64_t *where);

/* The sum of all 64-bit words of the file. */
uint64_t shadow_sum(struct shadow *shadow);

/*
 * One look for dirty pages and the copy of them. round chooses the command, so that many
 * rounds try them all: sync of everything, sync of a part, get and clear, clearing scan.
 */
int shadow_follow(struct shadow *shadow, struct tracker *tracker, unsigned int round);

#endif
