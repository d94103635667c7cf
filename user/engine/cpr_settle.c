// SPDX-License-Identifier: GPL-2.0-or-later
/* The end of a cpr: the guest goes on in the new VMM, or in the old one. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "engine/cpr.h"
#include "engine/fault_points.h"
#include "engine/open.h"
#include "guest/journal.h"

/* ---- forward ---- */

static void settle_downtime(struct ferry_cpr *c)
{
	if (!c->from || !c->from->stopped_ns)
		return; /* another worker stopped it */
	pthread_mutex_lock(&c->job->lock);
	c->job->stats.downtime_ns = ferry_clock_ns() - c->from->stopped_ns;
	pthread_mutex_unlock(&c->job->lock);
}

/* The guest is the new VMM's, and that is recorded: the old one has nothing to lose. */
static void settle_ran(struct ferry_cpr *c, struct ferry_outcome *out)
{
	struct ferry_job *job = c->job;
	struct ferry_error err = { 0 };

	out->where = FERRY_WHERE_DESTINATION;
	out->state = FERRY_STATE_COMPLETED;
	out->exit_code = 0;
	ferry_fault_point("cpr-ran", NULL);
	ferry_keep_drop(job->record.kept);
	if (c->to && !job->record.guest_paused)
		c->to->ops->announce(c->to);
	if (c->from && c->from->ops->quit(c->from, &err))
		ferry_log_warn("the guest is in the new VMM, but the old one (pid %d) is still here "
			       "and must not be resumed: %s", (int)c->from->pid, err.text);
	ferry_fault_point("cpr-quit", NULL);
	if (c->to && c->to->ops->undo(c->to, true, &err))
		ferry_log_warn("the guest is in the new VMM, which is not as it was: %s", err.text);
	if (c->to && c->to->ops->running(c->to, &err) < 0) {
		ferry_error_set(&out->error, EIO, "the guest was handed over and its VMM died: %s",
				err.text);
		out->where = FERRY_WHERE_NONE;
		out->exit_code = 1;
	}
	ferry_cpr_take_name(job);
	ferry_job_move(job, FERRY_STATE_COMPLETED, NULL);
	job->record.settled = true;
	ferry_job_save(job, NULL);
}

/* It may have run in the new VMM: only a person can know more. */
static void settle_unknown(struct ferry_cpr *c, const struct ferry_error *why,
			   struct ferry_outcome *out)
{
	const char *id = c->job->record.id;

	if (ferry_job_state(c->job) != FERRY_STATE_COMMIT_UNKNOWN)
		ferry_job_move(c->job, FERRY_STATE_COMMIT_UNKNOWN, NULL);
	out->state = FERRY_STATE_COMMIT_UNKNOWN;
	out->where = FERRY_WHERE_UNKNOWN;
	out->exit_code = 3;
	out->error = *why;
	snprintf(c->job->record.error, sizeof(c->job->record.error), "%s", why->text);
	snprintf(out->advice, sizeof(out->advice),
		 "the guest was handed over to the new VMM (pid %d), and it is not known whether it "
		 "ran there. To try again to start it there:\n"
		 "  ferry resume %s\n"
		 "Only if you are certain that it never ran there (this ends the new VMM):\n"
		 "  ferry resume %s --force-source\n"
		 "(if it may have run there, its memory has changed since its devices were saved: start "
		 "the guest afresh from its disks instead)",
		 (int)c->job->record.to_vmm, id, id);
	ferry_job_save(c->job, NULL);
}

/*
 * Start it. Return: 0; -EIO it may have run; another errno: it certainly did not.
 *
 * A worker that takes over knows nothing of attempts before it, and finds RAM that is armed by a
 * userfaultfd which only the new VMM still holds: undo() closes that one.
 */
static int start(struct ferry_cpr *c, struct ferry_error *err)
{
	bool first = c->keep;
	int r;

	if (!c->to)
		return ferry_error_set(err, EIO, "the new VMM (pid %d) cannot be reached",
				       (int)c->job->record.to_vmm);
	if (first) {
		ferry_keep_stop(c->keep, true);
		c->keep = NULL;
	} else if (c->to->ops->undo(c->to, true, err)) {
		return -EIO;
	}
	if (c->job->record.guest_paused)
		r = 0;
	else
		r = c->to->ops->run(c->to, err);
	return r && !first ? -EIO : r;
}

void ferry_cpr_settle(struct ferry_cpr *c, struct ferry_outcome *out)
{
	struct ferry_job *job = c->job;
	struct ferry_error err = { 0 };
	int r;

	/* Once it is known to have run, whoever owns it may have paused or moved it. */
	r = job->record.phase == FERRY_PHASE_RAN ? 0 : start(c, &err);
	if (r == -EIO) {
		settle_unknown(c, &err, out);
		return;
	}
	if (r) {
		ferry_error_prefix(&err, "the new VMM could not start the guest");
		ferry_cpr_back(c, FERRY_STATE_FAILED, &err, out);
		return;
	}
	settle_downtime(c);
	ferry_fault_point("cpr-run", NULL);
	if (job->record.phase != FERRY_PHASE_RAN && ferry_job_phase(job, FERRY_PHASE_RAN, &err)) {
		/* The old VMM is the only other copy of the truth: it is not ended without one. */
		settle_unknown(c, &err, out);
		return;
	}
	settle_ran(c, out);
}

/* ---- back ---- */

static int put_back(struct ferry_job *job, struct ferry_guest *from, struct ferry_error *err)
{
	struct ferry_ram ram;
	int r;

	if (access(job->record.kept, F_OK))
		return 0;
	ferry_ram_init(&ram);
	r = from->ops->describe(from, &ram, err);
	if (r == -ESRCH) {
		ferry_keep_drop(job->record.kept); /* nobody is left to want them */
		r = 0;
	} else if (!r) {
		r = ferry_keep_put_back(job->record.kept, &ram, err);
	}
	ferry_ram_free(&ram);
	return r;
}

int ferry_cpr_undo(struct ferry_job *job, struct ferry_guest *from, bool resume,
		   struct ferry_error *err)
{
	struct ferry_guest *opened = NULL;
	int r = 0;

	/* Two VMMs share the RAM: as long as this one lives the other does not run. */
	if (job->record.to_undo)
		r = ferry_journal_end(job->record.to_undo, job->record.timeout_ms, err);
	if (r)
		return r;
	if (job->record.takes_name)
		unlink(strchr(job->record.uri, ':') + 1);
	/* Nothing was done to it. */
	if (!job->record.undo) {
		ferry_keep_drop(job->record.kept);
		return 0;
	}
	if (!from) {
		r = ferry_open_guest(job, FERRY_GUEST_SOURCE, &opened, err);
		from = opened;
	}
	if (!r)
		r = put_back(job, from, err);
	if (!r)
		r = from->ops->undo(from, resume, err);
	if (opened)
		opened->ops->close(opened);
	return r;
}

void ferry_cpr_back(struct ferry_cpr *c, enum ferry_state state, const struct ferry_error *why,
		    struct ferry_outcome *out)
{
	struct ferry_job *job = c->job;
	bool fenced = job->record.phase == FERRY_PHASE_FENCED;
	struct ferry_error err = { 0 };
	int r;

	out->state = state;
	out->error = *why;
	snprintf(job->record.error, sizeof(job->record.error), "%s", why->text);
	/* If that cannot be recorded a worker that finds COMMIT would start the guest. */
	r = fenced ? 0 : ferry_job_phase(job, FERRY_PHASE_ABORTED, &err);
	if (r && !job->committed)
		r = 0;
	if (!r)
		r = ferry_cpr_undo(job, c->from, true, &err);
	/* After its end: what it touched last was kept before. */
	ferry_keep_stop(c->keep, false);
	c->keep = NULL;
	ferry_job_given_back(job, c->from, r, &err, out);
}
