// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Take processor time from the vCPUs of a QEMU.
 *
 * QEMU's own throttle cannot be reached from outside: it belongs to auto-converge of its own
 * migration. stop and cont in turns would flush every disk each time; stopping threads by
 * signals stops whatever lock they hold. What is left, and works for every accelerator, is the
 * scheduler: the limit of the control groups the vCPU threads are in (all of QEMU under
 * systemd, a group for each vCPU under libvirt), provided that nobody else is in them.
 *
 * The journal keeps the text of each limit before it is changed for the first time. With
 * it, undo() writes them back, whether QEMU lives or not.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "guest/cgroup.h"
#include "guest/json.h"
#include "guest/proc.h"
#include "guest/qemu.h"

#define PROC "/proc"

/* As many vCPUs as QEMU's largest machine types have. */
#define MAX_VCPUS 4096u
/* Groups to be limited: one, or one a vCPU. More would not fit into the journal. */
#define MAX_GROUPS 128u

/*
 * How long the vCPUs are watched before the first limit. What is taken is a share of what they
 * use: one busy vCPU of eight would not feel a limit of seven processors.
 */
#define WATCH_NS (200 * FERRY_NS_PER_MS)

struct limited {
	struct ferry_cgroup group;
	unsigned int vcpus;
	uint64_t ran_ns; /* its vCPUs, in a while of WATCH_NS; 0 not known */
};

struct limits {
	struct limited *list;
	unsigned int count;
	pid_t *tids;
	unsigned int *group_of; /* each thread's place in list */
	unsigned int threads;
};

/* Threads of vCPUs in @tids, each once. Return: how many, or -errno. */
static int vcpu_threads(struct ferry_qemu *q, pid_t **tids, struct ferry_error *err)
{
	struct json_object *reply;
	size_t count, i, j, n = 0;
	int r = ferry_qemu_command(q, "query-cpus-fast", NULL, -1, &reply, err);

	if (r)
		return r;
	count = ferry_json_length(reply);
	*tids = count && count <= MAX_VCPUS ? calloc(count, sizeof(**tids)) : NULL;
	for (i = 0; *tids && i < count; i++) {
		struct json_object *cpu = json_object_array_get_idx(reply, i);
		pid_t tid = (pid_t)ferry_json_uint(cpu, "thread-id", 0);

		for (j = 0; j < n && (*tids)[j] != tid; j++)
			;
		if (j == n && tid > 0)
			(*tids)[n++] = tid;
	}
	json_object_put(reply);
	if (n)
		return (int)n;
	free(*tids);
	*tids = NULL;
	return ferry_error_set(err, EOPNOTSUPP, "QEMU names no threads of vCPUs");
}

/* Which group a thread belongs to, a new one if need be. Return: its place, or -errno. */
static int add_thread(struct ferry_qemu *q, struct limits *limits, pid_t tid,
		      struct ferry_error *err)
{
	struct ferry_cgroup group;
	struct limited *l;
	unsigned int i;
	int r = ferry_cgroup_find(PROC, q->guest.pid, tid, &group, err);

	if (r)
		return r;
	for (i = 0; i < limits->count; i++) {
		if (!strcmp(limits->list[i].group.dir, group.dir)) {
			limits->list[i].vcpus++;
			return (int)i;
		}
	}
	if (limits->count == MAX_GROUPS)
		return ferry_error_set(err, EOPNOTSUPP, "its vCPUs are in more than %u control "
				       "groups", MAX_GROUPS);
	r = ferry_cgroup_own(PROC, &group, q->guest.pid, err);
	if (r)
		return r;
	if (access(group.limit_path, W_OK))
		return ferry_error_set(err, EOPNOTSUPP, "%s: %s", group.limit_path,
				       strerror(errno));
	l = realloc(limits->list, (limits->count + 1) * sizeof(*l));
	if (!l)
		return ferry_error_set(err, ENOMEM, "no memory");
	limits->list = l;
	l[limits->count] = (struct limited){ .group = group, .vcpus = 1 };
	return (int)limits->count++;
}

static void free_limits(struct limits *limits)
{
	free(limits->list);
	free(limits->tids);
	free(limits->group_of);
}

/* All groups with vCPUs, each fit to be limited. free_limits() is due even after a failure. */
static int find_limits(struct ferry_qemu *q, struct limits *limits, struct ferry_error *err)
{
	unsigned int i;
	int r;

	memset(limits, 0, sizeof(*limits));
	r = vcpu_threads(q, &limits->tids, err);
	if (limits->tids) {
		limits->threads = (unsigned int)r;
		limits->group_of = calloc(limits->threads, sizeof(*limits->group_of));
		if (!limits->group_of)
			return ferry_error_set(err, ENOMEM, "no memory");
	}
	for (i = 0; r >= 0 && limits->tids && i < limits->threads; i++) {
		r = add_thread(q, limits, limits->tids[i], err);
		if (r >= 0)
			limits->group_of[i] = (unsigned int)r;
	}
	if (r == -EOPNOTSUPP)
		ferry_error_prefix(err, "QEMU (pid %d) cannot be throttled; start it in a control "
				   "group of its own, as `systemd-run --scope qemu-system-x86_64 ...` "
				   "does, or use another policy", (int)q->guest.pid);
	return r < 0 ? r : 0;
}

/* Add, or take away with @sign -1, what each group's vCPUs have run until now. */
static void add_ran(struct ferry_qemu *q, struct limits *limits, int sign)
{
	unsigned int i;

	for (i = 0; limits->list && i < limits->threads; i++)
		limits->list[limits->group_of[i]].ran_ns +=
			(uint64_t)sign * ferry_proc_ran_ns(q->guest.pid, limits->tids[i]);
}

/* One entry of the journal: a limit as it was, and what its vCPUs used without ours. */
struct entry {
	const char *path, *was;
	uint64_t period_us;
	unsigned int busy_percent;
};

/* Return: false when it says nothing of use. */
static bool read_entry(struct json_object *list, size_t i, struct entry *e)
{
	struct json_object *o = json_object_array_get_idx(list, i);

	e->path = ferry_json_string(o, "path");
	e->was = ferry_json_string(o, "was");
	e->period_us = ferry_json_uint(o, "period", 0);
	e->busy_percent = (unsigned int)ferry_json_uint(o, "busy", 100);
	return e->path && e->was;
}

static bool find_entry(struct ferry_qemu *q, const char *path, struct entry *e)
{
	struct json_object *list = ferry_json_get(q->journal.undo, "throttled", json_type_array);
	size_t i;

	for (i = 0; i < ferry_json_length(list); i++)
		if (read_entry(list, i, e) && !strcmp(e->path, path))
			return true;
	return false;
}

static int note_limit(struct ferry_qemu *q, const struct limited *l, struct ferry_error *err)
{
	struct json_object *list = ferry_json_get(q->journal.undo, "throttled", json_type_array), *o;
	uint64_t busy = l->ran_ns * 100 / WATCH_NS;
	char was[FERRY_CGROUP_TEXT];
	struct entry e;
	int r;

	if (find_entry(q, l->group.limit_path, &e))
		return 0;
	r = ferry_cgroup_read(&l->group, was, err);
	if (r)
		return r;
	/* A kernel that does not count: all that they could use. */
	if (!busy || busy > l->vcpus * 100)
		busy = l->vcpus * 100;
	if (!list) {
		list = json_object_new_array();
		json_object_object_add(q->journal.undo, "throttled", list);
	}
	o = json_object_new_object();
	json_object_object_add(o, "path", json_object_new_string(l->group.limit_path));
	json_object_object_add(o, "was", json_object_new_string(was));
	json_object_object_add(o, "period", json_object_new_int64(
						    (int64_t)ferry_cgroup_period_us(&l->group)));
	json_object_object_add(o, "busy", json_object_new_int((int)busy));
	json_object_array_add(list, o);
	return 0;
}

/* Note all limits before the first one is changed. */
static int note_limits(struct ferry_qemu *q, struct limits *limits, struct ferry_error *err)
{
	unsigned int i;
	int r = 0;

	if (!ferry_json_get(q->journal.undo, "throttled", json_type_array)) {
		add_ran(q, limits, -1);
		ferry_clock_sleep_ns(WATCH_NS);
		add_ran(q, limits, 1);
	}
	for (i = 0; !r && i < limits->count; i++)
		r = note_limit(q, &limits->list[i], err);
	return r ? r : ferry_qemu_journal(q, err);
}

static int set_limit(struct ferry_qemu *q, const struct ferry_cgroup *group, unsigned int percent,
		     struct ferry_error *err)
{
	uint64_t quota_us;
	struct entry e;
	int r;

	if (!find_entry(q, group->limit_path, &e))
		return ferry_error_set(err, EINVAL, "%s was not noted", group->limit_path);
	r = ferry_cgroup_limit(group->v2, e.was, e.period_us, e.busy_percent, percent, &quota_us);
	if (r)
		return ferry_error_set(err, -r, "%s holds '%s', which is no limit",
				       group->limit_path, e.was);
	r = ferry_cgroup_set(group, quota_us);
	return r ? ferry_error_set(err, -r, "setting %s to %llu of %u: %s", group->limit_path,
				   (unsigned long long)quota_us, FERRY_CGROUP_PERIOD_US,
				   strerror(-r)) : 0;
}

int ferry_qemu_throttle(struct ferry_guest *guest, unsigned int percent, struct ferry_error *err)
{
	struct ferry_qemu *q = ferry_qemu_of(guest);
	struct limits limits;
	unsigned int i;
	int r;

	if (!percent && ferry_json_get(q->journal.undo, "throttled", json_type_array))
		return ferry_qemu_throttle_undo(q, err);
	r = find_limits(q, &limits, err);
	if (!r && percent)
		r = note_limits(q, &limits, err);
	for (i = 0; !r && percent && i < limits.count; i++)
		r = set_limit(q, &limits.list[i].group, percent, err);
	free_limits(&limits);
	return r;
}

int ferry_qemu_throttle_undo(struct ferry_qemu *q, struct ferry_error *err)
{
	struct json_object *list = ferry_json_get(q->journal.undo, "throttled", json_type_array);
	int r, first = 0;
	struct entry e;
	size_t i;

	if (!list)
		return 0;
	for (i = 0; i < ferry_json_length(list); i++) {
		if (!read_entry(list, i, &e))
			continue;
		r = ferry_cgroup_restore(e.path, e.was, e.period_us);
		if (r && r != -ENOENT && !first)
			first = ferry_error_set(err, -r, "%s: %s; write '%s' into it by hand",
						e.path, strerror(-r), e.was);
	}
	if (first)
		return first;
	json_object_object_del(q->journal.undo, "throttled");
	ferry_journal_less(&q->journal, &q->host);
	return 0;
}
