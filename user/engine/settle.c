// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Settling a migration at the source (DESIGN of the switchover: Documentation/switchover.rst).
 *
 * From COMMIT on the source does nothing of its own accord: RUNNING or the answer
 * "ran" completes it, REFUSED or the answer "refused" gives the guest back, "waiting"
 * lets it send RUN again on the new connection. Every new connection has a raised
 * epoch that is durable here before it is used, and there before it is answered.
 */
#include "engine/settle.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "engine/fault_points.h"

/* Between attempts to reach the destination again. */
#define SETTLE_RETRY_NS (200 * FERRY_NS_PER_MS)

/* What was said before a line broke is read within this. */
#define SETTLE_WORD_MS 500

/* How long to wait for the destination to close after the last word. */
#define SETTLE_GOODBYE_MS 3000

/* Telling a waiting destination that there will be no RUN delays only our exit. */
#define SETTLE_ABORT_MS 10000

static void settle_link_params(struct ferry_settle *s, uint64_t deadline_ns,
			       struct ferry_link_params *params)
{
	*params = (struct ferry_link_params){
		.uri = &s->uri,
		.uuid = s->job->record.uuid,
		.epoch = s->job->record.epoch,
		.kind = FERRY_WIRE_KIND_RECOVER,
		.channels = 1,
		.timeout_ms = s->job->record.timeout_ms,
		.deadline_ns = deadline_ns,
	};
	if (!s->pager)
		return;
	params->channels = (uint16_t)s->job->stats.channels;
	params->received = ferry_pager_received;
	params->ended = ferry_pager_abort;
	params->ctx = s->pager;
}

static int settle_reconnect(struct ferry_settle *s, uint64_t deadline_ns, struct ferry_error *err)
{
	struct ferry_job *job = s->job;
	struct ferry_link_params params;
	uint64_t left_ms;
	int r;

	ferry_link_close(s->link);
	s->link = NULL;
	settle_link_params(s, deadline_ns, &params);
	if (s->pager) {
		ferry_pager_hang_up(s->pager);
		ferry_pager_forget(s->pager);
	}
	job->record.epoch++;
	r = ferry_job_save(job, err);
	if (r)
		return r;
	params.epoch = job->record.epoch;
	left_ms = (uint64_t)ferry_clock_poll_ms(deadline_ns);
	if (left_ms < params.timeout_ms)
		params.timeout_ms = left_ms ? (uint32_t)left_ms : 1;
	return ferry_link_open(&params, &s->link, err);
}

static void settle_summary(struct ferry_job *job, struct ferry_wire_summary *w)
{
	const struct ferry_stats *st = &job->stats;

	memset(w, 0, sizeof(*w));
	pthread_mutex_lock(&job->lock);
	w->total_ns = st->total_ns;
	w->downtime_ns = st->downtime_ns;
	w->rounds = st->rounds;
	w->sent_bytes = st->sent_bytes;
	w->normal_pages = st->normal_pages;
	w->zero_pages = st->zero_pages;
	w->device_bytes = st->device_bytes;
	memcpy(w->tracker, st->tracker, sizeof(w->tracker));
	pthread_mutex_unlock(&job->lock);
}

/*
 * The last word. The destination closes the connection when it has it: then there is no doubt;
 * a lost one is said again. Return: 0 or -ETIMEDOUT.
 */
static int settle_ack(struct ferry_settle *s)
{
	uint64_t deadline_ns = ferry_clock_in_ms(s->job->record.timeout_ms);
	struct ferry_wire_summary summary;
	uint8_t body[FERRY_WIRE_SUMMARY_BYTES];

	settle_summary(s->job, &summary);
	ferry_wire_summary_encode(&summary, body);
	do {
		if (s->link && !(ferry_link_facts(s->link) & FERRY_LINK_LOST) &&
		    !ferry_link_send(s->link, FERRY_WIRE_ACK, body, sizeof(body), NULL) &&
		    !ferry_link_wait(s->link, FERRY_LINK_LOST,
				     ferry_clock_in_ms(SETTLE_GOODBYE_MS), NULL) &&
		    ferry_link_closed(s->link, ferry_clock_in_ms(SETTLE_GOODBYE_MS)))
			return 0;
		if (settle_reconnect(s, deadline_ns, NULL))
			ferry_clock_sleep_ns(SETTLE_RETRY_NS);
	} while (ferry_clock_ns() < deadline_ns);
	return -ETIMEDOUT;
}

/* The guest runs again, elsewhere. */
static void settle_downtime(struct ferry_settle *s)
{
	if (!s->stopped_ns)
		return;
	pthread_mutex_lock(&s->job->lock);
	s->job->stats.downtime_ns = ferry_clock_ns() - s->stopped_ns;
	pthread_mutex_unlock(&s->job->lock);
	s->stopped_ns = 0;
}

static void settle_completed(struct ferry_settle *s, struct ferry_outcome *out)
{
	struct ferry_job *job = s->job;
	struct ferry_error err = { 0 };
	int r;

	out->where = FERRY_WHERE_DESTINATION;
	out->state = FERRY_STATE_COMPLETED;
	out->exit_code = 0;
	if (s->pager) {
		s->pager->left_pages = 0; /* they may have come another way */
		ferry_pager_hang_up(s->pager);
	}
	settle_downtime(s);
	pthread_mutex_lock(&job->lock);
	job->stats.total_ns = ferry_clock_ns() - job->started_ns;
	pthread_mutex_unlock(&job->lock);
	r = ferry_job_phase(job, FERRY_PHASE_RAN, &err);
	if (r)
		ferry_log_warn("%s", err.text);
	ferry_fault_point("running", NULL);
	if (s->guest) {
		r = job->record.keep_source ? s->guest->ops->undo(s->guest, false, &err) :
					      s->guest->ops->quit(s->guest, &err);
		if (r)
			ferry_log_warn("the guest runs at the destination, but the source VMM (pid "
				       "%d) is still here and must not be resumed: %s",
				       (int)s->guest->pid, err.text);
	}
	ferry_fault_point("quit", NULL);
	ferry_job_move(job, FERRY_STATE_COMPLETED, NULL);
	if (settle_ack(s))
		ferry_log_warn("the destination runs the guest, and could not be told that this side "
			       "knows: its ferry recv goes on listening for a while. 'ferry recover "
			       "%s' here tells it", job->record.id);
	job->record.settled = true;
	ferry_job_save(job, NULL);
}

void ferry_settle_back(struct ferry_settle *s, enum ferry_state state,
		       const struct ferry_error *why, struct ferry_outcome *out)
{
	struct ferry_job *job = s->job;
	struct ferry_error err = { 0 };
	int r;

	out->state = state;
	out->error = *why;
	snprintf(job->record.error, sizeof(job->record.error), "%s", why->text);
	r = ferry_job_phase(job, FERRY_PHASE_ABORTED, &err);
	if (r)
		ferry_log_warn("%s", err.text);
	/*
	 * A COMMIT that failed may stand on disk all the same; with no way to take it back, a
	 * worker that finds it would send RUN.
	 */
	if (!r || job->record.phase == FERRY_PHASE_COMMIT || !job->committed)
		r = s->guest ? s->guest->ops->undo(s->guest, true, &err) :
			       ferry_job_undo(job, true, &err);
	ferry_job_given_back(job, s->guest, r, &err, out);
}

/* The destination says for good that the guest never runs there. */
static void settle_refused(struct ferry_settle *s, const struct ferry_error *why,
			   struct ferry_outcome *out)
{
	/* It has recorded that; ACK lets it stop listening. */
	ferry_settle_back(s, FERRY_STATE_FAILED, why, out);
	settle_ack(s);
}

static void settle_unknown(struct ferry_settle *s, const struct ferry_error *why,
			   struct ferry_outcome *out)
{
	const char *id = s->job->record.id;

	out->state = FERRY_STATE_COMMIT_UNKNOWN;
	out->where = FERRY_WHERE_UNKNOWN;
	out->exit_code = 3;
	out->error = *why;
	snprintf(s->job->record.error, sizeof(s->job->record.error), "%s", why->text);
	snprintf(out->advice, sizeof(out->advice),
		 "the guest is stopped here; the destination may run it. When it can be reached "
		 "again:\n"
		 "  ferry recover %s            (at the destination first, if its ferry has ended: "
		 "ferry recover ITS-ID)\n"
		 "Only if you are certain that the destination never ran it and never will:\n"
		 "  ferry resume %s --force-source\n"
		 "(if it may have run there and that host is lost, its disks are newer than its memory "
		 "here: start the guest afresh from its disks instead)\n"
		 "Only if you are certain that it runs there, or force it there (ferry resume "
		 "ITS-ID --force-destination at the destination), end the VMM here and forget it.",
		 id, id);
	ferry_job_save(s->job, NULL);
}

/* Send RUN and wait for what it does. Return: an answer, or as ferry_link_wait(). */
static int settle_run(struct ferry_settle *s, struct ferry_error *err)
{
	uint64_t deadline_ns = ferry_clock_in_ms(s->job->record.timeout_ms);
	uint8_t flags[4];
	int r;

	ferry_wire_u32_encode(s->job->record.guest_paused ? FERRY_WIRE_RUN_PAUSED : 0, flags);
	/* Whoever hung up may have said why before: REFUSED counts however it ends. */
	if (ferry_link_send(s->link, FERRY_WIRE_RUN, flags, sizeof(flags), err))
		deadline_ns = ferry_clock_in_ms(SETTLE_WORD_MS);
	else
		ferry_fault_point("run", NULL);
	r = ferry_link_wait(s->link, FERRY_LINK_RUNNING | FERRY_LINK_LACKS, deadline_ns, err);
	if (r)
		return r;
	return ferry_link_facts(s->link) & FERRY_LINK_RUNNING ? FERRY_WIRE_ANSWER_RAN :
								FERRY_WIRE_ANSWER_LACKS;
}

/* On a new connection: what happened to the RUN? Return: an answer, or -errno. */
static int settle_ask(struct ferry_settle *s, struct ferry_error *err)
{
	uint64_t deadline_ns = ferry_clock_in_ms(s->job->record.timeout_ms);
	int r = ferry_link_send(s->link, FERRY_WIRE_ASK, NULL, 0, err);

	if (!r)
		r = ferry_link_wait(s->link, FERRY_LINK_ANSWER | FERRY_LINK_RUNNING |
				    FERRY_LINK_PLACED, deadline_ns, err);
	if (r)
		return r;
	/* RUNNING and PLACED say more than an answer that was given before. */
	if (ferry_link_facts(s->link) & (FERRY_LINK_RUNNING | FERRY_LINK_PLACED))
		return FERRY_WIRE_ANSWER_RAN;
	return (int)ferry_link_answer(s->link);
}

static bool settle_in_postcopy(struct ferry_settle *s)
{
	enum ferry_state state = ferry_job_state(s->job);

	return state == FERRY_STATE_POSTCOPY_ACTIVE || state == FERRY_STATE_POSTCOPY_PAUSED ||
	       state == FERRY_STATE_POSTCOPY_RECOVER_SETUP || state == FERRY_STATE_POSTCOPY_RECOVER;
}

/*
 * The destination runs the guest and lacks pages: it is never resumed here, and this VMM, which
 * has them, is not quit. Return: 0 all of them are there; -errno.
 */
static int settle_page(struct ferry_settle *s, struct ferry_error *err)
{
	struct ferry_job *job = s->job;
	struct ferry_error record = { 0 };

	if (!s->pager)
		return ferry_error_set(err, ENODATA, "the destination runs the guest and lacks pages "
				       "that cannot be had from the VMM here");
	settle_downtime(s);
	if (job->record.phase != FERRY_PHASE_RAN_LACKS &&
	    ferry_job_phase(job, FERRY_PHASE_RAN_LACKS, &record)) {
		ferry_log_warn("%s", record.text);
		/* Whoever takes over from the record must find the memory. */
		s->pager->release.on = false;
	}
	if (ferry_job_state(job) == FERRY_STATE_POSTCOPY_RECOVER_SETUP)
		ferry_job_move(job, FERRY_STATE_POSTCOPY_RECOVER, NULL);
	ferry_job_move(job, FERRY_STATE_POSTCOPY_ACTIVE, NULL);
	ferry_fault_point("lacks", NULL);
	return ferry_pager_run(s->pager, s->link, err);
}

/* New channels for a link that is new. */
static int settle_again(struct ferry_settle *s, struct ferry_error *err)
{
	struct ferry_link_params params;
	int r;

	settle_link_params(s, ferry_clock_in_ms(s->job->record.timeout_ms), &params);
	r = ferry_pager_again(s->pager, &params, err);
	ferry_fault_point("again", NULL);
	s->spilled = false;
	return r;
}

/* One attempt over the present link. Return: true when it is settled. */
static bool settle_try(struct ferry_settle *s, bool ask, struct ferry_error *err,
		       struct ferry_outcome *out)
{
	int r = ask ? settle_ask(s, err) : FERRY_WIRE_ANSWER_WAITING, again = 0;

	if (r == FERRY_WIRE_ANSWER_LACKS)
		ferry_fault_point("answered", NULL);
	/* What was sent is zeros here by now. */
	if (ask && r == FERRY_WIRE_ANSWER_LACKS && s->job->record.release_ram &&
	    s->job->record.phase == FERRY_PHASE_RAN_LACKS) {
		ferry_error_set(err, ENODATA, "the destination lacks memory that was freed here");
		return false;
	}
	/* Starting the guest may take pages that are missing. */
	if (ask && s->pager &&
	    (r == FERRY_WIRE_ANSWER_WAITING || r == FERRY_WIRE_ANSWER_LACKS))
		again = settle_again(s, err);
	if (again)
		r = again;
	if (r == FERRY_WIRE_ANSWER_WAITING)
		r = settle_run(s, err);
	if (r == FERRY_WIRE_ANSWER_LACKS)
		r = settle_page(s, err) ?: FERRY_WIRE_ANSWER_RAN;
	if (r == FERRY_WIRE_ANSWER_RAN) {
		if (ferry_job_state(s->job) == FERRY_STATE_POSTCOPY_RECOVER_SETUP) {
			ferry_job_move(s->job, FERRY_STATE_POSTCOPY_RECOVER, NULL);
			ferry_job_move(s->job, FERRY_STATE_POSTCOPY_ACTIVE, NULL);
		}
		settle_completed(s, out);
		return true;
	}
	/* Once it ran there nothing brings it back. */
	if (settle_in_postcopy(s))
		return false;
	if (r == FERRY_WIRE_ANSWER_REFUSED)
		ferry_error_set(err, ECONNREFUSED,
				"the destination has recorded that the guest never runs there");
	if (r == FERRY_WIRE_ANSWER_REFUSED || r == -ECONNREFUSED) {
		settle_refused(s, err, out);
		return true;
	}
	return false;
}

/* The link is lost: what is published from now on. */
static void settle_lost(struct ferry_settle *s)
{
	if (s->pager)
		ferry_pager_hang_up(s->pager);
	if (settle_in_postcopy(s)) {
		/* The destination learns it at once, too. */
		ferry_link_close(s->link);
		s->link = NULL;
		if (ferry_job_state(s->job) != FERRY_STATE_POSTCOPY_PAUSED)
			ferry_job_move(s->job, FERRY_STATE_POSTCOPY_PAUSED, NULL);
	} else if (ferry_job_state(s->job) != FERRY_STATE_COMMIT_UNKNOWN) {
		ferry_job_move(s->job, FERRY_STATE_COMMIT_UNKNOWN, NULL);
	}
	ferry_job_save(s->job, NULL);
	if (settle_in_postcopy(s))
		ferry_fault_point("paused", NULL);
}

static void settle_paused(struct ferry_settle *s, const struct ferry_error *why,
			  struct ferry_outcome *out)
{
	const char *id = s->job->record.id;

	out->state = FERRY_STATE_POSTCOPY_PAUSED;
	out->where = FERRY_WHERE_DESTINATION;
	out->exit_code = 3;
	out->error = *why;
	snprintf(s->job->record.error, sizeof(s->job->record.error), "%s", why->text);
	snprintf(out->advice, sizeof(out->advice),
		 "the guest runs at the destination and waits for memory that only the stopped VMM "
		 "here has: do not end it. When the destination can be reached again:\n"
		 "  ferry recover %s            (or ferry recover %s URI, if it has another address "
		 "now)", id, id);
	ferry_job_save(s->job, NULL);
}

/* --release-ram: nobody has the pages that were lost with the link. */
static void settle_released(struct ferry_settle *s, const struct ferry_error *why,
			    struct ferry_outcome *out)
{
	settle_paused(s, why, out);
	snprintf(out->advice, sizeof(out->advice),
		 "with --release-ram the memory that was sent is gone here, and what was under way is "
		 "lost: the guest at the destination waits for ever for pages that nobody has. End "
		 "both VMMs and start the guest from its disks");
}

/* What may be missing there, into a file: this host may not be there much longer. */
static void settle_spill(struct ferry_settle *s, const char *path, bool asked)
{
	struct ferry_error err = { 0 };
	uint64_t pages = 0;
	int r = s->pager ? ferry_pager_spill(s->pager, ferry_guest_kind(s->guest), path, &pages,
					     &err) :
			   ferry_error_set(&err, ENODATA, "the VMM's memory cannot be had");

	if (asked)
		ferry_task_end(s->job, pages, r ? &err : NULL);
	if (r)
		ferry_log_error("no pages were spilled to %s: %s", path, err.text);
	else
		ferry_log_warn("%llu pages are in %s; at the destination: ferry recover ITS-ID "
			       "file:%s", (unsigned long long)pages, path, path);
}

/* --spill: once after each break, when a first attempt to mend it has failed. */
static void settle_spill_by_itself(struct ferry_settle *s)
{
	char path[FERRY_TASK_PATH + FERRY_ID_MAX + 8];

	if (s->spilled || !s->job->options.spill_dir[0] || !settle_in_postcopy(s))
		return;
	s->spilled = true;
	snprintf(path, sizeof(path), "%s/%s.spill", s->job->options.spill_dir, s->job->record.id);
	settle_spill(s, path, false);
}

/* Paused, and nothing helped for --timeout: wait for a person. Return: false, leave. */
static bool settle_await_person(struct ferry_settle *s)
{
	struct ferry_job *job = s->job;
	char uri[FERRY_SPEC_MAX] = "", note[128], path[FERRY_TASK_PATH];
	bool leave, retry = false;

	settle_spill_by_itself(s);
	snprintf(note, sizeof(note), "  waiting for 'ferry recover %s'", job->record.id);
	ferry_job_note(job, note);
	do {
		ferry_job_wait(job, ferry_clock_ns() + FERRY_NS_PER_S);
		ferry_job_options_save(job);
		if (ferry_task_take(job, path))
			settle_spill(s, path, true);
		pthread_mutex_lock(&job->lock);
		leave = job->leave;
		retry = job->retry;
		snprintf(uri, sizeof(uri), "%s", job->retry_uri);
		job->retry = false;
		pthread_mutex_unlock(&job->lock);
	} while (!leave && !retry);
	ferry_job_note(job, "");
	if (uri[0] && !ferry_uri_parse(uri, &s->uri, NULL))
		snprintf(job->record.uri, sizeof(job->record.uri), "%s", uri);
	return !leave;
}

/* Try to find out, for --timeout. Return: true when it is settled. */
static bool settle_retry(struct ferry_settle *s, struct ferry_error *err, struct ferry_outcome *out)
{
	uint64_t deadline_ns = ferry_clock_in_ms(s->job->record.timeout_ms);

	while (ferry_clock_ns() < deadline_ns && !ferry_job_held(s->job)) {
		struct ferry_error now = { 0 };
		int r = settle_reconnect(s, deadline_ns, &now);

		if (!r) {
			if (ferry_job_state(s->job) == FERRY_STATE_POSTCOPY_PAUSED)
				ferry_job_move(s->job, FERRY_STATE_POSTCOPY_RECOVER_SETUP, NULL);
			if (settle_try(s, true, &now, out))
				return true;
			settle_lost(s);
		}
		*err = now;
		settle_spill_by_itself(s);
		if (r == -ENOENT || s->job->leave) /* never heard of it: nobody moves */
			break;
		ferry_clock_sleep_ns(SETTLE_RETRY_NS);
		/* A link that held for a while starts the time anew. */
		if (!r && settle_in_postcopy(s) && !s->job->record.release_ram)
			deadline_ns = ferry_clock_in_ms(s->job->record.timeout_ms);
	}
	return false;
}

void ferry_settle_commit(struct ferry_settle *s, struct ferry_outcome *out)
{
	struct ferry_error err = { 0 };

	/* Known already, by a worker before us: only ACK is left. */
	if (s->job->record.phase == FERRY_PHASE_RAN) {
		settle_completed(s, out);
		goto out;
	}
	if (s->link && settle_try(s, false, &err, out))
		goto out;
	settle_lost(s);
	if (settle_in_postcopy(s) && s->job->record.release_ram) {
		/* It may have got all of it just before. */
		if (!settle_retry(s, &err, out))
			settle_released(s, &err, out);
		goto out;
	}
	do {
		if (settle_retry(s, &err, out))
			goto out;
	} while (settle_in_postcopy(s) && settle_await_person(s));
	if (settle_in_postcopy(s))
		settle_paused(s, &err, out);
	else
		settle_unknown(s, &err, out);
out:
	ferry_link_close(s->link);
	s->link = NULL;
}

static int settle_send_abort(struct ferry_settle *s, const char *why, struct ferry_error *err)
{
	uint32_t bytes = (uint32_t)strlen(why);

	if (bytes > FERRY_WIRE_MAX_TEXT)
		bytes = FERRY_WIRE_MAX_TEXT;
	return ferry_link_send(s->link, FERRY_WIRE_ABORT, why, bytes, err);
}

void ferry_settle_abort(struct ferry_settle *s, const char *why)
{
	if (!s->link)
		return;
	ferry_link_uncancel(s->link);
	if ((ferry_link_facts(s->link) & FERRY_LINK_LOST) || settle_send_abort(s, why, NULL)) {
		ferry_link_close(s->link);
		s->link = NULL;
	}
}

int ferry_settle_abort_confirm(struct ferry_settle *s, const char *why, struct ferry_error *err)
{
	uint32_t limit_ms = s->job->record.timeout_ms;
	int r = -ENOTCONN;

	if (!s->job->record.disturbed_peer) {
		r = 0;
	} else {
		/* It closes when it has read it. */
		if (s->link)
			r = ferry_link_wait(s->link, FERRY_LINK_LOST,
					    ferry_clock_in_ms(SETTLE_GOODBYE_MS), err);
		if (r)
			r = settle_reconnect(s, ferry_clock_in_ms(limit_ms < SETTLE_ABORT_MS ?
								  limit_ms : SETTLE_ABORT_MS),
					     err);
		else
			goto out;
		if (!r)
			r = settle_send_abort(s, why, err);
		if (!r)
			r = ferry_link_wait(s->link, FERRY_LINK_LOST,
					    ferry_clock_in_ms(SETTLE_GOODBYE_MS), err);
		/* It has ended and cleaned up, or is another ferry by now. */
		if (r == -ENOENT)
			r = 0;
	}
out:
	ferry_link_close(s->link);
	s->link = NULL;
	return r;
}
