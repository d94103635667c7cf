// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What the agent gets hold of: the guest's RAM, up to eight memfds or files with holes between
 * them in the guest's address space, and the callbacks, which are of a line or two each.
 * crew.c, kvm.c and state.c show what they have to do.
 */
#include "vmm/vmm.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define HOLE (2ULL << 20) /* at least, between two blocks in the guest */
/*
 * RAM to come. Nothing is mapped there before it: KVM, which knows the place, would walk all of it
 * when that went, and the guest would stand still for so long.
 */
#define PLACE (32ULL << 40)

static const char names[][5] = { "ram0", "ram1", "ram2", "ram3", "ram4", "ram5", "ram6", "ram7" };

static int create_block(struct vmm *vmm, unsigned int i, uint64_t bytes)
{
	char path[4096];
	void *host;

	if (vmm->opt.ram_file) {
		snprintf(path, sizeof(path), i ? "%s.%u" : "%s", vmm->opt.ram_file, i);
		vmm->ram_fd[i] = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_TRUNC, 0600);
	} else {
		snprintf(path, sizeof(path), "ferry-vmm-%s", names[i]);
		vmm->ram_fd[i] = memfd_create(path, MFD_CLOEXEC);
	}
	if (vmm->ram_fd[i] < 0 || ftruncate(vmm->ram_fd[i], (off_t)bytes))
		return vmm_error(vmm, errno, "cannot make %s of %lu bytes: %m", path, bytes);
	host = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, vmm->ram_fd[i], 0);
	if (host == MAP_FAILED)
		return vmm_error(vmm, errno, "cannot map %s: %m", path);
	vmm->host.block[i].addr = (uintptr_t)host;
	return 0;
}

int port_create_ram(struct vmm *vmm)
{
	uint64_t start = 0;
	unsigned int i;

	vmm->guest.blocks = vmm->host.blocks = vmm->opt.blocks;
	for (i = 0; i < vmm->opt.blocks; i++) {
		vmm->guest.block[i].pages = vmm->opt.ram[i] / PAYLOAD_PAGE;
		vmm->guest.block[i].addr = start;
		vmm->host.block[i].pages = vmm->guest.block[i].pages;
		vmm->host.block[i].addr = PLACE + start;
		start = (start + vmm->opt.ram[i] + 2 * HOLE - 1) / HOLE * HOLE;
		if (!vmm->opt.adopt && create_block(vmm, i, vmm->opt.ram[i]))
			return -EIO;
	}
	return 0;
}

unsigned int port_block(const struct vmm *vmm, const char *name)
{
	unsigned int i = 0;

	while (i < vmm->opt.blocks && strcmp(names[i], name))
		i++;
	return i;
}

/* The RAM of another ferry-vmm, in the place that was kept for it; fd -1: could it be? */
static int adopt(void *ctx, struct ferry_port_ram *ram)
{
	struct vmm *vmm = ctx;
	unsigned int i = port_block(vmm, ram->name);

	if (i == vmm->opt.blocks || ram->bytes != vmm->opt.ram[i])
		return vmm_error(vmm, EINVAL, "the guest has %s of %lu bytes, --ram says something "
				 "else", ram->name, ram->bytes);
	if (ram->fd < 0)
		return 0;
	ram->addr = mmap((void *)vmm->host.block[i].addr, ram->bytes, PROT_READ | PROT_WRITE,
			 MAP_SHARED | MAP_FIXED_NOREPLACE, ram->fd, (off_t)ram->fd_offset);
	vmm->ram_fd[i] = fcntl(ram->fd, F_DUPFD_CLOEXEC, 0);
	return ram->addr == MAP_FAILED || vmm->ram_fd[i] < 0 ?
	       vmm_error(vmm, errno, "cannot map the guest's %s: %m", ram->name) : 0;
}

static int pause_guest(void *ctx)
{
	crew_pause(ctx, PAUSED_BY_PORT);
	return 0;
}

static int resume_guest(void *ctx) /* or run it, where it never did */
{
	crew_resume(ctx, PAUSED_BY_PORT);
	return 0;
}

static int check(void *ctx)
{
	return ((struct vmm *)ctx)->crashed ?
	       vmm_error(ctx, EIO, "a vCPU has crashed: end this ferry-vmm") : 0;
}

/* A throttled vCPU runs in slices, which crew_tick() ends. */
static int throttle(void *ctx, unsigned int percent)
{
	((struct vmm *)ctx)->throttle = percent;
	return 0;
}

int port_create(struct vmm *vmm)
{
	struct ferry_port_ops ops = {
		.struct_size = sizeof(ops), .save = state_save, .load = state_load, .check = check,
		.kind = vmm->opt.threads ? "ferry-vmm-threads/1" : "ferry-vmm-kvm/3",
		.pause = pause_guest, .resume = resume_guest, .run = resume_guest,
		.throttle = throttle, .adopt = vmm->opt.adopt ? adopt : NULL,
	};
	unsigned int flags = FERRY_PORT_NO_DIRECT_IO, i;
	const char *given = getenv("FERRY_PORT_FD"); /* by ferry cpr --exec */
	int r;

	if (vmm->opt.incoming)
		flags |= FERRY_PORT_INCOMING;
	if (vmm->opt.log != LOG_NONE) {
		ops.dirty_start = kvm_dirty_start;
		ops.dirty_stop = kvm_dirty_stop;
		ops.dirty_sync = kvm_dirty_sync;
		flags |= FERRY_PORT_LOG_PROCESS; /* nobody here writes guest RAM but KVM */
	}
	r = ferry_port_create(&ops, vmm, flags, &vmm->port);
	for (i = 0; i < vmm->opt.blocks && !r && !vmm->opt.adopt; i++) {
		struct ferry_port_ram ram = {
			.struct_size = sizeof(ram), .name = names[i], .fd = vmm->ram_fd[i],
			.bytes = vmm->opt.ram[i], .addr = (void *)vmm->host.block[i].addr,
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
