/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_ENGINE_RELEASE_H
#define FERRY_ENGINE_RELEASE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "ram/bitmap.h"
#include "ram/ram.h"
#include "xport/fault_channel.h"
#include "xport/multifd_send.h"

/*
 * --release-ram: pages that have been sent in postcopy are given back to the source's host.
 * What is lost with a connection is then lost for good.
 *
 * Channels and the page server send from copies, but read the memory when it is their turn: a
 * page is freed only after all that was taken together with it has gone out.
 */
struct ferry_release {
	const struct ferry_ram *ram;
	struct ferry_bitmap spent; /* taken to be sent; atomic */
	struct ferry_bitmap due;   /* the migration thread's */
	uint64_t served;	   /* of them by the page server; atomic */
	uint64_t noted;		   /* by the channels since the last step; the migration thread's */
	bool on;
};

/** ferry_release_init() - Return: 0 or -ENOMEM; ferry_release_free() in any case. */
int ferry_release_init(struct ferry_release *rel, const struct ferry_ram *ram);
void ferry_release_free(struct ferry_release *rel);

/** ferry_release_served() - the page server took pages. Any thread. */
void ferry_release_served(struct ferry_release *rel, unsigned int block, uint64_t first,
			  uint64_t pages);

/** ferry_release_queued() - pages were queued for the channels. */
void ferry_release_queued(struct ferry_release *rel, unsigned int block, uint64_t first,
			  uint64_t pages);

/**
 * ferry_release_step() - if enough has come together: wait until it is sent, free it
 * @all: whatever there is
 */
int ferry_release_step(struct ferry_release *rel, struct ferry_multifd_send *pool,
		       struct ferry_page_server *server, bool all, struct ferry_error *err);

#endif
