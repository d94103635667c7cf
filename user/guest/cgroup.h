/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_GUEST_CGROUP_H
#define FERRY_GUEST_CGROUP_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"

/*
 * Limits of processor time by control groups: version 2 (cpu.max) and, where the cpu
 * controller is still there, version 1 (cpu.cfs_quota_us). @proc is "/proc" but in tests.
 */
#define FERRY_CGROUP_PATH 512
#define FERRY_CGROUP_TEXT 64

struct ferry_cgroup {
	bool v2;
	char dir[FERRY_CGROUP_PATH];
	char limit_path[FERRY_CGROUP_PATH + 32]; /* the file that holds the limit */
};

/**
 * ferry_cgroup_find() - the group that limits a thread
 *
 * Return: 0; -EOPNOTSUPP when none does, with why; -errno.
 */
int ferry_cgroup_find(const char *proc, pid_t pid, pid_t tid, struct ferry_cgroup *group,
		      struct ferry_error *err);

/**
 * ferry_cgroup_own() - would a limit hit nobody but @pid?
 *
 * Return: 0; -EOPNOTSUPP naming who else is in it; -errno.
 */
int ferry_cgroup_own(const char *proc, const struct ferry_cgroup *group, pid_t pid,
		     struct ferry_error *err);

/** ferry_cgroup_read() - the limit as it is now, one line. Return: 0 or -errno. */
int ferry_cgroup_read(const struct ferry_cgroup *group, char was[FERRY_CGROUP_TEXT],
		      struct ferry_error *err);

/** ferry_cgroup_period_us() - of version 1, which has it in a file of its own; 0 for version 2. */
uint64_t ferry_cgroup_period_us(const struct ferry_cgroup *group);

/**
 * ferry_cgroup_limit() - the quota in each FERRY_CGROUP_PERIOD_US that takes a share
 * @was: as ferry_cgroup_read() gave it
 * @period_us: as ferry_cgroup_period_us() gave it, then
 * @busy_percent: what the threads use of one processor when left alone, 250 for two and a half
 * @percent: to be taken from them
 * @quota_us: the result
 *
 * Return: 0; -EPROTO when @was is no limit.
 */
int ferry_cgroup_limit(bool v2, const char *was, uint64_t period_us, unsigned int busy_percent,
		       unsigned int percent, uint64_t *quota_us);

/*
 * Shorter than usual, as a guest that stands still for most of a long period is worse off, and
 * so is the VMM that wants to answer meanwhile; long enough for the kernel's least quota (1 ms)
 * to be a small share.
 */
#define FERRY_CGROUP_PERIOD_US 50000u

/** ferry_cgroup_set() - set a limit. Return: 0 or -errno. */
int ferry_cgroup_set(const struct ferry_cgroup *group, uint64_t quota_us);

/**
 * ferry_cgroup_restore() - put a limit back
 * @path: a limit_path; anything else is -EINVAL
 *
 * Return: 0; -ENOENT when the group has gone; -errno.
 */
int ferry_cgroup_restore(const char *path, const char *was, uint64_t period_us);

#endif
