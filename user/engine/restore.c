// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Restoring a guest from a file: the destination's side, with a file where the source would be.
 *
 * The file owns the guest, and keeps it: whatever fails before the guest is started leaves
 * things as they were, with memory given back if pages had been read already. Then the
 * phases are those of a destination: run-accepted is durable before the guest is started, so
 * that a worker that takes over knows that it may run. (Whether a guest of this file runs
 * somewhere else is beyond anybody's knowledge: the lock of its disks is what forbids two.)
 */
#include "engine/restore.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/io.h"
#include "base/log.h"
#include "engine/fault_points.h"
#include "engine/file.h"
#include "engine/lazy.h"
#include "engine/open.h"

struct restore {
	struct ferry_job *job;
	struct ferry_guest *guest;
	struct ferry_ram ram;
	struct ferry_store_file file;
	bool opened;
	bool touched; /* guest memory has pages of the file */
	struct ferry_lazy lazy;
	bool is_lazy; /* lazy is initialised */
	int stop;     /* a cancel; atomic */
};

/* job->lock is held. */
static void restore_interrupt(void *ctx)
{
	struct restore *s = ctx;

	__atomic_store_n(&s->stop, 1, __ATOMIC_RELAXED);
}

static int match_kind(const struct ferry_store_file *file, const struct ferry_guest *guest,
		      struct ferry_error *err)
{
	char there[128], here[128];

	if (!strcmp(file->header.kind, ferry_guest_kind(guest)))
		return 0;
	ferry_guest_kind_text(file->header.kind, there, sizeof(there));
	ferry_guest_kind_text(ferry_guest_kind(guest), here, sizeof(here));
	return ferry_error_set(err, EINVAL, "%s holds a guest of %s, and this is %s: a guest is "
			       "restored into a VMM of the same kind", file->path, there, here);
}

int ferry_restore_match(const struct ferry_store_file *file, const struct ferry_guest *guest,
			struct ferry_ram *ram, struct ferry_error *err)
{
	unsigned int i, count = file->header.blocks;

	if (match_kind(file, guest, err))
		return -EINVAL;
	for (i = 0; i < count; i++) {
		const struct ferry_store_block *b = &file->blocks[i];
		int at = ferry_ram_find(ram, b->name);
		struct ferry_ram_block swap;

		if (at < 0 || ram->blocks[at].size_bytes != b->size_bytes)
			return ferry_error_set(err, EINVAL, "%s has a memory block '%s' of %llu "
					       "bytes, and this guest %s: start the VMM with the "
					       "memory the guest was saved with", file->path, b->name,
					       (unsigned long long)b->size_bytes,
					       at < 0 ? "has none of that name" :
							"has one of another size");
		if (ram->blocks[at].page_size != b->page_size)
			return ferry_error_set(err, EINVAL, "memory block '%s' had %u-byte pages when "
					       "it was saved and has %u-byte pages here: start the VMM "
					       "with the memory the guest was saved with", b->name,
					       b->page_size, ram->blocks[at].page_size);
		swap = ram->blocks[i];
		ram->blocks[i] = ram->blocks[at];
		ram->blocks[at] = swap;
	}
	if (count == ram->count)
		return 0;
	return ferry_error_set(err, EINVAL, "this guest has a memory block '%s' that %s has not: start "
			       "the VMM with the memory the guest was saved with",
			       ram->blocks[count].name, file->path);
}

int ferry_restore_put(const struct ferry_ram *ram, unsigned int block, uint64_t extent,
		      unsigned int first, unsigned int pages, const uint8_t *buf,
		      struct ferry_error *err)
{
	const struct ferry_ram_block *b = &ram->blocks[block];
	int r = ferry_ram_write(b, extent * FERRY_STORE_EXTENT_PAGES + first, pages,
				buf + (size_t)first * FERRY_PAGE_SIZE);

	return r ? ferry_error_set(err, -r, "writing memory block '%s' of the guest: %s", b->name,
				   strerror(-r)) : 0;
}

/* ---- stages ---- */

static int restore_open(struct restore *s, struct ferry_error *err)
{
	struct ferry_job *job = s->job;
	int r = ferry_store_open(&s->file, ferry_file_path(&job->record), err);

	if (r)
		return r;
	s->opened = true;
	if (s->file.header.features & FERRY_STORE_FEATURE_PARTIAL)
		return ferry_error_set(err, EINVAL, "%s holds only some pages of a guest, spilled "
				       "during its migration: 'ferry recover' takes it, nobody can "
				       "start a guest from it", s->file.path);
	if (job->options.direct) {
		r = ferry_store_direct(&s->file, err);
		if (r)
			return r;
	}
	memcpy(job->record.uuid, s->file.header.uuid, sizeof(job->record.uuid));
	job->record.guest_paused = s->file.commit.flags & FERRY_STORE_COMMIT_PAUSED;
	pthread_mutex_lock(&job->lock);
	job->stats.device_bytes = s->file.commit.device_bytes;
	job->stats.channels = job->options.channels;
	job->progress.round_pages = s->file.commit.pages;
	pthread_mutex_unlock(&job->lock);
	return 0;
}

static int restore_attach(struct restore *s, struct ferry_error *err)
{
	struct ferry_job *job = s->job;
	int r = ferry_open_guest(job, FERRY_GUEST_DESTINATION, &s->guest, err);

	if (!r)
		r = s->guest->ops->check(s->guest, err);
	if (!r)
		r = s->guest->ops->describe(s->guest, &s->ram, err);
	if (!r)
		r = ferry_restore_match(&s->file, s->guest, &s->ram, err);
	if (r)
		return r;
	pthread_mutex_lock(&job->lock);
	job->stats.ram_bytes = ferry_ram_bytes(&s->ram);
	pthread_mutex_unlock(&job->lock);
	return ferry_fault_point("opened", err);
}

static int restore_prepare(struct restore *s, struct ferry_error *err)
{
	int r = 0;

	if (s->job->options.lazy) {
		ferry_lazy_init(&s->lazy, s->job, &s->file);
		s->is_lazy = true;
		r = ferry_lazy_advise(&s->lazy, s->guest, &s->ram, err);
	}
	if (!r)
		r = s->guest->ops->prepare(s->guest, err);
	if (!r)
		r = ferry_ram_punch(&s->ram, err);
	return r ? r : ferry_job_move(s->job, FERRY_STATE_ACTIVE, err);
}

static int take_extent(void *ctx, unsigned int block, uint64_t extent,
		       const struct ferry_store_set *set, const uint8_t *buf,
		       struct ferry_error *err)
{
	struct restore *s = ctx;
	unsigned int first = 0, pages, n = ferry_store_set_count(set);
	int r = ferry_fault_point("file-read", NULL) ?
			ferry_error_set(err, EIO, "reading %s: %s", s->file.path, strerror(EIO)) : 0;

	for (; !r && (pages = ferry_store_set_run(set, &first)); first += pages)
		r = ferry_restore_put(&s->ram, block, extent, first, pages, buf, err);
	pthread_mutex_lock(&s->job->lock);
	s->job->stats.normal_pages += n;
	s->job->stats.sent_bytes += (uint64_t)n * FERRY_PAGE_SIZE;
	s->job->progress.sent_bytes = s->job->stats.sent_bytes;
	s->job->progress.round_done_pages += n;
	pthread_mutex_unlock(&s->job->lock);
	return r;
}

static int restore_pages(struct restore *s, struct ferry_error *err)
{
	struct ferry_store_read_params params = {
		.threads = s->job->options.channels,
		.verify = !s->job->options.no_verify,
		.take = take_extent,
		.ctx = s,
		.stop = &s->stop,
	};
	int r;

	s->touched = true;
	if (s->is_lazy) {
		r = ferry_lazy_arm(&s->lazy, err);
		return r ? r : ferry_fault_point("pages", err);
	}
	r = ferry_store_read_all(&s->file, &params, err);
	if (r)
		return r;
	pthread_mutex_lock(&s->job->lock);
	s->job->stats.verified = s->file.pages_verified;
	pthread_mutex_unlock(&s->job->lock);
	return ferry_fault_point("pages", err);
}

static int restore_load(struct restore *s, struct ferry_error *err)
{
	int r = ferry_job_move(s->job, FERRY_STATE_DEVICE, err);

	if (!r && s->is_lazy)
		r = ferry_lazy_load(&s->lazy, s->guest, err);
	else if (!r)
		r = s->guest->ops->load(s->guest, s->file.device, s->file.commit.device_bytes, err);
	if (!r)
		r = ferry_fault_point("load", err);
	return r ? r : ferry_job_move(s->job, FERRY_STATE_COMMIT_WAIT, err);
}

/* From here on the guest is ours, and may run. */
static int restore_accept(struct restore *s, struct ferry_error *err)
{
	int r = ferry_job_commit(s->job, err);

	if (!r)
		r = ferry_job_phase(s->job, FERRY_PHASE_RUN_ACCEPTED, err);
	return r;
}

struct restore_stage {
	const char *name;
	int (*run)(struct restore *s, struct ferry_error *err);
};

static const struct restore_stage restore_stages[] = {
	{ "open", restore_open },   { "attach", restore_attach }, { "prepare", restore_prepare },
	{ "pages", restore_pages }, { "load", restore_load },	  { "accept", restore_accept },
};

static void restore_end_lazy(struct restore *s, bool disarm)
{
	if (s->is_lazy)
		ferry_lazy_end(&s->lazy, disarm);
	s->is_lazy = false;
}

/* The guest has not been started and will not be. */
static void restore_fail(struct restore *s, struct ferry_error *why, struct ferry_outcome *out)
{
	struct ferry_job *job = s->job;
	bool cancelled = ferry_job_cancelled(job);
	struct ferry_error err = { 0 };

	if (cancelled) {
		ferry_job_move(job, FERRY_STATE_CANCELLING, NULL);
		ferry_error_set(why, ECANCELED, "cancelled");
	}
	out->error = *why;
	out->state = cancelled ? FERRY_STATE_CANCELLED : FERRY_STATE_FAILED;
	out->where = FERRY_WHERE_NONE;
	out->exit_code = 1;
	snprintf(job->record.error, sizeof(job->record.error), "%s", why->text);
	if (ferry_job_phase(job, FERRY_PHASE_ABORTED, &err))
		ferry_log_warn("%s", err.text);
	/* A VMM that is ended does not wait for pages that nobody brings. */
	restore_end_lazy(s, true);
	if (s->guest && s->guest->ops->undo(s->guest, false, &err))
		ferry_log_warn("the VMM is not as it was: %s", err.text);
	/* A VMM that still waits does so with empty memory, as before. */
	if (s->touched && ferry_ram_punch(&s->ram, &err))
		ferry_log_warn("%s", err.text);
	ferry_job_move(job, out->state, NULL);
	job->record.settled = true;
	ferry_job_save(job, NULL);
}

/* It runs, with all its memory: all that is left is to leave its VMM alone. */
static void restore_own(struct restore *s, struct ferry_outcome *out)
{
	struct ferry_job *job = s->job;
	struct ferry_error err = { 0 };

	if (ferry_job_phase(job, FERRY_PHASE_RAN, &err))
		ferry_log_warn("%s", err.text);
	out->state = FERRY_STATE_COMPLETED;
	out->where = FERRY_WHERE_DESTINATION;
	out->exit_code = 0;
	ferry_job_move(job, FERRY_STATE_COMPLETED, NULL);
	if (!job->record.guest_paused)
		s->guest->ops->announce(s->guest);
	if (s->guest->ops->undo(s->guest, true, &err))
		ferry_log_warn("the guest runs, but its VMM is not as it was: %s", err.text);
	job->record.error[0] = 0;
	job->record.settled = true;
	ferry_job_save(job, NULL);
}

/* Accepted and not known to run: nobody can say that it did not. */
static void restore_stuck(struct restore *s, const struct ferry_error *why,
			  struct ferry_outcome *out)
{
	out->error = *why;
	out->state = FERRY_STATE_COMMIT_WAIT;
	out->where = FERRY_WHERE_UNKNOWN;
	out->exit_code = 3;
	snprintf(s->job->record.error, sizeof(s->job->record.error), "%s", why->text);
	snprintf(out->advice, sizeof(out->advice),
		 "its device state is loaded. To try again to start it:\n"
		 "  ferry recover %s\n"
		 "or end its VMM and restore into a new one", s->job->record.id);
	ferry_job_save(s->job, NULL);
}

/*
 * Some of its memory cannot be read. A VMM one of whose threads waits for a page cannot be
 * asked to stop its guest, and sooner or later one does: its process is stopped as a whole, and
 * keeps the userfaultfd, so that no thread ever goes on with zeros in the place of a page.
 */
static void restore_halt(struct restore *s, const struct ferry_error *why,
			 struct ferry_outcome *out)
{
	struct ferry_job *job = s->job;
	bool gone = job->record.vmm <= 0 || kill(job->record.vmm, SIGSTOP);

	restore_end_lazy(s, false);
	out->error = *why;
	out->state = FERRY_STATE_POSTCOPY_PAUSED;
	out->where = gone ? FERRY_WHERE_NONE : FERRY_WHERE_STOPPED;
	out->exit_code = 3;
	snprintf(job->record.error, sizeof(job->record.error), "%s", why->text);
	snprintf(out->advice, sizeof(out->advice),
		 "%llu MiB of the guest's memory are still in %s. %sWhen the file can be read again:\n"
		 "  ferry recover %s\n"
		 "If it never can be: end the VMM (kill -KILL %d), type 'ferry resume %s', and restore "
		 "another copy of the file",
		 (unsigned long long)(job->stats.missing_pages * FERRY_PAGE_SIZE >> 20),
		 ferry_file_path(&job->record), gone ? "" :
		 "Its VMM is stopped (SIGSTOP); do not continue it by other means. ",
		 job->record.id, (int)job->record.vmm, job->record.id);
	ferry_job_move(job, FERRY_STATE_POSTCOPY_PAUSED, NULL);
	ferry_job_save(job, NULL);
}

/* The guest runs and lacks pages: until they are here. Return: true when they are. */
static bool restore_follow(struct restore *s, struct ferry_outcome *out)
{
	struct ferry_job *job = s->job;
	struct ferry_error err = { 0 };

	if (ferry_job_phase(job, FERRY_PHASE_RAN_LACKS, &err)) {
		/* RUN-ACCEPTED stands; starting again is harmless. */
		ferry_log_warn("%s", err.text);
		job->record.phase = FERRY_PHASE_RAN_LACKS;
	}
	ferry_job_move(job, FERRY_STATE_POSTCOPY_ACTIVE, NULL);
	ferry_lazy_started(&s->lazy);
	if (ferry_lazy_wait(&s->lazy, &err)) {
		restore_halt(s, &err, out);
		return false;
	}
	pthread_mutex_lock(&job->lock);
	job->stats.verified = s->lazy.verify;
	pthread_mutex_unlock(&job->lock);
	restore_end_lazy(s, true);
	return true;
}

static void restore_start(struct restore *s, struct ferry_outcome *out)
{
	struct ferry_job *job = s->job;
	struct ferry_error err = { 0 };
	bool was_lazy = s->is_lazy;
	int r;

	ferry_fault_point("run-accepted", NULL);
	r = job->record.guest_paused ? 0 : s->guest->ops->run(s->guest, &err);
	ferry_fault_point("start", NULL);
	pthread_mutex_lock(&job->lock);
	job->stats.downtime_ns = ferry_clock_ns() - job->started_ns;
	pthread_mutex_unlock(&job->lock);
	if (r) {
		restore_end_lazy(s, false);
		restore_stuck(s, &err, out);
	} else if (!was_lazy || restore_follow(s, out)) {
		restore_own(s, out);
	}
}

static void restore_free(struct restore *s)
{
	ferry_job_interrupt(s->job, NULL, NULL);
	if (s->guest)
		s->guest->ops->close(s->guest);
	ferry_ram_free(&s->ram);
	if (s->opened)
		ferry_store_close(&s->file);
	ferry_job_took(s->job);
}

void ferry_restore_run(struct ferry_job *job, struct ferry_outcome *out)
{
	static struct restore s; /* large, and one a process */
	struct ferry_error err = { 0 };
	size_t i;
	int r;

	memset(out, 0, sizeof(*out));
	memset(&s, 0, sizeof(s));
	s.job = job;
	ferry_ram_init(&s.ram);
	ferry_job_interrupt(job, restore_interrupt, &s);
	pthread_mutex_lock(&job->lock);
	job->stats.mode = job->options.lazy ? FERRY_MODE_RESTORE_LAZY : FERRY_MODE_RESTORE;
	pthread_mutex_unlock(&job->lock);
	r = ferry_job_move(job, FERRY_STATE_SETUP, &err);
	for (i = 0; i < sizeof(restore_stages) / sizeof(restore_stages[0]) && !r; i++) {
		ferry_log_debug("restore: %s", restore_stages[i].name);
		r = restore_stages[i].run(&s, &err);
		if (!r && job->record.phase == FERRY_PHASE_OPEN && ferry_job_cancelled(job))
			r = ferry_error_set(&err, ECANCELED, "cancelled");
	}
	if (r)
		restore_fail(&s, &err, out);
	else
		restore_start(&s, out);
	restore_free(&s);
}

/* ---- a worker that takes over ---- */

static void recover_begins(struct ferry_job *job, enum ferry_state state)
{
	__atomic_store_n(&job->state, state, __ATOMIC_RELEASE);
	job->record.state = state;
	pthread_mutex_lock(&job->lock);
	job->committed = true;
	job->stats = job->record.stats;
	job->stats.normal_pages = job->stats.sent_bytes = 0;
	pthread_mutex_unlock(&job->lock);
	if (job->hooks->state)
		job->hooks->state(job->hooks->ctx, state);
}

/* What is armed is served again; a VMM that was stopped as a whole can answer then. */
static int recover_lazy(struct restore *s, struct ferry_error *err)
{
	int r = ferry_store_open(&s->file, ferry_file_path(&s->job->record), err);

	if (r)
		return r;
	s->opened = true;
	if (memcmp(s->file.header.uuid, s->job->record.uuid, sizeof(s->job->record.uuid)))
		return ferry_error_set(err, EINVAL, "%s is another file than the one the guest was "
				       "started from", s->file.path);
	ferry_lazy_init(&s->lazy, s->job, &s->file);
	s->is_lazy = true;
	r = ferry_lazy_adopt(&s->lazy, &s->ram, err);
	if (!r && s->job->record.vmm > 0)
		kill(s->job->record.vmm, SIGCONT);
	return r;
}

/* It was started once, and goes on as what it touches comes. */
static void recover_running(struct restore *s, struct ferry_outcome *out)
{
	struct ferry_error err = { 0 };
	int r = recover_lazy(s, &err);

	if (r) {
		restore_halt(s, &err, out);
		return;
	}
	ferry_job_move(s->job, FERRY_STATE_POSTCOPY_RECOVER_SETUP, NULL);
	ferry_job_move(s->job, FERRY_STATE_POSTCOPY_RECOVER, NULL);
	if (!restore_follow(s, out))
		return;
	r = ferry_open_guest(s->job, FERRY_GUEST_DESTINATION, &s->guest, &err);
	if (r)
		restore_stuck(s, &err, out);
	else
		restore_own(s, out);
}

/* Accepted: it runs, or can be started. */
static void recover_accepted(struct restore *s, struct ferry_outcome *out)
{
	struct ferry_error err = { 0 };
	int r = s->job->record.postcopy ? recover_lazy(s, &err) : 0;

	if (!r)
		r = ferry_open_guest(s->job, FERRY_GUEST_DESTINATION, &s->guest, &err);
	if (r) {
		restore_end_lazy(s, false);
		restore_stuck(s, &err, out);
	} else {
		restore_start(s, out);
	}
}

void ferry_restore_recover(struct ferry_job *job, struct ferry_outcome *out)
{
	static struct restore s; /* large, and one a process */
	struct ferry_error err = { 0 };

	memset(out, 0, sizeof(*out));
	memset(&s, 0, sizeof(s));
	s.job = job;
	ferry_ram_init(&s.ram);
	recover_begins(job, job->record.phase == FERRY_PHASE_RAN_LACKS ? FERRY_STATE_POSTCOPY_PAUSED :
								       FERRY_STATE_COMMIT_WAIT);
	switch (job->record.phase) {
	case FERRY_PHASE_RAN_LACKS:
		recover_running(&s, out);
		break;
	case FERRY_PHASE_RUN_ACCEPTED:
		recover_accepted(&s, out);
		break;
	case FERRY_PHASE_RAN:
		if (ferry_open_guest(job, FERRY_GUEST_DESTINATION, &s.guest, &err))
			restore_stuck(&s, &err, out);
		else
			restore_own(&s, out);
		break;
	default:
		ferry_open_guest(job, FERRY_GUEST_DESTINATION, &s.guest, NULL);
		ferry_error_set(&err, ECANCELED, "%s", job->record.error[0] ? job->record.error :
				"its processes died before the guest was restored");
		restore_fail(&s, &err, out);
	}
	restore_free(&s);
}
