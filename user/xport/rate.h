/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_XPORT_RATE_H
#define FERRY_XPORT_RATE_H

#include <pthread.h>
#include <stdint.h>

/*
 * A token bucket shared by all channels of a migration. A sender pays after the
 * fact: whoever comes when it is ready may go, and makes those behind it wait.
 */
struct ferry_rate {
	pthread_mutex_t lock;
	uint64_t bytes_per_s; /* 0: unlimited */
	uint64_t ready_ns;    /* when the next byte may go */
};

void ferry_rate_init(struct ferry_rate *rate, uint64_t bytes_per_s);
void ferry_rate_set(struct ferry_rate *rate, uint64_t bytes_per_s);


/** ferry_rate_get() - Return: the limit now, bytes a second, 0 for none. */
uint64_t ferry_rate_get(struct ferry_rate *rate);

/**
 * ferry_rate_take() - may @bytes be sent now?
 *
 * Return: 0: yes, and they are paid for. Otherwise nothing was taken: wait that many
 * nanoseconds, or less (the limit may be changed meanwhile), and ask again.
 */
uint64_t ferry_rate_take(struct ferry_rate *rate, uint64_t bytes, uint64_t now_ns);

#endif
