/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_ENGINE_PAGER_H
#define FERRY_ENGINE_PAGER_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "engine/copy.h"
#include "engine/job.h"
#include "engine/link.h"
#include "engine/order.h"
#include "engine/release.h"
#include "ram/bitmap.h"
#include "ram/ram.h"
#include "xport/fault_channel.h"
#include "xport/multifd_send.h"

/*
 * Postcopy at the source: pages that only this side has. The guest is stopped, so they do
 * not change; each is sent once, to whoever asked for it or by the multifd channels meanwhile.
 * Belongs to the migration thread but where noted.
 */
struct ferry_pager {
	struct ferry_job *job;
	const struct ferry_ram *ram;
	struct ferry_bitmap left;   /* not sent; taken atomically by whoever sends a page */
	struct ferry_bitmap placed; /* what the destination has, as it told last */
	struct ferry_bitmap unsure; /* not placed for certain: left at the switch, or since told */
	bool knows; /* @unsure is made; else all pages are */
	bool ready;		    /* the bitmaps are there */
	bool told;		    /* @placed is whole; atomic */
	uint64_t total_pages;	    /* left at the switch, or at the last recovery */
	uint64_t left_pages;	    /* atomic */
	struct ferry_order order;   /* of what the channels take */
	uint64_t asked_ns;	    /* when a page was asked for last; atomic */

	struct ferry_release release;
	struct ferry_multifd_send *pool;  /* changed with job->lock held */
	struct ferry_page_server *server; /* likewise */
	int fault_fd; /* connected, not served yet */
	struct ferry_multifd_send_stats sent; /* by pools and servers that have ended */
	uint64_t fault_pages, requests;
	uint64_t precopied; /* pages sent before the switch, by the pool that goes on */
};

/** ferry_pager_init() - nothing is left. Return: 0 or -ENOMEM. ferry_pager_free() in any case. */
int ferry_pager_init(struct ferry_pager *pager, struct ferry_job *job,
		     const struct ferry_ram *ram, struct ferry_error *err);
void ferry_pager_free(struct ferry_pager *pager);

/** ferry_pager_connect() - the fault channel, before the guest is stopped; @mode: for the numbers. */
int ferry_pager_connect(struct ferry_pager *pager, const struct ferry_link_params *params,
			enum ferry_mode mode, struct ferry_error *err);

/** ferry_pager_left() - the guest is stopped: what the destination has not, or not as it is. */
int ferry_pager_left(struct ferry_pager *pager, struct ferry_copy *copy, struct ferry_error *err);

/**
 * ferry_pager_switch() - DISCARD, POSTCOPY; requests are served from here on
 *
 * Takes over the pool of @copy, all of whose pages have been loaded (FLUSHED).
 */
int ferry_pager_switch(struct ferry_pager *pager, struct ferry_copy *copy,
		       struct ferry_link *link, struct ferry_error *err);

/**
 * ferry_pager_run() - the guest runs there: send until the destination says that it has all
 *
 * Return: 0; -errno the link or a channel is lost, or what came on it made no sense.
 */
int ferry_pager_run(struct ferry_pager *pager, struct ferry_link *link, struct ferry_error *err);

/** ferry_pager_received() - for ferry_link_params.received; @ctx is the pager. */
int ferry_pager_received(void *ctx, enum ferry_wire_type type, const uint8_t *body,
			 uint32_t length);

/** ferry_pager_forget() - before a new connection: what was told on the old one. */
void ferry_pager_forget(struct ferry_pager *pager);

/** ferry_pager_again() - all is told on a new connection: new channels, what is not placed is left. */
int ferry_pager_again(struct ferry_pager *pager, const struct ferry_link_params *params,
		      struct ferry_error *err);

/** ferry_pager_spill() - all that may be missing there, into a file; see ferry_spill_write(). */
int ferry_pager_spill(struct ferry_pager *pager, const char *kind, const char *path,
		      uint64_t *pages, struct ferry_error *err);

/** ferry_pager_hang_up() - close all channels. Safe to repeat. */
void ferry_pager_hang_up(struct ferry_pager *pager);

/** ferry_pager_abort() - break what the channels do; for ferry_link_params.ended. Any thread. */
void ferry_pager_abort(void *ctx);

#endif
