/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_ENGINE_STATS_H
#define FERRY_ENGINE_STATS_H

#include <stdbool.h>
#include <stdint.h>

/* The numbers of one migration, as the last JSON object gives them. */
struct ferry_stats {
	uint64_t total_ns;
	uint64_t downtime_ns; /* from stop to run, end to end */
	uint64_t rounds;
	uint64_t ram_bytes;
	uint64_t sent_bytes;
	uint64_t normal_pages;
	uint64_t zero_pages;
	uint64_t device_bytes;
	uint64_t faults;
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

#endif
