// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * ferry-vmm: a small VMM that can be migrated, to copy from and to test with.
 *
 * To copy: the port's callbacks, of a line or two each, and open_port(). kvm.c and state.c
 * show what they have to do. Threads: this one prints and waits for signals, one a vCPU
 * (crew.c), and libferry's, which calls the callbacks.
 */
#include "include/ferry.h"
#include "vmm/vmm.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>
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

static int port_resume(void *ctx)
{
	crew_resume(ctx, PAUSED_BY_PORT);
	return 0;
}

static int port_running(void *ctx)
{
	struct vmm *vmm = ctx;

	return !(vmm->paused & PAUSED_BY_PORT);
}

static int port_save(void *ctx, int fd)
{
	struct vmm *vmm = ctx;

	return vmm->engine->save(vmm, fd);
}

static int port_load(void *ctx, int fd)
{
	struct vmm *vmm = ctx;

	return vmm->engine->load(vmm, fd);
}

static int port_run(void *ctx)
{
	struct vmm *vmm = ctx;

	crew_resume(vmm, PAUSED_BY_PORT);
	vmm->placed = true; /* from now on its pages may be looked at: they are, or will come */
	return 0;
}

static void port_quit(void *ctx)
{
	struct vmm *vmm = ctx;

	vmm->quitting = true;
	kill(getpid(), SIGTERM); /* which ends main_loop() */
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

static int port_dirty_start(void *ctx)
{
	struct vmm *vmm = ctx;

	return vmm->engine->dirty_log(vmm, true);
}

static void port_dirty_stop(void *ctx)
{
	struct vmm *vmm = ctx;

	vmm->engine->dirty_log(vmm, false);
}

static int port_dirty_sync(void *ctx, const char *name, uint64_t *bitmap, uint64_t pages)
{
	struct vmm *vmm = ctx;
	unsigned int i = (unsigned int)(name[3] - '0'); /* ram0, ram1, ... */

	if (i >= vmm->opt.blocks || pages != vmm->host.block[i].pages)
		return -ENOENT;
	return vmm->engine->dirty_sync(vmm, i, bitmap);
}

/* A throttled vCPU runs in slices, which the timer of main_loop() ends. */
static int port_throttle(void *ctx, unsigned int percent)
{
	struct itimerspec slice = { { 0, 5000000 }, { 0, 5000000 } }, second = { { 1, 0 }, { 1, 0 } };
	struct vmm *vmm = ctx;

	vmm->throttle = percent;
	return timerfd_settime(vmm->timer, 0, percent ? &slice : &second, NULL) ? -errno : 0;
}

static int port_adopt(void *ctx, struct ferry_port_ram *ram)
{
	return ram_adopt(ctx, ram->name, ram->fd, ram->fd_offset, ram->bytes, &ram->addr);
}

static int open_port(struct vmm *vmm)
{
	struct ferry_port_ops ops = {
		.struct_size = sizeof(ops), .kind = vmm->engine->kind,
		.pause = port_pause, .resume = port_resume, .running = port_running,
		.save = port_save, .load = port_load, .run = port_run, .quit = port_quit,
		.check = port_check, .direct_io = port_direct_io, .throttle = port_throttle,
	};
	unsigned int flags = vmm->opt.incoming ? FERRY_PORT_INCOMING : 0, i;
	const char *given = getenv("FERRY_PORT_FD"); /* by ferry cpr --exec */
	int r;

	if (vmm->opt.log != LOG_NONE) {
		ops.dirty_start = port_dirty_start;
		ops.dirty_stop = port_dirty_stop;
		ops.dirty_sync = port_dirty_sync;
		flags |= FERRY_PORT_LOG_PROCESS; /* nobody here writes guest RAM but KVM */
	}
	if (vmm->opt.adopt)
		ops.adopt = port_adopt;
	r = ferry_port_create(&ops, vmm, flags, &vmm->port);
	for (i = 0; i < vmm->opt.blocks && !r && !vmm->opt.adopt; i++) {
		char name[] = { 'r', 'a', 'm', (char)('0' + i), '\0' };
		struct ferry_port_ram ram = {
			.struct_size = sizeof(ram), .name = name, .fd = vmm->ram_fd[i],
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
static int state_file(struct vmm *vmm, const char *path, int flags, int (*what)(struct vmm *, int))
{
	int fd = open(path, flags | O_CLOEXEC, 0600), r;

	if (fd < 0)
		return vmm_error(vmm, errno, "cannot open the device state %s: %m", path);
	crew_pause(vmm, PAUSED_BY_CHECK);
	r = what(vmm, fd);
	close(fd);
	crew_resume(vmm, PAUSED_BY_CHECK);
	return r;
}

/* Until a signal ends it. Return: the exit status. */
static int main_loop(struct vmm *vmm, int signals)
{
	struct pollfd fds[] = { { .fd = signals, .events = POLLIN },
				{ .fd = vmm->timer, .events = POLLIN } };
	struct signalfd_siginfo got = { 0 };
	uint64_t ticks, bad = 0;

	while (got.ssi_signo != SIGTERM && got.ssi_signo != SIGINT) {
		poll(fds, 2, -1);
		if (fds[1].revents && read(vmm->timer, &ticks, sizeof(ticks)) > 0) {
			if (vmm->throttle)
				crew_kick(vmm);
			if (!vmm->throttle ||
			    vmm_now_ns(CLOCK_MONOTONIC) - vmm->last.ns >= 1000000000)
				report_work(vmm, true);
		}
		if (!fds[0].revents || read(signals, &got, sizeof(got)) <= 0)
			continue;
		if (got.ssi_signo == SIGUSR2)
			report_work(vmm, true);
		else if (got.ssi_signo == SIGUSR1 && vmm->placed)
			bad += report_check(vmm);
	}
	crew_pause(vmm, PAUSED_TO_END);
	if (vmm->placed && !vmm->quitting && vmm->opt.save)
		bad += state_file(vmm, vmm->opt.save, O_WRONLY | O_CREAT | O_TRUNC,
				  vmm->engine->save) < 0;
	else if (vmm->placed && !vmm->quitting)
		bad += report_check(vmm);
	ferry_port_destroy(vmm->port);
	return report_end(vmm, bad) ? 1 : 0;
}

static int set_up(struct vmm *vmm)
{
	bool fresh = !vmm->opt.incoming && !vmm->opt.load;
	int r = ram_create(vmm);

	if (!r && fresh)
		r = ram_fill(vmm);
	if (!r)
		r = vmm->engine->create(vmm);
	if (!r && fresh && vmm->engine->start)
		r = vmm->engine->start(vmm);
	if (!r && vmm->opt.load)
		r = state_file(vmm, vmm->opt.load, O_RDONLY, vmm->engine->load);
	if (!r)
		r = crew_create(vmm);
	if (r)
		return r;
	vmm->placed = !vmm->opt.incoming;
	if (vmm->placed)
		crew_resume(vmm, PAUSED_BY_PORT);
	return vmm->opt.port ? open_port(vmm) : 0;
}

int main(int argc, char **argv)
{
	struct vmm vmm = { .paused = PAUSED_BY_PORT, .lock = PTHREAD_MUTEX_INITIALIZER,
			   .ring_lock = PTHREAD_MUTEX_INITIALIZER };
	static const int watched[] = { SIGTERM, SIGINT, SIGUSR1, SIGUSR2 };
	sigset_t set;
	int signals;
	size_t i;

	vmm.opt = options_parse(argc, argv);
	vmm.engine = vmm.opt.threads ? &engine_threads : &engine_kvm;
	sigemptyset(&set);
	for (i = 0; i < sizeof(watched) / sizeof(watched[0]); i++)
		sigaddset(&set, watched[i]);
	pthread_sigmask(SIG_BLOCK, &set, NULL); /* before there are threads */
	signals = signalfd(-1, &set, SFD_CLOEXEC);
	vmm.timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
	vmm.tsc_khz = report_tsc_khz();
	vmm.last.start_ns = vmm_now_ns(CLOCK_MONOTONIC);
	if (signals < 0 || vmm.timer < 0 || port_throttle(&vmm, 0) || set_up(&vmm))
		return 1;
	report_start(&vmm);
	return main_loop(&vmm, signals);
}
