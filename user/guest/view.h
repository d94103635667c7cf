/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_GUEST_VIEW_H
#define FERRY_GUEST_VIEW_H

#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"
#include "guest/vmflags.h"
#include "inject/inject.h"

/*
 * Another mapping of the same memory file in the place of the one a running process has:
 * a tracked view (dirty/kmod) for the plain mapping, or the plain mapping again.
 */

/** struct ferry_view_area - one mapping to be exchanged, as it is when it is plain */
struct ferry_view_area {
	uint64_t start, end; /* addresses in the process */
	uint64_t off_bytes;  /* in the file */
	dev_t dev;
	ino_t ino;
	int prot;
	struct ferry_vmflags flags;
};

/** struct ferry_view - the process, and room for the new mapping before it takes its place */
struct ferry_view {
	pid_t pid;
	struct ferry_inject *inj;
	uint64_t spare, spare_bytes; /* used for nothing else */
};

/**
 * ferry_view_areas() - the mappings of a file that make up [@addr, @addr + @bytes)
 * @areas: filled; flags of a tracked view are given as they would be without
 *
 * Return: how many; -ENXIO not all of it is a shared mapping of that file; -E2BIG more than
 * @max; -EOPNOTSUPP one may not be exchanged (says why); -errno of reading /proc.
 */
int ferry_view_areas(pid_t pid, dev_t dev, ino_t ino, uint64_t addr, uint64_t bytes,
		     struct ferry_view_area *areas, unsigned int max, struct ferry_error *err);

/** ferry_view_find_spare() - an unused range of @bytes. Return: 0, -ENOMEM, or -errno. */
int ferry_view_find_spare(pid_t pid, uint64_t bytes, uint64_t *addr, struct ferry_error *err);

/** enum ferry_view_state - what is in an area's place now */
enum ferry_view_state {
	FERRY_VIEW_PLAIN,   /* the mapping it had */
	FERRY_VIEW_CHANGED, /* another shared mapping of the file, a view or with other flags */
	FERRY_VIEW_GONE,    /* something else, or nothing */
};

/** ferry_view_look() - Return: enum ferry_view_state, or -errno. */
int ferry_view_look(pid_t pid, const struct ferry_view_area *area);

/**
 * ferry_view_exchange() - put a mapping of @remote_fd into the place of @area
 * @remote_fd: number, in the process, of a descriptor of the same file
 *
 * Threads that write there meanwhile see one or the other. The new mapping is made at the
 * spare address and gets the flags of @area (ferry_vmflags_view() of them if it is a view)
 * before it moves, which is one step.
 *
 * Return: 0; otherwise -errno and the old mapping is still there, unless the text says so.
 */
int ferry_view_exchange(const struct ferry_view *view, const struct ferry_view_area *area,
			int remote_fd, struct ferry_error *err);

/** ferry_view_clear_spare() - unmap what of that file is left at the spare address. */
int ferry_view_clear_spare(const struct ferry_view *view, dev_t dev, ino_t ino,
			   struct ferry_error *err);

#endif
