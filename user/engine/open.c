// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/open.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/cpr.h"

static int open_journal(void *ctx, const char *undo, struct ferry_error *err)
{
	struct ferry_job *job = ctx;
	char *copy = strdup(undo);

	if (!copy)
		return ferry_error_set(err, ENOMEM, "out of memory");
	free(job->record.undo);
	job->record.undo = copy;
	return ferry_job_save(job, err);
}

static int open_to_journal(void *ctx, const char *undo, struct ferry_error *err)
{
	struct ferry_job *job = ctx;
	char *copy = strdup(undo);

	if (!copy)
		return ferry_error_set(err, ENOMEM, "out of memory");
	free(job->record.to_undo);
	job->record.to_undo = copy;
	return ferry_job_save(job, err);
}

static int open_hold(void *ctx, const char *name, int fd, struct ferry_error *err)
{
	struct ferry_job *job = ctx;

	return job->hooks->hold ? job->hooks->hold(job->hooks->ctx, name, fd, err) : 0;
}

static int open_to_hold(void *ctx, const char *name, int fd, struct ferry_error *err)
{
	struct ferry_job *job = ctx;

	(void)name;
	return job->hooks->hold ? job->hooks->hold(job->hooks->ctx, "to-guest", fd, err) : 0;
}

/* The new VMM of a cpr: the same record tells of both. */
static int open_to(struct ferry_job *job, struct ferry_guest **out, struct ferry_error *err)
{
	const struct ferry_guest_host host = {
		.journal = open_to_journal,
		.hold = open_to_hold,
		.ctx = job,
	};
	struct ferry_guest_open_params params = {
		.spec = job->record.uri,
		.host = &host,
		.role = FERRY_GUEST_DESTINATION,
		.timeout_ms = job->record.timeout_ms,
		.undo = job->record.to_undo,
		.held_fd = job->held_to_fd,
	};
	int r = ferry_guest_open(&params, out, err);

	if (r)
		return r;
	job->held_to_fd = -1;
	job->record.to_vmm = (*out)->pid;
	return 0;
}

int ferry_open_guest(struct ferry_job *job, enum ferry_guest_role role, struct ferry_guest **out,
		     struct ferry_error *err)
{
	const struct ferry_guest_host host = {
		.journal = open_journal,
		.hold = open_hold,
		.ctx = job,
	};
	struct ferry_guest_open_params params = {
		.spec = job->record.guest,
		.host = &host,
		.role = role,
		.timeout_ms = job->record.timeout_ms,
		.undo = job->record.undo,
		.held_fd = job->held_guest_fd,
	};
	int r;

	if (job->record.role == FERRY_ROLE_CPR && role == FERRY_GUEST_DESTINATION)
		return open_to(job, out, err);
	r = ferry_guest_open(&params, out, err);
	if (r)
		return r;
	job->held_guest_fd = -1; /* the guest's now */
	job->record.vmm = (*out)->pid;
	return 0;
}

int ferry_open_source(struct ferry_job *job, struct ferry_guest **guest, struct ferry_ram *ram,
		      struct ferry_error *err)
{
	int r = ferry_open_guest(job, FERRY_GUEST_SOURCE, guest, err);

	if (!r)
		r = (*guest)->ops->check(*guest, err);
	if (!r)
		r = (*guest)->ops->describe(*guest, ram, err);
	if (!r)
		r = ferry_ram_map(ram, false, err);
	if (r)
		return r;
	pthread_mutex_lock(&job->lock);
	job->stats.ram_bytes = ferry_ram_bytes(ram);
	job->stats.channels = job->options.channels;
	pthread_mutex_unlock(&job->lock);
	return 0;
}

int ferry_job_undo(struct ferry_job *job, bool resume, struct ferry_error *err)
{
	struct ferry_guest *guest;
	int r;

	if (job->record.role == FERRY_ROLE_CPR)
		return ferry_cpr_undo(job, NULL, resume, err);
	if (!job->record.undo)
		return 0;
	/* A VMM that is gone has nothing to put back. */
	if (job->record.vmm > 0 && kill(job->record.vmm, 0) && errno == ESRCH)
		return 0;
	r = ferry_open_guest(job,
			     job->record.role == FERRY_ROLE_SOURCE ? FERRY_GUEST_SOURCE :
								     FERRY_GUEST_DESTINATION,
			     &guest, err);
	if (r)
		return r;
	r = guest->ops->undo(guest, resume, err);
	guest->ops->close(guest);
	return r;
}

void ferry_job_given_back(struct ferry_job *job, struct ferry_guest *guest, int r,
			  const struct ferry_error *err, struct ferry_outcome *out)
{
	struct ferry_error why = out->error;

	out->exit_code = 1;
	out->where = FERRY_WHERE_SOURCE;
	if (r) {
		out->exit_code = 3;
		out->where = FERRY_WHERE_STOPPED;
		ferry_error_set(&out->error, -r, "%s; and the guest could not be resumed: %s",
				why.text, err->text);
		snprintf(out->advice, sizeof(out->advice), "ferry resume %s", job->record.id);
	} else if (guest && guest->ops->running(guest, NULL) < 0) {
		out->where = FERRY_WHERE_NONE; /* its VMM is gone */
	}
	ferry_job_move(job, out->state, NULL);
	job->record.settled = !r;
	ferry_job_save(job, NULL);
}
