// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Postcopy at the source.
 *
 * "left" has a bit for each page that the destination lacks. Two take pages out of it:
 *
 *   the server's thread   what is asked for on the fault channel, at once; also what the others
 *                         have taken, for it may be far from there yet
 *   the migration thread  the rest, a few packets ahead of what the multifd channels have
 *                         sent, so that a page that is asked for seldom waits in their queue;
 *                         in which order: order.h
 *
 * A page that was taken may be lost with a connection. So "left" is only believed as long as
 * the connections live; on new ones it is made from what the destination tells (RECEIVED).
 *
 * The end is not "all sent" but PLACED.
 */
#include "engine/pager.h"

#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/io.h"
#include "base/log.h"
#include "engine/spill.h"
#include "ram/sparse.h"

/* A packet's worth: taken from "left" in one go. */
#define PAGER_CHUNK_PAGES 256u

/* Packets queued for each channel: one under way, one to go on with. */
#define PAGER_AHEAD 2u

/* Somebody was asked for a page so short ago that another request is likely: then this is all. */
#define PAGER_URGENT_NS (10 * FERRY_NS_PER_MS)
#define PAGER_URGENT_PAGES 32u

/* How often what goes on elsewhere is looked at. */
#define PAGER_SLICE_NS (50 * FERRY_NS_PER_MS)

/* What is said on one connection may come this much later than what happens to another. */
#define PAGER_WORD_MS 200

int ferry_pager_init(struct ferry_pager *p, struct ferry_job *job, const struct ferry_ram *ram,
		     struct ferry_error *err)
{
	int r;

	memset(p, 0, sizeof(*p));
	p->job = job;
	p->ram = ram;
	p->fault_fd = -1;
	ferry_order_init(&p->order, ferry_order_kind());
	p->order.ram = ram;
	r = ferry_bitmap_init(&p->left, ram);
	if (!r)
		r = ferry_bitmap_init(&p->placed, ram);
	if (!r)
		r = ferry_bitmap_init(&p->unsure, ram);
	if (!r && job->record.release_ram)
		r = ferry_release_init(&p->release, ram);
	p->ready = true;
	if (!r)
		return 0;
	ferry_pager_free(p);
	return ferry_error_set(err, -r, "no memory for the map of pages to be sent");
}

void ferry_pager_free(struct ferry_pager *p)
{
	if (!p->ready)
		return;
	ferry_pager_hang_up(p);
	ferry_bitmap_free(&p->left);
	ferry_bitmap_free(&p->placed);
	ferry_bitmap_free(&p->unsure);
	ferry_release_free(&p->release);
	ferry_order_free(&p->order);
	p->ready = false;
}

int ferry_pager_connect(struct ferry_pager *p, const struct ferry_link_params *params,
			enum ferry_mode mode, struct ferry_error *err)
{
	p->fault_fd = ferry_link_fault_channel(params, err);
	if (p->fault_fd < 0)
		return p->fault_fd;
	p->job->record.postcopy = true;
	pthread_mutex_lock(&p->job->lock);
	p->job->stats.mode = mode;
	pthread_mutex_unlock(&p->job->lock);
	return 0;
}

/* job->lock */
static void set_channels(struct ferry_pager *p, struct ferry_multifd_send *pool,
			 struct ferry_page_server *server)
{
	pthread_mutex_lock(&p->job->lock);
	p->pool = pool;
	p->server = server;
	pthread_mutex_unlock(&p->job->lock);
}

void ferry_pager_abort(void *ctx)
{
	struct ferry_pager *p = ctx;

	pthread_mutex_lock(&p->job->lock);
	if (p->pool)
		ferry_multifd_send_abort(p->pool);
	if (p->server)
		ferry_page_server_abort(p->server);
	pthread_mutex_unlock(&p->job->lock);
}

/* Into the job's numbers. */
static void publish(struct ferry_pager *p)
{
	struct ferry_multifd_send_stats sent = { 0 };
	struct ferry_page_server_stats served = { 0 };
	struct ferry_job *job = p->job;
	uint64_t left = __atomic_load_n(&p->left_pages, __ATOMIC_ACQUIRE);

	if (p->pool)
		ferry_multifd_send_stats(p->pool, &sent);
	if (p->server)
		ferry_page_server_stats(p->server, &served);
	pthread_mutex_lock(&job->lock);
	job->stats.sent_bytes = p->sent.sent_bytes + sent.sent_bytes + served.sent_bytes;
	job->stats.normal_pages = p->sent.normal_pages + sent.normal_pages + served.pages -
				  served.zero_pages;
	job->stats.zero_pages = p->sent.zero_pages + sent.zero_pages + served.zero_pages;
	job->stats.faults = p->requests + served.requests;
	job->stats.fault_pages = p->fault_pages + served.pages;
	job->stats.background_pages = job->stats.normal_pages + job->stats.zero_pages -
				      job->stats.fault_pages - p->precopied;
	job->stats.missing_pages = left;
	job->progress.sent_bytes = job->stats.sent_bytes;
	job->progress.round_pages = p->total_pages;
	job->progress.round_done_pages = p->total_pages > left ? p->total_pages - left : 0;
	pthread_mutex_unlock(&job->lock);
}

void ferry_pager_hang_up(struct ferry_pager *p)
{
	struct ferry_multifd_send *pool = p->pool;
	struct ferry_page_server *server = p->server;

	if (!p->ready)
		return;
	publish(p);
	p->sent.sent_bytes = p->job->stats.sent_bytes;
	p->sent.normal_pages = p->job->stats.normal_pages;
	p->sent.zero_pages = p->job->stats.zero_pages;
	p->requests = p->job->stats.faults;
	p->fault_pages = p->job->stats.fault_pages;
	set_channels(p, NULL, NULL);
	ferry_multifd_send_free(pool);
	ferry_page_server_free(server);
	ferry_io_close(&p->fault_fd);
}

/* All that is left is known: what is sent of it from now on may get lost. */
static void settle_left(struct ferry_pager *p)
{
	p->left_pages = p->total_pages = ferry_bitmap_count(&p->left);
	ferry_bitmap_zero(&p->unsure);
	ferry_bitmap_or(&p->unsure, &p->left);
	p->knows = true;
}

/* The last look, and what it finds by itself: written right before the guest stopped. */
static int look_for_heat(struct ferry_pager *p, struct ferry_copy *copy, struct ferry_error *err)
{
	int r;

	ferry_bitmap_or(&p->placed, &copy->pending);
	ferry_bitmap_zero(&copy->pending);
	r = ferry_copy_last_look(copy, err);
	if (!r && ferry_order_heat(&p->order, p->ram, &copy->pending))
		r = ferry_error_set(err, ENOMEM, "no memory for the map of hot pages");
	ferry_bitmap_or(&copy->pending, &p->placed);
	ferry_bitmap_zero(&p->placed);
	return r;
}

/* A huge page is freed there and shown there as one: all of it is left, or nothing. */
static void widen_left(struct ferry_pager *p)
{
	unsigned int i;

	for (i = 0; i < p->ram->count; i++) {
		uint64_t unit = ferry_ram_unit_pages(&p->ram->blocks[i]);
		uint64_t end = p->left.pages[i], page = 0;

		while (unit > 1 &&
		       (page = ferry_bitmap_next_atomic(&p->left, i, page, end)) < end) {
			page -= page % unit;
			ferry_bitmap_set(&p->left, i, page, unit);
			page += unit;
		}
	}
}

int ferry_pager_left(struct ferry_pager *p, struct ferry_copy *copy, struct ferry_error *err)
{
	unsigned int i;
	int r = copy->tracker && ferry_order_hot(&p->order) ? look_for_heat(p, copy, err) :
							      ferry_copy_last_look(copy, err);

	if (r)
		return r;
	/* What was sent and is a hole now counts as changed: it is sent as zeros. */
	ferry_bitmap_or(&p->left, &copy->sent);
	for (i = 0; i < p->ram->count; i++) {
		const struct ferry_ram_block *b = &p->ram->blocks[i];
		uint64_t end = ferry_ram_block_pages(b), page = 0, pages;

		while ((r = ferry_sparse_next(b, &page, &pages, end)) > 0) {
			ferry_bitmap_clear(&p->left, i, page, pages);
			ferry_bitmap_set(&p->placed, i, page, pages);
			page += pages;
		}
		if (r)
			return ferry_error_set(err, -r, "cannot look for holes in block %s: %s",
					       b->name, strerror(-r));
	}
	/* And what holds data and was never sent. */
	ferry_bitmap_andnot(&p->placed, &copy->sent);
	ferry_bitmap_or(&p->left, &p->placed);
	ferry_bitmap_or(&p->left, &copy->pending);
	ferry_bitmap_zero(&p->placed);
	widen_left(p);
	settle_left(p);
	return 0;
}

static int send_discards(struct ferry_pager *p, struct ferry_link *link, struct ferry_error *err)
{
	uint8_t *body = malloc(FERRY_WIRE_MAX_RUNS * FERRY_WIRE_RUN_BYTES);
	struct ferry_bitmap_run run = { 0 };
	uint32_t n = 0;
	int r = 0;

	if (!body)
		return ferry_error_set(err, ENOMEM, "out of memory");
	while (!r && ferry_bitmap_next_run(&p->left, &run, UINT32_MAX)) {
		const struct ferry_wire_run w = {
			.first_page = run.first_page,
			.pages = (uint32_t)run.pages,
			.block = (uint16_t)run.block,
		};

		ferry_wire_run_encode(&w, body + n * FERRY_WIRE_RUN_BYTES);
		if (++n < FERRY_WIRE_MAX_RUNS)
			continue;
		r = ferry_link_send(link, FERRY_WIRE_DISCARD, body, n * FERRY_WIRE_RUN_BYTES, err);
		n = 0;
	}
	if (!r && n)
		r = ferry_link_send(link, FERRY_WIRE_DISCARD, body, n * FERRY_WIRE_RUN_BYTES, err);
	free(body);
	return r ? r : ferry_link_send(link, FERRY_WIRE_POSTCOPY, NULL, 0, err);
}

static void took(struct ferry_pager *p, uint64_t pages)
{
	__atomic_sub_fetch(&p->left_pages, pages, __ATOMIC_ACQ_REL);
}

/* The server's thread: pages are asked for. */
static uint64_t serve_take(void *ctx, unsigned int block, uint64_t first, uint64_t pages)
{
	struct ferry_pager *p = ctx;
	uint64_t n = ferry_bitmap_take_atomic(&p->left, block, first, pages);

	took(p, n);
	ferry_release_served(&p->release, block, first, n);
	/*
	 * It is on its way on a channel, behind a megabyte perhaps, and there it may stand behind
	 * other things too: once more. Whichever copy comes first counts.
	 */
	if (!n && !p->release.on)
		n = ferry_bitmap_next_atomic(&p->left, block, first, first + pages) - first;
	__atomic_store_n(&p->asked_ns, ferry_clock_ns(), __ATOMIC_RELAXED);
	ferry_order_asked(&p->order, block, first + pages);
	return n;
}

static int start_server(struct ferry_pager *p, struct ferry_error *err)
{
	struct ferry_page_server_params params = {
		.fd = p->fault_fd,
		.ram = p->ram,
		.checksum = p->job->record.checksum,
		.take = serve_take,
		.ctx = p,
	};
	struct ferry_page_server *server;
	int r = ferry_page_server_create(&params, &server, err);

	if (r)
		return r;
	p->fault_fd = -1; /* the server's now */
	p->release.served = 0;
	set_channels(p, p->pool, server);
	return 0;
}

int ferry_pager_switch(struct ferry_pager *p, struct ferry_copy *copy, struct ferry_link *link,
		       struct ferry_error *err)
{
	struct ferry_multifd_send_stats before;
	int r = send_discards(p, link, err);

	if (r)
		return r;
	ferry_multifd_send_watch(copy->pool, false);
	ferry_multifd_send_shorten(copy->pool);
	ferry_multifd_send_stats(copy->pool, &before);
	p->precopied = before.normal_pages + before.zero_pages;
	set_channels(p, copy->pool, NULL);
	copy->pool = NULL;
	return start_server(p, err);
}

static bool urgent(struct ferry_pager *p)
{
	return ferry_clock_ns() - __atomic_load_n(&p->asked_ns, __ATOMIC_RELAXED) < PAGER_URGENT_NS;
}

/* Is there something that ends it? */
static int check(struct ferry_pager *p, struct ferry_link *link, struct ferry_error *err)
{
	int r = ferry_link_why(link, err);

	if (!r && ferry_job_held(p->job))
		r = ferry_error_set(err, EINTR, "paused by a person");
	if (!r)
		r = ferry_page_server_why(p->server, err);
	/* Never waits: there is always that much room. */
	return r ? r : ferry_multifd_send_room(p->pool, UINT64_MAX, 0, err);
}

/* One step of the background. Return: 0, or -errno the channels are lost. */
static int send_some(struct ferry_pager *p, uint64_t ahead, struct ferry_error *err)
{
	unsigned int block = 0;
	uint64_t n, first = 0;
	int r = ferry_multifd_send_room(p->pool, ahead, ferry_clock_ns() + PAGER_SLICE_NS, err);

	if (r)
		return r == -ETIMEDOUT ? 0 : r;
	n = ferry_order_take(&p->order, &p->left,
			     urgent(p) ? PAGER_URGENT_PAGES : PAGER_CHUNK_PAGES, &block, &first);
	if (!n)
		return 0;
	took(p, n);
	r = ferry_multifd_send_queue(p->pool, block, first, n, false, err);
	if (!r)
		ferry_release_queued(&p->release, block, first, n);
	return r ? r : ferry_release_step(&p->release, p->pool, p->server, false, err);
}

/* All is sent: until it is there. */
static int await_placed(struct ferry_pager *p, struct ferry_link *link, struct ferry_error *err)
{
	uint64_t deadline_ns = ferry_clock_in_ms(p->job->record.timeout_ms);
	struct ferry_error why;
	int r = 0;

	for (;;) {
		if (!ferry_link_wait(link, FERRY_LINK_PLACED | FERRY_LINK_RUNNING,
				     ferry_clock_ns() + PAGER_SLICE_NS, &why))
			return 0;
		r = check(p, link, err);
		publish(p);
		if (r)
			return r;
		/* As long as it is being sent there is no hurry. */
		if (ferry_multifd_send_pending(p->pool))
			deadline_ns = ferry_clock_in_ms(p->job->record.timeout_ms);
		if (ferry_clock_ns() >= deadline_ns)
			return ferry_error_set(err, ETIMEDOUT, "all pages are sent, and the "
					       "destination does not say that it has them");
	}
}

int ferry_pager_run(struct ferry_pager *p, struct ferry_link *link, struct ferry_error *err)
{
	uint64_t ahead = p->job->stats.channels * (uint64_t)PAGER_AHEAD * PAGER_CHUNK_PAGES;
	uint64_t shown_ns = 0;
	int r = 0;

	while (!r && __atomic_load_n(&p->left_pages, __ATOMIC_ACQUIRE)) {
		uint64_t rate = ferry_rate_get(&p->job->rate);
		uint64_t most = ahead;

		/* Under a limit what is queued waits long. */
		if (rate && most > 2 * ferry_multifd_send_share(UINT64_MAX, 1, rate))
			most = 2 * ferry_multifd_send_share(UINT64_MAX, 1, rate);
		if (urgent(p) && most > p->job->stats.channels * PAGER_URGENT_PAGES)
			most = p->job->stats.channels * PAGER_URGENT_PAGES;
		r = send_some(p, most, err);
		if (!r)
			r = check(p, link, err);
		if (ferry_clock_ns() - shown_ns > PAGER_SLICE_NS) {
			shown_ns = ferry_clock_ns();
			publish(p);
			ferry_job_options_save(p->job);
		}
	}
	if (!r)
		r = ferry_release_step(&p->release, p->pool, p->server, true, err);
	if (!r)
		r = await_placed(p, link, err);
	/* A channel that is closed because nothing is missing any more: the word comes beside it. */
	if (r && !ferry_link_wait(link, FERRY_LINK_PLACED | FERRY_LINK_RUNNING,
				  ferry_clock_in_ms(PAGER_WORD_MS), NULL))
		r = 0;
	publish(p);
	return r;
}

/* ---- after a lost link ---- */

void ferry_pager_forget(struct ferry_pager *p)
{
	ferry_bitmap_zero(&p->placed);
	__atomic_store_n(&p->told, false, __ATOMIC_RELEASE);
}

int ferry_pager_received(void *ctx, enum ferry_wire_type type, const uint8_t *body,
			 uint32_t length)
{
	uint64_t block_pages[FERRY_RAM_MAX_BLOCKS], missing, word;
	struct ferry_pager *p = ctx;
	struct ferry_wire_received head;
	unsigned int i;
	uint32_t at;
	int r;

	if (__atomic_load_n(&p->told, __ATOMIC_ACQUIRE))
		return -EPROTO;
	if (type == FERRY_WIRE_RECEIVED_END) {
		r = ferry_wire_u64_decode(&missing, body, length);
		if (!r && missing != ferry_ram_pages(p->ram) - ferry_bitmap_count(&p->placed))
			ferry_log_debug("pages came while the destination told which it has");
		if (!r)
			__atomic_store_n(&p->told, true, __ATOMIC_RELEASE);
		return r;
	}
	for (i = 0; i < p->ram->count; i++)
		block_pages[i] = ferry_ram_block_pages(&p->ram->blocks[i]);
	r = ferry_wire_received_decode(&head, body, length, block_pages, p->ram->count);
	if (r)
		return r;
	for (at = FERRY_WIRE_RECEIVED_BYTES; at < length; at += 8) {
		memcpy(&word, body + at, sizeof(word));
		p->placed.words[head.block][(head.first_page >> 6) +
					    (at - FERRY_WIRE_RECEIVED_BYTES) / 8] = le64toh(word);
	}
	return 0;
}

/* Connect all channels anew. */
static int reconnect(struct ferry_pager *p, const struct ferry_link_params *params,
		     struct ferry_error *err)
{
	struct ferry_multifd_send_params pool_params = {
		.ram = p->ram,
		.rate = &p->job->rate,
		.codec = p->job->record.codec,
		.checksum = p->job->record.checksum,
	};
	struct ferry_multifd_send *pool;
	int fds[FERRY_WIRE_MAX_CHANNELS];
	unsigned int n = 0;
	int r;

	p->fault_fd = ferry_link_fault_channel(params, err);
	if (p->fault_fd < 0)
		return p->fault_fd;
	while (n < params->channels) {
		fds[n] = ferry_link_channel(params, (uint16_t)n, err);
		if (fds[n] < 0) {
			r = fds[n];
			goto err_close;
		}
		n++;
	}
	pool_params.fds = fds;
	pool_params.channels = n;
	r = ferry_multifd_send_create(&pool_params, &pool, err);
	if (r)
		goto err_close;
	ferry_multifd_send_shorten(pool);
	set_channels(p, pool, NULL);
	return start_server(p, err);

err_close:
	while (n--)
		close(fds[n]);
	ferry_io_close(&p->fault_fd);
	return r;
}

int ferry_pager_again(struct ferry_pager *p, const struct ferry_link_params *params,
		      struct ferry_error *err)
{
	unsigned int i;

	if (!__atomic_load_n(&p->told, __ATOMIC_ACQUIRE))
		return ferry_error_set(err, EPROTO, "the destination does not tell which pages it "
				       "has");
	ferry_pager_hang_up(p);
	ferry_bitmap_zero(&p->left);
	for (i = 0; i < p->ram->count; i++)
		ferry_bitmap_set(&p->left, i, 0, p->left.pages[i]);
	ferry_bitmap_andnot(&p->left, &p->placed);
	settle_left(p);
	return reconnect(p, params, err);
}

int ferry_pager_spill(struct ferry_pager *p, const char *kind, const char *path, uint64_t *pages,
		      struct ferry_error *err)
{
	unsigned int i;

	/* A process that has just taken over was told nothing yet: it may be any page. */
	for (i = 0; !p->knows && i < p->ram->count; i++)
		ferry_bitmap_set(&p->unsure, i, 0, p->unsure.pages[i]);
	p->knows = true;
	return ferry_spill_write(p->job, p->ram, kind, &p->unsure, path, pages, err);
}
