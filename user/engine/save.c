// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Saving a guest to a file.
 *
 * The same stages as a migration's source, and the same copier; the carrier is a snapshot
 * file instead of channels. The guest never leaves: when its last page is in the file (in the
 * page cache at least) it runs again, and what the file still needs - checksums, tables, the
 * syncs, its name - is done while it does. So it stands still for its device state and, without
 * --live, for one copy of its memory.
 *
 * There is no COMMIT: until the file has its name the phase is "open", and whoever finds that
 * after a crash puts the VMM back and resumes the guest.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "engine/copy.h"
#include "engine/fault_points.h"
#include "engine/file.h"
#include "engine/halt.h"
#include "engine/open.h"
#include "engine/rounds.h"
#include "engine/settle.h"
#include "store/format.h"
#include "store/writer.h"

/* Entries of the order of first touch: 16 GiB of pages, 32 MiB of memory. */
#define SAVE_MAX_ORDER (4u << 20)

struct save {
	struct ferry_job *job;
	struct ferry_settle settle; /* guest lives there */
	struct ferry_ram ram;
	struct ferry_copy copy;
	bool copying; /* copy is initialised */
	struct ferry_store_writer *writer; /* changed with job->lock held: a cancel breaks it */
	uint8_t *state;
	size_t state_bytes;
	bool resumed;

	struct ferry_bitmap touched; /* --record: pages in @order */
	bool recording;
	uint64_t *order;
	uint64_t order_count, order_room;
};

/* ---- the carrier ---- */

static int carry_queue(void *ctx, unsigned int block, uint64_t first_page, uint64_t pages,
		       bool zero, struct ferry_error *err)
{
	struct save *s = ctx;

	return ferry_store_writer_queue(s->writer, block, first_page, pages, zero, err);
}

static int carry_drain(void *ctx, uint64_t deadline_ns, struct ferry_error *err)
{
	struct save *s = ctx;

	return ferry_store_writer_drain(s->writer, deadline_ns, err);
}

static int carry_barrier(void *ctx, uint32_t round, struct ferry_error *err)
{
	struct save *s = ctx;

	(void)round;
	return ferry_store_writer_drain(s->writer, FERRY_CLOCK_NEVER, err);
}

static uint64_t carry_pending(void *ctx)
{
	struct save *s = ctx;

	return ferry_store_writer_pending(s->writer);
}

static void carry_stats(void *ctx, struct ferry_carrier_stats *stats)
{
	struct ferry_store_writer_stats now;
	struct save *s = ctx;

	ferry_store_writer_stats(s->writer, &now);
	stats->sent_bytes = now.written_bytes;
	stats->normal_pages = now.normal_pages;
	stats->zero_pages = now.zero_pages;
}

static void carry_watch(void *ctx, bool on)
{
	struct save *s = ctx;

	ferry_store_writer_watch(s->writer, on);
}

static uint64_t carry_rtt_ns(void *ctx)
{
	(void)ctx;
	return 0;
}

static const struct ferry_carrier_ops file_carrier = {
	.queue = carry_queue,
	.drain = carry_drain,
	.barrier = carry_barrier,
	.pending = carry_pending,
	.stats = carry_stats,
	.watch = carry_watch,
	.rtt_ns = carry_rtt_ns,
};

/* ---- what the writer asks ---- */

static uint64_t writer_pay(void *ctx, uint64_t bytes, uint64_t now_ns)
{
	struct save *s = ctx;

	return ferry_rate_take(&s->job->rate, bytes, now_ns);
}

static void writer_page(void *ctx, unsigned int block, uint64_t page, const void *bytes)
{
	struct save *s = ctx;

	ferry_copy_page_sent(&s->copy, block, page, bytes);
}

static int writer_step(void *ctx, const char *stage, struct ferry_error *err)
{
	struct save *s = ctx;
	int r = ferry_fault_point(stage, err);

	if (!r && strcmp(stage, "file-write") && strcmp(stage, "file-named") &&
	    strcmp(stage, "file-commit") && ferry_job_cancelled(s->job))
		r = ferry_error_set(err, ECANCELED, "cancelled");
	/* Its name comes next: too late for a cancel. */
	return r || strcmp(stage, "file-commit") ? r : ferry_job_commit(s->job, err);
}

static void set_writer(struct save *s, struct ferry_store_writer *writer)
{
	struct ferry_store_writer *old;

	pthread_mutex_lock(&s->job->lock);
	old = s->writer;
	s->writer = writer;
	pthread_mutex_unlock(&s->job->lock);
	ferry_store_writer_free(old);
}

/* job->lock is held. */
static void save_interrupt(void *ctx)
{
	struct save *s = ctx;

	if (s->writer)
		ferry_store_writer_abort(s->writer);
}

/* ---- stages ---- */

static int save_attach(struct save *s, struct ferry_error *err)
{
	struct ferry_job *job = s->job;
	int r = ferry_open_source(job, &s->settle.guest, &s->ram, err);

	if (r)
		return r;
	if (!job->options.live)
		snprintf(job->options.tracker, sizeof(job->options.tracker), "none");
	r = ferry_copy_init(&s->copy, job, s->settle.guest, &s->ram, err);
	s->copying = true;
	if (!r)
		r = ferry_copy_choose(&s->copy, err);
	if (!r && job->options.live && !s->copy.tracker)
		r = ferry_error_set(err, EINVAL, "--live needs a tracker of changed pages; without one "
				    "(--tracker none) leave --live out");
	return r;
}

static int save_file(struct save *s, struct ferry_error *err)
{
	const struct ferry_guest *guest = s->settle.guest;
	struct ferry_store_writer_params params = {
		.path = ferry_file_path(&s->job->record),
		.id = s->job->record.id,
		.ram = &s->ram,
		.channels = s->job->options.channels,
		.direct = s->job->options.direct,
		.still = !s->job->options.live,
		.kind = ferry_guest_kind(guest),
		.vmm = guest->version,
		.pay = writer_pay,
		.page_written = writer_page,
		.step = writer_step,
		.ctx = s,
	};
	struct ferry_store_writer *writer;
	int r;

	memcpy(params.uuid, s->job->record.uuid, sizeof(params.uuid));
	r = ferry_store_writer_create(&params, &writer, err);
	if (r)
		return r;
	set_writer(s, writer);
	s->copy.carrier = &file_carrier;
	s->copy.carrier_ctx = s;
	ferry_job_interrupt(s->job, save_interrupt, s);
	return 0;
}

static int save_prepare(struct save *s, struct ferry_error *err)
{
	int r = s->settle.guest->ops->prepare(s->settle.guest, err);

	return r ? r : ferry_job_move(s->job, FERRY_STATE_ACTIVE, err);
}

/* One more page that the guest has touched. Return: false when there is no more room. */
static bool remember(struct save *s, unsigned int block, uint64_t page)
{
	if (s->order_count == s->order_room) {
		uint64_t room = s->order_room ? 2 * s->order_room : 4096;
		uint64_t *order = room > SAVE_MAX_ORDER ? NULL :
							  realloc(s->order, room * sizeof(*order));

		if (!order)
			return false;
		s->order = order;
		s->order_room = room;
	}
	s->order[s->order_count++] = (uint64_t)block << 48 | page;
	ferry_bitmap_set(&s->touched, block, page, 1);
	return true;
}

/* What is pending and never was before: touched since the last look for the first time. */
static void record_touched(void *ctx)
{
	struct ferry_bitmap_run run = { 0 };
	struct save *s = ctx;
	uint64_t i;

	while (s->recording && ferry_bitmap_next_run(&s->copy.pending, &run, 0))
		for (i = run.first_page; s->recording && i < run.first_page + run.pages; i++)
			if (!ferry_bitmap_test(&s->touched, run.block, i))
				s->recording = remember(s, run.block, i);
}

static int save_track(struct save *s, struct ferry_error *err)
{
	if (s->job->options.record) {
		if (ferry_bitmap_init(&s->touched, &s->ram))
			return ferry_error_set(err, ENOMEM, "no memory for the order of first touch");
		s->recording = true;
		s->copy.collected = record_touched;
		s->copy.collected_ctx = s;
	}
	return ferry_copy_track(&s->copy, err);
}

static int save_bulk(struct save *s, struct ferry_error *err)
{
	return s->copy.tracker ? ferry_copy_bulk(&s->copy, err) : 0;
}

/*
 * What is left fits the downtime limit. With a guest that writes faster than the file can be
 * written it never does: a save ends all the same, and stops it for longer.
 */
static int save_enough(void *ctx, const struct ferry_converge_verdict *v, struct ferry_error *err)
{
	struct save *s = ctx;

	(void)err;
	if (v->stalled)
		ferry_log_warn("%s: the guest writes faster than its memory can be saved; it is "
			       "stopped for about %llu ms for the rest", s->job->record.id,
			       (unsigned long long)(v->expected_downtime_ns / FERRY_NS_PER_MS));
	return v->switch_over || v->stalled;
}

static int save_iterate(struct save *s, struct ferry_error *err)
{
	return ferry_rounds_run(&s->copy, save_enough, s, err);
}

static int save_stop(struct save *s, struct ferry_error *err)
{
	return ferry_halt_guest(s->job, s->settle.guest, &s->settle.stopped_ns, err);
}

static int save_device(struct save *s, struct ferry_error *err)
{
	int r = ferry_job_move(s->job, FERRY_STATE_DEVICE, err);

	return r ? r : ferry_halt_save(s->job, s->settle.guest, FERRY_STORE_MAX_DEVICE, &s->state,
				       &s->state_bytes, err);
}

static int save_final(struct save *s, struct ferry_error *err)
{
	struct ferry_carrier_stats stats;
	int r = ferry_copy_final(&s->copy, err);

	if (!r)
		r = ferry_copy_flush(&s->copy, err);
	carry_stats(s, &stats);
	pthread_mutex_lock(&s->job->lock);
	s->job->stats.rounds = s->copy.round - 1;
	s->job->stats.sent_bytes = stats.sent_bytes;
	s->job->stats.normal_pages = stats.normal_pages;
	s->job->stats.zero_pages = stats.zero_pages;
	pthread_mutex_unlock(&s->job->lock);
	return r;
}

/* All of it is in the file: the guest need not wait for what follows. */
static int save_resume(struct save *s, struct ferry_error *err)
{
	int r = s->settle.guest->ops->resume(s->settle.guest, err);

	if (r)
		return r;
	s->resumed = true;
	pthread_mutex_lock(&s->job->lock);
	s->job->stats.downtime_ns = ferry_clock_ns() - s->settle.stopped_ns;
	pthread_mutex_unlock(&s->job->lock);
	return 0;
}

static int save_finish(struct save *s, struct ferry_error *err)
{
	const struct ferry_store_tail tail = {
		.device = s->state,
		.device_bytes = (uint32_t)s->state_bytes,
		.flags = s->job->record.guest_paused ? FERRY_STORE_COMMIT_PAUSED : 0,
		.order = s->order,
		.order_count = s->order_count,
	};

	return ferry_store_writer_finish(s->writer, &tail, err);
}

struct save_stage {
	const char *name;
	int (*run)(struct save *s, struct ferry_error *err);
};

static const struct save_stage save_stages[] = {
	{ "attach", save_attach },   { "file", save_file },	{ "prepare", save_prepare },
	{ "track", save_track },     { "bulk", save_bulk },	{ "iterate", save_iterate },
	{ "stop", save_stop },	     { "save", save_device },	{ "final", save_final },
	{ "resumed", save_resume },  { "finish", save_finish },
};

static int save_run_stages(struct save *s, struct ferry_error *err)
{
	size_t i;
	int r = 0;

	for (i = 0; i < sizeof(save_stages) / sizeof(save_stages[0]) && !r; i++) {
		ferry_log_debug("save: %s", save_stages[i].name);
		r = save_stages[i].run(s, err);
		/* The file is there, whatever comes now. */
		if (!r && save_stages[i].run == save_finish)
			return 0;
		if (!r)
			r = ferry_fault_point(save_stages[i].name, err);
		if (!r && ferry_job_cancelled(s->job))
			r = ferry_error_set(err, ECANCELED, "cancelled");
	}
	return r;
}

/* No file: the guest goes on, or has done so for a while. */
static void save_roll_back(struct save *s, struct ferry_error *why, struct ferry_outcome *out)
{
	bool cancelled = ferry_job_cancelled(s->job) && !s->job->committed;

	if (cancelled) {
		ferry_job_move(s->job, FERRY_STATE_CANCELLING, NULL);
		ferry_error_set(why, ECANCELED, "cancelled");
	}
	ferry_settle_back(&s->settle, cancelled ? FERRY_STATE_CANCELLED : FERRY_STATE_FAILED, why,
			  out);
}

static void save_completed(struct save *s, struct ferry_outcome *out)
{
	struct ferry_error err = { 0 };

	out->state = FERRY_STATE_COMPLETED;
	out->where = FERRY_WHERE_SOURCE;
	ferry_job_move(s->job, FERRY_STATE_COMPLETED, NULL);
	if (s->settle.guest->ops->undo(s->settle.guest, true, &err)) {
		ferry_log_warn("the guest is saved, and its VMM is not as it was: %s", err.text);
		snprintf(out->advice, sizeof(out->advice), "ferry resume %s", s->job->record.id);
		return;
	}
	s->job->record.settled = true;
	ferry_job_save(s->job, NULL);
}

static void save_free(struct save *s)
{
	ferry_job_interrupt(s->job, NULL, NULL);
	if (s->copying)
		ferry_copy_close(&s->copy);
	set_writer(s, NULL);
	if (s->settle.guest)
		s->settle.guest->ops->close(s->settle.guest);
	if (s->touched.words)
		ferry_bitmap_free(&s->touched);
	ferry_ram_free(&s->ram);
	free(s->order);
	free(s->state);
}

void ferry_save_run(struct ferry_job *job, struct ferry_outcome *out)
{
	struct save s = { .job = job, .settle = { .job = job } };
	struct ferry_error err = { 0 };
	int r;

	memset(out, 0, sizeof(*out));
	ferry_ram_init(&s.ram);
	pthread_mutex_lock(&job->lock);
	job->stats.mode = job->options.live ? FERRY_MODE_SAVE_LIVE : FERRY_MODE_SAVE;
	pthread_mutex_unlock(&job->lock);
	r = ferry_job_move(job, FERRY_STATE_SETUP, &err);
	if (!r)
		r = save_run_stages(&s, &err);
	if (r)
		save_roll_back(&s, &err, out);
	else
		save_completed(&s, out);
	ferry_job_took(job);
	save_free(&s);
}

void ferry_save_recover(struct ferry_job *job, struct ferry_outcome *out)
{
	struct ferry_settle settle = { .job = job };
	struct ferry_error why = { .errnum = ECANCELED };

	/* The file that was not finished has gone with its writer. */
	memset(out, 0, sizeof(*out));
	snprintf(why.text, sizeof(why.text), "%s", job->record.error[0] ? job->record.error :
		 "its processes died before the guest was saved");
	if (!job->record.settled) {
		__atomic_store_n(&job->state, FERRY_STATE_DEVICE, __ATOMIC_RELEASE);
		ferry_settle_back(&settle, FERRY_STATE_FAILED, &why, out);
		return;
	}
	out->state = job->record.state;
	out->where = FERRY_WHERE_SOURCE;
	out->exit_code = 1;
	out->error = why;
}
