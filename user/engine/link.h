/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_ENGINE_LINK_H
#define FERRY_ENGINE_LINK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "wire/wire.h"
#include "xport/uri.h"

/*
 * The source's end of the main channel. A return-path thread reads what the
 * destination says and only records it; the migration thread waits for facts
 * and makes the transitions. The same thread sends a PING now and then when the
 * line is quiet and takes a destination that is silent for too long as lost.
 */
struct ferry_link;

enum ferry_link_fact {
	FERRY_LINK_READY = 1u << 0,
	FERRY_LINK_FLUSHED = 1u << 1,  /* of the round asked for last */
	FERRY_LINK_VERIFIED = 1u << 2,
	FERRY_LINK_LOADED = 1u << 3,   /* PONG to PING(FERRY_LINK_PING_LOADED) */
	FERRY_LINK_RUNNING = 1u << 4,
	FERRY_LINK_REFUSED = 1u << 5,
	FERRY_LINK_ABORTED = 1u << 6,  /* the destination gave up before it was loaded */
	FERRY_LINK_ANSWER = 1u << 7,
	FERRY_LINK_LOST = 1u << 8,
	FERRY_LINK_LACKS = 1u << 9,    /* RUNNING_LACKS */
	FERRY_LINK_PLACED = 1u << 10,
};

#define FERRY_LINK_PING_ALIVE 0u
#define FERRY_LINK_PING_LOADED 1u

struct ferry_link_params {
	const struct ferry_uri *uri;
	const uint8_t *uuid;
	uint32_t epoch;
	enum ferry_wire_kind kind; /* MAIN or RECOVER */
	uint16_t channels;
	uint64_t features; /* FERRY_WIRE_FEATURE_..., which the destination must have too */
	uint32_t timeout_ms;	/* answers; silence */
	uint64_t deadline_ns;	/* for the connection */
	const int *stop;	/* see ferry_sock_connect() */
	/*
	 * RECEIVED and RECEIVED_END frames, in the return-path thread. Return: 0 or -errno, which
	 * loses the link. NULL: they are not expected.
	 */
	int (*received)(void *ctx, enum ferry_wire_type type, const uint8_t *body, uint32_t length);
	/* Called once, by the return-path thread, when no more good can come. May be NULL. */
	void (*ended)(void *ctx);
	void *ctx;
};

/**
 * ferry_link_open() - connect, exchange HELLO, start the return path
 *
 * Return: 0; -ECONNREFUSED with the peer's reason; -EOPNOTSUPP it lacks one of the features;
 * -ENOENT when the destination does not know this migration; -ESTALE when it knows a newer epoch;
 * what ferry_sock_connect() says.
 */
int ferry_link_open(const struct ferry_link_params *params, struct ferry_link **out,
		    struct ferry_error *err);

/** ferry_link_close() - shut down, join, free; NULL is fine. */
void ferry_link_close(struct ferry_link *link);

int ferry_link_send(struct ferry_link *link, enum ferry_wire_type type, const void *body,
		    uint32_t length, struct ferry_error *err);

/** ferry_link_flush() - send FLUSH(@round); FLUSHED is recorded for that round only. */
int ferry_link_flush(struct ferry_link *link, uint32_t round, struct ferry_error *err);

/**
 * ferry_link_wait() - until one of @facts, or a fact that ends it all, is recorded
 *
 * ABORTED, REFUSED and LOST end every wait, but that for LOST alone only by LOST.
 *
 * Return: 0 one of @facts holds; -ECONNABORTED the destination gave up, -ECONNREFUSED it
 * refused (its words in @err), -ECONNRESET the link is lost, -ETIMEDOUT, -ECANCELED.
 */
int ferry_link_wait(struct ferry_link *link, unsigned int facts, uint64_t deadline_ns,
		    struct ferry_error *err);

/**
 * ferry_link_why() - the words for a link that is lost, or whose peer gave up or refused
 *
 * Return: 0 while it is well; -errno as ferry_link_wait() would.
 */
int ferry_link_why(struct ferry_link *link, struct ferry_error *err);

/** ferry_link_cancel() - make waits return -ECANCELED until ferry_link_uncancel(). Any thread. */
void ferry_link_cancel(struct ferry_link *link);
void ferry_link_uncancel(struct ferry_link *link);

/** ferry_link_facts() - all facts so far; LOST also when nothing can be sent any more. */
unsigned int ferry_link_facts(struct ferry_link *link);
enum ferry_wire_answer ferry_link_answer(struct ferry_link *link);
/** ferry_link_features() - what the destination offers. */
uint64_t ferry_link_features(const struct ferry_link *link);
/** ferry_link_cannot() - why there can be no postcopy, as CANNOT told. Return: false, it can. */
bool ferry_link_cannot(struct ferry_link *link, char *why, size_t room);
/** ferry_link_closed() - did the destination close it, and had it got all that was sent? */
bool ferry_link_closed(struct ferry_link *link, uint64_t deadline_ns);
/** ferry_link_start_ns() - from RUN received to guest started, as RUNNING told. */
uint64_t ferry_link_start_ns(struct ferry_link *link);
/** ferry_link_ping() - measure the round trip; the answer is not waited for. Return: 0 or -errno. */
int ferry_link_ping(struct ferry_link *link);

/** ferry_link_rtt_ns() - the shortest round trip measured so far, 0 not known. */
uint64_t ferry_link_rtt_ns(struct ferry_link *link);

/**
 * ferry_link_channel() - connect one multifd channel, HELLO included
 *
 * Return: its descriptor or -errno with a text.
 */
int ferry_link_channel(const struct ferry_link_params *params, uint16_t channel,
		       struct ferry_error *err);

/** ferry_link_fault_channel() - the same for the fault channel. */
int ferry_link_fault_channel(const struct ferry_link_params *params, struct ferry_error *err);

#endif
