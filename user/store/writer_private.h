/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_STORE_WRITER_PRIVATE_H
#define FERRY_STORE_WRITER_PRIVATE_H

#include <pthread.h>

#include "store/aside.h"
#include "store/extent.h"
#include "store/format.h"
#include "store/lane.h"
#include "store/writer.h"

/* Extents waiting for a channel: each of them is up to a MiB of work. */
#define WRITER_QUEUE 32

/* Pages of one extent: to be read and written, and known to be zero. */
struct writer_item {
	unsigned int block;
	uint64_t extent;
	struct ferry_store_set data;
	struct ferry_store_set zero;
};

struct writer_channel {
	struct ferry_store_writer *writer;
	struct ferry_store_lane *lane;
	pthread_t thread;
	bool flushed; /* (writer->lock) all it took is in the file */
};

struct ferry_store_writer {
	struct ferry_store_writer_params params;
	struct ferry_store_aside aside;
	int direct_fd; /* the same file past the page cache, or -1 */
	struct ferry_store_header header;
	struct ferry_store_block *blocks;
	struct ferry_store_places places;
	/* Of each block. A channel that has an extent has its words, sum and staleness for itself. */
	uint64_t **bits;
	uint64_t **sums;
	bool **stale; /* the sum must be made anew from the file */

	pthread_mutex_t lock; /* protects all below; a leaf */
	pthread_cond_t changed;
	struct writer_item open; /* pages of one extent come in several runs */
	bool has_open;
	struct writer_item queue[WRITER_QUEUE];
	unsigned int queue_first, queue_count;
	uint64_t pending_pages;
	bool draining; /* channels flush when there is nothing to take */
	bool watch;
	bool ending;
	struct ferry_error err; /* errnum != 0: stopped, and why */
	struct ferry_store_writer_stats stats;

	unsigned int started;
	struct writer_channel channels[];
};

/** ferry_store_writer_seal() - checksums, tables and commit record; see finish(). */
int ferry_store_writer_seal(struct ferry_store_writer *w, const struct ferry_store_tail *tail,
			    struct ferry_error *err);

/** ferry_store_writer_channel() - a thread's work; @arg is its struct writer_channel. */
void *ferry_store_writer_channel(void *arg);

/** ferry_store_writer_stop() - keep @why if it is the first, end all. Not with the lock held. */
void ferry_store_writer_stop(struct ferry_store_writer *w, const struct ferry_error *why);

/** ferry_store_writer_wait() - (locked) until something changed. Return: 0 or -ETIMEDOUT. */
int ferry_store_writer_wait(struct ferry_store_writer *w, uint64_t deadline_ns);

/** ferry_store_writer_error() - a failed write, in words. Return: @r. */
int ferry_store_writer_error(const struct ferry_store_writer *w, int r, const char *what,
			     struct ferry_error *err);

#endif
