/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef FERRY_EVENT_H
#define FERRY_EVENT_H

#include <linux/poll.h>
#include <linux/ferry_netlink.h>

struct ferry_call;
struct ferry_tracker;

void ferry_event_dirty(struct ferry_tracker *tracker, long change);
int ferry_event_watch(struct ferry_call *call);
__poll_t ferry_event_poll(struct file *file, struct poll_table_struct *table);
void ferry_event_init_watch(struct ferry_tracker *tracker);
void ferry_event_release(struct ferry_tracker *tracker);
void ferry_event_send(struct ferry_tracker *tracker, enum ferry_genl_cmd cmd);
int ferry_event_init(void);
void ferry_event_exit(void);

#endif
