// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Linked around the clock of selftests/qemu/guest.c by test_selfcheck.py
 * (-Wl,--wrap): a machine so slow that time passes between two looks at the
 * clock, as it does when QEMU runs in a QEMU. No time of ours passes.
 */
#include <stdio.h>
#include <time.h>
#include <unistd.h>

#define SLOWEST_LOOK_MS 60
#define SLEEPS 200

/* The linker's names. */
int __wrap_clock_gettime(clockid_t clock, struct timespec *ts);
int __wrap_nanosleep(const struct timespec *ts, struct timespec *left);

/* Only the thread that ticks looks at the clock and sleeps. */
static long now_ms, looks, sleeps;

int __wrap_clock_gettime(clockid_t clock, struct timespec *ts)
{
	(void)clock;
	now_ms += ++looks % SLOWEST_LOOK_MS;
	ts->tv_sec = now_ms / 1000;
	ts->tv_nsec = now_ms % 1000 * 1000000;
	return 0;
}

int __wrap_nanosleep(const struct timespec *ts, struct timespec *left)
{
	(void)left;
	if (ts->tv_sec) {
		dprintf(STDOUT_FILENO, "between ticks it sleeps for %ld s\n", (long)ts->tv_sec);
		_exit(1);
	}
	now_ms += ts->tv_nsec / 1000000;
	if (++sleeps == SLEEPS)
		_exit(0);
	return 0;
}
