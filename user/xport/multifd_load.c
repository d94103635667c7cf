// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * From a channel of the receiving pool into guest memory, in one of two ways:
 *
 *   socket -> buffer (-> unpacked) -> pwrite(2) into the memory file
 *   socket -> pipe -> memory file, both by splice(2)
 *
 * The second has one copy less, and hugetlb memory cannot do it. It is taken where nothing has to
 * be known of the data before it is in place: no codec, no checksum, and no guest that runs on
 * what comes. Otherwise nothing is written before the whole packet was found good: its head, what
 * its extents unpack to, and their checksums. What a connection that is lost inside a packet leaves
 * half written is never used: that ends the migration, and the next one begins with empty memory.
 *
 * With a sink (postcopy) a page is claimed when it is there, good and whole, then written, then
 * shown to whoever waits for it; what nobody needs any more is dropped. So a lost connection
 * leaves no page claimed.
 *
 * @received is the truth about which pages hold data. Zero pages that are not
 * in it are holes already and cost nothing, others are punched out.
 */
#include "xport/multifd_load.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/io.h"
#include "ram/hash.h"

/* Two system calls and the pipe cost more than copying less than this. */
#define SPLICE_MIN_PAGES 16u

/*
 * Who touches a page that has been claimed waits until all that was claimed with it is shown,
 * also if the channel has lost the processor meanwhile. Fewer at a time are dearer to show.
 */
#define CLAIM_PAGES 16u

int ferry_multifd_fail(struct ferry_multifd_channel *ch, int errnum, const char *fmt, ...)
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
static int lost(struct ferry_multifd_channel *ch, int r)
{
	if (r == -ENODATA || r == -EPIPE)
		return ferry_multifd_fail(
			ch, EPIPE, "connection lost: it ended inside packet %llu of round %u",
			(unsigned long long)ch->sequence, ch->round);
	return ferry_multifd_fail(ch, -r, "connection lost: %s", strerror(-r));
}

int ferry_multifd_read(struct ferry_multifd_channel *ch, void *buf, size_t len)
{
	int r = ferry_ahead_read(&ch->ahead, buf, len, FERRY_CLOCK_NEVER);

	return r ? lost(ch, r) : 0;
}

/* Where data came before, make holes. */
static int load_zero(struct ferry_multifd_channel *ch, const struct ferry_wire_extent *e)
{
	const struct ferry_ram_block *block = &ch->pool->ram->blocks[e->block];
	struct ferry_bitmap *received = ch->pool->received;
	uint64_t end = e->first_page + e->pages;
	uint64_t page = ferry_bitmap_next_atomic(received, e->block, e->first_page, end);
	int r;

	while (page < end) {
		uint64_t pages = 1;

		while (page + pages < end && ferry_bitmap_test(received, e->block, page + pages))
			pages++;
		r = ferry_ram_zero(block, page, pages);
		if (r)
			return ferry_multifd_fail(ch, -r, "making a hole in memory block '%s': %s",
						  block->name, strerror(-r));
		ferry_bitmap_clear_atomic(received, e->block, page, pages);
		page = ferry_bitmap_next_atomic(received, e->block, page + pages, end);
	}
	return 0;
}

/* End it over one extent, naming where in guest memory it belongs. */
static int bad_extent(struct ferry_multifd_channel *ch, const struct ferry_wire_extent *e,
		      const char *what)
{
	return ferry_multifd_fail(ch, EBADMSG,
				  "memory block '%s', pages %llu to %llu, in packet %llu of round "
				  "%u: %s; nothing of it was used",
				  ch->pool->ram->blocks[e->block].name,
				  (unsigned long long)e->first_page,
				  (unsigned long long)(e->first_page + e->pages - 1),
				  (unsigned long long)ch->sequence, ch->round, what);
}

/* Read the data and see that all of it is good; ch->data tells where the pages are then. */
static int read_data(struct ferry_multifd_channel *ch)
{
	uint8_t *at = ch->buffer, *unpacked = ch->unpacked;
	unsigned int i;
	int r = ferry_multifd_read(ch, at, ch->packet.data_bytes);

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
		if (e->checksum &&
		    e->checksum != ferry_hash_extent(e->block, e->first_page, e->pages, data))
			return bad_extent(ch, e,
					  "its checksum is wrong: it was changed on the way "
					  "or in a host's memory");
		ch->data[i] = data;
	}
	return r;
}

static int cannot_write(struct ferry_multifd_channel *ch, const struct ferry_ram_block *block,
			int r)
{
	return ferry_multifd_fail(ch, -r, "writing to memory block '%s': %s", block->name,
				  strerror(-r));
}

/* Return: is it our turn to write to the block? If not, it is urgent and somebody else writes. */
static bool turn_begins(struct ferry_multifd_channel *ch, unsigned int block)
{
	pthread_mutex_t *turn = &ch->pool->turns->block[block];

	return !(ch->pool->urgent ? pthread_mutex_trylock(turn) : pthread_mutex_lock(turn));
}

static void turn_ends(struct ferry_multifd_channel *ch, unsigned int block, bool turn)
{
	if (turn)
		pthread_mutex_unlock(&ch->pool->turns->block[block]);
}

/*
 * pwrite(2) is the quickest, for it makes a page and fills it in one step. Out of turn it would
 * wait for the file's lock, and a page fault of our own mapping does not.
 */
static int write_pages(struct ferry_multifd_channel *ch, unsigned int index, uint64_t first,
		       uint64_t pages, const uint8_t *data, bool turn)
{
	const struct ferry_ram_block *block = &ch->pool->ram->blocks[index];

	if (!turn || ferry_ram_is_huge(block))
		return ferry_ram_write(block, first, pages, data);
	return ferry_io_pwrite(block->fd, data, (size_t)pages << FERRY_PAGE_SHIFT,
			       (off_t)(block->fd_off_bytes + (first << FERRY_PAGE_SHIFT)));
}

static int load_normal(struct ferry_multifd_channel *ch, const struct ferry_wire_extent *e,
		       const uint8_t *data)
{
	bool turn = turn_begins(ch, e->block);
	int r = write_pages(ch, e->block, e->first_page, e->pages, data, turn);

	turn_ends(ch, e->block, turn);
	if (r)
		return cannot_write(ch, &ch->pool->ram->blocks[e->block], r);
	ferry_bitmap_set_atomic(ch->pool->received, e->block, e->first_page, e->pages);
	return 0;
}

/*
 * Claim pages and write them. Not before it is our turn to write: a page that is claimed is one
 * that nobody else brings.
 */
static int claim_and_write(struct ferry_multifd_channel *ch, const struct ferry_multifd_sink *sink,
			   unsigned int block, uint64_t first, uint64_t *pages, const uint8_t *data)
{
	bool turn;
	int r = 0;

	/* A huge page is shown when all of it is there. */
	if (*pages > CLAIM_PAGES && !ferry_ram_is_huge(&ch->pool->ram->blocks[block]))
		*pages = CLAIM_PAGES;
	turn = turn_begins(ch, block);
	*pages = sink->claim(sink->ctx, block, first, *pages);
	if (*pages)
		r = write_pages(ch, block, first, *pages, data, turn);
	turn_ends(ch, block, turn);
	if (!r)
		return 0;
	sink->unclaim(sink->ctx, block, first, *pages);
	return cannot_write(ch, &ch->pool->ram->blocks[block], r);
}

/* Bring what nobody else does; @data is NULL for zeros, which are holes there already. */
static int load_claimed(struct ferry_multifd_channel *ch, const struct ferry_multifd_sink *sink,
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
			return ferry_multifd_fail(
				ch, -r, "showing pages of memory block '%s' to the guest: %s",
				ch->pool->ram->blocks[e->block].name, strerror(-r));
		done += n;
	}
	return r;
}

static int load_extent(struct ferry_multifd_channel *ch, const struct ferry_wire_extent *e,
		       const uint8_t *data)
{
	const struct ferry_multifd_sink *sink;

	sink = __atomic_load_n(&ch->pool->sink, __ATOMIC_ACQUIRE);
	if (sink)
		return load_claimed(ch, sink, e, data);
	return data ? load_normal(ch, e, data) : load_zero(ch, e);
}

/* May the packet's data go into the memory file unseen, and is it worth it? */
static bool may_splice(const struct ferry_multifd_channel *ch)
{
	const struct ferry_multifd_recv *pool = ch->pool;
	unsigned int i;

	if (ch->compress || pool->checksum || !ch->splice.room_bytes ||
	    __atomic_load_n(&pool->sink, __ATOMIC_ACQUIRE))
		return false;
	/* One small extent, and all of the packet is sooner read in one go. */
	for (i = 0; i < ch->packet.extents; i++)
		if (ch->extents[i].kind == FERRY_WIRE_EXTENT_NORMAL &&
		    (ch->extents[i].pages < SPLICE_MIN_PAGES ||
		     ferry_ram_is_huge(&pool->ram->blocks[ch->extents[i].block])))
			return false;
	return true;
}

static int splice_pages(struct ferry_multifd_channel *ch, const struct ferry_wire_extent *e)
{
	const struct ferry_ram_block *block = &ch->pool->ram->blocks[e->block];
	bool at_file;
	int r = ferry_splice_to_file(
		&ch->splice, ch->fd, block->fd,
		(off_t)(block->fd_off_bytes + (e->first_page << FERRY_PAGE_SHIFT)),
		(size_t)e->pages << FERRY_PAGE_SHIFT, &ch->pool->turns->block[e->block], &at_file);

	if (r)
		return at_file ? cannot_write(ch, block, r) : lost(ch, r);
	ferry_bitmap_set_atomic(ch->pool->received, e->block, e->first_page, e->pages);
	return 0;
}

int ferry_multifd_load(struct ferry_multifd_channel *ch)
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
