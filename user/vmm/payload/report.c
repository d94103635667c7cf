// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What is printed of the guest: the work its lanes did, and the errors that they and the checks
 * found. A line is what happened, how the guest is, and numbers with their names.
 */
#include "vmm/vmm.h"

#include <stdio.h>
#include <time.h>
#include <unistd.h>

static const char *state(const struct vmm *vmm)
{
	return !vmm->placed ? "incoming" : vmm->paused ? "paused" : "running";
}

struct sum { uint64_t work, stalled_us, errors; }; /* us of the vCPU that stood still for longest */

/* RAM that has not come yet is not looked at. */
static struct sum add_up(struct vmm *vmm)
{
	struct sum sum = { .errors = vmm->crashed };
	unsigned int i;

	for (i = 0; i < vmm->opt.vcpus && vmm->placed; i++) {
		const struct payload_lane *lane = vmm->vcpu[i].lane;
		uint64_t us = lane->gap / (lane->second / 1000000 + 1);

		sum.work += lane->work;
		sum.errors += lane->errors;
		if (lane->tsc - lane->gap_end < lane->second && us > sum.stalled_us)
			sum.stalled_us = us;
		if (lane->errors == vmm->vcpu[i].told_errors)
			continue;
		vmm->vcpu[i].told_errors = lane->errors;
		fprintf(stderr, "ferry-vmm: vCPU %u found %lu errors, the first: %.8s %lu is %#lx, "
			"wanted %#lx\n", i, lane->errors, lane->bad_what, lane->bad_page,
			lane->bad_found, lane->bad_wanted);
	}
	return sum;
}

void report_start(struct vmm *vmm)
{
	setlinebuf(stdout);
	vmm->start_ns = vmm->told_ns = vmm_now_ns(CLOCK_MONOTONIC);
	vmm->told_work = add_up(vmm).work; /* which is what work is counted from */
	printf("start state=%s vcpus=%lu pid=%d\n", state(vmm), vmm->opt.vcpus, getpid());
}

void report_work(struct vmm *vmm)
{
	uint64_t now = vmm_now_ns(CLOCK_MONOTONIC), rate = 0;
	struct sum sum = add_up(vmm);

	if (vmm->told_work || !vmm->opt.incoming) /* what was done elsewhere is no rate */
		rate = (sum.work - vmm->told_work) * 1000000 / ((now - vmm->told_ns) / 1000 + 1);
	printf("work state=%s t_ms=%lu work=%lu rate=%lu stalled_us=%lu throttle=%u errors=%lu\n",
	       state(vmm), (now - vmm->start_ns) / 1000000, sum.work, rate, sum.stalled_us,
	       vmm->throttle, sum.errors);
	vmm->told_work = sum.work;
	vmm->told_ns = now;
}

void report_check(struct vmm *vmm)
{
	uint64_t pages, bad;

	crew_pause(vmm, PAUSED_BY_CHECK);
	bad = payload_check(vmm->vcpu[0].lane, vmm->opt.vcpus, &vmm->host, vmm->ram_fd, &pages);
	bad += boot_check(vmm);
	vmm->bad += bad;
	printf("checked state=%s pages=%lu bad=%lu errors=%lu\n", state(vmm), pages, bad,
	       add_up(vmm).errors);
	crew_resume(vmm, PAUSED_BY_CHECK);
}

int report_end(struct vmm *vmm)
{
	struct sum sum = add_up(vmm);

	sum.errors += vmm->bad;
	printf("end state=%s work=%lu errors=%lu\n", state(vmm), sum.work, sum.errors);
	return sum.errors ? 1 : 0;
}
