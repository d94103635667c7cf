// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/clock.h"
#include "engine/job.h"

/* What the hooks were told, and what save() is to answer. */
struct hooked {
	struct ferry_job job;
	unsigned int saves;
	int save_errno;
	enum ferry_phase saved_phase;
	enum ferry_state told;
	unsigned int interrupts;
};

static int hook_save(void *ctx, const struct ferry_record *record, struct ferry_error *err)
{
	struct hooked *h = ctx;

	if (h->save_errno)
		return ferry_error_set(err, h->save_errno, "no room");
	h->saves++;
	h->saved_phase = record->phase;
	return 0;
}

static void hook_state(void *ctx, enum ferry_state state)
{
	((struct hooked *)ctx)->told = state;
}

static void interrupt(void *ctx)
{
	((struct hooked *)ctx)->interrupts++;
}

static struct ferry_job_hooks hooks = { .save = hook_save, .state = hook_state };

static int setup(void **state)
{
	static struct hooked h;

	memset(&h, 0, sizeof(h));
	hooks.ctx = &h;
	ferry_job_init(&h.job, &hooks);
	snprintf(h.job.record.id, sizeof(h.job.record.id), "vm1");
	*state = &h;
	return 0;
}

static int teardown(void **state)
{
	ferry_job_destroy(&((struct hooked *)*state)->job);
	return 0;
}

static void moves(void **state)
{
	struct hooked *h = *state;
	struct ferry_error err;

	assert_int_equal(ferry_job_state(&h->job), FERRY_STATE_NONE);
	assert_int_equal(ferry_job_move(&h->job, FERRY_STATE_SETUP, &err), 0);
	assert_int_equal(ferry_job_state(&h->job), FERRY_STATE_SETUP);
	assert_int_equal(h->job.record.state, FERRY_STATE_SETUP);
	assert_int_equal(h->told, FERRY_STATE_SETUP);
	assert_int_equal(ferry_job_move(&h->job, FERRY_STATE_COMPLETED, &err), -EPERM);
	assert_string_equal(err.text, "no way from state setup to completed at the source");
	assert_int_equal(h->job.record.state, FERRY_STATE_SETUP);
	assert_int_equal(h->told, FERRY_STATE_SETUP);
}

/* A phase that is not durable is not the phase. */
static void phases(void **state)
{
	struct hooked *h = *state;
	struct ferry_error err;

	h->job.stats.rounds = 7;
	assert_int_equal(ferry_job_phase(&h->job, FERRY_PHASE_COMMIT, &err), 0);
	assert_int_equal(h->saved_phase, FERRY_PHASE_COMMIT);
	assert_int_equal(h->job.shown.phase, FERRY_PHASE_COMMIT);
	assert_int_equal(h->job.record.stats.rounds, 7);
	h->save_errno = ENOSPC;
	assert_int_equal(ferry_job_phase(&h->job, FERRY_PHASE_RAN, &err), -ENOSPC);
	assert_string_equal(err.text, "cannot record 'ran': no room");
	assert_int_equal(h->job.record.phase, FERRY_PHASE_COMMIT);
	assert_int_equal(h->saves, 1);
}

/* Whichever of cancel and commit is first wins, and the other one is told. */
static void cancel_or_commit(void **state)
{
	struct hooked *h = *state;
	struct ferry_error err;

	ferry_job_interrupt(&h->job, interrupt, h);
	assert_int_equal(ferry_job_commit(&h->job, &err), 0);
	ferry_job_move(&h->job, FERRY_STATE_SETUP, NULL);
	assert_int_equal(ferry_job_cancel(&h->job, &err), -EBUSY);
	assert_string_equal(err.text,
			    "vm1 cannot be cancelled any more: the switchover is committed (state "
			    "setup), the destination owns the guest or is about to");
	assert_false(ferry_job_cancelled(&h->job));
	assert_int_equal(h->interrupts, 0);
}

static void cancel_first(void **state)
{
	struct hooked *h = *state;
	struct ferry_error err;

	/* Before there is anything to interrupt: it is interrupted as soon as there is. */
	assert_int_equal(ferry_job_cancel(&h->job, &err), 0);
	assert_true(ferry_job_cancelled(&h->job));
	ferry_job_interrupt(&h->job, interrupt, h);
	assert_int_equal(h->interrupts, 1);
	assert_int_equal(ferry_job_cancel(&h->job, &err), 0);
	assert_int_equal(h->interrupts, 2);
	ferry_job_interrupt(&h->job, NULL, NULL);
	assert_int_equal(ferry_job_cancel(&h->job, &err), 0);
	assert_int_equal(h->interrupts, 2);
	assert_int_equal(ferry_job_commit(&h->job, &err), -ECANCELED);
	assert_string_equal(err.text, "cancelled");
	assert_false(h->job.committed);
}

static void cancel_after_the_end(void **state)
{
	struct hooked *h = *state;
	struct ferry_error err;

	ferry_job_move(&h->job, FERRY_STATE_SETUP, NULL);
	ferry_job_move(&h->job, FERRY_STATE_FAILED, NULL);
	ferry_job_interrupt(&h->job, interrupt, h);
	assert_int_equal(ferry_job_cancel(&h->job, &err), -EALREADY);
	assert_string_equal(err.text, "vm1 has ended already: failed");
	/* It may listen for a last question: that ends. */
	assert_int_equal(h->interrupts, 1);
	assert_true(ferry_job_cancelled(&h->job));
}

/* Many at once: exactly one side wins each race. */
#define RACES 2000

struct race {
	struct ferry_job *job;
	pthread_barrier_t barrier;
	int cancel[RACES];
};

static void *race_cancel(void *arg)
{
	struct race *race = arg;
	unsigned int i;

	for (i = 0; i < RACES; i++) {
		pthread_barrier_wait(&race->barrier);
		race->cancel[i] = ferry_job_cancel(race->job, NULL);
		pthread_barrier_wait(&race->barrier);
	}
	return NULL;
}

static void races(void **state)
{
	struct hooked *h = *state;
	static struct race race;
	pthread_t thread;
	unsigned int i;

	race.job = &h->job;
	pthread_barrier_init(&race.barrier, NULL, 2);
	assert_int_equal(pthread_create(&thread, NULL, race_cancel, &race), 0);
	for (i = 0; i < RACES; i++) {
		int committed;

		h->job.cancel = false;
		h->job.committed = false;
		pthread_barrier_wait(&race.barrier);
		committed = ferry_job_commit(&h->job, NULL);
		pthread_barrier_wait(&race.barrier);
		if (committed)
			assert_true(committed == -ECANCELED && race.cancel[i] == 0);
		else
			assert_int_equal(race.cancel[i], -EBUSY);
	}
	pthread_join(thread, NULL);
	pthread_barrier_destroy(&race.barrier);
}

static void going_on(void **state)
{
	struct hooked *h = *state;
	struct ferry_error err;

	assert_int_equal(ferry_job_go_on(&h->job, &err), -EINVAL);
	assert_string_equal(err.text,
			    "vm1 does not wait in pre-switchover, its state is none; 'continue' goes "
			    "with --pause-before-switchover");
	assert_false(h->job.go_on);
	h->job.state = FERRY_STATE_PRE_SWITCHOVER;
	assert_int_equal(ferry_job_go_on(&h->job, &err), 0);
	assert_true(h->job.go_on);
}

static void *set_later(void *arg)
{
	ferry_clock_sleep_ns(20 * FERRY_NS_PER_MS);
	ferry_job_set(arg, "downtime-limit", "70", NULL);
	return NULL;
}

static void waits(void **state)
{
	struct hooked *h = *state;
	uint64_t start_ns = ferry_clock_ns();
	pthread_t thread;

	ferry_job_wait(&h->job, start_ns + 30 * FERRY_NS_PER_MS);
	assert_true(ferry_clock_ns() - start_ns >= 30 * FERRY_NS_PER_MS);
	/* Woken by a setting, long before the deadline. */
	assert_int_equal(pthread_create(&thread, NULL, set_later, &h->job), 0);
	start_ns = ferry_clock_ns();
	ferry_job_wait(&h->job, start_ns + 60 * FERRY_NS_PER_S);
	assert_true(ferry_clock_ns() - start_ns < 30 * FERRY_NS_PER_S);
	pthread_join(thread, NULL);
	assert_int_equal(h->job.options.downtime_limit_ms, 70);
	/* Not at all once there is a cancel. */
	ferry_job_cancel(&h->job, NULL);
	ferry_job_wait(&h->job, FERRY_CLOCK_NEVER);
}

static void settings(void **state)
{
	static const struct {
		const char *key, *value, *text;
	} wrong[] = {
		{ "speed", "1",
		  "no setting 'speed'; there are max-bandwidth=SIZE, downtime-limit=MS and on-stall=POLICY" },
		{ "max-bandwidth", "", "max-bandwidth= is no number" },
		{ "max-bandwidth", "-1", "max-bandwidth=-1 is no number" },
		{ "max-bandwidth", "10X", "max-bandwidth=10X is no number" },
		{ "max-bandwidth", "10 ", "max-bandwidth=10  is no number" },
		{ "downtime-limit", "0",
		  "downtime-limit=0 must be 1 to 4294967295 milliseconds" },
		{ "downtime-limit", "4294967296",
		  "downtime-limit=4294967296 must be 1 to 4294967295 milliseconds" },
	};
	struct hooked *h = *state;
	struct ferry_error err;
	size_t i;

	assert_int_equal(ferry_job_set(&h->job, "max-bandwidth", "10M", &err), 0);
	assert_int_equal(h->job.options.max_bandwidth, 10u << 20);
	assert_int_equal(ferry_rate_get(&h->job.rate), 10u << 20);
	assert_int_equal(ferry_job_set(&h->job, "downtime-limit", "4294967295", &err), 0);
	assert_int_equal(h->job.options.downtime_limit_ms, UINT32_MAX);
	for (i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
		assert_int_equal(ferry_job_set(&h->job, wrong[i].key, wrong[i].value, &err),
				 -EINVAL);
		assert_string_equal(err.text, wrong[i].text);
	}
	assert_int_equal(h->job.options.max_bandwidth, 10u << 20);
	assert_int_equal(h->job.options.downtime_limit_ms, UINT32_MAX);
	assert_int_equal(ferry_job_set(&h->job, "on-stall", "throttle", &err), 0);
	assert_int_equal(h->job.options.on_stall, FERRY_ON_STALL_THROTTLE);
	assert_int_equal(ferry_job_set(&h->job, "on-stall", "pray", &err), -EINVAL);
	assert_string_equal(err.text, "on-stall=pray: there are wait, throttle, postcopy and cancel");
	assert_int_equal(ferry_job_set(&h->job, "on-stall", "postcopy", &err), 0);
	assert_int_equal(h->job.options.on_stall, FERRY_ON_STALL_POSTCOPY);
	/* The destination has told that it cannot. */
	h->job.options.on_stall = FERRY_ON_STALL_THROTTLE;
	snprintf(h->job.cannot_postcopy, sizeof(h->job.cannot_postcopy), "no userfaultfd");
	assert_int_equal(ferry_job_set(&h->job, "on-stall", "postcopy", &err), -EOPNOTSUPP);
	assert_string_equal(err.text, "on-stall=postcopy: no userfaultfd");
	assert_int_equal(h->job.options.on_stall, FERRY_ON_STALL_THROTTLE);
	/* 0 takes the limit away. */
	assert_int_equal(ferry_job_set(&h->job, "max-bandwidth", "0", &err), 0);
	assert_int_equal(ferry_rate_get(&h->job.rate), 0);
}

static void postcopy(void **state)
{
	struct hooked *h = *state;
	struct ferry_error err;

	snprintf(h->job.cannot_postcopy, sizeof(h->job.cannot_postcopy), "no userfaultfd");
	assert_int_equal(ferry_job_postcopy(&h->job, &err), -EINVAL);
	assert_string_equal(err.text, "vm1 cannot switch to postcopy in state none, only in active "
				      "and pre-switchover");
	h->job.state = FERRY_STATE_ACTIVE;
	assert_int_equal(ferry_job_postcopy(&h->job, &err), -EOPNOTSUPP);
	assert_string_equal(err.text, "vm1 cannot switch to postcopy: no userfaultfd");
	assert_false(h->job.postcopy);
	h->job.can_postcopy = true;
	assert_int_equal(ferry_job_postcopy(&h->job, &err), 0);
	assert_true(h->job.postcopy);
	h->job.record.role = FERRY_ROLE_DESTINATION;
	assert_int_equal(ferry_job_postcopy(&h->job, &err), -EINVAL);
	assert_string_equal(err.text, "vm1 is the destination: the source switches to postcopy, type "
				      "it there");
}

static void paused(void **state)
{
	struct hooked *h = *state;
	struct ferry_error err;

	h->job.state = FERRY_STATE_POSTCOPY_ACTIVE;
	assert_int_equal(ferry_job_retry(&h->job, NULL, &err), -EINVAL);
	assert_string_equal(err.text, "vm1 is at work, its state is postcopy-active: there is nothing "
				      "to recover");
	assert_int_equal(ferry_job_leave(&h->job), -EINVAL);
	h->job.state = FERRY_STATE_POSTCOPY_PAUSED;
	assert_int_equal(ferry_job_retry(&h->job, "tcp:there:1", &err), 0);
	assert_true(h->job.retry);
	assert_string_equal(h->job.retry_uri, "tcp:there:1");
	assert_int_equal(ferry_job_retry(&h->job, NULL, &err), 0);
	assert_string_equal(h->job.retry_uri, "");
	/* What the running guest gets its memory from does not end by itself. */
	h->job.record.role = FERRY_ROLE_DESTINATION;
	assert_int_equal(ferry_job_leave(&h->job), -EINVAL);
	/* It listens elsewhere from then on. */
	assert_int_equal(ferry_job_retry(&h->job, "tcp:there:1", &err), 0);
	assert_string_equal(h->job.retry_uri, "tcp:there:1");
	h->job.record.role = FERRY_ROLE_SOURCE;
	assert_int_equal(ferry_job_leave(&h->job), 0);
	assert_true(h->job.leave);
}

/* A person cuts the link, and only a person mends it. */
static void cut(void **state)
{
	struct hooked *h = *state;
	struct ferry_error err;

	h->job.state = FERRY_STATE_ACTIVE;
	assert_int_equal(ferry_job_pause(&h->job, &err), -EINVAL);
	assert_string_equal(err.text, "vm1 cannot be paused in state active, only in postcopy-active "
				      "(in precopy: ferry cancel)");
	assert_false(ferry_job_held(&h->job));
	h->job.state = FERRY_STATE_POSTCOPY_ACTIVE;
	assert_int_equal(ferry_job_pause(&h->job, &err), 0);
	assert_true(ferry_job_held(&h->job));
	h->job.state = FERRY_STATE_POSTCOPY_PAUSED;
	assert_int_equal(ferry_job_pause(&h->job, &err), 0);
	assert_int_equal(ferry_job_retry(&h->job, NULL, &err), 0);
	assert_false(ferry_job_held(&h->job));
	h->job.record.role = FERRY_ROLE_DESTINATION;
	assert_int_equal(ferry_job_pause(&h->job, &err), -EINVAL);
	assert_string_equal(err.text, "vm1 is the destination: the source pauses, type it there");
}

static void sizes(void **state)
{
	static const struct {
		const char *text;
		uint64_t bytes;
	} good[] = {
		{ "0", 0 },
		{ "1", 1 },
		{ "4k", 4096 },
		{ "4K", 4096 },
		{ "100M", 100ull << 20 },
		{ "2g", 2ull << 30 },
		{ "3T", 3ull << 40 },
		{ "18446744073709551615", UINT64_MAX },
		{ "16777215T", 16777215ull << 40 },
	};
	static const char *const bad[] = {
		"",   "K",   "-1",  "+1",   " 1", "1 ", "1KB", "1KK", "0x10", "1.5M", "1e3", "10b",
		"1\n", "18446744073709551616", "16777216T", "99999999999999999999999",
	};
	uint64_t bytes;
	size_t i;

	(void)state;
	for (i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
		assert_int_equal(ferry_size_parse(good[i].text, &bytes), 0);
		assert_int_equal(bytes, good[i].bytes);
	}
	for (i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		bytes = 12345;
		assert_int_equal(ferry_size_parse(bad[i], &bytes), -EINVAL);
		assert_int_equal(bytes, 12345);
	}
}

static void places(void **state)
{
	(void)state;
	assert_string_equal(ferry_where_name(FERRY_WHERE_SOURCE), "source");
	assert_string_equal(ferry_where_name(FERRY_WHERE_DESTINATION), "destination");
	assert_string_equal(ferry_where_name(FERRY_WHERE_STOPPED), "stopped");
	assert_string_equal(ferry_where_name(FERRY_WHERE_UNKNOWN), "unknown");
	assert_string_equal(ferry_where_name(FERRY_WHERE_NONE), "none");
}

#define WITH_JOB(test) cmocka_unit_test_setup_teardown(test, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		WITH_JOB(moves),    WITH_JOB(phases),	       WITH_JOB(cancel_or_commit),
		WITH_JOB(cancel_first), WITH_JOB(cancel_after_the_end), WITH_JOB(races),
		WITH_JOB(going_on), WITH_JOB(waits),	       WITH_JOB(settings),
		WITH_JOB(postcopy), WITH_JOB(paused), WITH_JOB(cut),
		cmocka_unit_test(sizes), cmocka_unit_test(places),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
