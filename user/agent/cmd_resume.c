// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "agent/command.h"
#include "agent/control.h"
#include "agent/report.h"
#include "agent/runtime.h"
#include "agent/store.h"
#include "base/log.h"
#include "engine/file.h"
#include "engine/open.h"
#include "guest/guest.h"
#include "store/aside.h"

static int resume_save(void *ctx, const struct ferry_record *record, struct ferry_error *err)
{
	(void)ctx;
	return ferry_store_save(record, err);
}

/* What was done: words, or with --json the record as 'status' prints it. */
__attribute__((format(printf, 2, 3)))
static void resume_tell(struct ferry_job *job, const char *fmt, ...)
{
	const struct ferry_args *args = job->hooks->ctx;
	va_list ap;

	if (args->json)
		ferry_report_print(ferry_control_status(&job->record, job->record.state, &job->stats,
							false));
	if (args->json || args->quiet)
		return;
	va_start(ap, fmt);
	vprintf(fmt, ap);
	va_end(ap);
}

static int resume_end(struct ferry_job *job, enum ferry_state state, struct ferry_error *err)
{
	job->record.state = state;
	job->record.settled = true;
	return ferry_job_save(job, err);
}

static int resume_source(struct ferry_job *job, bool force, struct ferry_error *err)
{
	const char *id = job->record.id;
	int r = 0;

	switch (job->record.phase) {
	case FERRY_PHASE_OPEN:
		snprintf(job->record.error, sizeof(job->record.error), "all its processes died");
		r = ferry_job_phase(job, FERRY_PHASE_ABORTED, err);
		break;
	case FERRY_PHASE_ABORTED:
	case FERRY_PHASE_FENCED:
		break;
	case FERRY_PHASE_COMMIT:
		if (!force)
			return ferry_error_set(err, EPERM,
					       "%s is committed: the destination may run the guest.\n"
					       "  ferry recover %s        asks it\n"
					       "  ferry resume %s --force-source    only if you are "
					       "certain that it does not and never will", id, id,
					       id);
		/* The fence is durable first: no later answer can make two owners. */
		r = ferry_job_phase(job, FERRY_PHASE_FENCED, err);
		break;
	default:
		return ferry_error_set(err, EPERM,
				       "the destination runs the guest of %s: it must not run here. "
				       "'ferry recover %s' ends the migration", id, id);
	}
	if (!r && ferry_file_path(&job->record))
		ferry_store_aside_remove(ferry_file_path(&job->record), id);
	if (!r)
		r = ferry_job_undo(job, true, err);
	if (!r)
		r = resume_end(job, FERRY_STATE_FAILED, err);
	if (!r)
		resume_tell(job, "%s: the guest is back as it was before, at the source\n%s", id,
		       job->record.disturbed_peer && job->record.phase == FERRY_PHASE_ABORTED ?
			       "A destination may still wait for it; 'ferry recover' with this id "
			       "tells it to give up.\n" : "");
	return r;
}

/* The guest is owned here, or is to be by force. */
static int resume_own(struct ferry_job *job, struct ferry_error *err)
{
	struct ferry_guest *guest;
	int r = ferry_open_guest(job, FERRY_GUEST_DESTINATION, &guest, err);

	if (r)
		return r;
	/* Once it is known to have run it may have been paused, shut down or moved on since. */
	if (!job->record.guest_paused && job->record.phase != FERRY_PHASE_RAN)
		r = guest->ops->run(guest, err);
	if (!r)
		r = ferry_job_phase(job, FERRY_PHASE_RAN, err);
	if (!r)
		r = guest->ops->undo(guest, true, err);
	if (!r && !job->record.guest_paused)
		guest->ops->announce(guest);
	guest->ops->close(guest);
	if (!r)
		r = resume_end(job, FERRY_STATE_COMPLETED, err);
	if (r)
		return r;
	ferry_runtime_forget(job->record.id, NULL);
	resume_tell(job, "%s: the guest runs here, at the destination\n", job->record.id);
	return 0;
}

static int resume_destination(struct ferry_job *job, bool force, struct ferry_error *err)
{
	const char *id = job->record.id;
	int r = 0;

	/* To put the VMM back would let it read zeros where the source's memory belongs. */
	if (job->record.postcopy && (job->record.phase == FERRY_PHASE_COMMIT_WAIT ||
				     job->record.phase == FERRY_PHASE_RUN_ACCEPTED))
		return ferry_error_set(err, EPERM, "memory of the guest of %s is still at the source: "
				       "it cannot run here without.\n"
				       "  ferry recover %s        waits for the source (there: ferry "
				       "recover ITS-ID)", id, id);
	switch (job->record.phase) {
	case FERRY_PHASE_COMMIT_WAIT:
		if (!force)
			return ferry_error_set(err, EPERM,
					       "%s is loaded and waits: the source may run the guest.\n"
					       "  ferry recover %s        waits for it again\n"
					       "  ferry cancel %s         if the guest runs at the "
					       "source\n"
					       "  ferry resume %s --force-destination    only if you "
					       "are certain that the source is gone for good", id,
					       id, id, id);
		r = ferry_job_phase(job, FERRY_PHASE_RUN_ACCEPTED, err);
		return r ? r : resume_own(job, err);
	case FERRY_PHASE_RUN_ACCEPTED:
	case FERRY_PHASE_RAN:
		return resume_own(job, err);
	case FERRY_PHASE_RAN_LACKS:
		/* A person has ended a restore that could not be completed. */
		if (ferry_file_path(&job->record) && kill(job->record.vmm, 0) && errno == ESRCH) {
			r = resume_end(job, FERRY_STATE_FAILED, err);
			if (!r)
				resume_tell(job, "%s: its VMM is gone; nothing is left of it\n", id);
			return r;
		}
		return ferry_error_set(err, EPERM,
				       "the guest of %s runs here and waits for memory that has not "
				       "come: 'ferry recover %s' goes on if that is known still", id, id);
	case FERRY_PHASE_OPEN:
		snprintf(job->record.error, sizeof(job->record.error), "all its processes died");
		r = ferry_job_phase(job, FERRY_PHASE_ABORTED, err);
		break;
	default:
		break;
	}
	if (!r)
		r = ferry_job_undo(job, false, err);
	if (!r)
		r = resume_end(job, FERRY_STATE_FAILED, err);
	if (!r)
		ferry_runtime_forget(id, NULL);
	if (!r)
		resume_tell(job, "%s: cleaned up; the guest never ran here\n", id);
	return r;
}

/* A cpr: what was decided is carried out, by this process. */
static int resume_cpr(struct ferry_job *job, bool force, struct ferry_error *err)
{
	struct ferry_outcome out;

	if (force && job->record.phase != FERRY_PHASE_COMMIT)
		return ferry_error_set(err, EPERM, "%s is %s: type ferry resume %s, without force",
				       job->record.id, ferry_phase_name(job->record.phase),
				       job->record.id);
	/* Durable before the new VMM is ended: nobody starts the guest there any more. */
	if (force && ferry_job_phase(job, FERRY_PHASE_FENCED, err))
		return -EIO;
	if (job->record.phase == FERRY_PHASE_OPEN)
		snprintf(job->record.error, sizeof(job->record.error), "all its processes died");
	ferry_cpr_recover(job, &out);
	if (out.exit_code == 3)
		return ferry_error_set(err, EPERM, "%s\n%s", out.error.text, out.advice);
	resume_tell(job, "%s: the guest is %s\n", job->record.id,
		    out.where == FERRY_WHERE_DESTINATION ? "in the new VMM" :
		    out.where == FERRY_WHERE_SOURCE ? "back as it was before, in the old VMM" :
		    "gone with its VMM");
	return 0;
}

static int resume_locked(const struct ferry_args *args, struct ferry_job *job,
			 struct ferry_error *err)
{
	bool source;
	int r = ferry_store_load(args->operands[0], &job->record, err);

	if (r)
		return r;
	source = job->record.role != FERRY_ROLE_DESTINATION;
	job->stats = job->record.stats;
	if (job->record.settled)
		return ferry_error_set(err, EALREADY, "%s is over: %s, nothing to resume",
				       job->record.id, ferry_state_name(job->record.state));
	if ((source && args->force_destination) || (!source && args->force_source))
		return ferry_error_set(err, EINVAL,
				       "%s is the %s: type --force-%s here, or --force-%s on the "
				       "other host", job->record.id, source ? "source" : "destination",
				       source ? "source" : "destination",
				       source ? "destination" : "source");
	if (job->record.role == FERRY_ROLE_CPR)
		return resume_cpr(job, args->force_source, err);
	return source ? resume_source(job, args->force_source, err) :
			resume_destination(job, args->force_destination, err);
}

int ferry_command_resume(const struct ferry_args *args)
{
	const struct ferry_job_hooks hooks = { .save = resume_save, .ctx = (void *)(uintptr_t)args };
	struct ferry_error err = { 0 };
	struct ferry_record known;
	struct ferry_job job;
	int lock_fd = -1, r;

	if (args->force_source && args->force_destination) {
		ferry_log_error("--force-source and --force-destination exclude each other: one side "
				"owns the guest");
		return FERRY_EXIT_USAGE;
	}
	/* Nobody's id makes no lock file. */
	r = ferry_store_load(args->operands[0], &known, &err);
	if (!r) {
		ferry_record_free(&known);
		r = lock_fd = ferry_runtime_lock(args->operands[0], &err);
	}
	if (r < 0) {
		ferry_log_error("%s", err.text);
		return FERRY_EXIT_FAILED;
	}
	ferry_job_init(&job, &hooks);
	r = resume_locked(args, &job, &err);
	ferry_runtime_hang_up(args->operands[0]);
	ferry_job_destroy(&job);
	close(lock_fd);
	if (!r)
		return FERRY_EXIT_DONE;
	ferry_log_error("%s", err.text);
	/* Nothing to do here, or a guest that is still as it was: stopped. */
	return r == -EALREADY || r == -ENOENT || r == -EINVAL ? FERRY_EXIT_FAILED :
								FERRY_EXIT_PERSON;
}
