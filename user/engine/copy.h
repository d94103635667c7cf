/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_ENGINE_COPY_H
#define FERRY_ENGINE_COPY_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "dirty/dirty.h"
#include "dirty/suspect.h"
#include "engine/converge.h"
#include "engine/holes.h"
#include "engine/job.h"
#include "engine/link.h"
#include "guest/guest.h"
#include "ram/bitmap.h"
#include "ram/ram.h"
#include "xport/multifd_send.h"

struct ferry_carrier_stats {
	uint64_t sent_bytes; /* what they took on the way, headers included */
	uint64_t normal_pages;
	uint64_t zero_pages;
};

/* What takes the pages away: channels to a destination, or a file. One thread uses it. */
struct ferry_carrier_ops {
	/* @zero: they are known to be zero, and need not be read. May block. */
	int (*queue)(void *ctx, unsigned int block, uint64_t first_page, uint64_t pages, bool zero,
		     struct ferry_error *err);
	/* Until all that was queued has gone. Return: 0, -ETIMEDOUT (no text), -errno. */
	int (*drain)(void *ctx, uint64_t deadline_ns, struct ferry_error *err);
	/* End of a round: all that was queued is where it belongs, and may be queued again. */
	int (*barrier)(void *ctx, uint32_t round, struct ferry_error *err);
	uint64_t (*pending)(void *ctx); /* pages queued that have not gone yet */
	void (*stats)(void *ctx, struct ferry_carrier_stats *stats);
	void (*watch)(void *ctx, bool on); /* ferry_copy_page_sent() for each page, or not */
	uint64_t (*rtt_ns)(void *ctx);
};

/*
 * The source's copy of guest RAM: what is dirty, what may differ at the
 * destination, and the rounds that send it. Belongs to the migration thread;
 * others reach only the pool, by ferry_multifd_send_abort().
 */
struct ferry_copy {
	struct ferry_job *job;
	struct ferry_guest *guest;
	struct ferry_ram *ram;
	const struct ferry_carrier_ops *carrier;
	void *carrier_ctx;
	struct ferry_link *link;	 /* of the carrier of ferry_copy_channels() */
	struct ferry_multifd_send *pool; /* likewise */
	uint32_t round;

	const struct ferry_dirty_ops *tracker; /* NULL: none, stop and copy */
	struct ferry_dirty *dirty;
	struct ferry_dirty_views views;
	struct ferry_dirty_log log;
	int uffd;

	struct ferry_bitmap pending; /* collected, not sent */
	struct ferry_bitmap sent;    /* sent once as data: the destination may hold bytes there */
	struct ferry_bitmap last;    /* the last round's, which need no new memory after the stop */
	struct ferry_bitmap punched;
	struct ferry_holes holes;
	struct ferry_suspect *suspect; /* NULL until direct I/O is possible */
	bool barriers;		       /* DMA is answered by a barrier at each scan */
	struct ferry_converge converge;
	uint64_t sampled_ns;   /* for the rates shown as progress */
	uint64_t sampled_bytes;
	uint64_t sampled_pages;
	double wire_share;     /* bytes on the wire for a byte of memory, in the last round */
	uint64_t collected_ns; /* when the last look was taken */
	void (*collected)(void *ctx); /* after each look, if not NULL: pages are pending */
	void *collected_ctx;
};

/** ferry_copy_init() - bitmaps and an empty state; @copy is zeroed here. */
int ferry_copy_init(struct ferry_copy *copy, struct ferry_job *job, struct ferry_guest *guest,
		    struct ferry_ram *ram, struct ferry_error *err);

/** ferry_copy_channels() - the link is up: make the pool over @fds (owned from then on). */
int ferry_copy_channels(struct ferry_copy *copy, struct ferry_link *link, const int *fds,
			unsigned int channels, struct ferry_error *err);

/** ferry_copy_page_sent() - a page has gone, with these bytes (NULL: zeros). Any thread. */
void ferry_copy_page_sent(struct ferry_copy *copy, unsigned int block, uint64_t page,
			  const void *bytes);

/** ferry_copy_choose() - find a tracker for this guest; changes nothing. */
int ferry_copy_choose(struct ferry_copy *copy, struct ferry_error *err);

/** ferry_copy_track() - start tracking; every later write is collected. */
int ferry_copy_track(struct ferry_copy *copy, struct ferry_error *err);

/** ferry_copy_bulk() - send everything that holds data, once. */
int ferry_copy_bulk(struct ferry_copy *copy, struct ferry_error *err);

/** ferry_copy_collect() - one look at what changed: OR'ed into pending. */
int ferry_copy_collect(struct ferry_copy *copy, struct ferry_error *err);

/** ferry_copy_decide() - switch over, go on, stalled? */
struct ferry_converge_verdict ferry_copy_decide(struct ferry_copy *copy);

/** ferry_copy_round() - send pending, and wait until the destination has loaded it. */
int ferry_copy_round(struct ferry_copy *copy, struct ferry_error *err);

/** ferry_copy_last_look() - the guest is stopped and saved: all that changed is pending. */
int ferry_copy_last_look(struct ferry_copy *copy, struct ferry_error *err);

/** ferry_copy_final() - the guest is stopped and saved: queue all that is still missing. */
int ferry_copy_final(struct ferry_copy *copy, struct ferry_error *err);

/** ferry_copy_flush() - barrier: every channel of the destination has loaded all of it. */
int ferry_copy_flush(struct ferry_copy *copy, struct ferry_error *err);

/** ferry_copy_cut() - end the connections of the channels, without waiting for their threads */
void ferry_copy_cut(struct ferry_copy *copy);

/** ferry_copy_hang_up() - close the channels; tracking goes on. Safe to repeat. */
void ferry_copy_hang_up(struct ferry_copy *copy);

/** ferry_copy_close() - stop tracking, close the channels, free. Safe to repeat. */
void ferry_copy_close(struct ferry_copy *copy);

#endif
