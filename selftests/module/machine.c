// SPDX-License-Identifier: GPL-2.0-or-later
#include "machine.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

/* next: incl (%esi); addl %edx, %esi; decl %ecx; jnz next; hlt */
static const unsigned char guest_code[] = { 0xff, 0x06, 0x01, 0xd6, 0x49, 0x75, 0xf9, 0xf4 };

int machine_make(struct machine *m, char *memory, size_t bytes, uint32_t flags)
{
	struct kvm_userspace_memory_region region = {
		.flags = flags,
		.memory_size = bytes,
		.userspace_addr = (uintptr_t)memory,
	};
	struct kvm_segment flat = { .limit = 0xffffffff, .selector = 16, .type = 3,
				    .present = 1, .db = 1, .s = 1, .g = 1 };
	struct kvm_sregs sregs;
	int run_bytes;

	memcpy(memory, guest_code, sizeof(guest_code));
	m->kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (m->kvm < 0)
		return -errno;
	m->vm = ioctl(m->kvm, KVM_CREATE_VM, 0);
	if (m->vm < 0 || ioctl(m->vm, KVM_SET_USER_MEMORY_REGION, &region))
		return -errno;
	m->vcpu = ioctl(m->vm, KVM_CREATE_VCPU, 0);
	run_bytes = ioctl(m->kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	if (m->vcpu < 0 || run_bytes < 0)
		return -errno;
	m->run = mmap(NULL, (size_t)run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, m->vcpu, 0);
	if (m->run == MAP_FAILED || ioctl(m->vcpu, KVM_GET_SREGS, &sregs))
		return -errno;
	sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = flat;
	sregs.cs = flat;
	sregs.cs.selector = 8;
	sregs.cs.type = 11;
	sregs.cr0 |= 1;
	return ioctl(m->vcpu, KVM_SET_SREGS, &sregs) ? -errno : 0;
}

int machine_pass(struct machine *m, uint64_t base, uint64_t n, uint64_t stride)
{
	struct kvm_regs regs = { .rflags = 2, .rsi = base, .rcx = n, .rdx = stride };

	if (ioctl(m->vcpu, KVM_SET_REGS, &regs))
		return -errno;
	while (ioctl(m->vcpu, KVM_RUN, 0))
		if (errno != EINTR)
			return -errno;
	return m->run->exit_reason == KVM_EXIT_HLT ? 0 : -EPROTO;
}

void machine_end(struct machine *m)
{
	int run_bytes = ioctl(m->kvm, KVM_GET_VCPU_MMAP_SIZE, 0);

	/* The mapping would keep the machine, and with it its hold on the memory. */
	if (run_bytes > 0)
		munmap(m->run, (size_t)run_bytes);
	close(m->vcpu);
	close(m->vm);
	close(m->kvm);
}
