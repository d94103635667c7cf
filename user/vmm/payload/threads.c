// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The engine for machines without KVM: threads of the VMM do what the guest would. All that
 * they know from one batch to the next is in guest RAM, so there is hardly a device state.
 */
#include "vmm/vmm.h"

#include <errno.h>
#include <unistd.h>

#define STATE_MAGIC 0x3153444145524854ULL /* "THREADS1" */

static int threads_create(struct vmm *vmm)
{
	return vmm->opt.log == LOG_NONE ? 0 :
	       vmm_error(vmm, EINVAL, "--tracker-log is KVM's: leave it out with --engine threads");
}

static int threads_run(struct vcpu *vcpu)
{
	payload_batch(vcpu->lane, &vcpu->vmm->host);
	return 0;
}

static void threads_kick(struct vcpu *vcpu)
{
	(void)vcpu; /* a batch takes microseconds */
}

static int threads_save(void *ctx, int fd)
{
	struct vmm *vmm = ctx;
	uint64_t state[2] = { STATE_MAGIC, vmm->opt.vcpus };

	return write(fd, state, sizeof(state)) == (ssize_t)sizeof(state) ? 0 :
	       vmm_error(vmm, EIO, "cannot write the device state");
}

static int threads_load(void *ctx, int fd)
{
	struct vmm *vmm = ctx;
	uint64_t state[3];

	if (read(fd, state, sizeof(state)) == 16 && state[0] == STATE_MAGIC &&
	    state[1] == vmm->opt.vcpus)
		return 0;
	return vmm_error(vmm, EINVAL, "this is no state of %u threads: --vcpus and --engine must be "
			 "what they were", (unsigned int)vmm->opt.vcpus);
}

const struct engine engine_threads = {
	.create = threads_create, .run = threads_run, .kick = threads_kick,
	.port = { .kind = "ferry-vmm-threads/1", .save = threads_save, .load = threads_load },
};
