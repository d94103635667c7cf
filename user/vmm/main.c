// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * ferry-vmm: a small VMM that can be migrated, to copy from and to test with.
 *
 * To copy: the port's callbacks, of a line or two each, and open_port(). crew.c, ram.c, kvm.c
 * and state.c show what they have to do; payload/ is the guest. Threads: this one prints and waits
 * for signals (report.c), one a vCPU (crew.c), and libferry's, for the callbacks.
 */
#include "vmm/vmm.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
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
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

/* ---- the port: what the agent may ask of this VMM */

static int port_pause(void *ctx)
{
	crew_pause(ctx, PAUSED_BY_PORT);
	return 0;
}

static int port_resume(void *ctx) /* or run, where it never did */
{
	crew_resume(ctx, PAUSED_BY_PORT);
	return 0;
}

static int port_running(void *ctx)
{
	return !(((struct vmm *)ctx)->paused & PAUSED_BY_PORT);
}

static void port_quit(void *ctx)
{
	struct vmm *vmm = ctx;

	vmm->quitting = true;
	kill(getpid(), SIGTERM); /* which ends report_loop() */
}

static int port_check(void *ctx)
{
	struct vmm *vmm = ctx;

	return vmm->crashed ? vmm_error(vmm, EIO, "a vCPU has crashed: end this ferry-vmm") : 0;
}

static int port_direct_io(void *ctx, char *why, size_t why_bytes)
{
	(void)ctx, (void)why, (void)why_bytes;
	return 0; /* there is no device at all */
}

/* A throttled vCPU runs in slices, which crew_tick() ends. */
static int port_throttle(void *ctx, unsigned int percent)
{
	((struct vmm *)ctx)->throttle = percent;
	return 0;
}

static int open_port(struct vmm *vmm)
{
	struct ferry_port_ops ops = {
		.struct_size = sizeof(ops), .save = state_save, .load = state_load,
		.kind = vmm->opt.threads ? "ferry-vmm-threads/1" : "ferry-vmm-kvm/3",
		.pause = port_pause, .resume = port_resume, .running = port_running, .run = port_resume,
		.quit = port_quit, .check = port_check, .direct_io = port_direct_io,
		.throttle = port_throttle, .adopt = vmm->opt.adopt ? ram_adopt : NULL,
	};
	unsigned int flags = vmm->opt.incoming ? FERRY_PORT_INCOMING : 0, i;
	const char *given = getenv("FERRY_PORT_FD"); /* by ferry cpr --exec */
	int r;

	if (vmm->opt.log != LOG_NONE) {
		ops.dirty_start = kvm_dirty_start;
		ops.dirty_stop = kvm_dirty_stop;
		ops.dirty_sync = kvm_dirty_sync;
		flags |= FERRY_PORT_LOG_PROCESS; /* nobody here writes guest RAM but KVM */
	}
	r = ferry_port_create(&ops, vmm, flags, &vmm->port);
	for (i = 0; i < vmm->opt.blocks && !r && !vmm->opt.adopt; i++) {
		struct ferry_port_ram ram = {
			.struct_size = sizeof(ram), .name = ram_names[i], .fd = vmm->ram_fd[i],
			.bytes = vmm->opt.ram[i], .addr = (void *)(uintptr_t)vmm->host.block[i].addr,
		};

		r = ferry_port_add_ram(vmm->port, &ram);
	}
	if (!r)
		r = given ? ferry_port_listen_fd(vmm->port, atoi(given)) :
			    ferry_port_listen(vmm->port, vmm->opt.port);
	if (!r)
		r = ferry_port_start(vmm->port);
	return r ? vmm_error(vmm, -r, "cannot serve --port %s: %m", vmm->opt.port) : 0;
}

/* ---- the rest of its life */

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

static int set_up(struct vmm *vmm)
{
	bool fresh = !vmm->opt.incoming && !vmm->opt.load;
	unsigned int i;
	int r = ram_create(vmm);

	for (i = 0; i < vmm->opt.vcpus; i++)
		vmm->vcpu[i] = (struct vcpu){ .vmm = vmm, .number = i };
	if (!r)
		r = boot_lay_out(vmm);
	if (!r && fresh)
		r = boot_fill(vmm);
	if (!r)
		r = kvm_create(vmm);
	if (!r && fresh)
		r = boot_start(vmm);
	if (!r && vmm->opt.load)
		r = state_file(vmm, vmm->opt.load, O_RDONLY, state_load);
	if (!r)
		r = crew_create(vmm);
	if (!r && !vmm->opt.incoming)
		crew_resume(vmm, PAUSED_BY_PORT);
	return r || !vmm->opt.port ? r : open_port(vmm);
}

int main(int argc, char **argv)
{
	/* Not on the stack: the vCPUs' threads, which end, may look at it after the last line here. */
	static struct vmm vmm = { .paused = PAUSED_BY_PORT, .lock = PTHREAD_MUTEX_INITIALIZER,
		.changed = PTHREAD_COND_INITIALIZER, .ring_lock = PTHREAD_MUTEX_INITIALIZER };
	bool ours;
	int status;

	vmm.opt = options_parse(argc, argv);
	report_create(&vmm);
	if (set_up(&vmm))
		return 1;
	report_loop(&vmm);
	crew_pause(&vmm, PAUSED_TO_END);
	ours = vmm.placed && !vmm.quitting;
	if (ours && vmm.opt.save)
		vmm.bad += state_file(&vmm, vmm.opt.save, O_WRONLY | O_CREAT | O_TRUNC, state_save) < 0;
	status = report_end(&vmm, ours && !vmm.opt.save); /* its pages may have yet to come, by: */
	ferry_port_destroy(vmm.port);
	return status;
}
