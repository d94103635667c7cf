// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The destination's side of a migration.
 *
 * One loop takes whatever comes: new connections (the main channel, multifd
 * channels, a main channel again after a lost link) and frames of the main
 * channel (destination_frames.c). How a lost or silent main channel is taken
 * depends on the phase of the record:
 *
 *   open          the source owns the guest: we end
 *   commit-wait   nobody may move: wait for the source to come back, then for a person
 *   ran-lacks     the guest is ours and pages are missing: wait for the source, for ever if
 *                 need be (postcopy-paused); when all are here it is "ran"
 *   ran           the guest is ours: answer the source's question until it says ACK
 *   refused,
 *   aborted       the guest is never ours: answer for a while, then end
 *
 * A HELLO with a higher epoch replaces the main channel; what lies unread in the
 * older one is never read.
 */
#include "engine/destination.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/io.h"
#include "base/log.h"
#include "engine/fault_points.h"
#include "engine/open.h"
#include "engine/spill.h"
#include "xport/sock.h"

/*
 * How long a destination that runs the guest listens for a source that has not said ACK: well
 * beyond what the source tries by itself. Later, 'ferry recover' on both sides still works.
 */
#define DESTINATION_LINGER_TIMES 10
#define DESTINATION_LINGER_NS (300 * FERRY_NS_PER_S)

/* job->lock is held. */
static void destination_interrupt(void *ctx)
{
	struct ferry_destination *d = ctx;
	uint64_t one = 1;

	/* Before the switchover nothing more is read; after it the source still answers there. */
	if (d->main_fd >= 0 && d->job->shown.phase == FERRY_PHASE_OPEN)
		shutdown(d->main_fd, SHUT_RD);
	if (d->pool)
		ferry_multifd_recv_abort(d->pool);
	if (write(d->wake_fd, &one, sizeof(one)) < 0)
		return;
}

void ferry_destination_set_main(struct ferry_destination *d, int fd)
{
	int old;

	pthread_mutex_lock(&d->job->lock);
	old = d->main_fd;
	d->main_fd = fd;
	pthread_mutex_unlock(&d->job->lock);
	ferry_io_close(&old);
	d->heard_ns = ferry_clock_ns();
}

void ferry_destination_set_pool(struct ferry_destination *d, struct ferry_multifd_recv *pool)
{
	struct ferry_multifd_recv *old;

	pthread_mutex_lock(&d->job->lock);
	old = d->pool;
	d->pool = pool;
	pthread_mutex_unlock(&d->job->lock);
	ferry_multifd_recv_free(old);
}

static void destination_init(struct ferry_destination *d, struct ferry_job *job)
{
	unsigned int i;

	memset(d, 0, sizeof(*d));
	d->job = job;
	d->listen_fd = -1;
	d->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	d->main_fd = -1;
	d->fault_fd = -1;
	ferry_incoming_init(&d->incoming, job, d->wake_fd);
	for (i = 0; i < FERRY_WIRE_MAX_CHANNELS; i++)
		d->channel_fds[i] = -1;
	ferry_ram_init(&d->ram);
	ferry_lobby_init(&d->lobby, -1, d->wake_fd);
	ferry_job_interrupt(job, destination_interrupt, d);
}

static void destination_free(struct ferry_destination *d)
{
	ferry_job_interrupt(d->job, NULL, NULL);
	ferry_destination_start_join(d);
	ferry_destination_set_pool(d, NULL);
	ferry_incoming_free(&d->incoming);
	ferry_destination_drop_channels(d);
	ferry_destination_set_main(d, -1);
	ferry_lobby_clear(&d->lobby);
	ferry_io_close(&d->listen_fd);
	ferry_io_close(&d->wake_fd);
	if (d->uri.kind == FERRY_URI_UNIX && d->lobby.listen_fd >= 0)
		unlink(d->uri.path);
	if (d->bitmap_ready)
		ferry_bitmap_free(&d->received);
	if (d->guest)
		d->guest->ops->close(d->guest);
	ferry_ram_free(&d->ram);
	free(d->state);
}

static int destination_attach(struct ferry_destination *d, struct ferry_error *err)
{
	struct ferry_job *job = d->job;
	int r;

	r = ferry_open_guest(job, FERRY_GUEST_DESTINATION, &d->guest, err);
	if (!r)
		r = d->guest->ops->check(d->guest, err);
	if (!r)
		r = d->guest->ops->describe(d->guest, &d->ram, err);
	if (r)
		return r;
	pthread_mutex_lock(&job->lock);
	job->stats.ram_bytes = ferry_ram_bytes(&d->ram);
	pthread_mutex_unlock(&job->lock);
	return 0;
}

/* When the loop should stop waiting for the source in this phase. */
static uint64_t destination_deadline_ns(const struct ferry_destination *d)
{
	uint64_t limit_ns = d->job->record.timeout_ms * FERRY_NS_PER_MS;

	/* No source has come yet; or the VMM is asked something, and has a deadline of its own. */
	if (!d->job->record.epoch || d->start.busy)
		return FERRY_CLOCK_NEVER;
	/* The guest runs and lacks pages: whoever brings them is welcome at any time. */
	if (d->main_fd < 0 && d->job->record.phase == FERRY_PHASE_RAN_LACKS)
		return FERRY_CLOCK_NEVER;
	/* The guest runs; only the source's question is still to be answered. */
	if (d->main_fd < 0 && d->job->record.phase == FERRY_PHASE_RAN) {
		limit_ns *= DESTINATION_LINGER_TIMES;
		if (limit_ns < DESTINATION_LINGER_NS)
			limit_ns = DESTINATION_LINGER_NS;
	}
	return d->heard_ns + limit_ns;
}

/* The guest runs here and lacks nothing any more. */
static bool destination_is_whole(const struct ferry_destination *d)
{
	return d->job->record.phase == FERRY_PHASE_RAN_LACKS &&
	       ferry_incoming_armed(&d->incoming) && !ferry_incoming_missing(&d->incoming);
}

/* All is here: nobody needs to wait for anything. */
static void destination_end_armed(struct ferry_destination *d)
{
	if (!ferry_incoming_armed(&d->incoming))
		return;
	ferry_destination_set_pool(d, NULL);
	ferry_incoming_end(&d->incoming);
}

/* It is like any other guest from here on; that is recorded before the source is told. */
static int destination_placed(struct ferry_destination *d)
{
	struct ferry_error err = { 0 };
	int r;

	if (ferry_job_phase(d->job, FERRY_PHASE_RAN, &err)) {
		ferry_log_warn("%s", err.text);
		d->job->record.phase = FERRY_PHASE_RAN;
	}
	ferry_fault_point("placed", NULL);
	/* Before the channels are closed: that would look like a lost link. */
	r = ferry_destination_send(d, FERRY_WIRE_PLACED, NULL, 0);
	destination_end_armed(d);
	return r;
}

/* Pages come from a file instead, if a person says so. */
static void destination_fill(struct ferry_destination *d)
{
	struct ferry_error err = { 0 };
	char path[FERRY_TASK_PATH];
	uint64_t pages, missing;
	int r;

	if (!ferry_task_take(d->job, path))
		return;
	r = ferry_spill_read(&d->incoming, path, &pages, &err);
	missing = ferry_incoming_missing(&d->incoming);
	if (!r && missing)
		r = ferry_error_set(&err, ENODATA, "%llu pages that the guest lacks are not in it",
				    (unsigned long long)missing);
	if (r)
		ferry_log_error("%s: %s", path, err.text);
	ferry_task_end(d->job, pages, r ? &err : NULL);
}

/* One event. Return: 0; -ECONNRESET the main channel is lost; -ETIMEDOUT; -errno the end. */
static int destination_step(struct ferry_destination *d, struct ferry_error *err)
{
	struct ferry_wire_hello hello;
	int fd = -1, r;

	r = ferry_lobby_wait(&d->lobby, d->main_fd, destination_deadline_ns(d), &hello, &fd, err);
	if (r == -EINTR) {
		uint64_t times;

		if (read(d->wake_fd, &times, sizeof(times)) < 0)
			ferry_log_debug("woken up for nothing");
		if (d->start.busy && __atomic_load_n(&d->start.ended, __ATOMIC_ACQUIRE))
			return ferry_destination_start_ended(d, err);
		if (destination_is_whole(d))
			return destination_placed(d);
		ferry_destination_relisten(d);
		destination_fill(d);
		r = 0;
		if (!ferry_job_cancelled(d->job))
			return ferry_destination_complains(d, err);
	}
	if (ferry_job_cancelled(d->job) && (r == 0 || r == -ETIMEDOUT))
		return ferry_error_set(err, ECANCELED, "cancelled");
	if (r < 0)
		return r;
	if (r == 1)
		return ferry_destination_newcomer(d, &hello, fd, err);
	return ferry_destination_frame(d, err);
}

static void destination_advice(struct ferry_destination *d, struct ferry_outcome *out)
{
	const char *id = d->job->record.id;

	out->state = FERRY_STATE_COMMIT_WAIT;
	out->where = FERRY_WHERE_UNKNOWN;
	out->exit_code = 3;
	ferry_job_save(d->job, NULL);
	if (d->job->record.phase == FERRY_PHASE_RAN_LACKS) {
		out->state = FERRY_STATE_POSTCOPY_PAUSED;
		out->where = FERRY_WHERE_DESTINATION;
		snprintf(out->advice, sizeof(out->advice),
			 "the guest runs here and waits for memory that only the source has; the "
			 "process that could take it in has ended, and with it what is known of the "
			 "pages that are here: the guest can only be started again from its disks");
		return;
	}
	if (d->job->record.phase != FERRY_PHASE_COMMIT_WAIT) {
		snprintf(out->advice, sizeof(out->advice),
			 "the source has handed the guest over and never runs it again; whether it "
			 "runs here is not known. When the source can reach this host again:\n"
			 "  ferry recover %s            (then at the source: ferry recover ITS-ID)\n"
			 "To start it here without asking the source:\n"
			 "  ferry resume %s", id, id);
		return;
	}
	snprintf(out->advice, sizeof(out->advice),
		 "the guest is loaded and stopped here; whether it runs at the source is not known. "
		 "When the source can reach this host again:\n"
		 "  ferry recover %s            (then at the source: ferry recover ITS-ID)\n"
		 "If the guest runs at the source (its ferry status says failed or cancelled):\n"
		 "  ferry cancel %s\n"
		 "Only if you are certain that the source is gone for good:\n"
		 "  ferry resume %s --force-destination",
		 id, id, id);
}

/* Before RUN-ACCEPTED: the guest will never run here. */
static void destination_fail(struct ferry_destination *d, struct ferry_error *why,
			     struct ferry_outcome *out)
{
	struct ferry_job *job = d->job;
	bool waiting = job->record.phase == FERRY_PHASE_COMMIT_WAIT;
	bool cancelled = ferry_job_cancelled(job);
	struct ferry_error err = { 0 };
	int r;

	if (cancelled) {
		ferry_job_move(job, FERRY_STATE_CANCELLING, NULL);
		ferry_error_set(why, ECANCELED, "cancelled at the destination");
	}
	out->error = *why;
	out->state = cancelled ? FERRY_STATE_CANCELLED : FERRY_STATE_FAILED;
	out->where = FERRY_WHERE_SOURCE;
	out->exit_code = 1;
	r = ferry_destination_give_up(d, FERRY_PHASE_ABORTED, why->text, &err);
	if (r && waiting) {
		/* Not durable, so not true: RUN may still be due. */
		out->error = err;
		destination_advice(d, out);
		return;
	}
	/* The source may have committed; then only a durable refusal sets it free. */
	ferry_destination_send(d, waiting ? FERRY_WIRE_REFUSED : FERRY_WIRE_ABORT, why->text,
			       (uint32_t)strlen(why->text));
	ferry_job_move(job, out->state, NULL);
	/* Whoever aborted at the source needs no answer. */
	d->done = !waiting || why->errnum == ECONNABORTED;
	/* This cancel is carried out; the source may still ask, and a second one ends that too. */
	pthread_mutex_lock(&job->lock);
	job->cancel = false;
	pthread_mutex_unlock(&job->lock);
}

/* The guest runs here, and pages are missing. */
static void destination_page(struct ferry_destination *d, struct ferry_outcome *out)
{
	if (ferry_job_state(d->job) == FERRY_STATE_COMMIT_WAIT)
		ferry_job_move(d->job, FERRY_STATE_POSTCOPY_ACTIVE, NULL);
	out->where = FERRY_WHERE_DESTINATION;
	ferry_incoming_started(&d->incoming, !d->job->record.guest_paused);
	ferry_incoming_stats(&d->incoming);
}

/* The guest is owned here. */
static void destination_own(struct ferry_destination *d, struct ferry_outcome *out)
{
	struct ferry_error err = { 0 };

	if (ferry_job_state(d->job) == FERRY_STATE_COMPLETED)
		return;
	/* All came in the very moment that the link was lost. */
	if (ferry_job_state(d->job) == FERRY_STATE_POSTCOPY_PAUSED)
		ferry_job_move(d->job, FERRY_STATE_POSTCOPY_RECOVER_SETUP, NULL);
	if (ferry_job_state(d->job) == FERRY_STATE_POSTCOPY_RECOVER_SETUP)
		ferry_job_move(d->job, FERRY_STATE_POSTCOPY_RECOVER, NULL);
	if (ferry_job_state(d->job) == FERRY_STATE_POSTCOPY_RECOVER)
		ferry_job_move(d->job, FERRY_STATE_POSTCOPY_ACTIVE, NULL);
	destination_end_armed(d);
	pthread_mutex_lock(&d->job->lock);
	d->job->stats.missing_pages = 0;
	pthread_mutex_unlock(&d->job->lock);
	out->state = FERRY_STATE_COMPLETED;
	out->where = FERRY_WHERE_DESTINATION;
	out->exit_code = 0;
	out->error.text[0] = 0; /* of an earlier try */
	ferry_job_move(d->job, FERRY_STATE_COMPLETED, NULL);
	if (ferry_destination_open(d, &err))
		ferry_log_warn("the guest runs here, but its VMM is not as it was: %s", err.text);
	if (!d->guest)
		return;
	if (!d->job->record.guest_paused)
		d->guest->ops->announce(d->guest);
	if (d->guest->ops->undo(d->guest, true, &err))
		ferry_log_warn("the guest runs here, but its VMM is not as it was: %s", err.text);
	/* A VMM that died at once leaves the guest to nobody. */
	if (d->guest->ops->running(d->guest, &err) < 0) {
		ferry_error_set(&out->error, EIO, "the guest was handed over and its VMM died: %s",
				err.text);
		out->where = FERRY_WHERE_STOPPED;
		out->exit_code = 3;
		snprintf(out->advice, sizeof(out->advice),
			 "the source has given the guest up for good: start it again from its disks");
	}
	/* A QMP socket serves one client: free it for whoever manages the guest now. */
	d->guest->ops->close(d->guest);
	d->guest = NULL;
	if (d->job->hooks->hold)
		d->job->hooks->hold(d->job->hooks->ctx, "guest", -1, NULL);
}

/* Take an error of the loop by the phase we are in. Return: true when all is over. */
static bool destination_take_error(struct ferry_destination *d, int r, struct ferry_error *err,
				   struct ferry_outcome *out)
{
	enum ferry_phase phase = d->job->record.phase;

	if (phase == FERRY_PHASE_OPEN) {
		/* Others who time out have said what did. */
		if (r == -ETIMEDOUT && !err->text[0])
			ferry_error_set(err, ETIMEDOUT, "no word from the source for %u s",
					d->job->record.timeout_ms / 1000);
		if (r == -ECONNRESET && !err->text[0])
			ferry_error_set(err, ECONNRESET, "the link to the source is lost");
		destination_fail(d, err, out);
		return d->done;
	}
	if (phase == FERRY_PHASE_COMMIT_WAIT || phase == FERRY_PHASE_RUN_ACCEPTED) {
		if (r == -EIO)
			out->error = *err;
		if (phase == FERRY_PHASE_COMMIT_WAIT && (r == -ECANCELED || r == -ECONNABORTED)) {
			destination_fail(d, err, out);
			return d->done;
		}
		if (r == -ETIMEDOUT && d->main_fd < 0) {
			if (!out->error.text[0])
				ferry_error_set(&out->error, ETIMEDOUT,
						"the link to the source was lost before RUN came");
			destination_advice(d, out);
			return true;
		}
		ferry_destination_set_main(d, -1);
		return false;
	}
	if (phase == FERRY_PHASE_RAN_LACKS) {
		/* Till the source is back, or a person brings it back. */
		ferry_destination_pause(d);
		return false;
	}
	if ((phase == FERRY_PHASE_REFUSED || phase == FERRY_PHASE_ABORTED) && !out->exit_code) {
		out->error = *err;
		out->state = FERRY_STATE_FAILED;
		out->where = FERRY_WHERE_SOURCE;
		out->exit_code = 1;
		ferry_job_move(d->job, FERRY_STATE_FAILED, NULL);
	}
	if (r == -ECANCELED || (r == -ETIMEDOUT && d->main_fd < 0))
		return true;
	if (r != -ECONNREFUSED)
		ferry_destination_set_main(d, -1);
	return false;
}

static void destination_loop(struct ferry_destination *d, struct ferry_outcome *out)
{
	while (!d->done) {
		struct ferry_error err = { 0 };
		int r = destination_step(d, &err);

		if (d->job->record.phase == FERRY_PHASE_RAN)
			destination_own(d, out);
		if (d->job->record.phase == FERRY_PHASE_RAN_LACKS)
			destination_page(d, out);
		if (r && destination_take_error(d, r, &err, out))
			break;
	}
}

static void destination_end(struct ferry_destination *d, struct ferry_outcome *out)
{
	struct ferry_job *job = d->job;

	job->record.settled = out->exit_code != 3;
	ferry_job_took(job);
	if (out->error.text[0])
		snprintf(job->record.error, sizeof(job->record.error), "%s", out->error.text);
	ferry_job_save(job, NULL);
	destination_free(d);
}

void ferry_destination_run(struct ferry_job *job, struct ferry_outcome *out)
{
	struct ferry_error err = { 0 };
	struct ferry_destination d;
	int r;

	memset(out, 0, sizeof(*out));
	destination_init(&d, job);
	r = ferry_job_move(job, FERRY_STATE_SETUP, &err);
	if (!r)
		r = ferry_uri_parse(job->record.uri, &d.uri, &err);
	if (!r)
		r = destination_attach(&d, &err);
	if (!r)
		r = ferry_destination_listen(&d, &err);
	if (!r)
		r = ferry_fault_point("listen", &err);
	if (r)
		destination_fail(&d, &err, out);
	else
		destination_loop(&d, out);
	destination_end(&d, out);
}

/* Another worker had armed the guest's memory: go on with that. */
static int destination_adopt(struct ferry_destination *d, struct ferry_error *err)
{
	struct ferry_job *job = d->job;
	enum ferry_phase phase = job->record.phase;
	int r;

	if (!job->record.postcopy || job->record.settled)
		return 0;
	if (phase != FERRY_PHASE_RAN_LACKS && phase != FERRY_PHASE_RUN_ACCEPTED &&
	    phase != FERRY_PHASE_COMMIT_WAIT && phase != FERRY_PHASE_RAN)
		return 0;
	r = ferry_incoming_adopt(&d->incoming, &d->ram, err);
	/* With all its memory it is like any other guest, whose VMM undo() puts back. */
	if (r && phase == FERRY_PHASE_RAN)
		return 0;
	if (r)
		return r;
	d->config = d->incoming.config;
	d->adopted = true;
	return 0;
}

void ferry_destination_recover(struct ferry_job *job, struct ferry_outcome *out)
{
	enum ferry_state state = FERRY_STATE_COMMIT_WAIT;
	struct ferry_error err = { 0 };
	struct ferry_destination d;
	int r;

	memset(out, 0, sizeof(*out));
	destination_init(&d, job);
	if (job->record.phase == FERRY_PHASE_RAN_LACKS)
		state = FERRY_STATE_POSTCOPY_PAUSED;
	__atomic_store_n(&job->state, state, __ATOMIC_RELEASE);
	job->record.state = state;
	pthread_mutex_lock(&job->lock);
	job->committed = job->record.phase != FERRY_PHASE_COMMIT_WAIT;
	job->stats = job->record.stats;
	pthread_mutex_unlock(&job->lock);
	if (job->hooks->state)
		job->hooks->state(job->hooks->ctx, job->state);
	r = ferry_uri_parse(job->record.uri, &d.uri, &err);
	if (!r)
		r = ferry_destination_listen(&d, &err);
	if (r) {
		out->error = err;
		destination_advice(&d, out);
		destination_free(&d);
		return;
	}
	r = destination_adopt(&d, &err);
	if (r) {
		out->error = err;
		destination_advice(&d, out);
		destination_free(&d);
		return;
	}
	/* Once all was settled the VMM may be anybody's: only questions are answered. */
	if (!job->record.settled && !d.adopted &&
	    ferry_open_guest(job, FERRY_GUEST_DESTINATION, &d.guest, &err)) {
		ferry_log_warn("the VMM here cannot be reached: %s", err.text);
		d.guest = NULL;
	}
	d.heard_ns = ferry_clock_ns();
	/* As if it were asked for now; destination_step() looks when it is woken. */
	if (job->options.fill_path[0] && d.adopted &&
	    !ferry_task_ask(job, job->options.fill_path, &err))
		destination_interrupt(&d);
	/* Accepted, and maybe started: starting it again is harmless. */
	if (job->record.phase == FERRY_PHASE_RUN_ACCEPTED && !d.adopted &&
	    ferry_destination_start(&d, &err))
		ferry_log_error("the guest was accepted here and cannot be started: %s", err.text);
	if (job->record.phase == FERRY_PHASE_RAN)
		destination_own(&d, out);
	/* Decided already: only the source's question is left to answer. */
	if (job->record.phase == FERRY_PHASE_REFUSED || job->record.phase == FERRY_PHASE_ABORTED) {
		if (d.guest && !job->record.settled)
			d.guest->ops->undo(d.guest, false, NULL);
		ferry_error_set(&err, ECONNREFUSED, "%s", job->record.error);
		destination_take_error(&d, -ECONNREFUSED, &err, out);
	}
	destination_loop(&d, out);
	destination_end(&d, out);
}
