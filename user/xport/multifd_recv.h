/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_XPORT_MULTIFD_RECV_H
#define FERRY_XPORT_MULTIFD_RECV_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "ram/bitmap.h"
#include "ram/ram.h"

/*
 * The receiving threads, one a channel. At the SYNC of a round each channel
 * waits for all others, so that a page of a later round never meets an older
 * copy of itself. Pages are written into the memory files (not through a
 * mapping: what is never sent stays a hole); a zero page makes a hole where
 * data had been received before.
 */
struct ferry_multifd_recv;

/*
 * Postcopy: where a guest runs on what comes, each page is brought by one channel alone and
 * must be made visible. Called by all channels' threads.
 */
struct ferry_multifd_sink {
	/* Return: how many pages from @first on are the caller's to bring; 0: @first is not. */
	uint64_t (*claim)(void *ctx, unsigned int block, uint64_t first, uint64_t pages);
	/* Return: how many pages from @first on nobody needs, at most @pages. */
	uint64_t (*skip)(void *ctx, unsigned int block, uint64_t first, uint64_t pages);
	/* Claimed pages cannot be brought after all. */
	void (*unclaim)(void *ctx, unsigned int block, uint64_t first, uint64_t pages);
	/* Claimed pages are in the memory file; @zero: as holes. Return: 0 or -errno. */
	int (*placed)(void *ctx, unsigned int block, uint64_t first, uint64_t pages, bool zero);
	void *ctx;
};

/*
 * One channel at a time writes to a block, whichever pool it is of. The kernel sees to that in any
 * case, but who waits for its inode lock spins: with two channels writing took half as much CPU
 * again.
 */
struct ferry_multifd_turns {
	pthread_mutex_t block[FERRY_RAM_MAX_BLOCKS];
};

void ferry_multifd_turns_init(struct ferry_multifd_turns *turns);
void ferry_multifd_turns_free(struct ferry_multifd_turns *turns);

struct ferry_multifd_recv_params {
	const int *fds; /* one a channel; the pool's to close once create succeeded */
	unsigned int channels;
	const struct ferry_ram *ram;
	struct ferry_bitmap *received; /* pages that hold received data; set and cleared atomically */
	uint8_t codec;		       /* enum ferry_wire_codec that extents may have beside raw */
	bool checksum;		       /* every extent must carry one */
	bool urgent; /* a guest waits for all that comes: it waits for nobody's turn */
	struct ferry_multifd_turns *turns; /* of all pools that write to @ram; outlives them */
	const struct ferry_multifd_sink *sink; /* from the first packet on; NULL none */
	const char *name; /* of a channel, in errors; NULL "multifd channel" */
	/* Called by each channel's thread as it ends: no more good can come. May be NULL. */
	void (*ended)(void *ctx);
	void *ctx;
};

struct ferry_multifd_recv_stats {
	uint64_t received_bytes;
	uint64_t normal_pages;
	uint64_t zero_pages;
};

int ferry_multifd_recv_create(const struct ferry_multifd_recv_params *params,
			      struct ferry_multifd_recv **out, struct ferry_error *err);

/**
 * ferry_multifd_recv_wait() - until every channel has loaded all up to the SYNC of @round
 *
 * Rounds count from 1. A round that was completed stays so, whatever fails later.
 *
 * Return: 0, -ETIMEDOUT, -ECANCELED after abort, the first channel's error with its text.
 */
int ferry_multifd_recv_wait(struct ferry_multifd_recv *pool, uint32_t round, uint64_t deadline_ns,
			    struct ferry_error *err);

/**
 * ferry_multifd_recv_sink() - all that comes from now on goes to @sink, which outlives the pool
 *
 * Between two rounds: nothing may be under way.
 */
void ferry_multifd_recv_sink(struct ferry_multifd_recv *pool,
			     const struct ferry_multifd_sink *sink);

/** ferry_multifd_recv_why() - Return: 0 while it is well, or why it ended, with the text. */
int ferry_multifd_recv_why(struct ferry_multifd_recv *pool, struct ferry_error *err);

void ferry_multifd_recv_stats(struct ferry_multifd_recv *pool,
			      struct ferry_multifd_recv_stats *stats);

/** ferry_multifd_recv_abort() - shut all sockets down; every waiter returns. Any thread. */
void ferry_multifd_recv_abort(struct ferry_multifd_recv *pool);

/** ferry_multifd_recv_free() - abort, join, close; NULL is fine. */
void ferry_multifd_recv_free(struct ferry_multifd_recv *pool);

#endif
