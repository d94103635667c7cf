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
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#define RING_ENTRIES 32768u /* 1 GiB a second of new pages fills it in 0.1 s */

int kvm_do(struct vmm *vmm, int fd, unsigned long request, void *arg, const char *what)
{
	int r = ioctl(fd, request, arg);

	return r < 0 ? vmm_error(vmm, errno, "KVM cannot %s: %m", what) : r;
}

static void on_kick(int signum)
{
	(void)signum; /* it interrupts KVM_RUN */
}

static int harvest(struct vmm *vmm)
{
	struct kvm_dirty_gfn *gfn;
	uint64_t *pending;
	uint32_t flags, i;
	int r;

	pthread_mutex_lock(&vmm->ring_lock);
	for (i = 0; i < vmm->opt.vcpus; i++) {
		struct vcpu *vcpu = &vmm->vcpu[i];

		for (;; vcpu->ring_next++) {
			gfn = &vcpu->ring[vcpu->ring_next % RING_ENTRIES];
			flags = __atomic_load_n(&gfn->flags, __ATOMIC_ACQUIRE);
			if (!(flags & KVM_DIRTY_GFN_F_DIRTY))
				break;
			pending = vmm->pending[gfn->slot & 0xffff];
			pending[gfn->offset / 64] |= 1ULL << gfn->offset % 64;
			__atomic_store_n(&gfn->flags, KVM_DIRTY_GFN_F_RESET, __ATOMIC_RELEASE);
		}
	}
	r = kvm_do(vmm, vmm->fd, KVM_RESET_DIRTY_RINGS, NULL, "go on with its dirty rings");
	pthread_mutex_unlock(&vmm->ring_lock);
	return r < 0 ? r : 0;
}

static int set_slots(struct vmm *vmm, unsigned int flags)
{
	unsigned int i;
	int r = 0;

	for (i = 0; i < vmm->opt.blocks && !r; i++) {
		struct kvm_userspace_memory_region region = {
			.slot = i, .guest_phys_addr = vmm->guest.block[i].addr, .flags = flags,
			.memory_size = vmm->opt.ram[i], .userspace_addr = vmm->host.block[i].addr,
		};

		r = kvm_do(vmm, vmm->fd, KVM_SET_USER_MEMORY_REGION, &region, "take guest RAM");
	}
	return r;
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
	unsigned int i = port_block(vmm, name);
	struct kvm_dirty_log log = { .slot = i, .dirty_bitmap = bitmap };
	size_t bytes = (pages + 63) / 64 * 8;
	int r;

	if (vmm->opt.log == LOG_KVM)
		return kvm_do(vmm, vmm->fd, KVM_GET_DIRTY_LOG, &log, "tell which pages are dirty");
	r = harvest(vmm);
	pthread_mutex_lock(&vmm->ring_lock); /* a vCPU may harvest, too */
	memcpy(bitmap, vmm->pending[i], bytes);
	memset(vmm->pending[i], 0, bytes);
	pthread_mutex_unlock(&vmm->ring_lock);
	return r;
}

int kvm_run(struct vcpu *vcpu)
{
	struct kvm_run *run = vcpu->run;

	while (!ioctl(vcpu->fd, KVM_RUN, 0)) {
		if (run->exit_reason == KVM_EXIT_IO && run->io.port == PAYLOAD_PORT) {
			/* The instruction ends in the next KVM_RUN: here, not in a saved state. */
			run->immediate_exit = 1;
			ioctl(vcpu->fd, KVM_RUN, 0);
			run->immediate_exit = 0;
			return 0;
		}
		if (run->exit_reason != KVM_EXIT_DIRTY_RING_FULL)
			return vcpu_error(vcpu, EFAULT, "it crashed: the guest took an exception, "
					  "or KVM gave up (exit reason %u)", run->exit_reason);
		if (harvest(vcpu->vmm))
			return -EFAULT;
	}
	if (errno != EINTR)
		return vcpu_error(vcpu, errno, "KVM cannot run it: %m");
	run->immediate_exit = 0;
	return -EINTR;
}

static int create_vcpu(struct vmm *vmm, struct vcpu *vcpu)
{
	int bytes = ioctl(vmm->kvm, KVM_GET_VCPU_MMAP_SIZE, 0);

	vcpu->fd = ioctl(vmm->fd, KVM_CREATE_VCPU, vcpu->number);
	if (bytes < 0 || vcpu->fd < 0)
		return vcpu_error(vcpu, errno, "KVM cannot create it: %m");
	vcpu->run = mmap(NULL, (size_t)bytes, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu->fd, 0);
	if (vmm->opt.log == LOG_RING)
		vcpu->ring = mmap(NULL, RING_ENTRIES * sizeof(*vcpu->ring), PROT_READ | PROT_WRITE,
				  MAP_SHARED, vcpu->fd, KVM_DIRTY_LOG_PAGE_OFFSET * PAYLOAD_PAGE);
	if (vcpu->run == MAP_FAILED || vcpu->ring == MAP_FAILED)
		return vcpu_error(vcpu, errno, "cannot map what KVM shares of it: %m");
	return kvm_do(vmm, vcpu->fd, KVM_SET_CPUID2, &vmm->cpuid, "give a vCPU the host's CPUID");
}

static int enable_rings(struct vmm *vmm)
{
	struct kvm_enable_cap cap = { .cap = KVM_CAP_DIRTY_LOG_RING,
				      .args = { RING_ENTRIES * sizeof(struct kvm_dirty_gfn) } };
	unsigned int i;

	if (ioctl(vmm->fd, KVM_ENABLE_CAP, &cap))
		return vmm_error(vmm, errno, "KVM has no dirty rings (%m): use --tracker-log log");
	for (i = 0; i < vmm->opt.blocks; i++)
		if (!(vmm->pending[i] = calloc((vmm->host.block[i].pages + 63) / 64, 8)))
			return vmm_error(vmm, ENOMEM, "no memory for bitmaps of the dirty rings");
	return 0;
}

int kvm_create(struct vmm *vmm)
{
	struct sigaction kick = { .sa_handler = on_kick };
	unsigned int i;

	sigaction(KICK, &kick, NULL); /* without SA_RESTART */
	vmm->kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (vmm->kvm < 0)
		return vmm_error(vmm, errno, "no /dev/kvm: %m; --engine threads does without");
	vmm->fd = kvm_do(vmm, vmm->kvm, KVM_CREATE_VM, NULL, "create a VM");
	if (vmm->fd < 0 || boot_cpuid(vmm) || (vmm->opt.log == LOG_RING && enable_rings(vmm)) ||
	    set_slots(vmm, 0))
		return -EIO;
	for (i = 0; i < vmm->opt.vcpus; i++)
		if (create_vcpu(vmm, &vmm->vcpu[i]))
			return -EIO;
	return state_create(vmm);
}
