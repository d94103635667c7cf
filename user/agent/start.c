// SPDX-License-Identifier: GPL-2.0-or-later
#include "agent/start.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "agent/command.h"
#include "agent/runtime.h"
#include "agent/store.h"
#include "base/log.h"
#include "engine/fault_points.h"
#include "engine/file.h"
#include "guest/guest.h"
#include "xport/uri.h"

/* An earlier migration of this id that is not over forbids a new one. */
static int start_check_record(const char *id, struct ferry_error *err)
{
	struct ferry_record record;
	int r = ferry_store_load(id, &record, NULL);

	if (r == -ENOENT)
		return 0;
	if (r) {
		ferry_store_load(id, &record, err);
		return r;
	}
	r = record.settled;
	ferry_record_free(&record);
	if (!r)
		return ferry_error_set(err, EBUSY,
				       "an earlier migration %s is not over (state %s): 'ferry "
				       "status %s' tells what to do, or choose another --id", id,
				       ferry_state_name(record.state), id);
	return 0;
}

struct start_others {
	const struct ferry_record *mine;
	struct ferry_error *err;
	int result;
};

static void start_check_other(void *ctx, const char *id)
{
	struct start_others *o = ctx;
	struct ferry_record r = { 0 };

	if (o->result || !strcmp(id, o->mine->id) || ferry_store_load(id, &r, NULL))
		return;
	if (!r.settled && (!strcmp(r.guest, o->mine->guest) || !strcmp(r.guest, o->mine->uri) ||
			   !strcmp(r.uri, o->mine->guest) ||
			   (r.uri[0] && !strcmp(r.uri, o->mine->uri))))
		o->result = ferry_error_set(o->err, EBUSY, "%s of %s is under way (%s, state %s): let it "
					    "end first; 'ferry status %s' tells more", r.id, r.guest,
					    ferry_mode_name(r.stats.mode),
					    ferry_state_name(r.state), r.id);
	ferry_record_free(&r);
}

/* A VMM that serves another migration would not answer us; better to say which. */
static int start_check_others(const struct ferry_record *mine, struct ferry_error *err)
{
	struct start_others o = { .mine = mine, .err = err };
	int r = ferry_store_list(start_check_other, &o, err);

	return r ? r : o.result;
}

/* Where it goes: a URI, a file, or for a cpr the new VMM, "" one that is not there yet. */
static int start_peer(const struct ferry_args *args, enum ferry_role role, bool file,
		      struct ferry_record *record, struct ferry_error *err)
{
	const struct ferry_guest_ops *from, *to;
	struct ferry_uri uri;
	const char *path;
	int r;

	if (file)
		return ferry_file_uri(args->operands[1], record->uri, err);
	if (role == FERRY_ROLE_CPR) {
		r = ferry_guest_parse(args->operands[0], &from, &path, err);
		if (r || !args->to)
			return r;
		r = ferry_guest_parse(args->to, &to, &path, err);
		if (r)
			return r;
		if (from != to)
			return ferry_error_set(err, EINVAL, "%s and %s are of different kinds: a guest "
					       "moves from a QEMU to a QEMU (qmp:), or from one VMM "
					       "with libferry to another (port:)",
					       args->operands[0], args->to);
		if (!strcmp(args->operands[0], args->to))
			return ferry_error_set(err, EINVAL, "%s is the guest's own VMM: give --to the "
					       "socket of the new one", args->to);
		if (strlen(args->to) >= sizeof(record->uri))
			return ferry_error_set(err, EINVAL, "the new VMM's path is too long");
		strcpy(record->uri, args->to);
		return 0;
	}
	r = ferry_uri_parse(args->operands[1], &uri, err);
	if (r)
		return r;
	if (role == FERRY_ROLE_SOURCE && uri.kind == FERRY_URI_TCP && !strcmp(uri.port, "0"))
		return ferry_error_set(err, EINVAL,
				       "%s: port 0 is for recv, which prints the port it got; type that "
				       "one", args->operands[1]);
	ferry_uri_format(&uri, record->uri);
	return 0;
}

/* What it is called until it has begun. */
static enum ferry_mode start_mode(const struct ferry_args *args, enum ferry_role role, bool file)
{
	if (role == FERRY_ROLE_CPR)
		return FERRY_MODE_CPR;
	if (!file)
		return FERRY_MODE_PRECOPY;
	if (role == FERRY_ROLE_SOURCE)
		return args->job.live ? FERRY_MODE_SAVE_LIVE : FERRY_MODE_SAVE;
	return args->job.lazy ? FERRY_MODE_RESTORE_LAZY : FERRY_MODE_RESTORE;
}

static int start_arguments(const struct ferry_args *args, enum ferry_role role, bool file,
			   struct ferry_record *record, struct ferry_error *err)
{
	const struct ferry_guest_ops *ops;
	const char *path;
	int r;

	r = ferry_guest_parse(args->operands[0], &ops, &path, err);
	if (!r)
		r = start_peer(args, role, file, record, err);
	if (r)
		return r;
	if (strlen(args->operands[0]) >= sizeof(record->guest))
		return ferry_error_set(err, EINVAL, "the guest's path is too long");
	if (args->id) {
		r = ferry_runtime_check_id(args->id, err);
		if (!r)
			snprintf(record->id, sizeof(record->id), "%s", args->id);
	} else {
		r = ferry_runtime_default_id(args->operands[0],
					     role == FERRY_ROLE_DESTINATION ? "-in" : "", record->id,
					     sizeof(record->id), err);
	}
	if (!r)
		r = ferry_fault_point_init(0, err);
	if (r)
		return r;
	snprintf(record->guest, sizeof(record->guest), "%s", args->operands[0]);
	record->role = role;
	record->stats.mode = start_mode(args, role, file);
	record->timeout_ms = args->job.timeout_ms;
	return 0;
}

static int start_new(const struct ferry_args *args, enum ferry_role role, bool file,
		     struct ferry_worker_params *params)
{
	struct ferry_error err = { 0 };
	int r;

	r = start_arguments(args, role, file, &params->record, &err);
	if (r) {
		ferry_log_error("%s", err.text);
		return FERRY_EXIT_USAGE;
	}
	params->report.style = ferry_report_choose(args->json, args->quiet);
	params->lock_fd = ferry_runtime_lock(params->record.id, &err);
	if (params->lock_fd == -EBUSY)
		ferry_error_set(&err, EBUSY, "id %s is in use by a running ferry ('ferry status %s'); "
				"choose another with --id ID", params->record.id, params->record.id);
	r = params->lock_fd < 0 ? params->lock_fd : start_check_record(params->record.id, &err);
	if (!r && role == FERRY_ROLE_CPR)
		r = ferry_runtime_path(params->record.id, "kept", params->record.kept, &err);
	if (!r && role == FERRY_ROLE_CPR)
		r = start_check_others(&params->record, &err);
	if (r) {
		struct ferry_outcome out = {
			.state = FERRY_STATE_FAILED,
			.where = ferry_file_where_before(&params->record),
			.error = err,
		};

		ferry_report_outcome(&params->report, &params->record, &params->record.stats, &out);
		return FERRY_EXIT_FAILED;
	}
	return 0;
}

int ferry_start_new(const struct ferry_args *args, enum ferry_role role,
		    struct ferry_worker_params *params)
{
	return start_new(args, role, false, params);
}

int ferry_start_file(const struct ferry_args *args, enum ferry_role role,
		     struct ferry_worker_params *params)
{
	int r = start_new(args, role, true, params);

	if (!r && ferry_uuid_make(params->record.uuid)) {
		ferry_log_error("no random numbers for a uuid");
		return FERRY_EXIT_FAILED;
	}
	return r;
}
