/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_XPORT_PACKET_H
#define FERRY_XPORT_PACKET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "wire/wire.h"

/*
 * One multifd packet on its way out: pages are added in any order, finish() packs and sums
 * them up and leaves a list of buffers to be written. It holds no copy of raw pages: they
 * must stay where they are until that was done. One thread's own.
 */
struct ferry_packet {
	struct ferry_wire_packet head;
	struct ferry_wire_extent extents[FERRY_WIRE_MAX_EXTENTS];
	uint64_t sequence; /* of the next one */
	uint64_t normal_pages;
	uint64_t zero_pages;

	/* After finish(). */
	uint64_t bytes; /* on the wire */
	unsigned int iov_count;
	struct iovec iov[1 + FERRY_WIRE_MAX_PACKET_PAGES];

	uint8_t codec;
	bool checksum;
	struct ferry_compress *compress; /* NULL: all is sent raw */
	uint8_t *packed;
	const uint8_t *data[FERRY_WIRE_MAX_EXTENTS]; /* the raw pages of each normal one */
	uint8_t encoded[FERRY_WIRE_PACKET_BYTES + FERRY_WIRE_MAX_EXTENTS * FERRY_WIRE_EXTENT_BYTES];
};

/**
 * ferry_packet_init() - @p is zeroed here
 * @codec: enum ferry_wire_codec, for what gets smaller by it
 * @checksum: put one into every extent
 *
 * Return: 0, -EINVAL no such codec, -ENOMEM; ferry_packet_free() is due even then.
 */
int ferry_packet_init(struct ferry_packet *p, uint8_t codec, bool checksum);
void ferry_packet_free(struct ferry_packet *p);

/** ferry_packet_begin() - an empty one; sequence numbers count up. */
void ferry_packet_begin(struct ferry_packet *p, uint16_t flags, uint32_t round);

/**
 * ferry_packet_add() - pages of a block
 * @data: their bytes, NULL for zero pages
 *
 * The caller sees to it that no more is added than FERRY_WIRE_MAX_... allow.
 */
void ferry_packet_add(struct ferry_packet *p, unsigned int block, uint64_t first_page,
		      uint64_t pages, const uint8_t *data);

/** ferry_packet_finish() - nothing comes any more: p->iov is what to send. */
void ferry_packet_finish(struct ferry_packet *p);

#endif
