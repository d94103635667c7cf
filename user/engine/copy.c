// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * RAM copying at the source.
 *
 * A round is: collect() the pages written since the last look, queue them on
 * the carrier (channels to a destination, copy_channels.c, or a file, save.c), and its
 * barrier. The bulk round, before the first collect(), takes what holds data.
 *
 * Three rules make "collected" mean "nothing is lost" (Documentation/trackers.rst
 * tells them at length):
 *
 * - Pinned DMA. A tracker that works by page tables marks a page when it is
 *   pinned, not when the DMA lands. While direct I/O is possible each collected
 *   page stays suspect and is compared with what was sent, once the guest has
 *   been stopped for good (or, when there are too many, after a short stop that
 *   drains all requests). Requests in flight when tracking starts are drained by
 *   one such stop before the bulk round. With --dma-barrier each scan is made
 *   between stop and cont instead.
 * - Holes. A page punched while clean is not reported. After the final stop every
 *   page ever sent as data that is a hole now is sent as zero. Holes are looked for
 *   before each scan, so that the guest need not stand still for it.
 * - A tracker whose get-and-clear is not atomic (soft-dirty) is only asked while
 *   the guest is stopped.
 */
#include "engine/copy.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/io.h"
#include "base/log.h"
#include "ram/hash.h"
#include "ram/sparse.h"

/* Queue so many pages at a time: progress and cancel are looked at in between. */
#define COPY_CHUNK_PAGES 4096

/* The rate shown as progress is measured over at least this long. */
#define COPY_SAMPLE_NS (100 * FERRY_NS_PER_MS)

/* Assumed for saving and loading device state, until it has been done. */
#define COPY_DEVICE_NS (20 * FERRY_NS_PER_MS)

/* Hash speed assumed for --verify, which happens while the guest is stopped. */
#define COPY_VERIFY_BYTES_PER_S (4ull << 30)

/*
 * Settle the suspects early when checking them would eat this share of the
 * downtime limit; a page takes about a microsecond to hash.
 */
#define COPY_SUSPECT_SHARE 4
#define COPY_SUSPECT_PAGE_NS 1000

/* A test asks for one of the rules to be left out, to show that it is needed. */
static bool copy_rule_off(const char *name)
{
	const char *value = getenv(name);

	return value && *value == '1';
}

int ferry_copy_init(struct ferry_copy *copy, struct ferry_job *job, struct ferry_guest *guest,
		    struct ferry_ram *ram, struct ferry_error *err)
{
	int r;

	memset(copy, 0, sizeof(*copy));
	copy->job = job;
	copy->guest = guest;
	copy->ram = ram;
	copy->uffd = -1;
	copy->round = 1; /* the multifd pools count from 1; 0 means none done yet */
	pthread_mutex_lock(&job->lock);
	ferry_rate_set(&job->rate, job->options.max_bandwidth);
	pthread_mutex_unlock(&job->lock);
	ferry_converge_init(&copy->converge);
	r = ferry_bitmap_init(&copy->pending, ram);
	if (!r)
		r = ferry_bitmap_init(&copy->sent, ram);
	if (!r)
		r = ferry_bitmap_init(&copy->last, ram);
	if (!r)
		r = ferry_bitmap_init(&copy->punched, ram);
	if (!r)
		r = ferry_holes_init(&copy->holes, ram);
	if (r)
		ferry_error_set(err, -r, "no memory for the page bitmaps");
	return r;
}

void ferry_copy_page_sent(struct ferry_copy *copy, unsigned int block, uint64_t page,
			  const void *bytes)
{
	static const uint8_t zeros[FERRY_PAGE_SIZE];

	ferry_suspect_sent(copy->suspect, block, page, ferry_hash_page(bytes ? bytes : zeros));
}

static void copy_target(struct ferry_copy *copy, struct ferry_dirty_target *target)
{
	*target = (struct ferry_dirty_target){
		.pid = copy->guest->pid,
		.ram = copy->ram,
		.uffd = copy->uffd,
	};
	if (copy->guest->ops->log) {
		copy->guest->ops->log(copy->guest, &copy->log);
		target->log = &copy->log;
	}
	if (!copy->guest->ops->views)
		return;
	copy->guest->ops->views(copy->guest, &copy->views);
	target->views = &copy->views;
}

int ferry_copy_choose(struct ferry_copy *copy, struct ferry_error *err)
{
	struct ferry_job *job = copy->job;
	struct ferry_dirty_target target;
	int r;

	copy_target(copy, &target);
	r = ferry_dirty_choose(job->options.tracker, &target, &copy->tracker, err);
	if (!r && copy->guest->ops->check_views &&
	    (!copy->tracker || !copy->tracker->sees_other_processes))
		r = copy->guest->ops->check_views(copy->guest, err);
	if (r)
		return r;
	pthread_mutex_lock(&job->lock);
	snprintf(job->stats.tracker, sizeof(job->stats.tracker), "%s",
		 copy->tracker ? copy->tracker->name : "none");
	pthread_mutex_unlock(&job->lock);
	return 0;
}

/* A short stop in which all requests of the guest's disks are drained. */
static int copy_barrier(struct ferry_copy *copy, int (*inside)(struct ferry_copy *,
							       struct ferry_error *),
			struct ferry_error *err)
{
	const struct ferry_guest_ops *ops = copy->guest->ops;
	int r, back;

	r = ops->pause(copy->guest, err);
	if (r)
		return r;
	if (inside)
		r = inside(copy, err);
	back = ops->resume(copy->guest, r ? NULL : err);
	return r ? r : back;
}

/* Can DMA pass the tracker by? From the first yes on, the rule for it is in force. */
static int copy_check_dma(struct ferry_copy *copy, bool *started, struct ferry_error *err)
{
	char why[256];
	int r;

	*started = false;
	if (!copy->tracker || copy->dirty->sees_pinned_dma || copy->suspect || copy->barriers ||
	    copy_rule_off("FERRY_TEST_NO_SUSPECTS"))
		return 0;
	r = copy->guest->ops->direct_io(copy->guest, why, sizeof(why), err);
	if (r <= 0)
		return r;
	*started = true;
	if (copy->job->options.dma_barrier || copy->tracker->needs_barrier) {
		copy->barriers = true;
		ferry_log_debug("direct I/O (%s): a barrier at each scan", why);
		return 0;
	}
	ferry_log_debug("direct I/O (%s): collected pages stay suspect", why);
	r = ferry_suspect_create(copy->ram, &copy->suspect);
	if (r)
		return ferry_error_set(err, -r, "no memory for the set of suspect pages");
	copy->carrier->watch(copy->carrier_ctx, true);
	return 0;
}

int ferry_copy_track(struct ferry_copy *copy, struct ferry_error *err)
{
	struct ferry_dirty_target target;
	bool dma;
	int r;

	if (!copy->tracker)
		return 0;
	if (copy->tracker->needs_uffd) {
		r = copy->guest->ops->userfaultfd(copy->guest, &copy->uffd, err);
		if (r)
			return r;
	}
	copy_target(copy, &target);
	r = copy->tracker->start(&target, &copy->dirty, err);
	if (r)
		return r;
	r = copy_check_dma(copy, &dma, err);
	if (r)
		return r;
	/* What was pinned before the pages were protected lands now, before they are read. */
	return dma ? copy_barrier(copy, NULL, err) : 0;
}

static void copy_progress(struct ferry_copy *copy, uint64_t round_pages, uint64_t queued)
{
	struct ferry_carrier_stats now;
	struct ferry_job *job = copy->job;
	uint64_t waiting = copy->carrier->pending(copy->carrier_ctx), now_ns = ferry_clock_ns();
	bool sample = now_ns - copy->sampled_ns >= COPY_SAMPLE_NS;
	uint64_t pages;

	copy->carrier->stats(copy->carrier_ctx, &now);
	pages = now.normal_pages + now.zero_pages;
	pthread_mutex_lock(&job->lock);
	if (sample && copy->sampled_ns) {
		double per_s = 1e9 / (double)(now_ns - copy->sampled_ns);

		job->progress.bytes_per_s =
			(uint64_t)((double)(now.sent_bytes - copy->sampled_bytes) * per_s);
		job->progress.pages_per_s =
			(uint64_t)((double)(pages - copy->sampled_pages) * per_s);
	}
	job->stats.sent_bytes = now.sent_bytes;
	job->stats.normal_pages = now.normal_pages;
	job->stats.zero_pages = now.zero_pages;
	job->progress.round = copy->round;
	job->progress.sent_bytes = now.sent_bytes;
	job->progress.round_pages = round_pages;
	job->progress.round_done_pages = queued > waiting ? queued - waiting : 0;
	pthread_mutex_unlock(&job->lock);
	if (sample) {
		copy->sampled_ns = now_ns;
		copy->sampled_bytes = now.sent_bytes;
		copy->sampled_pages = pages;
	}
}

/* Queue one run in pieces, so that progress moves and a cancel is seen. */
static int copy_queue(struct ferry_copy *copy, unsigned int block, uint64_t first, uint64_t pages,
		      uint64_t round_pages, uint64_t *queued, struct ferry_error *err)
{
	while (pages) {
		uint64_t n = pages < COPY_CHUNK_PAGES ? pages : COPY_CHUNK_PAGES;
		int r = copy->carrier->queue(copy->carrier_ctx, block, first, n, false, err);

		if (r)
			return r;
		ferry_bitmap_set(&copy->sent, block, first, n);
		*queued += n;
		first += n;
		pages -= n;
		copy_progress(copy, round_pages, *queued);
		if (ferry_job_cancelled(copy->job))
			return ferry_error_set(err, ECANCELED, "cancelled");
	}
	return 0;
}

/* Everything of all blocks that holds data; @queued counts pages, those of holes too. */
static int copy_queue_data(struct ferry_copy *copy, uint64_t *queued, struct ferry_error *err)
{
	uint64_t total = ferry_ram_pages(copy->ram);
	unsigned int i;

	for (i = 0; i < copy->ram->count; i++) {
		const struct ferry_ram_block *b = &copy->ram->blocks[i];
		uint64_t end = ferry_ram_block_pages(b), page = 0, pages;
		uint64_t before = *queued;
		int r;

		while ((r = ferry_sparse_next(b, &page, &pages, end)) > 0) {
			*queued = before + page;
			r = copy_queue(copy, i, page, pages, total, queued, err);
			if (r)
				return r;
			page += pages;
		}
		*queued = before + end;
		if (r)
			return ferry_error_set(err, -r, "cannot look for holes in block %s: %s",
					       b->name, strerror(-r));
	}
	return 0;
}

static int copy_queue_pending(struct ferry_copy *copy, struct ferry_error *err)
{
	uint64_t total = ferry_bitmap_count(&copy->pending), queued = 0;
	struct ferry_bitmap_run run = { 0 };

	while (ferry_bitmap_next_run(&copy->pending, &run, 0)) {
		int r = copy_queue(copy, run.block, run.first_page, run.pages, total, &queued, err);

		if (r)
			return r;
	}
	ferry_bitmap_zero(&copy->pending);
	return 0;
}

int ferry_copy_flush(struct ferry_copy *copy, struct ferry_error *err)
{
	int r = copy->carrier->barrier(copy->carrier_ctx, copy->round, err);

	copy->round++;
	return r;
}

/*
 * End a round: barrier, and what it tells about the speed. What counts is how fast memory goes,
 * since what is pending is memory; compressed, it is less on the wire.
 */
static int copy_end_round(struct ferry_copy *copy, const struct ferry_carrier_stats *before,
			  uint64_t began_ns, struct ferry_error *err)
{
	uint64_t total = copy->job->progress.round_pages, bytes;
	struct ferry_carrier_stats now;
	int r;

	/* The ring takes any length of a run: most of a round may be still to be sent. */
	do {
		copy_progress(copy, total, total);
		r = copy->carrier->drain(copy->carrier_ctx, ferry_clock_ns() + COPY_SAMPLE_NS, err);
	} while (r == -ETIMEDOUT);
	if (!r)
		r = ferry_copy_flush(copy, err);
	if (r)
		return r;
	/* Now, while the destination has nothing to do. A lost link is noticed at the next FLUSH. */
	if (copy->link)
		ferry_link_ping(copy->link);
	copy->carrier->stats(copy->carrier_ctx, &now);
	bytes = (now.normal_pages - before->normal_pages) * FERRY_PAGE_SIZE;
	ferry_converge_sent(&copy->converge, bytes, ferry_clock_ns() - began_ns);
	if (bytes)
		copy->wire_share = (double)(now.sent_bytes - before->sent_bytes) / (double)bytes;
	pthread_mutex_lock(&copy->job->lock);
	copy->job->stats.rounds = copy->round - 1;
	pthread_mutex_unlock(&copy->job->lock);
	return 0;
}

int ferry_copy_bulk(struct ferry_copy *copy, struct ferry_error *err)
{
	uint64_t began_ns = ferry_clock_ns(), queued = 0;
	struct ferry_carrier_stats before;
	int r;

	copy->carrier->stats(copy->carrier_ctx, &before);
	r = copy_queue_data(copy, &queued, err);
	return r ? r : copy_end_round(copy, &before, began_ns, err);
}

int ferry_copy_round(struct ferry_copy *copy, struct ferry_error *err)
{
	struct ferry_carrier_stats before;
	uint64_t began_ns = ferry_clock_ns();
	int r;

	copy->carrier->stats(copy->carrier_ctx, &before);
	r = copy_queue_pending(copy, err);
	return r ? r : copy_end_round(copy, &before, began_ns, err);
}

static int copy_collect_now(struct ferry_copy *copy, struct ferry_error *err)
{
	int r = copy->dirty->ops->collect(copy->dirty, &copy->pending, err);

	if (!r && copy->collected)
		copy->collected(copy->collected_ctx);
	return r;
}

/* No DMA is in flight: suspects that differ from what was sent become pending. */
static int copy_settle(struct ferry_copy *copy, struct ferry_error *err)
{
	struct ferry_job *job = copy->job;
	uint64_t checked, found;
	int r = ferry_suspect_settle(copy->suspect, &copy->pending, &checked, &found);

	if (r)
		return ferry_error_set(err, -r, "cannot compare suspect pages: %s", strerror(-r));
	ferry_log_debug("%llu suspect pages checked, %llu recopied", (unsigned long long)checked,
			(unsigned long long)found);
	pthread_mutex_lock(&job->lock);
	if (checked > job->stats.suspect_pages)
		job->stats.suspect_pages = checked;
	job->stats.suspect_copied += found;
	pthread_mutex_unlock(&job->lock);
	return 0;
}

static bool copy_too_many_suspects(struct ferry_copy *copy)
{
	uint64_t limit_ns;

	pthread_mutex_lock(&copy->job->lock);
	limit_ns = copy->job->options.downtime_limit_ms * FERRY_NS_PER_MS;
	pthread_mutex_unlock(&copy->job->lock);
	return ferry_suspect_pages(copy->suspect) * COPY_SUSPECT_PAGE_NS >
	       limit_ns / COPY_SUSPECT_SHARE;
}

static void copy_dirty_rate(struct ferry_copy *copy)
{
	uint64_t now_ns = ferry_clock_ns();
	double pages = (double)ferry_bitmap_count(&copy->pending);

	if (copy->collected_ns && now_ns > copy->collected_ns) {
		pthread_mutex_lock(&copy->job->lock);
		copy->job->progress.dirty_bytes_per_s = (uint64_t)(
			pages * FERRY_PAGE_SIZE * 1e9 / (double)(now_ns - copy->collected_ns));
		pthread_mutex_unlock(&copy->job->lock);
	}
	copy->collected_ns = now_ns;
}

int ferry_copy_collect(struct ferry_copy *copy, struct ferry_error *err)
{
	bool dma;
	int r;

	if (!copy->tracker)
		return 0;
	r = ferry_holes_look(&copy->holes, err);
	if (r)
		return r;
	/* Here they get their memory: none is to be faulted in while the guest stands still. */
	ferry_bitmap_wipe(&copy->last);
	ferry_bitmap_wipe(&copy->punched);
	/* The suspects of earlier rounds were all sent: a barrier makes them comparable. */
	if (copy->suspect && copy_too_many_suspects(copy)) {
		r = copy_barrier(copy, NULL, err);
		if (!r)
			r = copy_settle(copy, err);
		if (r)
			return r;
	}
	if (copy->barriers || copy->tracker->needs_barrier)
		r = copy_barrier(copy, copy_collect_now, err);
	else
		r = copy_collect_now(copy, err);
	if (r)
		return r;
	/*
	 * Asked after the scan: a page pinned before it, by a disk that came since the last
	 * look, is among those collected now.
	 */
	r = copy_check_dma(copy, &dma, err);
	if (!r && dma && copy->barriers)
		r = copy_barrier(copy, NULL, err);
	if (r)
		return r;
	if (copy->suspect)
		ferry_suspect_add(copy->suspect, &copy->pending);
	copy_dirty_rate(copy);
	return 0;
}

struct ferry_converge_verdict ferry_copy_decide(struct ferry_copy *copy)
{
	struct ferry_job *job = copy->job;
	struct ferry_converge_verdict verdict;
	struct ferry_converge_input in = {
		.pending_bytes = ferry_bitmap_count(&copy->pending) * FERRY_PAGE_SIZE,
		.overhead_ns = COPY_DEVICE_NS + 3 * copy->carrier->rtt_ns(copy->carrier_ctx),
	};
	uint64_t verify_ns = 0;

	if (copy->suspect)
		in.suspect_bytes = ferry_suspect_pages(copy->suspect) * FERRY_PAGE_SIZE;
	if (job->options.verify)
		verify_ns = ferry_bitmap_count(&copy->sent) * FERRY_PAGE_SIZE *
			    (FERRY_NS_PER_S / FERRY_NS_PER_MS) /
			    (COPY_VERIFY_BYTES_PER_S / FERRY_NS_PER_MS);
	in.overhead_ns += verify_ns;
	pthread_mutex_lock(&job->lock);
	in.downtime_limit_ns = job->options.downtime_limit_ms * FERRY_NS_PER_MS;
	in.max_bytes_per_s = job->options.max_bandwidth;
	if (copy->wire_share > 0)
		in.max_bytes_per_s = (uint64_t)((double)in.max_bytes_per_s / copy->wire_share);
	/* Asked for by name, so its cost must not keep the guest from ever moving. */
	in.downtime_limit_ns += verify_ns;
	verdict = ferry_converge_decide(&copy->converge, &in);
	job->progress.expected_downtime_ns = verdict.expected_downtime_ns;
	job->progress.stalled = verdict.stalled;
	pthread_mutex_unlock(&job->lock);
	return verdict;
}

/*
 * Pages the destination has bytes for and that are holes here: balloon, discard. Not those in
 * @queued: they go out in this very round, and a page may come only once in a round.
 */
static int copy_queue_holes(struct ferry_copy *copy, const struct ferry_bitmap *queued,
			    struct ferry_error *err)
{
	struct ferry_bitmap *holes = &copy->punched;
	struct ferry_bitmap_run run = { 0 };
	int r;

	if (copy_rule_off("FERRY_TEST_NO_HOLES"))
		return 0;
	ferry_bitmap_wipe(holes);
	ferry_bitmap_or(holes, &copy->sent);
	ferry_bitmap_andnot(holes, queued);
	r = ferry_holes_find(&copy->holes, holes, err);
	while (!r && ferry_bitmap_next_run(holes, &run, 0))
		r = copy->carrier->queue(copy->carrier_ctx, run.block, run.first_page, run.pages,
					 true, err);
	return r;
}

int ferry_copy_last_look(struct ferry_copy *copy, struct ferry_error *err)
{
	int r;

	if (!copy->tracker)
		return 0;
	r = copy_collect_now(copy, err);
	if (!r && copy->suspect)
		r = copy_settle(copy, err);
	return r;
}

int ferry_copy_final(struct ferry_copy *copy, struct ferry_error *err)
{
	uint64_t pages = 0;
	int r;

	if (!copy->tracker)
		return copy_queue_data(copy, &pages, err);
	r = ferry_copy_last_look(copy, err);
	if (r)
		return r;
	ferry_bitmap_wipe(&copy->last);
	ferry_bitmap_or(&copy->last, &copy->pending);
	r = copy_queue_pending(copy, err);
	return r ? r : copy_queue_holes(copy, &copy->last, err);
}

void ferry_copy_cut(struct ferry_copy *copy)
{
	if (copy->pool) {
		copy_progress(copy, 0, 0);
		ferry_multifd_send_abort(copy->pool);
	}
}

void ferry_copy_hang_up(struct ferry_copy *copy)
{
	if (copy->pool) {
		copy_progress(copy, 0, 0);
		ferry_multifd_send_free(copy->pool);
		copy->pool = NULL;
	}
}

void ferry_copy_close(struct ferry_copy *copy)
{
	ferry_copy_hang_up(copy);
	if (copy->dirty)
		copy->dirty->ops->stop(copy->dirty);
	copy->dirty = NULL;
	ferry_io_close(&copy->uffd);
	ferry_suspect_free(copy->suspect);
	copy->suspect = NULL;
	ferry_bitmap_free(&copy->pending);
	ferry_bitmap_free(&copy->sent);
	ferry_bitmap_free(&copy->last);
	ferry_bitmap_free(&copy->punched);
	ferry_holes_free(&copy->holes);
}
