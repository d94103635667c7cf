/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_DIRTY_DIRTY_H
#define FERRY_DIRTY_DIRTY_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"
#include "ram/bitmap.h"
#include "ram/ram.h"

/*
 * Which pages changed since the last look. A tracker is a const ops table plus
 * an embedding struct; the engine picks one by name or by asking each in order.
 * The contract of collect(): every byte written through what the tracker can
 * see, before collect() began, by a writer that is not pinned DMA, is in a page
 * reported by this or an earlier collect(); later writes are reported by a
 * later one.
 */

/*
 * What the kmod tracker asks of who knows the VMM (guest): its views of the RAM
 * must get into the VMM, and be accounted for.
 */
struct ferry_dirty_views {
	/*
	 * Put a mapping of @trackers[i] into the place of the VMM's mapping of block i: all
	 * of them, or on failure none. The descriptors stay the caller's.
	 */
	int (*map)(void *ctx, const struct ferry_ram *ram, const int *trackers,
		   struct ferry_error *err);

	/* The plain mappings again; fine when they are there already, or the VMM is gone. */
	int (*unmap)(void *ctx, struct ferry_error *err);

	/*
	 * How many mappings of the RAM on this machine are tracked views; fails (-EBUSY) when
	 * a stranger maps it plainly. Return: it, or -errno.
	 */
	int (*count)(void *ctx, struct ferry_error *err);

	/*
	 * Call @fn for each descriptor of the RAM's files that other processes with tracked
	 * views have open; it returns 1 to keep @fd, 0 or -errno, which ends the search.
	 */
	int (*others)(void *ctx, int (*fn)(void *fn_ctx, pid_t pid, int fd), void *fn_ctx,
		      struct ferry_error *err);
	void *ctx;
};

/*
 * What the port tracker asks of who knows the VMM (guest): the VMM's own dirty log, and
 * who else maps the RAM with the VMM's knowledge.
 */
struct ferry_dirty_log {
	bool offered;	      /* there is one */
	bool sees_process;    /* it has all that the VMM's process writes, not only vCPUs */
	bool sees_members;    /* and all that registered further processes write */
	unsigned int members; /* those; they map the RAM as the VMM does */

	/* Writes from when it returns on are logged. */
	int (*start)(void *ctx, const struct ferry_ram *ram, struct ferry_error *err);
	/* Get and clear: ORs the pages into @pages. */
	int (*collect)(void *ctx, struct ferry_bitmap *pages, struct ferry_error *err);
	/* Fine when the VMM has gone. */
	void (*stop)(void *ctx);
	void *ctx;
};

/* What a tracker works on; all of it stays the caller's. */
struct ferry_dirty_target {
	pid_t pid;			/* the VMM */
	const struct ferry_ram *ram;	/* blocks with their vmm_addr */
	int uffd;			/* userfaultfd of the VMM's memory, UFFDIO_API not done; -1 none */
	const struct ferry_dirty_views *views; /* NULL: none can be put in */
	const struct ferry_dirty_log *log;     /* NULL: such VMMs have none */
};

struct ferry_dirty;

struct ferry_dirty_ops {
	const char *name;
	bool needs_uffd;     /* the target must carry one */
	bool needs_barrier;  /* collect() loses writes unless the guest is stopped around it */
	bool sees_other_processes; /* those that map a tracked view */

	/**
	 * @supported: can this host do it for this VMM? Changes nothing, may block shortly.
	 * target->uffd may be -1 here. Return: 0, or -errno with why not and what to do.
	 */
	int (*supported)(const struct ferry_dirty_target *target, struct ferry_error *err);

	/**
	 * @start: begin tracking; writes from when it returns on are seen. May block.
	 * The result is freed by stop(). Other bits of the uffd are left alone.
	 */
	int (*start)(const struct ferry_dirty_target *target, struct ferry_dirty **out,
		     struct ferry_error *err);

	/**
	 * @collect: get-and-clear; ORs the dirty pages into @dirty. May block.
	 * On failure nothing may be assumed: the migration must end.
	 */
	int (*collect)(struct ferry_dirty *dirty, struct ferry_bitmap *pages,
		       struct ferry_error *err);

	/** @stop: end tracking, leave nothing behind in the VMM that we can reach; free. */
	void (*stop)(struct ferry_dirty *dirty);
};

struct ferry_dirty {
	const struct ferry_dirty_ops *ops;
	bool sees_pinned_dma; /* set by start() */
};

extern const struct ferry_dirty_ops ferry_dirty_kmod;
extern const struct ferry_dirty_ops ferry_dirty_pagemap;
extern const struct ferry_dirty_ops ferry_dirty_softdirty;
extern const struct ferry_dirty_ops ferry_dirty_port;

/**
 * ferry_dirty_choose() - the tracker for a guest
 * @name: "auto", "kmod", "pagemap", "softdirty", "port" or "none"
 * @ops: NULL for "none"
 *
 * Return: 0; -EINVAL no such name, -EOPNOTSUPP none works here (with each one's reason).
 */
int ferry_dirty_choose(const char *name, const struct ferry_dirty_target *target,
		       const struct ferry_dirty_ops **ops, struct ferry_error *err);

#endif
