// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Migration capabilities and parameters: set for a plain device-state stream,
 * the old values journaled, put back and verified. A forgotten x-ignore-shared
 * would make a later native migration skip RAM silently.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "guest/json.h"
#include "guest/qemu.h"

/* What must be on or off; a capability this QEMU does not know is off. */
static const struct {
	const char *name;
	bool on_source, on_destination;
} wanted_caps[] = {
	{ "x-ignore-shared", true, true },
	/* Without it the destination takes the image locks on load, and no rollback is possible. */
	{ "late-block-activate", false, true },
	{ "multifd", false, false },
	{ "postcopy-ram", false, false },
	{ "postcopy-preempt", false, false },
	{ "postcopy-blocktime", false, false },
	{ "release-ram", false, false },
	{ "return-path", false, false },
	{ "switchover-ack", false, false },
	{ "pause-before-switchover", false, false },
	{ "xbzrle", false, false },
	{ "compress", false, false },
	{ "auto-converge", false, false },
	{ "dirty-limit", false, false },
	{ "rdma-pin-all", false, false },
	{ "zero-blocks", false, false },
	{ "zero-copy-send", false, false },
	{ "background-snapshot", false, false },
	{ "mapped-ram", false, false },
	{ "block", false, false },
	{ "x-colo", false, false },
};

/* Far above any device state, so that no rate limit delays the switchover. */
#define MAX_BANDWIDTH_BYTES (1ll << 40)

static const struct {
	const char *name;
	const char *text; /* NULL: the number */
	int64_t number;
} wanted_params[] = {
	{ "max-bandwidth", NULL, MAX_BANDWIDTH_BYTES },
	/* Set, it would start TLS on our socket pair. */
	{ "tls-creds", "", 0 },
	{ "mode", "normal", 0 },
};

/* The capabilities as an object name -> bool, to be put. */
static int query_caps(struct ferry_qemu *q, struct json_object **caps, struct ferry_error *err)
{
	struct json_object *reply;
	size_t i;
	int r = ferry_qemu_command(q, "query-migrate-capabilities", NULL, -1, &reply, err);

	if (r)
		return r;
	*caps = json_object_new_object();
	for (i = 0; i < ferry_json_length(reply); i++) {
		struct json_object *one = json_object_array_get_idx(reply, i);
		const char *name = ferry_json_string(one, "capability");

		if (name)
			json_object_object_add(*caps, name, json_object_new_boolean(
						       ferry_json_bool(one, "state", false)));
	}
	json_object_put(reply);
	return 0;
}

/* Set every member of name -> bool in one command: QEMU checks the result as a whole. */
static int set_caps(struct ferry_qemu *q, struct json_object *values, struct ferry_error *err)
{
	struct json_object *args = json_object_new_object(), *list = json_object_new_array();

	json_object_object_foreach(values, name, value) {
		struct json_object *one = json_object_new_object();

		json_object_object_add(one, "capability", json_object_new_string(name));
		json_object_object_add(one, "state", json_object_new_boolean(
					       json_object_get_boolean(value)));
		json_object_array_add(list, one);
	}
	json_object_object_add(args, "capabilities", list);
	return ferry_qemu_command(q, "migrate-set-capabilities", args, -1, NULL, err);
}

/* Old values of what has to change, and new values. */
static void plan_caps(struct ferry_qemu *q, struct json_object *now, struct json_object *old,
		      struct json_object *new)
{
	size_t i;

	for (i = 0; i < sizeof(wanted_caps) / sizeof(wanted_caps[0]); i++) {
		const char *name = wanted_caps[i].name;
		bool on = q->role == FERRY_GUEST_SOURCE ? wanted_caps[i].on_source :
							  wanted_caps[i].on_destination;
		bool is = ferry_json_bool(now, name, false);

		if (on == is || !json_object_object_get_ex(now, name, NULL))
			continue;
		json_object_object_add(old, name, json_object_new_boolean(is));
		json_object_object_add(new, name, json_object_new_boolean(on));
	}
}

static void plan_params(struct json_object *now, struct json_object *old, struct json_object *new)
{
	size_t i;

	for (i = 0; i < sizeof(wanted_params) / sizeof(wanted_params[0]); i++) {
		const char *name = wanted_params[i].name;
		struct json_object *is, *want;

		if (!json_object_object_get_ex(now, name, &is))
			continue;
		/* An unset text is null in some versions; it comes back as "" when set. */
		if (!is && wanted_params[i].text && !wanted_params[i].text[0])
			continue;
		want = wanted_params[i].text ? json_object_new_string(wanted_params[i].text) :
					       json_object_new_int64(wanted_params[i].number);
		if (json_object_equal(is, want)) {
			json_object_put(want);
			continue;
		}
		json_object_object_add(old, name, json_object_get(is));
		json_object_object_add(new, name, want);
	}
}

/* Add what is not noted yet: a second prepare() must not note our own settings as the old ones. */
static void note_old(struct json_object *undo, const char *key, struct json_object *old)
{
	struct json_object *noted = ferry_json_get(undo, key, json_type_object);

	if (!noted) {
		json_object_object_add(undo, key, json_object_get(old));
		return;
	}
	json_object_object_foreach(old, name, value)
		if (!json_object_object_get_ex(noted, name, NULL))
			json_object_object_add(noted, name, json_object_get(value));
}

static int prepare_planned(struct ferry_qemu *q, struct json_object *caps,
			   struct json_object *params, struct ferry_error *err)
{
	struct json_object *old_caps = json_object_new_object();
	struct json_object *new_caps = json_object_new_object();
	struct json_object *old_params = json_object_new_object();
	struct json_object *new_params = json_object_new_object();
	int r;

	plan_caps(q, caps, old_caps, new_caps);
	plan_params(params, old_params, new_params);
	note_old(q->journal.undo, "capabilities", old_caps);
	note_old(q->journal.undo, "parameters", old_params);
	r = ferry_qemu_journal(q, err);
	if (!r && json_object_object_length(new_caps))
		r = set_caps(q, new_caps, err);
	if (!r && json_object_object_length(new_params))
		r = ferry_qemu_command(q, "migrate-set-parameters", json_object_get(new_params),
				       -1, NULL, err);
	json_object_put(old_caps);
	json_object_put(new_caps);
	json_object_put(old_params);
	json_object_put(new_params);
	return r;
}

int ferry_qemu_prepare(struct ferry_guest *guest, struct ferry_error *err)
{
	struct ferry_qemu *q = ferry_qemu_of(guest);
	struct json_object *caps, *params;
	int r;

	/* undo() ends a prepared destination that is past `inmigrate`: never prepare such a one. */
	r = q->role == FERRY_GUEST_DESTINATION ? ferry_qemu_inmigrate(q, err) : 0;
	if (!r)
		r = ferry_qemu_verify(q, err);
	if (!r)
		r = query_caps(q, &caps, err);
	if (r)
		return r;
	if (!json_object_object_get_ex(caps, "x-ignore-shared", NULL)) {
		json_object_put(caps);
		return ferry_error_set(err, EOPNOTSUPP, "%s (pid %d) has no migration capability "
				       "x-ignore-shared; ferry needs QEMU 4.0 or later",
				       guest->version, (int)guest->pid);
	}
	r = ferry_qemu_command(q, "query-migrate-parameters", NULL, -1, &params, err);
	if (!r) {
		r = prepare_planned(q, caps, params, err);
		json_object_put(params);
	}
	json_object_put(caps);
	if (r)
		ferry_error_prefix(err, "preparing QEMU (pid %d)", (int)guest->pid);
	return r;
}

/* Name of the first member of @want that differs in @have, or NULL. */
static const char *first_difference(struct json_object *want, struct json_object *have)
{
	json_object_object_foreach(want, name, value) {
		struct json_object *is;

		if (!json_object_object_get_ex(have, name, &is) || !json_object_equal(is, value))
			return name;
	}
	return NULL;
}

static int verify(struct json_object *want, struct json_object *have, const char *what,
		  struct ferry_error *err)
{
	const char *name = first_difference(want, have);

	if (!name)
		return 0;
	return ferry_error_set(err, EIO, "QEMU's migration %s '%s' did not go back to its old value; "
			       "set it by hand", what, name);
}

int ferry_qemu_caps_restore(struct ferry_qemu *q, struct ferry_error *err)
{
	struct json_object *old = ferry_json_get(q->journal.undo, "capabilities", json_type_object);
	struct json_object *now;
	int r;

	if (!old || !json_object_object_length(old))
		return 0;
	r = query_caps(q, &now, err);
	if (r)
		return r;
	if (first_difference(old, now)) {
		json_object_put(now);
		r = set_caps(q, old, err);
		if (!r)
			r = query_caps(q, &now, err);
		if (r)
			return r;
		r = verify(old, now, "capability", err);
	}
	json_object_put(now);
	return r;
}

int ferry_qemu_params_restore(struct ferry_qemu *q, struct ferry_error *err)
{
	struct json_object *old = ferry_json_get(q->journal.undo, "parameters", json_type_object);
	struct json_object *now;
	int r;

	if (!old || !json_object_object_length(old))
		return 0;
	r = ferry_qemu_command(q, "migrate-set-parameters", json_object_get(old), -1, NULL, err);
	if (!r)
		r = ferry_qemu_command(q, "query-migrate-parameters", NULL, -1, &now, err);
	if (r)
		return r;
	r = verify(old, now, "parameter", err);
	json_object_put(now);
	return r;
}
