/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef SELFTESTS_UNIT_FAULT_RIG_H
#define SELFTESTS_UNIT_FAULT_RIG_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "fault/pages.h"
#include "fault/serve.h"

#define PAGES 256u
#define WAIT_MS 20000

/*
 * A guest whose pages come one by one: it is a second mapping of the same memory file in this
 * process, touched by threads; what a channel would receive is written through the first one.
 */
struct fault_rig {
	struct ferry_ram_block block;
	struct ferry_ram ram;
	uint8_t *own;	  /* what a channel writes to */
	uint8_t *guest[2]; /* what faults; the second one is another process's, so to say */
	uint64_t addr[2][1];
	struct ferry_fault_mapper mappers[2];
	unsigned int n_mappers;
	int placed_fd;
	struct ferry_fault_pages pages;
	struct ferry_fault *fault;

	pthread_mutex_t lock;
	pthread_cond_t changed;
	unsigned int wanted[PAGES]; /* how often each was asked for; under lock */
};

/* Every test has one of its own, in *state. */
int rig_setup(void **state);
int rig_teardown(void **state);
#define RIG_TEST(test) cmocka_unit_test_setup_teardown(test, rig_setup, rig_teardown)

/** rig_start() - all pages are placed but [@first, @first + @lacking). */
void rig_start(struct fault_rig *rig, uint64_t first, uint64_t lacking);
/** rig_start_adopted() - with the states that rig->pages has; @expected: what is returned. */
void rig_start_adopted(struct fault_rig *rig, bool adopted,
		       int (*zap)(void *rig, struct ferry_error *err), int expected);
struct ferry_fault_stats rig_stats_now(struct fault_rig *rig);
unsigned int rig_wanted(struct fault_rig *rig, uint64_t page);
void rig_wait_wanted(struct fault_rig *rig, uint64_t page, unsigned int times);
void rig_wait_waiting(struct fault_rig *rig, uint64_t waiting);

void rig_write_page(struct fault_rig *rig, uint64_t page, uint8_t value);
/** rig_bring() - a page of one value arrives. */
void rig_bring(struct fault_rig *rig, uint64_t page, uint8_t value);
/** rig_punch() - as a balloon does. */
void rig_punch(struct fault_rig *rig, uint64_t page);

/* Somebody who touches a page. */
struct toucher {
	pthread_t thread;
	const uint8_t *at;
	int done; /* atomic */
	uint8_t first, last;
};

void rig_touch_start(struct fault_rig *rig, struct toucher *t, unsigned int mapper, uint64_t page);
/** rig_touch_end() - it goes on, and has seen @expected at both ends of the page. */
void rig_touch_end(struct toucher *t, uint8_t expected);
int rig_touched(struct toucher *t);

#endif
