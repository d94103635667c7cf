// SPDX-License-Identifier: GPL-2.0-or-later
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/sched.h"

struct attr {
	uint32_t size, policy;
	uint64_t flags;
	int32_t nice;
	uint32_t priority;
	uint64_t runtime_ns, deadline_ns, period_ns;
};

struct seen {
	int nice;   /* to have before */
	int policy; /* likewise */
	bool refused;
	struct attr attr;
};

static void *look(void *arg)
{
	const struct sched_param first = { .sched_priority = 1 };
	struct seen *seen = arg;

	setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), seen->nice);
	if (seen->policy == SCHED_FIFO)
		seen->refused = sched_setscheduler(0, SCHED_FIFO, &first) != 0;
	ferry_sched_prompt();
	syscall(SYS_sched_getattr, 0, &seen->attr, sizeof(seen->attr), 0);
	return NULL;
}

static void in_thread(struct seen *seen)
{
	pthread_t thread;

	assert_int_equal(pthread_create(&thread, NULL, look, seen), 0);
	pthread_join(thread, NULL);
}

static void short_turns(void **state)
{
	struct seen seen = { .nice = 5 };

	(void)state;
	in_thread(&seen);
	assert_int_equal(seen.attr.policy, SCHED_OTHER);
	assert_int_equal(seen.attr.nice, 5);
	if (!seen.attr.runtime_ns) {
		print_message("SKIP: this kernel (before 6.12) has no turns of a chosen length\n");
		skip();
	}
	assert_int_equal(seen.attr.runtime_ns, 100000);
}

/* What a person has chosen for ferry stays. */
static void real_time(void **state)
{
	struct seen seen = { .policy = SCHED_FIFO };

	(void)state;
	in_thread(&seen);
	if (seen.refused) {
		print_message("SKIP: no right to be real-time\n");
		skip();
	}
	assert_int_equal(seen.attr.policy, SCHED_FIFO);
	assert_int_equal(seen.attr.priority, 1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(short_turns),
		cmocka_unit_test(real_time),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
