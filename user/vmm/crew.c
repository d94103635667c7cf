// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A thread for each vCPU. It runs stretches of guest code, and between them it waits:
 * while the guest is paused, for its dirty rate, for the throttle.
 *
 * Pausing: `paused` is set, then every vCPU is kicked, then all must have gone idle. A vCPU
 * that looked at `paused` before it was set is kicked out of, or before, its next stretch.
 */
#include "vmm/vmm.h"

#include <errno.h>
#include <time.h>

#define SLICE 10000000ULL /* ns of running between two pauses of a throttled vCPU */

/* After a stretch that ended with @r. Return: false when the thread must end. */
static bool wait_for_turn(struct vcpu *vcpu, int r)
{
	struct vmm *vmm = vcpu->vmm;
	uint64_t now = vmm_now_ns(CLOCK_MONOTONIC), turn;
	bool end = r && r != -EINTR;
	struct timespec until;

	pthread_mutex_lock(&vmm->lock);
	if (!r)
		vcpu->due_ns = payload_due(vcpu->lane, vcpu->due_ns, now);
	if (vmm->throttle && now - vcpu->slice_ns >= SLICE)
		vcpu->slice_ns = now + SLICE * vmm->throttle / (100 - vmm->throttle);
	turn = vcpu->due_ns > vcpu->slice_ns ? vcpu->due_ns : vcpu->slice_ns;
	until = (struct timespec){ (time_t)(turn / SECOND), (long)(turn % SECOND) };
	vmm->crashed += end; /* the others and the port go on, to tell */
	vmm->busy--;
	pthread_cond_broadcast(&vmm->changed);
	for (;; now = vmm_now_ns(CLOCK_MONOTONIC)) {
		end |= vmm->paused & PAUSED_TO_END;
		if (end || (!vmm->paused && turn <= now))
			break;
		if (vmm->paused)
			pthread_cond_wait(&vmm->changed, &vmm->lock);
		else
			pthread_cond_clockwait(&vmm->changed, &vmm->lock, CLOCK_MONOTONIC, &until);
	}
	vmm->busy += !end;
	pthread_mutex_unlock(&vmm->lock);
	return !end;
}

static void *vcpu_thread(void *arg)
{
	struct vcpu *vcpu = arg;
	struct vmm *vmm = vcpu->vmm;
	int r = -EINTR;

	while (wait_for_turn(vcpu, r)) {
		do {
			r = vcpu->run ? kvm_run(vcpu) : payload_batch(vcpu->lane, &vmm->host);
		} while (!r && !vcpu->lane->rate && !vmm->throttle &&
			 !__atomic_load_n(&vmm->paused, __ATOMIC_RELAXED));
	}
	return NULL;
}

int crew_create(struct vmm *vmm)
{
	unsigned int i;
	int r = 0;

	vmm->busy = vmm->opt.vcpus;
	for (i = 0; i < vmm->opt.vcpus && !r; i++)
		r = pthread_create(&vmm->vcpu[i].thread, NULL, vcpu_thread, &vmm->vcpu[i]);
	return r ? vmm_error(vmm, r, "cannot start a thread for each vCPU: %m") : 0;
}

static void kick_all(struct vmm *vmm)
{
	unsigned int i;

	/* Also a KVM_RUN that has not begun. Without KVM a batch takes microseconds. */
	for (i = 0; i < vmm->opt.vcpus && !vmm->opt.threads; i++) {
		__atomic_store_n(&vmm->vcpu[i].run->immediate_exit, 1, __ATOMIC_SEQ_CST);
		pthread_kill(vmm->vcpu[i].thread, KICK);
	}
}

int crew_tick(struct vmm *vmm)
{
	if (vmm->throttle)
		kick_all(vmm);
	return vmm->throttle ? 5 : 100;
}

void crew_pause(struct vmm *vmm, unsigned int by)
{
	pthread_mutex_lock(&vmm->lock);
	__atomic_or_fetch(&vmm->paused, by, __ATOMIC_RELAXED);
	pthread_cond_broadcast(&vmm->changed);
	kick_all(vmm);
	while (vmm->busy)
		pthread_cond_wait(&vmm->changed, &vmm->lock);
	pthread_mutex_unlock(&vmm->lock);
}

void crew_resume(struct vmm *vmm, unsigned int by)
{
	pthread_mutex_lock(&vmm->lock);
	vmm->placed = true; /* from now on its pages may be looked at: they are, or will come */
	__atomic_and_fetch(&vmm->paused, ~by, __ATOMIC_RELAXED);
	pthread_cond_broadcast(&vmm->changed);
	pthread_mutex_unlock(&vmm->lock);
}
