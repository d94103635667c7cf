// SPDX-License-Identifier: GPL-2.0-or-later
#include "base/clock.h"

#include <errno.h>
#include <limits.h>
#include <time.h>

static uint64_t clock_read_ns(clockid_t id)
{
	struct timespec ts;

	clock_gettime(id, &ts);
	return (uint64_t)ts.tv_sec * FERRY_NS_PER_S + (uint64_t)ts.tv_nsec;
}

uint64_t ferry_clock_ns(void)
{
	return clock_read_ns(CLOCK_MONOTONIC);
}

uint64_t ferry_clock_wall_ns(void)
{
	return clock_read_ns(CLOCK_REALTIME);
}

uint64_t ferry_clock_in_ms(uint64_t ms)
{
	return ferry_clock_ns() + ms * FERRY_NS_PER_MS;
}

int ferry_clock_poll_ms(uint64_t deadline_ns)
{
	uint64_t now = ferry_clock_ns(), ms;

	if (deadline_ns == FERRY_CLOCK_NEVER)
		return -1;
	if (deadline_ns <= now)
		return 0;
	ms = (deadline_ns - now + FERRY_NS_PER_MS - 1) / FERRY_NS_PER_MS;
	return ms > INT_MAX ? INT_MAX : (int)ms;
}

void ferry_clock_sleep_ns(uint64_t ns)
{
	struct timespec ts = {
		.tv_sec = (time_t)(ns / FERRY_NS_PER_S),
		.tv_nsec = (long)(ns % FERRY_NS_PER_S),
	};

	while (nanosleep(&ts, &ts) && errno == EINTR)
		;
}
