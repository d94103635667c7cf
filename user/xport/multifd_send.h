/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_XPORT_MULTIFD_SEND_H
#define FERRY_XPORT_MULTIFD_SEND_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "ram/ram.h"
#include "xport/rate.h"

/*
 * A pool of sending threads, one a channel. The engine queues runs of pages;
 * any channel takes them, finds zero pages and sends packets. A round ends with
 * ferry_multifd_send_sync(): only after it may a page be queued again. One
 * thread queues and syncs.
 */
struct ferry_multifd_send;

struct ferry_multifd_send_params {
	const int *fds; /* one a channel; the pool's to close once create succeeded */
	unsigned int channels;
	const struct ferry_ram *ram; /* read by pread(2), mapped or not; outlives the pool */
	struct ferry_rate *rate; /* counts bytes on the wire */
	uint8_t codec;		 /* enum ferry_wire_codec, for what gets smaller by it */
	bool checksum;		 /* of every extent */
	/*
	 * When set, called for every page sent, with a private copy of its bytes (NULL for a
	 * zero page) that is exactly what goes out. Any channel thread. Slower: NULL when not needed.
	 */
	void (*page_sent)(void *ctx, unsigned int block, uint64_t page, const void *bytes);
	void *ctx;
};

struct ferry_multifd_send_stats {
	uint64_t sent_bytes; /* on the wire, headers included */
	uint64_t normal_pages;
	uint64_t zero_pages;
};

int ferry_multifd_send_create(const struct ferry_multifd_send_params *params,
			      struct ferry_multifd_send **out, struct ferry_error *err);

/** ferry_multifd_send_watch() - switch page_sent on or off; only between sync and queue. */
void ferry_multifd_send_watch(struct ferry_multifd_send *pool, bool on);

/**
 * ferry_multifd_send_queue() - send these pages; blocks while the queue is full
 * @zero: they are known to be zero (a hole): do not read them
 *
 * Return: 0; the error of a channel (names it), -ECANCELED after abort.
 */
int ferry_multifd_send_queue(struct ferry_multifd_send *pool, unsigned int block,
			     uint64_t first_page, uint64_t pages, bool zero,
			     struct ferry_error *err);

/**
 * ferry_multifd_send_sync() - everything queued and a SYNC of @round is in the sockets
 * @round: 1 for the first sync of the pool, then one more each time
 *
 * Return: 0; -EINVAL for another round; the error of a channel; -ECANCELED after abort.
 */
int ferry_multifd_send_sync(struct ferry_multifd_send *pool, uint32_t round,
			    struct ferry_error *err);

/**
 * ferry_multifd_send_share() - how many pages a channel takes from the queue at once
 * @queued_pages: what is waiting
 * @channels: who share it
 * @bytes_per_s: rate limit of all together, 0 for none
 *
 * Return: 1..FERRY_WIRE_MAX_PACKET_PAGES
 */
unsigned int ferry_multifd_send_share(uint64_t queued_pages, unsigned int channels,
				      uint64_t bytes_per_s);

/**
 * ferry_multifd_send_drain() - until all that was queued is in the sockets, or the deadline
 *
 * Return: 0, -ETIMEDOUT (no text), the error of a channel, -ECANCELED after abort.
 */
int ferry_multifd_send_drain(struct ferry_multifd_send *pool, uint64_t deadline_ns,
			     struct ferry_error *err);

/**
 * ferry_multifd_send_room() - until at most @pages are queued and not sent, or the deadline
 *
 * So that what is queued next does not stand behind all of guest memory. The thread that queues.
 * Return: 0, -ETIMEDOUT (no text), the error of a channel, -ECANCELED after abort.
 */
int ferry_multifd_send_room(struct ferry_multifd_send *pool, uint64_t pages, uint64_t deadline_ns,
			    struct ferry_error *err);

/** ferry_multifd_send_shorten() - somebody waits for pages: little may stand in the sockets. */
void ferry_multifd_send_shorten(struct ferry_multifd_send *pool);

/** ferry_multifd_send_pending() - pages queued and not sent yet. */
uint64_t ferry_multifd_send_pending(struct ferry_multifd_send *pool);

void ferry_multifd_send_stats(struct ferry_multifd_send *pool,
			      struct ferry_multifd_send_stats *stats);

/** ferry_multifd_send_abort() - shut all sockets down; every waiter returns. Any thread. */
void ferry_multifd_send_abort(struct ferry_multifd_send *pool);

/** ferry_multifd_send_free() - abort, join, close; NULL is fine. */
void ferry_multifd_send_free(struct ferry_multifd_send *pool);

#endif
