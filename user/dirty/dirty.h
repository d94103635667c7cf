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

/* What a tracker works on; all of it stays the caller's. */
struct ferry_dirty_target {
	pid_t pid;			/* the VMM */
	const struct ferry_ram *ram;	/* blocks with their vmm_addr */
	int uffd;			/* userfaultfd of the VMM's memory, UFFDIO_API not done; -1 none */
};

struct ferry_dirty;

struct ferry_dirty_ops {
	const char *name;
	bool needs_uffd;     /* the target must carry one */
	bool needs_barrier;  /* collect() loses writes unless the guest is stopped around it */
	bool sees_other_processes;
	bool sees_pinned_dma;

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
};

extern const struct ferry_dirty_ops ferry_dirty_pagemap;
extern const struct ferry_dirty_ops ferry_dirty_softdirty;

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
