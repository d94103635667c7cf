// SPDX-License-Identifier: GPL-2.0-or-later
#include "fault/waits.h"

#include <stdlib.h>

#include "base/clock.h"

/* A guest with more threads than this has its blocktimes summed in the last entry. */
#define MAX_THREADS 1024u

#define STEP_BITS 5
_Static_assert(FERRY_FAULT_STEPS == 1u << STEP_BITS, "steps of a doubling");

/* Make room for one more element. Return: the array, or NULL. */
static void *grow(void *array, unsigned int count, unsigned int *room, size_t size)
{
	unsigned int more = *room ? *room * 2 : 16;
	void *bigger;

	if (count < *room)
		return array;
	bigger = reallocarray(array, more, size);
	if (bigger)
		*room = more;
	return bigger;
}

static struct ferry_fault_thread *thread_of(struct ferry_fault_waits *w, pid_t tid)
{
	struct ferry_fault_thread *bigger;
	unsigned int i;

	for (i = 0; i < w->n_threads; i++)
		if (w->threads[i].tid == tid)
			return &w->threads[i];
	if (w->n_threads < MAX_THREADS) {
		bigger = grow(w->threads, w->n_threads, &w->threads_room, sizeof(*bigger));
		if (bigger) {
			w->threads = bigger;
			w->threads[w->n_threads] = (struct ferry_fault_thread){ .tid = tid };
			return &w->threads[w->n_threads++];
		}
	}
	return w->n_threads ? &w->threads[w->n_threads - 1] : NULL;
}

/* Its place among the steps of which each doubling has FERRY_FAULT_STEPS. */
static unsigned int fine_of(uint64_t ns)
{
	unsigned int log = ns < FERRY_FAULT_STEPS ? 0 : 63 - (unsigned int)__builtin_clzll(ns) - STEP_BITS;
	unsigned int at = log * FERRY_FAULT_STEPS + (unsigned int)(ns >> log) % FERRY_FAULT_STEPS;

	return at < FERRY_FAULT_FINE ? at : FERRY_FAULT_FINE - 1;
}

uint64_t ferry_fault_waits_percentile(const struct ferry_fault_waits *w, unsigned int percent)
{
	uint64_t all = 0, below = 0;
	unsigned int i;

	for (i = 0; i < FERRY_FAULT_FINE; i++)
		all += w->fine[i];
	for (i = 0; all && i < FERRY_FAULT_FINE; i++) {
		below += w->fine[i];
		if (below * 100 >= all * percent)
			return (FERRY_FAULT_STEPS + 1ull + i % FERRY_FAULT_STEPS)
			       << (i / FERRY_FAULT_STEPS);
	}
	return 0;
}

static void account(struct ferry_fault_waits *w, const struct ferry_fault_wait *wait,
		    uint64_t now_ns)
{
	uint64_t ns = now_ns - wait->since_ns, limit_us = 1;
	struct ferry_fault_thread *t = thread_of(w, wait->tid);
	unsigned int bucket = 0;

	while (bucket < FERRY_FAULT_BUCKETS - 1 && ns >= limit_us * 1000) {
		limit_us *= 2;
		bucket++;
	}
	w->stats.histogram[bucket]++;
	w->fine[fine_of(ns)]++;
	w->stats.total_wait_ns += ns;
	if (ns > w->stats.max_wait_ns)
		w->stats.max_wait_ns = ns;
	if (!t)
		return;
	t->faults++;
	t->wait_ns += ns;
	if (ns > t->max_ns)
		t->max_ns = ns;
}

bool ferry_fault_waits_add(struct ferry_fault_waits *w, unsigned int block, uint64_t page,
			   pid_t tid, uint64_t now_ns)
{
	struct ferry_fault_wait *bigger;
	bool first = true;
	unsigned int i;

	for (i = 0; i < w->count; i++) {
		if (w->list[i].block != block || w->list[i].page != page)
			continue;
		/* It was woken for nothing and waits since then. */
		if (w->list[i].tid == tid)
			return false;
		first = false;
	}
	bigger = grow(w->list, w->count, &w->room, sizeof(*bigger));
	if (!bigger)
		return true;
	w->list = bigger;
	w->list[w->count++] = (struct ferry_fault_wait){ block, page, tid, now_ns };
	return first;
}

static bool is_in(const struct ferry_fault_wait *wait, unsigned int block, uint64_t first,
		  uint64_t pages)
{
	return wait->block == block && wait->page >= first && wait->page - first < pages;
}

bool ferry_fault_waits_any(const struct ferry_fault_waits *w, unsigned int block, uint64_t first,
			   uint64_t pages)
{
	unsigned int i;

	for (i = 0; i < w->count; i++)
		if (is_in(&w->list[i], block, first, pages))
			return true;
	return false;
}

unsigned int ferry_fault_waits_end(struct ferry_fault_waits *w, unsigned int block,
				   uint64_t first, uint64_t pages, uint64_t now_ns)
{
	unsigned int i = 0, ended = 0;

	while (i < w->count) {
		if (!is_in(&w->list[i], block, first, pages)) {
			i++;
			continue;
		}
		account(w, &w->list[i], now_ns);
		w->list[i] = w->list[--w->count];
		ended++;
	}
	return ended;
}

void ferry_fault_waits_free(struct ferry_fault_waits *w)
{
	free(w->list);
	free(w->threads);
	*w = (struct ferry_fault_waits){ 0 };
}
