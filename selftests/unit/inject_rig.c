// SPDX-License-Identifier: GPL-2.0-or-later
#include "inject_rig.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "inject/tracer.h"

#define ALIVE_MS 3000

const uint64_t rig_no_args[6];
int rig_steps_left;

struct ferry_inject *rig_open(pid_t pid)
{
	struct ferry_error err = { 0 };
	struct ferry_inject *inj;
	int rc = ferry_inject_open(pid, &inj, &err);

	if (rc)
		fail_msg("open: %d %s", rc, err.text);
	return inj;
}

int64_t rig_call(struct ferry_inject *inj, long nr, const uint64_t *args)
{
	struct ferry_error err = { 0 };
	int64_t result = -1;
	int rc = ferry_inject_syscall(inj, nr, args, &result, &err);

	if (rc)
		fail_msg("call %ld: %d %s", nr, rc, err.text);
	return result;
}

void rig_assert_alive(struct target *t)
{
	int rc = target_alive(t, ALIVE_MS);

	if (rc)
		fail_msg("%s: %s (%s)", target_name(t->kind), strerror(-rc), t->report->what);
}

void rig_assert_untraced(pid_t pid)
{
	char value[32];

	assert_int_equal(ferry_tracer_task_field(pid, pid, "TracerPid:", value, sizeof(value)), 0);
	assert_string_equal(value, "0");
}

pid_t rig_start_child(void (*body)(void *), void *arg)
{
	pid_t pid = fork();

	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		body(arg);
		for (;;)
			pause();
	}
	assert_true(pid > 0);
	return pid;
}

void rig_end_child(pid_t pid)
{
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
}

void rig_wait_state(pid_t pid, char state)
{
	uint64_t deadline_ns = ferry_clock_in_ms(ALIVE_MS);
	char value[32] = "";

	while (!ferry_tracer_task_field(pid, pid, "State:", value, sizeof(value)) &&
	       value[0] != state) {
		if (ferry_clock_ns() > deadline_ns)
			fail_msg("state of %d is %s, not %c", pid, value, state);
		ferry_clock_sleep_ns(100000);
	}
}

int rig_count_down(void)
{
	return --rig_steps_left < 0;
}

int rig_no_probe(void **state)
{
	(void)state;
	ferry_tracer_probe = NULL;
	return 0;
}
