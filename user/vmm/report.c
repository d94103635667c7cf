// SPDX-License-Identifier: GPL-2.0-or-later
/* What ferry-vmm prints of its guest: the work it does and the errors it finds. */
#include "vmm/vmm.h"

#include <stdio.h>
#include <time.h>
#include <unistd.h>

#define SECOND 1000000000ULL

/* Also how fast the time stamp counter runs: the payload measures gaps by it. */
void report_create(struct vmm *vmm)
{
	static const int signals[] = { SIGTERM, SIGINT, SIGUSR1, SIGUSR2 };
	uint64_t ns = vmm_now_ns(CLOCK_MONOTONIC), tsc = __builtin_ia32_rdtsc(), i;

	sigemptyset(&vmm->signals);
	for (i = 0; i < sizeof(signals) / sizeof(signals[0]); i++)
		sigaddset(&vmm->signals, signals[i]);
	pthread_sigmask(SIG_BLOCK, &vmm->signals, NULL);
	usleep(20000);
	vmm->start_ns = vmm_now_ns(CLOCK_MONOTONIC);
	vmm->tsc_khz = (uint32_t)((__builtin_ia32_rdtsc() - tsc) * 1000000 / (vmm->start_ns - ns));
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

struct sum { uint64_t work, gap, errors; }; /* gap: of the vCPU that stood still for longest */
static struct sum add_up(struct vmm *vmm)
{
	struct sum sum = { .errors = vmm->crashed };
	struct vcpu *vcpu = vmm->vcpu;

	for (; vcpu < vmm->vcpu + vmm->opt.vcpus && vmm->placed; vcpu++) {
		const struct payload_lane *lane = vcpu->lane;

		sum.work += lane->work;
		sum.errors += lane->errors;
		if (lane->tsc - lane->gap_end < lane->second && lane->gap > sum.gap)
			sum.gap = lane->gap;
		if (lane->errors == vcpu->told)
			continue;
		vcpu->told = lane->errors;
		fprintf(stderr, "ferry-vmm: vCPU %u found %llu errors, the first: %.8s %llu is %#llx, "
			"wanted %#llx\n", vcpu->number, (unsigned long long)lane->errors, lane->bad_what,
			(unsigned long long)lane->bad_page, (unsigned long long)lane->bad_found,
			(unsigned long long)lane->bad_wanted);
	}
	return sum;
}

static void report_work(struct vmm *vmm)
{
	uint64_t now = vmm_now_ns(CLOCK_MONOTONIC), rate = 0;
	struct sum sum = add_up(vmm);

	if (vmm->said_work || !vmm->opt.incoming) /* what was done elsewhere is no rate */
		rate = (sum.work - vmm->said_work) * 1000000 / ((now - vmm->said_ns) / 1000 + 1);
	SAY(vmm, "work", { "t_ms", (now - vmm->start_ns) / 1000000 }, { "work", sum.work },
	    { "rate", rate }, { "stalled_us", sum.gap * 1000 / vmm->tsc_khz },
	    { "throttle", vmm->throttle }, { "errors", sum.errors });
	vmm->said_work = sum.work;
	vmm->said_ns = now;
}

static void report_check(struct vmm *vmm)
{
	struct payload_lane *lanes[MAX_VCPUS];
	uint64_t checked = 0, bad;
	unsigned int i;

	for (i = 0; i < vmm->opt.vcpus; i++)
		lanes[i] = vmm->vcpu[i].lane;
	crew_pause(vmm, PAUSED_BY_CHECK);
	bad = payload_check(lanes, &vmm->host, vmm->ram_fd, &checked) + boot_check(vmm);
	vmm->bad += bad;
	SAY(vmm, "checked", { "pages", checked }, { "bad", bad }, { "errors", add_up(vmm).errors });
	crew_resume(vmm, PAUSED_BY_CHECK);
}

void report_loop(struct vmm *vmm)
{
	struct timespec tick = { 0 };
	uint64_t bytes = 0, i;
	int signum = 0;

	for (i = 0; i < vmm->opt.blocks; i++)
		bytes += vmm->opt.ram[i];
	vmm->said_work = add_up(vmm).work; /* which is what work is counted from */
	vmm->said_ns = vmm_now_ns(CLOCK_MONOTONIC);
	SAY(vmm, "start", { "vcpus", vmm->opt.vcpus }, { "ram_bytes", bytes },
	    { "pid", (uint64_t)getpid() });
	while (signum != SIGTERM && signum != SIGINT) {
		tick.tv_nsec = crew_tick(vmm) * 1000000L;
		signum = sigtimedwait(&vmm->signals, NULL, &tick);
		if (signum == SIGUSR2 || vmm_now_ns(CLOCK_MONOTONIC) - vmm->said_ns >= SECOND)
			report_work(vmm);
		if (signum == SIGUSR1 && vmm->placed)
			report_check(vmm);
	}
}

int report_end(struct vmm *vmm, bool check)
{
	struct sum sum;

	if (check)
		report_check(vmm);
	sum = add_up(vmm);
	vmm->bad += sum.errors;
	SAY(vmm, "end", { "work", sum.work }, { "errors", vmm->bad });
	return vmm->bad ? 1 : 0;
}
