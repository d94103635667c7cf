/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_STORE_WRITER_H
#define FERRY_STORE_WRITER_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "ram/ram.h"

/*
 * A snapshot file being written: pages are queued, in rounds, and channels (threads) write
 * each to its fixed place. What is zero becomes a hole, also where there were bytes of an
 * earlier round. A round ends with ferry_store_writer_drain(): only after it may a page be
 * queued again, so that no older copy overtakes a newer one. One thread queues, drains and
 * finishes. Nothing has the file's name before finish() returns 0.
 */
struct ferry_store_writer;

struct ferry_store_writer_params {
	const char *path;
	const char *id; /* see ferry_store_aside_open() */
	const struct ferry_ram *ram; /* read by pread(2), or see @still; outlives the writer */
	unsigned int channels;
	bool direct;  /* past the page cache */
	/*
	 * Nobody writes the memory as long as pages are queued and not drained: it may be looked
	 * at through our mappings, which saves a copy.
	 */
	bool still;
	bool partial; /* FERRY_STORE_FEATURE_PARTIAL: pages that are not queued are not in it */
	const char *kind; /* of the guest: whose device state it is */
	const char *vmm;
	uint8_t uuid[16];
	/* As ferry_rate_take(): 0 go on, else how long to wait. NULL: no limit. Any thread. */
	uint64_t (*pay)(void *ctx, uint64_t bytes, uint64_t now_ns);
	/* Each page that is written, with a private copy of its bytes; NULL for zeros. Any thread. */
	void (*page_written)(void *ctx, unsigned int block, uint64_t page, const void *bytes);
	/* Passed at "file-write", "file-written", "file-synced", "file-commit", "file-named". */
	int (*step)(void *ctx, const char *stage, struct ferry_error *err);
	void *ctx;
};

struct ferry_store_writer_stats {
	uint64_t written_bytes; /* of pages, again and again */
	uint64_t normal_pages;
	uint64_t zero_pages;
};

/* What follows the pages. */
struct ferry_store_tail {
	const uint8_t *device;
	uint32_t device_bytes;
	uint32_t flags; /* FERRY_STORE_COMMIT_... */
	const uint64_t *order; /* of first touch: block << 48 | page; NULL none */
	uint64_t order_count;
};

/**
 * ferry_store_writer_create() - make the file, under no name, and start the channels
 *
 * Return: 0; -EEXIST something that is no snapshot has that name; -ENAMETOOLONG @kind does
 * not fit; -errno.
 */
int ferry_store_writer_create(const struct ferry_store_writer_params *params,
			      struct ferry_store_writer **out, struct ferry_error *err);

/** ferry_store_writer_watch() - switch page_written on or off; only after drain(). */
void ferry_store_writer_watch(struct ferry_store_writer *w, bool on);

/**
 * ferry_store_writer_queue() - write these pages; blocks while the queue is full
 * @zero: they are known to be zero (a hole): do not read them
 *
 * Return: 0; -errno of a channel, with the reason; -ECANCELED after abort.
 */
int ferry_store_writer_queue(struct ferry_store_writer *w, unsigned int block,
			     uint64_t first_page, uint64_t pages, bool zero,
			     struct ferry_error *err);

/**
 * ferry_store_writer_drain() - until all that was queued is in the file, or the deadline
 *
 * Return: 0, -ETIMEDOUT (no text), the error of a channel, -ECANCELED after abort.
 */
int ferry_store_writer_drain(struct ferry_store_writer *w, uint64_t deadline_ns,
			     struct ferry_error *err);

/** ferry_store_writer_pending() - pages queued and not written yet. */
uint64_t ferry_store_writer_pending(struct ferry_store_writer *w);

void ferry_store_writer_stats(struct ferry_store_writer *w,
			      struct ferry_store_writer_stats *stats);

/**
 * ferry_store_writer_finish() - checksums, tables, sync, commit record, sync, name, sync
 *
 * After drain(). The guest may run. Return: 0: it is there, for good; -errno: the name stands
 * for what it stood for before (or, with the reason saying so, for the new file).
 */
int ferry_store_writer_finish(struct ferry_store_writer *w, const struct ferry_store_tail *tail,
			      struct ferry_error *err);

/** ferry_store_writer_bytes() - after finish(): what the file takes on the disk. */
uint64_t ferry_store_writer_bytes(const struct ferry_store_writer *w);

/** ferry_store_writer_abort() - every waiter returns -ECANCELED. Any thread. */
void ferry_store_writer_abort(struct ferry_store_writer *w);

/** ferry_store_writer_free() - end the channels; what was not finished is gone. NULL is fine. */
void ferry_store_writer_free(struct ferry_store_writer *w);

#endif
