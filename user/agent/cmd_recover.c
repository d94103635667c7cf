// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <json-c/json.h>
#include <stdio.h>
#include <string.h>

#include "agent/command.h"
#include "agent/control.h"
#include "agent/guardian.h"
#include "agent/runtime.h"
#include "agent/store.h"
#include "agent/task.h"
#include "base/log.h"
#include "engine/file.h"
#include "xport/uri.h"

static int recover_check(const struct ferry_record *record, struct ferry_error *err)
{
	if (record->role == FERRY_ROLE_CPR)
		return ferry_error_set(err, EINVAL, "%s is a cpr, which has no other side to ask: "
				       "'ferry resume %s' ends it", record->id, record->id);
	/* It has nobody to tell. */
	if (record->settled && ferry_file_path(record))
		return ferry_error_set(err, EALREADY, "%s is over: %s", record->id,
				       ferry_state_name(record->state));
	if (record->phase == FERRY_PHASE_OPEN)
		return ferry_error_set(err, EINVAL,
				       "%s was not at its switchover, there is nobody to ask: 'ferry "
				       "resume %s' cleans up", record->id, record->id);
	if (record->phase == FERRY_PHASE_FENCED)
		return ferry_error_set(err, EPERM,
				       "the guest of %s was resumed here by force: no answer counts "
				       "any more", record->id);
	/* A destination that missed the last ACK may be told again. */
	if (record->settled && record->role == FERRY_ROLE_SOURCE &&
	    record->phase != FERRY_PHASE_RAN &&
	    !(record->phase == FERRY_PHASE_ABORTED && record->disturbed_peer))
		return ferry_error_set(err, EALREADY, "%s is over: %s", record->id,
				       ferry_state_name(record->state));
	return 0;
}

/* A process that is paused takes the word itself. Return: -ECONNREFUSED there is none. */
static int recover_living(const struct ferry_args *args, struct ferry_error *err)
{
	struct json_object *request = json_object_new_object(), *ret = NULL;
	int r;

	json_object_object_add(request, "command", json_object_new_string("recover"));
	if (args->count > 1)
		json_object_object_add(request, "uri", json_object_new_string(args->operands[1]));
	r = ferry_control_ask(args->operands[0], request, ferry_args_answer_ms(args), &ret, err);
	json_object_put(ret);
	return r;
}

/* The pages come from a file. Return: as recover_living(). */
static int recover_file(const struct ferry_args *args, const char *path, struct ferry_error *err)
{
	uint64_t pages = 0;
	int r = ferry_task_request(args, "fill", path, &pages, err);

	if (!r && args->json)
		ferry_task_print(args->operands[0], "filled", path, pages);
	else if (!r && !args->quiet)
		printf("%s: %llu pages were taken in from %s; the guest has all of its memory\n",
		       args->operands[0], (unsigned long long)pages, path);
	return r;
}

int ferry_command_recover(const struct ferry_args *args)
{
	struct ferry_worker_params params = { .options = args->job, .recover = true };
	const char *path = NULL;
	struct ferry_error err = { 0 };
	struct ferry_uri uri;
	int r;

	if (args->count > 1 && !strncmp(args->operands[1], "file:", 5))
		path = args->operands[1] + 5;
	if (args->count > 1 && !path && ferry_uri_parse(args->operands[1], &uri, &err)) {
		ferry_log_error("%s", err.text);
		return FERRY_EXIT_USAGE;
	}
	r = path ? recover_file(args, path, &err) : recover_living(args, &err);
	if (!r)
		return FERRY_EXIT_DONE;
	if (r != -ECONNREFUSED) {
		ferry_log_error("%s", err.text);
		return FERRY_EXIT_FAILED;
	}
	r = ferry_store_load(args->operands[0], &params.record, &err);
	if (!r)
		r = params.lock_fd = ferry_runtime_lock(args->operands[0], &err);
	/* Read again: only with the lock is it still. */
	if (r >= 0) {
		ferry_record_free(&params.record);
		r = ferry_store_load(args->operands[0], &params.record, &err);
	}
	if (!r)
		r = recover_check(&params.record, &err);
	if (!r && args->count > 1 && ferry_file_path(&params.record))
		r = ferry_error_set(&err, EINVAL, "%s was restored from %s and goes on from there: leave "
				    "%s out", params.record.id, ferry_file_path(&params.record),
				    args->operands[1]);
	if (r) {
		ferry_log_error("%s", err.text);
		return FERRY_EXIT_FAILED;
	}
	if (path)
		snprintf(params.options.fill_path, sizeof(params.options.fill_path), "%s", path);
	else if (args->count > 1)
		ferry_uri_format(&uri, params.record.uri);
	if (args->timeout)
		params.record.timeout_ms = args->job.timeout_ms;
	params.report.style = ferry_report_choose(args->json, args->quiet);
	return ferry_guardian_run(&params);
}
