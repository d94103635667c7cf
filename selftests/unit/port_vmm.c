// SPDX-License-Identifier: GPL-2.0-or-later
#include "port_vmm.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define HALF (PORT_VMM_BYTES / 2)

static int no_int(void *ctx)
{
	(void)ctx;
	return 0;
}

static int no_state(void *ctx, int fd)
{
	(void)ctx;
	(void)fd;
	return 0;
}

static void no_void(void *ctx)
{
	(void)ctx;
}

const struct ferry_port_ops port_idle_ops = {
	.struct_size = sizeof(port_idle_ops), .kind = "x/1", .pause = no_int, .resume = no_int,
	.running = no_int, .save = no_state, .load = no_state, .run = no_int, .quit = no_void,
};

static unsigned int vmm_flags;

static int called(struct port_vmm *v, const char *name)
{
	snprintf(v->calls + strlen(v->calls), sizeof(v->calls) - strlen(v->calls), "%s ", name);
	if (strcmp(v->fail, name))
		return 0;
	ferry_port_set_error(v->port, "%s was told to fail", name);
	return -EIO;
}

static int vmm_pause(void *ctx)
{
	struct port_vmm *v = ctx;
	int r = called(v, "pause");

	if (!r)
		v->running = 0;
	return r;
}

static int vmm_resume(void *ctx)
{
	struct port_vmm *v = ctx;
	int r = called(v, "resume");

	if (!r)
		v->running = 1;
	return r;
}

static int vmm_running(void *ctx)
{
	struct port_vmm *v = ctx;

	return strcmp(v->fail, "running") ? v->running : -EIO;
}

static int vmm_save(void *ctx, int fd)
{
	struct port_vmm *v = ctx;
	int r = called(v, "save");

	while (vmm_flags & PORT_VMM_HANGS)
		pause();
	if (!r && write(fd, &v->state, sizeof(v->state)) != sizeof(v->state))
		r = -EIO;
	if (!r && v->state_extra && ftruncate(fd, (off_t)(sizeof(v->state) + v->state_extra)))
		r = -EIO;
	return r;
}

static int vmm_load(void *ctx, int fd)
{
	struct port_vmm *v = ctx;
	int r = called(v, "load");

	if (!r && read(fd, &v->state, sizeof(v->state)) != sizeof(v->state))
		r = -EPROTO;
	return r;
}

static int vmm_run(void *ctx)
{
	struct port_vmm *v = ctx;
	int r = called(v, "run");

	if (!r)
		v->running = 1;
	return r;
}

static void vmm_quit(void *ctx)
{
	struct port_vmm *v = ctx;

	called(v, "quit");
	if (v->pid && !(vmm_flags & PORT_VMM_STAYS))
		_exit(0);
}

static int vmm_check(void *ctx)
{
	return called(ctx, "check");
}

static int vmm_direct_io(void *ctx, char *why, size_t why_bytes)
{
	struct port_vmm *v = ctx;

	snprintf(why, why_bytes, "disk\t0");
	return v->direct;
}

static int vmm_dirty_start(void *ctx)
{
	struct port_vmm *v = ctx;
	int r = called(v, "log");

	v->logging = !r;
	return r;
}

static void vmm_dirty_stop(void *ctx)
{
	struct port_vmm *v = ctx;

	called(v, "unlog");
	v->logging = false;
}

/* "low": pages 0, 1 and 127; "high": none, and one past its end. */
static int vmm_dirty_sync(void *ctx, const char *name, uint64_t *bitmap, uint64_t pages)
{
	struct port_vmm *v = ctx;

	if (bitmap[0] || bitmap[1] || pages != PORT_VMM_PAGES / 2)
		return -EPROTO;
	if (!strcmp(name, "low")) {
		bitmap[0] = 3;
		bitmap[1] = 1ull << 63;
	}
	return called(v, "sync");
}

static int vmm_throttle(void *ctx, unsigned int percent)
{
	struct port_vmm *v = ctx;

	v->percent = (int)percent;
	return called(v, percent ? "throttle" : "unthrottle");
}

static int vmm_quiesce(void *ctx, int on)
{
	struct port_vmm *v = ctx;

	v->quiesced = on;
	return called(v, on ? "quiesce" : "unquiesce");
}

static int create_port(struct port_vmm *v, unsigned int flags)
{
	struct ferry_port_ops ops = {
		.struct_size = sizeof(ops), .kind = "test/1",
		.pause = vmm_pause, .resume = vmm_resume, .save = vmm_save, .load = vmm_load,
		.run = vmm_run,
	};

	if (!(flags & PORT_VMM_BARE)) {
		ops.running = vmm_running;
		ops.quit = vmm_quit;
		ops.check = vmm_check;
		ops.direct_io = vmm_direct_io;
		ops.throttle = vmm_throttle;
		ops.quiesce = vmm_quiesce;
	}
	if (flags & PORT_VMM_LOG) {
		ops.dirty_start = vmm_dirty_start;
		ops.dirty_stop = vmm_dirty_stop;
		ops.dirty_sync = vmm_dirty_sync;
	}
	return ferry_port_create(&ops, v, flags & 0xff, &v->port);
}

static int add_ram(struct port_vmm *v)
{
	struct ferry_port_ram ram = { .struct_size = sizeof(ram), .name = "low", .fd = v->fd,
				      .bytes = HALF, .addr = v->ram };
	int r = ferry_port_add_ram(v->port, &ram);

	ram.name = "high";
	ram.fd_offset = HALF;
	ram.addr = v->ram + HALF;
	return r ? r : ferry_port_add_ram(v->port, &ram);
}

struct port_vmm *port_vmm_create(unsigned int flags)
{
	struct port_vmm *v = mmap(NULL, sizeof(*v), PROT_READ | PROT_WRITE,
				  MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	static unsigned int count;
	int r;

	if (v == MAP_FAILED)
		abort();
	vmm_flags = flags;
	v->running = !(flags & FERRY_PORT_INCOMING);
	v->state = 0x1234567;
	snprintf(v->path, sizeof(v->path), "/tmp/ferry-port-%d-%u", (int)getpid(), count++);
	v->fd = memfd_create("test-ram", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (v->fd < 0 || ftruncate(v->fd, (off_t)PORT_VMM_BYTES))
		abort();
	v->ram = mmap(NULL, PORT_VMM_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, v->fd, 0);
	if (v->ram == MAP_FAILED)
		abort();
	r = create_port(v, flags);
	if (!r)
		r = add_ram(v);
	if (!r)
		r = ferry_port_listen(v->port, v->path);
	if (r) {
		fprintf(stderr, "port: %s\n", strerror(-r));
		abort();
	}
	return v;
}

struct port_vmm *port_vmm_serve(unsigned int flags)
{
	struct port_vmm *v = port_vmm_create(flags);

	if (ferry_port_start(v->port))
		abort();
	return v;
}

void port_vmm_destroy(struct port_vmm *v)
{
	ferry_port_destroy(v->port);
	munmap(v->ram, PORT_VMM_BYTES);
	close(v->fd);
	munmap(v, sizeof(*v));
}

struct port_vmm *port_vmm_fork(unsigned int flags)
{
	struct port_vmm *v = port_vmm_create(flags);

	v->pid = fork();
	if (v->pid < 0)
		abort();
	if (!v->pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		v->pid = getpid();
		if (ferry_port_start(v->port))
			_exit(99);
		for (;;)
			pause();
	}
	/* Here it would be a second process that maps the RAM, and a second listener. */
	munmap(v->ram, PORT_VMM_BYTES);
	v->ram = NULL;
	return v;
}

int port_vmm_reap(struct port_vmm *v)
{
	int status = -1;

	kill(v->pid, SIGKILL);
	waitpid(v->pid, &status, 0);
	v->ram = mmap(NULL, PORT_VMM_BYTES, PROT_READ, MAP_SHARED, v->fd, 0);
	port_vmm_destroy(v);
	return status;
}
