// SPDX-License-Identifier: GPL-2.0-or-later
#include "guest/journal.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/io.h"
#include "base/log.h"
#include "guest/json.h"
#include "guest/proc.h"

#define JOURNAL_VERSION 1
/* A text of ours is under 2 KiB, and 200 bytes more a mapping of guest RAM. */
#define JOURNAL_MAX_BYTES 65536

static const char *role_name(enum ferry_guest_role role)
{
	return role == FERRY_GUEST_SOURCE ? "source" : "destination";
}

static void fill(struct json_object *undo, const char *scheme, const char *path,
		 enum ferry_guest_role role, pid_t pid, uint64_t start)
{
	json_object_object_add(undo, "driver", json_object_new_string(scheme));
	json_object_object_add(undo, "version", json_object_new_int(JOURNAL_VERSION));
	json_object_object_add(undo, "path", json_object_new_string(path));
	json_object_object_add(undo, "role", json_object_new_string(role_name(role)));
	json_object_object_add(undo, "pid", json_object_new_int64(pid));
	json_object_object_add(undo, "start", json_object_new_int64((int64_t)start));
}

int ferry_journal_new(struct ferry_journal *journal, const struct ferry_guest *guest,
		      enum ferry_guest_role role, uint64_t start, struct ferry_error *err)
{
	struct json_object *undo = json_object_new_object();

	if (!undo)
		return ferry_error_set(err, ENOMEM, "undo text: no memory");
	fill(undo, guest->ops->scheme, guest->path, role, guest->pid, start);
	journal->undo = undo;
	return 0;
}

char *ferry_journal_text(const char *spec, pid_t pid)
{
	struct json_object *undo = json_object_new_object();
	const struct ferry_guest_ops *ops;
	const char *path, *text = NULL;
	char *copy;

	if (!ferry_guest_parse(spec, &ops, &path, NULL)) {
		fill(undo, ops->scheme, path, FERRY_GUEST_DESTINATION, pid, ferry_proc_start(pid));
		text = json_object_to_json_string_ext(undo, JSON_C_TO_STRING_PLAIN |
						      JSON_C_TO_STRING_NOSLASHESCAPE);
	}
	copy = text ? strdup(text) : NULL;
	json_object_put(undo);
	return copy;
}

/* Return: what is wrong with it, or NULL. */
static const char *find_damage(struct json_object *undo, const struct ferry_guest *guest,
			       enum ferry_guest_role role, const struct ferry_journal_rules *rules)
{
	const char *driver = ferry_json_string(undo, "driver");
	const char *text = ferry_json_string(undo, "role");
	uint64_t pid = ferry_json_uint(undo, "pid", 0);
	size_t i;

	if (!driver || strcmp(driver, guest->ops->scheme))
		return "not of this driver";
	if (ferry_json_uint(undo, "version", 0) != JOURNAL_VERSION)
		return "unknown version";
	if (!text || strcmp(text, role_name(role)))
		return "of the other role";
	if (!pid || pid > 0x7fffffff)
		return "no pid";
	for (i = 0; i < sizeof(rules->optional) / sizeof(rules->optional[0]); i++) {
		const char *key = rules->optional[i].key;

		if (key && json_object_object_get_ex(undo, key, NULL) &&
		    !ferry_json_get(undo, key, rules->optional[i].type))
			return key;
	}
	return NULL;
}

int ferry_journal_parse(struct ferry_journal *journal, struct ferry_guest *guest,
			enum ferry_guest_role role, const char *text,
			const struct ferry_journal_rules *rules, struct ferry_error *err)
{
	const char *damage = "too long";

	if (strlen(text) <= JOURNAL_MAX_BYTES) {
		journal->undo = json_tokener_parse(text);
		damage = find_damage(journal->undo, guest, role, rules);
	}
	if (damage)
		return ferry_error_set(err, EPROTO, "the undo text of this migration's record is "
				       "damaged (%s); %s", damage, rules->by_hand);
	journal->durable = strdup(text);
	guest->pid = (pid_t)ferry_json_uint(journal->undo, "pid", 0);
	return 0;
}

int ferry_journal_write(struct ferry_journal *journal, const struct ferry_guest_host *host,
			struct ferry_error *err)
{
	const char *text = json_object_to_json_string_ext(
		journal->undo, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE);
	char *copy;
	int r;

	if (!text || !(copy = strdup(text)))
		return ferry_error_set(err, ENOMEM, "undo text: no memory");
	if (journal->durable && !strcmp(journal->durable, copy)) {
		free(copy);
		return 0;
	}
	r = host->journal ? host->journal(host->ctx, copy, err) : 0;
	if (r) {
		free(copy);
		return r;
	}
	free(journal->durable);
	journal->durable = copy;
	return 0;
}

void ferry_journal_less(struct ferry_journal *journal, const struct ferry_guest_host *host)
{
	struct ferry_error err = { 0 };

	if (ferry_journal_write(journal, host, &err))
		ferry_log_warn("the VMM (pid %d) is as it was before, which could not be noted: %s",
			       (int)ferry_json_uint(journal->undo, "pid", 0), err.text);
}

bool ferry_journal_is_void(const struct ferry_journal *journal)
{
	pid_t pid = (pid_t)ferry_json_uint(journal->undo, "pid", 0);
	bool ended;
	int pidfd;

	if (ferry_proc_start(pid) != ferry_json_uint(journal->undo, "start", 0))
		return true;
	pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	if (pidfd < 0)
		return errno == ESRCH;
	ended = ferry_io_wait(pidfd, POLLIN, ferry_clock_ns()) > 0;
	close(pidfd);
	return ended;
}

/* @pidfd is of the process that has this pid now: is that the one meant? */
static int end_process(int pidfd, pid_t pid, uint64_t start, unsigned int timeout_ms,
		       struct ferry_error *err)
{
	if (ferry_proc_start(pid) != start)
		return 0;
	/* One that leads a session has what it started with it: a script its VMM. */
	if (getsid(pid) == pid)
		kill(-pid, SIGKILL);
	if (syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0) && errno != ESRCH)
		return ferry_error_set(err, errno, "ending pid %d: %s; end it by hand", (int)pid,
				       strerror(errno));
	if (ferry_io_wait(pidfd, POLLIN, ferry_clock_in_ms(timeout_ms)) > 0)
		return 0;
	return ferry_error_set(err, ETIMEDOUT, "pid %d was killed but does not end (stuck in the "
			       "kernel?)", (int)pid);
}

int ferry_journal_end(const char *text, unsigned int timeout_ms, struct ferry_error *err)
{
	struct json_object *undo = json_tokener_parse(text);
	uint64_t pid = ferry_json_uint(undo, "pid", 0);
	uint64_t start = ferry_json_uint(undo, "start", 0);
	int pidfd, r;

	json_object_put(undo);
	if (!pid || pid > 0x7fffffff || !start)
		return ferry_error_set(err, EPROTO, "the undo text of this record is damaged: it tells "
				       "no process; end the new VMM by hand");
	pidfd = (int)syscall(SYS_pidfd_open, (pid_t)pid, 0);
	if (pidfd < 0)
		return errno == ESRCH ? 0 : ferry_error_set(err, errno, "pid %d: %s", (int)pid,
							    strerror(errno));
	r = end_process(pidfd, (pid_t)pid, start, timeout_ms, err);
	close(pidfd);
	return r;
}

void ferry_journal_free(struct ferry_journal *journal)
{
	json_object_put(journal->undo);
	free(journal->durable);
}
