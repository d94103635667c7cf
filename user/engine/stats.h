/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_ENGINE_STATS_H
#define FERRY_ENGINE_STATS_H

#include <stdbool.h>
#include <stdint.h>

/* How the guest's memory went. */
enum ferry_mode {
	FERRY_MODE_PRECOPY,
	FERRY_MODE_POSTCOPY, /* all of it after the guest */
	FERRY_MODE_HYBRID,   /* some of it after */
	FERRY_MODE_SAVE,     /* to a file, while it stood still */
	FERRY_MODE_SAVE_LIVE,
	FERRY_MODE_RESTORE,  /* from a file */
	FERRY_MODE_RESTORE_LAZY, /* some of it while it runs */
	FERRY_MODE_CPR,	     /* not at all: both VMMs map it */
	FERRY_MODE_COUNT,
};

/* How long one thread of the guest has waited for pages. */
struct ferry_stats_thread {
	int tid;
	uint64_t faults;
	uint64_t wait_ns;
	uint64_t max_ns;
};

#define FERRY_STATS_THREADS 16
#define FERRY_STATS_BUCKETS 32 /* bucket i counts waits below 2^i us */

/* The numbers of one migration, as the last JSON object gives them. */
struct ferry_stats {
	uint64_t total_ns;
	uint64_t downtime_ns; /* from stop to run, end to end; restore: from the command to run */
	uint64_t rounds;
	uint64_t ram_bytes;
	uint64_t sent_bytes;
	uint64_t normal_pages;
	uint64_t zero_pages;
	uint64_t device_bytes;
	uint64_t faults; /* destination: of missing pages; source: requests */
	uint64_t fault_pages;	     /* sent for requests */
	uint64_t background_pages;   /* sent without, after the switch */
	uint64_t missing_pages;	     /* that are not at the destination yet */
	uint64_t waiting;	     /* threads that wait for one now */
	uint64_t blocktime_ns;	     /* over all waits that ended */
	uint64_t blocktime_max_ns;
	uint64_t fault_us[FERRY_STATS_BUCKETS]; /* of these waits */
	uint64_t fault_p50_ns, fault_p99_ns;
	struct ferry_stats_thread threads[FERRY_STATS_THREADS]; /* the longest waits; tid 0 none */
	enum ferry_mode mode;
	uint64_t suspect_pages;	     /* most at one time */
	uint64_t suspect_copied;     /* recopied because DMA had changed them */
	uint32_t channels;
	char tracker[16];
	bool verified;
};

/* What is going on now, for the progress line. */
struct ferry_progress {
	uint64_t round;
	uint64_t sent_bytes;
	uint64_t round_pages;	     /* in this round */
	uint64_t round_done_pages;
	uint64_t bytes_per_s;	     /* sending, 0 not known yet */
	uint64_t dirty_bytes_per_s;
	uint64_t expected_downtime_ns;
	uint64_t pages_per_s;	     /* done, whatever they took on the wire; 0 not known yet */
	bool stalled;
	uint32_t throttle;	     /* percent of its time taken from the guest */
	char stall[192];	     /* what a stall comes from and what is done, empty if none */
	char note[128]; /* what is waited for, empty if nothing */
};

/** ferry_mode_name() - Return: "precopy" and the like. */
const char *ferry_mode_name(enum ferry_mode mode);

/** ferry_mode_parse() - Return: the mode of that name, or -EINVAL. */
int ferry_mode_parse(const char *name);

/**
 * ferry_progress_eta_ns() - what is left of the round, at the pace of now
 *
 * In pages: what they take on the wire depends on what is in them.
 * Return: nanoseconds; 0 nothing left, or no pace known yet.
 */
uint64_t ferry_progress_eta_ns(const struct ferry_progress *progress);

#endif
