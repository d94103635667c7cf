// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The receiving pool.
 *
 * Each channel's thread reads a packet's header and extents, checks them, and then moves the
 * data (multifd_load.c).
 *
 * Rounds: a SYNC must carry the round the channel is in. Who reads it waits
 * until every channel has; then all are in the next round. So whatever a
 * channel loads belongs to the round all are in, and a page that comes again in
 * a later round, on any channel, meets only copies that are older.
 */
#include "xport/multifd_recv.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/io.h"
#include "base/log.h"
#include "base/sched.h"
#include "wire/wire.h"
#include "xport/multifd_load.h"
#include "xport/sock.h"

void ferry_multifd_turns_init(struct ferry_multifd_turns *turns)
{
	unsigned int i;

	for (i = 0; i < FERRY_RAM_MAX_BLOCKS; i++)
		pthread_mutex_init(&turns->block[i], NULL);
}

void ferry_multifd_turns_free(struct ferry_multifd_turns *turns)
{
	unsigned int i;

	for (i = 0; i < FERRY_RAM_MAX_BLOCKS; i++)
		pthread_mutex_destroy(&turns->block[i]);
}

static int bad_packet(struct ferry_multifd_channel *ch, int r, const char *what)
{
	return ferry_multifd_fail(ch, -r, "packet %llu of round %u is invalid: %s; do both hosts "
				  "run the same release of ferry?",
				  (unsigned long long)ch->sequence, ch->round, what);
}

static int read_header(struct ferry_multifd_channel *ch)
{
	uint8_t head[FERRY_WIRE_PACKET_BYTES];
	int r = ferry_ahead_read(&ch->ahead, head, 1, FERRY_CLOCK_NEVER);

	if (r == -ENODATA)
		return ferry_multifd_fail(ch, EPIPE, "connection lost: the source closed it in "
					  "round %u", ch->round);
	if (r)
		return ferry_multifd_fail(ch, -r, "connection lost: %s", strerror(-r));
	r = ferry_multifd_read(ch, head + 1, sizeof(head) - 1);
	if (r)
		return r;
	r = ferry_wire_packet_decode(&ch->packet, head);
	if (r)
		return bad_packet(ch, r, r == -EMSGSIZE ? "its header has a length out of bounds" :
							  "its header makes no sense");
	if (ch->packet.sequence != ch->sequence)
		return bad_packet(ch, -EPROTO, "its sequence number is wrong");
	if (ch->packet.round != ch->round)
		return bad_packet(ch, -EPROTO, "it belongs to another round");
	return 0;
}

static int read_extents(struct ferry_multifd_channel *ch)
{
	struct ferry_multifd_recv *pool = ch->pool;
	unsigned int i;
	int r = ferry_multifd_read(ch, ch->head,
				   ch->packet.extents * (size_t)FERRY_WIRE_EXTENT_BYTES);

	if (r)
		return r;
	for (i = 0; i < ch->packet.extents; i++) {
		r = ferry_wire_extent_decode(&ch->extents[i],
					     ch->head + i * FERRY_WIRE_EXTENT_BYTES);
		if (r)
			return bad_packet(ch, r, "an extent makes no sense");
		if (ch->extents[i].codec && ch->extents[i].codec != pool->codec)
			return bad_packet(ch, -EPROTO, "an extent is compressed in a way that was "
					  "not agreed on");
		if (!pool->checksum != !ch->extents[i].checksum)
			return bad_packet(ch, -EPROTO, pool->checksum ?
					  "an extent has no checksum" :
					  "an extent has a checksum, which was not agreed on");
	}
	r = ferry_wire_packet_check(&ch->packet, ch->extents, pool->block_pages, pool->ram->count,
				    ch->scratch);
	switch (r) {
	case 0:
		return 0;
	case -ERANGE:
		return bad_packet(ch, r, "an extent is outside of guest memory");
	case -EEXIST:
		return bad_packet(ch, r, "its extents overlap");
	default:
		return bad_packet(ch, r, "its lengths do not add up");
	}
}

/* Return: 0, or a negative errno when the pool stopped: a fast source may not keep us busy. */
static int count(struct ferry_multifd_channel *ch)
{
	struct ferry_multifd_recv_stats *stats = &ch->pool->stats;
	unsigned int i;
	int r;

	pthread_mutex_lock(&ch->pool->crew.lock);
	stats->received_bytes += FERRY_WIRE_PACKET_BYTES + ch->packet.data_bytes +
				 ch->packet.extents * (uint64_t)FERRY_WIRE_EXTENT_BYTES;
	for (i = 0; i < ch->packet.extents; i++) {
		if (ch->extents[i].kind == FERRY_WIRE_EXTENT_NORMAL)
			stats->normal_pages += ch->extents[i].pages;
		else
			stats->zero_pages += ch->extents[i].pages;
	}
	r = ferry_crew_result(&ch->pool->crew, NULL);
	pthread_mutex_unlock(&ch->pool->crew.lock);
	return r;
}

/* Wait for all other channels. Return: 0, or a negative errno when the pool stopped. */
static int pass_barrier(struct ferry_multifd_channel *ch)
{
	struct ferry_multifd_recv *pool = ch->pool;
	struct ferry_crew *crew = &pool->crew;
	int r = 0;

	pthread_mutex_lock(&crew->lock);
	if (++pool->at_barrier == crew->channels) {
		pool->at_barrier = 0;
		pool->completed = ch->round;
		pthread_cond_broadcast(&crew->changed);
	}
	while (pool->completed != ch->round) {
		r = ferry_crew_result(crew, NULL);
		if (r)
			break;
		ferry_crew_wait(crew, FERRY_CLOCK_NEVER);
	}
	pthread_mutex_unlock(&crew->lock);
	ch->round++;
	return r;
}

/* Return: 0, or a negative errno after the pool was stopped for it. */
static int load_packet(struct ferry_multifd_channel *ch)
{
	int r = read_header(ch);

	if (r)
		return r;
	if (ch->packet.flags & FERRY_WIRE_PACKET_SYNC) {
		ch->sequence++;
		r = count(ch);
		return r ? r : pass_barrier(ch);
	}
	r = read_extents(ch);
	if (r)
		return r;
	r = ferry_multifd_load(ch);
	ch->sequence++;
	return r ? r : count(ch);
}

static void *run_channel(void *arg)
{
	struct ferry_multifd_channel *ch = arg;

	if (ch->pool->urgent)
		ferry_sched_prompt();
	while (!load_packet(ch))
		;
	if (ch->pool->ended)
		ch->pool->ended(ch->pool->ctx);
	return NULL;
}

static void free_pool(struct ferry_multifd_recv *pool)
{
	unsigned int i;

	for (i = 0; i < pool->crew.channels; i++) {
		free(pool->channels[i].buffer);
		free(pool->channels[i].unpacked);
		ferry_compress_free(pool->channels[i].compress);
		ferry_splice_free(&pool->channels[i].splice);
	}
	free(pool);
}

static int init_channel(struct ferry_multifd_recv *pool, unsigned int index,
			struct ferry_error *err)
{
	struct ferry_multifd_channel *ch = &pool->channels[index];
	int r = ferry_compress_create(pool->codec, FERRY_COMPRESS_UNPACK, &ch->compress);

	ch->pool = pool;
	ch->index = index;
	ch->round = 1;
	ch->ahead = (struct ferry_ahead){
		.fd = ch->fd, .buf = ch->ahead_buf,
		.room = pool->urgent ? sizeof(ch->ahead_buf) : 0,
	};
	if (r == -EINVAL)
		return ferry_error_set(err, EINVAL, "there is no codec %u", pool->codec);
	ch->buffer = aligned_alloc(FERRY_PAGE_SIZE, FERRY_MULTIFD_BUFFER_BYTES);
	if (ch->compress)
		ch->unpacked = malloc(FERRY_MULTIFD_BUFFER_BYTES);
	if (r || !ch->buffer || (ch->compress && !ch->unpacked))
		return ferry_error_set(err, ENOMEM, "no memory for multifd channel %u", index);
	/* Without it there is the buffer. */
	if (ferry_splice_init(&ch->splice))
		ferry_log_debug("multifd channel %u makes do without a pipe", index);
	return 0;
}

int ferry_multifd_recv_create(const struct ferry_multifd_recv_params *params,
			      struct ferry_multifd_recv **out, struct ferry_error *err)
{
	struct ferry_multifd_recv *pool;
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
	pool->ram = params->ram;
	pool->received = params->received;
	pool->codec = params->codec;
	pool->checksum = params->checksum;
	pool->sink = params->sink;
	pool->urgent = params->urgent;
	pool->turns = params->turns;
	pool->name = params->name ? params->name : "multifd channel";
	pool->ended = params->ended;
	pool->ctx = params->ctx;
	for (i = 0; i < params->ram->count; i++)
		pool->block_pages[i] = ferry_ram_block_pages(&params->ram->blocks[i]);
	for (i = 0; i < params->channels; i++) {
		pool->channels[i].fd = params->fds[i];
		if (params->sink)
			ferry_sock_shorten(params->fds[i]);
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

int ferry_multifd_recv_wait(struct ferry_multifd_recv *pool, uint32_t round, uint64_t deadline_ns,
			    struct ferry_error *err)
{
	struct ferry_crew *crew = &pool->crew;
	int r = 0;

	pthread_mutex_lock(&crew->lock);
	while (pool->completed < round) {
		r = ferry_crew_result(crew, err);
		if (r)
			break;
		if (ferry_crew_wait(crew, deadline_ns) != -ETIMEDOUT || pool->completed >= round)
			continue;
		r = ferry_error_set(err, ETIMEDOUT, "%u of %u multifd channels have finished "
				    "round %u in time", pool->at_barrier, crew->channels, round);
		break;
	}
	pthread_mutex_unlock(&crew->lock);
	return r;
}

void ferry_multifd_recv_sink(struct ferry_multifd_recv *pool,
			     const struct ferry_multifd_sink *sink)
{
	unsigned int i;

	for (i = 0; i < pool->crew.channels; i++)
		ferry_sock_shorten(pool->channels[i].fd);
	__atomic_store_n(&pool->sink, sink, __ATOMIC_RELEASE);
}

int ferry_multifd_recv_why(struct ferry_multifd_recv *pool, struct ferry_error *err)
{
	return ferry_crew_why(&pool->crew, err);
}

void ferry_multifd_recv_stats(struct ferry_multifd_recv *pool,
			      struct ferry_multifd_recv_stats *stats)
{
	pthread_mutex_lock(&pool->crew.lock);
	*stats = pool->stats;
	pthread_mutex_unlock(&pool->crew.lock);
}

void ferry_multifd_recv_abort(struct ferry_multifd_recv *pool)
{
	ferry_crew_abort(&pool->crew);
}

void ferry_multifd_recv_free(struct ferry_multifd_recv *pool)
{
	if (!pool)
		return;
	ferry_crew_end(&pool->crew, true);
	free_pool(pool);
}
