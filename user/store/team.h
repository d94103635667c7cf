/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_STORE_TEAM_H
#define FERRY_STORE_TEAM_H

#include <stdint.h>

#include "base/error.h"

/*
 * Several threads that take extents, one after the other, from all blocks of a file until
 * there are none left or one of them fails.
 */
struct ferry_store_work {
	unsigned int threads;
	unsigned int blocks;
	const uint64_t *extents; /* of each block */
	/* One extent; @lane tells the threads apart. Return: 0, or -errno, which ends all. */
	int (*run)(void *ctx, unsigned int lane, unsigned int block, uint64_t extent,
		   struct ferry_error *err);
	void *ctx;
	const int *stop; /* nonzero ends it early with -ECANCELED; may be NULL */
};

#define FERRY_STORE_MAX_LANES 64

/** ferry_store_team() - do the work; returns when all threads have ended. Return: 0 or -errno. */
int ferry_store_team(const struct ferry_store_work *work, struct ferry_error *err);

#endif
