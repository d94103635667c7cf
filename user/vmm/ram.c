// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Guest RAM: up to eight memfds or files, mapped here, with holes between them in the
 * guest's address space.
 */
#include "vmm/vmm.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define HOLE (2ULL << 20) /* at least, between two blocks in the guest */
/*
 * RAM to come. Nothing is mapped there before it: KVM, which knows the place, would walk all of it
 * when that went, and the guest would stand still for so long.
 */
#define PLACE (32ULL << 40)

const char *const ram_names[] = { "ram0", "ram1", "ram2", "ram3", "ram4", "ram5", "ram6", "ram7" };

static int create_block(struct vmm *vmm, unsigned int i)
{
	unsigned long long bytes = vmm->opt.ram[i];
	char path[4096];
	void *host;

	vmm->host.block[i].pages = vmm->guest.block[i].pages = bytes / PAYLOAD_PAGE;
	vmm->host.block[i].addr = PLACE + vmm->guest.block[i].addr;
	vmm->ram_fd[i] = -1;
	if (vmm->opt.adopt)
		return 0;
	if (vmm->opt.ram_file) {
		snprintf(path, sizeof(path), i ? "%s.%u" : "%s", vmm->opt.ram_file, i);
		vmm->ram_fd[i] = open(path, O_RDWR | O_CREAT | O_CLOEXEC |
				      (vmm->opt.load ? 0 : O_TRUNC), 0600); /* or zero throughout */
	} else {
		snprintf(path, sizeof(path), "ferry-vmm-ram%u", i);
		vmm->ram_fd[i] = memfd_create(path, MFD_CLOEXEC);
	}
	if (vmm->ram_fd[i] < 0 || ftruncate(vmm->ram_fd[i], (off_t)bytes))
		return vmm_error(vmm, errno, "cannot make %s of %llu bytes: %m", path, bytes);
	host = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, vmm->ram_fd[i], 0);
	if (host == MAP_FAILED)
		return vmm_error(vmm, errno, "cannot map %s: %m", path);
	vmm->host.block[i].addr = (uint64_t)(uintptr_t)host;
	return 0;
}

unsigned int ram_number(const struct vmm *vmm, const char *name)
{
	unsigned int i = 0;

	while (i < vmm->opt.blocks && strcmp(ram_names[i], name))
		i++;
	return i;
}

/* The RAM of another ferry-vmm, in the place that was kept for it; fd -1: could it be? */
int ram_adopt(void *ctx, struct ferry_port_ram *ram)
{
	struct vmm *vmm = ctx;
	unsigned int i = ram_number(vmm, ram->name);

	if (i == vmm->opt.blocks || ram->bytes != vmm->opt.ram[i])
		return vmm_error(vmm, EINVAL,
				 "the guest has %s of %llu bytes, --ram says something else",
				 ram->name, (unsigned long long)ram->bytes);
	if (ram->fd < 0)
		return 0;
	ram->addr = mmap((void *)(uintptr_t)vmm->host.block[i].addr, ram->bytes,
			 PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED_NOREPLACE, ram->fd,
			 (off_t)ram->fd_offset);
	vmm->ram_fd[i] = fcntl(ram->fd, F_DUPFD_CLOEXEC, 0);
	return ram->addr == MAP_FAILED || vmm->ram_fd[i] < 0 ?
	       vmm_error(vmm, errno, "cannot map the guest's %s: %m", ram->name) : 0;
}

int ram_create(struct vmm *vmm)
{
	uint64_t end = 0;
	unsigned int i;
	int r;

	for (i = 0; i < vmm->opt.blocks; i++) {
		vmm->guest.block[i].addr = i ? (end + 2 * HOLE - 1) / HOLE * HOLE : 0;
		r = create_block(vmm, i);
		if (r)
			return r;
		end = vmm->guest.block[i].addr + vmm->opt.ram[i];
	}
	vmm->guest.blocks = vmm->host.blocks = vmm->opt.blocks;
	return 0;
}
