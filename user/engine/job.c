// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/job.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"

static const char *const where_names[] = {
	[FERRY_WHERE_SOURCE] = "source",	   [FERRY_WHERE_DESTINATION] = "destination",
	[FERRY_WHERE_STOPPED] = "stopped",	   [FERRY_WHERE_UNKNOWN] = "unknown",
	[FERRY_WHERE_NONE] = "none",
};

const char *ferry_where_name(enum ferry_where where)
{
	return where_names[where];
}

void ferry_job_init(struct ferry_job *job, const struct ferry_job_hooks *hooks)
{
	pthread_condattr_t attr;

	memset(job, 0, sizeof(*job));
	job->hooks = hooks;
	job->held_guest_fd = -1;
	job->held_listen_fd = -1;
	job->held_to_fd = -1;
	job->started_ns = ferry_clock_ns();
	ferry_rate_init(&job->rate, 0);
	pthread_mutex_init(&job->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&job->changed, &attr);
	pthread_condattr_destroy(&attr);
}

void ferry_job_destroy(struct ferry_job *job)
{
	pthread_cond_destroy(&job->changed);
	pthread_mutex_destroy(&job->lock);
	ferry_record_free(&job->record);
}

enum ferry_state ferry_job_state(struct ferry_job *job)
{
	/* Pairs with the release in ferry_state_move(). */
	return __atomic_load_n(&job->state, __ATOMIC_ACQUIRE);
}

void ferry_job_took(struct ferry_job *job)
{
	pthread_mutex_lock(&job->lock);
	if (!job->stats.total_ns)
		job->stats.total_ns = ferry_clock_ns() - job->started_ns;
	pthread_mutex_unlock(&job->lock);
}

int ferry_job_move(struct ferry_job *job, enum ferry_state to, struct ferry_error *err)
{
	enum ferry_state from = ferry_job_state(job);
	struct ferry_error save = { 0 };
	int r = ferry_state_move(&job->state, job->record.role, from, to);

	if (r)
		return ferry_error_set(err, -r, "no way from state %s to %s at the %s",
				       ferry_state_name(from), ferry_state_name(to),
				       ferry_role_name(job->record.role));
	job->record.state = to;
	if (ferry_state_final(to))
		ferry_job_took(job);
	/* What status shows after a crash; the phase, not this, decides who owns the guest. */
	if (job->hooks->save && ferry_job_save(job, &save))
		ferry_log_warn("%s", save.text);
	if (job->hooks->state)
		job->hooks->state(job->hooks->ctx, to);
	return 0;
}

int ferry_job_save(struct ferry_job *job, struct ferry_error *err)
{
	int r;

	pthread_mutex_lock(&job->lock);
	job->record.stats = job->stats;
	job->record.max_bandwidth = job->options.max_bandwidth;
	job->shown = job->record;
	job->shown.undo = NULL;
	job->shown.to_undo = NULL;
	pthread_mutex_unlock(&job->lock);
	r = job->hooks->save(job->hooks->ctx, &job->record, err);
	job->unsaved = r;
	return r;
}

void ferry_job_options_save(struct ferry_job *job)
{
	struct ferry_error err = { 0 };
	bool changed;

	pthread_mutex_lock(&job->lock);
	changed = job->record.max_bandwidth != job->options.max_bandwidth;
	pthread_mutex_unlock(&job->lock);
	if (changed && ferry_job_save(job, &err))
		ferry_log_warn("%s", err.text);
}

void ferry_job_options_restore(struct ferry_job *job)
{
	pthread_mutex_lock(&job->lock);
	job->options.max_bandwidth = job->record.max_bandwidth;
	ferry_rate_set(&job->rate, job->options.max_bandwidth);
	snprintf(job->options.spill_dir, sizeof(job->options.spill_dir), "%s",
		 job->record.spill_dir);
	pthread_mutex_unlock(&job->lock);
}

int ferry_job_phase(struct ferry_job *job, enum ferry_phase phase, struct ferry_error *err)
{
	enum ferry_phase before = job->record.phase;
	int r;

	job->record.phase = phase;
	r = ferry_job_save(job, err);
	if (r) {
		job->record.phase = before;
		ferry_error_prefix(err, "cannot record '%s'", ferry_phase_name(phase));
	}
	return r;
}

int ferry_job_cancel(struct ferry_job *job, struct ferry_error *err)
{
	int r = 0;

	pthread_mutex_lock(&job->lock);
	if (ferry_state_final(ferry_job_state(job))) {
		r = ferry_error_set(err, EALREADY, "%s has ended already: %s", job->record.id,
				    ferry_state_name(ferry_job_state(job)));
		/* It may only be listening for the other side's last question. */
		job->cancel = true;
		if (job->interrupt)
			job->interrupt(job->interrupt_ctx);
	} else if (job->committed) {
		r = ferry_error_set(err, EBUSY,
				    "%s cannot be cancelled any more: the switchover is committed "
				    "(state %s), the destination owns the guest or is about to",
				    job->record.id, ferry_state_name(ferry_job_state(job)));
	} else {
		job->cancel = true;
		if (job->interrupt)
			job->interrupt(job->interrupt_ctx);
		pthread_cond_broadcast(&job->changed);
	}
	pthread_mutex_unlock(&job->lock);
	return r;
}

bool ferry_job_cancelled(struct ferry_job *job)
{
	bool cancel;

	pthread_mutex_lock(&job->lock);
	cancel = job->cancel;
	pthread_mutex_unlock(&job->lock);
	return cancel;
}

int ferry_job_commit(struct ferry_job *job, struct ferry_error *err)
{
	int r = 0;

	pthread_mutex_lock(&job->lock);
	if (job->cancel)
		r = ferry_error_set(err, ECANCELED, "cancelled");
	else
		job->committed = true;
	pthread_mutex_unlock(&job->lock);
	return r;
}

int ferry_job_go_on(struct ferry_job *job, struct ferry_error *err)
{
	int r = 0;

	pthread_mutex_lock(&job->lock);
	if (ferry_job_state(job) != FERRY_STATE_PRE_SWITCHOVER) {
		r = ferry_error_set(err, EINVAL,
				    "%s does not wait in pre-switchover, its state is %s; 'continue' "
				    "goes with --pause-before-switchover", job->record.id,
				    ferry_state_name(ferry_job_state(job)));
	} else {
		job->go_on = true;
		pthread_cond_broadcast(&job->changed);
	}
	pthread_mutex_unlock(&job->lock);
	return r;
}

int ferry_job_postcopy(struct ferry_job *job, struct ferry_error *err)
{
	enum ferry_state state = ferry_job_state(job);
	int r = 0;

	if (job->record.role != FERRY_ROLE_SOURCE)
		return ferry_error_set(err, EINVAL, "%s is the destination: the source switches to "
				       "postcopy, type it there", job->record.id);
	pthread_mutex_lock(&job->lock);
	if (state != FERRY_STATE_ACTIVE && state != FERRY_STATE_PRE_SWITCHOVER)
		r = ferry_error_set(err, EINVAL, "%s cannot switch to postcopy in state %s, only in "
				    "active and pre-switchover", job->record.id,
				    ferry_state_name(state));
	else if (!job->can_postcopy)
		r = ferry_error_set(err, EOPNOTSUPP, "%s cannot switch to postcopy: %s",
				    job->record.id, job->cannot_postcopy);
	else
		job->postcopy = true;
	pthread_cond_broadcast(&job->changed);
	pthread_mutex_unlock(&job->lock);
	return r;
}

int ferry_job_retry(struct ferry_job *job, const char *uri, struct ferry_error *err)
{
	enum ferry_state state = ferry_job_state(job);
	int r = 0;

	pthread_mutex_lock(&job->lock);
	if (state != FERRY_STATE_POSTCOPY_PAUSED) {
		r = ferry_error_set(err, EINVAL, "%s is at work, its state is %s: there is nothing to "
				    "recover", job->record.id, ferry_state_name(state));
	} else {
		job->retry = true;
		job->hold = false;
		snprintf(job->retry_uri, sizeof(job->retry_uri), "%s", uri ? uri : "");
		pthread_cond_broadcast(&job->changed);
		/* The destination waits for connections; in this state nothing else is broken. */
		if (job->record.role == FERRY_ROLE_DESTINATION && job->interrupt)
			job->interrupt(job->interrupt_ctx);
	}
	pthread_mutex_unlock(&job->lock);
	return r;
}

int ferry_job_pause(struct ferry_job *job, struct ferry_error *err)
{
	enum ferry_state state = ferry_job_state(job);
	int r = 0;

	if (job->record.role != FERRY_ROLE_SOURCE)
		return ferry_error_set(err, EINVAL, "%s is the destination: the source pauses, type it "
				       "there", job->record.id);
	pthread_mutex_lock(&job->lock);
	if (state != FERRY_STATE_POSTCOPY_ACTIVE && state != FERRY_STATE_POSTCOPY_PAUSED) {
		r = ferry_error_set(err, EINVAL, "%s cannot be paused in state %s, only in "
				    "postcopy-active (in precopy: ferry cancel)", job->record.id,
				    ferry_state_name(state));
	} else {
		job->hold = true;
		pthread_cond_broadcast(&job->changed);
	}
	pthread_mutex_unlock(&job->lock);
	return r;
}

bool ferry_job_held(struct ferry_job *job)
{
	bool hold;

	pthread_mutex_lock(&job->lock);
	hold = job->hold;
	pthread_mutex_unlock(&job->lock);
	return hold;
}

int ferry_job_leave(struct ferry_job *job)
{
	int r = -EINVAL;

	pthread_mutex_lock(&job->lock);
	/* A destination's process is what the running guest gets its memory from. */
	if (job->record.role == FERRY_ROLE_SOURCE &&
	    ferry_job_state(job) == FERRY_STATE_POSTCOPY_PAUSED) {
		job->leave = true;
		pthread_cond_broadcast(&job->changed);
		r = 0;
	}
	pthread_mutex_unlock(&job->lock);
	return r;
}

void ferry_job_note(struct ferry_job *job, const char *note)
{
	pthread_mutex_lock(&job->lock);
	snprintf(job->progress.note, sizeof(job->progress.note), "%s", note);
	pthread_mutex_unlock(&job->lock);
}

int ferry_size_parse(const char *text, uint64_t *bytes)
{
	static const char units[] = "KMGT";
	unsigned long long n;
	unsigned int shift = 0;
	char *end;

	if (*text < '0' || *text > '9')
		return -EINVAL;
	errno = 0;
	n = strtoull(text, &end, 10);
	if (errno)
		return -EINVAL;
	if (*end) {
		const char *u = strchr(units, *end & ~0x20);

		/* A space less that bit is NUL, which strchr() finds too. */
		if (!u || !*u || end[1])
			return -EINVAL;
		shift = 10 * (unsigned int)(u - units + 1);
	}
	if (n > UINT64_MAX >> shift)
		return -EINVAL;
	*bytes = (uint64_t)n << shift;
	return 0;
}

int ferry_on_stall_parse(const char *name, struct ferry_error *err)
{
	static const char *const names[] = {
		[FERRY_ON_STALL_WAIT] = "wait",
		[FERRY_ON_STALL_CANCEL] = "cancel",
		[FERRY_ON_STALL_THROTTLE] = "throttle",
		[FERRY_ON_STALL_POSTCOPY] = "postcopy",
	};
	int i;

	static_assert(sizeof(names) / sizeof(names[0]) == FERRY_ON_STALL_COUNT,
		      "every policy has a name");
	for (i = 0; i < FERRY_ON_STALL_COUNT; i++)
		if (!strcmp(name, names[i]))
			return i;
	return ferry_error_set(err, EINVAL, "there are wait, throttle, postcopy and cancel");
}

/* @n: the number, or the policy of on-stall. */
static int job_setting(const char *key, const char *value, uint64_t *n, struct ferry_error *err)
{
	int policy;

	if (!strcmp(key, "on-stall")) {
		policy = ferry_on_stall_parse(value, err);
		if (policy < 0)
			ferry_error_prefix(err, "on-stall=%s", value);
		else
			*n = (uint64_t)policy;
		return policy < 0 ? policy : 0;
	}
	if (strcmp(key, "max-bandwidth") && strcmp(key, "downtime-limit"))
		return ferry_error_set(err, EINVAL,
				       "no setting '%s'; there are max-bandwidth=SIZE, "
				       "downtime-limit=MS and on-stall=POLICY", key);
	if (ferry_size_parse(value, n))
		return ferry_error_set(err, EINVAL, "%s=%s is no number", key, value);
	if (!strcmp(key, "downtime-limit") && (*n > UINT32_MAX || !*n))
		return ferry_error_set(err, EINVAL,
				       "downtime-limit=%s must be 1 to 4294967295 milliseconds",
				       value);
	return 0;
}

int ferry_job_set_check(const char *key, const char *value, struct ferry_error *err)
{
	uint64_t n;

	return job_setting(key, value, &n, err);
}

int ferry_job_set(struct ferry_job *job, const char *key, const char *value,
		  struct ferry_error *err)
{
	uint64_t n = 0;
	int r = job_setting(key, value, &n, err);

	if (r)
		return r;
	if (job->record.role == FERRY_ROLE_DESTINATION)
		return ferry_error_set(err, EINVAL, "%s is the destination: the source sends, type it "
				       "there", job->record.id);
	pthread_mutex_lock(&job->lock);
	if (!strcmp(key, "max-bandwidth")) {
		job->options.max_bandwidth = n;
		ferry_rate_set(&job->rate, n);
	} else if (!strcmp(key, "downtime-limit")) {
		job->options.downtime_limit_ms = (uint32_t)n;
	} else if (n == FERRY_ON_STALL_POSTCOPY && job->cannot_postcopy[0]) {
		r = ferry_error_set(err, EOPNOTSUPP, "on-stall=postcopy: %s", job->cannot_postcopy);
	} else {
		job->options.on_stall = (enum ferry_on_stall)n;
	}
	pthread_cond_broadcast(&job->changed);
	pthread_mutex_unlock(&job->lock);
	return r;
}

void ferry_job_wait(struct ferry_job *job, uint64_t deadline_ns)
{
	struct timespec ts = {
		.tv_sec = (time_t)(deadline_ns / FERRY_NS_PER_S),
		.tv_nsec = (long)(deadline_ns % FERRY_NS_PER_S),
	};

	pthread_mutex_lock(&job->lock);
	if (!job->cancel && !job->go_on && !job->retry && !job->leave &&
	    job->task.state != FERRY_TASK_ASKED)
		pthread_cond_timedwait(&job->changed, &job->lock, &ts);
	pthread_mutex_unlock(&job->lock);
}

void ferry_job_interrupt(struct ferry_job *job, void (*fn)(void *ctx), void *ctx)
{
	pthread_mutex_lock(&job->lock);
	job->interrupt = fn;
	job->interrupt_ctx = ctx;
	/* A cancel that came before there was something to interrupt. */
	if (fn && job->cancel)
		fn(ctx);
	pthread_mutex_unlock(&job->lock);
}
