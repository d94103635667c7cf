// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The device state: struct state, up to the last vCPU there is. Little-endian, as x86 and KVM's own
 * structs are. There is no interrupt controller in this VM; a VMM that has one adds
 * KVM_GET_IRQCHIP and KVM_GET_LAPIC.
 *
 * What is loaded is read back and compared: KVM takes some values silently and keeps others.
 * Time goes on by what passed on the wall between save and load.
 */
#include "vmm/vmm.h"

#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#define MAGIC 0x334d4d5652524546ULL /* "FERRVMM3" */
#define MAGIC_THREADS 0x3153444145524854ULL /* "THREADS1" */
#define MSR_TSC 0x10

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

/* Large, hence static: callbacks come one at a time. */
static struct state {
	uint64_t magic, vcpus;	/* with --engine threads this is all */
	uint64_t realtime_ns, clock_ns;
	uint32_t tsc_khz, cpuids;
	struct kvm_cpuid_entry2 cpuid[MAX_CPUIDS];
	struct vcpu_state vcpu[MAX_VCPUS];
	uint8_t too_much;	/* a byte more shows what is too long */
} all;
_Static_assert(offsetof(struct state, vcpu) == 40 + 40 * MAX_CPUIDS, "part of the format");
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

/* TSC, TSC_ADJUST, its deadline, Hyper-V's run time and reference count, KVM's clock of old. */
static bool is_time(uint32_t msr)
{
	return msr == MSR_TSC || msr == 0x3b || msr == 0x6e0 || msr == 0x40000010 ||
	       msr == 0x40000020 || msr == 0x11 || msr == 0x12;
}

int state_create(struct vmm *vmm)
{
	struct { struct kvm_msr_list head; uint32_t msr[MAX_MSRS]; } list = { { MAX_MSRS }, { 0 } };
	int r = kvm_do(vmm, vmm->kvm, KVM_GET_MSR_INDEX_LIST, &list, "list its MSRs");
	uint64_t value = 0;
	uint32_t i;

	for (i = 0; i < list.head.nmsrs && !r; i++)
		if (!is_time(list.msr[i]) &&
		    !state_msr(&vmm->vcpu[0], KVM_GET_MSRS, list.msr[i], &value) &&
		    !state_msr(&vmm->vcpu[0], KVM_SET_MSRS, list.msr[i], &value))
			vmm->msrs.entry[vmm->msrs.head.nmsrs++].index = list.msr[i];
	return r;
}

/* All sections from KVM or, to @set them, to it. */
static int transfer(struct vcpu *vcpu, struct vcpu_state *state, bool set)
{
	const struct section *s;

	for (s = sections; s->name; s++) {
		int done = s->get == KVM_GET_MSRS ? (int)state->msrs.head.nmsrs : 0;
		int r = ioctl(vcpu->fd, set ? s->set : s->get, (uint8_t *)state + s->offset);

		if (r < 0)
			return vcpu_error(vcpu, errno, "KVM refuses the %s: %m", s->name);
		if (r != done)
			return vcpu_error(vcpu, EINVAL, "KVM refuses the value of MSR %#x",
					  state->msrs.entry[r].index);
	}
	return 0;
}

static int get_vcpu(struct vcpu *vcpu, struct vcpu_state *state)
{
	memset(state, 0, sizeof(*state));
	state->msrs = vcpu->vmm->msrs;
	return transfer(vcpu, state, false) ||
	       state_msr(vcpu, KVM_GET_MSRS, MSR_TSC, &state->tsc) ? -EIO : 0;
}

static int set_vcpu(struct vcpu *vcpu, struct vcpu_state *state)
{
	struct vcpu_state now = { .msrs = vcpu->vmm->msrs };
	const struct section *s;
	uint32_t m;

	for (m = 0; m < now.msrs.head.nmsrs; m++)
		now.msrs.entry[m].data = state->msrs.entry[m].data;
	if (memcmp(&now.msrs, &state->msrs, sizeof(now.msrs)) || state->reserved)
		return vcpu_error(vcpu, EINVAL, "the state has other MSRs than this host: it comes "
				  "from another kernel or processor");
	if (transfer(vcpu, state, true) || get_vcpu(vcpu, &now))
		return -EINVAL;
	for (s = sections; s->name; s++)
		if (memcmp((uint8_t *)state + s->offset, (uint8_t *)&now + s->offset, s->bytes))
			return vcpu_error(vcpu, EINVAL, "KVM took the %s in the state and changed "
					  "it", s->name);
	return 0;
}

/* The guest's TSC was @tsc when it was saved, and goes on from @elapsed_ns later. */
static int set_tsc(struct vcpu *vcpu, uint64_t tsc, uint64_t elapsed_ns, uint32_t khz)
{
	uint64_t wanted = tsc + (uint64_t)((unsigned __int128)elapsed_ns * khz / 1000000);
	uint64_t offset = 0, now = 0;
	struct kvm_device_attr attr = { .group = KVM_VCPU_TSC_CTRL, .attr = KVM_VCPU_TSC_OFFSET,
					.addr = (uint64_t)(uintptr_t)&offset };

	if (khz != (uint32_t)ioctl(vcpu->fd, KVM_GET_TSC_KHZ, 0) &&
	    ioctl(vcpu->fd, KVM_SET_TSC_KHZ, khz))
		return vcpu_error(vcpu, EINVAL, "its TSC ran at %u kHz, KVM cannot do that", khz);
	state_msr(vcpu, KVM_GET_MSRS, MSR_TSC, &now);
	if (!ioctl(vcpu->fd, KVM_GET_DEVICE_ATTR, &attr)) {
		offset += wanted - now;
		ioctl(vcpu->fd, KVM_SET_DEVICE_ATTR, &attr);
	}
	/* Some KVMs run guests on the host's own TSC, which is well as long as it is ahead. */
	if (state_msr(vcpu, KVM_GET_MSRS, MSR_TSC, &now) || now < tsc)
		return vcpu_error(vcpu, ERANGE, "its TSC would go back, this KVM cannot set it: "
				  "move the guest to the host it came from");
	return 0;
}

static int get_vm(struct vmm *vmm)
{
	struct kvm_clock_data clock = { 0 };
	unsigned int v;
	int r = kvm_do(vmm, vmm->fd, KVM_GET_CLOCK, &clock, "tell the guest's clock");

	all.realtime_ns = vmm_now_ns(CLOCK_REALTIME);
	all.clock_ns = clock.clock;
	all.tsc_khz = (uint32_t)ioctl(vmm->vcpu[0].fd, KVM_GET_TSC_KHZ, 0);
	all.cpuids = vmm->cpuid.head.nent;
	memcpy(all.cpuid, vmm->cpuid.entry, sizeof(all.cpuid));
	for (v = 0; v < vmm->opt.vcpus && !r; v++)
		r = get_vcpu(&vmm->vcpu[v], &all.vcpu[v]);
	return r;
}

static int set_vm(struct vmm *vmm)
{
	uint64_t now_ns = vmm_now_ns(CLOCK_REALTIME), elapsed_ns = 0;
	struct kvm_clock_data clock = { 0 };
	unsigned int v;

	if (all.cpuids != vmm->cpuid.head.nent ||
	    memcmp(all.cpuid, vmm->cpuid.entry, sizeof(all.cpuid)))
		return vmm_error(vmm, EINVAL, "the guest had a processor with another CPUID: move "
				 "it between equal hosts");
	/* Between hosts whose clocks differ time may stand still, it never goes back. */
	if (now_ns > all.realtime_ns)
		elapsed_ns = now_ns - all.realtime_ns;
	clock.clock = all.clock_ns + elapsed_ns;
	if (kvm_do(vmm, vmm->fd, KVM_SET_CLOCK, &clock, "set the guest's clock"))
		return -EINVAL;
	for (v = 0; v < vmm->opt.vcpus; v++)
		if (set_vcpu(&vmm->vcpu[v], &all.vcpu[v]) ||
		    set_tsc(&vmm->vcpu[v], all.vcpu[v].tsc, elapsed_ns, all.tsc_khz))
			return -EINVAL;
	return 0;
}

/* All zero. Return: the bytes that a state has here. */
static ssize_t prepare(const struct vmm *vmm)
{
	size_t bytes = vmm->opt.threads ? offsetof(struct state, realtime_ns) :
		offsetof(struct state, vcpu) + vmm->opt.vcpus * sizeof(struct vcpu_state);

	memset(&all, 0, bytes + 1);
	return (ssize_t)bytes;
}

int state_save(void *ctx, int fd)
{
	struct vmm *vmm = ctx;
	ssize_t bytes = prepare(vmm);
	int r = 0;

	all.magic = vmm->opt.threads ? MAGIC_THREADS : MAGIC;
	all.vcpus = vmm->opt.vcpus;
	if (!vmm->opt.threads)
		r = get_vm(vmm);
	if (!r && write(fd, &all, (size_t)bytes) != bytes)
		r = vmm_error(vmm, errno, "cannot write the device state: %m");
	return r;
}

int state_load(void *ctx, int fd)
{
	struct vmm *vmm = ctx;
	ssize_t bytes = prepare(vmm), got = read(fd, &all, (size_t)bytes + 1);

	if (all.magic != (vmm->opt.threads ? MAGIC_THREADS : MAGIC) || all.vcpus != vmm->opt.vcpus)
		return vmm_error(vmm, EINVAL, "this is no device state of this ferry-vmm with "
				 "%lu vCPUs: --vcpus and --engine must be equal", vmm->opt.vcpus);
	if (got != bytes)
		return vmm_error(vmm, EINVAL, "the device state is damaged: too short or too long");
	return vmm->opt.threads ? 0 : set_vm(vmm);
}
