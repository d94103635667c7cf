/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef FERRY_EVENT_H
#define FERRY_EVENT_H

#include <linux/atomic.h>
#include <linux/compiler.h>
#include <linux/poll.h>
#include <linux/ferry_netlink.h>

#include "tracker.h"

struct ferry_call;

void ferry_event_crossed(struct ferry_tracker *tracker, bool below);

/**
 * ferry_event_dirty - count bits that were set or cleared
 * @tracker: the tracker
 * @change: how many were set; negative: cleared
 *
 * Context: any that may take watch.lock, which no interrupt does; does not sleep.
 */
static inline void ferry_event_dirty(struct ferry_tracker *tracker, long change)
{
	/* A full barrier, whose partner is the one in ferry_event_watch(). */
	long now = atomic_long_add_return(change, &tracker->dirty_pages);
	long mark = READ_ONCE(tracker->watch.pages);

	if (unlikely(mark && (now < mark) != (now - change < mark)))
		ferry_event_crossed(tracker, now < mark);
}

int ferry_event_watch(struct ferry_call *call);
__poll_t ferry_event_poll(struct file *file, struct poll_table_struct *table);
void ferry_event_init_watch(struct ferry_tracker *tracker);
void ferry_event_release(struct ferry_tracker *tracker);
void ferry_event_send(struct ferry_tracker *tracker, enum ferry_genl_cmd cmd);
int ferry_event_init(void);
void ferry_event_exit(void);

#endif
