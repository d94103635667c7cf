/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_GUEST_PROC_H
#define FERRY_GUEST_PROC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* What /proc tells about a process: who it is, what it maps, what it has open. */

/** struct ferry_proc_area - one line of /proc/PID/maps */
struct ferry_proc_area {
	uint64_t start, end;
	uint64_t off_bytes;
	dev_t dev;
	ino_t ino;
	int prot; /* PROT_* */
	bool shared;
	char path[512];	 /* cut when longer */
	char flags[160]; /* of ferry_proc_smaps(): the words of VmFlags */
};

/**
 * ferry_proc_maps() - call @fn for every file mapping of @pid, in address order
 *
 * Return: 0; the first non-zero @fn returned; -ENOENT/-ESRCH no such process, -EACCES, …
 */
int ferry_proc_maps(pid_t pid, int (*fn)(void *ctx, const struct ferry_proc_area *area),
		    void *ctx);

/** ferry_proc_layout() - the same for every mapping, anonymous ones too (ino is 0). */
int ferry_proc_layout(pid_t pid, int (*fn)(void *ctx, const struct ferry_proc_area *area),
		      void *ctx);

/**
 * ferry_proc_smaps() - the same with the flags
 *
 * The kernel walks the page tables of all it passes: stop when the one looked for was found.
 */
int ferry_proc_smaps(pid_t pid, int (*fn)(void *ctx, const struct ferry_proc_area *area),
		     void *ctx);

/**
 * ferry_proc_fds() - call @fn for every descriptor of @pid
 * @fn: gets the number and the text of its /proc/PID/fd link
 *
 * Return: as ferry_proc_maps().
 */
int ferry_proc_fds(pid_t pid, int (*fn)(void *ctx, int fd, const char *link), void *ctx);

/** ferry_proc_pids() - call @fn for every process. Return: as ferry_proc_maps(). */
int ferry_proc_pids(int (*fn)(void *ctx, pid_t pid), void *ctx);

/** ferry_proc_comm() - its short name, printable, or "?". */
void ferry_proc_comm(pid_t pid, char comm[32]);

/** ferry_proc_start() - start time in clock ticks since boot, 0 when there is no such process. */
uint64_t ferry_proc_start(pid_t pid);

/** ferry_proc_ran_ns() - how long a thread has run until now, 0 when nobody counts. */
uint64_t ferry_proc_ran_ns(pid_t pid, pid_t tid);

/** ferry_proc_flags() - open flags of a descriptor (fdinfo), or -errno. */
int ferry_proc_flags(pid_t pid, int fd);

#endif
