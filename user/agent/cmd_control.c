// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "agent/command.h"
#include "agent/control.h"
#include "agent/runtime.h"
#include "agent/store.h"
#include "base/log.h"

static int control_send(const struct ferry_args *args, struct json_object *request,
			struct ferry_error *err)
{
	const char *id = args->operands[0];
	struct json_object *ret = NULL;
	int r = ferry_control_ask(id, request, ferry_args_answer_ms(args), &ret, err);

	json_object_put(ret);
	return r == -ECONNREFUSED ? ferry_store_unserved(id, err) : r;
}

static struct json_object *request_of(const char *command)
{
	struct json_object *o = json_object_new_object();

	json_object_object_add(o, "command", json_object_new_string(command));
	return o;
}

static int control_exit(int r, const struct ferry_error *err)
{
	if (!r)
		return FERRY_EXIT_DONE;
	ferry_log_error("%s", err->text);
	return FERRY_EXIT_FAILED;
}

static int cancel_save(void *ctx, const struct ferry_record *record, struct ferry_error *err)
{
	(void)ctx;
	return ferry_store_save(record, err);
}

/* A loaded guest that waits for RUN, and no process left: record that it never runs here. */
static int cancel_waiting(const char *id, struct ferry_error *err)
{
	const struct ferry_job_hooks hooks = { .save = cancel_save };
	struct ferry_job job;
	int lock_fd, r;

	lock_fd = ferry_runtime_lock(id, err);
	if (lock_fd < 0)
		return lock_fd;
	ferry_job_init(&job, &hooks);
	r = ferry_store_load(id, &job.record, err);
	if (!r && job.record.phase != FERRY_PHASE_COMMIT_WAIT)
		r = ferry_store_unserved(id, err);
	if (!r) {
		job.stats = job.record.stats;
		job.record.state = FERRY_STATE_CANCELLED;
		snprintf(job.record.error, sizeof(job.record.error), "cancelled at the destination");
		r = ferry_job_phase(&job, FERRY_PHASE_ABORTED, err);
	}
	if (!r)
		r = ferry_job_undo(&job, false, err);
	if (!r) {
		job.record.settled = true;
		r = ferry_job_save(&job, err);
		ferry_runtime_forget(id, NULL);
		ferry_runtime_hang_up(id);
	}
	ferry_job_destroy(&job);
	close(lock_fd);
	return r;
}

int ferry_command_cancel(const struct ferry_args *args)
{
	struct ferry_error err = { 0 };
	int r = control_send(args, request_of("cancel"), &err);

	if (r == -ECONNREFUSED)
		r = cancel_waiting(args->operands[0], &err);
	return control_exit(r, &err);
}

int ferry_command_continue(const struct ferry_args *args)
{
	struct ferry_error err = { 0 };

	return control_exit(control_send(args, request_of("continue"), &err), &err);
}

int ferry_command_postcopy(const struct ferry_args *args)
{
	struct ferry_error err = { 0 };

	return control_exit(control_send(args, request_of("postcopy"), &err), &err);
}

int ferry_command_pause(const struct ferry_args *args)
{
	struct ferry_error err = { 0 };

	return control_exit(control_send(args, request_of("pause"), &err), &err);
}

int ferry_command_set(const struct ferry_args *args)
{
	const char *word = args->operands[1], *eq = strchr(word, '=');
	char key[32] = "";
	struct json_object *request;
	struct ferry_error err = { 0 };

	if (!eq) {
		ferry_log_error("ferry set takes KEY=VALUE, like max-bandwidth=100M");
		return FERRY_EXIT_USAGE;
	}
	/* One that is cut off here is none either. */
	snprintf(key, sizeof(key), "%.*s", (int)(eq - word), word);
	if (ferry_job_set_check(key, eq + 1, &err)) {
		ferry_log_error("%s", err.text);
		return FERRY_EXIT_USAGE;
	}
	request = request_of("set");
	json_object_object_add(request, "key", json_object_new_string(key));
	json_object_object_add(request, "value", json_object_new_string(eq + 1));
	return control_exit(control_send(args, request, &err), &err);
}
