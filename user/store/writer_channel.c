// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A channel of a snapshot file being written: takes an extent, reads its pages, sorts out those
 * of zeros, writes the others, and accounts for what the file holds of the extent now. It has
 * the extent for itself meanwhile; see writer.c.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/io.h"
#include "ram/zero.h"
#include "store/writer_private.h"

/* A changed limit is noticed after this long. */
#define WRITER_PAY_SLICE_NS (100 * FERRY_NS_PER_MS)

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
				ferry_store_writer_stop(w, &why);
			}
			pthread_mutex_lock(&w->lock);
			ch->flushed = true;
			pthread_cond_broadcast(&w->changed);
			continue;
		}
		ferry_store_writer_wait(w, FERRY_CLOCK_NEVER);
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
		while (!w->err.errnum && ferry_store_writer_wait(w, until_ns) != -ETIMEDOUT)
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

	if (!w->params.still || w->params.partial || !b->map)
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
	uint8_t *buf;
	/* Also where it stays empty: as many extents may be under way as there are buffers. */
	int r = ferry_store_lane_buffer(ch->lane, &buf);

	if (!r && !bytes) {
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

void *ferry_store_writer_channel(void *arg)
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
			ferry_store_writer_stop(w, &why);
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
