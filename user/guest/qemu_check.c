// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Everything that forbids a migration of this guest, found before anything is
 * disturbed: the run state, a migration of QEMU's own, RAM that is not ours to
 * move, other processes that write it, devices that pin it.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "guest/json.h"
#include "guest/qemu.h"

int ferry_qemu_inmigrate(struct ferry_qemu *q, struct ferry_error *err)
{
	char status[FERRY_QEMU_STATUS_MAX];
	bool running;
	int r = ferry_qemu_status(q, status, &running, err);

	if (r || !strcmp(status, "inmigrate"))
		return r;
	return ferry_error_set(err, EINVAL, "QEMU (pid %d) at %s is '%s' and waits for no migration; "
			       "start the destination with -incoming defer and the same machine "
			       "options as the source", (int)q->guest.pid, q->guest.path, status);
}

/* Only these are a guest at rest or at work; in any other QEMU's own hands are on it. */
static int check_source_state(struct ferry_qemu *q, struct ferry_error *err)
{
	static const char *const fine[] = { "running", "paused", "prelaunch" };
	char status[FERRY_QEMU_STATUS_MAX];
	const char *what = "type `cont` or `stop` in QEMU's monitor first";
	bool running;
	size_t i;
	int r = ferry_qemu_status(q, status, &running, err);

	if (r)
		return r;
	for (i = 0; i < sizeof(fine) / sizeof(fine[0]); i++)
		if (!strcmp(status, fine[i]))
			return 0;
	if (!strcmp(status, "inmigrate"))
		what = "it waits for a migration itself: it is a destination";
	else if (!strcmp(status, "suspended"))
		what = "wake it up first (QMP system_wakeup)";
	else if (!strcmp(status, "io-error"))
		what = "a disk failed: repair that and type `cont` first";
	else if (!strcmp(status, "postmigrate"))
		what = "it was migrated before: type `cont` if it is the one to run, else quit it";
	return ferry_error_set(err, EBUSY, "the guest in QEMU (pid %d) is '%s'; %s",
			       (int)q->guest.pid, status, what);
}

static int check_blocked(struct json_object *reply, struct ferry_error *err)
{
	struct json_object *reasons = ferry_json_get(reply, "blocked-reasons", json_type_array);
	struct json_object *first;

	if (!ferry_json_length(reasons))
		return 0;
	first = json_object_array_get_idx(reasons, 0);
	return ferry_error_set(err, EBUSY, "QEMU says this guest cannot be migrated: %.400s",
			       json_object_is_type(first, json_type_string) ?
			       json_object_get_string(first) : "(no reason given)");
}

static int check_migration(struct ferry_qemu *q, struct ferry_error *err)
{
	char status[FERRY_QEMU_STATUS_MAX];
	struct json_object *reply;
	int r = ferry_qemu_migration(q, status, &reply, err);

	if (r)
		return r;
	if (ferry_qemu_migration_active(status))
		r = ferry_error_set(err, EBUSY, "QEMU (pid %d) has a migration of its own under way "
				    "('%s'); let it end, or type migrate_cancel in its monitor",
				    (int)q->guest.pid, status);
	else
		r = check_blocked(reply, err);
	json_object_put(reply);
	return r;
}

static int check_peers(struct ferry_qemu *q, struct ferry_error *err)
{
	struct ferry_peers *p = &q->peers;
	struct ferry_qemu_memory *list;
	unsigned int i, n;
	int r = ferry_qemu_memory(q, &list, &n, err);

	if (r)
		return r;
	free(p->files);
	p->n_files = 0;
	p->files = calloc(n, sizeof(*p->files));
	if (p->files) {
		for (i = 0; i < n; i++) {
			p->files[i].dev = list[i].dev;
			p->files[i].ino = list[i].ino;
			strcpy(p->files[i].name, list[i].id);
		}
		p->n_files = n;
		r = ferry_peers_check(p, err);
	} else {
		r = ferry_error_set(err, ENOMEM, "guest RAM list: no memory");
	}
	free(q->checked);
	q->checked = list;
	q->n_checked = n;
	return r;
}

int ferry_qemu_check(struct ferry_guest *guest, struct ferry_error *err)
{
	struct ferry_qemu *q = ferry_qemu_of(guest);
	int r;

	r = q->role == FERRY_GUEST_SOURCE ? check_source_state(q, err) :
					    ferry_qemu_inmigrate(q, err);
	if (!r)
		r = check_migration(q, err);
	if (!r)
		r = check_peers(q, err);
	if (!r)
		r = ferry_qemu_devices_check(q, err);
	if (!r)
		r = ferry_qemu_blocks_check(q, err);
	return r;
}

/* "pc-q35-7.2" of the QOM type "pc-q35-7.2-machine". */
static int machine_type(struct ferry_qemu *q, char type[64], struct ferry_error *err)
{
	struct json_object *args = json_object_new_object(), *reply;
	const char *word;
	char *end;
	int r;

	json_object_object_add(args, "path", json_object_new_string("/machine"));
	json_object_object_add(args, "property", json_object_new_string("type"));
	r = ferry_qemu_command(q, "qom-get", args, -1, &reply, err);
	if (r)
		return r;
	word = json_object_is_type(reply, json_type_string) ? json_object_get_string(reply) : "?";
	snprintf(type, 64, "%s", word);
	json_object_put(reply);
	end = strstr(type, "-machine");
	if (end)
		*end = '\0';
	return 0;
}

static int check_machine(struct ferry_qemu *q, struct ferry_qemu *old, struct ferry_error *err)
{
	char here[64] = "", there[64] = "";
	int r = machine_type(q, here, err);

	if (!r)
		r = machine_type(old, there, err);
	if (r || !strcmp(here, there))
		return r;
	return ferry_error_set(err, EINVAL, "the new QEMU (pid %d, %s) has machine type %s, the guest "
			       "has %s: start the new one with -machine %s",
			       (int)q->guest.pid, q->guest.version, here, there, there);
}

/* Filling RAM in advance reads and writes it, while the guest does. */
static int check_prealloc(struct ferry_qemu *q, struct ferry_error *err)
{
	struct ferry_qemu_memory *list;
	unsigned int i, n;
	int r = ferry_qemu_memory(q, &list, &n, err);

	if (r)
		return r;
	for (i = 0; i < n && !r; i++) {
		bool on;

		r = ferry_qemu_memory_bool(q, list[i].id, "prealloc", &on, err);
		if (!r && on)
			r = ferry_error_set(err, EINVAL, "guest RAM '%s' of the new QEMU (pid %d) has "
					    "prealloc=on, which touches memory that the guest works "
					    "in: start it without", list[i].id, (int)q->guest.pid);
	}
	free(list);
	return r;
}

int ferry_qemu_check_heir(struct ferry_guest *guest, struct ferry_guest *old,
			  struct ferry_error *err)
{
	int r = check_machine(ferry_qemu_of(guest), ferry_qemu_of(old), err);

	return r ? r : check_prealloc(ferry_qemu_of(guest), err);
}
