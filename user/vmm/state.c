// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The device state: struct header, and with KVM a struct vcpu_state for each vCPU. Little-endian,
 * as x86 and KVM's own structs are. There is no interrupt controller in this VM; a VMM that has
 * one adds KVM_GET_IRQCHIP and KVM_GET_LAPIC.
 *
 * What is loaded is read back and compared: KVM takes some values silently and keeps others.
 * Time goes on by what passed on the wall between save and load.
 */
#include "vmm/vmm.h"

#include <errno.h>
#include <linux/kvm.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#define MAGIC 0x334d4d5652524546ULL /* "FERRVMM3" */
#define MAGIC_THREADS 0x3153444145524854ULL /* "THREADS1" */
#define MAX_MSRS 512
#define MSR_TSC 0x10

struct header {
	uint64_t magic, vcpus;	/* with --engine threads this is all */
	uint64_t realtime_ns, clock_ns;
	uint32_t tsc_khz, cpuids;
	struct kvm_cpuid_entry2 cpuid[MAX_CPUIDS];
};

struct msrs {
	struct kvm_msrs head;
	struct kvm_msr_entry entry[MAX_MSRS];
};

struct vcpu_state {
	uint8_t xsave[4096];
	struct kvm_sregs2 sregs;
	struct kvm_xcrs xcrs;
	struct kvm_regs regs;
	struct kvm_debugregs debug;
	struct kvm_vcpu_events events;
	struct kvm_mp_state run_state;
	uint32_t reserved;
	uint64_t tsc;
	struct msrs msrs;
};
_Static_assert(sizeof(struct header) == 40 + 40 * MAX_CPUIDS, "part of the format");
_Static_assert(sizeof(struct vcpu_state) == 5168 + 16 * MAX_MSRS, "part of the format");

#define SECTION(field, name) { #field, offsetof(struct vcpu_state, field), \
	sizeof(((struct vcpu_state *)0)->field), KVM_GET_##name, KVM_SET_##name }
static const struct section {
	const char *name;
	size_t offset, bytes;
	unsigned long get, set;
} sections[] = { /* in the order they are set: XCRS says what XSAVE may hold */
	SECTION(sregs, SREGS2), SECTION(xcrs, XCRS), SECTION(xsave, XSAVE), SECTION(regs, REGS),
	SECTION(debug, DEBUGREGS), SECTION(events, VCPU_EVENTS), SECTION(run_state, MP_STATE),
	SECTION(msrs, MSRS), { NULL, 0, 0, 0, 0 },
};

int state_msr(struct vcpu *vcpu, unsigned long request, uint32_t index, uint64_t *value)
{
	struct { struct kvm_msrs head; struct kvm_msr_entry entry; } one = {
		{ .nmsrs = 1 }, { .index = index, .data = *value } };
	int r = ioctl(vcpu->fd, request, &one) == 1 ? 0 : -EINVAL;

	*value = one.entry.data;
	return r;
}

int state_create(struct vmm *vmm)
{
	/* TSC, TSC_ADJUST, its deadline and Hyper-V's run time and reference count are time; the
	 * others are old names of KVM's clock. */
	static const uint32_t not[] = { MSR_TSC, 0x3b, 0x6e0, 0x40000010, 0x40000020, 0x11, 0x12, 0 };
	struct { struct kvm_msr_list head; uint32_t index[MAX_MSRS]; } list = { { MAX_MSRS }, { 0 } };
	struct msrs *msrs = vmm->msrs = calloc(1, sizeof(*msrs));
	uint32_t i, n;
	uint64_t value = 0;

	if (!msrs || ioctl(vmm->kvm, KVM_GET_MSR_INDEX_LIST, &list))
		return vmm_error(vmm, errno, "cannot list the MSRs of this KVM: %m");
	for (i = 0; i < list.head.nmsrs; i++) {
		for (n = 0; not[n] && list.index[i] != not[n]; n++)
			;
		if (!not[n] && !state_msr(&vmm->vcpu[0], KVM_GET_MSRS, list.index[i], &value) &&
		    !state_msr(&vmm->vcpu[0], KVM_SET_MSRS, list.index[i], &value))
			msrs->entry[msrs->head.nmsrs++].index = list.index[i];
	}
	return 0;
}

/* One section from KVM or, with @request its set, to it. */
static int transfer(struct vcpu *vcpu, const struct section *section, unsigned long request,
		    struct vcpu_state *state)
{
	int done = section->get == KVM_GET_MSRS ? (int)state->msrs.head.nmsrs : 0;
	int r = ioctl(vcpu->fd, request, (uint8_t *)state + section->offset);

	if (r == done)
		return 0;
	if (r < 0)
		return vmm_error(vcpu->vmm, errno, "vCPU %u: KVM refuses the %s in the state: %m",
				 vcpu->number, section->name);
	return vmm_error(vcpu->vmm, EINVAL, "vCPU %u: KVM refuses the value of MSR %#x", vcpu->number,
			 state->msrs.entry[r].index);
}

static int get_vcpu(struct vcpu *vcpu, struct vcpu_state *state)
{
	const struct section *s;
	int r = 0;

	memset(state, 0, sizeof(*state));
	state->msrs = *vcpu->vmm->msrs;
	for (s = sections; s->name && !r; s++)
		r = transfer(vcpu, s, s->get, state);
	return r ? r : state_msr(vcpu, KVM_GET_MSRS, MSR_TSC, &state->tsc);
}

static int set_vcpu(struct vcpu *vcpu, struct vcpu_state *state, struct vcpu_state *now)
{
	const struct section *s;
	uint32_t m;
	int r = 0;

	now->msrs = *vcpu->vmm->msrs;
	for (m = 0; m < now->msrs.head.nmsrs; m++)
		now->msrs.entry[m].data = state->msrs.entry[m].data;
	if (memcmp(&now->msrs, &state->msrs, sizeof(now->msrs)) || state->reserved)
		return vmm_error(vcpu->vmm, EINVAL, "vCPU %u: the state has other MSRs than this host: "
				 "it comes from another kernel or processor", vcpu->number);
	for (s = sections; s->name && !r; s++)
		r = transfer(vcpu, s, s->set, state);
	if (!r)
		r = get_vcpu(vcpu, now);
	for (s = sections; s->name && !r; s++)
		if (memcmp((uint8_t *)state + s->offset, (uint8_t *)now + s->offset, s->bytes))
			r = vmm_error(vcpu->vmm, EINVAL, "vCPU %u: KVM took the %s in the state and "
				      "changed it", vcpu->number, s->name);
	return r;
}

/* The guest's TSC was @tsc when it was saved, and goes on from @elapsed_ns later. */
static int set_tsc(struct vcpu *vcpu, uint64_t tsc, uint64_t elapsed_ns, uint32_t khz)
{
	uint64_t offset = 0, now = 0, wanted;
	struct kvm_device_attr attr = { .group = KVM_VCPU_TSC_CTRL, .attr = KVM_VCPU_TSC_OFFSET,
					.addr = (uint64_t)(uintptr_t)&offset };

	wanted = tsc + (uint64_t)((unsigned __int128)elapsed_ns * khz / 1000000);
	state_msr(vcpu, KVM_GET_MSRS, MSR_TSC, &now);
	if (ioctl(vcpu->fd, KVM_GET_DEVICE_ATTR, &attr)) {
		state_msr(vcpu, KVM_SET_MSRS, MSR_TSC, &wanted);
	} else {
		offset += wanted - now;
		ioctl(vcpu->fd, KVM_SET_DEVICE_ATTR, &attr);
	}
	/* Some KVMs run guests on the host's own TSC, which is well as long as it is ahead. */
	if (state_msr(vcpu, KVM_GET_MSRS, MSR_TSC, &now) || now < tsc)
		return vmm_error(vcpu->vmm, ERANGE, "vCPU %u: its TSC would go back, and this KVM cannot "
				 "set it: move the guest to the host it came from", vcpu->number);
	return 0;
}

/* Room for a state, and what its header has to be here and now. */
static struct header *new_state(struct vmm *vmm, size_t *bytes)
{
	struct kvm_clock_data clock = { 0 };
	struct header *header;

	*bytes = sizeof(*header) + vmm->opt.vcpus * sizeof(struct vcpu_state);
	header = calloc(1, *bytes + 1);
	if (vmm->opt.threads)
		*bytes = offsetof(struct header, realtime_ns);
	if (!header)
		return NULL;
	header->magic = vmm->opt.threads ? MAGIC_THREADS : MAGIC;
	header->vcpus = vmm->opt.vcpus;
	if (vmm->opt.threads)
		return header;
	ioctl(vmm->fd, KVM_GET_CLOCK, &clock);
	header->realtime_ns = vmm_now_ns(CLOCK_REALTIME);
	header->clock_ns = clock.clock;
	header->tsc_khz = (uint32_t)ioctl(vmm->vcpu[0].fd, KVM_GET_TSC_KHZ, 0);
	header->cpuids = vmm->cpuid->nent;
	memcpy(header->cpuid, vmm->cpuid->entries, header->cpuids * sizeof(header->cpuid[0]));
	return header;
}

int state_save(void *ctx, int fd)
{
	struct vmm *vmm = ctx;
	size_t bytes, v;
	struct header *header = new_state(vmm, &bytes);
	struct vcpu_state *state = (struct vcpu_state *)(header + 1);
	int r = header ? 0 : -ENOMEM;

	for (v = 0; v < vmm->opt.vcpus && !r && !vmm->opt.threads; v++)
		r = get_vcpu(&vmm->vcpu[v], &state[v]);
	errno = ENOSPC; /* it is a file: all of it is written, or there is no room */
	if (!r && write(fd, header, bytes) != (ssize_t)bytes)
		r = vmm_error(vmm, errno, "cannot write the device state: %m");
	free(header);
	return r;
}

/* Everything that can be said before KVM is asked; @lacks: bytes, none of a good state. */
static int check_header(struct vmm *vmm, const struct header *header, const struct header *mine,
			size_t lacks)
{
	if (header->magic != mine->magic || header->vcpus != mine->vcpus)
		return vmm_error(vmm, EINVAL, "this is no device state of this ferry-vmm with %u vCPUs: "
				 "--vcpus and --engine must be what they were", (unsigned int)mine->vcpus);
	if (lacks)
		return vmm_error(vmm, EINVAL, "the device state is too short or too long: it is damaged");
	if (header->cpuids != mine->cpuids || memcmp(header->cpuid, mine->cpuid, sizeof(mine->cpuid)))
		return vmm_error(vmm, EINVAL, "the guest had a processor with another CPUID: move it "
				 "between equal hosts");
	if (header->tsc_khz != mine->tsc_khz &&
	    ioctl(vmm->vcpu[0].fd, KVM_SET_TSC_KHZ, header->tsc_khz))
		return vmm_error(vmm, EINVAL, "the guest's TSC runs at %u kHz, and this KVM cannot "
				 "do that", header->tsc_khz);
	return 0;
}

static int load_kvm(struct vmm *vmm, struct header *header, struct header *mine)
{
	struct vcpu_state *state = (struct vcpu_state *)(header + 1);
	struct kvm_clock_data clock = { 0 };
	uint64_t elapsed = 0, v;
	int r = 0;

	/* Between hosts whose clocks differ time may stand still, it never goes back. */
	if (mine->realtime_ns > header->realtime_ns)
		elapsed = mine->realtime_ns - header->realtime_ns;
	clock.clock = header->clock_ns + elapsed;
	if (ioctl(vmm->fd, KVM_SET_CLOCK, &clock))
		r = vmm_error(vmm, errno, "KVM_SET_CLOCK: %m");
	for (v = 0; v < vmm->opt.vcpus && !r; v++) {
		r = set_vcpu(&vmm->vcpu[v], &state[v], (struct vcpu_state *)(mine + 1));
		if (!r)
			r = set_tsc(&vmm->vcpu[v], state[v].tsc, elapsed, header->tsc_khz);
	}
	return r;
}

int state_load(void *ctx, int fd)
{
	struct vmm *vmm = ctx;
	size_t wanted;
	struct header *mine = new_state(vmm, &wanted), *header = new_state(vmm, &wanted);
	int r = -ENOMEM;

	if (mine && header) {
		memset(header, 0, wanted);
		/* A byte more than there must be shows what is too long. */
		r = check_header(vmm, header, mine, wanted - (size_t)read(fd, header, wanted + 1));
		if (!r && !vmm->opt.threads)
			r = load_kvm(vmm, header, mine);
	}
	free(header);
	free(mine);
	return r;
}
