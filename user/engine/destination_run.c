// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The guest at the destination: started after RUN, or never. What is recorded is recorded before
 * anybody is told.
 */
#include <errno.h>
#include <stdio.h>

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

int ferry_destination_start(struct ferry_destination *d, struct ferry_error *why)
{
	struct ferry_error err = { 0 };
	enum ferry_phase phase;
	int r = ferry_destination_open(d, why);

	if (r)
		return r;
	if (!d->guest)
		return ferry_error_set(why, ESRCH, "its VMM is gone");
	if (!d->job->record.guest_paused)
		r = d->guest->ops->run(d->guest, why);
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
		goto refuse;
	r = ferry_job_phase(job, FERRY_PHASE_RUN_ACCEPTED, err);
	if (r)
		return r;
	r = ferry_fault_point("run-accepted", &why);
	if (!r)
		r = ferry_destination_start(d, &why);
	if (!r)
		return 0;
	/* It may have run: not for us to say that it did not. A person looks. */
	if (r == -EIO)
		return ferry_error_set(err, EIO, "the guest may or may not have run here: %s",
				       why.text);
refuse:
	ferry_error_prefix(&why, "the guest could not be started here");
	r = ferry_destination_give_up(d, FERRY_PHASE_REFUSED, why.text, err);
	return r ? r : ferry_error_set(err, ECONNREFUSED, "%s", why.text);
}
