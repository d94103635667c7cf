// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A guest's beginning: what a boot loader and firmware do elsewhere. The first block of RAM
 * begins with what is prepared here:
 *
 *	page 1..4	the payload's code	5	struct payload_map
 *	6, 7, 8...	page tables, 2 MiB pages, virtual = physical
 *	then		PAYLOAD_LANE_PAGES for each vCPU
 *
 * and with KVM each vCPU starts at the payload's entry, at CPL 3. Registers that the payload
 * cannot read get values here, which boot_check() compares ever after.
 */
#include "vmm/vmm.h"

#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#define CODE_PAGE 1
#define MAP_PAGE 5
#define PAGE_TABLE_PAGE 6
#define GIB (1ULL << 30)
#define HUGE_PAGE (2ULL << 20)
#define MSR_KVM_CLOCK 0x4b564d01
#define XFEATURES 0xe7ULL /* x87, SSE, AVX, AVX-512: what the payload keeps live */
#define CR4_OSXSAVE (1ULL << 18)

/* What the payload cannot read. */
static const struct kvm_msr_entry hidden[] = {
	/* SYSENTER, of which an AMD processor has 32 bits; SFMASK */
	{ .index = 0x174, .data = 0x10 }, { .index = 0x175, .data = 0x7f001000 },
	{ .index = 0x176, .data = 0x7f002000 }, { .index = 0xc0000084, .data = 0x300 },
	{ .index = 0xc0000081, .data = 0x23001000000000 }, /* STAR, LSTAR, CSTAR */
	{ .index = 0xc0000082, .data = 0x7f0000003000 },
	{ .index = 0xc0000083, .data = 0x7f0000004000 },
	{ .index = 0xc0000102, .data = 0x7f0000005000 }, /* KERNEL_GS_BASE, PAT */
	{ .index = 0x277, .data = 0x0007040600070405 },
};
#define HIDDEN (sizeof(hidden) / sizeof(hidden[0]))
static const struct kvm_debugregs hidden_debug = {
	.db = { 0x1000, 0x2000, 0x3000, 0x4000 }, .dr6 = 0xffff0ff0, .dr7 = 0x400,
};

int boot_lay_out(struct vmm *vmm)
{
	uint64_t last = vmm->opt.blocks - 1, vcpus = vmm->opt.vcpus;
	uint64_t end = vmm->guest.block[last].addr + vmm->opt.ram[last];
	unsigned int i;

	vmm->head_pages = PAGE_TABLE_PAGE + 2 + (end + GIB - 1) / GIB + vcpus * PAYLOAD_LANE_PAGES;
	if (vmm->host.block[0].pages < vmm->head_pages)
		return vmm_error(vmm, EINVAL, "the first block of --ram is too small: give it %lu "
				 "KiB", vmm->head_pages * 4);
	for (i = 0; i < vcpus; i++) {
		uint64_t page = vmm->head_pages - (vcpus - i) * PAYLOAD_LANE_PAGES;

		vmm->vcpu[i] = (struct vcpu){ .vmm = vmm, .number = i, .lane =
			(struct payload_lane *)payload_page(&vmm->host, page) };
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
		table[1024 + i] = i * HUGE_PAGE | 0x87;
}

/* How fast the time stamp counter runs: the payload measures gaps by it. */
static uint64_t tsc_khz(void)
{
	uint64_t ns = vmm_now_ns(CLOCK_MONOTONIC), tsc = __builtin_ia32_rdtsc();

	usleep(20000);
	tsc = __builtin_ia32_rdtsc() - tsc;
	return tsc * 1000000 / (vmm_now_ns(CLOCK_MONOTONIC) - ns);
}

static int fill_ram(struct vmm *vmm)
{
	struct payload_work work = vmm->opt.work;
	uint64_t pages = 0, khz = tsc_khz();
	unsigned int i;

	for (i = 0; i < vmm->opt.blocks; i++)
		pages += vmm->host.block[i].pages;
	if (!work.working_set)
		work.working_set = pages / 4 * PAYLOAD_PAGE;
	if (vmm->head_pages + (work.working_set + work.fill) / PAYLOAD_PAGE > pages ||
	    work.working_set / PAYLOAD_PAGE < vmm->opt.vcpus)
		return vmm_error(vmm, EINVAL, "--working-set and --fill must fit into --ram less "
				 "%lu KiB, and each vCPU needs a page of its own",
				 vmm->head_pages * 4);
	memcpy(payload_page(&vmm->host, CODE_PAGE), __start_payload,
	       (uintptr_t)__stop_payload - (uintptr_t)__start_payload);
	memcpy(payload_page(&vmm->host, MAP_PAGE), &vmm->guest, sizeof(vmm->guest));
	fill_page_tables(vmm);
	for (i = 0; i < vmm->opt.vcpus; i++) {
		struct payload_lane *lane = vmm->vcpu[i].lane;

		lane->self = (uintptr_t)lane - vmm->host.block[0].addr; /* block 0 is at 0 */
		lane->gs = lane->self + LANE_GS;
		lane->number = i;
		lane->lanes = vmm->opt.vcpus;
		lane->first_page = vmm->head_pages;
		payload_prepare(lane, &work, khz);
	}
	payload_fill(vmm->vcpu[0].lane, &vmm->host);
	return 0;
}

/* The host's. KVM tells the number of the processor it was asked on, too: all vCPUs have 0. */
int boot_cpuid(struct vmm *vmm)
{
	struct kvm_cpuid_entry2 *entry = vmm->cpuid.entry;
	int r;

	vmm->cpuid.head.nent = MAX_CPUIDS;
	r = kvm_do(vmm, vmm->kvm, KVM_GET_SUPPORTED_CPUID, &vmm->cpuid, "tell its CPUID");
	for (; entry < vmm->cpuid.entry + vmm->cpuid.head.nent && !r; entry++) {
		if (entry->function == 1)
			entry->ebx &= 0xffffff;
		else if (entry->function == 0xb || entry->function == 0x1f)
			entry->edx = 0;
		else if (entry->function == 0x8000001e)
			entry->eax = entry->ebx = entry->ecx = 0;
	}
	return r;
}

/* A leaf of the CPUID that all vCPUs have, or one of zeros. */
static struct kvm_cpuid_entry2 leaf(const struct vmm *vmm, uint32_t function, uint32_t index)
{
	uint32_t i;

	for (i = 0; i < vmm->cpuid.head.nent; i++)
		if (vmm->cpuid.entry[i].function == function && vmm->cpuid.entry[i].index == index)
			return vmm->cpuid.entry[i];
	return (struct kvm_cpuid_entry2){ 0 };
}

static int start_hidden(struct vcpu *vcpu)
{
	uint64_t value = (vcpu->lane->self + offsetof(struct payload_lane, clock)) | 1;
	unsigned int i;

	state_msr(vcpu, KVM_SET_MSRS, MSR_KVM_CLOCK, &value); /* without it the payload has its TSC */
	for (i = 0; i < HIDDEN; i++) {
		value = hidden[i].data;
		if (state_msr(vcpu, KVM_SET_MSRS, hidden[i].index, &value))
			return vcpu_error(vcpu, EINVAL, "KVM refuses a value for MSR %#x",
					  hidden[i].index);
	}
	return ioctl(vcpu->fd, KVM_SET_DEBUGREGS, &hidden_debug) ?
	       vcpu_error(vcpu, errno, "KVM refuses the first debug registers: %m") : 0;
}

static int start_vcpu(struct vcpu *vcpu)
{
	struct kvm_segment code = { .limit = ~0u, .selector = 0x33, .type = 11, .present = 1, .dpl = 3,
				    .s = 1, .l = 1, .g = 1 };
	struct kvm_segment data = { .limit = ~0u, .selector = 0x2b, .type = 3, .present = 1, .dpl = 3,
				    .s = 1, .db = 1, .g = 1 };
	struct kvm_xcrs xcrs = { .nr_xcrs = 1 };
	struct vmm *vmm = vcpu->vmm;
	struct payload_lane *lane = vcpu->lane;
	struct kvm_regs regs = { .rip = CODE_PAGE * PAYLOAD_PAGE + (uint64_t)
					((uintptr_t)payload_entry - (uintptr_t)__start_payload),
				  .rflags = 0x3202, .rdi = lane->self,
				 .rsi = MAP_PAGE * PAYLOAD_PAGE, .rsp = lane->self + 2 * PAYLOAD_PAGE };
	struct kvm_sregs sregs;
	uint32_t i;

	lane->vectors = 0;
	lane->xmask = leaf(vmm, 0xd, 0).eax & XFEATURES;
	lane->vector[lane->vectors++] = (typeof(lane->vector[0])){ 160, 256 }; /* XMM */
	for (i = 2; i < 8; i++)
		if (lane->xmask >> i & 1)
			lane->vector[lane->vectors++] = (typeof(lane->vector[0])){
				leaf(vmm, 0xd, i).ebx, leaf(vmm, 0xd, i).eax };
	xcrs.xcrs[0].value = lane->xmask;
	if (ioctl(vcpu->fd, KVM_GET_SREGS, &sregs))
		return vcpu_error(vcpu, errno, "KVM does not tell its first state: %m");
	sregs.cs = code;
	sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data;
	sregs.fs.base = lane->self;
	sregs.gs.base = lane->gs;
	sregs.cr0 = 0x80010033; /* PG WP NE ET MP PE */
	sregs.cr3 = PAGE_TABLE_PAGE * PAYLOAD_PAGE;
	sregs.cr4 = 0x620 | (leaf(vmm, 1, 0).ecx & 1u << 26 ? CR4_OSXSAVE : 0); /* PAE, SSE */
	sregs.efer = 0x501; /* LMA LME SCE */
	if (ioctl(vcpu->fd, KVM_SET_SREGS, &sregs) || ioctl(vcpu->fd, KVM_SET_REGS, &regs) ||
	    (lane->xmask && ioctl(vcpu->fd, KVM_SET_XCRS, &xcrs)))
		return vcpu_error(vcpu, errno, "KVM refuses its first state: %m");
	return start_hidden(vcpu);
}

int boot_start(struct vmm *vmm)
{
	unsigned int i;
	int r = fill_ram(vmm);

	for (i = 0; i < vmm->opt.vcpus && !r && !vmm->opt.threads; i++)
		r = start_vcpu(&vmm->vcpu[i]);
	return r;
}

uint64_t boot_check(struct vmm *vmm)
{
	struct kvm_debugregs debug;
	uint64_t wrong = 0, value = 0;
	unsigned int v, i;

	for (v = 0; v < vmm->opt.vcpus && !vmm->opt.threads; v++) {
		for (i = 0; i < HIDDEN; i++)
			if (state_msr(&vmm->vcpu[v], KVM_GET_MSRS, hidden[i].index, &value) ||
			    value != hidden[i].data) {
				wrong++;
				vcpu_error(&vmm->vcpu[v], EINVAL, "MSR %#x has changed",
					   hidden[i].index);
			}
		if (ioctl(vmm->vcpu[v].fd, KVM_GET_DEBUGREGS, &debug) ||
		    memcmp(debug.db, hidden_debug.db, sizeof(debug.db))) {
			wrong++;
			vcpu_error(&vmm->vcpu[v], EINVAL, "its debug registers have changed");
		}
	}
	return wrong;
}
