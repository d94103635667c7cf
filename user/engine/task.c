// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/task.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "engine/job.h"

static const char *const state_names[] = {
	[FERRY_TASK_NONE] = "none",   [FERRY_TASK_ASKED] = "asked",
	[FERRY_TASK_RUNS] = "runs",   [FERRY_TASK_DONE] = "done",
	[FERRY_TASK_FAILED] = "failed",
};
static_assert(sizeof(state_names) / sizeof(state_names[0]) == FERRY_TASK_STATES,
	      "every state has a name");

const char *ferry_task_state_name(enum ferry_task_state state)
{
	return state_names[state];
}

static int may_ask(struct ferry_job *job, const char *path, struct ferry_error *err)
{
	bool source = job->record.role == FERRY_ROLE_SOURCE;
	enum ferry_state state = ferry_job_state(job);

	if (state != FERRY_STATE_POSTCOPY_PAUSED &&
	    !(source && state == FERRY_STATE_POSTCOPY_ACTIVE))
		return ferry_error_set(err, EINVAL, "%s has no pages to %s in state %s, only in "
				       "postcopy-%s", job->record.id, source ? "spill" : "take in "
				       "from a file", ferry_state_name(state),
				       source ? "active and postcopy-paused" : "paused");
	if (strlen(path) >= FERRY_TASK_PATH || !*path)
		return ferry_error_set(err, EINVAL, "the path is empty or too long");
	if (job->task.state == FERRY_TASK_ASKED || job->task.state == FERRY_TASK_RUNS)
		return ferry_error_set(err, EBUSY, "%s is busy with %s", job->record.id,
				       job->task.path);
	return 0;
}

int ferry_task_ask(struct ferry_job *job, const char *path, struct ferry_error *err)
{
	int r;

	pthread_mutex_lock(&job->lock);
	r = may_ask(job, path, err);
	if (!r) {
		memset(&job->task, 0, sizeof(job->task));
		job->task.state = FERRY_TASK_ASKED;
		snprintf(job->task.path, sizeof(job->task.path), "%s", path);
		if (job->record.role == FERRY_ROLE_SOURCE)
			job->hold = true;
		else if (job->interrupt)
			job->interrupt(job->interrupt_ctx);
		pthread_cond_broadcast(&job->changed);
	}
	pthread_mutex_unlock(&job->lock);
	return r;
}

bool ferry_task_take(struct ferry_job *job, char path[FERRY_TASK_PATH])
{
	bool asked;

	pthread_mutex_lock(&job->lock);
	asked = job->task.state == FERRY_TASK_ASKED;
	if (asked) {
		job->task.state = FERRY_TASK_RUNS;
		memcpy(path, job->task.path, FERRY_TASK_PATH);
	}
	pthread_mutex_unlock(&job->lock);
	return asked;
}

void ferry_task_end(struct ferry_job *job, uint64_t pages, const struct ferry_error *err)
{
	pthread_mutex_lock(&job->lock);
	job->task.state = err ? FERRY_TASK_FAILED : FERRY_TASK_DONE;
	job->task.pages = pages;
	if (err)
		job->task.err = *err;
	pthread_mutex_unlock(&job->lock);
}

void ferry_task_now(struct ferry_job *job, struct ferry_task *task)
{
	pthread_mutex_lock(&job->lock);
	*task = job->task;
	pthread_mutex_unlock(&job->lock);
}
