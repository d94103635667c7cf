// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/halt.h"

#include "base/clock.h"

int ferry_halt_guest(struct ferry_job *job, struct ferry_guest *guest, uint64_t *stopped_ns,
		     struct ferry_error *err)
{
	int r = guest->ops->running(guest, err);

	if (r < 0)
		return r;
	job->record.guest_paused = !r;
	*stopped_ns = ferry_clock_ns();
	return guest->ops->pause(guest, err);
}

int ferry_halt_save(struct ferry_job *job, struct ferry_guest *guest, size_t most, uint8_t **state,
		    size_t *state_bytes, struct ferry_error *err)
{
	int r = guest->ops->save(guest, most, state, state_bytes, err);

	if (r)
		return r;
	pthread_mutex_lock(&job->lock);
	job->stats.device_bytes = *state_bytes;
	pthread_mutex_unlock(&job->lock);
	return 0;
}
