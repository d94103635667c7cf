// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <json-c/json.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "agent/command.h"
#include "agent/control.h"
#include "agent/report.h"
#include "agent/runtime.h"
#include "agent/store.h"
#include "base/log.h"
#include "engine/file.h"

/* What to type when a migration is not over and no process serves it any more. */
static void status_advice(const struct ferry_record *r, char *text, size_t room)
{
	bool source = r->role == FERRY_ROLE_SOURCE;
	const char *id = r->id;

	if (r->role == FERRY_ROLE_CPR && r->phase == FERRY_PHASE_COMMIT)
		snprintf(text, room, "ferry resume %s (starts the guest in the new VMM), or, only if you "
			 "are certain that it never ran there: ferry resume %s --force-source", id,
			 id);
	else if (r->role == FERRY_ROLE_CPR)
		snprintf(text, room, "ferry resume %s", id);
	else if (r->phase == FERRY_PHASE_COMMIT)
		snprintf(text, room, "ferry recover %s (asks the destination), or, only if you are "
			 "certain that it never ran the guest and never will: ferry resume %s "
			 "--force-source", id, id);
	else if (r->phase == FERRY_PHASE_COMMIT_WAIT)
		snprintf(text, room, "ferry recover %s (waits for the source), ferry cancel %s (if the "
			 "guest runs at the source), or, only if the source is gone for good: ferry "
			 "resume %s --force-destination", id, id, id);
	else if (r->phase == FERRY_PHASE_RAN || r->phase == FERRY_PHASE_RAN_LACKS ||
		 (!source && r->phase == FERRY_PHASE_RUN_ACCEPTED))
		snprintf(text, room, "ferry recover %s", id);
	else
		snprintf(text, room, "ferry resume %s", id);
}

/* Ask the process, or read what it left. Return: the object, or NULL with a text. */
static struct json_object *status_get(const char *id, unsigned int timeout_ms,
				      struct ferry_error *err)
{
	struct json_object *request = json_object_new_object(), *status = NULL;
	struct ferry_record record;
	char advice[512];
	bool silent;
	int r;

	json_object_object_add(request, "command", json_object_new_string("status"));
	if (ferry_runtime_check_id(id, err)) {
		json_object_put(request);
		return NULL;
	}
	r = ferry_control_ask(id, request, timeout_ms, &status, NULL);
	if (!r)
		return status;
	/* One that is stopped, or stuck, is there all the same: nothing may be done in its place. */
	silent = r != -ECONNREFUSED;
	r = ferry_store_load(id, &record, err);
	if (r)
		return NULL;
	status = ferry_control_status(&record, record.state, &record.stats, silent);
	if (silent)
		json_object_object_add(status, "answers", json_object_new_boolean(false));
	if (!record.settled && !silent) {
		status_advice(&record, advice, sizeof(advice));
		json_object_object_add(status, "advice", json_object_new_string(advice));
	}
	ferry_record_free(&record);
	return status;
}

static const char *text_of(struct json_object *o, const char *key)
{
	struct json_object *v;

	return json_object_object_get_ex(o, key, &v) && v ? json_object_get_string(v) : "";
}

static uint64_t number_of(struct json_object *o, const char *key)
{
	struct json_object *v;

	return json_object_object_get_ex(o, key, &v) ? json_object_get_uint64(v) : 0;
}

static const char *status_remark(struct json_object *s)
{
	if (json_object_object_get_ex(s, "answers", NULL))
		return "  (its process does not answer)";
	if (json_object_get_boolean(json_object_object_get(s, "alive")))
		return "";
	return text_of(s, "advice")[0] ? "  (no process left)" : "";
}

static void status_line(struct json_object *s)
{
	char sent[16];

	ferry_report_bytes(number_of(s, "sent_bytes"), sent);
	printf("%-20s %-12s %-16s guest: %-12s %s sent, %llu rounds%s\n", text_of(s, "id"),
	       text_of(s, "role"), text_of(s, "state"), text_of(s, "guest"), sent,
	       (unsigned long long)number_of(s, "rounds"), status_remark(s));
}

static const char *relation(struct json_object *s)
{
	bool source = strcmp(text_of(s, "role"), "destination");

	if (!strncmp(text_of(s, "uri"), FERRY_FILE_SCHEME, strlen(FERRY_FILE_SCHEME)))
		return source ? "saved to" : "restored from";
	return source ? "to" : "listening at";
}

static void status_whole(struct json_object *s)
{
	status_line(s);
	printf("  phase %s, epoch %llu, uuid %s\n  guest %s, %s %s\n", text_of(s, "phase"),
	       (unsigned long long)number_of(s, "epoch"), text_of(s, "uuid"), text_of(s, "spec"),
	       relation(s), text_of(s, "uri"));
	if (text_of(s, "tracker")[0])
		printf("  tracker %s, %llu channels, downtime %.1f ms%s\n", text_of(s, "tracker"),
		       (unsigned long long)number_of(s, "channels"),
		       (double)number_of(s, "downtime_ns") / 1e6,
		       json_object_get_boolean(json_object_object_get(s, "verified")) ?
			       ", RAM verified equal" : "");
	if (text_of(s, "error")[0])
		printf("  error: %s\n", text_of(s, "error"));
	if (json_object_object_get_ex(s, "answers", NULL))
		printf("  its worker (pid %d) does not answer: this is what it noted last\n",
		       (int)number_of(s, "worker"));
	if (text_of(s, "advice")[0])
		printf("  no process serves it any more; type:\n    %s\n", text_of(s, "advice"));
}

struct list_context {
	bool json;
	unsigned int answer_ms;
	int failed;
};

static void list_one(void *ctx, const char *id)
{
	struct list_context *list = ctx;
	struct ferry_error err = { 0 };
	struct json_object *s = status_get(id, list->answer_ms, &err);

	if (!s) {
		ferry_log_error("%s", err.text);
		list->failed = 1;
		return;
	}
	if (list->json) {
		ferry_report_print(s);
		return;
	}
	status_line(s);
	json_object_put(s);
}

int ferry_command_list(const struct ferry_args *args)
{
	struct list_context list = {
		.json = args->json, .answer_ms = ferry_args_answer_ms(args),
	};
	struct ferry_error err = { 0 };

	if (ferry_store_list(list_one, &list, &err)) {
		ferry_log_error("%s", err.text);
		return FERRY_EXIT_FAILED;
	}
	return list.failed ? FERRY_EXIT_FAILED : FERRY_EXIT_DONE;
}

int ferry_command_status(const struct ferry_args *args)
{
	struct ferry_error err = { 0 };
	struct json_object *s;

	if (!args->count)
		return ferry_command_list(args);
	s = status_get(args->operands[0], ferry_args_answer_ms(args), &err);
	if (!s) {
		ferry_log_error("%s", err.text);
		return FERRY_EXIT_FAILED;
	}
	if (args->json) {
		ferry_report_print(s);
		return FERRY_EXIT_DONE;
	}
	status_whole(s);
	json_object_put(s);
	return FERRY_EXIT_DONE;
}
