// SPDX-License-Identifier: GPL-2.0-or-later
/* Channels, faults and a balloon race for the same pages. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

#include <cmocka.h>

#include "fault_rig.h"

/* A channel, or a guest, and its choice of pages. */
struct racer {
	pthread_t thread;
	struct fault_rig *rig;
	unsigned int seed;
	unsigned int placed;
};

static void racer_start(struct racer *r, struct fault_rig *rig, void *(*run)(void *),
			unsigned int seed)
{
	*r = (struct racer){ .rig = rig, .seed = seed };
	assert_int_equal(pthread_create(&r->thread, NULL, run, r), 0);
}

static uint8_t value_of(uint64_t page)
{
	return (uint8_t)(page % 7 ? page * 31 + 1 : 0); /* every seventh is zeros */
}

static void *run_channel(void *arg)
{
	struct racer *ch = arg;
	struct fault_rig *rig = ch->rig;

	while (ferry_fault_pages_missing(&rig->pages)) {
		uint64_t page = (uint64_t)rand_r(&ch->seed) % PAGES, n, i;

		n = ferry_fault_pages_claim(&rig->pages, 0, page,
					    PAGES - page < 5 ? PAGES - page : 5);
		for (i = page; i < page + n; i++) {
			if (value_of(i))
				rig_write_page(rig, i, value_of(i));
			if (ferry_fault_placed(rig->fault, 0, i, 1, !value_of(i)))
				return NULL;
			ch->placed++;
		}
	}
	return ch;
}

static void *run_guest(void *arg)
{
	struct racer *racer = arg;
	struct fault_rig *rig = racer->rig;
	uint64_t i, wrong = 0;

	for (i = 0; i < 4 * PAGES; i++) {
		uint64_t page = (uint64_t)rand_r(&racer->seed) % PAGES;
		const volatile uint8_t *at = rig->guest[i & 1] + page * FERRY_PAGE_SIZE;

		wrong += at[0] != value_of(page) || at[4095] != value_of(page);
		if (i % 16 == 0)
			madvise(rig->guest[i & 1], PAGES * FERRY_PAGE_SIZE, MADV_DONTNEED);
	}
	return wrong ? NULL : arg;
}

static void races(void **state)
{
	struct fault_rig *rig = *state;
	struct racer channels[3], guests[2];
	unsigned int i, sum = 0;
	void *result;

	rig->n_mappers = 2;
	rig_start(rig, 0, PAGES);
	for (i = 0; i < 2; i++)
		racer_start(&guests[i], rig, run_guest, 10 + i);
	for (i = 0; i < 3; i++)
		racer_start(&channels[i], rig, run_channel, 1 + i);
	for (i = 0; i < 3; i++) {
		pthread_join(channels[i].thread, &result);
		assert_non_null(result);
		sum += channels[i].placed;
	}
	for (i = 0; i < 2; i++) {
		pthread_join(guests[i].thread, &result);
		assert_non_null(result);
	}
	assert_int_equal(sum, PAGES);
}

/* A byte of a page that a balloon may have taken at any time since it was placed. */
static bool given_or_there(struct fault_rig *rig, uint64_t page, uint64_t at)
{
	uint8_t byte = *(volatile uint8_t *)(rig->guest[0] + page * FERRY_PAGE_SIZE + at);

	return byte == value_of(page) || !byte;
}

static void *run_balloon_guest(void *arg)
{
	struct racer *racer = arg;
	struct fault_rig *rig = racer->rig;
	uint64_t i, wrong = 0;

	for (i = 0; i < 8 * PAGES; i++) {
		uint64_t page = (uint64_t)rand_r(&racer->seed) % PAGES;

		wrong += !given_or_there(rig, page, 0) ||
			 !given_or_there(rig, page, FERRY_PAGE_SIZE - 1);
		page = (uint64_t)rand_r(&racer->seed) % PAGES;
		if (ferry_fault_pages_state(&rig->pages, 0, page) == FERRY_PAGE_PLACED)
			rig_punch(rig, page);
	}
	return wrong ? NULL : arg;
}

/* Nobody waits for ever, and nobody is asked for a page that has been there. */
static void races_with_a_balloon(void **state)
{
	struct fault_rig *rig = *state;
	struct racer channels[2], guests[2];
	struct timespec end;
	unsigned int i;
	void *result;

	rig_start(rig, 0, PAGES);
	for (i = 0; i < 2; i++)
		racer_start(&guests[i], rig, run_balloon_guest, 20 + i);
	for (i = 0; i < 2; i++)
		racer_start(&channels[i], rig, run_channel, 4 + i);
	clock_gettime(CLOCK_REALTIME, &end);
	end.tv_sec += WAIT_MS / 1000;
	for (i = 0; i < 2; i++) {
		assert_int_equal(pthread_timedjoin_np(guests[i].thread, &result, &end), 0);
		assert_non_null(result);
		pthread_join(channels[i].thread, &result);
		assert_non_null(result);
	}
	for (i = 0; i < PAGES; i++)
		assert_true(rig_wanted(rig, i) <= 2); /* once by each guest */
	assert_int_equal(rig_stats_now(rig).waiting, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		RIG_TEST(races),
		RIG_TEST(races_with_a_balloon),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
