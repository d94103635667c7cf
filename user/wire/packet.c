// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Multifd packets: a header, its extents, then the pages of the normal extents.
 *
 *   header   round 2, sequence 7, extents 3, data_bytes 12288
 *   extent   block 0, pages 16..17, normal, 8192 bytes
 *   extent   block 0, pages 18..99, zero
 *   extent   block 1, page 0, normal, 4096 bytes
 *   12288 bytes
 *
 * A compressed extent has less than its 4096 bytes a page. Whether its codec and its
 * checksum were agreed on is for the receiver to say: the codec of bytes knows no session.
 *
 * What decode lets through is sound by itself; ferry_wire_packet_check() holds
 * the extents against the header, the blocks and each other, so that after it
 * nothing of a packet needs to be doubted but its round and sequence.
 */
#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <string.h>

#include "wire/wire.h"

struct packet_bytes {
	uint32_t magic;
	uint16_t flags;
	uint16_t extents;
	uint32_t round;
	uint32_t data_bytes;
	uint64_t sequence;
	uint64_t reserved;
};

struct extent_bytes {
	uint16_t block;
	uint8_t kind;
	uint8_t codec;
	uint32_t pages;
	uint64_t first_page;
	uint32_t data_bytes;
	uint32_t checksum;
};

static_assert(sizeof(struct packet_bytes) == FERRY_WIRE_PACKET_BYTES, "packet size");
static_assert(offsetof(struct packet_bytes, round) == 8, "packet round");
static_assert(offsetof(struct packet_bytes, sequence) == 16, "packet sequence");
static_assert(sizeof(struct extent_bytes) == FERRY_WIRE_EXTENT_BYTES, "extent size");
static_assert(offsetof(struct extent_bytes, pages) == 4, "extent pages");
static_assert(offsetof(struct extent_bytes, first_page) == 8, "extent first_page");
static_assert(offsetof(struct extent_bytes, checksum) == 20, "extent checksum");
static_assert(FERRY_WIRE_MAX_EXTENTS <= UINT16_MAX, "extents are sorted by 16-bit indices");

void ferry_wire_packet_encode(const struct ferry_wire_packet *p,
			      uint8_t buf[FERRY_WIRE_PACKET_BYTES])
{
	struct packet_bytes b = {
		.magic = htole32(FERRY_WIRE_PACKET_MAGIC),
		.flags = htole16(p->flags),
		.extents = htole16(p->extents),
		.round = htole32(p->round),
		.data_bytes = htole32(p->data_bytes),
		.sequence = htole64(p->sequence),
	};

	memcpy(buf, &b, sizeof(b));
}

int ferry_wire_packet_decode(struct ferry_wire_packet *p,
			     const uint8_t buf[FERRY_WIRE_PACKET_BYTES])
{
	struct packet_bytes b;

	memcpy(&b, buf, sizeof(b));
	if (le32toh(b.magic) != FERRY_WIRE_PACKET_MAGIC || b.reserved)
		return -EPROTO;
	*p = (struct ferry_wire_packet){
		.flags = le16toh(b.flags),
		.extents = le16toh(b.extents),
		.round = le32toh(b.round),
		.data_bytes = le32toh(b.data_bytes),
		.sequence = le64toh(b.sequence),
	};
	if (p->flags & ~FERRY_WIRE_PACKET_SYNC)
		return -EPROTO;
	if (p->extents > FERRY_WIRE_MAX_EXTENTS ||
	    p->data_bytes > FERRY_WIRE_MAX_PACKET_PAGES * FERRY_WIRE_PAGE_BYTES)
		return -EMSGSIZE;
	if (p->flags & FERRY_WIRE_PACKET_SYNC)
		return p->extents || p->data_bytes ? -EPROTO : 0;
	return p->extents ? 0 : -EPROTO;
}

void ferry_wire_extent_encode(const struct ferry_wire_extent *e,
			      uint8_t buf[FERRY_WIRE_EXTENT_BYTES])
{
	struct extent_bytes b = {
		.block = htole16(e->block),
		.kind = e->kind,
		.codec = e->codec,
		.pages = htole32(e->pages),
		.first_page = htole64(e->first_page),
		.data_bytes = htole32(e->data_bytes),
		.checksum = htole32(e->checksum),
	};

	memcpy(buf, &b, sizeof(b));
}

int ferry_wire_extent_decode(struct ferry_wire_extent *e,
			     const uint8_t buf[FERRY_WIRE_EXTENT_BYTES])
{
	struct extent_bytes b;

	memcpy(&b, buf, sizeof(b));
	*e = (struct ferry_wire_extent){
		.block = le16toh(b.block),
		.kind = b.kind,
		.codec = b.codec,
		.pages = le32toh(b.pages),
		.first_page = le64toh(b.first_page),
		.data_bytes = le32toh(b.data_bytes),
		.checksum = le32toh(b.checksum),
	};
	if (!e->pages || e->codec >= FERRY_WIRE_CODEC_COUNT)
		return -EPROTO;
	switch (e->kind) {
	case FERRY_WIRE_EXTENT_NORMAL:
		if (e->pages > FERRY_WIRE_MAX_PACKET_PAGES)
			return -EMSGSIZE;
		/* What does not get smaller is sent as it is. */
		if (e->codec)
			return e->data_bytes && e->data_bytes < e->pages * FERRY_WIRE_PAGE_BYTES ?
				       0 : -EPROTO;
		return e->data_bytes == e->pages * FERRY_WIRE_PAGE_BYTES ? 0 : -EPROTO;
	case FERRY_WIRE_EXTENT_ZERO:
		return e->data_bytes || e->codec ? -EPROTO : 0;
	default:
		return -EPROTO;
	}
}

/* Does extent @a begin before @b? */
static int begins_before(const struct ferry_wire_extent *a, const struct ferry_wire_extent *b)
{
	if (a->block != b->block)
		return a->block < b->block;
	return a->first_page < b->first_page;
}

static void sift_down(const struct ferry_wire_extent *e, uint16_t *idx, unsigned int at,
		      unsigned int n)
{
	for (;;) {
		unsigned int child = 2 * at + 1;
		uint16_t moved;

		if (child >= n)
			return;
		if (child + 1 < n && begins_before(&e[idx[child]], &e[idx[child + 1]]))
			child++;
		if (!begins_before(&e[idx[at]], &e[idx[child]]))
			return;
		moved = idx[at];
		idx[at] = idx[child];
		idx[child] = moved;
		at = child;
	}
}

/* Heap sort: in place, no allocation (qsort(3) may), no bad case for a hostile peer to pick. */
static void sort_extents(const struct ferry_wire_extent *e, uint16_t *idx, unsigned int n)
{
	unsigned int i;

	for (i = n / 2; i-- > 0;)
		sift_down(e, idx, i, n);
	for (i = n; i-- > 1;) {
		uint16_t moved = idx[0];

		idx[0] = idx[i];
		idx[i] = moved;
		sift_down(e, idx, 0, i);
	}
}

static int overlaps(const struct ferry_wire_extent *e, unsigned int n, uint16_t *idx)
{
	unsigned int i;
	int sorted = 1;

	for (i = 0; i < n; i++) {
		idx[i] = (uint16_t)i;
		if (i && begins_before(&e[i], &e[i - 1]))
			sorted = 0;
	}
	if (!sorted) /* ferry sends them in order; others may not */
		sort_extents(e, idx, n);
	for (i = 1; i < n; i++) {
		const struct ferry_wire_extent *a = &e[idx[i - 1]], *b = &e[idx[i]];

		if (a->block == b->block && b->first_page - a->first_page < a->pages)
			return 1;
	}
	return 0;
}

int ferry_wire_packet_check(const struct ferry_wire_packet *p, const struct ferry_wire_extent *e,
			    const uint64_t *block_pages, unsigned int blocks, uint16_t *scratch)
{
	uint64_t data_bytes = 0, data_pages = 0;
	unsigned int i;

	for (i = 0; i < p->extents; i++) {
		uint64_t room;

		if (e[i].block >= blocks)
			return -ERANGE;
		room = block_pages[e[i].block];
		if (e[i].first_page >= room || e[i].pages > room - e[i].first_page)
			return -ERANGE;
		data_bytes += e[i].data_bytes;
		if (e[i].kind == FERRY_WIRE_EXTENT_NORMAL)
			data_pages += e[i].pages;
	}
	/* Few compressed bytes may not become more memory than a raw packet would need. */
	if (data_bytes != p->data_bytes || data_pages > FERRY_WIRE_MAX_PACKET_PAGES)
		return -EPROTO;
	return overlaps(e, p->extents, scratch) ? -EEXIST : 0;
}
