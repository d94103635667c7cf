/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef FERRY_SYNC_H
#define FERRY_SYNC_H

struct ferry_call;

int ferry_sync_start(struct ferry_call *call);
int ferry_sync_stop(struct ferry_call *call);
int ferry_sync_sync(struct ferry_call *call);
int ferry_sync_get(struct ferry_call *call);
int ferry_sync_clear(struct ferry_call *call);

#endif
