// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Which group limits a thread? /proc/PID/task/TID/cgroup has a line for each
 * hierarchy, and mountinfo tells where it is mounted:
 *
 *   0::/machine.slice/vm1.scope		  version 2
 *   3:cpu,cpuacct:/machine.slice/vm1.scope	  version 1
 *   41 31 0:37 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw
 *
 * A controller is in one hierarchy at a time: one of version 1 that has "cpu" is it.
 */
#include "guest/cgroup.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "guest/proc.h"

/* The kernel takes no smaller quota. */
#define MIN_QUOTA_US 1000u
#define DEFAULT_PERIOD_US 100000u

#define V1_LIMIT "cpu.cfs_quota_us"
#define V1_PERIOD "cpu.cfs_period_us"
#define V2_LIMIT "cpu.max"

/* Is @word one of the comma-separated words of @list (which ends at @end)? */
static bool list_has(const char *list, const char *end, const char *word)
{
	size_t len = strlen(word);

	while (list < end) {
		size_t n = strcspn(list, ",\n:");

		if (n == len && !memcmp(list, word, len))
			return true;
		list += n + 1;
	}
	return false;
}

/* The path of a thread within its hierarchy. Return: 0, -ENOENT, -errno. */
static int find_path(const char *proc, pid_t pid, pid_t tid, bool *v2, char path[FERRY_CGROUP_PATH])
{
	char name[FERRY_CGROUP_PATH], *line = NULL;
	size_t room = 0;
	int r = -ENOENT;
	FILE *f;

	snprintf(name, sizeof(name), "%s/%d/task/%d/cgroup", proc, (int)pid, (int)tid);
	f = fopen(name, "re");
	if (!f)
		return -errno;
	while (getline(&line, &room, f) > 0) {
		char *list = strchr(line, ':');
		char *at = list ? strchr(list + 1, ':') : NULL;
		bool one = at && list_has(list + 1, at, "cpu");

		if (!at || (!one && strncmp(line, "0::", 3)))
			continue;
		at[1 + strcspn(at + 1, "\n")] = '\0';
		if (strlen(at + 1) >= FERRY_CGROUP_PATH)
			continue;
		memcpy(path, at + 1, strlen(at + 1) + 1);
		*v2 = !one;
		r = 0;
		if (one)
			break;
	}
	free(line);
	fclose(f);
	return r;
}

/* The root within the hierarchy and the folder of a mount of it. */
static bool parse_mount(char *line, bool v2, char **root, char **folder)
{
	char *dash = strstr(line, " - "), *type, *source, *options, *save = NULL;

	if (!dash)
		return false;
	*dash = '\0';
	type = strtok_r(dash + 3, " \n", &save);
	source = strtok_r(NULL, " \n", &save);
	options = strtok_r(NULL, " \n", &save);
	if (!type || !source || !options)
		return false;
	if (strcmp(type, v2 ? "cgroup2" : "cgroup") ||
	    (!v2 && !list_has(options, options + strlen(options), "cpu")))
		return false;
	if (!strtok_r(line, " ", &save) || !strtok_r(NULL, " ", &save) ||
	    !strtok_r(NULL, " ", &save))
		return false;
	*root = strtok_r(NULL, " ", &save);
	*folder = strtok_r(NULL, " ", &save);
	return *root && *folder;
}

/* Where a path of the hierarchy is seen. Return: 0, -ENOENT, -errno. */
static int find_folder(const char *proc, bool v2, const char *path, char dir[FERRY_CGROUP_PATH])
{
	char name[FERRY_CGROUP_PATH], *line = NULL, *root, *folder;
	size_t room = 0;
	int r = -ENOENT;
	FILE *f;

	snprintf(name, sizeof(name), "%s/self/mountinfo", proc);
	f = fopen(name, "re");
	if (!f)
		return -errno;
	while (r && getline(&line, &room, f) > 0) {
		const char *rest = path;
		size_t len;

		if (!parse_mount(line, v2, &root, &folder))
			continue;
		len = strcmp(root, "/") ? strlen(root) : 0;
		if (strncmp(path, root, len) || (len && path[len] && path[len] != '/'))
			continue;
		rest += len;
		if (!strcmp(rest, "/"))
			rest = "";
		if (snprintf(dir, FERRY_CGROUP_PATH, "%s%s", folder, rest) < FERRY_CGROUP_PATH)
			r = 0;
	}
	free(line);
	fclose(f);
	return r;
}

int ferry_cgroup_find(const char *proc, pid_t pid, pid_t tid, struct ferry_cgroup *group,
		      struct ferry_error *err)
{
	char path[FERRY_CGROUP_PATH];
	int r;

	memset(group, 0, sizeof(*group));
	r = find_path(proc, pid, tid, &group->v2, path);
	if (!r)
		r = find_folder(proc, group->v2, path, group->dir);
	if (r == -ENOENT)
		return ferry_error_set(err, EOPNOTSUPP, "no control group of thread %d of pid %d "
				       "is to be seen here", (int)tid, (int)pid);
	if (r)
		return ferry_error_set(err, -r, "control group of thread %d of pid %d: %s",
				       (int)tid, (int)pid, strerror(-r));
	snprintf(group->limit_path, sizeof(group->limit_path), "%s/%s", group->dir,
		 group->v2 ? V2_LIMIT : V1_LIMIT);
	if (access(group->limit_path, F_OK))
		return ferry_error_set(err, EOPNOTSUPP, "the control group %s of pid %d has no "
				       "limit of processor time (no %s: it is the root, or the cpu "
				       "controller is off there)", group->dir, (int)pid,
				       group->v2 ? V2_LIMIT : V1_LIMIT);
	return 0;
}

static int no_groups_below(const struct ferry_cgroup *group, pid_t pid, struct ferry_error *err)
{
	DIR *dir = opendir(group->dir);
	struct dirent *entry;
	int r = 0;

	if (!dir)
		return ferry_error_set(err, errno, "control group %s: %s", group->dir,
				       strerror(errno));
	while (!r && (entry = readdir(dir)))
		if (entry->d_type == DT_DIR && entry->d_name[0] != '.')
			r = ferry_error_set(err, EOPNOTSUPP, "the control group %s of pid %d has "
					    "the group %s below it, which a limit would hit too",
					    group->dir, (int)pid, entry->d_name);
	closedir(dir);
	return r;
}

int ferry_cgroup_own(const char *proc, const struct ferry_cgroup *group, pid_t pid,
		     struct ferry_error *err)
{
	char path[FERRY_CGROUP_PATH + 64], comm[32];
	int tid, r = no_groups_below(group, pid, err);
	FILE *f;

	if (r)
		return r;
	snprintf(path, sizeof(path), "%s/%s", group->dir, group->v2 ? "cgroup.threads" : "tasks");
	f = fopen(path, "re");
	if (!f)
		return ferry_error_set(err, errno, "%s: %s", path, strerror(errno));
	while (!r && fscanf(f, "%d", &tid) == 1) {
		snprintf(path, sizeof(path), "%s/%d/task/%d", proc, (int)pid, tid);
		if (!access(path, F_OK))
			continue;
		snprintf(path, sizeof(path), "%s/%d", proc, tid);
		if (tid > 0 && access(path, F_OK))
			continue; /* ended meanwhile */
		ferry_proc_comm(tid, comm);
		r = ferry_error_set(err, EOPNOTSUPP, "pid %d shares its control group %s with "
				    "thread %d (%s), which a limit would hit too", (int)pid,
				    group->dir, tid, comm);
	}
	fclose(f);
	return r;
}

/* Return: 0, -ENODATA an empty file, -errno. */
static int read_line(const char *path, char text[FERRY_CGROUP_TEXT])
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n;

	if (fd < 0)
		return -errno;
	n = read(fd, text, FERRY_CGROUP_TEXT - 1);
	if (n <= 0)
		n = n ? -errno : -ENODATA;
	close(fd);
	if (n < 0)
		return (int)n;
	text[n] = '\0';
	text[strcspn(text, "\n")] = '\0';
	return 0;
}

int ferry_cgroup_read(const struct ferry_cgroup *group, char was[FERRY_CGROUP_TEXT],
		      struct ferry_error *err)
{
	int r = read_line(group->limit_path, was);

	return r ? ferry_error_set(err, -r, "%s: %s", group->limit_path, strerror(-r)) : 0;
}

uint64_t ferry_cgroup_period_us(const struct ferry_cgroup *group)
{
	char path[FERRY_CGROUP_PATH + 32], text[FERRY_CGROUP_TEXT];
	unsigned long long us;

	if (group->v2)
		return 0;
	snprintf(path, sizeof(path), "%s/%s", group->dir, V1_PERIOD);
	if (read_line(path, text) || sscanf(text, "%llu", &us) != 1 || !us)
		return DEFAULT_PERIOD_US;
	return us;
}

int ferry_cgroup_limit(bool v2, const char *was, uint64_t period_us, unsigned int busy_percent,
		       unsigned int percent, uint64_t *quota_us)
{
	unsigned long long quota = 0, period = period_us;
	long long n = -1;

	if (v2 && sscanf(was, "max %llu", &period) != 1) {
		if (sscanf(was, "%llu %llu", &quota, &period) != 2)
			return -EPROTO;
		n = 0;
	} else if (!v2) {
		if (sscanf(was, "%lld", &n) != 1)
			return -EPROTO;
		quota = n > 0 ? (unsigned long long)n : 0;
	}
	/* A period is a second at most and at least a millisecond. */
	if (period < MIN_QUOTA_US || period > 1000000)
		return -EPROTO;
	/* Of what they were allowed, if that is less than they use. */
	if (n < 0 || quota > period * busy_percent / 100)
		quota = period * busy_percent / 100;
	quota = quota * FERRY_CGROUP_PERIOD_US / period * (100 - percent) / 100;
	*quota_us = quota < MIN_QUOTA_US ? MIN_QUOTA_US : quota;
	return 0;
}

static int write_text(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC | O_NOFOLLOW), r = 0;

	if (fd < 0)
		return -errno;
	if (write(fd, text, strlen(text)) != (ssize_t)strlen(text))
		r = errno == ENODEV ? -ENOENT : -errno;
	close(fd);
	return r;
}

static int write_period(const char *dir, uint64_t period_us)
{
	char path[FERRY_CGROUP_PATH + 32], text[FERRY_CGROUP_TEXT];

	snprintf(path, sizeof(path), "%s/%s", dir, V1_PERIOD);
	snprintf(text, sizeof(text), "%llu", (unsigned long long)period_us);
	return write_text(path, text);
}

int ferry_cgroup_set(const struct ferry_cgroup *group, uint64_t quota_us)
{
	char text[FERRY_CGROUP_TEXT];
	int r;

	if (group->v2)
		snprintf(text, sizeof(text), "%llu %u", (unsigned long long)quota_us,
			 FERRY_CGROUP_PERIOD_US);
	else
		snprintf(text, sizeof(text), "%llu", (unsigned long long)quota_us);
	r = write_text(group->limit_path, text);
	/* Lower the share first: one above what the group's parent has is refused. */
	return r || group->v2 ? r : write_period(group->dir, FERRY_CGROUP_PERIOD_US);
}

static bool ends_with(const char *text, const char *end)
{
	size_t n = strlen(text), len = strlen(end);

	return n > len && !strcmp(text + n - len, end);
}

int ferry_cgroup_restore(const char *path, const char *was, uint64_t period_us)
{
	bool one = ends_with(path, "/" V1_LIMIT);
	char dir[FERRY_CGROUP_PATH];
	int r = 0;

	if (path[0] != '/' || strstr(path, "/../") || (!one && !ends_with(path, "/" V2_LIMIT)) ||
	    strlen(path) >= sizeof(dir))
		return -EINVAL;
	if (one) {
		strcpy(dir, path);
		dir[strlen(path) - strlen("/" V1_LIMIT)] = '\0';
		r = write_period(dir, period_us);
	}
	return r ? r : write_text(path, was);
}
