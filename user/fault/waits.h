/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_FAULT_WAITS_H
#define FERRY_FAULT_WAITS_H

#include <stdbool.h>
#include <stdint.h>

#include "fault/serve.h"

/* Steps for each doubling: a percentile is told to 3 %. */
#define FERRY_FAULT_STEPS 32u
#define FERRY_FAULT_FINE (38 * FERRY_FAULT_STEPS)

/*
 * Who waits for which page since when, and how long they waited. A guest has a few
 * threads and each waits for one page, so the list is short. Not locked: the caller does.
 */
struct ferry_fault_wait {
	unsigned int block;
	uint64_t page;
	pid_t tid;
	uint64_t since_ns;
};

struct ferry_fault_waits {
	struct ferry_fault_wait *list;
	unsigned int count, room;
	struct ferry_fault_thread *threads;
	unsigned int n_threads, threads_room;
	struct ferry_fault_stats stats; /* but for "waiting", which is count, and percentiles */
	uint64_t fine[FERRY_FAULT_FINE];
};

/**
 * ferry_fault_waits_add() - @tid waits for a page; a repeated fault of it replaces the first
 *
 * Return: true when nobody waited for that page before. What does not fit for lack of memory
 * is not remembered; its page must then be asked for each time.
 */
bool ferry_fault_waits_add(struct ferry_fault_waits *w, unsigned int block, uint64_t page,
			   pid_t tid, uint64_t now_ns);

/** ferry_fault_waits_any() - does anybody wait for one of these pages? */
bool ferry_fault_waits_any(const struct ferry_fault_waits *w, unsigned int block, uint64_t first,
			   uint64_t pages);

/** ferry_fault_waits_end() - who waited for these pages goes on. Return: how many that were. */
unsigned int ferry_fault_waits_end(struct ferry_fault_waits *w, unsigned int block,
				   uint64_t first, uint64_t pages, uint64_t now_ns);

/** ferry_fault_waits_percentile() - the wait in ns that @percent of all that ended stayed below */
uint64_t ferry_fault_waits_percentile(const struct ferry_fault_waits *w, unsigned int percent);

void ferry_fault_waits_free(struct ferry_fault_waits *w);

#endif
