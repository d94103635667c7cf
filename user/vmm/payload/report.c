// SPDX-License-Identifier: GPL-2.0-or-later
/* What ferry-vmm prints of its guest: the work it does and the errors it finds; its files. */
#include "vmm/vmm.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

/* Also how fast the time stamp counter runs: the payload measures gaps by it. */
int report_create(struct vmm *vmm)
{
	uint64_t ns = vmm_now_ns(CLOCK_MONOTONIC), tsc = __builtin_ia32_rdtsc();
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGUSR1);
	sigaddset(&set, SIGUSR2);
	pthread_sigmask(SIG_BLOCK, &set, NULL); /* before there are threads */
	vmm->report.signals = signalfd(-1, &set, SFD_CLOEXEC);
	usleep(20000);
	vmm->report.start_ns = vmm_now_ns(CLOCK_MONOTONIC);
	vmm->report.tsc_khz = (uint32_t)((__builtin_ia32_rdtsc() - tsc) * 1000000 /
					 (vmm->report.start_ns - ns));
	return vmm->report.signals < 0 ? vmm_error(vmm, errno, "cannot wait for signals: %m") : 0;
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
	for (i = 0; i < vmm->opt.vcpus && vmm->placed && errors > vmm->report.errors; i++) {
		const struct payload_lane *lane = vmm->vcpu[i].lane;

		if (lane->errors)
			fprintf(stderr, "ferry-vmm: vCPU %u found %llu errors, the first: %.8s "
				"%llu is %#llx, wanted %#llx\n", i, (unsigned long long)lane->errors, lane->bad_what,
				(unsigned long long)lane->bad_page,
				(unsigned long long)lane->bad_found,
				(unsigned long long)lane->bad_wanted);
	}
	vmm->report.errors = errors;
	return errors;
}

/* Work since the last line, and how long the unluckiest vCPU stood still meanwhile. */
static void report_work(struct vmm *vmm, bool print)
{
	uint64_t now = vmm_now_ns(CLOCK_MONOTONIC), work = 0, gap = 0, rate = 0;
	unsigned int i;

	for (i = 0; i < vmm->opt.vcpus && vmm->placed; i++) {
		const struct payload_lane *lane = vmm->vcpu[i].lane;

		work += lane->work;
		if (lane->tsc - lane->gap_end < lane->second && lane->gap > gap)
			gap = lane->gap;
	}
	if (vmm->report.work || !vmm->opt.incoming) /* what was done elsewhere is no rate */
		rate = (work - vmm->report.work) * 1000000 / ((now - vmm->report.ns) / 1000 + 1);
	if (print)
		SAY(vmm, "work", { "t_ms", (now - vmm->report.start_ns) / 1000000 }, { "work", work },
		    { "rate", rate }, { "stalled_us", gap * 1000 / vmm->report.tsc_khz },
		    { "throttle", vmm->throttle }, { "errors", count_errors(vmm) });
	vmm->report.work = work;
	vmm->report.ns = now;
}

static uint64_t report_check(struct vmm *vmm)
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

static void report_start(struct vmm *vmm)
{
	uint64_t bytes = 0;
	unsigned int i;

	report_work(vmm, false); /* which is what work is counted from */
	for (i = 0; i < vmm->opt.blocks; i++)
		bytes += vmm->opt.ram[i];
	SAY(vmm, "start", { "vcpus", vmm->opt.vcpus }, { "ram_bytes", bytes },
	    { "pid", (uint64_t)getpid() });
}

void report_loop(struct vmm *vmm)
{
	struct pollfd signals = { .fd = vmm->report.signals, .events = POLLIN };
	struct signalfd_siginfo got = { 0 };

	report_start(vmm);
	while (got.ssi_signo != SIGTERM && got.ssi_signo != SIGINT) {
		poll(&signals, 1, crew_tick(vmm));
		if (vmm_now_ns(CLOCK_MONOTONIC) - vmm->report.ns >= 1000000000)
			report_work(vmm, true);
		if (!signals.revents || read(signals.fd, &got, sizeof(got)) <= 0)
			continue;
		if (got.ssi_signo == SIGUSR2)
			report_work(vmm, true);
		else if (got.ssi_signo == SIGUSR1 && vmm->placed)
			vmm->report.bad += report_check(vmm);
	}
}

/* Device state to or from a file, beside RAM that is in files too. */
static int state_file(struct vmm *vmm, const char *path, int flags, int (*what)(void *, int))
{
	int fd = open(path, flags | O_CLOEXEC, 0600), r;

	if (fd < 0)
		return vmm_error(vmm, errno, "cannot open the device state %s: %m", path);
	r = what(vmm, fd);
	close(fd);
	return r;
}

int report_load(struct vmm *vmm)
{
	return state_file(vmm, vmm->opt.load, O_RDONLY, vmm->engine->port.load);
}

int report_end(struct vmm *vmm)
{
	if (vmm->placed && !vmm->quitting && vmm->opt.save)
		vmm->report.bad += state_file(vmm, vmm->opt.save, O_WRONLY | O_CREAT | O_TRUNC,
					      vmm->engine->port.save) < 0;
	else if (vmm->placed && !vmm->quitting)
		vmm->report.bad += report_check(vmm);
	report_work(vmm, false);
	vmm->report.bad += count_errors(vmm);
	SAY(vmm, "end", { "work", vmm->report.work }, { "errors", vmm->report.bad });
	return vmm->report.bad ? 1 : 0;
}
