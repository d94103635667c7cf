// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/rounds.h"

#include <errno.h>

#include "base/clock.h"
#include "engine/fault_points.h"

int ferry_rounds_run(struct ferry_copy *copy,
		     int (*enough)(void *ctx, const struct ferry_converge_verdict *v,
				   struct ferry_error *err),
		     void *ctx, struct ferry_error *err)
{
	int r = 0;

	while (!r && copy->tracker) {
		struct ferry_converge_verdict v;

		if (ferry_job_cancelled(copy->job))
			return ferry_error_set(err, ECANCELED, "cancelled");
		r = ferry_copy_collect(copy, err);
		if (r)
			return r;
		v = ferry_copy_decide(copy);
		r = enough(ctx, &v, err);
		if (r)
			return r < 0 ? r : 0;
		r = ferry_copy_round(copy, err);
		if (!r)
			r = ferry_fault_point("round", err);
	}
	return r;
}

int ferry_rounds_stop(struct ferry_job *job, struct ferry_guest *guest, uint64_t *stopped_ns,
		      struct ferry_error *err)
{
	int r = guest->ops->running(guest, err);

	if (r < 0)
		return r;
	job->record.guest_paused = !r;
	*stopped_ns = ferry_clock_ns();
	return guest->ops->pause(guest, err);
}

int ferry_rounds_save(struct ferry_job *job, struct ferry_guest *guest, size_t most,
		      uint8_t **state, size_t *state_bytes, struct ferry_error *err)
{
	int r = guest->ops->save(guest, most, state, state_bytes, err);

	if (r)
		return r;
	pthread_mutex_lock(&job->lock);
	job->stats.device_bytes = *state_bytes;
	pthread_mutex_unlock(&job->lock);
	return 0;
}
