// SPDX-License-Identifier: GPL-2.0-or-later
/* What ferry-vmm prints of its guest: the work it does and the errors it finds. */
#include "vmm/vmm.h"

#include <stdio.h>
#include <time.h>
#include <unistd.h>

/* How fast the time stamp counter runs: the payload measures gaps by it. */
uint32_t report_tsc_khz(void)
{
	uint64_t ns = vmm_now_ns(CLOCK_MONOTONIC), tsc = __builtin_ia32_rdtsc();

	usleep(20000);
	return (uint32_t)((__builtin_ia32_rdtsc() - tsc) * 1000000 /
			  (vmm_now_ns(CLOCK_MONOTONIC) - ns));
}

/* One line: words for people, or an object for programs, of the same names and values. */
struct field { const char *name; uint64_t value; };
#define SAY(vmm, event, ...) say(vmm, event, (const struct field[]){ __VA_ARGS__, { NULL, 0 } })
static void say(const struct vmm *vmm, const char *event, const struct field *field)
{
	const char *state = !vmm->placed ? "incoming" : vmm->paused ? "paused" : "running";

	printf(vmm->opt.json ? "{\"event\":\"%s\",\"state\":\"%s\"" : "%s state=%s", event, state);
	for (; field->name; field++)
		printf(vmm->opt.json ? ",\"%s\":%llu" : " %s=%llu", field->name,
		       (unsigned long long)field->value);
	puts(vmm->opt.json ? "}" : "");
	fflush(stdout);
}

/* The first errors of each vCPU are told when there are more than before. Return: all of them. */
static uint64_t count_errors(struct vmm *vmm)
{
	uint64_t errors = vmm->crashed;
	unsigned int i;

	for (i = 0; i < vmm->opt.vcpus && vmm->placed; i++)
		errors += vmm->vcpu[i].lane->errors;
	for (i = 0; i < vmm->opt.vcpus && vmm->placed && errors > vmm->last.errors; i++) {
		const struct payload_lane *lane = vmm->vcpu[i].lane;

		if (lane->errors)
			fprintf(stderr, "ferry-vmm: vCPU %u found %llu errors, the first: %.8s "
				"%llu is %#llx, wanted %#llx\n", i, (unsigned long long)lane->errors, lane->bad_what,
				(unsigned long long)lane->bad_page,
				(unsigned long long)lane->bad_found,
				(unsigned long long)lane->bad_wanted);
	}
	vmm->last.errors = errors;
	return errors;
}

/* Work since the last line, and how long the unluckiest vCPU stood still meanwhile. */
void report_work(struct vmm *vmm, bool print)
{
	uint64_t now = vmm_now_ns(CLOCK_MONOTONIC), work = 0, gap = 0, rate = 0;
	unsigned int i;

	for (i = 0; i < vmm->opt.vcpus && vmm->placed; i++) {
		const struct payload_lane *lane = vmm->vcpu[i].lane;

		work += lane->work;
		if (lane->tsc - lane->gap_end < lane->second && lane->gap > gap)
			gap = lane->gap;
	}
	if (vmm->last.work || !vmm->opt.incoming) /* what was done elsewhere is no rate */
		rate = (work - vmm->last.work) * 1000000 / ((now - vmm->last.ns) / 1000 + 1);
	if (print)
		SAY(vmm, "work", { "t_ms", (now - vmm->last.start_ns) / 1000000 }, { "work", work },
		    { "rate", rate }, { "stalled_us", gap * 1000 / vmm->tsc_khz },
		    { "throttle", vmm->throttle }, { "errors", count_errors(vmm) });
	vmm->last.work = work;
	vmm->last.ns = now;
}

uint64_t report_check(struct vmm *vmm)
{
	struct payload_lane *lanes[MAX_VCPUS];
	uint64_t checked = 0, bad;
	unsigned int i;

	for (i = 0; i < vmm->opt.vcpus; i++)
		lanes[i] = vmm->vcpu[i].lane;
	crew_pause(vmm, PAUSED_BY_CHECK);
	bad = payload_check(lanes, &vmm->host, vmm->ram_fd, &checked);
	if (vmm->engine->check)
		bad += vmm->engine->check(vmm);
	SAY(vmm, "checked", { "pages", checked }, { "bad", bad }, { "errors", count_errors(vmm) });
	crew_resume(vmm, PAUSED_BY_CHECK);
	return bad;
}

void report_start(struct vmm *vmm)
{
	report_work(vmm, false); /* which is what work is counted from */
	SAY(vmm, "start", { "vcpus", vmm->opt.vcpus }, { "ram_bytes", vmm->pages * PAYLOAD_PAGE },
	    { "pid", (uint64_t)getpid() });
}

uint64_t report_end(struct vmm *vmm, uint64_t bad)
{
	report_work(vmm, false);
	bad += count_errors(vmm);
	SAY(vmm, "end", { "work", vmm->last.work }, { "errors", bad });
	return bad;
}
