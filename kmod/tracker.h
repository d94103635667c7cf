/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef FERRY_TRACKER_H
#define FERRY_TRACKER_H

#include <linux/atomic.h>
#include <linux/cache.h>
#include <linux/fs.h>
#include <linux/list.h>
#include <linux/mm.h>
#include <linux/mutex.h>
#include <linux/spinlock.h>
#include <linux/types.h>
#include <linux/wait.h>
#include <linux/workqueue.h>
#include <linux/ferry.h>

struct eventfd_ctx;
struct ferry_call;

/* The bitmap is words of 64 bits to user space and longs to us. */
static_assert(BITS_PER_LONG == 64);

/* Words of the bitmap that a command works on before it talks to user space: a page of them. */
#define FERRY_CHUNK_WORDS (PAGE_SIZE / sizeof(unsigned long))

/**
 * struct ferry_fault_counts - what the faults of one CPU did
 * @faults: first stores, while started
 * @marked_pages: bits they set
 */
struct ferry_fault_counts {
	u64 faults;
	u64 marked_pages;
};

/**
 * struct ferry_scratch - what a command needs beside its stack
 * @words: bits on their way to or from user space
 * @extents: of FERRY_SCAN, instead: extents on their way there
 * @unsure: pages of the chunk that may be held by nothing but an LRU batch
 * @folios: those of a run of pages that are locked
 */
struct ferry_scratch {
	union {
		unsigned long words[FERRY_CHUNK_WORDS];
		struct ferry_extent extents[PAGE_SIZE / sizeof(struct ferry_extent)];
	};
	unsigned long unsure[FERRY_CHUNK_WORDS];
	struct folio *folios[BITS_PER_LONG];
};

/**
 * struct ferry_watch_state - the watermark of a tracker
 * @lock: see struct ferry_tracker
 * @pages: the watermark, 0 for none; written under @lock, read without by faults
 * @reached: it was told, and not gone below since
 * @eventfd: signalled when reached, or NULL
 * @times: how often reached
 * @time_ns: CLOCK_MONOTONIC of the last time
 * @wait: who polls
 * @work: sends the netlink event, which a fault cannot
 */
struct ferry_watch_state {
	spinlock_t lock;
	unsigned long pages;
	bool reached;
	struct eventfd_ctx *eventfd;
	u64 times;
	u64 time_ns;
	wait_queue_head_t wait;
	struct work_struct work;
};

/**
 * struct ferry_tracker - one memfd and which of its pages were written
 *
 * @id: as in netlink messages
 * @pid: as in netlink messages
 * @uid: as in netlink messages
 * @memfd: the file that was given to FERRY_TRACK
 * @mapping: its pages
 * @npages: how many have a bit
 * @bitmap: the bits; each is set and cleared atomically, see bitmap.c
 * @bitmap_bytes: its size, whole pages
 * @registered: in the registry of tracker.c
 * @lock: one command at a time
 * @started: writes are noted; written under @lock, read by faults under a folio lock
 * @scratch: under @lock
 * @drain_after: under @lock: no use in draining LRU batches before this, in jiffies
 * @syncs: for FERRY_STATS; written under @lock
 * @cleaned_pages: likewise
 * @pinned_pages: likewise
 * @vm_ops_lock: see below
 * @vm_ops: shmem's with ours in front, once @shmem_vm_ops is set
 * @shmem_vm_ops: what shmem gave the first view; under @vm_ops_lock until set
 * @views: mappings that exist
 * @watch: the watermark
 * @counts: of the faults
 * @dirty_pages: bits that are set
 *
 * Lifetime: the tracker's own file (of which user space has the descriptor, and every view
 * and bitmap descriptor a reference) owns it; it goes with the last reference, in
 * tracker_release(). Nothing else holds a pointer, but for the registry, which it
 * leaves first, and the watermark's work, which is waited for.
 *
 * Lock order:
 *	@lock > mmap_lock (user memory is copied under it) > folio locks, ascending by
 *	index > i_mmap lock, page table locks
 *	folio lock > watch.lock
 *	@lock > the registry's lock; netlink's genl_mutex > the registry's lock
 * so that neither mmap(2) nor a fault may take @lock.
 */
struct ferry_tracker {
	u64 id;
	u32 pid;
	u32 uid;
	struct file *memfd;
	struct address_space *mapping;
	unsigned long npages;
	unsigned long *bitmap;
	size_t bitmap_bytes;
	struct list_head registered;

	struct mutex lock;
	bool started;
	struct ferry_scratch *scratch;
	unsigned long drain_after;
	u64 syncs;
	u64 cleaned_pages;
	u64 pinned_pages;

	spinlock_t vm_ops_lock;
	const struct vm_operations_struct *shmem_vm_ops;
	struct vm_operations_struct vm_ops;
	atomic_t views;

	struct ferry_watch_state watch;
	struct ferry_fault_counts __percpu *counts;
	/*
	 * One counter and not one a CPU, so that the watermark is exact. A fault takes the
	 * VMA's or the mm's lock anyway, which is one cache line for all CPUs too.
	 */
	atomic_long_t dirty_pages ____cacheline_aligned_in_smp;
};

int ferry_tracker_create(struct ferry_call *call);
int ferry_tracker_query(struct ferry_call *call);
int ferry_tracker_stats(struct ferry_call *call);
struct ferry_fault_counts ferry_tracker_counts(const struct ferry_tracker *tracker);
int ferry_tracker_visit(u64 after, int (*visit)(struct ferry_tracker *tracker, void *arg),
			void *arg);

#endif
