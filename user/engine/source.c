// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The source's side of a migration: a list of stages up to COMMIT, then
 * settle.c.
 *
 * Each stage either succeeds or fails with a text; the first failure (a cancel
 * is one) leads to source_roll_back(), the only place from which a guest is
 * resumed before COMMIT. After each stage a fault point of its name is passed.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "engine/copy.h"
#include "engine/fault_points.h"
#include "engine/halt.h"
#include "engine/job.h"
#include "engine/link.h"
#include "engine/open.h"
#include "engine/pager.h"
#include "engine/rounds.h"
#include "engine/settle.h"
#include "engine/stall.h"
#include "engine/switch.h"
#include "guest/guest.h"
#include "ram/hash.h"

/* Between the rounds while a person is waited for. */
#define SOURCE_LEISURE_NS (500 * FERRY_NS_PER_MS)

/* The destination says why before it closes: it is here already, or never comes. */
#define SOURCE_REASON_MS 500

struct source {
	struct ferry_job *job;
	struct ferry_settle settle; /* guest, link and uri live there */
	struct ferry_ram ram;
	struct ferry_copy copy;
	bool copying; /* copy is initialised */
	bool switching; /* to postcopy */
	struct ferry_pager pager;
	uint8_t *state;
	size_t state_bytes;

	/* What a cancel breaks; written with job->lock held. */
	int stop;
	struct ferry_link *cancel_link;
	struct ferry_multifd_send *cancel_pool;
};

struct source_stage {
	const char *name;
	int (*run)(struct source *s, struct ferry_error *err);
};

/* job->lock is held. */
static void source_interrupt(void *ctx)
{
	struct source *s = ctx;

	__atomic_store_n(&s->stop, 1, __ATOMIC_RELAXED);
	if (s->cancel_link)
		ferry_link_cancel(s->cancel_link);
	if (s->cancel_pool)
		ferry_multifd_send_abort(s->cancel_pool);
}

/* The return path: the destination is lost or has given up. */
static void source_link_ended(void *ctx)
{
	struct source *s = ctx;

	pthread_mutex_lock(&s->job->lock);
	if (s->cancel_pool)
		ferry_multifd_send_abort(s->cancel_pool);
	pthread_mutex_unlock(&s->job->lock);
	if (__atomic_load_n(&s->switching, __ATOMIC_ACQUIRE))
		ferry_pager_abort(&s->pager);
}

/* From now on a cancel breaks waits on what there is. */
static void source_arm(struct source *s)
{
	pthread_mutex_lock(&s->job->lock);
	s->cancel_link = s->settle.link;
	s->cancel_pool = s->copying ? s->copy.pool : NULL;
	pthread_mutex_unlock(&s->job->lock);
	ferry_job_interrupt(s->job, source_interrupt, s);
}

/* Before the link or the pool is freed. */
static void source_disarm(struct source *s)
{
	pthread_mutex_lock(&s->job->lock);
	s->cancel_link = NULL;
	s->cancel_pool = NULL;
	pthread_mutex_unlock(&s->job->lock);
}

static int source_attach(struct source *s, struct ferry_error *err)
{
	struct ferry_job *job = s->job;
	int r = ferry_open_source(job, &s->settle.guest, &s->ram, err);

	if (r)
		return r;
	/* What is not sent before the stop need not be tracked. */
	if (job->options.postcopy == FERRY_POSTCOPY_NOW && !strcmp(job->options.tracker, "auto"))
		snprintf(job->options.tracker, sizeof(job->options.tracker), "none");
	r = ferry_copy_init(&s->copy, job, s->settle.guest, &s->ram, err);
	s->copying = true;
	if (!r)
		r = ferry_copy_choose(&s->copy, err);
	return r ? r : ferry_stall_check(&s->copy, err);
}

static void source_link_params(struct source *s, struct ferry_link_params *p)
{
	*p = (struct ferry_link_params){
		.uri = &s->settle.uri,
		.uuid = s->job->record.uuid,
		.epoch = s->job->record.epoch,
		.kind = FERRY_WIRE_KIND_MAIN,
		.channels = (uint16_t)s->job->options.channels,
		.features = ferry_wire_codec_feature(s->job->options.codec) |
			    (s->job->options.checksum ? FERRY_WIRE_FEATURE_CHECKSUM : 0) |
			    (ferry_switch_needed(s->job) ? FERRY_WIRE_FEATURE_POSTCOPY : 0),
		.timeout_ms = s->job->options.timeout_ms,
		.deadline_ns = ferry_clock_in_ms(s->job->options.timeout_ms),
		.stop = &s->stop,
		.ended = source_link_ended,
		.ctx = s,
	};
}

static int source_send_blocks(struct source *s, struct ferry_error *err)
{
	struct ferry_wire_block *blocks;
	unsigned int i;
	uint8_t *body;
	size_t bytes;
	int r = -ENOMEM;

	blocks = calloc(s->ram.count, sizeof(*blocks));
	if (!blocks)
		return ferry_error_set(err, ENOMEM, "out of memory");
	for (i = 0; i < s->ram.count; i++) {
		blocks[i].size_bytes = s->ram.blocks[i].size_bytes;
		blocks[i].page_size = s->ram.blocks[i].page_size;
		snprintf(blocks[i].name, sizeof(blocks[i].name), "%s", s->ram.blocks[i].name);
	}
	bytes = ferry_wire_blocks_bytes(blocks, s->ram.count);
	body = malloc(bytes);
	if (body) {
		ferry_wire_blocks_encode(blocks, s->ram.count, body);
		r = ferry_link_send(s->settle.link, FERRY_WIRE_BLOCKS, body, (uint32_t)bytes, err);
	}
	free(body);
	free(blocks);
	return r;
}

static int source_connect(struct source *s, struct ferry_error *err)
{
	struct ferry_wire_config config = {
		.codec = s->job->options.codec,
		.ram_bytes = ferry_ram_bytes(&s->ram),
	};
	const char *kind = ferry_guest_kind(s->settle.guest);
	uint8_t body[FERRY_WIRE_CONFIG_BYTES];
	struct ferry_link_params params;
	int r;

	source_link_params(s, &params);
	r = ferry_link_open(&params, &s->settle.link, err);
	if (r)
		return r;
	source_arm(s);
	if (s->job->options.verify)
		config.flags |= FERRY_WIRE_CONFIG_VERIFY;
	if (s->job->options.checksum)
		config.flags |= FERRY_WIRE_CONFIG_CHECKSUM;
	config.flags |= ferry_switch_flags(s->job, s->settle.link);
	ferry_wire_config_encode(&config, body);
	r = ferry_link_send(s->settle.link, FERRY_WIRE_CONFIG, body, sizeof(body), err);
	/* Peers that only know QEMU do not know this frame, and need not. */
	if (!r && strcmp(kind, "qmp"))
		r = ferry_link_send(s->settle.link, FERRY_WIRE_GUEST, kind,
				    (uint32_t)strlen(kind), err);
	if (!r)
		r = source_send_blocks(s, err);
	if (!r)
		r = ferry_link_wait(s->settle.link, FERRY_LINK_READY,
				    ferry_clock_in_ms(s->job->options.timeout_ms), err);
	if (!r)
		ferry_switch_note(s->job, s->settle.link, config.flags);
	return r;
}

static int source_prepare(struct source *s, struct ferry_error *err)
{
	int fds[FERRY_WIRE_MAX_CHANNELS];
	struct ferry_link_params params;
	unsigned int n = 0;
	int r;

	r = s->settle.guest->ops->prepare(s->settle.guest, err);
	if (r)
		return r;
	source_link_params(s, &params);
	while (n < s->job->options.channels) {
		fds[n] = ferry_link_channel(&params, (uint16_t)n, err);
		if (fds[n] < 0) {
			r = fds[n];
			goto err_close;
		}
		n++;
	}
	r = ferry_copy_channels(&s->copy, s->settle.link, fds, n, err);
	if (r)
		goto err_close;
	source_arm(s);
	return ferry_job_move(s->job, FERRY_STATE_ACTIVE, err);

err_close:
	while (n--)
		close(fds[n]);
	return r;
}

static int source_track(struct source *s, struct ferry_error *err)
{
	return ferry_copy_track(&s->copy, err);
}

static int source_bulk(struct source *s, struct ferry_error *err)
{
	if (ferry_switch_due(s->job, &s->copy, false))
		return 0;
	/* Without a tracker all is copied while the guest is stopped. */
	return s->copy.tracker ? ferry_copy_bulk(&s->copy, err) : 0;
}

/* What is left fits the downtime, or goes after the guest. */
static int source_enough(void *ctx, const struct ferry_converge_verdict *v, struct ferry_error *err)
{
	struct source *s = ctx;

	if (v->switch_over || ferry_switch_due(s->job, &s->copy, v->stalled))
		return 1;
	return ferry_stall_act(&s->copy, v, err);
}

static int source_iterate(struct source *s, struct ferry_error *err)
{
	return ferry_rounds_run(&s->copy, source_enough, s, err);
}

static bool source_may_go_on(struct ferry_job *job)
{
	bool go_on;

	pthread_mutex_lock(&job->lock);
	go_on = job->go_on;
	pthread_mutex_unlock(&job->lock);
	return go_on;
}

/*
 * --pause-before-switchover: the migration waits for a person, the guest does not. Rounds go
 * on at leisure, so that the switchover is as short as it was when it was decided.
 */
static int source_pre_switchover(struct source *s, struct ferry_error *err)
{
	struct ferry_job *job = s->job;
	int r = 0;

	if (!job->options.pause_before_switchover)
		return 0;
	/* It may take hours. */
	ferry_stall_lift(&s->copy);
	r = ferry_job_move(job, FERRY_STATE_PRE_SWITCHOVER, err);
	ferry_job_note(job, "  waiting for 'ferry continue'");
	while (!r && !source_may_go_on(job)) {
		ferry_job_wait(job, ferry_clock_ns() + SOURCE_LEISURE_NS);
		if (ferry_job_cancelled(job))
			return ferry_error_set(err, ECANCELED, "cancelled");
		/* Also finds out that the destination has gone. */
		r = ferry_copy_round(&s->copy, err);
		if (!r)
			r = ferry_copy_collect(&s->copy, err);
	}
	ferry_job_note(job, "");
	return r ? r : source_iterate(s, err);
}

/* All that can be done for a switch to postcopy while the guest still runs. */
static int source_switch(struct source *s, struct ferry_error *err)
{
	struct ferry_link_params params;
	int r;

	if (!ferry_switch_due(s->job, &s->copy, s->job->progress.stalled))
		return 0;
	r = ferry_pager_init(&s->pager, s->job, &s->ram, err);
	if (r)
		return r;
	__atomic_store_n(&s->switching, true, __ATOMIC_RELEASE);
	source_link_params(s, &params);
	return ferry_pager_connect(&s->pager, &params, s->copy.round > 1 ? FERRY_MODE_HYBRID :
							FERRY_MODE_POSTCOPY, err);
}

static int source_stop(struct source *s, struct ferry_error *err)
{
	/* The VMM needs its time for what comes now; the guest has no use for it any more. */
	ferry_stall_lift(&s->copy);
	return ferry_halt_guest(s->job, s->settle.guest, &s->settle.stopped_ns, err);
}

static int source_save(struct source *s, struct ferry_error *err)
{
	int r = s->switching ? 0 : ferry_job_move(s->job, FERRY_STATE_DEVICE, err);

	return r ? r : ferry_halt_save(s->job, s->settle.guest, FERRY_WIRE_MAX_PACKAGE, &s->state,
				       &s->state_bytes, err);
}

static int source_final(struct source *s, struct ferry_error *err)
{
	if (s->switching)
		return ferry_pager_left(&s->pager, &s->copy, err);
	return ferry_copy_final(&s->copy, err);
}

static int source_flush(struct source *s, struct ferry_error *err)
{
	int r = ferry_copy_flush(&s->copy, err);

	pthread_mutex_lock(&s->job->lock);
	s->job->stats.rounds = s->copy.round - 1;
	pthread_mutex_unlock(&s->job->lock);
	return r;
}

static int source_verify(struct source *s, struct ferry_error *err)
{
	unsigned int i;
	uint8_t *body;
	int r = 0;

	if (!s->job->options.verify)
		return 0;
	body = malloc(s->ram.count * 16);
	if (!body)
		return ferry_error_set(err, ENOMEM, "out of memory");
	for (i = 0; i < s->ram.count && !r; i++) {
		uint64_t hash[2];

		r = ferry_hash_block(&s->ram.blocks[i], hash);
		if (r) {
			ferry_error_set(err, -r, "cannot hash block %s: %s",
					s->ram.blocks[i].name, strerror(-r));
		} else {
			ferry_wire_u64_encode(hash[0], body + i * 16);
			ferry_wire_u64_encode(hash[1], body + i * 16 + 8);
		}
	}
	if (!r)
		r = ferry_link_send(s->settle.link, FERRY_WIRE_HASHES, body, s->ram.count * 16,
				    err);
	free(body);
	if (!r)
		r = ferry_link_wait(s->settle.link, FERRY_LINK_VERIFIED,
				    ferry_clock_in_ms(s->job->options.timeout_ms), err);
	if (r)
		return r;
	pthread_mutex_lock(&s->job->lock);
	s->job->stats.verified = true;
	pthread_mutex_unlock(&s->job->lock);
	return 0;
}

/* All that was sent is loaded. What was not is told, and waited for from here on. */
static int source_discard(struct source *s, struct ferry_error *err)
{
	int r;

	if (!s->switching)
		return 0;
	r = ferry_pager_switch(&s->pager, &s->copy, s->settle.link, err);
	return r ? r : ferry_job_move(s->job, FERRY_STATE_POSTCOPY_DEVICE, err);
}

static int source_package(struct source *s, struct ferry_error *err)
{
	uint8_t ping[4];
	int r;

	/* From here on the destination may come to wait for RUN: remember to tell it. */
	s->job->record.disturbed_peer = true;
	r = ferry_job_save(s->job, err);
	if (!r)
		r = ferry_link_send(s->settle.link, FERRY_WIRE_PACKAGE, s->state,
				    (uint32_t)s->state_bytes, err);
	ferry_wire_u32_encode(FERRY_LINK_PING_LOADED, ping);
	if (!r)
		r = ferry_link_send(s->settle.link, FERRY_WIRE_PING, ping, sizeof(ping), err);
	return r;
}

static int source_loaded(struct source *s, struct ferry_error *err)
{
	return ferry_link_wait(s->settle.link, FERRY_LINK_LOADED,
			       ferry_clock_in_ms(s->job->options.timeout_ms), err);
}

/* Point of no return: durable before RUN is sent. */
static int source_commit(struct source *s, struct ferry_error *err)
{
	int r = ferry_job_commit(s->job, err);

	return r ? r : ferry_job_phase(s->job, FERRY_PHASE_COMMIT, err);
}

static const struct source_stage source_stages[] = {
	{ "attach", source_attach },
	{ "connect", source_connect },
	{ "prepare", source_prepare },
	{ "track", source_track },
	{ "bulk", source_bulk },
	{ "iterate", source_iterate },
	{ "pre-switchover", source_pre_switchover },
	{ "switch", source_switch },
	{ "stop", source_stop },
	{ "save", source_save },
	{ "final", source_final },
	{ "flush", source_flush },
	{ "verify", source_verify },
	{ "discard", source_discard },
	{ "package", source_package },
	{ "loaded", source_loaded },
	{ "commit", source_commit },
};

/* What broke here may only be the echo of what the destination has to say. */
static int source_reason(struct source *s, int r, struct ferry_error *err)
{
	struct ferry_error why = { 0 };
	int said;

	if (!s->settle.link || (r != -EPIPE && r != -ECONNRESET))
		return r;
	said = ferry_link_wait(s->settle.link, 0, ferry_clock_in_ms(SOURCE_REASON_MS), &why);
	if (said != -ECONNABORTED && said != -ECONNREFUSED)
		return r;
	*err = why;
	return said;
}

static int source_run_stages(struct source *s, struct ferry_error *err)
{
	size_t i;
	int r = 0;

	for (i = 0; i < sizeof(source_stages) / sizeof(source_stages[0]) && !r; i++) {
		ferry_log_debug("source: %s", source_stages[i].name);
		r = source_stages[i].run(s, err);
		if (!r)
			r = ferry_fault_point(source_stages[i].name, err);
		/* COMMIT stands, whatever a test asks for. */
		if (s->job->record.phase == FERRY_PHASE_COMMIT)
			return 0;
		if (!r && ferry_job_cancelled(s->job))
			r = ferry_error_set(err, ECANCELED, "cancelled");
	}
	return r ? source_reason(s, r, err) : 0;
}

/* Before COMMIT: the guest goes on here, and the destination is told. */
static void source_roll_back(struct source *s, struct ferry_error *why, struct ferry_outcome *out)
{
	struct ferry_job *job = s->job;
	struct ferry_error err = { 0 };
	bool cancelled = ferry_job_cancelled(job);

	if (cancelled) {
		ferry_job_move(job, FERRY_STATE_CANCELLING, NULL);
		ferry_error_set(why, ECANCELED, "cancelled");
	}
	if (s->copying)
		ferry_stall_lift(&s->copy);
	ferry_settle_abort(&s->settle, why->text);
	if (s->switching)
		ferry_pager_hang_up(&s->pager);
	if (s->copying)
		ferry_copy_hang_up(&s->copy);
	ferry_settle_back(&s->settle, cancelled ? FERRY_STATE_CANCELLED : FERRY_STATE_FAILED, why,
			  out);
	/* Taking the protection off all of RAM takes a while: not while the guest stands still. */
	if (s->copying)
		ferry_copy_close(&s->copy);
	s->copying = false;
	if (ferry_settle_abort_confirm(&s->settle, why->text, &err))
		snprintf(out->advice + strlen(out->advice),
			 sizeof(out->advice) - strlen(out->advice),
			 "%sthe destination could not be told (%s); if its ferry still waits there: "
			 "ferry cancel ITS-ID", out->advice[0] ? "\n" : "", err.text);
}

static void source_free(struct source *s)
{
	ferry_job_interrupt(s->job, NULL, NULL);
	ferry_pager_free(&s->pager);
	if (s->copying)
		ferry_copy_close(&s->copy);
	ferry_link_close(s->settle.link);
	if (s->settle.guest)
		s->settle.guest->ops->close(s->settle.guest);
	ferry_ram_free(&s->ram);
	free(s->state);
}

void ferry_source_run(struct ferry_job *job, struct ferry_outcome *out)
{
	struct source s = { .job = job, .settle = { .job = job } };
	struct ferry_error err = { 0 };
	int r;

	memset(out, 0, sizeof(*out));
	ferry_ram_init(&s.ram);
	source_arm(&s);
	r = ferry_job_move(job, FERRY_STATE_SETUP, &err);
	if (!r)
		r = ferry_uri_parse(job->record.uri, &s.settle.uri, &err);
	if (!r)
		r = source_run_stages(&s, &err);
	ferry_job_interrupt(job, NULL, NULL);
	source_disarm(&s);
	/* The main channel knows better than a data channel why it ended. */
	if (r && s.settle.link && !ferry_job_cancelled(job))
		ferry_link_why(s.settle.link, &err);
	if (r) {
		source_roll_back(&s, &err, out);
	} else {
		/* Tracking and the channels end when the guest runs again, in source_free(). */
		ferry_copy_cut(&s.copy);
		if (s.switching)
			s.settle.pager = &s.pager;
		ferry_settle_commit(&s.settle, out);
	}
	ferry_job_took(job);
	source_free(&s);
}
