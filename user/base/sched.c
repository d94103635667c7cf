// SPDX-License-Identifier: GPL-2.0-or-later
#include "base/sched.h"

#include <errno.h>
#include <sched.h>
#include <stdint.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/log.h"

/* The least the kernel gives. What is done for a page takes a tenth of it. */
#define TURN_NS 100000u

/* struct sched_attr, which not every libc has. */
struct attr {
	uint32_t size;
	uint32_t policy;
	uint64_t flags;
	int32_t nice;
	uint32_t priority;
	uint64_t runtime_ns; /* a turn, under SCHED_OTHER */
	uint64_t deadline_ns;
	uint64_t period_ns;
};
_Static_assert(sizeof(struct attr) == 48, "the first published size");

void ferry_sched_prompt(void)
{
	struct attr attr = {
		.size = sizeof(attr),
		.policy = SCHED_OTHER,
		.runtime_ns = TURN_NS,
	};

	/* Whatever a person has chosen for ferry stays. */
	if (sched_getscheduler(0) != SCHED_OTHER)
		return;
	attr.nice = getpriority(PRIO_PROCESS, 0);
	if (syscall(SYS_sched_setattr, 0, &attr, 0))
		ferry_log_debug("short turns: %s", strerror(errno));
}
