// SPDX-License-Identifier: GPL-2.0-or-later
/* See shadow.h. The file is read by pread(2), which can neither fault nor mark a page. */
#include "shadow.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tracker.h"

static void page_read(struct shadow *shadow, uint64_t page, char *to)
{
	ssize_t n = pread(shadow->memfd, to, PAGE, (off_t)(page * PAGE));

	if (n < 0)
		n = 0;
	memset(to + n, 0, PAGE - (size_t)n);	/* beyond the end of a truncated file */
}

int shadow_make(struct shadow *shadow, int memfd, uint64_t npages)
{
	shadow->memfd = memfd;
	shadow->npages = npages;
	shadow->copy = calloc(npages, PAGE);
	shadow->page = malloc(PAGE);
	if (!shadow->copy || !shadow->page)
		return -ENOMEM;
	shadow_all(shadow);
	return 0;
}

void shadow_end(struct shadow *shadow)
{
	free(shadow->copy);
	free(shadow->page);
}

void shadow_all(struct shadow *shadow)
{
	for (uint64_t page = 0; page < shadow->npages; page++)
		page_read(shadow, page, shadow->copy + page * PAGE);
}

void shadow_copy(struct shadow *shadow, uint64_t first, const uint64_t *bits, uint64_t npages)
{
	for (uint64_t page = 0; page < npages; page++)
		if (bit_get(bits, page))
			page_read(shadow, first + page, shadow->copy + (first + page) * PAGE);
}

long shadow_stale(struct shadow *shadow, uint64_t *where)
{
	static const char zero[PAGE];
	long stale = 0;

	for (uint64_t page = 0; page < shadow->npages; page++) {
		page_read(shadow, page, shadow->page);
		if (!memcmp(shadow->page, shadow->copy + page * PAGE, PAGE) ||
		    !memcmp(shadow->page, zero, PAGE))
			continue;
		if (!stale++)
			*where = page;
	}
	return stale;
}

uint64_t shadow_sum(struct shadow *shadow)
{
	uint64_t sum = 0;

	for (uint64_t page = 0; page < shadow->npages; page++) {
		uint64_t word;

		page_read(shadow, page, shadow->page);
		for (size_t at = 0; at < PAGE; at += sizeof(word)) {
			memcpy(&word, shadow->page + at, sizeof(word));
			sum += word;
		}
	}
	return sum;
}

static int follow_part(struct shadow *shadow, struct tracker *t, uint64_t first, uint64_t npages)
{
	struct ferry_pages pages = {
		.size = sizeof(pages),
		.first_page = first,
		.npages = npages,
		.bitmap = (uintptr_t)t->bits,
	};
	int ret = ferry_ioctl(t->fd, FERRY_SYNC, &pages);

	if (!ret)
		shadow_copy(shadow, first, t->bits, npages);
	return ret;
}

static int follow_clear(struct shadow *shadow, struct tracker *t)
{
	struct ferry_pages pages = {
		.size = sizeof(pages),
		.npages = t->npages,
		.bitmap = (uintptr_t)t->bits,
	};
	int ret = ferry_ioctl(t->fd, FERRY_GET, &pages);

	if (!ret)
		ret = ferry_ioctl(t->fd, FERRY_CLEAR, &pages);
	if (!ret)
		shadow_copy(shadow, 0, t->bits, t->npages);
	return ret;
}

static int follow_scan(struct shadow *shadow, struct tracker *t)
{
	struct ferry_extent extents[32];
	uint64_t next = 0;

	while (next < t->npages) {
		struct ferry_scan scan = {
			.size = sizeof(scan),
			.flags = FERRY_SCAN_CLEAR,
			.first_page = next,
			.npages = t->npages - next,
			.extents = (uintptr_t)extents,
			.max_extents = 32,
		};
		int ret = ferry_ioctl(t->fd, FERRY_SCAN, &scan);

		if (ret)
			return ret;
		if (scan.out_next_page <= next)
			return -EPROTO;
		for (uint32_t i = 0; i < scan.out_extents; i++)
			for (uint64_t n = 0; n < extents[i].npages; n++) {
				uint64_t page = extents[i].first_page + n;

				page_read(shadow, page, shadow->copy + page * PAGE);
			}
		next = scan.out_next_page;
	}
	return 0;
}

int shadow_follow(struct shadow *shadow, struct tracker *t, unsigned int round)
{
	uint64_t half = t->npages / 128 * 64;
	int ret;

	switch (round % 4) {
	case 1:
		ret = follow_part(shadow, t, half, t->npages - half);
		return ret || !half ? ret : follow_part(shadow, t, 0, half);
	case 2:
		return follow_clear(shadow, t);
	case 3:
		return follow_scan(shadow, t);
	default:
		return follow_part(shadow, t, 0, t->npages);
	}
}
