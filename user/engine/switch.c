// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/switch.h"

#include <stdio.h>
#include <string.h>

bool ferry_switch_needed(struct ferry_job *job)
{
	bool needed;

	pthread_mutex_lock(&job->lock);
	needed = job->options.postcopy != FERRY_POSTCOPY_NEVER ||
		 job->options.on_stall == FERRY_ON_STALL_POSTCOPY;
	pthread_mutex_unlock(&job->lock);
	return needed;
}

uint32_t ferry_switch_flags(struct ferry_job *job, const struct ferry_link *link)
{
	if (ferry_switch_needed(job))
		return FERRY_WIRE_CONFIG_POSTCOPY | FERRY_WIRE_CONFIG_POSTCOPY_NEEDED;
	if (job->options.verify || !(ferry_link_features(link) & FERRY_WIRE_FEATURE_POSTCOPY))
		return 0;
	return FERRY_WIRE_CONFIG_POSTCOPY;
}

void ferry_switch_note(struct ferry_job *job, struct ferry_link *link, uint32_t flags)
{
	char why[sizeof(job->cannot_postcopy)] = "";

	if (job->options.verify)
		snprintf(why, sizeof(why), "it was started with --verify, which compares all of the "
			 "memory before the guest runs");
	else if (!(flags & FERRY_WIRE_CONFIG_POSTCOPY))
		snprintf(why, sizeof(why), "the ferry at the destination cannot do postcopy: install "
			 "this release there");
	else
		ferry_link_cannot(link, why, sizeof(why));
	pthread_mutex_lock(&job->lock);
	job->can_postcopy = !why[0];
	memcpy(job->cannot_postcopy, why, sizeof(why));
	pthread_mutex_unlock(&job->lock);
}

bool ferry_switch_due(struct ferry_job *job, const struct ferry_copy *copy, bool stalled)
{
	bool due, on_stall;

	pthread_mutex_lock(&job->lock);
	due = job->postcopy;
	on_stall = job->options.postcopy == FERRY_POSTCOPY_ON_STALL ||
		   job->options.on_stall == FERRY_ON_STALL_POSTCOPY;
	pthread_mutex_unlock(&job->lock);
	if (job->options.postcopy == FERRY_POSTCOPY_NOW)
		due = true;
	/* Without a tracker there are no rounds to wait for. */
	if (job->options.postcopy == FERRY_POSTCOPY_AFTER &&
	    (!copy->tracker || copy->round > job->options.postcopy_rounds))
		due = true;
	return due || (on_stall && stalled);
}
