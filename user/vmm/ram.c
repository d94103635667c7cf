// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Guest RAM: up to eight memfds or files, mapped here, with holes between them in the
 * guest's address space. The first block begins with what the VMM prepares:
 *
 *	page 1..4	the payload's code	5	struct payload_map
 *	6, 7, 8...	page tables, 2 MiB pages, virtual = physical
 *	then		PAYLOAD_LANE_PAGES for each vCPU
 */
#include "vmm/vmm.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define GIB (1ULL << 30)
#define HOLE (2ULL << 20) /* at least, between two blocks in the guest */
/*
 * RAM to come. Nothing is mapped there before it: KVM, which knows the place, would walk all of it
 * when that went, and the guest would stand still for so long.
 */
#define PLACE (32ULL << 40)

static int create_block(struct vmm *vmm, unsigned int i)
{
	uint64_t bytes = vmm->opt.ram[i];
	void *host;
	char path[4096];

	if (vmm->opt.adopt) { /* only the place for it, where nothing else comes */
		vmm->ram_fd[i] = -1;
		host = mmap((void *)(uintptr_t)(PLACE + vmm->guest.block[i].addr), bytes, PROT_NONE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
		snprintf(path, sizeof(path), "a place for %llu bytes of RAM",
			 (unsigned long long)bytes);
		if (host != MAP_FAILED)
			munmap(host, bytes);
		goto mapped;
	}
	if (vmm->opt.ram_file) {
		snprintf(path, sizeof(path), i ? "%s.%u" : "%s", vmm->opt.ram_file, i);
		vmm->ram_fd[i] = open(path, O_RDWR | O_CREAT | O_CLOEXEC |
				      (vmm->opt.load ? 0 : O_TRUNC), 0600); /* or zero throughout */
	} else {
		snprintf(path, sizeof(path), "ferry-vmm-ram%u", i);
		vmm->ram_fd[i] = memfd_create(path, MFD_CLOEXEC);
	}
	if (vmm->ram_fd[i] < 0 || ftruncate(vmm->ram_fd[i], (off_t)bytes))
		return vmm_error(vmm, errno, "cannot make %s of %llu bytes: %m", path,
				 (unsigned long long)bytes);
	host = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, vmm->ram_fd[i], 0);
mapped:
	if (host == MAP_FAILED)
		return vmm_error(vmm, errno, "cannot map %s: %m", path);
	vmm->host.block[i].addr = (uint64_t)(uintptr_t)host;
	vmm->host.block[i].pages = vmm->guest.block[i].pages = bytes / PAYLOAD_PAGE;
	return 0;
}

/* The RAM of another ferry-vmm, in the place that was kept for it; -1: could it be? */
int ram_adopt(struct vmm *vmm, const char *name, int fd, uint64_t offset, uint64_t bytes,
	      void **addr)
{
	unsigned int i = (unsigned int)(name[3] - '0'); /* ram0, ram1, ... */

	if (strlen(name) != 4 || i >= vmm->opt.blocks || bytes != vmm->opt.ram[i])
		return vmm_error(vmm, EINVAL,
				 "the guest has %s of %llu bytes, --ram says something else", name,
				 (unsigned long long)bytes);
	if (fd < 0)
		return 0;
	*addr = mmap((void *)(uintptr_t)vmm->host.block[i].addr, bytes, PROT_READ | PROT_WRITE,
		     MAP_SHARED | MAP_FIXED_NOREPLACE, fd, (off_t)offset);
	vmm->ram_fd[i] = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	return *addr == MAP_FAILED || vmm->ram_fd[i] < 0 ?
	       vmm_error(vmm, errno, "cannot map the guest's %s: %m", name) : 0;
}

int ram_create(struct vmm *vmm)
{
	uint64_t end = 0, vcpus = vmm->opt.vcpus;
	unsigned int i;
	int r;

	for (i = 0; i < vmm->opt.blocks; i++) {
		vmm->guest.block[i].addr = i ? (end + 2 * HOLE - 1) / HOLE * HOLE : 0;
		r = create_block(vmm, i);
		if (r)
			return r;
		end = vmm->guest.block[i].addr + vmm->opt.ram[i];
		vmm->pages += vmm->host.block[i].pages;
	}
	vmm->guest.blocks = vmm->host.blocks = vmm->opt.blocks;
	vmm->head_pages = PAGE_TABLE_PAGE + 2 + (end + GIB - 1) / GIB + vcpus * PAYLOAD_LANE_PAGES;
	if (vmm->host.block[0].pages < vmm->head_pages)
		return vmm_error(vmm, EINVAL,
				 "the first block of --ram is too small: give it %llu KiB",
				 (unsigned long long)vmm->head_pages * 4);
	for (i = 0; i < vcpus; i++) {
		vmm->vcpu[i].vmm = vmm;
		vmm->vcpu[i].number = i;
		vmm->vcpu[i].lane = (struct payload_lane *)payload_page(&vmm->host,
			vmm->head_pages - (vcpus - i) * PAYLOAD_LANE_PAGES);
	}
	return 0;
}

static void fill_page_tables(struct vmm *vmm)
{
	uint64_t *table = payload_page(&vmm->host, PAGE_TABLE_PAGE), i;
	uint64_t n = vmm->head_pages - vmm->opt.vcpus * PAYLOAD_LANE_PAGES - PAGE_TABLE_PAGE - 2;

	table[0] = (PAGE_TABLE_PAGE + 1) * PAYLOAD_PAGE | 7; /* present, writable, user */
	for (i = 0; i < n; i++)
		table[512 + i] = (PAGE_TABLE_PAGE + 2 + i) * PAYLOAD_PAGE | 7;
	for (i = 0; i < n * 512; i++)
		table[1024 + i] = i * HOLE | 0x87; /* a page of 2 MiB */
}

int ram_fill(struct vmm *vmm)
{
	struct payload_work work = {
		.working_pages = vmm->opt.working_set / PAYLOAD_PAGE,
		.tsc_khz = vmm->tsc_khz,
		.fill_pages = vmm->opt.fill / PAYLOAD_PAGE,
		.rate = vmm->opt.dirty_rate,
		.zero_percent = (unsigned int)vmm->opt.zero_percent,
		.pattern = (unsigned int)vmm->opt.pattern,
	};
	unsigned int i;

	if (vmm->head_pages + work.working_pages + work.fill_pages > vmm->pages ||
	    work.working_pages < vmm->opt.vcpus)
		return vmm_error(vmm, EINVAL,
				 "--working-set and --fill must fit into --ram less %llu "
				 "KiB, and each vCPU needs a page of its own",
				 (unsigned long long)vmm->head_pages * 4);
	memcpy(payload_page(&vmm->host, CODE_PAGE), __start_payload,
	       (uintptr_t)__stop_payload - (uintptr_t)__start_payload);
	memcpy(payload_page(&vmm->host, MAP_PAGE), &vmm->guest, sizeof(vmm->guest));
	fill_page_tables(vmm);
	for (i = 0; i < vmm->opt.vcpus; i++) {
		struct payload_lane *lane = vmm->vcpu[i].lane;

		lane->self =
			(uint64_t)(uintptr_t)lane - vmm->host.block[0].addr; /* block 0 is at 0 */
		lane->gs = lane->self + LANE_GS;
		lane->number = i;
		lane->lanes = vmm->opt.vcpus;
		lane->first_page = vmm->head_pages;
		payload_prepare(lane, &work);
	}
	payload_fill(vmm->vcpu[0].lane, &vmm->host);
	return 0;
}
