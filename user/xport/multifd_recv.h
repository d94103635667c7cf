/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_XPORT_MULTIFD_RECV_H
#define FERRY_XPORT_MULTIFD_RECV_H

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

struct ferry_multifd_recv_params {
	const int *fds; /* one a channel; the pool's to close once create succeeded */
	unsigned int channels;
	const struct ferry_ram *ram;
	struct ferry_bitmap *received; /* pages that hold received data; set and cleared atomically */
	uint8_t codec;		       /* enum ferry_wire_codec that extents may have beside raw */
	bool checksum;		       /* every extent must carry one */
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

void ferry_multifd_recv_stats(struct ferry_multifd_recv *pool,
			      struct ferry_multifd_recv_stats *stats);

/** ferry_multifd_recv_abort() - shut all sockets down; every waiter returns. Any thread. */
void ferry_multifd_recv_abort(struct ferry_multifd_recv *pool);

/** ferry_multifd_recv_free() - abort, join, close; NULL is fine. */
void ferry_multifd_recv_free(struct ferry_multifd_recv *pool);

#endif
