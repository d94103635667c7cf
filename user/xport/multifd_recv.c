// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The receiving pool.
 *
 * Each channel's thread reads a packet's header and extents, checks them, and
 * then moves the data, in one of two ways:
 *
 *   socket -> buffer (-> unpacked) -> pwrite(2) into the memory file
 *   socket -> pipe -> memory file, both by splice(2)
 *
 * The second has one copy less. It is taken where nothing has to be known of the data before it
 * is in place: no codec, no checksum, and no guest that runs on what comes. Otherwise nothing
 * is written before the whole packet was found good: its head, what its extents unpack to, and
 * their checksums. What a connection that is lost inside a packet leaves half written is never
 * used: that ends the migration, and the next one begins with empty memory.
 *
 * Rounds: a SYNC must carry the round the channel is in. Who reads it waits
 * until every channel has; then all are in the next round. So whatever a
 * channel loads belongs to the round all are in, and a page that comes again in
 * a later round, on any channel, meets only copies that are older.
 *
 * With a sink (postcopy) a page is claimed when it is there, good and whole, then written, then
 * shown to whoever waits for it; what nobody needs any more is dropped. So a lost connection
 * leaves no page claimed.
 *
 * @received is the truth about which pages hold data. Zero pages that are not
 * in it are holes already and cost nothing, others are punched out.
 */
#include "xport/multifd_recv.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/io.h"
#include "base/log.h"
#include "base/sched.h"
#include "ram/hash.h"
#include "wire/wire.h"
#include "xport/compress.h"
#include "xport/crew.h"
#include "xport/sock.h"
#include "xport/splice.h"

/* Two system calls and the pipe cost more than copying less than this. */
#define SPLICE_MIN_PAGES 16u

/*
 * Who touches a page that has been claimed waits until all that was claimed with it is shown,
 * also if the channel has lost the processor meanwhile. Fewer at a time are dearer to show.
 */
#define CLAIM_PAGES 16u

#define BUFFER_BYTES (FERRY_WIRE_MAX_PACKET_PAGES * FERRY_PAGE_SIZE)

struct channel {
	struct ferry_multifd_recv *pool;
	unsigned int index;
	int fd;
	uint64_t sequence; /* of the packet that comes next */
	uint32_t round;

	/* The packet under way. */
	struct ferry_wire_packet packet;
	struct ferry_wire_extent extents[FERRY_WIRE_MAX_EXTENTS];
	uint16_t scratch[FERRY_WIRE_MAX_EXTENTS];
	uint8_t head[FERRY_WIRE_MAX_EXTENTS * FERRY_WIRE_EXTENT_BYTES];
	const uint8_t *data[FERRY_WIRE_MAX_EXTENTS]; /* the pages of each normal one */
	uint8_t *buffer;
	struct ferry_compress *compress; /* NULL: all must be raw */
	uint8_t *unpacked;		 /* a packet has no more pages than the buffer takes */
	struct ferry_splice splice;
};

struct ferry_multifd_recv {
	struct ferry_crew crew;
	const struct ferry_ram *ram;
	struct ferry_bitmap *received;
	uint8_t codec;
	bool checksum;
	bool mapped, urgent;
	const struct ferry_multifd_sink *sink; /* atomic */
	const char *name;
	void (*ended)(void *ctx);
	void *ctx;
	uint64_t block_pages[FERRY_RAM_MAX_BLOCKS];
	/*
	 * One channel at a time writes to a block. The kernel sees to that in any case, but who
	 * waits for its inode lock spins: with two channels writing took half as much CPU again.
	 */
	pthread_mutex_t writing[FERRY_RAM_MAX_BLOCKS];

	/* All under the crew's lock. */
	uint32_t completed;	 /* the last round that every channel has synced */
	unsigned int at_barrier; /* channels that synced the round after it */
	struct ferry_multifd_recv_stats stats;

	struct channel channels[];
};

/* End everything. Return: -@errnum. */
static int __attribute__((format(printf, 3, 4)))
fail(struct channel *ch, int errnum, const char *fmt, ...)
{
	struct ferry_error why;
	va_list ap;
	char text[512];

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	ferry_error_set(&why, errnum, "%s %u: %s", ch->pool->name, ch->index, text);
	ferry_crew_stop(&ch->pool->crew, &why);
	return -errnum;
}

/* The connection ended inside a packet. */
static int lost(struct channel *ch, int r)
{
	if (r == -ENODATA || r == -EPIPE)
		return fail(ch, EPIPE, "connection lost: it ended inside packet %llu of round %u",
			    (unsigned long long)ch->sequence, ch->round);
	return fail(ch, -r, "connection lost: %s", strerror(-r));
}

/* Read from the connection, inside a packet. */
static int read_more(struct channel *ch, void *buf, size_t len)
{
	int r = ferry_io_read(ch->fd, buf, len, FERRY_CLOCK_NEVER);

	return r ? lost(ch, r) : 0;
}

static int bad_packet(struct channel *ch, int r, const char *what)
{
	return fail(ch, -r, "packet %llu of round %u is invalid: %s; do both hosts run the same "
		    "release of ferry?", (unsigned long long)ch->sequence, ch->round, what);
}

static int read_header(struct channel *ch)
{
	uint8_t head[FERRY_WIRE_PACKET_BYTES];
	int r = ferry_io_read(ch->fd, head, 1, FERRY_CLOCK_NEVER);

	if (r == -ENODATA)
		return fail(ch, EPIPE, "connection lost: the source closed it in round %u",
			    ch->round);
	if (r)
		return fail(ch, -r, "connection lost: %s", strerror(-r));
	r = read_more(ch, head + 1, sizeof(head) - 1);
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

static int read_extents(struct channel *ch)
{
	struct ferry_multifd_recv *pool = ch->pool;
	unsigned int i;
	int r = read_more(ch, ch->head, ch->packet.extents * (size_t)FERRY_WIRE_EXTENT_BYTES);

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

/* Where data came before, make holes. */
static int load_zero(struct channel *ch, const struct ferry_wire_extent *e)
{
	const struct ferry_ram_block *block = &ch->pool->ram->blocks[e->block];
	struct ferry_bitmap *received = ch->pool->received;
	uint64_t end = e->first_page + e->pages;
	uint64_t page = ferry_bitmap_next_atomic(received, e->block, e->first_page, end);

	while (page < end) {
		uint64_t pages = 1;

		while (page + pages < end && ferry_bitmap_test(received, e->block, page + pages))
			pages++;
		if (fallocate(block->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			      (off_t)(block->fd_off_bytes + (page << FERRY_PAGE_SHIFT)),
			      (off_t)(pages << FERRY_PAGE_SHIFT)))
			return fail(ch, errno, "making a hole in memory block '%s': %s",
				    block->name, strerror(errno));
		ferry_bitmap_clear_atomic(received, e->block, page, pages);
		page = ferry_bitmap_next_atomic(received, e->block, page + pages, end);
	}
	return 0;
}

/* End it over one extent, naming where in guest memory it belongs. */
static int bad_extent(struct channel *ch, const struct ferry_wire_extent *e, const char *what)
{
	return fail(ch, EBADMSG, "memory block '%s', pages %llu to %llu, in packet %llu of round "
		    "%u: %s; nothing of it was used", ch->pool->ram->blocks[e->block].name,
		    (unsigned long long)e->first_page,
		    (unsigned long long)(e->first_page + e->pages - 1),
		    (unsigned long long)ch->sequence, ch->round, what);
}

/* Read the data and see that all of it is good; ch->data tells where the pages are then. */
static int read_data(struct channel *ch)
{
	uint8_t *at = ch->buffer, *unpacked = ch->unpacked;
	unsigned int i;
	int r = read_more(ch, at, ch->packet.data_bytes);

	for (i = 0; !r && i < ch->packet.extents; i++) {
		const struct ferry_wire_extent *e = &ch->extents[i];
		const uint8_t *data = e->kind == FERRY_WIRE_EXTENT_NORMAL ? at : NULL;

		at += e->data_bytes;
		if (e->codec) {
			size_t bytes = (size_t)e->pages << FERRY_PAGE_SHIFT;

			if (ferry_compress_unpack(ch->compress, data, e->data_bytes, unpacked,
						  bytes))
				return bad_extent(ch, e, "its compressed data is damaged");
			data = unpacked;
			unpacked += bytes;
		}
		if (e->checksum && e->checksum != ferry_hash_extent(e->block, e->first_page,
								    e->pages, data))
			return bad_extent(ch, e, "its checksum is wrong: it was changed on the way "
					  "or in a host's memory");
		ch->data[i] = data;
	}
	return r;
}

static int cannot_write(struct channel *ch, const struct ferry_ram_block *block, int r)
{
	return fail(ch, -r, "writing to memory block '%s': %s", block->name, strerror(-r));
}

/* The block's turn, where one has to be had. */
static void turn_begins(struct channel *ch, unsigned int block)
{
	if (!ch->pool->mapped)
		pthread_mutex_lock(&ch->pool->writing[block]);
}

static void turn_ends(struct channel *ch, unsigned int block)
{
	if (!ch->pool->mapped)
		pthread_mutex_unlock(&ch->pool->writing[block]);
}

/* In the block's turn. */
static int write_pages(struct channel *ch, unsigned int index, uint64_t first, uint64_t pages,
		       const uint8_t *data)
{
	const struct ferry_ram_block *block = &ch->pool->ram->blocks[index];

	if (ch->pool->mapped)
		return ferry_ram_write(block, first, pages, data);
	return ferry_io_pwrite(block->fd, data, (size_t)pages << FERRY_PAGE_SHIFT,
			       (off_t)(block->fd_off_bytes + (first << FERRY_PAGE_SHIFT)));
}

static int load_normal(struct channel *ch, const struct ferry_wire_extent *e, const uint8_t *data)
{
	int r;

	turn_begins(ch, e->block);
	r = write_pages(ch, e->block, e->first_page, e->pages, data);
	turn_ends(ch, e->block);
	if (r)
		return cannot_write(ch, &ch->pool->ram->blocks[e->block], r);
	ferry_bitmap_set_atomic(ch->pool->received, e->block, e->first_page, e->pages);
	return 0;
}

/*
 * Claim pages and write them. Not before it is our turn to write: a page that is claimed is one
 * that nobody else brings.
 */
static int claim_and_write(struct channel *ch, const struct ferry_multifd_sink *sink,
			   unsigned int block, uint64_t first, uint64_t *pages, const uint8_t *data)
{
	int r = 0;

	if (*pages > CLAIM_PAGES)
		*pages = CLAIM_PAGES;
	turn_begins(ch, block);
	*pages = sink->claim(sink->ctx, block, first, *pages);
	if (*pages)
		r = write_pages(ch, block, first, *pages, data);
	turn_ends(ch, block);
	if (!r)
		return 0;
	sink->unclaim(sink->ctx, block, first, *pages);
	return cannot_write(ch, &ch->pool->ram->blocks[block], r);
}

/* Bring what nobody else does; @data is NULL for zeros, which are holes there already. */
static int load_claimed(struct channel *ch, const struct ferry_multifd_sink *sink,
			const struct ferry_wire_extent *e, const uint8_t *data)
{
	uint64_t done = 0;
	int r = 0;

	while (done < e->pages && !r) {
		uint64_t first = e->first_page + done, n = e->pages - done;

		if (data)
			r = claim_and_write(ch, sink, e->block, first, &n,
					    data + (done << FERRY_PAGE_SHIFT));
		else
			n = sink->claim(sink->ctx, e->block, first, n);
		if (r)
			return r;
		if (!n) {
			done += sink->skip(sink->ctx, e->block, first, e->pages - done);
			continue;
		}
		r = sink->placed(sink->ctx, e->block, first, n, !data);
		if (r)
			return fail(ch, -r, "showing pages of memory block '%s' to the guest: %s",
				    ch->pool->ram->blocks[e->block].name, strerror(-r));
		done += n;
	}
	return r;
}

static int load_extent(struct channel *ch, const struct ferry_wire_extent *e, const uint8_t *data)
{
	const struct ferry_multifd_sink *sink;

	sink = __atomic_load_n(&ch->pool->sink, __ATOMIC_ACQUIRE);
	if (sink)
		return load_claimed(ch, sink, e, data);
	return data ? load_normal(ch, e, data) : load_zero(ch, e);
}

/* May the packet's data go into the memory file unseen, and is it worth it? */
static bool may_splice(const struct channel *ch)
{
	const struct ferry_multifd_recv *pool = ch->pool;
	unsigned int i;

	if (ch->compress || pool->checksum || !ch->splice.room_bytes ||
	    __atomic_load_n(&pool->sink, __ATOMIC_ACQUIRE))
		return false;
	/* One small extent, and all of the packet is sooner read in one go. */
	for (i = 0; i < ch->packet.extents; i++)
		if (ch->extents[i].kind == FERRY_WIRE_EXTENT_NORMAL &&
		    ch->extents[i].pages < SPLICE_MIN_PAGES)
			return false;
	return true;
}

static int splice_pages(struct channel *ch, const struct ferry_wire_extent *e)
{
	const struct ferry_ram_block *block = &ch->pool->ram->blocks[e->block];
	bool at_file;
	int r = ferry_splice_to_file(&ch->splice, ch->fd, block->fd,
				     (off_t)(block->fd_off_bytes +
					     (e->first_page << FERRY_PAGE_SHIFT)),
				     (size_t)e->pages << FERRY_PAGE_SHIFT,
				     &ch->pool->writing[e->block], &at_file);

	if (r)
		return at_file ? cannot_write(ch, block, r) : lost(ch, r);
	ferry_bitmap_set_atomic(ch->pool->received, e->block, e->first_page, e->pages);
	return 0;
}

static int move_data(struct channel *ch)
{
	bool splice = may_splice(ch);
	unsigned int i;
	int r = splice ? 0 : read_data(ch);

	for (i = 0; !r && i < ch->packet.extents; i++) {
		const struct ferry_wire_extent *e = &ch->extents[i];

		if (splice && e->kind == FERRY_WIRE_EXTENT_NORMAL)
			r = splice_pages(ch, e);
		else
			r = load_extent(ch, e, splice ? NULL : ch->data[i]);
	}
	return r;
}

/* Return: 0, or a negative errno when the pool stopped: a fast source may not keep us busy. */
static int count(struct channel *ch)
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
static int pass_barrier(struct channel *ch)
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
static int load_packet(struct channel *ch)
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
	r = move_data(ch);
	ch->sequence++;
	return r ? r : count(ch);
}

static void *run_channel(void *arg)
{
	struct channel *ch = arg;

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

	for (i = 0; i < FERRY_RAM_MAX_BLOCKS; i++)
		pthread_mutex_destroy(&pool->writing[i]);
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
	struct channel *ch = &pool->channels[index];
	int r = ferry_compress_create(pool->codec, FERRY_COMPRESS_UNPACK, &ch->compress);

	ch->pool = pool;
	ch->index = index;
	ch->round = 1;
	if (r == -EINVAL)
		return ferry_error_set(err, EINVAL, "there is no codec %u", pool->codec);
	ch->buffer = aligned_alloc(FERRY_PAGE_SIZE, BUFFER_BYTES);
	if (ch->compress)
		ch->unpacked = malloc(BUFFER_BYTES);
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
	for (i = 0; i < FERRY_RAM_MAX_BLOCKS; i++)
		pthread_mutex_init(&pool->writing[i], NULL);
	r = ferry_crew_init(&pool->crew, params->fds, params->channels, err);
	if (r)
		goto err_free;
	pool->ram = params->ram;
	pool->received = params->received;
	pool->codec = params->codec;
	pool->checksum = params->checksum;
	pool->sink = params->sink;
	pool->mapped = params->mapped;
	pool->urgent = params->urgent;
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
