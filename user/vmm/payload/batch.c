// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The part of the payload that is C: freestanding, without vector registers (the guest
 * has its own values in them), without data outside the section it is copied with.
 */
#include "vmm/payload/payload.h"

#include <stddef.h>

_Static_assert(offsetof(struct payload_lane, generation) == LANE_GENERATION, "");
_Static_assert(offsetof(struct payload_lane, xmask) == LANE_XMASK, "");
_Static_assert(offsetof(struct payload_lane, stack) == LANE_STACK, "");
_Static_assert(offsetof(struct payload_lane, rate) == LANE_RATE, "");
_Static_assert(offsetof(struct payload_lane, gs) == LANE_GS, "");
_Static_assert(offsetof(struct payload_lane, clock) % 64 == 0, "KVM wants it within a page");
_Static_assert(sizeof(struct payload_lane) <= PAYLOAD_PAGE, "");

#define PAYLOAD __attribute__((section("payload"), noinline))
#define barrier() __asm__ volatile("" ::: "memory")

/* @what: up to eight letters, as a number, since strings would be data. */
static PAYLOAD void wrong(struct payload_lane *lane, uint64_t what, uint64_t page,
			  uint64_t wanted, uint64_t found)
{
	if (!lane->errors) {
		*(uint64_t *)lane->bad_what = what;
		lane->bad_page = page;
		lane->bad_wanted = wanted;
		lane->bad_found = found;
	}
	barrier();
	lane->errors++;
}

#define WHAT(a, b, c, d, e, f) ((uint64_t)(a) | (uint64_t)(b) << 8 | (uint64_t)(c) << 16 | \
	(uint64_t)(d) << 24 | (uint64_t)(e) << 32 | (uint64_t)(f) << 40)

/* Time never goes back, on either clock; long gaps are what a migration costs the guest. */
static PAYLOAD void look_at_clocks(struct payload_lane *lane)
{
	volatile struct payload_clock *clock = &lane->clock;
	uint64_t now = __builtin_ia32_rdtsc(), gap = 0, ns;
	uint32_t version = clock->version;

	if (now < lane->tsc)
		wrong(lane, WHAT('T', 'S', 'C', 0, 0, 0), 0, lane->tsc, now);
	else if (lane->tsc && now - lane->tsc > lane->period)
		gap = now - lane->tsc - lane->period;
	if (gap > lane->gap || now - lane->gap_end > lane->second) {
		lane->gap = gap;
		lane->gap_end = now;
	}
	lane->tsc = now;
	if (!version || version & 1)
		return; /* not published, or being written */
	barrier();
	now = __builtin_ia32_rdtsc() - clock->tsc;
	now = clock->shift < 0 ? now >> -clock->shift : now << clock->shift;
	ns = clock->ns + (uint64_t)((unsigned __int128)now * clock->mul >> 32);
	barrier();
	if (clock->version != version)
		return;
	if (ns < lane->clock_ns)
		wrong(lane, WHAT('c', 'l', 'o', 'c', 'k', 0), 0, lane->clock_ns, ns);
	lane->clock_ns = ns;
}

static PAYLOAD void visit(struct payload_lane *lane, volatile uint64_t *words, uint64_t page,
			  uint64_t sweep)
{
	uint64_t old = payload_word(page, sweep), body = payload_body(sweep);
	uint64_t new = payload_word(page, sweep + 1), zero = payload_zero(lane, old, sweep);
	uint64_t first = zero ? 0 : old, last = zero ? 0 : ~old;

	if (words[0] != first)
		wrong(lane, WHAT('p', 'a', 'g', 'e', 0, 0), page, first, words[0]);
	else if (words[PAYLOAD_WORDS - 1] != last)
		wrong(lane, WHAT('p', 'a', 'g', 'e', 0, 0), page, last, words[PAYLOAD_WORDS - 1]);
	else if (words[body] != first)
		wrong(lane, WHAT('p', 'a', 'g', 'e', 0, 0), page, first, words[body]);
	if (payload_zero(lane, new, sweep + 1)) {
		uint64_t count = PAYLOAD_WORDS;

		__asm__ volatile("rep stosq" : "+D"(words), "+c"(count) : "a"(0) : "memory");
		return;
	}
	words[0] = new;
	words[payload_body(sweep + 1)] = new;
	words[PAYLOAD_WORDS - 1] = ~new;
}

__attribute__((section("payload")))
int payload_batch(struct payload_lane *lane, const struct payload_map *map)
{
	uint64_t n, page;

	look_at_clocks(lane);
	for (n = lane->batch; n; n--) {
		struct payload_cursor *cursor = &lane->cursor[lane->hot && lane->work % 10 == 9];

		page = payload_number(lane, cursor);
		visit(lane, payload_page(map, page), page, cursor->step >> 32);
		/* The page a cursor is at may be half written; those before it are whole. */
		barrier();
		payload_advance(cursor);
		lane->work++;
	}
	return 0;
}

/* Check what was found in the vector registers, if any was, and give them new values. */
__attribute__((section("payload")))
void payload_registers(struct payload_lane *lane, uint64_t bad)
{
	uint64_t *loaded = (uint64_t *)((uint8_t *)lane + LANE_LOADED);
	uint64_t *found = (uint64_t *)((uint8_t *)lane + LANE_FOUND);
	uint64_t v, w, i;

	if (bad)
		wrong(lane, WHAT('G', 'P', 'R', 's', 0, 0), bad, lane->generation, 0);
	for (v = 0; v < lane->vectors; v++) {
		uint64_t end = (lane->vector[v].offset + lane->vector[v].bytes) / 8;

		for (w = lane->vector[v].offset / 8; w < end; w++) {
			if (lane->generation && found[w] != loaded[w])
				wrong(lane, WHAT('v', 'e', 'c', 't', 'o', 'r'), w, loaded[w],
				      found[w]);
			loaded[w] = payload_word(lane->generation + 1, w);
			found[w] = 0;
		}
	}
	for (i = 0; i < 8; i++) { /* x87: 80 bits each; the control words in word 0 and 3 */
		if (lane->generation && (found[4 + 2 * i] != loaded[4 + 2 * i] ||
					 (uint16_t)found[5 + 2 * i] != loaded[5 + 2 * i]))
			wrong(lane, WHAT('x', '8', '7', 0, 0, 0), i, loaded[4 + 2 * i],
			      found[4 + 2 * i]);
		loaded[4 + 2 * i] = payload_word(lane->generation + 1, i) | 1ULL << 63;
		loaded[5 + 2 * i] = payload_word(lane->generation + 1, i + 8) & 0x7ffe;
	}
	if (lane->generation && ((uint16_t)found[0] != (uint16_t)loaded[0] ||
				 (uint32_t)found[3] != (uint32_t)loaded[3]))
		wrong(lane, WHAT('M', 'X', 'C', 'S', 'R', 0), found[0], loaded[3], found[3]);
	lane->generation++;
	/* All exceptions masked, all registers in use, another way of rounding each time. */
	loaded[0] = 0xff0000037fULL | (lane->generation & 3) << 10;
	loaded[3] = 0x1f80 | (lane->generation & 3) << 13;
	loaded[64] = lane->xmask;
}
