// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/stall.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"

#define MIB (1ull << 20)

static enum ferry_on_stall stall_policy(struct ferry_job *job)
{
	enum ferry_on_stall policy;

	pthread_mutex_lock(&job->lock);
	policy = job->options.on_stall;
	pthread_mutex_unlock(&job->lock);
	return policy;
}

int ferry_stall_check(struct ferry_copy *copy, struct ferry_error *err)
{
	const struct ferry_guest_ops *ops = copy->guest->ops;
	int r;

	if (stall_policy(copy->job) != FERRY_ON_STALL_THROTTLE)
		return 0;
	r = ops->throttle ? ops->throttle(copy->guest, 0, err) :
			    ferry_error_set(err, EOPNOTSUPP, "guests of %s: cannot be throttled; "
					    "there are wait and cancel", ops->scheme);
	if (r)
		ferry_error_prefix(err, "--on-stall throttle");
	return r;
}

void ferry_stall_explain(const struct ferry_converge_verdict *v, uint32_t downtime_limit_ms,
			 uint64_t dirty_bytes_per_s, uint64_t sent_bytes_per_s, char *text,
			 size_t room)
{
	unsigned long long dirty = dirty_bytes_per_s / MIB, sent = sent_bytes_per_s / MIB;
	unsigned long long ms = v->expected_downtime_ns / FERRY_NS_PER_MS;

	if (v->hopeless)
		snprintf(text, room, "downtime limit %u ms, stopping and starting alone takes "
			 "longer: will not converge", downtime_limit_ms);
	else if (dirty_bytes_per_s > sent_bytes_per_s)
		snprintf(text, room, "dirtied %llu MiB/s, sent %llu MiB/s: will not converge", dirty,
			 sent);
	else
		snprintf(text, room, "dirtied %llu MiB/s, sent %llu MiB/s, still %llu ms of "
			 "downtime, limit %u ms: will not converge", dirty, sent, ms,
			 downtime_limit_ms);
}

/* Where the progress line and 'ferry status' find it. */
static void stall_publish(struct ferry_copy *copy, const char *why, const char *what)
{
	struct ferry_job *job = copy->job;

	pthread_mutex_lock(&job->lock);
	job->progress.throttle = copy->converge.throttle_percent;
	snprintf(job->progress.stall, sizeof(job->progress.stall), "%s%s%s", why, *why ? "; " : "",
		 what);
	pthread_mutex_unlock(&job->lock);
}

void ferry_stall_lift(struct ferry_copy *copy)
{
	struct ferry_error err = { 0 };

	if (!copy->converge.throttle_percent)
		return;
	if (copy->guest->ops->throttle(copy->guest, 0, &err))
		ferry_log_warn("the guest stays throttled for now: %s", err.text);
	ferry_converge_unthrottle(&copy->converge);
	stall_publish(copy, "", "");
}

static int stall_throttle(struct ferry_copy *copy, unsigned int percent, struct ferry_error *err)
{
	const struct ferry_guest_ops *ops = copy->guest->ops;

	if (!ops->throttle)
		return ferry_error_set(err, EOPNOTSUPP, "guests of %s: cannot be throttled",
				       ops->scheme);
	return ops->throttle(copy->guest, percent, err);
}

/* Take more time from the guest if need be. It is not worth a migration when that fails. */
static void stall_raise(struct ferry_copy *copy, const struct ferry_converge_verdict *v,
			char *what, size_t room)
{
	uint64_t pending = ferry_bitmap_count(&copy->pending) * FERRY_PAGE_SIZE;
	unsigned int before = copy->converge.throttle_percent, percent;
	struct ferry_error err = { 0 };

	percent = ferry_converge_throttle(&copy->converge, v, pending, ferry_clock_ns());
	if (percent != before && stall_throttle(copy, percent, &err)) {
		ferry_log_warn("cannot throttle the guest, going on without: %s", err.text);
		copy->converge.throttle_percent = before;
		pthread_mutex_lock(&copy->job->lock);
		copy->job->options.on_stall = FERRY_ON_STALL_WAIT;
		pthread_mutex_unlock(&copy->job->lock);
		snprintf(what, room, "the guest cannot be throttled");
		return;
	}
	if (percent)
		snprintf(what, room, "throttling guest %u %%", percent);
}

int ferry_stall_act(struct ferry_copy *copy, const struct ferry_converge_verdict *v,
		    struct ferry_error *err)
{
	enum ferry_on_stall policy = stall_policy(copy->job);
	char why[128] = "", what[64] = "";
	uint32_t limit_ms;
	uint64_t dirty;

	/* Somebody changed his mind. */
	if (policy != FERRY_ON_STALL_THROTTLE)
		ferry_stall_lift(copy);
	pthread_mutex_lock(&copy->job->lock);
	limit_ms = copy->job->options.downtime_limit_ms;
	dirty = copy->job->progress.dirty_bytes_per_s;
	pthread_mutex_unlock(&copy->job->lock);
	if (v->stalled)
		ferry_stall_explain(v, limit_ms, dirty, copy->converge.bytes_per_s, why,
				    sizeof(why));
	if (v->stalled && policy == FERRY_ON_STALL_CANCEL)
		return ferry_error_set(err, ETIME,
				       "%s; given up as --on-stall cancel asks (expected downtime "
				       "%llu ms, limit %u ms). Raise --downtime-limit or "
				       "--max-bandwidth, or use --on-stall throttle", why,
				       (unsigned long long)(v->expected_downtime_ns /
							    FERRY_NS_PER_MS), limit_ms);
	if (policy == FERRY_ON_STALL_THROTTLE)
		stall_raise(copy, v, what, sizeof(what));
	else if (v->stalled)
		snprintf(what, sizeof(what), "waiting");
	stall_publish(copy, why, what);
	return 0;
}
