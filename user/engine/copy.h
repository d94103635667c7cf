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

/*
 * The source's copy of guest RAM: what is dirty, what may differ at the
 * destination, and the rounds that send it. Belongs to the migration thread;
 * others reach only the pool, by ferry_multifd_send_abort().
 */
struct ferry_copy {
	struct ferry_job *job;
	struct ferry_guest *guest;
	struct ferry_ram *ram;
	struct ferry_link *link;
	struct ferry_multifd_send *pool;
	uint32_t round;

	const struct ferry_dirty_ops *tracker; /* NULL: none, stop and copy */
	struct ferry_dirty *dirty;
	struct ferry_dirty_views views;
	struct ferry_dirty_log log;
	int uffd;

	struct ferry_bitmap pending; /* collected, not sent */
	struct ferry_bitmap sent;    /* sent once as data: the destination may hold bytes there */
	struct ferry_holes holes;
	struct ferry_suspect *suspect; /* NULL until direct I/O is possible */
	bool barriers;		       /* DMA is answered by a barrier at each scan */
	struct ferry_converge converge;
	uint64_t sampled_ns;   /* for the rates shown as progress */
	uint64_t sampled_bytes;
	uint64_t sampled_pages;
	double wire_share;     /* bytes on the wire for a byte of memory, in the last round */
	uint64_t collected_ns; /* when the last look was taken */
};

/** ferry_copy_init() - bitmaps and an empty state; @copy is zeroed here. */
int ferry_copy_init(struct ferry_copy *copy, struct ferry_job *job, struct ferry_guest *guest,
		    struct ferry_ram *ram, struct ferry_error *err);

/** ferry_copy_channels() - the link is up: make the pool over @fds (owned from then on). */
int ferry_copy_channels(struct ferry_copy *copy, struct ferry_link *link, const int *fds,
			unsigned int channels, struct ferry_error *err);

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

/** ferry_copy_hang_up() - close the channels; tracking goes on. Safe to repeat. */
void ferry_copy_hang_up(struct ferry_copy *copy);

/** ferry_copy_close() - stop tracking, close the channels, free. Safe to repeat. */
void ferry_copy_close(struct ferry_copy *copy);

#endif
