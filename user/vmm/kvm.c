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

static void on_kick(int signum)
{
	(void)signum; /* it interrupts KVM_RUN */
}

/* Also ends a KVM_RUN that has not yet begun. Who waits for its end has set `paused` before. */
void kvm_kick(struct vcpu *vcpu)
{
	__atomic_store_n(&vcpu->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
	pthread_kill(vcpu->thread, KICK);
}

static int harvest(struct vmm *vmm)
{
	bool any = false;
	unsigned int i;
	int r = 0;

	pthread_mutex_lock(&vmm->ring_lock);
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
		r = vmm_error(vmm, errno, "KVM_RESET_DIRTY_RINGS: %m");
	pthread_mutex_unlock(&vmm->ring_lock);
	return r;
}

static int set_slots(struct vmm *vmm, unsigned int flags)
{
	unsigned int i;

	for (i = 0; i < vmm->opt.blocks; i++) {
		struct kvm_userspace_memory_region region = {
			.slot = i, .guest_phys_addr = vmm->guest.block[i].addr,
			.memory_size = vmm->opt.ram[i], .userspace_addr = vmm->host.block[i].addr,
			.flags = flags,
		};

		if (ioctl(vmm->fd, KVM_SET_USER_MEMORY_REGION, &region))
			return vmm_error(vmm, errno, "KVM_SET_USER_MEMORY_REGION of ram%u: %m", i);
	}
	return 0;
}

int kvm_dirty_start(void *ctx)
{
	return set_slots(ctx, KVM_MEM_LOG_DIRTY_PAGES);
}

void kvm_dirty_stop(void *ctx)
{
	set_slots(ctx, 0);
}

int kvm_dirty_sync(void *ctx, const char *name, uint64_t *bitmap, uint64_t pages)
{
	struct vmm *vmm = ctx;
	unsigned int i = ram_number(vmm, name);
	struct kvm_dirty_log log = { .slot = i, .dirty_bitmap = bitmap };
	size_t bytes = (pages + 63) / 64 * 8;
	int r;

	if (i >= vmm->opt.blocks || pages != vmm->host.block[i].pages)
		return -ENOENT;
	if (vmm->opt.log == LOG_KVM)
		return ioctl(vmm->fd, KVM_GET_DIRTY_LOG, &log) ?
		       vmm_error(vmm, errno, "KVM_GET_DIRTY_LOG of %s: %m", name) : 0;
	r = harvest(vmm);
	pthread_mutex_lock(&vmm->ring_lock); /* a vCPU may harvest, too */
	memcpy(bitmap, vmm->pending[i], bytes);
	memset(vmm->pending[i], 0, bytes);
	pthread_mutex_unlock(&vmm->ring_lock);
	return r;
}

int kvm_run(struct vcpu *vcpu)
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
		if (harvest(vmm))
			return -EFAULT;
	}
	return vmm_error(vmm, EFAULT, "vCPU %u crashed: the payload took an exception, or KVM gave up "
			 "on it (exit reason %u)", vcpu->number, vcpu->run->exit_reason);
}

static int create_vcpu(struct vmm *vmm, struct vcpu *vcpu)
{
	int bytes = ioctl(vmm->kvm, KVM_GET_VCPU_MMAP_SIZE, 0);

	vcpu->fd = ioctl(vmm->fd, KVM_CREATE_VCPU, vcpu->number);
	if (vcpu->fd < 0 || bytes < 0)
		return vmm_error(vmm, errno, "cannot create vCPU %u: %m", vcpu->number);
	vcpu->run = mmap(NULL, (size_t)bytes, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu->fd, 0);
	if (vmm->opt.log == LOG_RING)
		vcpu->ring = mmap(NULL, RING_ENTRIES * sizeof(*vcpu->ring), PROT_READ | PROT_WRITE,
				  MAP_SHARED, vcpu->fd, KVM_DIRTY_LOG_PAGE_OFFSET * PAYLOAD_PAGE);
	return vcpu->run == MAP_FAILED || vcpu->ring == MAP_FAILED ||
	       ioctl(vcpu->fd, KVM_SET_CPUID2, vmm->cpuid) ?
	       vmm_error(vmm, errno, "cannot set up vCPU %u: %m", vcpu->number) : 0;
}

static int enable_rings(struct vmm *vmm)
{
	struct kvm_enable_cap cap = { .cap = KVM_CAP_DIRTY_LOG_RING,
				      .args = { RING_ENTRIES * sizeof(struct kvm_dirty_gfn) } };
	unsigned int i;

	if (ioctl(vmm->fd, KVM_ENABLE_CAP, &cap))
		return vmm_error(vmm, errno, "this KVM has no dirty rings (%m): use --tracker-log log");
	for (i = 0; i < vmm->opt.blocks; i++)
		if (!(vmm->pending[i] = calloc((vmm->host.block[i].pages + 63) / 64, 8)))
			return vmm_error(vmm, ENOMEM, "no memory for the bitmaps of the dirty rings");
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

int kvm_create(struct vmm *vmm)
{
	struct sigaction kick = { .sa_handler = on_kick };
	unsigned int i;
	int r = 0;

	if (vmm->opt.threads)
		return vmm->opt.log == LOG_NONE ? 0 :
		       vmm_error(vmm, EINVAL, "--tracker-log is KVM's: leave it out with --engine threads");
	sigaction(KICK, &kick, NULL); /* without SA_RESTART */
	vmm->kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (vmm->kvm < 0)
		return vmm_error(vmm, errno, "cannot open /dev/kvm: %m; --engine threads does without");
	vmm->fd = ioctl(vmm->kvm, KVM_CREATE_VM, 0);
	vmm->cpuid = calloc(1, sizeof(*vmm->cpuid) + MAX_CPUIDS * sizeof(vmm->cpuid->entries[0]));
	if (vmm->cpuid)
		vmm->cpuid->nent = MAX_CPUIDS;
	if (!vmm->cpuid || vmm->fd < 0 || ioctl(vmm->kvm, KVM_GET_SUPPORTED_CPUID, vmm->cpuid))
		return vmm_error(vmm, errno, "cannot create a VM: %m");
	forget_processor(vmm->cpuid);
	if (vmm->opt.log == LOG_RING)
		r = enable_rings(vmm);
	if (!r)
		r = set_slots(vmm, 0);
	for (i = 0; i < vmm->opt.vcpus && !r; i++)
		r = create_vcpu(vmm, &vmm->vcpu[i]);
	return r ? r : state_create(vmm);
}
