// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The KVM engine: vCPUs that start in 64-bit mode at CPL 3, so that nothing but the payload
 * is needed in the guest: no interrupt controller, no descriptor tables. An exception there
 * ends the vCPU. KVM's dirty log or its dirty rings say what vCPUs wrote; nothing else in
 * this process writes guest RAM once the guest runs, so the log is complete.
 *
 * Rings: what is taken from them waits in vmm->pending, as a vCPU with a full ring must
 * empty it at any time. A page is reported before KVM write-protects it anew: in between it
 * may change unseen, but whoever was told of it reads it after the reset, which is in time.
 */
#include "vmm/vmm.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>


#define RING_ENTRIES 32768u /* 1 GiB a second of new pages fills it in 0.1 s */
#define KICK SIGRTMIN
#define XFEATURES 0xe7ULL /* x87, SSE, AVX, AVX-512: what the payload keeps live */
#define CR4_OSXSAVE (1ULL << 18)

static void on_kick(int signum)
{
	(void)signum; /* it interrupts KVM_RUN */
}

/* Also ends a KVM_RUN that has not yet begun. Who waits for its end has set `paused` before. */
static void kvm_kick(struct vcpu *vcpu)
{
	if (!vcpu->thread)
		return;
	__atomic_store_n(&vcpu->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
	pthread_kill(vcpu->thread, KICK);
}

/* Under ring_lock. */
static int harvest(struct vmm *vmm)
{
	bool any = false;
	unsigned int i;

	for (i = 0; i < vmm->opt.vcpus; i++) {
		struct vcpu *vcpu = &vmm->vcpu[i];

		for (;; vcpu->ring_next++) {
			struct kvm_dirty_gfn *gfn = &vcpu->ring[vcpu->ring_next % RING_ENTRIES];

			if (!(__atomic_load_n(&gfn->flags, __ATOMIC_ACQUIRE) &
			      KVM_DIRTY_GFN_F_DIRTY))
				break;
			vmm->pending[gfn->slot & 0xffff][gfn->offset / 64] |= 1ULL << gfn->offset % 64;
			__atomic_store_n(&gfn->flags, KVM_DIRTY_GFN_F_RESET, __ATOMIC_RELEASE);
			any = true;
		}
	}
	if (any && ioctl(vmm->fd, KVM_RESET_DIRTY_RINGS, 0) < 0)
		return vmm_error(vmm, errno, "KVM_RESET_DIRTY_RINGS: %m");
	return 0;
}

static int kvm_dirty_log(struct vmm *vmm, bool on)
{
	unsigned int i;

	for (i = 0; i < vmm->opt.blocks; i++) {
		struct kvm_userspace_memory_region region = {
			.slot = i, .guest_phys_addr = vmm->guest.block[i].addr,
			.memory_size = vmm->opt.ram[i], .userspace_addr = vmm->host.block[i].addr,
			.flags = on ? KVM_MEM_LOG_DIRTY_PAGES : 0,
		};

		if (ioctl(vmm->fd, KVM_SET_USER_MEMORY_REGION, &region))
			return vmm_error(vmm, errno, "KVM_SET_USER_MEMORY_REGION of ram%u: %m", i);
	}
	return 0;
}

static int kvm_dirty_sync(struct vmm *vmm, unsigned int i, uint64_t *bitmap)
{
	struct kvm_dirty_log log = { .slot = i, .dirty_bitmap = bitmap };
	size_t bytes = (vmm->host.block[i].pages + 63) / 64 * 8;
	int r;

	if (vmm->opt.log == LOG_KVM)
		return ioctl(vmm->fd, KVM_GET_DIRTY_LOG, &log) ?
		       vmm_error(vmm, errno, "KVM_GET_DIRTY_LOG of ram%u: %m", i) : 0;
	pthread_mutex_lock(&vmm->ring_lock);
	r = harvest(vmm);
	memcpy(bitmap, vmm->pending[i], bytes);
	memset(vmm->pending[i], 0, bytes);
	pthread_mutex_unlock(&vmm->ring_lock);
	return r;
}

static int kvm_run(struct vcpu *vcpu)
{
	struct vmm *vmm = vcpu->vmm;
	int r;

	for (;;) {
		r = ioctl(vcpu->fd, KVM_RUN, 0);
		if (r && errno != EINTR)
			return vmm_error(vmm, EFAULT, "vCPU %u: KVM_RUN: %m", vcpu->number);
		if (r) {
			vcpu->run->immediate_exit = 0;
			return -EINTR;
		}
		if (vcpu->run->exit_reason == KVM_EXIT_IO && vcpu->run->io.port == PAYLOAD_PORT) {
			/* The instruction ends in the next KVM_RUN: here, not in a saved state. */
			vcpu->run->immediate_exit = 1;
			ioctl(vcpu->fd, KVM_RUN, 0);
			vcpu->run->immediate_exit = 0;
			return 0;
		}
		if (vcpu->run->exit_reason != KVM_EXIT_DIRTY_RING_FULL)
			break;
		pthread_mutex_lock(&vmm->ring_lock);
		r = harvest(vmm);
		pthread_mutex_unlock(&vmm->ring_lock);
		if (r)
			return -EFAULT;
	}
	return vmm_error(vmm, EFAULT, "vCPU %u crashed: the payload took an exception, or KVM gave up "
			 "on it (exit reason %u)", vcpu->number, vcpu->run->exit_reason);
}

/* A leaf of the CPUID that all vCPUs have, or one of zeros. */
static struct kvm_cpuid_entry2 leaf(const struct vmm *vmm, uint32_t function, uint32_t index)
{
	uint32_t i;

	for (i = 0; i < vmm->cpuid->nent; i++)
		if (vmm->cpuid->entries[i].function == function &&
		    vmm->cpuid->entries[i].index == index)
			return vmm->cpuid->entries[i];
	return (struct kvm_cpuid_entry2){ 0 };
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
		return vmm_error(vmm, errno, "KVM_GET_SREGS: %m");
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
		return vmm_error(vmm, errno, "KVM refuses the vCPU's first state: %m");
	return state_start(vcpu);
}

static int kvm_start(struct vmm *vmm)
{
	unsigned int i;
	int r = 0;

	for (i = 0; i < vmm->opt.vcpus && !r; i++)
		r = start_vcpu(&vmm->vcpu[i]);
	return r;
}

static int create_vcpu(struct vmm *vmm, struct vcpu *vcpu)
{
	int bytes = ioctl(vmm->kvm, KVM_GET_VCPU_MMAP_SIZE, 0);

	vcpu->fd = ioctl(vmm->fd, KVM_CREATE_VCPU, vcpu->number);
	if (vcpu->fd < 0 || bytes < 0 || ioctl(vcpu->fd, KVM_SET_CPUID2, vmm->cpuid))
		return vmm_error(vmm, errno, "cannot create vCPU %u: %m", vcpu->number);
	vcpu->run = mmap(NULL, (size_t)bytes, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu->fd, 0);
	if (vmm->opt.log == LOG_RING)
		vcpu->ring = mmap(NULL, RING_ENTRIES * sizeof(*vcpu->ring), PROT_READ | PROT_WRITE,
				  MAP_SHARED, vcpu->fd, KVM_DIRTY_LOG_PAGE_OFFSET * PAYLOAD_PAGE);
	if (vcpu->run == MAP_FAILED || vcpu->ring == MAP_FAILED)
		return vmm_error(vmm, errno, "cannot map what KVM shares of vCPU %u: %m",
				 vcpu->number);
	return 0;
}

static int enable_rings(struct vmm *vmm)
{
	struct kvm_enable_cap cap = { .cap = KVM_CAP_DIRTY_LOG_RING,
				      .args = { RING_ENTRIES * sizeof(struct kvm_dirty_gfn) } };
	unsigned int i;

	if (ioctl(vmm->fd, KVM_ENABLE_CAP, &cap))
		return vmm_error(vmm, errno,
				 "this KVM has no dirty rings (%m): use --tracker-log log");
	for (i = 0; i < vmm->opt.blocks; i++)
		if (!(vmm->pending[i] = calloc((vmm->host.block[i].pages + 63) / 64, 8)))
			return vmm_error(vmm, ENOMEM,
					 "no memory for the bitmaps of the dirty rings");
	return 0;
}

/* KVM answers with the number of the processor it was asked on: all vCPUs here have 0. */
static void forget_processor(struct kvm_cpuid2 *cpuid)
{
	struct kvm_cpuid_entry2 *entry;

	for (entry = cpuid->entries; entry < cpuid->entries + cpuid->nent; entry++) {
		if (entry->function == 1)
			entry->ebx &= 0xffffff;
		else if (entry->function == 0xb || entry->function == 0x1f)
			entry->edx = 0;
		else if (entry->function == 0x8000001e)
			entry->eax = entry->ebx = entry->ecx = 0;
	}
}

static int kvm_create(struct vmm *vmm)
{
	struct sigaction kick = { .sa_handler = on_kick };
	unsigned int i;
	int r;

	sigaction(KICK, &kick, NULL); /* without SA_RESTART */
	vmm->kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (vmm->kvm < 0)
		return vmm_error(vmm, errno,
				 "cannot open /dev/kvm: %m; --engine threads does without");
	vmm->fd = ioctl(vmm->kvm, KVM_CREATE_VM, 0);
	vmm->cpuid = calloc(1, sizeof(*vmm->cpuid) + MAX_CPUIDS * sizeof(vmm->cpuid->entries[0]));
	if (!vmm->cpuid)
		return vmm_error(vmm, ENOMEM, "no memory for the CPUID table");
	vmm->cpuid->nent = MAX_CPUIDS;
	if (vmm->fd < 0 || ioctl(vmm->kvm, KVM_GET_SUPPORTED_CPUID, vmm->cpuid))
		return vmm_error(vmm, errno, "cannot create a VM: %m");
	forget_processor(vmm->cpuid);
	r = vmm->opt.log == LOG_RING ? enable_rings(vmm) : 0;
	if (!r)
		r = kvm_dirty_log(vmm, false);
	for (i = 0; i < vmm->opt.vcpus && !r; i++)
		r = create_vcpu(vmm, &vmm->vcpu[i]);
	return r ? r : state_create(vmm);
}

const struct engine engine_kvm = {
	.kind = "ferry-vmm-kvm/1",
	.create = kvm_create, .start = kvm_start, .run = kvm_run, .kick = kvm_kick,
	.save = state_save, .load = state_load, .check = state_check,
	.dirty_log = kvm_dirty_log, .dirty_sync = kvm_dirty_sync,
};
