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
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/io.h"
#include "ram/zero.h"
#include "store/writer_private.h"

/* A changed limit is noticed after this long. */
#define WRITER_PAY_SLICE_NS (100 * FERRY_NS_PER_MS)

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

static void stop(struct ferry_store_writer *w, const struct ferry_error *why)
{
	pthread_mutex_lock(&w->lock);
	if (!w->err.errnum)
		w->err = *why;
	pthread_cond_broadcast(&w->changed);
	pthread_mutex_unlock(&w->lock);
}

/* (locked) Return: 0 or -ETIMEDOUT. */
static int wait_changed(struct ferry_store_writer *w, uint64_t deadline_ns)
{
	struct timespec ts = {
		.tv_sec = (time_t)(deadline_ns / FERRY_NS_PER_S),
		.tv_nsec = (long)(deadline_ns % FERRY_NS_PER_S),
	};

	if (deadline_ns == FERRY_CLOCK_NEVER)
		return -pthread_cond_wait(&w->changed, &w->lock);
	return -pthread_cond_timedwait(&w->changed, &w->lock, &ts);
}

/* ---- a channel ---- */

/* The next extent. Return: 1, or 0: the end. */
static int take(struct writer_channel *ch, struct writer_item *item, bool *watch)
{
	struct ferry_store_writer *w = ch->writer;
	int r = 0;

	pthread_mutex_lock(&w->lock);
	while (!w->queue_count && !w->ending && !w->err.errnum) {
		if (w->draining && !ch->flushed) {
			pthread_mutex_unlock(&w->lock);
			r = ferry_store_lane_flush(ch->lane);
			if (r) {
				struct ferry_error why;

				ferry_store_writer_error(w, r, "writing", &why);
				stop(w, &why);
			}
			pthread_mutex_lock(&w->lock);
			ch->flushed = true;
			pthread_cond_broadcast(&w->changed);
			continue;
		}
		wait_changed(w, FERRY_CLOCK_NEVER);
	}
	r = w->queue_count && !w->err.errnum;
	if (r) {
		*item = w->queue[w->queue_first];
		w->queue_first = (w->queue_first + 1) % WRITER_QUEUE;
		w->queue_count--;
		ch->flushed = false;
		*watch = w->watch;
		pthread_cond_broadcast(&w->changed);
	}
	pthread_mutex_unlock(&w->lock);
	return r;
}

/* Wait for the right to write @bytes. Return: 0, or -ECANCELED when all has stopped. */
static int pay(struct ferry_store_writer *w, uint64_t bytes)
{
	int r = 0;

	while (w->params.pay && bytes && !r) {
		uint64_t now_ns = ferry_clock_ns();
		uint64_t wait_ns = w->params.pay(w->params.ctx, bytes, now_ns), until_ns;

		if (!wait_ns)
			return 0;
		until_ns = now_ns + (wait_ns < WRITER_PAY_SLICE_NS ? wait_ns : WRITER_PAY_SLICE_NS);
		pthread_mutex_lock(&w->lock);
		while (!w->err.errnum && wait_changed(w, until_ns) != -ETIMEDOUT)
			;
		r = w->err.errnum ? -ECANCELED : 0;
		pthread_mutex_unlock(&w->lock);
	}
	return r;
}

/*
 * Where the extent's bytes can be seen, in our mapping of memory that stands still. Queued are
 * pages that hold data, so that looking at them allocates none.
 */
static const uint8_t *see(struct ferry_store_writer *w, const struct writer_item *item)
{
	const struct ferry_ram_block *b = &w->params.ram->blocks[item->block];
	unsigned int first = 0, pages;
	uint8_t *at;

	if (!w->params.still || w->params.direct || w->params.partial || !b->map)
		return NULL;
	at = b->map + item->extent * FERRY_STORE_EXTENT_BYTES;
	/* One call instead of a fault for every few pages; faults do it where it is not known. */
	for (; (pages = ferry_store_set_run(&item->data, &first)); first += pages)
		if (madvise(at + (size_t)first * FERRY_STORE_PAGE_BYTES,
			    (size_t)pages * FERRY_STORE_PAGE_BYTES, MADV_POPULATE_READ))
			break;
	return at;
}

/* Read the pages into @buf. */
static int fetch(struct ferry_store_writer *w, const struct writer_item *item, uint8_t *buf)
{
	const struct ferry_ram_block *b = &w->params.ram->blocks[item->block];
	uint64_t at = b->fd_off_bytes + item->extent * FERRY_STORE_EXTENT_BYTES;
	unsigned int first = 0, pages;
	int r = 0;

	for (; !r && (pages = ferry_store_set_run(&item->data, &first)); first += pages) {
		size_t off = (size_t)first * FERRY_STORE_PAGE_BYTES;

		r = ferry_io_pread(b->fd, buf + off, (size_t)pages * FERRY_STORE_PAGE_BYTES,
				   (off_t)(at + off));
	}
	return r;
}

/* Pages of zeros move from @data to @zero. */
static void sort(struct writer_item *item, const uint8_t *buf)
{
	unsigned int first = 0, pages, i;

	for (; (pages = ferry_store_set_run(&item->data, &first)); first += pages) {
		for (i = first; i < first + pages; i++) {
			if (!ferry_zero_is(buf + (size_t)i * FERRY_STORE_PAGE_BYTES,
					   FERRY_STORE_PAGE_BYTES))
				continue;
			item->data.words[i / 64] &= ~(1ull << i % 64);
			item->zero.words[i / 64] |= 1ull << i % 64;
		}
	}
}

static int punch(struct ferry_store_writer *w, off_t off, size_t len)
{
	static const uint8_t zeros[FERRY_STORE_PAGE_BYTES];
	int r = 0;

	if (!fallocate(w->aside.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, off, (off_t)len))
		return 0;
	if (errno != EOPNOTSUPP)
		return -errno;
	for (; len && !r; len -= sizeof(zeros), off += (off_t)sizeof(zeros))
		r = ferry_io_pwrite(w->aside.fd, zeros, sizeof(zeros), off);
	return r;
}

/* Pages that the file holds bytes of and that are zero now. */
static int drop(struct ferry_store_writer *w, struct writer_channel *ch,
		const struct ferry_store_set *gone, off_t at)
{
	unsigned int first = 0, pages;
	int r = 0;

	if (ferry_store_set_empty(gone))
		return 0;
	/* Its own earlier writes of them are done; those of others were drained. */
	r = ferry_store_lane_flush(ch->lane);
	for (; !r && (pages = ferry_store_set_run(gone, &first)); first += pages)
		r = punch(w, at + (off_t)first * FERRY_STORE_PAGE_BYTES,
			  (size_t)pages * FERRY_STORE_PAGE_BYTES);
	return r;
}

static int write_runs(struct writer_channel *ch, const struct ferry_store_set *set,
		      const uint8_t *buf, off_t at)
{
	unsigned int first = 0, pages;
	int r = 0;

	for (; !r && (pages = ferry_store_set_run(set, &first)); first += pages) {
		size_t off = (size_t)first * FERRY_STORE_PAGE_BYTES;

		r = ferry_store_lane_write(ch->lane, buf + off,
					   (size_t)pages * FERRY_STORE_PAGE_BYTES, at + (off_t)off);
	}
	return r;
}

/* Pages that are in a partial file as holes count as zeros in its checksums. */
static void clear_zeros(const struct writer_item *item, uint8_t *buf)
{
	unsigned int i;

	for (i = 0; i < FERRY_STORE_EXTENT_PAGES; i++)
		if (item->zero.words[i / 64] & 1ull << i % 64)
			memset(buf + (size_t)i * FERRY_STORE_PAGE_BYTES, 0, FERRY_STORE_PAGE_BYTES);
}

/* What the file holds of the extent from now on, and its checksum if it can be known here. */
static int account(struct ferry_store_writer *w, const struct writer_item *item,
		   const struct ferry_store_set *before, const uint8_t *buf)
{
	uint64_t words = w->blocks[item->block].bitmap_bytes / 8;
	struct ferry_store_set now = *before;
	unsigned int i;

	for (i = 0; i < FERRY_STORE_EXTENT_WORDS; i++) {
		now.words[i] |= item->data.words[i];
		if (w->params.partial)
			now.words[i] |= item->zero.words[i];
		else
			now.words[i] &= ~item->zero.words[i];
	}
	ferry_store_set_store(&now, w->bits[item->block], words, item->extent);
	if (!ferry_store_set_empty(before)) {
		w->stale[item->block][item->extent] = true;
		return 0;
	}
	return ferry_store_set_sum(&now, buf, &w->sums[item->block][item->extent]);
}

static void tell_written(struct ferry_store_writer *w, const struct writer_item *item,
			 const uint8_t *buf)
{
	uint64_t page = item->extent * FERRY_STORE_EXTENT_PAGES;
	unsigned int i;

	for (i = 0; i < FERRY_STORE_EXTENT_PAGES; i++) {
		uint64_t bit = 1ull << i % 64;

		if (item->data.words[i / 64] & bit)
			w->params.page_written(w->params.ctx, item->block, page + i,
					       buf + (size_t)i * FERRY_STORE_PAGE_BYTES);
		else if (item->zero.words[i / 64] & bit)
			w->params.page_written(w->params.ctx, item->block, page + i, NULL);
	}
}

static int write_item(struct writer_channel *ch, struct writer_item *item, bool watch)
{
	struct ferry_store_writer *w = ch->writer;
	const struct ferry_store_block *b = &w->blocks[item->block];
	off_t at = (off_t)(b->pages_off + item->extent * FERRY_STORE_EXTENT_BYTES);
	const uint8_t *bytes = see(w, item);
	struct ferry_store_set before, gone;
	unsigned int i, pages;
	uint8_t *buf = NULL;
	int r = 0;

	if (!bytes) {
		r = ferry_store_lane_buffer(ch->lane, &buf);
		if (!r)
			r = fetch(w, item, buf);
		bytes = buf;
	}
	if (r)
		return r;
	sort(item, bytes);
	pages = ferry_store_set_count(&item->data);
	r = pay(w, (uint64_t)pages * FERRY_STORE_PAGE_BYTES);
	if (!r && pages && w->params.step && w->params.step(w->params.ctx, "file-write", NULL))
		r = -EIO; /* what a test asks for */
	if (r)
		return r;
	ferry_store_set_load(&before, w->bits[item->block], b->bitmap_bytes / 8, item->extent);
	for (i = 0; i < FERRY_STORE_EXTENT_WORDS; i++)
		gone.words[i] = before.words[i] & item->zero.words[i];
	r = drop(w, ch, &gone, at);
	if (!r)
		r = write_runs(ch, &item->data, bytes, at);
	if (r)
		return r;
	if (watch)
		tell_written(w, item, bytes);
	if (w->params.partial)
		clear_zeros(item, buf);
	return account(w, item, &before, bytes);
}

static void *run_channel(void *arg)
{
	struct writer_channel *ch = arg;
	struct ferry_store_writer *w = ch->writer;
	struct writer_item item;
	bool watch;

	while (take(ch, &item, &watch)) {
		unsigned int pages = ferry_store_set_count(&item.data) +
				     ferry_store_set_count(&item.zero);
		int r = write_item(ch, &item, watch);
		struct ferry_error why;

		if (r) {
			ferry_store_writer_error(w, r, "writing", &why);
			stop(w, &why);
			break;
		}
		pthread_mutex_lock(&w->lock);
		w->pending_pages -= pages;
		w->stats.normal_pages += ferry_store_set_count(&item.data);
		w->stats.zero_pages += ferry_store_set_count(&item.zero);
		w->stats.written_bytes += (uint64_t)ferry_store_set_count(&item.data) *
					  FERRY_STORE_PAGE_BYTES;
		pthread_cond_broadcast(&w->changed);
		pthread_mutex_unlock(&w->lock);
	}
	return NULL;
}

/* ---- the queueing thread ---- */

/* (locked) The open extent goes to the channels. Return: 0 or the error. */
static int push_open(struct ferry_store_writer *w, struct ferry_error *err)
{
	while (w->has_open && !w->err.errnum && w->queue_count == WRITER_QUEUE)
		wait_changed(w, FERRY_CLOCK_NEVER);
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
		if (wait_changed(w, deadline_ns) == -ETIMEDOUT) {
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
	stop(w, &why);
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
		r = -pthread_create(&ch->thread, NULL, run_channel, ch);
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
