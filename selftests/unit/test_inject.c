// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Remote system calls leave no trace. Every kind of target is tried with a tracer that lives
 * and, by the probe, with one that goes away at each of its steps; selftests/inject/kill_sweep
 * really kills it. And targets that stand still: stopped, or not to be stopped.
 */
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "inject/tracer.h"
#include "inject_rig.h"

#define CALLS 500

static void test_transparent(void **state)
{
	enum target_kind kind;

	(void)state;
	for (kind = 0; kind < TARGET_KINDS; kind++) {
		struct ferry_inject *inj;
		struct target t;
		uint64_t start;
		int i;

		assert_int_equal(target_start(&t, kind), 0);
		inj = rig_open(t.pid);
		rig_assert_alive(&t);
		start = ferry_clock_ns();
		for (i = 0; i < CALLS; i++) {
			assert_int_equal(rig_call(inj, SYS_getpid, rig_no_args), t.pid);
			if (i % 50 == 0)
				rig_assert_alive(&t);
		}
		print_message("%s: %llu us a call, %llu loops, %llu signals\n", target_name(kind),
			      (unsigned long long)((ferry_clock_ns() - start) / CALLS / 1000),
			      (unsigned long long)t.report->loops,
			      (unsigned long long)t.report->signals);
		rig_assert_alive(&t);
		rig_assert_untraced(t.pid);
		ferry_inject_close(inj);
		target_stop(&t);
	}
}

/* Goes away at step 0, 1, 2, ... until a call gets through. Return: the steps. */
static int sweep(struct ferry_inject *inj, struct target *t)
{
	struct ferry_error err;
	int64_t result;
	int step, rc;

	for (step = 0;; step++) {
		rig_steps_left = step;
		rc = ferry_inject_syscall(inj, SYS_getpid, rig_no_args, &result, &err);
		rig_assert_untraced(t->pid);
		if (rig_steps_left >= 0) {
			assert_int_equal(rc, 0);
			assert_int_equal(result, t->pid);
			return step;
		}
		/* At the very end the result had been seen already. */
		if (rc && rc != -EINTR)
			fail_msg("step %d: %d %s", step, rc, err.text);
		assert_true(step < 10000);
	}
}

static void test_abandoned(void **state)
{
	enum target_kind kind;

	(void)state;
	/* Not sigppoll: see the list in tracer.c of what dying can change. */
	for (kind = 0; kind < TARGET_SIGPPOLL; kind++) {
		struct ferry_inject *inj;
		struct target t;
		int round, steps = 0;

		assert_int_equal(target_start(&t, kind), 0);
		inj = rig_open(t.pid);
		rig_assert_alive(&t);
		ferry_tracer_probe = rig_count_down;
		for (round = 0; round < 10; round++) {
			steps += sweep(inj, &t);
			rig_assert_alive(&t);
		}
		ferry_tracer_probe = NULL;
		assert_true(steps > 100);
		print_message("%s: abandoned %d times, %llu loops, %llu signals\n",
			      target_name(kind), steps, (unsigned long long)t.report->loops,
			      (unsigned long long)t.report->signals);
		ferry_inject_close(inj);
		target_stop(&t);
	}
}

static void test_stopped_group(void **state)
{
	struct ferry_inject *inj;
	struct target t;

	(void)state;
	assert_int_equal(target_start(&t, TARGET_PIPE), 0);
	inj = rig_open(t.pid);
	kill(t.pid, SIGSTOP);
	rig_wait_state(t.pid, 'T');
	assert_int_equal(rig_call(inj, SYS_getpid, rig_no_args), t.pid);
	rig_wait_state(t.pid, 'T');
	assert_int_equal(target_alive(&t, 50), -ETIMEDOUT);
	kill(t.pid, SIGCONT);
	rig_assert_alive(&t);
	ferry_inject_close(inj);
	target_stop(&t);
}

/* --- a main thread that cannot be stopped --- */

struct vforking {
	int fds[2];
	int threads;
};

static void *wait_thread(void *arg)
{
	(void)arg;
	for (;;)
		pause();
	return NULL;
}

/* The parent of a vfork waits where only a fatal signal reaches it. */
static void vfork_body(void *arg)
{
	struct vforking *v = arg;
	pthread_t thread;
	char c;

	if (v->threads)
		pthread_create(&thread, NULL, wait_thread, NULL);
	if (write(v->fds[1], "x", 1) != 1)
		_exit(8);
	if (!syscall(SYS_vfork)) {
		syscall(SYS_prctl, PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
		syscall(SYS_read, v->fds[0], &c, 1);
		syscall(SYS_exit, 0);
	}
	_exit(33);
}

static void run_unstoppable(int threads, int want)
{
	struct vforking v = { .threads = threads };
	struct ferry_error err = { 0 };
	struct ferry_inject *inj;
	int64_t result = 0;
	int ready[2], rc, status;
	uint64_t start;
	pid_t pid;
	char c;

	assert_int_equal(pipe(v.fds), 0);
	assert_int_equal(pipe(ready), 0);
	{
		struct vforking there = { { v.fds[0], ready[1] }, threads };

		pid = rig_start_child(vfork_body, &there);
	}
	assert_int_equal(read(ready[0], &c, 1), 1);
	rig_wait_state(pid, 'D');
	inj = rig_open(pid);
	start = ferry_clock_ns();
	rc = ferry_inject_syscall(inj, SYS_getpid, rig_no_args, &result, &err);
	print_message("unstoppable main thread: %d after %llu ms\n", rc,
		      (unsigned long long)((ferry_clock_ns() - start) / 1000000));
	assert_int_equal(rc, want);
	if (want)
		assert_non_null(strstr(err.text, "could be stopped"));
	else
		assert_int_equal(result, pid);
	assert_true(ferry_clock_ns() - start < 6 * FERRY_NS_PER_S);
	rig_assert_untraced(pid);
	/* It goes on as if nobody had tried. */
	assert_int_equal(write(v.fds[1], "x", 1), 1);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 33);
	ferry_inject_close(inj);
	close(v.fds[0]);
	close(v.fds[1]);
	close(ready[0]);
	close(ready[1]);
}

static void test_unstoppable_other_thread(void **state)
{
	(void)state;
	run_unstoppable(1, 0);
}

static void test_unstoppable(void **state)
{
	(void)state;
	run_unstoppable(0, -ETIMEDOUT);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_transparent),
		cmocka_unit_test_teardown(test_abandoned, rig_no_probe),
		cmocka_unit_test(test_stopped_group),
		cmocka_unit_test(test_unstoppable_other_thread),
		cmocka_unit_test(test_unstoppable),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
