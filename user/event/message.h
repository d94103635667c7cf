/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_EVENT_MESSAGE_H
#define FERRY_EVENT_MESSAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

/*
 * What the kernel module says over generic netlink, as bytes: pure, no descriptors, no
 * memory. Whatever does not have the form that <linux/ferry_netlink.h> promises is -EBADMSG;
 * what a newer module may add (other messages and attributes) is passed over.
 */

enum ferry_event_kind {
	FERRY_EVENT_EXISTS,    /* there is such a tracker: the answer to a dump */
	FERRY_EVENT_CREATED,
	FERRY_EVENT_DESTROYED,
	FERRY_EVENT_WATERMARK, /* as many pages are dirty as somebody wanted to know */
	FERRY_EVENT_THROTTLED,
	FERRY_EVENT_LOST,      /* events were lost; what exists follows, all else here is 0 */
	FERRY_EVENT_COUNT
};

/** ferry_event_name() - "exists", "created", ... */
const char *ferry_event_name(enum ferry_event_kind kind);

/**
 * struct ferry_event - a tracker of the kernel module, and what happened to it
 * @time_ns: CLOCK_MONOTONIC when it happened; 0 of FERRY_EVENT_EXISTS
 *
 * The other fields are those of <linux/ferry_netlink.h>.
 */
struct ferry_event {
	enum ferry_event_kind kind;
	uint64_t id;
	uint32_t pid;
	uint32_t uid;
	uint64_t inode;
	uint64_t pages;
	bool started;
	uint32_t views;
	uint64_t dirty_pages;
	uint64_t watermark_pages;
	uint64_t marked_pages;
	uint64_t cleaned_pages;
	uint64_t pinned_pages;
	uint64_t time_ns;
};

/* Called for each event. Return: 0 to go on; anything else ends the walk with it. */
typedef int ferry_event_fn(void *ctx, const struct ferry_event *event);

/**
 * struct ferry_message_walk - what the bytes of a socket are looked at for
 * @family: the number of the family "ferry"; 0 while it is looked for
 * @group: the number of its group "events"; 0: not known yet
 * @sequence: of the request whose answer is awaited; 0: none is
 * @answered: out: that answer is complete
 * @overrun: out: the kernel had to leave out messages
 * @gone: out: there is no such family any more
 */
struct ferry_message_walk {
	uint16_t family;
	uint32_t group;
	uint32_t sequence;
	bool answered;
	bool overrun;
	bool gone;
};

/**
 * ferry_message_walk() - take the messages of one datagram
 * @bytes: aligned as malloc(3) does
 * @fn: gets the events
 *
 * While @walk->family is 0 the datagram may hold the controller's answer about the family,
 * which fills it and the group. An error that the kernel answers the awaited request with
 * is returned with no text: the caller knows what it asked for.
 *
 * Return: 0; -EBADMSG with a text; the kernel's negative errno; what @fn returned.
 */
int ferry_message_walk(struct ferry_message_walk *walk, const void *bytes, size_t len,
		       ferry_event_fn *fn, void *ctx, struct ferry_error *err);

/* Room that any request needs. */
#define FERRY_MESSAGE_REQUEST_BYTES 64

/**
 * ferry_message_find() - the request for the numbers of the family "ferry"
 * @buf: FERRY_MESSAGE_REQUEST_BYTES, aligned as malloc(3) does
 *
 * Return: its length.
 */
size_t ferry_message_find(void *buf, uint32_t sequence);

/** ferry_message_dump() - the request for all trackers. See ferry_message_find(). */
size_t ferry_message_dump(void *buf, uint16_t family, uint32_t sequence);

#endif
