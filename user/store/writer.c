// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Writing pages into a snapshot file.
 *
 * The unit of work is an extent (1 MiB of a block): runs of pages that are queued one after
 * the other for the same extent are put together, and a channel takes the whole. So a
 * channel has the extent's bits and checksum for itself, and an extent that was written in
 * one piece gets its checksum from the bytes at hand. One that is written again (a later
 * round of a live save, or a run that came late) is "stale": its checksum is made from
 * the file when all is written (seal.c).
 *
 * Example: extent 7 holds 200 pages after the bulk round, its sum is known. In round 2 page
 * 1800 (its ninth) is zero: the bit is cleared, the place punched, the extent is stale.
 *
 * Rounds: drain() returns when the queue is empty and each channel has flushed its lane, so
 * what is queued after it is written after it. There are no packets and no markers.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/io.h"
#include "store/writer_private.h"

int ferry_store_writer_error(const struct ferry_store_writer *w, int r, const char *what,
			     struct ferry_error *err)
{
	return ferry_error_set(err, -r, "%s %s: %s%s", what, w->params.path, strerror(-r),
			       r == -ENOSPC || r == -EDQUOT ?
			       "; make room there or choose another place" : "");
}

/* (locked) The first error, or 0. */
static int result(const struct ferry_store_writer *w, struct ferry_error *err)
{
	if (w->err.errnum && err)
		*err = w->err;
	return -w->err.errnum;
}

void ferry_store_writer_stop(struct ferry_store_writer *w, const struct ferry_error *why)
{
	pthread_mutex_lock(&w->lock);
	if (!w->err.errnum)
		w->err = *why;
	pthread_cond_broadcast(&w->changed);
	pthread_mutex_unlock(&w->lock);
}

int ferry_store_writer_wait(struct ferry_store_writer *w, uint64_t deadline_ns)
{
	struct timespec ts = {
		.tv_sec = (time_t)(deadline_ns / FERRY_NS_PER_S),
		.tv_nsec = (long)(deadline_ns % FERRY_NS_PER_S),
	};

	if (deadline_ns == FERRY_CLOCK_NEVER)
		return -pthread_cond_wait(&w->changed, &w->lock);
	return -pthread_cond_timedwait(&w->changed, &w->lock, &ts);
}

/* ---- the queueing thread ---- */

/* (locked) The open extent goes to the channels. Return: 0 or the error. */
static int push_open(struct ferry_store_writer *w, struct ferry_error *err)
{
	while (w->has_open && !w->err.errnum && w->queue_count == WRITER_QUEUE)
		ferry_store_writer_wait(w, FERRY_CLOCK_NEVER);
	if (w->has_open && !w->err.errnum) {
		w->queue[(w->queue_first + w->queue_count++) % WRITER_QUEUE] = w->open;
		w->has_open = false;
		pthread_cond_broadcast(&w->changed);
	}
	return result(w, err);
}

int ferry_store_writer_queue(struct ferry_store_writer *w, unsigned int block,
			     uint64_t first_page, uint64_t pages, bool zero,
			     struct ferry_error *err)
{
	int r = 0;

	pthread_mutex_lock(&w->lock);
	w->draining = false;
	while (pages && !r) {
		uint64_t extent = first_page / FERRY_STORE_EXTENT_PAGES;
		unsigned int at = (unsigned int)(first_page % FERRY_STORE_EXTENT_PAGES);
		unsigned int n = FERRY_STORE_EXTENT_PAGES - at;

		if (n > pages)
			n = (unsigned int)pages;
		if (w->has_open && (w->open.block != block || w->open.extent != extent))
			r = push_open(w, err);
		if (r)
			break;
		if (!w->has_open)
			w->open = (struct writer_item){ .block = block, .extent = extent };
		w->has_open = true;
		ferry_store_set_add(zero ? &w->open.zero : &w->open.data, at, n);
		w->pending_pages += n;
		first_page += n;
		pages -= n;
	}
	if (!r)
		r = result(w, err);
	pthread_mutex_unlock(&w->lock);
	return r;
}

/* (locked) */
static bool all_flushed(const struct ferry_store_writer *w)
{
	unsigned int i;

	for (i = 0; i < w->started; i++)
		if (!w->channels[i].flushed)
			return false;
	return !w->queue_count;
}

int ferry_store_writer_drain(struct ferry_store_writer *w, uint64_t deadline_ns,
			     struct ferry_error *err)
{
	int r;

	pthread_mutex_lock(&w->lock);
	r = push_open(w, err);
	if (!r && !w->draining) {
		w->draining = true;
		pthread_cond_broadcast(&w->changed);
	}
	while (!r && !all_flushed(w)) {
		if (ferry_store_writer_wait(w, deadline_ns) == -ETIMEDOUT) {
			r = -ETIMEDOUT;
			break;
		}
		r = result(w, err);
	}
	if (!r)
		r = result(w, err);
	pthread_mutex_unlock(&w->lock);
	return r;
}

uint64_t ferry_store_writer_pending(struct ferry_store_writer *w)
{
	uint64_t n;

	pthread_mutex_lock(&w->lock);
	n = w->pending_pages;
	pthread_mutex_unlock(&w->lock);
	return n;
}

void ferry_store_writer_stats(struct ferry_store_writer *w,
			      struct ferry_store_writer_stats *stats)
{
	pthread_mutex_lock(&w->lock);
	*stats = w->stats;
	pthread_mutex_unlock(&w->lock);
}

void ferry_store_writer_watch(struct ferry_store_writer *w, bool on)
{
	pthread_mutex_lock(&w->lock);
	w->watch = on;
	pthread_mutex_unlock(&w->lock);
}

void ferry_store_writer_abort(struct ferry_store_writer *w)
{
	struct ferry_error why;

	ferry_error_set(&why, ECANCELED, "cancelled");
	ferry_store_writer_stop(w, &why);
}

int ferry_store_writer_finish(struct ferry_store_writer *w, const struct ferry_store_tail *tail,
			      struct ferry_error *err)
{
	int r = ferry_store_writer_drain(w, FERRY_CLOCK_NEVER, err);

	return r ? r : ferry_store_writer_seal(w, tail, err);
}

/* ---- life ---- */

static int make_tables(struct ferry_store_writer *w, struct ferry_error *err)
{
	const struct ferry_ram *ram = w->params.ram;
	unsigned int i;
	int r;

	w->blocks = calloc(ram->count, sizeof(*w->blocks));
	w->bits = calloc(ram->count, sizeof(*w->bits));
	w->sums = calloc(ram->count, sizeof(*w->sums));
	w->stale = calloc(ram->count, sizeof(*w->stale));
	if (!w->blocks || !w->bits || !w->sums || !w->stale)
		return ferry_error_set(err, ENOMEM, "no memory for the tables of the file");
	for (i = 0; i < ram->count; i++) {
		snprintf(w->blocks[i].name, sizeof(w->blocks[i].name), "%s", ram->blocks[i].name);
		w->blocks[i].size_bytes = ram->blocks[i].size_bytes;
		w->blocks[i].page_size = ram->blocks[i].page_size;
	}
	r = ferry_store_layout(w->blocks, ram->count, &w->places);
	if (r)
		return ferry_error_set(err, -r, "the guest's memory is of a size or shape that a file "
				       "cannot hold: %s", strerror(-r));
	for (i = 0; i < ram->count; i++) {
		w->bits[i] = calloc(1, w->blocks[i].bitmap_bytes);
		w->sums[i] = calloc(1, w->blocks[i].sums_bytes);
		w->stale[i] = calloc(w->blocks[i].sums_bytes / 8, sizeof(bool));
		if (!w->bits[i] || !w->sums[i] || !w->stale[i])
			return ferry_error_set(err, ENOMEM, "no memory for the tables of the file");
	}
	return 0;
}

static int make_header(struct ferry_store_writer *w, struct ferry_error *err)
{
	const struct ferry_store_writer_params *p = &w->params;

	if (strlen(p->kind) > FERRY_STORE_MAX_KIND)
		return ferry_error_set(err, ENAMETOOLONG, "the kind of this VMM, '%s', is too long "
				       "for a file: %u characters at most", p->kind,
				       FERRY_STORE_MAX_KIND);
	w->header = (struct ferry_store_header){
		.version = FERRY_STORE_VERSION,
		.min_version = FERRY_STORE_MIN_VERSION,
		.features = p->partial ? FERRY_STORE_FEATURE_PARTIAL : 0,
		.blocks = p->ram->count,
		.created_s = (uint64_t)time(NULL),
	};
	memcpy(w->header.uuid, p->uuid, sizeof(w->header.uuid));
	snprintf(w->header.kind, sizeof(w->header.kind), "%s", p->kind);
	snprintf(w->header.vmm, sizeof(w->header.vmm), "%s", p->vmm);
	return 0;
}

static int open_file(struct ferry_store_writer *w, struct ferry_error *err)
{
	char self[32];
	int r = ferry_store_aside_open(&w->aside, w->params.path, w->params.id, err);

	if (r)
		return r;
	/* All places exist from here on, as holes. */
	if (ftruncate(w->aside.fd, (off_t)w->places.device_off))
		return ferry_error_set(err, errno, "cannot make a file of %llu bytes (most of them a "
				       "hole) for %s: %s; the file system must allow such files",
				       (unsigned long long)w->places.device_off, w->params.path,
				       strerror(errno));
	if (!w->params.direct)
		return 0;
	snprintf(self, sizeof(self), "/proc/self/fd/%d", w->aside.fd);
	w->direct_fd = open(self, O_RDWR | O_DIRECT | O_CLOEXEC);
	if (w->direct_fd < 0)
		return ferry_error_set(err, errno, "--direct: the file system of %s does not do it "
				       "(%s); leave --direct out", w->params.path, strerror(errno));
	return 0;
}

static int start_channels(struct ferry_store_writer *w, struct ferry_error *err)
{
	unsigned int i;

	for (i = 0; i < w->params.channels; i++) {
		struct writer_channel *ch = &w->channels[i];
		int r = ferry_store_lane_create(w->params.direct ? w->direct_fd : w->aside.fd,
						w->params.direct, &ch->lane, err);

		if (r)
			return r;
		ch->writer = w;
		r = -pthread_create(&ch->thread, NULL, ferry_store_writer_channel, ch);
		if (r) {
			ferry_store_lane_free(ch->lane);
			return ferry_error_set(err, -r, "cannot start a thread: %s", strerror(-r));
		}
		w->started++;
	}
	return 0;
}

int ferry_store_writer_create(const struct ferry_store_writer_params *params,
			      struct ferry_store_writer **out, struct ferry_error *err)
{
	struct ferry_store_writer *w;
	pthread_condattr_t attr;
	int r;

	*out = NULL;
	w = calloc(1, sizeof(*w) + params->channels * sizeof(w->channels[0]));
	if (!w)
		return ferry_error_set(err, ENOMEM, "no memory for %u channels", params->channels);
	w->params = *params;
	w->direct_fd = w->aside.fd = w->aside.dir_fd = -1;
	pthread_mutex_init(&w->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&w->changed, &attr);
	pthread_condattr_destroy(&attr);
	r = make_header(w, err);
	if (!r)
		r = make_tables(w, err);
	if (!r)
		r = open_file(w, err);
	if (!r)
		r = start_channels(w, err);
	if (r) {
		ferry_store_writer_free(w);
		return r;
	}
	*out = w;
	return 0;
}

void ferry_store_writer_free(struct ferry_store_writer *w)
{
	unsigned int i;

	if (!w)
		return;
	pthread_mutex_lock(&w->lock);
	w->ending = true;
	/* What is still queued is of no use to anybody. */
	w->queue_count = 0;
	pthread_cond_broadcast(&w->changed);
	pthread_mutex_unlock(&w->lock);
	for (i = 0; i < w->started; i++) {
		pthread_join(w->channels[i].thread, NULL);
		ferry_store_lane_free(w->channels[i].lane);
	}
	ferry_store_aside_close(&w->aside);
	ferry_io_close(&w->direct_fd);
	for (i = 0; i < w->params.ram->count; i++) {
		if (w->bits)
			free(w->bits[i]);
		if (w->sums)
			free(w->sums[i]);
		if (w->stale)
			free(w->stale[i]);
	}
	free(w->bits);
	free(w->sums);
	free(w->stale);
	free(w->blocks);
	pthread_cond_destroy(&w->changed);
	pthread_mutex_destroy(&w->lock);
	free(w);
}
