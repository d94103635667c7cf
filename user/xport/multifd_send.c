// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The sending pool.
 *
 * The engine queues runs of pages into a ring; each channel's thread takes a
 * share off its head, so a slow channel takes less and no channel is given work
 * in advance. A share becomes one packet:
 *
 *   queue   [b0 16..1039] [b0 2000..9000 zero] [b1 0..99]
 *   take    b0 16..271                              (256 pages at most are read)
 *   read    pread(2) into the channel's buffer      (a hole reads as zeros and stays a hole)
 *   packet  normal 16..20, zero 21..270, normal 271
 *
 * The pages are sent from the private copy. Reading guest memory through a
 * mapping would allocate every hole it touches, could fault (SIGBUS) when the VMM
 * shrinks the file, and costs a page fault a page the first time; asking for holes
 * first costs more than the copy, since SEEK_HOLE walks to the end of the data.
 * The copy also makes what is judged (zero?), told to page_sent and sent the same bytes.
 *
 * With a codec, each normal extent that gets smaller goes out packed, the others raw; what
 * counts as sent, and for the rate limit, is what is on the wire.
 *
 * Rounds: sync() waits until the ring is empty and each channel has sent its
 * SYNC behind its own last packet. Pages of the next round are only queued after
 * that, so on each connection they stand behind the SYNC.
 *
 * A huge page (hugetlb) is one channel's: who takes its beginning keeps the rest for its next
 * packets.
 */
#include "xport/multifd_send.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/io.h"
#include "ram/zero.h"
#include "wire/wire.h"
#include "xport/crew.h"
#include "xport/packet.h"
#include "xport/sock.h"

#define QUEUE_RUNS 1024u

/* A run that is known to be zero costs an extent whatever its length; a packet has room for so
 * many of them beside the extents that the pages it reads can come to. */
#define TAKE_RUNS (FERRY_WIRE_MAX_EXTENTS - FERRY_WIRE_MAX_PACKET_PAGES)

/* Fewer pages a packet cost more in headers and system calls than they win in balance. */
#define MIN_SHARE_PAGES 16u

/* Under a rate limit no packet is worth more time than this, or the flow would come in lumps. */
#define PACKETS_PER_S 20u

/* A raised limit must be felt by those who wait under the old one. */
#define RATE_SLICE_NS (50 * FERRY_NS_PER_MS)

#define BUFFER_BYTES (FERRY_WIRE_MAX_PACKET_PAGES * FERRY_PAGE_SIZE)

struct run {
	unsigned int block;
	bool zero;
	uint64_t first_page;
	uint64_t pages;
};

struct channel {
	struct ferry_multifd_send *pool;
	unsigned int index;
	int fd;
	uint32_t synced; /* round of its last SYNC; under the lock */

	struct run rest; /* of a huge page that it has begun; the thread's own */

	/* The packet under way, the thread's own. */
	bool watched;
	uint32_t round;
	unsigned int run_count;
	uint64_t run_pages;
	struct run runs[TAKE_RUNS];
	struct ferry_packet packet;
	uint8_t *buffer;
};

struct ferry_multifd_send {
	struct ferry_crew crew;
	struct ferry_multifd_send_params params;

	/* All under the crew's lock. */
	struct run queue[QUEUE_RUNS];
	unsigned int queue_head;
	unsigned int queue_count;
	uint64_t queued_pages;	/* in the ring and to be read: what the shares are cut from */
	uint64_t pending_pages; /* queued and not sent yet */
	uint64_t wake_pages;	/* who waits for so few to be pending is told */
	uint32_t round;
	bool syncing;
	bool watch;
	struct ferry_multifd_send_stats stats;

	struct channel channels[];
};

unsigned int ferry_multifd_send_share(uint64_t queued_pages, unsigned int channels,
				      uint64_t bytes_per_s)
{
	uint64_t share = queued_pages / channels;

	if (share < MIN_SHARE_PAGES)
		share = MIN_SHARE_PAGES;
	if (bytes_per_s && share > bytes_per_s / PACKETS_PER_S / FERRY_PAGE_SIZE)
		share = bytes_per_s / PACKETS_PER_S / FERRY_PAGE_SIZE;
	if (share > FERRY_WIRE_MAX_PACKET_PAGES)
		share = FERRY_WIRE_MAX_PACKET_PAGES;
	return share ? (unsigned int)share : 1;
}

/* Of a huge page: what a packet takes. The rest waits for the next one. */
static void take_rest(struct channel *ch, uint64_t bytes_per_s)
{
	uint64_t most = ferry_multifd_send_share(UINT64_MAX, 1, bytes_per_s);

	ch->run_pages = ch->rest.pages < most ? ch->rest.pages : most;
	ch->runs[0] = ch->rest;
	ch->runs[0].pages = ch->run_pages;
	ch->run_count = 1;
	ch->rest.first_page += ch->run_pages;
	ch->rest.pages -= ch->run_pages;
}

static void pop_run(struct ferry_multifd_send *pool, struct run *head, uint64_t pages)
{
	if (!head->zero)
		pool->queued_pages -= pages;
	head->first_page += pages;
	head->pages -= pages;
	if (head->pages)
		return;
	pool->queue_head = (pool->queue_head + 1) % QUEUE_RUNS;
	pool->queue_count--;
}

/* (locked) A huge page at the head of the ring, or what is there of it. Return: false, it is none. */
static bool take_huge(struct channel *ch)
{
	struct ferry_multifd_send *pool = ch->pool;
	struct run *head = &pool->queue[pool->queue_head];
	uint64_t unit = ferry_ram_unit_pages(&pool->params.ram->blocks[head->block]), n;

	if (head->zero || unit == 1)
		return false;
	n = unit - head->first_page % unit;
	ch->rest = *head;
	ch->rest.pages = head->pages < n ? head->pages : n;
	pop_run(pool, head, ch->rest.pages);
	return true;
}

/* (locked) Move up to a share from the ring to the channel. */
static void take_small(struct channel *ch, uint64_t bytes_per_s)
{
	struct ferry_multifd_send *pool = ch->pool;
	unsigned int room = ferry_multifd_send_share(pool->queued_pages, pool->crew.channels,
						     bytes_per_s);

	while (pool->queue_count && ch->run_count < TAKE_RUNS) {
		struct run *head = &pool->queue[pool->queue_head];
		bool huge = ferry_ram_is_huge(&pool->params.ram->blocks[head->block]);
		uint64_t limit = head->zero ? UINT32_MAX : room;
		uint64_t n = head->pages < limit ? head->pages : limit;

		if (!n || (huge && !head->zero))
			break;
		ch->runs[ch->run_count] = *head;
		ch->runs[ch->run_count++].pages = n;
		ch->run_pages += n;
		if (!head->zero)
			room -= (unsigned int)n;
		pop_run(pool, head, n);
	}
}

/* (locked) What the next packet carries. */
static void take_runs(struct channel *ch, uint64_t bytes_per_s)
{
	struct ferry_multifd_send *pool = ch->pool;
	bool full = pool->queue_count == QUEUE_RUNS;

	ch->run_count = 0;
	ch->run_pages = 0;
	if (ch->rest.pages || take_huge(ch))
		take_rest(ch, bytes_per_s);
	else
		take_small(ch, bytes_per_s);
	ch->round = pool->round;
	ch->watched = pool->watch && pool->params.page_sent;
	/* Room in the ring. Otherwise nobody waits for this, and waking the engine's thread for
	 * each packet of a long run would take a processor from the channels. */
	if (full && pool->queue_count < QUEUE_RUNS)
		pthread_cond_broadcast(&pool->crew.changed);
}

enum work { WORK_PACKET, WORK_SYNC, WORK_END };

static enum work next_work(struct channel *ch)
{
	struct ferry_multifd_send *pool = ch->pool;
	struct ferry_crew *crew = &pool->crew;
	uint64_t bytes_per_s = ferry_rate_get(pool->params.rate);
	enum work work = WORK_END;

	pthread_mutex_lock(&crew->lock);
	while (!crew->err.errnum) {
		if (pool->queue_count || ch->rest.pages) {
			take_runs(ch, bytes_per_s);
			work = WORK_PACKET;
			break;
		}
		if (pool->syncing && ch->synced != pool->round) {
			ch->round = pool->round;
			work = WORK_SYNC;
			break;
		}
		ferry_crew_wait(crew, FERRY_CLOCK_NEVER);
	}
	pthread_mutex_unlock(&crew->lock);
	return work;
}

/* End everything: this channel could not go on. */
static void fail(struct channel *ch, int errnum, const char *what)
{
	struct ferry_error why;

	ferry_error_set(&why, errnum, "multifd channel %u: %s: %s", ch->index, what,
			strerror(errnum));
	ferry_crew_stop(&ch->pool->crew, &why);
}

/* Read a run to @at and add its pages to the packet. Return: 0 or -errno. */
static int add_run(struct channel *ch, const struct run *run, uint8_t *at)
{
	const struct ferry_multifd_send_params *params = &ch->pool->params;
	const struct ferry_ram_block *block = &params->ram->blocks[run->block];
	uint64_t i;
	int r;

	r = ferry_io_pread(block->fd, at, run->pages << FERRY_PAGE_SHIFT,
			   (off_t)(block->fd_off_bytes + (run->first_page << FERRY_PAGE_SHIFT)));
	if (r)
		return r;
	for (i = 0; i < run->pages; i++) {
		uint8_t *page = at + (i << FERRY_PAGE_SHIFT);
		bool zero = ferry_zero_is(page, FERRY_PAGE_SIZE);

		ferry_packet_add(&ch->packet, run->block, run->first_page + i, 1,
				 zero ? NULL : page);
		if (ch->watched)
			params->page_sent(params->ctx, run->block, run->first_page + i,
					  zero ? NULL : page);
	}
	return 0;
}

static void add_zero_run(struct channel *ch, const struct run *run)
{
	const struct ferry_multifd_send_params *params = &ch->pool->params;
	uint64_t i;

	ferry_packet_add(&ch->packet, run->block, run->first_page, run->pages, NULL);
	for (i = 0; ch->watched && i < run->pages; i++)
		params->page_sent(params->ctx, run->block, run->first_page + i, NULL);
}

/* Wait for the right to send @bytes. Return: 0, or -ECANCELED when the pool stopped. */
static int pay(struct channel *ch, uint64_t bytes)
{
	struct ferry_crew *crew = &ch->pool->crew;

	for (;;) {
		uint64_t now = ferry_clock_ns();
		uint64_t wait_ns = ferry_rate_take(ch->pool->params.rate, bytes, now);
		uint64_t until = now + (wait_ns < RATE_SLICE_NS ? wait_ns : RATE_SLICE_NS);
		bool stopped;

		if (!wait_ns)
			return 0;
		pthread_mutex_lock(&crew->lock);
		while (!crew->err.errnum && ferry_crew_wait(crew, until) != -ETIMEDOUT)
			;
		stopped = crew->err.errnum != 0;
		pthread_mutex_unlock(&crew->lock);
		if (stopped)
			return -ECANCELED;
	}
}

/* Return: 0, or a negative errno after the pool was stopped for it. */
static int send_packet(struct channel *ch)
{
	struct ferry_multifd_send_stats *stats = &ch->pool->stats;
	struct ferry_packet *p = &ch->packet;
	int r;

	ferry_packet_finish(p);
	r = p->head.extents ? pay(ch, p->bytes) : 0; /* a SYNC is free: it must not come late */
	if (r)
		return r;
	r = ferry_io_writev(ch->fd, p->iov, (int)p->iov_count, 0, FERRY_CLOCK_NEVER);
	if (r) {
		fail(ch, -r, "connection lost");
		return r;
	}
	pthread_mutex_lock(&ch->pool->crew.lock);
	stats->sent_bytes += p->bytes;
	stats->normal_pages += p->normal_pages;
	stats->zero_pages += p->zero_pages;
	pthread_mutex_unlock(&ch->pool->crew.lock);
	return 0;
}

static int send_runs(struct channel *ch)
{
	struct ferry_multifd_send *pool = ch->pool;
	uint8_t *at = ch->buffer;
	unsigned int i;
	int r;

	ferry_packet_begin(&ch->packet, 0, ch->round);
	for (i = 0; i < ch->run_count; i++) {
		const struct run *run = &ch->runs[i];

		if (run->zero) {
			add_zero_run(ch, run);
			continue;
		}
		r = add_run(ch, run, at);
		if (r) {
			fail(ch, -r, "reading the guest's memory file");
			return r;
		}
		at += run->pages << FERRY_PAGE_SHIFT;
	}
	r = send_packet(ch);
	if (r)
		return r;
	pthread_mutex_lock(&pool->crew.lock);
	pool->pending_pages -= ch->run_pages;
	if (pool->pending_pages <= pool->wake_pages)
		pthread_cond_broadcast(&pool->crew.changed); /* room(), drain() */
	pthread_mutex_unlock(&pool->crew.lock);
	return 0;
}

static int send_sync(struct channel *ch)
{
	struct ferry_crew *crew = &ch->pool->crew;
	int r;

	ferry_packet_begin(&ch->packet, FERRY_WIRE_PACKET_SYNC, ch->round);
	r = send_packet(ch);
	if (r)
		return r;
	pthread_mutex_lock(&crew->lock);
	ch->synced = ch->round;
	pthread_cond_broadcast(&crew->changed);
	pthread_mutex_unlock(&crew->lock);
	return 0;
}

static void *run_channel(void *arg)
{
	struct channel *ch = arg;

	for (;;) {
		enum work work = next_work(ch);

		if (work == WORK_END || (work == WORK_PACKET ? send_runs(ch) : send_sync(ch)))
			return NULL;
	}
}

static void free_pool(struct ferry_multifd_send *pool)
{
	unsigned int i;

	for (i = 0; i < pool->crew.channels; i++) {
		free(pool->channels[i].buffer);
		ferry_packet_free(&pool->channels[i].packet);
	}
	free(pool);
}

static int init_channel(struct ferry_multifd_send *pool, unsigned int index,
			struct ferry_error *err)
{
	struct channel *ch = &pool->channels[index];
	int r = ferry_packet_init(&ch->packet, pool->params.codec, pool->params.checksum);

	ch->pool = pool;
	ch->index = index;
	if (r == -EINVAL)
		return ferry_error_set(err, EINVAL, "there is no codec %u", pool->params.codec);
	ch->buffer = aligned_alloc(FERRY_PAGE_SIZE, BUFFER_BYTES);
	if (r || !ch->buffer)
		return ferry_error_set(err, ENOMEM, "no memory for multifd channel %u", index);
	return 0;
}

int ferry_multifd_send_create(const struct ferry_multifd_send_params *params,
			      struct ferry_multifd_send **out, struct ferry_error *err)
{
	struct ferry_multifd_send *pool;
	unsigned int i;
	int r;

	*out = NULL;
	pool = calloc(1, sizeof(*pool) + params->channels * sizeof(pool->channels[0]));
	if (!pool)
		return ferry_error_set(err, ENOMEM, "no memory for %u multifd channels",
				       params->channels);
	r = ferry_crew_init(&pool->crew, params->fds, params->channels, err);
	if (r)
		goto err_free;
	pool->params = *params;
	pool->params.fds = NULL; /* the crew has its own copy */
	pool->round = 1;
	for (i = 0; i < params->channels; i++) {
		pool->channels[i].fd = params->fds[i];
		r = init_channel(pool, i, err);
		if (!r)
			r = ferry_crew_start(&pool->crew, run_channel, &pool->channels[i], err);
		if (r)
			goto err_end;
	}
	*out = pool;
	return 0;

err_end:
	ferry_crew_end(&pool->crew, false);
err_free:
	free_pool(pool);
	return r;
}

void ferry_multifd_send_watch(struct ferry_multifd_send *pool, bool on)
{
	pthread_mutex_lock(&pool->crew.lock);
	pool->watch = on;
	pthread_mutex_unlock(&pool->crew.lock);
}

/* (locked) Append, or make the last run longer. Return: false when the ring is full. */
static bool push_run(struct ferry_multifd_send *pool, const struct run *run)
{
	unsigned int tail = (pool->queue_head + pool->queue_count) % QUEUE_RUNS;
	struct run *last = &pool->queue[(tail + QUEUE_RUNS - 1) % QUEUE_RUNS];

	if (pool->queue_count && last->block == run->block && last->zero == run->zero &&
	    last->first_page + last->pages == run->first_page) {
		last->pages += run->pages;
	} else if (pool->queue_count < QUEUE_RUNS) {
		pool->queue[tail] = *run;
		pool->queue_count++;
	} else {
		return false;
	}
	if (!run->zero)
		pool->queued_pages += run->pages;
	pool->pending_pages += run->pages;
	return true;
}

int ferry_multifd_send_queue(struct ferry_multifd_send *pool, unsigned int block,
			     uint64_t first_page, uint64_t pages, bool zero,
			     struct ferry_error *err)
{
	struct run run = { .block = block, .zero = zero, .first_page = first_page, .pages = pages };
	const struct ferry_ram *ram = pool->params.ram;
	uint64_t block_pages = block < ram->count ? ferry_ram_block_pages(&ram->blocks[block]) : 0;
	int r;

	if (first_page > block_pages || pages > block_pages - first_page)
		return ferry_error_set(err, EINVAL, "%llu pages from %llu on are not in block %u",
				       (unsigned long long)pages, (unsigned long long)first_page,
				       block);
	if (!pages)
		return 0;
	pthread_mutex_lock(&pool->crew.lock);
	for (;;) {
		r = ferry_crew_result(&pool->crew, err);
		if (r || push_run(pool, &run))
			break;
		ferry_crew_wait(&pool->crew, FERRY_CLOCK_NEVER);
	}
	if (!r)
		pthread_cond_broadcast(&pool->crew.changed);
	pthread_mutex_unlock(&pool->crew.lock);
	return r;
}

/* (locked) */
static bool all_synced(const struct ferry_multifd_send *pool)
{
	unsigned int i;

	for (i = 0; i < pool->crew.channels; i++)
		if (pool->channels[i].synced != pool->round)
			return false;
	return true;
}

int ferry_multifd_send_sync(struct ferry_multifd_send *pool, uint32_t round,
			    struct ferry_error *err)
{
	int r;

	pthread_mutex_lock(&pool->crew.lock);
	if (round != pool->round) {
		r = ferry_error_set(err, EINVAL, "sync of round %u in round %u", round,
				    pool->round);
		goto out;
	}
	pool->syncing = true;
	pthread_cond_broadcast(&pool->crew.changed);
	for (;;) {
		r = ferry_crew_result(&pool->crew, err);
		if (r || all_synced(pool))
			break;
		ferry_crew_wait(&pool->crew, FERRY_CLOCK_NEVER);
	}
	pool->syncing = false;
	if (!r)
		pool->round++;
out:
	pthread_mutex_unlock(&pool->crew.lock);
	return r;
}

int ferry_multifd_send_room(struct ferry_multifd_send *pool, uint64_t pages, uint64_t deadline_ns,
			    struct ferry_error *err)
{
	int r;

	pthread_mutex_lock(&pool->crew.lock);
	pool->wake_pages = pages;
	for (;;) {
		r = ferry_crew_result(&pool->crew, err);
		if (r || pool->pending_pages <= pages)
			break;
		r = ferry_crew_wait(&pool->crew, deadline_ns);
		if (r)
			break;
	}
	pool->wake_pages = 0;
	pthread_mutex_unlock(&pool->crew.lock);
	return r;
}

void ferry_multifd_send_shorten(struct ferry_multifd_send *pool)
{
	unsigned int i;

	for (i = 0; i < pool->crew.channels; i++)
		ferry_sock_shorten(pool->channels[i].fd);
}

int ferry_multifd_send_drain(struct ferry_multifd_send *pool, uint64_t deadline_ns,
			     struct ferry_error *err)
{
	return ferry_multifd_send_room(pool, 0, deadline_ns, err);
}

uint64_t ferry_multifd_send_pending(struct ferry_multifd_send *pool)
{
	uint64_t pages;

	pthread_mutex_lock(&pool->crew.lock);
	pages = pool->pending_pages;
	pthread_mutex_unlock(&pool->crew.lock);
	return pages;
}

void ferry_multifd_send_stats(struct ferry_multifd_send *pool,
			      struct ferry_multifd_send_stats *stats)
{
	pthread_mutex_lock(&pool->crew.lock);
	*stats = pool->stats;
	pthread_mutex_unlock(&pool->crew.lock);
}

void ferry_multifd_send_abort(struct ferry_multifd_send *pool)
{
	ferry_crew_abort(&pool->crew);
}

void ferry_multifd_send_free(struct ferry_multifd_send *pool)
{
	if (!pool)
		return;
	ferry_crew_end(&pool->crew, true);
	free_pool(pool);
}
