/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_VMM_PAYLOAD_PAYLOAD_H
#define FERRY_VMM_PAYLOAD_PAYLOAD_H

/*
 * What the guest does, and what it leaves in its RAM for the VMM to read. Each vCPU owns
 * four pages: its lane, its stack, the vector registers it loaded, and those it found.
 * Pages of the working set are dealt out to the lanes in turn. A page is written once a
 * sweep with words that follow from its number and the sweep's, and before that it is
 * compared with what the sweep before left there: no stale page goes unseen.
 */
#define PAYLOAD_LANE_PAGES 4
#define PAYLOAD_PORT 0x3f8
/* Offsets in struct payload_lane, for entry.S; batch.c asserts them. */
#define LANE_SELF 0
#define LANE_GENERATION 8
#define LANE_XMASK 16
#define LANE_STACK 24
#define LANE_RATE 72
#define LANE_GS 2048		/* what the GS base points at */
#define LANE_LOADED 8192
#define LANE_FOUND 12288

#ifndef __ASSEMBLER__
#include <stdint.h>

#define PAYLOAD_PAGE 4096
#define PAYLOAD_WORDS 512
#define PAYLOAD_MAX_BLOCKS 8

/* Guest RAM as one run of pages, at the addresses of whoever is given the map. */
struct payload_map {
	uint64_t blocks;
	struct { uint64_t addr, pages; } block[PAYLOAD_MAX_BLOCKS];
};

/*
 * A way through @count pages of the lane, over and over; @stride and @count are coprime.
 * Sweep and step are one number, since a vCPU may be stopped and looked at anywhere.
 */
struct payload_cursor {
	uint64_t first, count, stride, where;
	uint64_t step; /* sweep << 32 | pages of this sweep that are done */
};

struct payload_clock { /* how KVM publishes its clock */
	uint32_t version, pad0;
	uint64_t tsc, ns;
	uint32_t mul;
	int8_t shift;
	uint8_t flags, pad[2];
};

struct payload_lane {
	uint64_t self;		/* its address in the guest, which is its FS base */
	uint64_t generation;	/* of the values in the registers */
	uint64_t xmask;		/* state components of XSAVE; 0: only FXSAVE's */
	uint64_t stack;		/* RSP while the registers are watched */
	uint64_t number, lanes, first_page, vectors;
	uint64_t batch;		/* pages written before the registers are looked at */
	uint64_t rate;		/* pages a second, kept by the VMM; 0: all it can */
	uint64_t zero_percent, hot;
	uint64_t fill_page, fill_pages;	/* that nobody changes; after them all is zero */
	struct { uint32_t offset, bytes; } vector[8];	/* in the XSAVE area */
	struct payload_cursor cursor[2];
	/* What came of it. */
	uint64_t work, errors, tsc, clock_ns;
	uint64_t second, period;	/* in ticks of the TSC; between two batches at its rate */
	uint64_t gap, gap_end;		/* the longest beyond that, of the last second or so */
	uint64_t bad_page, bad_wanted, bad_found;	/* the first error */
	char bad_what[24];
	uint8_t pad[LANE_GS - 368];
	uint64_t gs;		/* its own address */
	uint8_t pad2[1016];
	struct payload_clock clock;
};

/* The word that @sweep leaves in @page. */
static inline uint64_t payload_word(uint64_t page, uint64_t sweep)
{
	uint64_t x = (page + 1) * 0x9e3779b97f4a7c15ULL ^ (sweep + 1) * 0xc2b2ae3d27d4eb4fULL;

	x = (x ^ x >> 29) * 0xbf58476d1ce4e5b9ULL;
	return x ^ x >> 32;
}

/* Some sweeps leave a page zero, as it was before the first. */
static inline int payload_zero(const struct payload_lane *lane, uint64_t word, uint64_t sweep)
{
	return !sweep || word % 100 < lane->zero_percent;
}

/* Besides the first and the last word a sweep writes one that is its own. */
static inline uint64_t payload_body(uint64_t sweep)
{
	return 1 + sweep % (PAYLOAD_WORDS - 2);
}

/* The number in guest RAM of the page that a cursor is at. */
static inline uint64_t payload_number(const struct payload_lane *lane,
				      const struct payload_cursor *cursor)
{
	return lane->first_page + (cursor->first + cursor->where) * lane->lanes + lane->number;
}

static inline void payload_advance(struct payload_cursor *cursor)
{
	uint64_t next = cursor->step + 1;

	cursor->where += cursor->stride;
	if (cursor->where >= cursor->count)
		cursor->where -= cursor->count;
	if ((uint32_t)next == cursor->count)
		next = ((next >> 32) + 1) << 32;
	*(volatile uint64_t *)&cursor->step = next;
}

static inline uint64_t *payload_page(const struct payload_map *map, uint64_t page)
{
	uint64_t b = 0;

	while (page >= map->block[b].pages)
		page -= map->block[b++].pages;
	return (uint64_t *)(map->block[b].addr + page * PAYLOAD_PAGE);
}

/* Write @lane->batch pages. Runs in the guest, and as it is in threads of the VMM. Return: 0. */
int payload_batch(struct payload_lane *lane, const struct payload_map *map);
/* Only in the guest: its entry, at CPL 3, and what that calls. */
void payload_entry(struct payload_lane *lane, const struct payload_map *map);
void payload_registers(struct payload_lane *lane, uint64_t bad);
/* All of it, to be copied anywhere in guest RAM. */
extern const uint8_t __start_payload[], __stop_payload[];

/* The rest is the VMM's side of it, in check.c. */
struct payload_work {
	uint64_t working_set, fill;		/* bytes from lane->first_page on */
	uint64_t rate, zero_percent;		/* of all lanes: pages a second, 0: all they can */
	uint64_t pattern;			/* 0 in order, 1 scattered, 2 mostly a tenth */
};

/* Give @lane, whose self, number, lanes and first_page are set, its part of the work. */
void payload_prepare(struct payload_lane *lane, const struct payload_work *work, uint64_t tsc_khz);

/* When the next batch may begin, after one that was due at @due_ns. */
uint64_t payload_due(const struct payload_lane *lane, uint64_t due_ns, uint64_t now_ns);

/* Write what is to be found in the fill when payload_check() looks. */
void payload_fill(const struct payload_lane *lane, const struct payload_map *map);

/*
 * Compare all of RAM with what must be there, while nobody runs: working set, fill, and that
 * untouched pages are zero. @first of @count lanes, which lie one behind the other; @fds: the
 * files of the blocks. Return: how many pages are wrong.
 */
uint64_t payload_check(const struct payload_lane *first, uint64_t count,
		       const struct payload_map *map, const int *fds, uint64_t *checked);
#endif
#endif
