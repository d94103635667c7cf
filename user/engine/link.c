// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/link.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/io.h"
#include "base/log.h"
#include "xport/frame.h"
#include "xport/sock.h"

/* How often a quiet line is asked whether it lives: well within the least --timeout, 1 s. */
#define LINK_PING_NS (300 * FERRY_NS_PER_MS)

#define LINK_SLICE_NS (50 * FERRY_NS_PER_MS)

struct ferry_link {
	int fd;
	uint32_t timeout_ms;
	pthread_t thread;
	int (*received)(void *ctx, enum ferry_wire_type type, const uint8_t *body, uint32_t length);
	void (*ended)(void *ctx);
	void *ctx;
	uint64_t features;
	bool told; /* ended was called; the return path's own */

	/* Protects writes to fd; taken before lock, never after. */
	pthread_mutex_t send_lock;

	/* Protects all below. */
	pthread_mutex_t lock;
	pthread_cond_t changed;
	unsigned int facts;
	uint32_t flush_round;
	enum ferry_wire_answer answer;
	uint64_t start_ns;
	uint64_t rtt_ns;
	uint64_t ping_sent_ns; /* of the oldest one without an answer; 0 none */
	bool cancelled;
	bool closed; /* in good order, by the destination */
	bool last_said; /* ACK has been sent; under send_lock */
	bool broken; /* a frame was sent in part or not at all: no other can follow */
	bool cannot;
	char cannot_text[FERRY_WIRE_MAX_TEXT + 1];
	char text[FERRY_WIRE_MAX_TEXT + 1]; /* why refused, aborted or lost */
};

/* For people: what is left of a limit is seldom a whole number. */
static unsigned int link_seconds(uint32_t ms)
{
	return (ms + 999) / 1000;
}

static void link_record(struct ferry_link *link, unsigned int fact, const char *text)
{
	pthread_mutex_lock(&link->lock);
	/* The first reason counts: a refusal is followed by a closed line. */
	if (text && !link->text[0])
		snprintf(link->text, sizeof(link->text), "%s", text);
	link->facts |= fact;
	pthread_cond_broadcast(&link->changed);
	pthread_mutex_unlock(&link->lock);
}

/* Whoever is busy with the data channels learns that it is in vain. */
static void link_tell_ended(struct ferry_link *link)
{
	const unsigned int ends = FERRY_LINK_LOST | FERRY_LINK_ABORTED | FERRY_LINK_REFUSED;

	if (link->told || !link->ended || !(ferry_link_facts(link) & ends))
		return;
	link->told = true;
	link->ended(link->ctx);
}

static int link_take_pong(struct ferry_link *link, const uint8_t *body, uint32_t length)
{
	uint32_t number;
	int r = ferry_wire_u32_decode(&number, body, length);

	if (r)
		return r;
	if (number == FERRY_LINK_PING_LOADED) {
		link_record(link, FERRY_LINK_LOADED, NULL);
		return 0;
	}
	pthread_mutex_lock(&link->lock);
	if (link->ping_sent_ns) {
		uint64_t rtt_ns = ferry_clock_ns() - link->ping_sent_ns;

		/* The line's own time: all above the least of it is load, and passes. */
		if (!link->rtt_ns || rtt_ns < link->rtt_ns)
			link->rtt_ns = rtt_ns;
	}
	link->ping_sent_ns = 0;
	pthread_mutex_unlock(&link->lock);
	return 0;
}

static int link_take_number(struct ferry_link *link, unsigned int type, const uint8_t *body,
			    uint32_t length)
{
	uint32_t number = 0;
	int r;

	if (type == FERRY_WIRE_RUNNING || type == FERRY_WIRE_RUNNING_LACKS) {
		uint64_t ns;

		r = ferry_wire_u64_decode(&ns, body, length);
		if (r)
			return r;
		pthread_mutex_lock(&link->lock);
		link->start_ns = ns;
		pthread_mutex_unlock(&link->lock);
		link_record(link, type == FERRY_WIRE_RUNNING ? FERRY_LINK_RUNNING :
							       FERRY_LINK_LACKS, NULL);
		return 0;
	}
	r = ferry_wire_u32_decode(&number, body, length);
	if (r)
		return r;
	pthread_mutex_lock(&link->lock);
	if (type == FERRY_WIRE_FLUSHED && number == link->flush_round)
		link->facts |= FERRY_LINK_FLUSHED;
	if (type == FERRY_WIRE_ANSWER) {
		if (number < FERRY_WIRE_ANSWER_RAN || number > FERRY_WIRE_ANSWER_LACKS)
			r = -EPROTO;
		link->answer = (enum ferry_wire_answer)number;
		link->facts |= FERRY_LINK_ANSWER;
	}
	pthread_cond_broadcast(&link->changed);
	pthread_mutex_unlock(&link->lock);
	return r;
}

static void link_take_cannot(struct ferry_link *link, const uint8_t *body)
{
	pthread_mutex_lock(&link->lock);
	link->cannot = true;
	snprintf(link->cannot_text, sizeof(link->cannot_text), "%s",
		 body ? (const char *)body : "it gives no reason");
	pthread_mutex_unlock(&link->lock);
}

static int link_take(struct ferry_link *link, const struct ferry_wire_frame *frame,
		     const uint8_t *body)
{
	switch (frame->type) {
	case FERRY_WIRE_READY:
		link_record(link, FERRY_LINK_READY, NULL);
		return 0;
	case FERRY_WIRE_VERIFIED:
		link_record(link, FERRY_LINK_VERIFIED, NULL);
		return 0;
	case FERRY_WIRE_REFUSED:
		link_record(link, FERRY_LINK_REFUSED, (const char *)body);
		return 0;
	case FERRY_WIRE_ABORT:
		link_record(link, FERRY_LINK_ABORTED, (const char *)body);
		return 0;
	case FERRY_WIRE_PONG:
		return link_take_pong(link, body, frame->length);
	case FERRY_WIRE_PLACED:
		link_record(link, FERRY_LINK_PLACED, NULL);
		return 0;
	case FERRY_WIRE_CANNOT:
		link_take_cannot(link, body);
		return 0;
	case FERRY_WIRE_RECEIVED:
	case FERRY_WIRE_RECEIVED_END:
		return link->received ? link->received(link->ctx, frame->type, body,
						       frame->length) : -EPROTO;
	case FERRY_WIRE_FLUSHED:
	case FERRY_WIRE_RUNNING:
	case FERRY_WIRE_RUNNING_LACKS:
	case FERRY_WIRE_ANSWER:
		return link_take_number(link, frame->type, body, frame->length);
	default:
		return -EPROTO;
	}
}

int ferry_link_ping(struct ferry_link *link)
{
	uint8_t body[4];
	int r = 0;

	ferry_wire_u32_encode(FERRY_LINK_PING_ALIVE, body);
	pthread_mutex_lock(&link->lock);
	if (!link->ping_sent_ns)
		link->ping_sent_ns = ferry_clock_ns();
	pthread_mutex_unlock(&link->lock);
	pthread_mutex_lock(&link->send_lock);
	/* The destination closes at ACK: what it had not read would make that a reset. */
	if (!link->last_said)
		r = ferry_frame_send(link->fd, FERRY_WIRE_PING, body, sizeof(body),
				     ferry_clock_in_ms(link->timeout_ms));
	pthread_mutex_unlock(&link->send_lock);
	return r;
}

/* One frame, or one second without any. Return: 0 or the reason why the link is lost. */
static int link_step(struct ferry_link *link, uint64_t *heard_ns, struct ferry_error *err)
{
	uint64_t silence_ns = link->timeout_ms * FERRY_NS_PER_MS;
	struct ferry_wire_frame frame;
	uint8_t *body = NULL;
	int r;

	r = ferry_io_wait(link->fd, POLLIN, ferry_clock_ns() + LINK_PING_NS);
	if (r == -ETIMEDOUT) {
		if (ferry_clock_ns() - *heard_ns > silence_ns)
			return ferry_error_set(err, ETIMEDOUT, "no word from it for %u s",
					       link_seconds(link->timeout_ms));
		r = ferry_link_ping(link);
		return r ? ferry_error_set(err, -r, "cannot send: %s", strerror(-r)) : 0;
	}
	if (r < 0)
		return ferry_error_set(err, -r, "cannot wait for it: %s", strerror(-r));
	r = ferry_frame_recv(link->fd, &frame, &body, ferry_clock_in_ms(link->timeout_ms), err);
	if (r == -ENODATA) {
		pthread_mutex_lock(&link->lock);
		link->closed = true;
		pthread_mutex_unlock(&link->lock);
	}
	if (r == -ENODATA || r == -EPIPE || r == -ECONNRESET)
		return ferry_error_set(err, -r, "it closed the connection");
	if (r)
		return r;
	*heard_ns = ferry_clock_ns();
	r = link_take(link, &frame, body);
	free(body);
	if (r)
		ferry_error_set(err, -r, "it sent a bad or unexpected %s frame",
				ferry_wire_type_name(frame.type));
	return r;
}

static void *link_return_path(void *arg)
{
	struct ferry_link *link = arg;
	uint64_t heard_ns = ferry_clock_ns();
	struct ferry_error err = { 0 };

	while (!link_step(link, &heard_ns, &err))
		link_tell_ended(link);
	ferry_log_debug("return path ends: %s", err.text);
	link_record(link, FERRY_LINK_LOST, err.text);
	link_tell_ended(link);
	return NULL;
}

/* Wait for the answer to HELLO in slices, so that a cancel is seen. */
static int link_await(int fd, uint64_t deadline_ns, const int *stop)
{
	int r;

	do {
		uint64_t slice_ns = ferry_clock_ns() + LINK_SLICE_NS;

		if (stop && __atomic_load_n(stop, __ATOMIC_RELAXED))
			return -ECANCELED;
		r = ferry_io_wait(fd, POLLIN, slice_ns < deadline_ns ? slice_ns : deadline_ns);
	} while (r == -ETIMEDOUT && ferry_clock_ns() < deadline_ns);
	return r < 0 ? r : 0;
}

static int link_hello(int fd, const struct ferry_link_params *p, enum ferry_wire_kind kind,
		      uint16_t channel, uint64_t *features, struct ferry_error *err)
{
	struct ferry_wire_hello hello = {
		.version = FERRY_WIRE_VERSION,
		.min_version = FERRY_WIRE_MIN_VERSION,
		.features = FERRY_WIRE_FEATURES,
		.epoch = p->epoch,
		.role = FERRY_WIRE_ROLE_SOURCE,
		.kind = (uint8_t)kind,
		.channel = channel,
		.channels = p->channels,
		.page_size = 4096,
	};
	uint64_t deadline_ns = ferry_clock_in_ms(p->timeout_ms);
	char uri[FERRY_URI_MAX];
	int r;

	ferry_uri_format(p->uri, uri);
	memcpy(hello.uuid, p->uuid, sizeof(hello.uuid));
	r = ferry_frame_send_hello(fd, &hello, deadline_ns);
	if (!r)
		r = link_await(fd, deadline_ns, p->stop);
	if (!r)
		r = ferry_frame_recv_hello(fd, &hello, deadline_ns);
	if (r == -ECANCELED)
		return ferry_error_set(err, ECANCELED, "cancelled while connecting");
	if (r == -ETIMEDOUT)
		return ferry_error_set(err, ETIMEDOUT,
				       "%s does not answer HELLO within %u s: is a ferry recv "
				       "there, and free?", uri, link_seconds(p->timeout_ms));
	if (r == -EPROTO || r == -EPROTONOSUPPORT)
		return ferry_error_set(err, -r, "what listens at %s is no ferry of a version this "
				       "one can talk to", uri);
	if (r)
		return ferry_error_set(err, -r, "%s closed the connection at HELLO: %s", uri,
				       strerror(-r));
	if (hello.status == FERRY_WIRE_STATUS_OK && hello.role != FERRY_WIRE_ROLE_DESTINATION)
		return ferry_error_set(err, EPROTO, "%s is no destination", uri);
	switch (hello.status) {
	case FERRY_WIRE_STATUS_OK:
		if (ferry_wire_hello_check(&hello))
			return ferry_error_set(err, EPROTONOSUPPORT,
					       "%s speaks protocol %u to %u, this ferry %u to %u",
					       uri, hello.min_version, hello.version,
					       FERRY_WIRE_MIN_VERSION, FERRY_WIRE_VERSION);
		if (p->features & ~hello.features)
			return ferry_error_set(err, EOPNOTSUPP,
					       "the ferry at %s cannot do %s: install this release "
					       "there, or leave the option out", uri,
					       ferry_wire_feature_text(p->features &
								       ~hello.features));
		*features = hello.features;
		return 0;
	case FERRY_WIRE_STATUS_UUID:
		return ferry_error_set(err, ENOENT, "%s: %s", uri,
				       ferry_wire_status_text(hello.status));
	case FERRY_WIRE_STATUS_EPOCH:
		return ferry_error_set(err, ESTALE, "%s: %s", uri,
				       ferry_wire_status_text(hello.status));
	default:
		return ferry_error_set(err, ECONNREFUSED, "%s: %s", uri,
				       ferry_wire_status_text(hello.status));
	}
}

static int link_other(const struct ferry_link_params *params, enum ferry_wire_kind kind,
		      uint16_t channel, struct ferry_error *err)
{
	int fd = ferry_sock_connect(params->uri, params->deadline_ns, params->stop, err);
	uint64_t features;
	int r;

	if (fd < 0)
		return fd;
	r = link_hello(fd, params, kind, channel, &features, err);
	if (!r)
		return fd;
	close(fd);
	return r;
}

int ferry_link_channel(const struct ferry_link_params *params, uint16_t channel,
		       struct ferry_error *err)
{
	int fd = link_other(params, FERRY_WIRE_KIND_MULTIFD, channel, err);

	if (fd < 0)
		ferry_error_prefix(err, "multifd channel %u", channel);
	return fd;
}

int ferry_link_fault_channel(const struct ferry_link_params *params, struct ferry_error *err)
{
	int fd = link_other(params, FERRY_WIRE_KIND_FAULT, 0, err);

	if (fd < 0)
		ferry_error_prefix(err, "fault channel");
	return fd;
}

int ferry_link_open(const struct ferry_link_params *params, struct ferry_link **out,
		    struct ferry_error *err)
{
	pthread_condattr_t attr;
	struct ferry_link *link;
	int r;

	link = calloc(1, sizeof(*link));
	if (!link)
		return ferry_error_set(err, ENOMEM, "out of memory");
	link->timeout_ms = params->timeout_ms;
	link->received = params->received;
	link->ended = params->ended;
	link->ctx = params->ctx;
	link->fd = ferry_sock_connect(params->uri, params->deadline_ns, params->stop, err);
	if (link->fd < 0) {
		r = link->fd;
		goto err_free;
	}
	r = link_hello(link->fd, params, params->kind, 0, &link->features, err);
	if (r)
		goto err_close;
	pthread_mutex_init(&link->send_lock, NULL);
	pthread_mutex_init(&link->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&link->changed, &attr);
	pthread_condattr_destroy(&attr);
	r = -pthread_create(&link->thread, NULL, link_return_path, link);
	if (r) {
		ferry_error_set(err, -r, "cannot start the return-path thread: %s", strerror(-r));
		goto err_destroy;
	}
	*out = link;
	return 0;

err_destroy:
	pthread_cond_destroy(&link->changed);
	pthread_mutex_destroy(&link->lock);
	pthread_mutex_destroy(&link->send_lock);
err_close:
	close(link->fd);
err_free:
	free(link);
	return r;
}

void ferry_link_close(struct ferry_link *link)
{
	if (!link)
		return;
	shutdown(link->fd, SHUT_RDWR);
	pthread_join(link->thread, NULL);
	close(link->fd);
	pthread_cond_destroy(&link->changed);
	pthread_mutex_destroy(&link->lock);
	pthread_mutex_destroy(&link->send_lock);
	free(link);
}

int ferry_link_send(struct ferry_link *link, enum ferry_wire_type type, const void *body,
		    uint32_t length, struct ferry_error *err)
{
	int r;

	pthread_mutex_lock(&link->send_lock);
	link->last_said |= type == FERRY_WIRE_ACK;
	r = ferry_frame_send(link->fd, type, body, length, ferry_clock_in_ms(link->timeout_ms));
	pthread_mutex_unlock(&link->send_lock);
	if (!r)
		return 0;
	pthread_mutex_lock(&link->lock);
	link->broken = true;
	pthread_mutex_unlock(&link->lock);
	return ferry_error_set(err, -r, "cannot send %s to the destination: %s",
			       ferry_wire_type_name(type), strerror(-r));
}

int ferry_link_flush(struct ferry_link *link, uint32_t round, struct ferry_error *err)
{
	uint8_t body[4];

	pthread_mutex_lock(&link->lock);
	link->facts &= ~(unsigned int)FERRY_LINK_FLUSHED;
	link->flush_round = round;
	pthread_mutex_unlock(&link->lock);
	ferry_wire_u32_encode(round, body);
	return ferry_link_send(link, FERRY_WIRE_FLUSH, body, sizeof(body), err);
}

static int link_verdict(struct ferry_link *link, unsigned int wanted, struct ferry_error *err)
{
	/* What was asked for counts even when the line closed right after it. */
	if (link->facts & wanted)
		return 0;
	/* Who waits for the end of it has heard the words before it. */
	if (link->facts & FERRY_LINK_REFUSED && wanted != FERRY_LINK_LOST)
		return ferry_error_set(err, ECONNREFUSED, "the destination refused: %s", link->text);
	if (link->facts & FERRY_LINK_ABORTED && wanted != FERRY_LINK_LOST)
		return ferry_error_set(err, ECONNABORTED, "the destination gave up: %s",
				       link->text);
	if (link->facts & FERRY_LINK_LOST)
		return ferry_error_set(err, ECONNRESET, "the link to the destination is lost: %s",
				       link->text);
	if (link->cancelled)
		return ferry_error_set(err, ECANCELED, "cancelled");
	return -EAGAIN;
}

int ferry_link_wait(struct ferry_link *link, unsigned int facts, uint64_t deadline_ns,
		    struct ferry_error *err)
{
	struct timespec ts = {
		.tv_sec = (time_t)(deadline_ns / FERRY_NS_PER_S),
		.tv_nsec = (long)(deadline_ns % FERRY_NS_PER_S),
	};
	int r;

	pthread_mutex_lock(&link->lock);
	while ((r = link_verdict(link, facts, err)) == -EAGAIN) {
		if (pthread_cond_timedwait(&link->changed, &link->lock, &ts) == ETIMEDOUT) {
			r = link_verdict(link, facts, err);
			if (r == -EAGAIN)
				r = ferry_error_set(err, ETIMEDOUT,
						    "the destination did not answer within %u s",
						    link_seconds(link->timeout_ms));
			break;
		}
	}
	pthread_mutex_unlock(&link->lock);
	return r;
}

int ferry_link_why(struct ferry_link *link, struct ferry_error *err)
{
	int r;

	pthread_mutex_lock(&link->lock);
	r = link_verdict(link, 0, err);
	pthread_mutex_unlock(&link->lock);
	return r == -EAGAIN || r == -ECANCELED ? 0 : r;
}

static void link_set_cancelled(struct ferry_link *link, bool cancelled)
{
	pthread_mutex_lock(&link->lock);
	link->cancelled = cancelled;
	pthread_cond_broadcast(&link->changed);
	pthread_mutex_unlock(&link->lock);
}

void ferry_link_cancel(struct ferry_link *link)
{
	link_set_cancelled(link, true);
}

void ferry_link_uncancel(struct ferry_link *link)
{
	link_set_cancelled(link, false);
}

unsigned int ferry_link_facts(struct ferry_link *link)
{
	unsigned int facts;

	pthread_mutex_lock(&link->lock);
	facts = link->facts | (link->broken ? (unsigned int)FERRY_LINK_LOST : 0);
	pthread_mutex_unlock(&link->lock);
	return facts;
}

uint64_t ferry_link_features(const struct ferry_link *link)
{
	return link->features;
}

bool ferry_link_cannot(struct ferry_link *link, char *why, size_t room)
{
	bool cannot;

	pthread_mutex_lock(&link->lock);
	cannot = link->cannot;
	snprintf(why, room, "%s", link->cannot_text);
	pthread_mutex_unlock(&link->lock);
	return cannot;
}

enum ferry_wire_answer ferry_link_answer(struct ferry_link *link)
{
	enum ferry_wire_answer answer;

	pthread_mutex_lock(&link->lock);
	answer = link->answer;
	pthread_mutex_unlock(&link->lock);
	return answer;
}

bool ferry_link_closed(struct ferry_link *link, uint64_t deadline_ns)
{
	bool closed;

	pthread_mutex_lock(&link->lock);
	closed = link->closed;
	pthread_mutex_unlock(&link->lock);
	return closed && ferry_sock_delivered(link->fd, deadline_ns);
}

uint64_t ferry_link_start_ns(struct ferry_link *link)
{
	uint64_t ns;

	pthread_mutex_lock(&link->lock);
	ns = link->start_ns;
	pthread_mutex_unlock(&link->lock);
	return ns;
}

uint64_t ferry_link_rtt_ns(struct ferry_link *link)
{
	uint64_t ns;

	pthread_mutex_lock(&link->lock);
	ns = link->rtt_ns;
	pthread_mutex_unlock(&link->lock);
	return ns;
}
