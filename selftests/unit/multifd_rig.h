/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef SELFTESTS_UNIT_MULTIFD_RIG_H
#define SELFTESTS_UNIT_MULTIFD_RIG_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"
#include "ram/bitmap.h"
#include "ram/ram.h"
#include "xport/multifd_recv.h"
#include "xport/multifd_send.h"

#define RIG_CHANNELS 4
#define RIG_BLOCKS 3

extern const uint64_t rig_block_pages[RIG_BLOCKS];

/*
 * Both multifd pools. A rig has a source and a destination RAM of three blocks (none a
 * multiple of 2 MiB, one that begins inside its file) and one socket pair a channel: ours[]
 * belongs to the sending pool or to the test, theirs[] to the receiving one.
 */
struct rig {
	unsigned int channels;
	int ours[RIG_CHANNELS];
	int theirs[RIG_CHANNELS];
	struct ferry_ram from, to;
	struct ferry_bitmap received;
	struct ferry_rate rate;
	uint8_t codec;
	bool checksum;
	struct ferry_multifd_turns turns;
	struct ferry_multifd_send *send;
	struct ferry_multifd_recv *recv;
	struct ferry_error err;
};

/* When a test gives up waiting. */
uint64_t rig_soon(void);

struct rig *rig_make(unsigned int channels, bool tcp);
void rig_start_send(struct rig *rig, void (*page_sent)(void *, unsigned int, uint64_t,
						       const void *), void *ctx);
void rig_start_recv(struct rig *rig);
void rig_free(struct rig *rig);

/* Where in its block's file a page is. */
off_t rig_page_off(unsigned int block, uint64_t page);
/* A page whose every word tells what it is; version 0 is a page of zeros. */
void rig_make_page(uint64_t *words, unsigned int block, uint64_t page, uint64_t version);
void rig_write_page(struct rig *rig, unsigned int block, uint64_t page, uint64_t version);
void rig_read_page(const struct ferry_ram *ram, unsigned int block, uint64_t page, void *out);
void rig_check_page(struct rig *rig, unsigned int block, uint64_t page, uint64_t version);
void rig_check_equal(struct rig *rig);
uint64_t rig_allocated_pages(const struct ferry_ram *ram);

void rig_queue(struct rig *rig, unsigned int block, uint64_t first, uint64_t pages, bool zero);
void rig_finish_round(struct rig *rig, uint32_t round);
/* Dense, scattered, and a written page of zeros. Return: pages with data. */
uint64_t rig_fill(struct rig *rig);
/* Everything in one round, which arrives as it was; what both pools counted. */
void rig_move_all(struct rig *rig, struct ferry_multifd_send_stats *sent,
		  struct ferry_multifd_recv_stats *got);
/* Put a packet of one page, or a SYNC (@pages 0), on the wire by hand. */
void rig_put_packet(struct rig *rig, unsigned int channel, uint64_t sequence, uint32_t round,
		    unsigned int pages, uint64_t version);
/* @r was returned, and is what rig->err says, in a text with @says in it. */
void rig_expect_error(struct rig *rig, int r, const char *says);

#endif
