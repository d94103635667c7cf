// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "agent/command.h"
#include "agent/guardian.h"
#include "agent/runtime.h"
#include "agent/store.h"
#include "base/log.h"
#include "xport/uri.h"

static int recover_check(const struct ferry_record *record, struct ferry_error *err)
{
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

int ferry_command_recover(const struct ferry_args *args)
{
	struct ferry_worker_params params = { .options = args->job, .recover = true };
	struct ferry_error err = { 0 };
	struct ferry_uri uri;
	int r;

	r = ferry_runtime_check_id(args->operands[0], &err);
	if (!r && args->count > 1)
		r = ferry_uri_parse(args->operands[1], &uri, &err);
	if (r) {
		ferry_log_error("%s", err.text);
		return FERRY_EXIT_USAGE;
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
	if (r) {
		ferry_log_error("%s", err.text);
		return FERRY_EXIT_FAILED;
	}
	if (args->count > 1)
		ferry_uri_format(&uri, params.record.uri);
	params.record.timeout_ms = args->job.timeout_ms;
	params.report.style = ferry_report_choose(args->json, args->quiet);
	return ferry_guardian_run(&params);
}
