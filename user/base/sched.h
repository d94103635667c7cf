/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_BASE_SCHED_H
#define FERRY_BASE_SCHED_H

/**
 * ferry_sched_prompt() - the calling thread has little to do each time, and somebody waits for it
 *
 * It asks for short turns, so that after a sleep it goes before threads that have milliseconds to
 * run (Linux 6.12; older kernels look away). Needs no right.
 *
 * Not real-time (SCHED_FIFO): the kernel wakes such a thread where it ran last, on another
 * processor most of the time, where this one is woken beside its waker. A page fault took 60 us
 * instead of 30 with it, and 99 of 100 no less.
 */
void ferry_sched_prompt(void);

#endif
