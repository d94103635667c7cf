// SPDX-License-Identifier: GPL-2.0-or-later
/* The undo text; its members are described in qemu.c. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "guest/json.h"
#include "guest/qemu.h"

#define JOURNAL_VERSION 1
/* A text of ours is under 2 KiB, and 200 bytes more a mapping of guest RAM. */
#define JOURNAL_MAX_BYTES 65536

static const char *role_name(enum ferry_guest_role role)
{
	return role == FERRY_GUEST_SOURCE ? "source" : "destination";
}

int ferry_qemu_journal_new(struct ferry_qemu *q, struct ferry_error *err)
{
	struct json_object *undo = json_object_new_object();

	if (!undo)
		return ferry_error_set(err, ENOMEM, "undo text: no memory");
	json_object_object_add(undo, "driver", json_object_new_string("qmp"));
	json_object_object_add(undo, "version", json_object_new_int(JOURNAL_VERSION));
	json_object_object_add(undo, "path", json_object_new_string(q->guest.path));
	json_object_object_add(undo, "role", json_object_new_string(role_name(q->role)));
	json_object_object_add(undo, "pid", json_object_new_int64(q->guest.pid));
	json_object_object_add(undo, "start", json_object_new_int64((int64_t)q->start));
	json_object_put(q->undo);
	q->undo = undo;
	return 0;
}

static int bad(struct ferry_error *err, const char *what)
{
	return ferry_error_set(err, EPROTO, "the undo text of this migration's record is damaged "
			       "(%s); put QEMU back by hand: QMP query-migrate-capabilities, "
			       "x-ignore-shared must be off", what);
}

int ferry_qemu_journal_parse(struct ferry_qemu *q, const char *text, struct ferry_error *err)
{
	static const struct {
		const char *key;
		enum json_type type;
	} optional[] = {
		{ "capabilities", json_type_object }, { "parameters", json_type_object },
		{ "was", json_type_string }, { "userfaultfds", json_type_array },
		{ "throttled", json_type_array }, { "views", json_type_array }, { "spare", json_type_array },
	};
	const char *driver, *role;
	struct json_object *undo;
	size_t i;

	if (strlen(text) > JOURNAL_MAX_BYTES)
		return bad(err, "too long");
	undo = json_tokener_parse(text);
	json_object_put(q->undo);
	q->undo = undo;
	driver = ferry_json_string(undo, "driver");
	role = ferry_json_string(undo, "role");
	if (!driver || strcmp(driver, "qmp"))
		return bad(err, "not of the qmp driver");
	if (ferry_json_uint(undo, "version", 0) != JOURNAL_VERSION)
		return bad(err, "unknown version");
	if (!role || strcmp(role, role_name(q->role)))
		return bad(err, "of the other role");
	if (!ferry_json_uint(undo, "pid", 0) || ferry_json_uint(undo, "pid", 0) > 0x7fffffff)
		return bad(err, "no pid");
	for (i = 0; i < sizeof(optional) / sizeof(optional[0]); i++)
		if (json_object_object_get_ex(undo, optional[i].key, NULL) &&
		    !ferry_json_get(undo, optional[i].key, optional[i].type))
			return bad(err, optional[i].key);
	q->journaled = strdup(text);
	return 0;
}

int ferry_qemu_journal(struct ferry_qemu *q, struct ferry_error *err)
{
	const char *text = json_object_to_json_string_ext(
		q->undo, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE);
	char *copy;
	int r;

	if (!text || !(copy = strdup(text)))
		return ferry_error_set(err, ENOMEM, "undo text: no memory");
	if (q->journaled && !strcmp(q->journaled, copy)) {
		free(copy);
		return 0;
	}
	r = q->host.journal ? q->host.journal(q->host.ctx, copy, err) : 0;
	if (r) {
		free(copy);
		return r;
	}
	free(q->journaled);
	q->journaled = copy;
	return 0;
}
