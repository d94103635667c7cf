// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The guest at the destination: started after RUN, or never. What is recorded is recorded before
 * anybody is told.
 *
 * A guest that lacks pages is started by a thread of its own. Its VMM may need one of them before it
 * answers (QEMU pushes an interrupt's frame with the lock held that its monitor waits for); the page
 * comes over the link, and if that breaks in this very moment, over the next one, whose HELLO
 * is answered by the loop, which therefore must not wait for the VMM.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "engine/destination.h"
#include "engine/fault_points.h"
#include "engine/open.h"

int ferry_destination_give_up(struct ferry_destination *d, enum ferry_phase phase,
			      const char *why, struct ferry_error *err)
{
	struct ferry_error undo = { 0 };
	int r;

	snprintf(d->job->record.error, sizeof(d->job->record.error), "%s", why);
	r = ferry_job_phase(d->job, phase, err);
	if (r)
		return r;
	/* Its VMM ends without waiting for pages that nobody will bring. */
	ferry_destination_set_pool(d, NULL);
	ferry_incoming_end(&d->incoming);
	r = d->guest ? d->guest->ops->undo(d->guest, false, &undo) :
		       ferry_job_undo(d->job, false, &undo);
	if (r)
		ferry_log_warn("the VMM here is not as it was: %s", undo.text);
	return 0;
}

int ferry_destination_open(struct ferry_destination *d, struct ferry_error *err)
{
	if (d->guest || !d->adopted)
		return 0;
	return ferry_open_guest(d->job, FERRY_GUEST_DESTINATION, &d->guest, err);
}

/* It was told to start. @r: what became of that. */
static int record_start(struct ferry_destination *d, int r)
{
	struct ferry_error err = { 0 };
	enum ferry_phase phase;

	ferry_fault_point("start", NULL);
	if (r)
		return r;
	phase = ferry_incoming_missing(&d->incoming) ? FERRY_PHASE_RAN_LACKS : FERRY_PHASE_RAN;
	if (ferry_job_phase(d->job, phase, &err)) {
		/* RUN-ACCEPTED stands on disk; starting again is harmless. */
		ferry_log_warn("%s", err.text);
		d->job->record.phase = phase;
	}
	return 0;
}

static void *run_guest(void *arg)
{
	struct ferry_destination *d = arg;
	uint64_t one = 1;

	d->start.result = d->guest->ops->run(d->guest, &d->start.why);
	__atomic_store_n(&d->start.ended, true, __ATOMIC_RELEASE);
	if (write(d->wake_fd, &one, sizeof(one)) < 0)
		ferry_log_debug("the loop is awake already");
	return NULL;
}

/* Return: as ferry_destination_start(); when it goes on in its thread (start.busy) 0. */
static int start_guest(struct ferry_destination *d, struct ferry_error *why)
{
	int r = ferry_destination_open(d, why);

	if (r)
		return r;
	if (!d->guest)
		return ferry_error_set(why, ESRCH, "its VMM is gone");
	d->start = (struct ferry_destination_start){ .began_ns = ferry_clock_ns() };
	if (d->job->record.guest_paused)
		return record_start(d, 0);
	if (ferry_incoming_missing(&d->incoming)) {
		d->start.busy = !pthread_create(&d->start.thread, NULL, run_guest, d);
		if (d->start.busy)
			return 0;
	}
	return record_start(d, d->guest->ops->run(d->guest, why));
}

void ferry_destination_start_join(struct ferry_destination *d)
{
	if (d->start.busy)
		pthread_join(d->start.thread, NULL);
	d->start.busy = false;
}

int ferry_destination_start(struct ferry_destination *d, struct ferry_error *why)
{
	int r = start_guest(d, why);

	if (r || !d->start.busy)
		return r;
	ferry_destination_start_join(d);
	*why = d->start.why;
	return record_start(d, d->start.result);
}

int ferry_destination_refuse(struct ferry_destination *d)
{
	const char *why = d->job->record.error;

	return ferry_destination_send(d, FERRY_WIRE_REFUSED, why, (uint32_t)strlen(why));
}

/* The guest never ran and never will: @why becomes what is said of it. */
static int refuse_run(struct ferry_destination *d, struct ferry_error *why, struct ferry_error *err)
{
	int r;

	ferry_error_prefix(why, "the guest could not be started here");
	r = ferry_destination_give_up(d, FERRY_PHASE_REFUSED, why->text, err);
	return r ? r : ferry_error_set(err, ECONNREFUSED, "%s", why->text);
}

/* @r: what became of the start. */
static int settle_start(struct ferry_destination *d, int r, struct ferry_error *why,
			struct ferry_error *err)
{
	if (!r)
		return 0;
	/* It may have run: not for us to say that it did not. A person looks. */
	if (r == -EIO)
		return ferry_error_set(err, EIO, "the guest may or may not have run here: %s",
				       why->text);
	return refuse_run(d, why, err);
}

static int tell_running(struct ferry_destination *d)
{
	uint8_t ns[8];
	int r;

	ferry_wire_u64_encode(ferry_clock_ns() - d->start.began_ns, ns);
	if (d->job->record.phase == FERRY_PHASE_RAN_LACKS) {
		r = ferry_destination_send(d, FERRY_WIRE_RUNNING_LACKS, ns, sizeof(ns));
		ferry_fault_point("lacks-sent", NULL);
		return r;
	}
	r = ferry_destination_send(d, FERRY_WIRE_RUNNING, ns, sizeof(ns));
	ferry_fault_point("running-sent", NULL);
	return r;
}

int ferry_destination_start_ended(struct ferry_destination *d, struct ferry_error *err)
{
	struct ferry_error *why = &d->start.why;
	int r;

	ferry_destination_start_join(d);
	d->heard_ns = ferry_clock_ns(); /* the source was given no deadline meanwhile */
	r = record_start(d, d->start.result);
	/* Again: an earlier start may have worked, failing now proves nothing, so no REFUSED. */
	if (r && d->start.again)
		*err = *why;
	else
		r = settle_start(d, r, why, err);
	if (r == -ECONNREFUSED)
		ferry_destination_refuse(d);
	/* On a new link it is not said before it is asked for. */
	return r || !d->start.asked ? r : tell_running(d);
}

int ferry_destination_run_again(struct ferry_destination *d, struct ferry_error *err)
{
	int r = 0;

	if (!d->start.busy && d->job->record.phase == FERRY_PHASE_RUN_ACCEPTED) {
		r = start_guest(d, err);
		d->start.again = true;
	}
	d->start.asked = true;
	return r || d->start.busy ? r : tell_running(d);
}

int ferry_destination_accept_run(struct ferry_destination *d, struct ferry_error *err)
{
	struct ferry_job *job = d->job;
	struct ferry_error why = { 0 };
	int r;

	r = ferry_job_commit(job, err);
	if (r)
		return r;
	r = ferry_fault_point("run-received", &why);
	if (r)
		return refuse_run(d, &why, err);
	r = ferry_job_phase(job, FERRY_PHASE_RUN_ACCEPTED, err);
	if (r)
		return r;
	r = ferry_fault_point("run-accepted", &why);
	if (!r)
		r = start_guest(d, &why);
	d->start.asked = true;
	r = settle_start(d, r, &why, err);
	return r || d->start.busy ? r : tell_running(d);
}
