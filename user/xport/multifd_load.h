/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_XPORT_MULTIFD_LOAD_H
#define FERRY_XPORT_MULTIFD_LOAD_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/ahead.h"
#include "ram/bitmap.h"
#include "ram/ram.h"
#include "wire/wire.h"
#include "xport/compress.h"
#include "xport/crew.h"
#include "xport/multifd_recv.h"
#include "xport/splice.h"

/* What is between multifd_recv.c, which reads packets, and multifd_load.c. */

/* A packet of one page, and the next one's head. */
#define FERRY_MULTIFD_AHEAD_BYTES 8192u
#define FERRY_MULTIFD_BUFFER_BYTES (FERRY_WIRE_MAX_PACKET_PAGES * FERRY_PAGE_SIZE)

/**
 * struct ferry_multifd_channel - a connection of the receiving pool, and the packet that it is at
 */
struct ferry_multifd_channel {
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

	/* Urgent packets are small, and come one by one. */
	struct ferry_ahead ahead;
	uint8_t ahead_buf[FERRY_MULTIFD_AHEAD_BYTES];
};

/* The pool, see multifd_recv.c. */
struct ferry_multifd_recv {
	struct ferry_crew crew;
	const struct ferry_ram *ram;
	struct ferry_bitmap *received;
	uint8_t codec;
	bool checksum;
	bool urgent;
	struct ferry_multifd_turns *turns;
	const struct ferry_multifd_sink *sink; /* atomic */
	const char *name;
	void (*ended)(void *ctx);
	void *ctx;
	uint64_t block_pages[FERRY_RAM_MAX_BLOCKS];

	/* All under the crew's lock. */
	uint32_t completed;	 /* the last round that every channel has synced */
	unsigned int at_barrier; /* channels that synced the round after it */
	struct ferry_multifd_recv_stats stats;

	struct ferry_multifd_channel channels[];
};

/** ferry_multifd_fail() - end the whole pool over something a channel met. Return: -@errnum. */
int __attribute__((format(printf, 3, 4)))
ferry_multifd_fail(struct ferry_multifd_channel *ch, int errnum, const char *fmt, ...);

/** ferry_multifd_read() - the next @len bytes of a packet. Return: 0; or it has failed. */
int ferry_multifd_read(struct ferry_multifd_channel *ch, void *buf, size_t len);

/**
 * ferry_multifd_load() - move the data of a packet whose extents are known and good to where
 * they say
 *
 * Return: 0; or it has failed.
 */
int ferry_multifd_load(struct ferry_multifd_channel *ch);

#endif
