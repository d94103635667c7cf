// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The device state of the KVM engine: struct header, then struct vcpu_state for each vCPU.
 * Little-endian, as x86 and KVM's own structs are. There is no interrupt controller in this
 * VM; a VMM that has one adds KVM_GET_IRQCHIP and KVM_GET_LAPIC.
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

#define MAGIC 0x4d4d565952524546ULL /* "FERRYVMM" */
#define VERSION 1
#define MAX_MSRS 512
#define MSR_TSC 0x10
#define MSR_KVM_CLOCK 0x4b564d01
#define XSAVE_BYTES 4096

struct header {
	uint64_t magic;
	uint32_t version, vcpus, tsc_khz, cpuids;
	uint64_t realtime_ns, clock_ns;
	struct kvm_cpuid_entry2 cpuid[MAX_CPUIDS]; /* must equal the destination's */
};

struct vcpu_state {
	uint8_t xsave[XSAVE_BYTES];
	struct kvm_sregs2 sregs;
	struct kvm_xcrs xcrs;
	struct kvm_regs regs;
	struct kvm_debugregs debug;
	struct kvm_vcpu_events events;
	struct kvm_mp_state run_state;
	uint32_t nmsrs;
	uint64_t tsc;
	struct kvm_msr_entry msr[MAX_MSRS];
};
_Static_assert(sizeof(struct header) == 40 + 40 * MAX_CPUIDS, "part of the format");
_Static_assert(sizeof(struct vcpu_state) == 5160 + 16 * MAX_MSRS, "part of the format");

#define SECTION(field, name) { #field, offsetof(struct vcpu_state, field), \
	sizeof(((struct vcpu_state *)0)->field), KVM_GET_##name, KVM_SET_##name }
static const struct section {
	const char *name;
	size_t offset, bytes;
	unsigned long get, set;
} sections[] = { /* in the order they are set: XCRS says what XSAVE may hold */
	SECTION(sregs, SREGS2), SECTION(xcrs, XCRS), SECTION(xsave, XSAVE), SECTION(regs, REGS),
	SECTION(debug, DEBUGREGS), SECTION(events, VCPU_EVENTS), SECTION(run_state, MP_STATE),
};
#define SECTIONS (sizeof(sections) / sizeof(sections[0]))

/* What the payload cannot read: given values when a guest starts, compared ever after. */
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

/* Return: 0 or -EINVAL. */
static int msr(struct vcpu *vcpu, unsigned long request, uint32_t index, uint64_t *value)
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
	static const uint32_t not[] = { MSR_TSC, 0x3b, 0x6e0, 0x40000010, 0x40000020, 0x11, 0x12 };
	struct {
		struct kvm_msr_list head;
		uint32_t index[MAX_MSRS];
	} list = { .head.nmsrs = MAX_MSRS };
	uint32_t i, n;
	uint64_t value = 0;

	vmm->msrs = calloc(1, sizeof(*vmm->msrs) + MAX_MSRS * sizeof(struct kvm_msr_entry));
	if (!vmm->msrs || ioctl(vmm->kvm, KVM_GET_MSR_INDEX_LIST, &list))
		return vmm_error(vmm, errno, "cannot list the MSRs of this KVM: %m");
	for (i = 0; i < list.head.nmsrs; i++) {
		for (n = 0; n < sizeof(not) / sizeof(not[0]) && list.index[i] != not[n]; n++)
			;
		if (n == sizeof(not) / sizeof(not[0]) &&
		    !msr(&vmm->vcpu[0], KVM_GET_MSRS, list.index[i], &value) &&
		    !msr(&vmm->vcpu[0], KVM_SET_MSRS, list.index[i], &value))
			vmm->msrs->entries[vmm->msrs->nmsrs++].index = list.index[i];
	}
	return 0;
}

int state_start(struct vcpu *vcpu)
{
	uint64_t value = (vcpu->lane->self + offsetof(struct payload_lane, clock)) | 1;
	unsigned int i;

	msr(vcpu, KVM_SET_MSRS, MSR_KVM_CLOCK, &value); /* without it the payload has its TSC */
	for (i = 0; i < HIDDEN; i++) {
		value = hidden[i].data;
		if (msr(vcpu, KVM_SET_MSRS, hidden[i].index, &value))
			return vmm_error(vcpu->vmm, EINVAL, "KVM refuses a value for MSR %#x",
					 hidden[i].index);
	}
	return ioctl(vcpu->fd, KVM_SET_DEBUGREGS, &hidden_debug) ?
	       vmm_error(vcpu->vmm, errno, "KVM_SET_DEBUGREGS: %m") : 0;
}

uint64_t state_check(struct vmm *vmm)
{
	struct kvm_debugregs debug;
	uint64_t wrong = 0, value = 0;
	unsigned int v, i;

	for (v = 0; v < vmm->opt.vcpus; v++) {
		for (i = 0; i < HIDDEN; i++)
			if (msr(&vmm->vcpu[v], KVM_GET_MSRS, hidden[i].index, &value) ||
			    value != hidden[i].data) {
				wrong++;
				vmm_error(vmm, EINVAL, "vCPU %u: MSR %#x has changed", v,
					  hidden[i].index);
			}
		if (ioctl(vmm->vcpu[v].fd, KVM_GET_DEBUGREGS, &debug) ||
		    memcmp(debug.db, hidden_debug.db, sizeof(debug.db))) {
			wrong++;
			vmm_error(vmm, EINVAL, "vCPU %u: its debug registers have changed", v);
		}
	}
	return wrong;
}

/* All MSRs that are saved, by KVM_GET_MSRS or KVM_SET_MSRS. Return: how many it did. */
static int all_msrs(struct vcpu *vcpu, unsigned long request, struct kvm_msr_entry *entries)
{
	struct kvm_msrs *msrs = vcpu->vmm->msrs;
	size_t bytes = msrs->nmsrs * sizeof(*entries);
	int r;

	memcpy(msrs->entries, entries, bytes);
	r = ioctl(vcpu->fd, request, msrs);
	memcpy(entries, msrs->entries, bytes);
	return r;
}

/* @state is zero. */
static int get_vcpu(struct vcpu *vcpu, struct vcpu_state *state)
{
	struct vmm *vmm = vcpu->vmm;
	size_t i;

	for (i = 0; i < SECTIONS; i++)
		if (ioctl(vcpu->fd, sections[i].get, (uint8_t *)state + sections[i].offset))
			return vmm_error(vmm, errno, "vCPU %u: cannot read its %s: %m",
					 vcpu->number, sections[i].name);
	state->nmsrs = vmm->msrs->nmsrs;
	memcpy(state->msr, vmm->msrs->entries, state->nmsrs * sizeof(state->msr[0]));
	if (all_msrs(vcpu, KVM_GET_MSRS, state->msr) != (int)state->nmsrs ||
	    msr(vcpu, KVM_GET_MSRS, MSR_TSC, &state->tsc))
		return vmm_error(vmm, EIO, "vCPU %u: cannot read its MSRs", vcpu->number);
	return 0;
}

/* The guest's TSC was @tsc when it was saved, and goes on from @elapsed_ns later. */
static int set_tsc(struct vcpu *vcpu, uint64_t tsc, uint64_t elapsed_ns, uint32_t khz)
{
	uint64_t offset = 0, now = 0, wanted;
	struct kvm_device_attr attr = { .group = KVM_VCPU_TSC_CTRL, .attr = KVM_VCPU_TSC_OFFSET,
					.addr = (uint64_t)(uintptr_t)&offset };

	wanted = tsc + (uint64_t)((unsigned __int128)elapsed_ns * khz / 1000000);
	msr(vcpu, KVM_GET_MSRS, MSR_TSC, &now);
	if (ioctl(vcpu->fd, KVM_GET_DEVICE_ATTR, &attr)) {
		msr(vcpu, KVM_SET_MSRS, MSR_TSC, &wanted);
	} else {
		offset += wanted - now;
		ioctl(vcpu->fd, KVM_SET_DEVICE_ATTR, &attr);
	}
	/* Some KVMs run guests on the host's own TSC, which is well as long as it is ahead. */
	if (msr(vcpu, KVM_GET_MSRS, MSR_TSC, &now) || now < tsc)
		return vmm_error(vcpu->vmm, ERANGE,
				 "vCPU %u: its TSC would go back, and this KVM cannot "
				 "set it: move the guest to the host it came from",
				 vcpu->number);
	return 0;
}

/* What was set and reads otherwise, which means that this KVM cannot hold it. */
static int changed(struct vcpu *vcpu, const struct vcpu_state *set, const struct vcpu_state *now)
{
	size_t i;

	for (i = 0; i < SECTIONS; i++)
		if (memcmp((const uint8_t *)set + sections[i].offset,
			   (const uint8_t *)now + sections[i].offset, sections[i].bytes))
			return vmm_error(vcpu->vmm, EINVAL, "vCPU %u: KVM took the %s in the state and "
					 "changed it", vcpu->number, sections[i].name);
	for (i = 0; i < set->nmsrs; i++)
		if (set->msr[i].data != now->msr[i].data)
			return vmm_error(vcpu->vmm, EINVAL, "vCPU %u: KVM took the value %#llx of MSR "
					 "%#x and made it %#llx", vcpu->number,
					 (unsigned long long)set->msr[i].data, set->msr[i].index,
					 (unsigned long long)now->msr[i].data);
	return vmm_error(vcpu->vmm, EINVAL, "vCPU %u: KVM took the state and changed it", vcpu->number);
}

static int set_vcpu(struct vcpu *vcpu, struct vcpu_state *state, struct vcpu_state *check)
{
	struct vmm *vmm = vcpu->vmm;
	uint32_t m;
	size_t i;
	int r;

	for (i = 0; i < SECTIONS; i++)
		if (ioctl(vcpu->fd, sections[i].set, (uint8_t *)state + sections[i].offset))
			return vmm_error(vmm, EINVAL,
					 "vCPU %u: KVM refuses the %s in the state: %m",
					 vcpu->number, sections[i].name);
	for (m = 0; m < vmm->msrs->nmsrs; m++)
		if (state->nmsrs != vmm->msrs->nmsrs || state->msr[m].reserved ||
		    state->msr[m].index != vmm->msrs->entries[m].index)
			return vmm_error(vmm, EINVAL,
					 "vCPU %u: the state has other MSRs than this host: it "
					 "comes from another kernel or processor",
					 vcpu->number);
	r = all_msrs(vcpu, KVM_SET_MSRS, state->msr);
	if (r != (int)state->nmsrs)
		return vmm_error(vmm, EINVAL, "vCPU %u: KVM refuses the value of MSR %#x",
				 vcpu->number, state->msr[r < 0 ? 0 : r].index);
	memset(check, 0, sizeof(*check));
	r = get_vcpu(vcpu, check);
	check->tsc = state->tsc;
	if (!r && memcmp(state, check, sizeof(*check)))
		r = changed(vcpu, state, check);
	return r;
}

/* Room for a state, and what its header has to be here and now. */
static struct header *new_state(struct vmm *vmm, size_t *bytes)
{
	struct kvm_clock_data clock = { 0 };
	struct header *header;

	*bytes = sizeof(*header) + vmm->opt.vcpus * sizeof(struct vcpu_state);
	header = calloc(1, *bytes + 1);
	if (!header)
		return NULL;
	*header = (struct header){
		.magic = MAGIC,
		.version = VERSION,
		.vcpus = (uint32_t)vmm->opt.vcpus,
		.cpuids = vmm->cpuid->nent,
		.realtime_ns = vmm_now_ns(CLOCK_REALTIME),
	};
	memcpy(header->cpuid, vmm->cpuid->entries, header->cpuids * sizeof(header->cpuid[0]));
	header->tsc_khz = (uint32_t)ioctl(vmm->vcpu[0].fd, KVM_GET_TSC_KHZ, 0);
	ioctl(vmm->fd, KVM_GET_CLOCK, &clock);
	header->clock_ns = clock.clock;
	return header;
}

int state_save(struct vmm *vmm, int fd)
{
	size_t bytes, v, done;
	struct header *header = new_state(vmm, &bytes);
	struct vcpu_state *state = (struct vcpu_state *)(header + 1);
	ssize_t n;
	int r = header ? 0 : -ENOMEM;

	for (v = 0; v < vmm->opt.vcpus && !r; v++)
		r = get_vcpu(&vmm->vcpu[v], &state[v]);
	for (done = 0; !r && done < bytes; done += (size_t)n) {
		n = write(fd, (uint8_t *)header + done, bytes - done);
		if (n <= 0)
			r = vmm_error(vmm, n ? errno : EIO, "cannot write the device state: %m");
	}
	free(header);
	return r;
}

/* Everything that can be said before KVM is asked. */
static int check_header(struct vmm *vmm, const struct header *header, const struct header *mine,
			size_t bytes, size_t wanted)
{
	if (bytes < sizeof(*header) || header->magic != MAGIC)
		return vmm_error(vmm, EINVAL, "this is no device state of ferry-vmm with KVM");
	if (header->version != VERSION)
		return vmm_error(vmm, EINVAL,
				 "the device state has version %u, this ferry-vmm reads %u",
				 header->version, VERSION);
	if (header->vcpus != mine->vcpus)
		return vmm_error(vmm, EINVAL, "the guest needs --vcpus %u", header->vcpus);
	if (bytes != wanted)
		return vmm_error(vmm, EINVAL, "the device state has not %zu bytes: it is damaged",
				 wanted);
	if (header->cpuids != mine->cpuids ||
	    memcmp(header->cpuid, mine->cpuid, sizeof(mine->cpuid)))
		return vmm_error(vmm, EINVAL,
				 "the guest had a processor with another CPUID: move it "
				 "between equal hosts");
	if (header->tsc_khz != mine->tsc_khz &&
	    ioctl(vmm->vcpu[0].fd, KVM_SET_TSC_KHZ, header->tsc_khz))
		return vmm_error(vmm, EINVAL,
				 "the guest's TSC runs at %u kHz, and this KVM cannot do that",
				 header->tsc_khz);
	return 0;
}

int state_load(struct vmm *vmm, int fd)
{
	size_t wanted, bytes = 0, v;
	struct header *mine = new_state(vmm, &wanted), *header = calloc(1, wanted + 1);
	struct vcpu_state *check = NULL, *state = NULL;
	struct kvm_clock_data clock = { 0 };
	uint64_t elapsed = 0;
	ssize_t n = 1;
	int r = -ENOMEM;

	/* One byte more than there must be shows what is too long. */
	for (; mine && header && bytes <= wanted && n > 0; bytes += n > 0 ? (size_t)n : 0)
		n = read(fd, (uint8_t *)header + bytes, wanted + 1 - bytes);
	if (mine && header) {
		check = (struct vcpu_state *)(mine + 1);
		state = (struct vcpu_state *)(header + 1);
		r = check_header(vmm, header, mine, bytes, wanted);
	}
	if (!r) { /* between hosts whose clocks differ time may stand still, it never goes back */
		if (mine->realtime_ns > header->realtime_ns)
			elapsed = mine->realtime_ns - header->realtime_ns;
		clock.clock = header->clock_ns + elapsed;
		if (ioctl(vmm->fd, KVM_SET_CLOCK, &clock))
			r = vmm_error(vmm, errno, "KVM_SET_CLOCK: %m");
	}
	for (v = 0; v < vmm->opt.vcpus && !r; v++) {
		r = set_vcpu(&vmm->vcpu[v], &state[v], &check[v]);
		if (!r)
			r = set_tsc(&vmm->vcpu[v], state[v].tsc, elapsed, header->tsc_khz);
	}
	free(header);
	free(mine);
	return r;
}
