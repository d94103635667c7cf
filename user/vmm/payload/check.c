// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The VMM's side of the payload: what each lane has to do, and the check of all of RAM.
 * Pages are numbered through all blocks: what the VMM prepared, then the working set, then
 * the fill (bytes that do not compress and that nobody changes), then pages that nobody
 * touches, which are holes of the files as long as nobody looks.
 */
#include "vmm/payload/payload.h"

#include <stdbool.h>
#include <string.h>
#include <unistd.h>

#define SECOND 1000000000ULL
#define FILL_SWEEP (1ULL << 40) /* no sweep of the payload gets there */

static void set_cursor(struct payload_cursor *cursor, uint64_t first, uint64_t count,
		       bool scattered)
{
	uint64_t a, b, t;

	*cursor = (struct payload_cursor){ .first = first, .count = count, .stride = 1 };
	if (!scattered || count < 4)
		return;
	/* Steps of the golden ratio spread best; the next ones if there is a common divisor. */
	for (cursor->stride = count * 618 / 1000;; cursor->stride++) {
		for (a = cursor->stride, b = count; b; t = a % b, a = b, b = t)
			;
		if (a == 1)
			return;
	}
}

void payload_prepare(struct payload_lane *lane, const struct payload_work *work, uint64_t tsc_khz)
{
	uint64_t pages = work->working_set / PAYLOAD_PAGE, hot;
	uint64_t count = (pages - lane->number + lane->lanes - 1) / lane->lanes;

	lane->fill_page = lane->first_page + pages;
	lane->fill_pages = work->fill / PAYLOAD_PAGE;
	lane->zero_percent = work->zero_percent;
	lane->rate = (work->rate + lane->lanes - 1) / lane->lanes;
	lane->batch = !lane->rate || lane->rate > 25600 ? 256 : (lane->rate + 99) / 100;
	lane->second = 1000 * tsc_khz;
	lane->period = lane->rate ? lane->second * lane->batch / lane->rate : 0;
	hot = work->pattern == 2 && count >= 10 ? count / 10 : 0;
	lane->hot = hot > 0;
	set_cursor(&lane->cursor[0], 0, hot ? hot : count, work->pattern == 1);
	set_cursor(&lane->cursor[1], hot, hot ? count - hot : 0, false);
}

uint64_t payload_due(const struct payload_lane *lane, uint64_t due_ns, uint64_t now_ns)
{
	if (!lane->rate)
		return now_ns;
	due_ns += lane->batch * SECOND / lane->rate;
	/* What it missed while it was paused for long is not made up for. */
	return due_ns + SECOND < now_ns ? now_ns : due_ns;
}

static void fill_words(uint64_t page, uint64_t *words)
{
	uint64_t i;

	for (i = 0; i < PAYLOAD_WORDS; i++)
		words[i] = payload_word(page, FILL_SWEEP + i);
}

void payload_fill(const struct payload_lane *lane, const struct payload_map *map)
{
	uint64_t page;

	for (page = lane->fill_page; page < lane->fill_page + lane->fill_pages; page++)
		fill_words(page, payload_page(map, page));
}

/* All words that so many sweeps left in a page of the working set. */
static void swept_words(const struct payload_lane *lane, uint64_t page, uint64_t sweep,
			uint64_t *words)
{
	uint64_t s = sweep, word = payload_word(page, s);

	memset(words, 0, PAYLOAD_PAGE);
	if (payload_zero(lane, word, s))
		return;
	words[0] = word;
	words[PAYLOAD_WORDS - 1] = ~word;
	/* Back to where it was zero last, or every word has been written since. */
	for (; sweep - s < PAYLOAD_WORDS - 2 && !payload_zero(lane, word, s);
	     word = payload_word(page, --s))
		words[payload_body(s)] = word;
}

static uint64_t check_lane(const struct payload_lane *lane, const struct payload_map *map,
			   uint64_t *checked)
{
	uint64_t bad = 0, page, words[PAYLOAD_WORDS];
	unsigned int c;

	for (c = 0; c < 2; c++) {
		struct payload_cursor now = lane->cursor[c], cursor = now;

		cursor.step = now.step >> 32 << 32;
		cursor.where = 0;
		for (; cursor.count && cursor.step >> 32 == now.step >> 32;
		     payload_advance(&cursor)) {
			/* The one it is at may be half written: a vCPU stops anywhere. */
			if (cursor.step == now.step)
				continue;
			page = payload_number(lane, &cursor);
			swept_words(lane, page, (now.step >> 32) + (cursor.step < now.step), words);
			bad += memcmp(payload_page(map, page), words, sizeof(words)) != 0;
			++*checked;
		}
	}
	return bad;
}

/* There may be some of them, if they were sent, but then they are zero. */
static uint64_t check_untouched(const struct payload_map *map, const int *fds, uint64_t page)
{
	uint64_t bad = 0, words[PAYLOAD_WORDS], b;

	for (b = 0; b < map->blocks;
	     page -= page < map->block[b].pages ? page : map->block[b].pages, b++) {
		off_t off = (off_t)(page * PAYLOAD_PAGE),
		      end = (off_t)(map->block[b].pages * PAYLOAD_PAGE);

		/* Not through the mapping, which would allocate the pages. */
		for (; off < end && (off = lseek(fds[b], off, SEEK_DATA)) >= 0 && off < end;
		     off += PAYLOAD_PAGE)
			bad += pread(fds[b], words, sizeof(words), off) != (ssize_t)sizeof(words) ||
			       words[0] ||
			       memcmp(words, words + 1, sizeof(words) - sizeof(words[0]));
	}
	return bad;
}

uint64_t payload_check(const struct payload_lane *first, uint64_t count,
		       const struct payload_map *map, const int *fds, uint64_t *checked)
{
	uint64_t bad = 0, page = first->fill_page, end = page + first->fill_pages, i;
	const uint8_t *lane = (const uint8_t *)first;
	uint64_t words[PAYLOAD_WORDS];

	for (*checked = 0; page < end; page++, ++*checked) {
		fill_words(page, words);
		bad += memcmp(payload_page(map, page), words, sizeof(words)) != 0;
	}
	bad += check_untouched(map, fds, end);
	for (i = 0; i < count; i++, lane += PAYLOAD_LANE_PAGES * PAYLOAD_PAGE)
		bad += check_lane((const void *)lane, map, checked);
	return bad;
}
