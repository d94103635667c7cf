/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_XPORT_CREW_H
#define FERRY_XPORT_CREW_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "wire/wire.h"

/*
 * What the sending and the receiving pool have in common: a thread a channel,
 * one lock with one condition for all of the pool's state, and the first error,
 * which ends everything. Embedded in the pool. Functions marked (locked) are
 * called with the lock held.
 */
struct ferry_crew {
	pthread_mutex_t lock;	/* a leaf: nothing else is taken under it */
	pthread_cond_t changed; /* any of the state changed; CLOCK_MONOTONIC */
	struct ferry_error err; /* errnum != 0: stopped, and why */
	unsigned int channels;
	unsigned int started;
	int fds[FERRY_WIRE_MAX_CHANNELS];
	pthread_t threads[FERRY_WIRE_MAX_CHANNELS];
};

/** ferry_crew_init() - Return: 0, -EINVAL (no channels or too many), -errno. */
int ferry_crew_init(struct ferry_crew *crew, const int *fds, unsigned int channels,
		    struct ferry_error *err);

/** ferry_crew_start() - the thread of the next channel, with all signals blocked. */
int ferry_crew_start(struct ferry_crew *crew, void *(*run)(void *), void *arg,
		     struct ferry_error *err);

/** ferry_crew_stop() - keep @why if it is the first, shut all sockets down, wake all. */
void ferry_crew_stop(struct ferry_crew *crew, const struct ferry_error *why);

/** ferry_crew_abort() - stop with -ECANCELED. */
void ferry_crew_abort(struct ferry_crew *crew);

/** ferry_crew_result() - (locked) the first error, copied to @err; 0 while there is none. */
int ferry_crew_result(const struct ferry_crew *crew, struct ferry_error *err);

/** ferry_crew_why() - the same, for callers that do not hold the lock. */
int ferry_crew_why(struct ferry_crew *crew, struct ferry_error *err);

/** ferry_crew_wait() - (locked) until something changed. Return: 0 or -ETIMEDOUT. */
int ferry_crew_wait(struct ferry_crew *crew, uint64_t deadline_ns);

/** ferry_crew_end() - abort, join all threads, close the sockets if @close_fds. */
void ferry_crew_end(struct ferry_crew *crew, bool close_fds);

#endif
