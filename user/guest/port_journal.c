// SPDX-License-Identifier: GPL-2.0-or-later
/* The undo text; its members are described in port.c. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "guest/json.h"
#include "guest/port.h"

#define JOURNAL_VERSION 1
#define JOURNAL_MAX_BYTES 4096

static const char *role_name(enum ferry_guest_role role)
{
	return role == FERRY_GUEST_SOURCE ? "source" : "destination";
}

int ferry_vmm_journal_new(struct ferry_vmm *v, struct ferry_error *err)
{
	struct json_object *undo = json_object_new_object();

	if (!undo)
		return ferry_error_set(err, ENOMEM, "undo text: no memory");
	json_object_object_add(undo, "driver", json_object_new_string("port"));
	json_object_object_add(undo, "version", json_object_new_int(JOURNAL_VERSION));
	json_object_object_add(undo, "role", json_object_new_string(role_name(v->role)));
	json_object_object_add(undo, "pid", json_object_new_int64(v->guest.pid));
	json_object_object_add(undo, "start", json_object_new_int64((int64_t)v->start));
	v->undo = undo;
	return 0;
}

static int bad(struct ferry_error *err, const char *what)
{
	return ferry_error_set(err, EPROTO, "the undo text of this migration's record is damaged "
			       "(%s); resume the guest, or end its VMM, by hand", what);
}

int ferry_vmm_journal_parse(struct ferry_vmm *v, const char *text, struct ferry_error *err)
{
	const char *driver, *role;

	if (strlen(text) > JOURNAL_MAX_BYTES)
		return bad(err, "too long");
	v->undo = json_tokener_parse(text);
	driver = ferry_json_string(v->undo, "driver");
	role = ferry_json_string(v->undo, "role");
	if (!driver || strcmp(driver, "port"))
		return bad(err, "not of the port driver");
	if (ferry_json_uint(v->undo, "version", 0) != JOURNAL_VERSION)
		return bad(err, "unknown version");
	if (!role || strcmp(role, role_name(v->role)))
		return bad(err, "of the other role");
	if (!ferry_json_uint(v->undo, "pid", 0) ||
	    ferry_json_uint(v->undo, "pid", 0) > 0x7fffffff)
		return bad(err, "no pid");
	v->journaled = strdup(text);
	return 0;
}

int ferry_vmm_journal(struct ferry_vmm *v, struct ferry_error *err)
{
	const char *text = json_object_to_json_string_ext(
		v->undo, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE);
	char *copy;
	int r;

	if (!text || !(copy = strdup(text)))
		return ferry_error_set(err, ENOMEM, "undo text: no memory");
	if (v->journaled && !strcmp(v->journaled, copy)) {
		free(copy);
		return 0;
	}
	r = v->host.journal ? v->host.journal(v->host.ctx, copy, err) : 0;
	if (r) {
		free(copy);
		return r;
	}
	free(v->journaled);
	v->journaled = copy;
	return 0;
}
