/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_FAULT_SERVE_H
#define FERRY_FAULT_SERVE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"
#include "fault/pages.h"
#include "fault/uffd.h"
#include "ram/ram.h"

/*
 * Faults of a guest whose RAM is not all here, and what answers them: the thread that hears
 * them, and the placing of pages by whoever brings them. One of these for a guest, with
 * all processes that map its RAM.
 */
struct ferry_fault;

#define FERRY_FAULT_MAX_MAPPERS 16
#define FERRY_FAULT_BUCKETS 32 /* of the histogram: bucket i counts waits below 2^i us */

struct ferry_fault_params {
	const struct ferry_ram *ram;
	const struct ferry_fault_mapper *mappers; /* copied; descriptors and tables stay the caller's */
	unsigned int n_mappers;
	struct ferry_fault_pages *pages;
	bool adopted; /* armed by an earlier worker: wake everybody, who will fault again */
	/*
	 * A page is wanted that nobody brings yet; of a huge one, what of it is absent, from its
	 * first @page on. Called once for each page by the fault
	 * thread, and again by ferry_fault_ask_again(); must not block for long. What it
	 * returns is not looked at: a page that cannot be asked for is asked for again later.
	 */
	void (*want)(void *ctx, unsigned int block, uint64_t page);
	void *ctx;
};

struct ferry_fault_stats {
	uint64_t faults;	/* heard */
	uint64_t wanted;	/* of them for pages that were absent */
	uint64_t waiting;	/* now */
	uint64_t total_wait_ns; /* over all that ended */
	uint64_t max_wait_ns;
	uint64_t histogram[FERRY_FAULT_BUCKETS]; /* of waits for absent or receiving pages */
	uint64_t p50_ns, p99_ns; /* of the same, to 3 %; 0 none */
};

/**
 * ferry_fault_start() - arm all mappers, assert that they have nothing mapped, hear faults
 *
 * The pages that are missing are known by then; page tables that are not empty are the
 * caller's to empty (between this call's two steps nothing can map: see @zap).
 * @zap: called when all is armed: drop what is mapped. May be NULL.
 *
 * Return: 0; -errno with nothing armed.
 */
int ferry_fault_start(const struct ferry_fault_params *params,
		      int (*zap)(void *ctx, struct ferry_error *err), struct ferry_fault **out,
		      struct ferry_error *err);

/**
 * ferry_fault_placed() - claimed pages are complete in the memory file (or a hole, for zeros)
 * @zero: they are holes
 *
 * Makes them visible to everybody and wakes who waits; huge pages when they are whole. Any thread.
 * Return: 0, or -errno: a mapper cannot be served any more (-ESRCH: its process has ended).
 */
int ferry_fault_placed(struct ferry_fault *f, unsigned int block, uint64_t first, uint64_t pages,
		       bool zero);

/** ferry_fault_ask_again() - want() for every page that somebody waits for. */
void ferry_fault_ask_again(struct ferry_fault *f);

/**
 * ferry_fault_sweep() - map pages that were placed before the start, so that they do not fault
 * @stop: looked at between steps; nonzero ends it early
 */
int ferry_fault_sweep(struct ferry_fault *f, const int *stop, struct ferry_error *err);

void ferry_fault_stats(struct ferry_fault *f, struct ferry_fault_stats *stats);

/** ferry_fault_waited() - the longest and total wait of each thread that ever waited. */
struct ferry_fault_thread {
	pid_t tid; /* as the mapper's process sees it */
	uint64_t faults;
	uint64_t wait_ns;
	uint64_t max_ns;
};

/** Return: how many there are; up to @max are written, the longest total first. */
unsigned int ferry_fault_threads(struct ferry_fault *f, struct ferry_fault_thread *threads,
				 unsigned int max);

/**
 * ferry_fault_stop() - end the thread, free; NULL is fine
 * @all_placed: nothing is missing any more: unregister. Otherwise all stays armed and whoever
 *	    touches an absent page goes on waiting, as long as the userfaultfd is open.
 */
void ferry_fault_stop(struct ferry_fault *f, bool all_placed);

#endif
