/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_BASE_CLOCK_H
#define FERRY_BASE_CLOCK_H

#include <stdint.h>

#define FERRY_NS_PER_MS 1000000ull
#define FERRY_NS_PER_S 1000000000ull

/* A deadline that never comes. */
#define FERRY_CLOCK_NEVER UINT64_MAX

/** ferry_clock_ns() - Return: CLOCK_MONOTONIC in nanoseconds. */
uint64_t ferry_clock_ns(void);

/** ferry_clock_wall_ns() - Return: CLOCK_REALTIME in nanoseconds since 1970. */
uint64_t ferry_clock_wall_ns(void);

/** ferry_clock_in_ms() - Return: the deadline @ms milliseconds from now. */
uint64_t ferry_clock_in_ms(uint64_t ms);

/**
 * ferry_clock_poll_ms() - the timeout to give poll(2) for a deadline
 * @deadline_ns: CLOCK_MONOTONIC deadline, or FERRY_CLOCK_NEVER
 *
 * Return: milliseconds rounded up, 0 when it has passed, -1 for never.
 */
int ferry_clock_poll_ms(uint64_t deadline_ns);

/** ferry_clock_sleep_ns() - sleep, interruptions included. */
void ferry_clock_sleep_ns(uint64_t ns);

#endif
