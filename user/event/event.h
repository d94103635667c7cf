/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_EVENT_EVENT_H
#define FERRY_EVENT_EVENT_H

#include "base/error.h"
#include "event/message.h"

/*
 * Listening to the kernel module: which trackers exist, and what happens to them. The
 * bitmap of a tracker is the truth; events are for whoever watches. One thread at a time.
 */
struct ferry_events;

/**
 * ferry_event_open() - find the module and begin to listen
 * @timeout_ms: for each answer of the kernel
 *
 * What happens from here on is kept for ferry_event_receive().
 *
 * Return: 0; -ENOENT when the module is not loaded or this is another network namespace;
 * -EPERM without CAP_NET_ADMIN; another negative errno.
 */
int ferry_event_open(struct ferry_events **out, uint32_t timeout_ms, struct ferry_error *err);

void ferry_event_close(struct ferry_events *events);

/** ferry_event_fd() - a descriptor that is readable when ferry_event_receive() has work. */
int ferry_event_fd(const struct ferry_events *events);

/**
 * ferry_event_dump() - all trackers that exist, as FERRY_EVENT_EXISTS
 * @fn: gets events that happen meanwhile too, in their order; not 0 ends the dump
 *
 * Return: 0; -ETIMEDOUT, -EPERM, -EBADMSG, -ENODEV when the module went away, or another
 * negative errno; what @fn returned.
 */
int ferry_event_dump(struct ferry_events *events, ferry_event_fn *fn, void *ctx,
		     struct ferry_error *err);

/**
 * ferry_event_receive() - take what came, without waiting
 *
 * When the kernel had to drop events @fn gets FERRY_EVENT_LOST at once, then those that had
 * room, and then, by a new dump, what exists.
 *
 * Return: as ferry_event_dump(); 0 also when nothing came.
 */
int ferry_event_receive(struct ferry_events *events, ferry_event_fn *fn, void *ctx,
			struct ferry_error *err);

#endif
