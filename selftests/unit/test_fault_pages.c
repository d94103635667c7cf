// SPDX-License-Identifier: GPL-2.0-or-later
/* The state of each page, and the book of who waits for one and how long: no faults yet. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "fault_rig.h"
#include "fault/waits.h"

static void states(void **state)
{
	struct fault_rig *rig = *state;
	struct ferry_fault_pages *p = &rig->pages;

	assert_int_equal(ferry_fault_pages_init(p, &rig->ram, rig->placed_fd, true, NULL), 0);
	assert_int_equal(ferry_fault_pages_missing(p), 0);
	assert_int_equal(ferry_fault_pages_state(p, 0, 7), FERRY_PAGE_PLACED);
	assert_int_equal(ferry_fault_pages_claim(p, 0, 7, 1), 0);
	ferry_fault_pages_lack(p, 0, 60, 10);
	ferry_fault_pages_lack(p, 0, 60, 10); /* again counts nothing twice */
	assert_int_equal(ferry_fault_pages_missing(p), 10);
	assert_int_equal(ferry_fault_pages_state(p, 0, 60), FERRY_PAGE_ABSENT);
	assert_int_equal(ferry_fault_pages_claim(p, 0, 65, 2), 2);
	assert_int_equal(ferry_fault_pages_state(p, 0, 66), FERRY_PAGE_RECEIVING);
	/* Up to what is claimed already, over the border of a word. */
	assert_int_equal(ferry_fault_pages_claim(p, 0, 60, 10), 5);
	assert_int_equal(ferry_fault_pages_skip(p, 0, 60, 10), 7);
	assert_int_equal(ferry_fault_pages_claim(p, 0, 67, 100), 3);
	ferry_fault_pages_unclaim(p, 0, 67, 3);
	assert_int_equal(ferry_fault_pages_state(p, 0, 68), FERRY_PAGE_ABSENT);
	ferry_fault_pages_place(p, 0, 60, 2);
	assert_int_equal(ferry_fault_pages_missing(p), 8);
	ferry_fault_pages_free(p);

	/* A new worker: what was being received is absent, what was placed is. */
	assert_int_equal(ferry_fault_pages_init(p, &rig->ram, rig->placed_fd, false, NULL), 0);
	assert_int_equal(ferry_fault_pages_missing(p), 8);
	assert_int_equal(ferry_fault_pages_state(p, 0, 61), FERRY_PAGE_PLACED);
	assert_int_equal(ferry_fault_pages_state(p, 0, 62), FERRY_PAGE_ABSENT);
	ferry_fault_pages_free(p);

	rig->block.size_bytes = 40000 * FERRY_PAGE_SIZE;
	assert_int_equal(ferry_fault_pages_init(p, &rig->ram, rig->placed_fd, false, NULL),
			 -EINVAL);
}

static void waits_are_counted(void **state)
{
	struct ferry_fault_waits w = { 0 };
	unsigned int i;

	(void)state;
	assert_true(ferry_fault_waits_add(&w, 0, 5, 100, 1000));
	assert_false(ferry_fault_waits_add(&w, 0, 5, 101, 2000));
	assert_false(ferry_fault_waits_add(&w, 0, 5, 100, 3000)); /* the same one again */
	assert_true(ferry_fault_waits_add(&w, 1, 5, 102, 3000));
	for (i = 0; i < 100; i++)
		assert_true(ferry_fault_waits_add(&w, 2, i, 200, 0));
	assert_false(ferry_fault_waits_any(&w, 0, 0, 5));
	assert_int_equal(ferry_fault_waits_end(&w, 0, 0, 5, 4000), 0);
	assert_true(ferry_fault_waits_any(&w, 0, 5, 1));
	assert_false(ferry_fault_waits_any(&w, 1, 6, 1));
	assert_int_equal(ferry_fault_waits_end(&w, 0, 5, 1, 1000 + 1500), 2);
	assert_int_equal(w.stats.histogram[1], 1); /* 1.5 us */
	assert_int_equal(w.stats.histogram[0], 1); /* 0.5 us */
	assert_int_equal(w.stats.max_wait_ns, 1500);
	assert_int_equal(ferry_fault_waits_end(&w, 2, 0, 100, 1ull << 62), 100);
	assert_int_equal(w.stats.histogram[FERRY_FAULT_BUCKETS - 1], 100);
	assert_int_equal(w.count, 1);
	assert_int_equal(w.n_threads, 3);
	ferry_fault_waits_free(&w);
}

/* To a thirty-second of what they are, from the top. */
static void waits_in_percent(void **state)
{
	struct ferry_fault_waits w = { 0 };
	uint64_t i, p;

	(void)state;
	assert_int_equal(ferry_fault_waits_percentile(&w, 50), 0);
	for (i = 1; i <= 100; i++) {
		assert_true(ferry_fault_waits_add(&w, 0, i, 1, 0));
		assert_int_equal(ferry_fault_waits_end(&w, 0, i, 1, i * 1000), 1);
	}
	p = ferry_fault_waits_percentile(&w, 50);
	assert_in_range(p, 50000, 50000 * 33 / 32);
	p = ferry_fault_waits_percentile(&w, 99);
	assert_in_range(p, 99000, 99000 * 33 / 32);
	assert_in_range(ferry_fault_waits_percentile(&w, 1), 1000, 1032);
	assert_true(ferry_fault_waits_add(&w, 0, 1, 1, 0));
	assert_int_equal(ferry_fault_waits_end(&w, 0, 1, 1, UINT64_MAX), 1);
	assert_true(ferry_fault_waits_percentile(&w, 100) > 1ull << 40);
	assert_true(ferry_fault_waits_add(&w, 0, 1, 1, 7));
	assert_int_equal(ferry_fault_waits_end(&w, 0, 1, 1, 7), 1);
	ferry_fault_waits_free(&w);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		RIG_TEST(states),
		cmocka_unit_test(waits_are_counted),
		cmocka_unit_test(waits_in_percent),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
