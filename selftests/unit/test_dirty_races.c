// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What matters about a tracker: while threads of a process write, every collect()'s pages are
 * copied to a shadow, as a migration does; after the writers have stopped and one last
 * collect(), shadow and memory must be equal. Its twin leaves out the last collect()'s pages
 * and must find stale pages, or the test could not see a lost write.
 */
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "base/clock.h"
#include "dirty_rig.h"

#define ROUNDS 300

static void copy_dirty(struct target *t)
{
	struct ferry_bitmap_run run = { 0 };

	while (ferry_bitmap_next_run(&t->dirty, &run, 0))
		memcpy(t->shadow + run.first_page * FERRY_PAGE_SIZE,
		       t->ram.blocks[0].map + run.first_page * FERRY_PAGE_SIZE,
		       run.pages * FERRY_PAGE_SIZE);
	ferry_bitmap_zero(&t->dirty);
}

static void collect_behind_barrier(struct target *t)
{
	int status;

	kill(t->t.pid, SIGSTOP);
	assert_int_equal(waitpid(t->t.pid, &status, WUNTRACED), t->t.pid);
	assert_true(WIFSTOPPED(status));
	target_collect(t);
	kill(t->t.pid, SIGCONT);
}

struct race {
	const struct ferry_dirty_ops *ops;
	bool barrier;
	bool chaos;    /* the child drops entries too */
	bool sabotage; /* leave out the last collect() */
};

/* Return: how many pages of the copy are stale at the end. */
static uint64_t race(const struct race *r)
{
	uint64_t page, stale = 0;
	struct target t;
	int round;

	target_start(&t);
	target_track(&t, r->ops);
	target_tell(&t, CMD_RACE, r->chaos, 0, 0);
	for (round = 0; round < ROUNDS; round++) {
		uint64_t before = __atomic_load_n(&t.control->writes, __ATOMIC_RELAXED);
		uint64_t deadline = ferry_clock_in_ms(WAIT_MS);

		if (r->barrier)
			collect_behind_barrier(&t);
		else
			target_collect(&t);
		copy_dirty(&t);
		while (__atomic_load_n(&t.control->writes, __ATOMIC_RELAXED) < before + 200) {
			assert_true(ferry_clock_ns() < deadline);
			sched_yield();
		}
	}
	/* At least 200 writes have not been collected. */
	target_tell(&t, CMD_STOP, 0, 0, 0);
	target_collect(&t);
	if (!r->sabotage)
		copy_dirty(&t);
	for (page = 0; page < PAGES; page++)
		stale += !!memcmp(t.shadow + page * FERRY_PAGE_SIZE,
				  t.ram.blocks[0].map + page * FERRY_PAGE_SIZE, FERRY_PAGE_SIZE);
	print_message("%s%s: %llu writes, %d rounds, %llu stale pages\n", r->ops->name,
		      r->barrier ? " with barrier" : "",
		      (unsigned long long)t.control->writes, ROUNDS, (unsigned long long)stale);
	target_end(&t);
	return stale;
}

static void no_write_is_lost(void **state)
{
	struct race r = { .ops = *state };

	r.barrier = r.ops->needs_barrier;
	assert_int_equal(race(&r), 0);
}

static void no_write_is_lost_when_entries_are_dropped(void **state)
{
	struct race r = { .ops = *state, .chaos = true };

	assert_int_equal(race(&r), 0);
}

static void the_race_test_sees_a_lost_collect(void **state)
{
	struct race r = { .ops = *state, .sabotage = true };

	r.barrier = r.ops->needs_barrier;
	assert_true(race(&r) > 0);
}

/* Whether needs_barrier is true: without it pages do get lost. */
static void writes_are_lost_without_the_barrier(void **state)
{
	struct race r = { .ops = *state };
	uint64_t deadline = ferry_clock_in_ms(60000);
	uint64_t stale;

	assert_true(r.ops->needs_barrier);
	do {
		stale = race(&r);
	} while (!stale && ferry_clock_ns() < deadline);
	assert_true(stale > 0);
}

int main(void)
{
	const struct CMUnitTest pagemap[] = {
		TEST(pagemap, no_write_is_lost),
		TEST(pagemap, no_write_is_lost_when_entries_are_dropped),
		TEST(pagemap, the_race_test_sees_a_lost_collect),
	};
	const struct CMUnitTest softdirty[] = {
		TEST(softdirty, no_write_is_lost),
		TEST(softdirty, writes_are_lost_without_the_barrier),
		TEST(softdirty, the_race_test_sees_a_lost_collect),
	};

	return RIG_RUN(pagemap) + RIG_RUN(softdirty);
}
