// SPDX-License-Identifier: GPL-2.0-or-later
#include "xport/rate.h"

#include "base/clock.h"

/*
 * Time that went by unused and may be caught up with. It makes good for late
 * wake-ups (a few ms on a loaded host); more would be a burst above the limit.
 */
#define RATE_CREDIT_NS (20 * FERRY_NS_PER_MS)

/* No debt is longer than a year, whatever limit is asked for: sums cannot overflow. */
#define RATE_MAX_COST_NS (365ull * 24 * 3600 * FERRY_NS_PER_S)

static uint64_t cost_ns(uint64_t bytes, uint64_t bytes_per_s)
{
	unsigned __int128 ns = (unsigned __int128)bytes * FERRY_NS_PER_S / bytes_per_s;

	return ns < RATE_MAX_COST_NS ? (uint64_t)ns : RATE_MAX_COST_NS;
}

void ferry_rate_init(struct ferry_rate *rate, uint64_t bytes_per_s)
{
	pthread_mutex_init(&rate->lock, NULL);
	rate->bytes_per_s = bytes_per_s;
	rate->ready_ns = 0;
}

void ferry_rate_set(struct ferry_rate *rate, uint64_t bytes_per_s)
{
	pthread_mutex_lock(&rate->lock);
	rate->bytes_per_s = bytes_per_s;
	/* What was sent under the old limit is forgiven, or a raised one would come late. */
	rate->ready_ns = 0;
	pthread_mutex_unlock(&rate->lock);
}

uint64_t ferry_rate_get(struct ferry_rate *rate)
{
	uint64_t bytes_per_s;

	pthread_mutex_lock(&rate->lock);
	bytes_per_s = rate->bytes_per_s;
	pthread_mutex_unlock(&rate->lock);
	return bytes_per_s;
}

uint64_t ferry_rate_take(struct ferry_rate *rate, uint64_t bytes, uint64_t now_ns)
{
	uint64_t wait_ns = 0;

	pthread_mutex_lock(&rate->lock);
	if (!rate->bytes_per_s)
		goto out;
	if (rate->ready_ns > now_ns) {
		wait_ns = rate->ready_ns - now_ns;
		goto out;
	}
	if (!rate->ready_ns) /* the first since the limit was set */
		rate->ready_ns = now_ns;
	else if (now_ns - rate->ready_ns > RATE_CREDIT_NS)
		rate->ready_ns = now_ns - RATE_CREDIT_NS;
	rate->ready_ns += cost_ns(bytes, rate->bytes_per_s);
out:
	pthread_mutex_unlock(&rate->lock);
	return wait_ns;
}
