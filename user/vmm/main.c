// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * ferry-vmm: a small VMM that can be migrated, to copy from and to test with. To copy: port.c.
 * crew.c, kvm.c and state.c show what its callbacks have to do; payload/ is the guest.
 *
 * Threads: this one prints and waits for signals, one a vCPU (crew.c), libferry's for callbacks.
 */
#include "vmm/vmm.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

int vmm_error(struct vmm *vmm, int errnum, const char *fmt, ...)
{
	char text[512];
	va_list args;

	va_start(args, fmt);
	errno = errnum;
	vsnprintf(text, sizeof(text), fmt, args);
	va_end(args);
	fprintf(stderr, "ferry-vmm: %s\n", text);
	if (vmm->port)
		ferry_port_set_error(vmm->port, "%s", text);
	return -errnum;
}

uint64_t vmm_now_ns(int clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return (uint64_t)t.tv_sec * SECOND + (uint64_t)t.tv_nsec;
}

int main(int argc, char **argv)
{
	/* Not on the stack: the vCPUs' threads, which end, may look at it after the last line. */
	static struct vmm vmm = { .paused = PAUSED_BY_PORT, .lock = PTHREAD_MUTEX_INITIALIZER,
		.changed = PTHREAD_COND_INITIALIZER, .ring_lock = PTHREAD_MUTEX_INITIALIZER };
	struct timespec tick = { 0 };
	int signum = 0;
	sigset_t signals;

	vmm.opt = options_parse(argc, argv);
	sigemptyset(&signals);
	sigaddset(&signals, SIGTERM);
	sigaddset(&signals, SIGINT);
	sigaddset(&signals, SIGUSR1);
	sigaddset(&signals, SIGUSR2);
	pthread_sigmask(SIG_BLOCK, &signals, NULL); /* also in the threads to come */
	if (port_create_ram(&vmm) || boot_lay_out(&vmm) || (!vmm.opt.threads && kvm_create(&vmm)) ||
	    (!vmm.opt.incoming && boot_start(&vmm)) || crew_create(&vmm))
		return 1;
	if (!vmm.opt.incoming)
		crew_resume(&vmm, PAUSED_BY_PORT);
	if (vmm.opt.port && port_create(&vmm))
		return 1;
	report_start(&vmm);
	while (signum != SIGTERM && signum != SIGINT) {
		tick.tv_nsec = crew_tick(&vmm) * 1000000L;
		signum = sigtimedwait(&signals, NULL, &tick);
		if (signum == SIGUSR2 || vmm_now_ns(CLOCK_MONOTONIC) - vmm.told_ns >= SECOND)
			report_work(&vmm);
		if (signum == SIGUSR1 && vmm.placed)
			report_check(&vmm);
	}
	crew_pause(&vmm, PAUSED_TO_END);
	if (vmm.placed && !(vmm.paused & PAUSED_BY_PORT)) /* else pages may be elsewhere */
		report_check(&vmm);
	ferry_port_destroy(vmm.port);
	return report_end(&vmm);
}
