// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The readers of a lazy restore.
 *
 * What a postcopy destination does with a source (incoming.c: arm, hear faults, show pages,
 * hand over to another worker) is done here with a file. A few readers share one plan of what to
 * read next (store/plan.h). What nobody waits for they read only once the guest runs: until then
 * every read would delay its start.
 *
 * A reader that fails ends them all. Before the guest is ours that voids the restore: memory
 * is disarmed, so that the VMM comes back from loading. Afterwards it stays armed: whoever
 * touches what is missing waits, and nobody reads zeros in its place.
 */
#include "engine/lazy.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/io.h"
#include "base/log.h"
#include "engine/fault_points.h"
#include "engine/restore.h"

/* The numbers that status shows are this fresh. */
#define LAZY_TICK_NS (200 * FERRY_NS_PER_MS)

/* Few: what the guest waits for is behind them in the disk's queue. */
#define LAZY_AHEAD 2

static void wake(struct ferry_lazy *lazy)
{
	uint64_t one = 1;

	if (write(lazy->wake_fd, &one, sizeof(one)) < 0)
		ferry_log_debug("nobody to wake");
}

/* The fault thread: somebody waits for these pages, one or those of a huge one. */
static void ask(void *ctx, unsigned int block, uint64_t first, uint64_t pages)
{
	struct ferry_lazy *lazy = ctx;
	uint64_t page = first;

	pthread_mutex_lock(&lazy->lock);
	ferry_log_debug("restore: page %llu of block %u is waited for", (unsigned long long)page,
			block);
	do {
		ferry_store_plan_ask(&lazy->plan, block, page);
		page += FERRY_STORE_EXTENT_PAGES - page % FERRY_STORE_EXTENT_PAGES;
	} while (page < first + pages);
	pthread_cond_signal(&lazy->changed);
	pthread_mutex_unlock(&lazy->lock);
}

/* The next extent to read. Return: false when there is nothing left, or all must end. */
static bool next(struct ferry_lazy *lazy, struct ferry_store_place *place)
{
	bool found = false;

	pthread_mutex_lock(&lazy->lock);
	while (!found && !lazy->stop && !lazy->err.errnum) {
		found = ferry_store_plan_next(&lazy->plan, lazy->prefetch, place);
		if (found || lazy->prefetch)
			break; /* without one, all of it is somebody's */
		pthread_cond_wait(&lazy->changed, &lazy->lock);
	}
	/* The order of these lines is the order of what is decided: both are under the lock. */
	if (found)
		ferry_log_debug("restore: MiB %llu of block %u is read",
				(unsigned long long)place->extent, place->block);
	pthread_mutex_unlock(&lazy->lock);
	return found;
}

/* ---- a reader ---- */

/* Pages of a run that are missing still, into guest memory and before its eyes. */
static int show_run(struct ferry_lazy *lazy, unsigned int block, uint64_t extent,
		    unsigned int first, unsigned int pages, const uint8_t *buf,
		    struct ferry_error *err)
{
	const struct ferry_multifd_sink *sink = &lazy->incoming.sink;
	uint64_t base = extent * FERRY_STORE_EXTENT_PAGES;
	unsigned int end = first + pages;
	int r = 0;

	while (first < end && !r) {
		unsigned int n = (unsigned int)sink->claim(sink->ctx, block, base + first, end - first);

		if (!n) {
			first += (unsigned int)sink->skip(sink->ctx, block, base + first, end - first);
			continue;
		}
		r = ferry_restore_put(lazy->ram, block, extent, first, n, buf, err);
		if (!r)
			r = sink->placed(sink->ctx, block, base + first, n, false);
		if (r == -ESRCH)
			ferry_error_set(err, ESRCH, "the VMM has ended");
		else if (r && err && !err->text[0])
			ferry_error_set(err, -r, "pages cannot be shown to the guest: %s",
					strerror(-r));
		first += n;
	}
	return r;
}

static int bring(struct ferry_lazy *lazy, unsigned int block, uint64_t extent, uint8_t *buf,
		 struct ferry_error *err)
{
	unsigned int first = 0, pages;
	struct ferry_store_set set;
	bool runs;
	int r;

	pthread_mutex_lock(&lazy->lock);
	runs = lazy->prefetch;
	pthread_mutex_unlock(&lazy->lock);
	if (runs)
		ferry_store_ahead(lazy->file, block, extent + LAZY_AHEAD);
	r = ferry_store_read(lazy->file, block, extent, lazy->verify, buf, err);
	if (!r && runs && ferry_fault_point("lazy-read", NULL))
		r = ferry_error_set(err, EIO, "reading %s: %s", lazy->file->path, strerror(EIO));
	if (!r && ferry_fault_point("file-read", NULL))
		r = ferry_error_set(err, EIO, "reading %s: %s", lazy->file->path, strerror(EIO));
	ferry_store_pages(lazy->file, block, extent, &set);
	for (; !r && (pages = ferry_store_set_run(&set, &first)); first += pages)
		r = show_run(lazy, block, extent, first, pages, buf, err);
	if (r)
		return r;
	pages = ferry_store_set_count(&set);
	pthread_mutex_lock(&lazy->job->lock);
	lazy->job->stats.normal_pages += pages;
	lazy->job->stats.sent_bytes += (uint64_t)pages * FERRY_PAGE_SIZE;
	lazy->job->progress.sent_bytes = lazy->job->stats.sent_bytes;
	lazy->job->progress.round_done_pages += pages;
	pthread_mutex_unlock(&lazy->job->lock);
	return 0;
}

static void failed(struct ferry_lazy *lazy, const struct ferry_error *err)
{
	bool loading;

	pthread_mutex_lock(&lazy->lock);
	if (!lazy->err.errnum)
		lazy->err = *err;
	loading = lazy->loading;
	pthread_cond_broadcast(&lazy->changed);
	pthread_mutex_unlock(&lazy->lock);
	if (loading)
		ferry_incoming_void(&lazy->incoming);
	wake(lazy);
}

static void *read_extents(void *arg)
{
	struct ferry_error err = { 0 };
	struct ferry_lazy *lazy = arg;
	struct ferry_store_place place;
	uint8_t *buf = aligned_alloc(FERRY_STORE_PAGE_BYTES, FERRY_STORE_EXTENT_BYTES);

	if (!buf)
		ferry_error_set(&err, ENOMEM, "no memory to read %s", lazy->file->path);
	while (!err.errnum && next(lazy, &place))
		if (bring(lazy, place.block, place.extent, buf, &err) && !err.errnum)
			err.errnum = EIO;
	if (err.errnum)
		failed(lazy, &err);
	free(buf);
	return NULL;
}

static int start_readers(struct ferry_lazy *lazy, struct ferry_error *err)
{
	unsigned int n = lazy->job->options.channels;

	if (!n || n > FERRY_LAZY_READERS)
		n = 2;
	while (lazy->started < n) {
		int r = pthread_create(&lazy->readers[lazy->started], NULL, read_extents, lazy);

		if (r && !lazy->started)
			return ferry_error_set(err, r, "cannot start a thread: %s", strerror(r));
		if (r)
			break;
		lazy->started++;
	}
	return 0;
}

/* ---- life ---- */

void ferry_lazy_init(struct ferry_lazy *lazy, struct ferry_job *job, struct ferry_store_file *file)
{
	memset(lazy, 0, sizeof(*lazy));
	lazy->job = job;
	lazy->file = file;
	lazy->verify = !job->options.no_verify;
	lazy->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	pthread_mutex_init(&lazy->lock, NULL);
	pthread_cond_init(&lazy->changed, NULL);
	ferry_incoming_init(&lazy->incoming, job, lazy->wake_fd);
	lazy->incoming.ask = ask;
	lazy->incoming.ask_ctx = lazy;
}

int ferry_lazy_advise(struct ferry_lazy *lazy, struct ferry_guest *guest,
		      const struct ferry_ram *ram, struct ferry_error *err)
{
	const struct ferry_wire_config config = { 0 };
	int r = ferry_incoming_advise(&lazy->incoming, guest, ram, &config, err);

	lazy->ram = ram;
	if (r)
		ferry_error_prefix(err, "restore --lazy (leave --lazy out, or)");
	return r;
}

static void find_lacks(const struct ferry_lazy *lazy, struct ferry_bitmap *lacks)
{
	unsigned int i, first, pages;
	uint64_t k;

	for (i = 0; i < lazy->file->header.blocks; i++) {
		for (k = 0; k < ferry_store_extents(lazy->file->blocks[i].size_bytes); k++) {
			struct ferry_store_set set;

			ferry_store_pages(lazy->file, i, k, &set);
			for (first = 0; (pages = ferry_store_set_run(&set, &first)); first += pages)
				ferry_bitmap_set(lacks, i, k * FERRY_STORE_EXTENT_PAGES + first, pages);
		}
	}
}

int ferry_lazy_arm(struct ferry_lazy *lazy, struct ferry_error *err)
{
	struct ferry_bitmap lacks;
	int r = ferry_store_plan_init(&lazy->plan, lazy->file, err);

	if (r)
		return r;
	if (ferry_bitmap_init(&lacks, lazy->ram))
		return ferry_error_set(err, ENOMEM, "no memory for the map of missing pages");
	find_lacks(lazy, &lacks);
	r = ferry_incoming_listen_file(&lazy->incoming, &lacks, err);
	ferry_bitmap_free(&lacks);
	return r ? r : start_readers(lazy, err);
}

int ferry_lazy_adopt(struct ferry_lazy *lazy, struct ferry_ram *ram, struct ferry_error *err)
{
	/* Faults are heard, and asked for, before adopt() returns: the list must be there. */
	int r = ferry_store_plan_init(&lazy->plan, lazy->file, err);

	lazy->ram = ram;
	lazy->prefetch = true;
	if (!r)
		r = ferry_incoming_adopt(&lazy->incoming, ram, err);
	return r ? r : start_readers(lazy, err);
}

int ferry_lazy_load(struct ferry_lazy *lazy, struct ferry_guest *guest, struct ferry_error *err)
{
	struct ferry_error lost = { 0 };
	int r, ended;

	ferry_incoming_load_begins(&lazy->incoming);
	pthread_mutex_lock(&lazy->lock);
	lazy->loading = true;
	r = -lazy->err.errnum;
	pthread_mutex_unlock(&lazy->lock);
	if (r)
		ferry_incoming_void(&lazy->incoming);
	r = guest->ops->load(guest, lazy->file->device, lazy->file->commit.device_bytes, err);
	pthread_mutex_lock(&lazy->lock);
	lazy->loading = false;
	pthread_mutex_unlock(&lazy->lock);
	ended = ferry_incoming_load_ends(&lazy->incoming, &lost);
	if (!ended)
		return r;
	*err = lazy->err;
	return -lazy->err.errnum;
}

void ferry_lazy_started(struct ferry_lazy *lazy)
{
	pthread_mutex_lock(&lazy->lock);
	lazy->prefetch = true;
	pthread_cond_broadcast(&lazy->changed);
	pthread_mutex_unlock(&lazy->lock);
	/* The network is told at the end: a monitor that waits for a page would be waited for. */
	ferry_incoming_started(&lazy->incoming, false);
}

int ferry_lazy_wait(struct ferry_lazy *lazy, struct ferry_error *err)
{
	int r = 0;

	while (!r && ferry_incoming_missing(&lazy->incoming)) {
		struct pollfd p = { .fd = lazy->wake_fd, .events = POLLIN };
		uint64_t times;

		if (poll(&p, 1, (int)(LAZY_TICK_NS / FERRY_NS_PER_MS)) > 0 &&
		    read(lazy->wake_fd, &times, sizeof(times)) < 0)
			ferry_log_debug("woken up for nothing");
		ferry_incoming_stats(&lazy->incoming);
		pthread_mutex_lock(&lazy->lock);
		r = -lazy->err.errnum;
		if (r)
			*err = lazy->err;
		pthread_mutex_unlock(&lazy->lock);
	}
	return r;
}

void ferry_lazy_end(struct ferry_lazy *lazy, bool disarm)
{
	unsigned int i;

	pthread_mutex_lock(&lazy->lock);
	lazy->stop = true;
	pthread_cond_broadcast(&lazy->changed);
	pthread_mutex_unlock(&lazy->lock);
	for (i = 0; i < lazy->started; i++)
		pthread_join(lazy->readers[i], NULL);
	lazy->started = 0;
	ferry_incoming_stats(&lazy->incoming);
	if (disarm)
		ferry_incoming_end(&lazy->incoming);
	ferry_incoming_free(&lazy->incoming);
	ferry_store_plan_free(&lazy->plan);
	ferry_io_close(&lazy->wake_fd);
}
