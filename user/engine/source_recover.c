// SPDX-License-Identifier: GPL-2.0-or-later
/* The source, in a worker that takes over from the record of another one. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "engine/job.h"
#include "engine/open.h"
#include "engine/pager.h"
#include "engine/settle.h"

/* It was given up before COMMIT: finish that, and tell a destination that may be waiting. */
static void source_recover_aborted(struct ferry_settle *settle, struct ferry_outcome *out)
{
	struct ferry_job *job = settle->job;
	struct ferry_error why = { .errnum = ECANCELED }, err = { 0 };

	snprintf(why.text, sizeof(why.text), "%s",
		 job->record.error[0] ? job->record.error : "given up before the switchover");
	if (job->record.settled) {
		out->state = job->record.state;
		out->where = FERRY_WHERE_SOURCE;
		out->exit_code = 1;
		out->error = why;
	} else {
		__atomic_store_n(&job->state, FERRY_STATE_DEVICE, __ATOMIC_RELEASE);
		ferry_settle_back(settle, FERRY_STATE_FAILED, &why, out);
	}
	if (ferry_settle_abort_confirm(settle, why.text, &err))
		ferry_log_warn("the destination could not be told: %s", err.text);
}

/* Postcopy: what is missing there is in the RAM of the stopped VMM here. */
static int source_recover_pager(struct ferry_settle *settle, struct ferry_pager *pager,
				struct ferry_ram *ram, struct ferry_error *err)
{
	int r;

	if (!settle->guest)
		return ferry_error_set(err, ESRCH, "%s", err->text);
	r = settle->guest->ops->describe(settle->guest, ram, err);
	if (!r)
		r = ferry_pager_init(pager, settle->job, ram, err);
	if (!r)
		settle->pager = pager;
	return r;
}

/* The memory that is missing there cannot be had here. */
static void source_recover_lost(struct ferry_job *job, const struct ferry_error *why,
				struct ferry_outcome *out)
{
	out->state = job->state;
	out->where = FERRY_WHERE_UNKNOWN;
	out->exit_code = 3;
	ferry_error_set(&out->error, why->errnum, "the memory that the destination may lack cannot be "
			"had from the VMM here: %s", why->text);
	snprintf(out->advice, sizeof(out->advice),
		 "if the VMM here is still there, repair what keeps ferry from it and type:\n"
		 "  ferry recover %s\n"
		 "If it is gone, the guest has to be started again from its disks", job->record.id);
	ferry_job_save(job, NULL);
}

void ferry_source_recover(struct ferry_job *job, struct ferry_outcome *out)
{
	bool lacks = job->record.phase == FERRY_PHASE_RAN_LACKS;
	struct ferry_settle settle = { .job = job };
	struct ferry_error err = { 0 };
	struct ferry_pager pager = { 0 };
	struct ferry_ram ram;
	int r;

	memset(out, 0, sizeof(*out));
	ferry_ram_init(&ram);
	__atomic_store_n(&job->state, lacks ? FERRY_STATE_POSTCOPY_PAUSED :
			 FERRY_STATE_COMMIT_UNKNOWN, __ATOMIC_RELEASE);
	pthread_mutex_lock(&job->lock);
	job->committed = true;
	job->stats = job->record.stats;
	pthread_mutex_unlock(&job->lock);
	r = ferry_uri_parse(job->record.uri, &settle.uri, &err);
	/* The VMM may be gone: the answer still has to be found out. */
	if (!r && ferry_open_guest(job, FERRY_GUEST_SOURCE, &settle.guest, &err))
		ferry_log_warn("the source VMM cannot be reached: %s", err.text);
	r = 0;
	if (job->record.postcopy && (lacks || job->record.phase == FERRY_PHASE_COMMIT))
		r = source_recover_pager(&settle, &pager, &ram, &err);
	if (r && lacks) {
		source_recover_lost(job, &err, out);
	} else if (job->record.phase == FERRY_PHASE_ABORTED) {
		source_recover_aborted(&settle, out);
	} else {
		if (lacks && job->record.release_ram)
			ferry_log_warn("the memory that was sent is gone here (--release-ram): only "
				       "whether the guest has all of it can still be found out");
		job->record.state = job->state;
		if (job->hooks->state)
			job->hooks->state(job->hooks->ctx, job->state);
		ferry_settle_commit(&settle, out);
	}
	ferry_pager_free(&pager);
	if (settle.guest)
		settle.guest->ops->close(settle.guest);
	ferry_ram_free(&ram);
}
