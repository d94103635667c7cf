// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What the destination does on each frame of the main channel. A table says in
 * which phases of the record a frame is allowed; anything else is a protocol
 * error. Phases that decide who owns the guest are durable before the frame
 * that tells of them is sent.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/io.h"
#include "base/log.h"
#include "engine/destination.h"
#include "engine/fault_points.h"
#include "engine/link.h"
#include "engine/open.h"
#include "ram/hash.h"
#include "xport/frame.h"

#define IN(p) (1u << FERRY_PHASE_##p)

struct frame_handler {
	unsigned int phases; /* in which it is allowed */
	int (*handle)(struct ferry_destination *d, const uint8_t *body, uint32_t length,
		      struct ferry_error *err);
};

int ferry_destination_send(struct ferry_destination *d, enum ferry_wire_type type,
			   const void *body, uint32_t length)
{
	int r;

	if (d->main_fd < 0)
		return -ECONNRESET;
	r = ferry_frame_send(d->main_fd, type, body, length,
			     ferry_clock_in_ms(d->job->record.timeout_ms));
	if (r)
		ferry_log_debug("cannot send %s: %s", ferry_wire_type_name(type), strerror(-r));
	return r ? -ECONNRESET : 0;
}

static int send_u32(struct ferry_destination *d, enum ferry_wire_type type, uint32_t v)
{
	uint8_t body[4];

	ferry_wire_u32_encode(v, body);
	return ferry_destination_send(d, type, body, sizeof(body));
}

static int on_config(struct ferry_destination *d, const uint8_t *body, uint32_t length,
		     struct ferry_error *err)
{
	if (d->configured || ferry_wire_config_decode(&d->config, body, length))
		return ferry_error_set(err, EPROTO, "the source sent a bad or second CONFIG");
	d->configured = true;
	return 0;
}

static int on_guest(struct ferry_destination *d, const uint8_t *body, uint32_t length,
		    struct ferry_error *err)
{
	uint32_t i;

	for (i = 0; i < length; i++)
		if (body[i] < 0x20 || body[i] > 0x7e)
			break;
	if (!d->configured || d->bitmap_ready || d->kind[0] || i < length)
		return ferry_error_set(err, EPROTO, "the source sent a bad GUEST, or out of order");
	memcpy(d->kind, body, length); /* at most what fits, by its type */
	return 0;
}

/* Device state is only understood by a VMM of the same kind. */
static int match_kind(struct ferry_destination *d, struct ferry_error *err)
{
	const char *theirs = d->kind[0] ? d->kind : "qmp", *mine = ferry_guest_kind(d->guest);
	char there[128], here[128];

	if (!strcmp(theirs, mine))
		return 0;
	ferry_guest_kind_text(theirs, there, sizeof(there));
	ferry_guest_kind_text(mine, here, sizeof(here));
	return ferry_error_set(err, EINVAL, "the guest is in %s at the source, and waited for by %s "
			       "here: a guest moves only between VMMs of the same kind", there, here);
}

/* Both sides must have the same blocks, whatever their order. */
static int match_blocks(struct ferry_destination *d, const struct ferry_wire_block *blocks,
			unsigned int count, struct ferry_error *err)
{
	unsigned int i;

	for (i = 0; i < count; i++) {
		const struct ferry_wire_block *b = &blocks[i];
		int at = ferry_ram_find(&d->ram, b->name);
		struct ferry_ram_block swap;

		if (at < 0)
			return ferry_error_set(err, EINVAL,
					       "the source has a memory block '%s' (%llu bytes) that "
					       "this guest has not: start both VMMs with the same "
					       "memory objects and ids", b->name,
					       (unsigned long long)b->size_bytes);
		if (d->ram.blocks[at].size_bytes != b->size_bytes ||
		    d->ram.blocks[at].page_size != b->page_size)
			return ferry_error_set(err, EINVAL,
					       "memory block '%s' has %llu bytes of %u-byte pages at "
					       "the source, %llu bytes of %u-byte pages here: start "
					       "both VMMs with the same memory", b->name,
					       (unsigned long long)b->size_bytes, b->page_size,
					       (unsigned long long)d->ram.blocks[at].size_bytes,
					       d->ram.blocks[at].page_size);
		/* The source's order counts: its block numbers are on the wire. */
		swap = d->ram.blocks[i];
		d->ram.blocks[i] = d->ram.blocks[at];
		d->ram.blocks[at] = swap;
	}
	if (count != d->ram.count)
		return ferry_error_set(err, EINVAL,
				       "this guest has a memory block '%s' that the source has not: "
				       "start both VMMs with the same memory objects and ids",
				       d->ram.blocks[count].name);
	return 0;
}

/* The source may switch to postcopy: now is the time to say that it cannot be. */
static int advise(struct ferry_destination *d, struct ferry_error *err)
{
	struct ferry_error why = { 0 };
	int r;

	if (!(d->config.flags & FERRY_WIRE_CONFIG_POSTCOPY))
		return 0;
	r = ferry_incoming_advise(&d->incoming, d->guest, &d->ram, &d->config, &why);
	if (!r)
		return 0;
	ferry_error_prefix(&why, "the destination cannot do postcopy");
	if (d->config.flags & FERRY_WIRE_CONFIG_POSTCOPY_NEEDED) {
		*err = why;
		return r;
	}
	return ferry_destination_send(d, FERRY_WIRE_CANNOT, why.text, (uint32_t)strlen(why.text));
}

static int on_blocks(struct ferry_destination *d, const uint8_t *body, uint32_t length,
		     struct ferry_error *err)
{
	struct ferry_wire_block *blocks;
	unsigned int count = FERRY_WIRE_MAX_BLOCKS;
	int r;

	if (!d->configured || d->bitmap_ready)
		return ferry_error_set(err, EPROTO, "the source sent BLOCKS out of order");
	r = match_kind(d, err);
	if (r)
		return r;
	blocks = calloc(count, sizeof(*blocks));
	if (!blocks)
		return ferry_error_set(err, ENOMEM, "out of memory");
	r = ferry_wire_blocks_decode(blocks, &count, body, length);
	if (r)
		ferry_error_set(err, -r, "the source sent a bad block table");
	else
		r = match_blocks(d, blocks, count, err);
	free(blocks);
	if (r)
		return r;
	r = advise(d, err);
	if (!r)
		r = d->guest->ops->prepare(d->guest, err);
	if (!r)
		r = ferry_ram_punch(&d->ram, err);
	if (r)
		return r;
	r = ferry_bitmap_init(&d->received, &d->ram);
	d->bitmap_ready = true;
	if (r)
		return ferry_error_set(err, -r, "no memory for the bitmap of received pages");
	/* If it is sure to come, find out now what else there may be against it. */
	if (d->config.flags & FERRY_WIRE_CONFIG_POSTCOPY_NEEDED)
		r = ferry_incoming_ready(&d->incoming, err);
	if (r)
		return r;
	r = ferry_fault_point("blocks", err);
	return r ? r : ferry_destination_send(d, FERRY_WIRE_READY, NULL, 0);
}

static int on_flush(struct ferry_destination *d, const uint8_t *body, uint32_t length,
		    struct ferry_error *err)
{
	struct ferry_multifd_recv_stats stats;
	uint32_t round;
	int r = ferry_wire_u32_decode(&round, body, length);

	/* One FLUSH a round: no other one can come true. */
	if (r || !d->pool || round != d->job->stats.rounds + 1)
		return ferry_error_set(err, EPROTO, "the source sent FLUSH out of order");
	r = ferry_multifd_recv_wait(d->pool, round, ferry_clock_in_ms(d->job->record.timeout_ms),
				    err);
	if (r)
		return r;
	ferry_multifd_recv_stats(d->pool, &stats);
	pthread_mutex_lock(&d->job->lock);
	d->job->stats.rounds = round;
	d->job->stats.sent_bytes = stats.received_bytes;
	d->job->stats.normal_pages = stats.normal_pages;
	d->job->stats.zero_pages = stats.zero_pages;
	d->job->progress.round = round;
	d->job->progress.sent_bytes = stats.received_bytes;
	pthread_mutex_unlock(&d->job->lock);
	r = ferry_fault_point("receive", err);
	return r ? r : send_u32(d, FERRY_WIRE_FLUSHED, round);
}

static int on_discard(struct ferry_destination *d, const uint8_t *body, uint32_t length,
		      struct ferry_error *err)
{
	if (!d->pool || !d->job->stats.rounds || d->state)
		return ferry_error_set(err, EPROTO, "the source sent DISCARD out of order");
	return ferry_incoming_discard(&d->incoming, body, length, err);
}

static int on_postcopy(struct ferry_destination *d, const uint8_t *body, uint32_t length,
		       struct ferry_error *err)
{
	int r;

	(void)body;
	(void)length;
	if (!d->pool || !d->job->stats.rounds || d->state)
		return ferry_error_set(err, EPROTO, "the source sent POSTCOPY out of order");
	r = ferry_ram_map(&d->ram, true, err); /* for pages that are waited for */
	if (!r)
		r = ferry_incoming_listen(&d->incoming, d->pool, d->fault_fd, err);
	if (r)
		return r;
	d->fault_fd = -1;
	pthread_mutex_lock(&d->job->lock);
	d->job->stats.mode = d->job->stats.rounds > 1 ? FERRY_MODE_HYBRID : FERRY_MODE_POSTCOPY;
	pthread_mutex_unlock(&d->job->lock);
	return ferry_fault_point("listening", err);
}

static int on_hashes(struct ferry_destination *d, const uint8_t *body, uint32_t length,
		     struct ferry_error *err)
{
	unsigned int i;

	if (!d->pool || !(d->config.flags & FERRY_WIRE_CONFIG_VERIFY) ||
	    length != d->ram.count * 16)
		return ferry_error_set(err, EPROTO, "the source sent HASHES out of order");
	for (i = 0; i < d->ram.count; i++) {
		uint64_t mine[2], theirs[2];
		int r = ferry_hash_block(&d->ram.blocks[i], mine);

		if (r)
			return ferry_error_set(err, -r, "cannot hash memory block %s: %s",
					       d->ram.blocks[i].name, strerror(-r));
		ferry_wire_u64_decode(&theirs[0], body + i * 16, 8);
		ferry_wire_u64_decode(&theirs[1], body + i * 16 + 8, 8);
		if (mine[0] != theirs[0] || mine[1] != theirs[1])
			return ferry_error_set(err, EILSEQ,
					       "--verify: memory block %s differs from the source's "
					       "after the last copy; the guest stays there",
					       d->ram.blocks[i].name);
	}
	pthread_mutex_lock(&d->job->lock);
	d->job->stats.verified = true;
	pthread_mutex_unlock(&d->job->lock);
	return ferry_destination_send(d, FERRY_WIRE_VERIFIED, NULL, 0);
}

static int on_package(struct ferry_destination *d, const uint8_t *body, uint32_t length,
		      struct ferry_error *err)
{
	int r;

	if (!d->pool || d->state || !d->job->stats.rounds ||
	    d->incoming.step == FERRY_INCOMING_DISCARD)
		return ferry_error_set(err, EPROTO, "the source sent PACKAGE out of order");
	d->state = malloc(length ? length : 1);
	if (!d->state)
		return ferry_error_set(err, ENOMEM, "no memory for %u bytes of device state",
				       length);
	if (length)
		memcpy(d->state, body, length);
	d->state_bytes = length;
	pthread_mutex_lock(&d->job->lock);
	d->job->stats.device_bytes = length;
	pthread_mutex_unlock(&d->job->lock);
	r = ferry_job_move(d->job, ferry_incoming_armed(&d->incoming) ? FERRY_STATE_POSTCOPY_DEVICE :
								       FERRY_STATE_DEVICE, err);
	return r ? r : ferry_fault_point("package-received", err);
}

/* Loading touches guest memory: pages that are missing come meanwhile. */
static int load_state(struct ferry_destination *d, struct ferry_error *err)
{
	bool armed = ferry_incoming_armed(&d->incoming);
	struct ferry_error lost = { 0 };
	int r, ended = 0;

	if (armed)
		ferry_incoming_load_begins(&d->incoming);
	r = d->guest->ops->load(d->guest, d->state, d->state_bytes, err);
	free(d->state);
	d->state = NULL;
	if (armed)
		ended = ferry_incoming_load_ends(&d->incoming, &lost);
	if (!ended)
		return r;
	*err = lost;
	return ended;
}

/* All is here: load, and record that we wait for RUN before anybody is told so. */
static int load_and_wait(struct ferry_destination *d, struct ferry_error *err)
{
	int r;

	if (!d->state || d->job->record.phase != FERRY_PHASE_OPEN)
		return ferry_error_set(err, EPROTO, "the source sent PING out of order");
	/* Nothing but the main channel is needed from here on, if all pages are here. */
	if (!ferry_incoming_armed(&d->incoming))
		ferry_destination_set_pool(d, NULL);
	r = load_state(d, err);
	if (!r)
		r = ferry_fault_point("load", err);
	/* From commit-wait on the source has to be asked; until then it is only told. */
	if (!r && ferry_job_cancelled(d->job))
		r = ferry_error_set(err, ECANCELED, "cancelled");
	if (!r)
		r = ferry_job_move(d->job, FERRY_STATE_COMMIT_WAIT, err);
	if (!r)
		r = ferry_job_phase(d->job, FERRY_PHASE_COMMIT_WAIT, err);
	if (!r)
		r = ferry_fault_point("commit-wait", err);
	if (r)
		return r;
	r = send_u32(d, FERRY_WIRE_PONG, FERRY_LINK_PING_LOADED);
	ferry_fault_point("pong", NULL);
	return r;
}

static int on_ping(struct ferry_destination *d, const uint8_t *body, uint32_t length,
		   struct ferry_error *err)
{
	uint32_t number;
	int r = ferry_wire_u32_decode(&number, body, length);

	if (!r && number == FERRY_LINK_PING_LOADED)
		return load_and_wait(d, err);
	if (r || number != FERRY_LINK_PING_ALIVE)
		return ferry_error_set(err, EPROTO, "the source sent an unknown PING");
	return send_u32(d, FERRY_WIRE_PONG, number);
}

static int on_run(struct ferry_destination *d, const uint8_t *body, uint32_t length,
		  struct ferry_error *err)
{
	struct ferry_job *job = d->job;
	uint32_t flags;
	int r = ferry_wire_u32_decode(&flags, body, length);

	if (r || (flags & ~FERRY_WIRE_RUN_PAUSED))
		return ferry_error_set(err, EPROTO, "the source sent RUN with unknown flags");
	if (job->record.phase == FERRY_PHASE_REFUSED || job->record.phase == FERRY_PHASE_ABORTED)
		return ferry_destination_refuse(d);
	job->record.guest_paused = flags & FERRY_WIRE_RUN_PAUSED;
	if (job->record.phase != FERRY_PHASE_COMMIT_WAIT)
		return ferry_destination_run_again(d, err);
	r = ferry_destination_accept_run(d, err);
	if (r == -ECONNREFUSED)
		ferry_destination_refuse(d);
	return r;
}

static int tell_frame(void *ctx, enum ferry_wire_type type, const void *body, uint32_t length)
{
	return ferry_destination_send(ctx, type, body, length);
}

static int on_ask(struct ferry_destination *d, const uint8_t *body, uint32_t length,
		  struct ferry_error *err)
{
	enum ferry_wire_answer answer = FERRY_WIRE_ANSWER_RAN;
	int r;

	(void)body;
	(void)length;
	(void)err;
	if (ferry_incoming_armed(&d->incoming)) {
		r = ferry_incoming_tell(&d->incoming, tell_frame, d);
		if (r)
			return r;
		d->asked = true;
		ferry_fault_point("told", NULL);
	}
	if (d->job->record.phase == FERRY_PHASE_RAN_LACKS)
		answer = FERRY_WIRE_ANSWER_LACKS;
	/* Accepted and not known to run: the source may say RUN again, nothing else. */
	if (d->job->record.phase == FERRY_PHASE_COMMIT_WAIT ||
	    d->job->record.phase == FERRY_PHASE_RUN_ACCEPTED)
		answer = FERRY_WIRE_ANSWER_WAITING;
	if (d->job->record.phase == FERRY_PHASE_REFUSED ||
	    d->job->record.phase == FERRY_PHASE_ABORTED)
		answer = FERRY_WIRE_ANSWER_REFUSED;
	return send_u32(d, FERRY_WIRE_ANSWER, answer);
}

static int on_abort(struct ferry_destination *d, const uint8_t *body, uint32_t length,
		    struct ferry_error *err)
{
	/* It has not committed and knows that we do not own the guest: all is said. */
	if (d->job->record.phase == FERRY_PHASE_REFUSED ||
	    d->job->record.phase == FERRY_PHASE_ABORTED) {
		d->done = true;
		return 0;
	}
	/* It may only have seen that we closed a channel; why we did is what a person needs. */
	if (ferry_destination_complains(d, err))
		return -err->errnum;
	return ferry_error_set(err, ECONNABORTED, "the source gave up: %.*s", (int)length,
			       body ? (const char *)body : "");
}

static int on_ack(struct ferry_destination *d, const uint8_t *body, uint32_t length,
		  struct ferry_error *err)
{
	struct ferry_wire_summary w;
	struct ferry_stats *st = &d->job->stats;

	if (ferry_wire_summary_decode(&w, body, length))
		return ferry_error_set(err, EPROTO, "the source sent a bad ACK");
	d->done = true;
	if (d->job->record.phase != FERRY_PHASE_RAN)
		return 0;
	pthread_mutex_lock(&d->job->lock);
	st->total_ns = w.total_ns;
	st->downtime_ns = w.downtime_ns;
	st->rounds = w.rounds;
	st->sent_bytes = w.sent_bytes;
	st->normal_pages = w.normal_pages;
	st->zero_pages = w.zero_pages;
	st->device_bytes = w.device_bytes;
	memcpy(st->tracker, w.tracker, sizeof(st->tracker));
	st->tracker[sizeof(st->tracker) - 1] = 0;
	pthread_mutex_unlock(&d->job->lock);
	return 0;
}

#define SETTLED (IN(RAN) | IN(RUN_ACCEPTED) | IN(REFUSED) | IN(ABORTED))
#define DECIDED (SETTLED | IN(RAN_LACKS))

static const struct frame_handler frame_handlers[FERRY_WIRE_TYPE_COUNT] = {
	[FERRY_WIRE_CONFIG] = { IN(OPEN), on_config },
	[FERRY_WIRE_GUEST] = { IN(OPEN), on_guest },
	[FERRY_WIRE_BLOCKS] = { IN(OPEN), on_blocks },
	[FERRY_WIRE_FLUSH] = { IN(OPEN), on_flush },
	[FERRY_WIRE_HASHES] = { IN(OPEN), on_hashes },
	[FERRY_WIRE_PACKAGE] = { IN(OPEN), on_package },
	[FERRY_WIRE_DISCARD] = { IN(OPEN), on_discard },
	[FERRY_WIRE_POSTCOPY] = { IN(OPEN), on_postcopy },
	[FERRY_WIRE_PING] = { IN(OPEN) | IN(COMMIT_WAIT) | DECIDED, on_ping },
	[FERRY_WIRE_RUN] = { IN(COMMIT_WAIT) | DECIDED, on_run },
	[FERRY_WIRE_ASK] = { IN(COMMIT_WAIT) | DECIDED, on_ask },
	[FERRY_WIRE_ABORT] = { IN(OPEN) | IN(COMMIT_WAIT) | IN(REFUSED) | IN(ABORTED), on_abort },
	[FERRY_WIRE_ACK] = { SETTLED, on_ack },
};

int ferry_destination_frame(struct ferry_destination *d, struct ferry_error *err)
{
	const struct frame_handler *h = NULL;
	struct ferry_wire_frame frame;
	struct ferry_error why = { 0 };
	uint8_t *body = NULL;
	int r;

	r = ferry_frame_recv(d->main_fd, &frame, &body,
			     ferry_clock_in_ms(d->job->record.timeout_ms), &why);
	if (r == -EPROTO || r == -EPROTONOSUPPORT || r == -EMSGSIZE) {
		*err = why;
		return r;
	}
	if (r)
		return -ECONNRESET;
	d->heard_ns = ferry_clock_ns();
	if (frame.type < FERRY_WIRE_TYPE_COUNT)
		h = &frame_handlers[frame.type];
	if (!h || !h->handle || !(h->phases & (1u << d->job->record.phase)))
		r = ferry_error_set(err, EPROTO, "the source sent %s in phase %s",
				    ferry_wire_type_name(frame.type),
				    ferry_phase_name(d->job->record.phase));
	else
		r = h->handle(d, body, frame.length, err);
	free(body);
	return r;
}
