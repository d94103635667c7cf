// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What the trackers report of a real process, whatever its page tables do. One body for every
 * tracker that this kernel can run; selftests/dirty/run.sh runs it on other kernels.
 */
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "dirty_rig.h"
#include "huge_pool.h"

static void reports_what_was_written(void **state)
{
	struct target t;

	target_start(&t);
	target_tell(&t, CMD_WRITE, 0, 100, 0);
	target_track(&t, *state);
	target_expect(&t, 0, 0); /* written before start(): the bulk round's */
	target_tell(&t, CMD_WRITE, 10, 5, 0);
	target_expect(&t, 10, 5);
	target_expect(&t, 0, 0);
	target_tell(&t, CMD_READ, 0, 2000, 0);
	target_expect(&t, 0, 0);
	target_tell(&t, CMD_WRITE, 1500, 1, 0); /* was read only, then written */
	target_expect(&t, 1500, 1);
	target_tell(&t, CMD_WRITE, PAGES - 3, 3, 0); /* the first touch of a page table */
	target_expect(&t, PAGES - 3, 3);
	target_tell(&t, CMD_WRITE, 0, PAGES, 0);
	target_expect(&t, 0, PAGES);

	/* collect() adds to what is there */
	target_tell(&t, CMD_WRITE, 0, 1, 0);
	ferry_bitmap_zero(&t.dirty);
	ferry_bitmap_set(&t.dirty, 0, 77, 1);
	target_collect(&t);
	assert_int_equal(ferry_bitmap_count(&t.dirty), 2);
	assert_true(ferry_bitmap_test(&t.dirty, 0, 0));
	target_end(&t);
}

/* So large that several threads scan it: nothing is lost or invented where their parts meet. */
static void parts_of_a_large_block(void **state)
{
	const uint64_t large = (1ul << 30) + 100 * FERRY_PAGE_SIZE, pages = large / FERRY_PAGE_SIZE;
	struct target t;

	target_start_on(&t, rig_memory_file(0), large, FERRY_PAGE_SIZE);
	target_track(&t, *state);
	target_expect(&t, 0, 0);
	target_tell(&t, CMD_WRITE, pages / 2 - 200, 400, 0);
	target_expect(&t, pages / 2 - 200, 400);
	target_expect(&t, 0, 0);
	target_tell(&t, CMD_WRITE, 0, 1, 0);
	target_expect(&t, 0, 1);
	target_tell(&t, CMD_WRITE, pages - 1, 1, 0);
	target_expect(&t, pages - 1, 1);
	target_end(&t);
}

/* hugetlb pages are scanned whole or not at all: where parts meet there is none in between. */
static void parts_of_hugetlb(void **state)
{
	const uint64_t count = 513, huge_pages = HUGE_SIZE / FERRY_PAGE_SIZE;
	struct target t;

	if (!huge_pool_take(count))
		skip();
	target_start_on(&t, rig_memory_file(MFD_HUGETLB), count * HUGE_SIZE, HUGE_SIZE);
	target_track(&t, *state);
	target_expect(&t, 0, 0);
	target_tell(&t, CMD_WRITE, 256 * huge_pages + 300, 1, 0);
	target_expect(&t, 256 * huge_pages, huge_pages);
	target_expect(&t, 0, 0);
	target_tell(&t, CMD_WRITE, 255 * huge_pages, 1, 0);
	target_expect(&t, 255 * huge_pages, huge_pages);
	target_tell(&t, CMD_WRITE, count * huge_pages - 1, 1, 0);
	target_expect(&t, (count - 1) * huge_pages, huge_pages);
	target_end(&t);
	huge_pool_give_back(count);
}

/* Every other page is a region of its own. */
static void many_regions(void **state)
{
	struct target t;
	uint64_t page;
	int round;

	target_start(&t);
	target_track(&t, *state);
	for (round = 0; round < 2; round++) {
		for (page = 0; page < PAGES; page += 2)
			target_tell(&t, CMD_WRITE, page + (uint64_t)round, 1, 0);
		ferry_bitmap_zero(&t.dirty);
		target_collect(&t);
		for (page = 0; page < PAGES; page++)
			assert_int_equal(ferry_bitmap_test(&t.dirty, 0, page),
					 page % 2 == (uint64_t)round);
	}
	target_end(&t);
}

/* After stop() the VMM is as before: another tracker can start, on a new userfaultfd. */
static void stop_leaves_nothing(void **state)
{
	const struct ferry_dirty_ops *ops = *state;
	struct target t;

	target_start(&t);
	target_track(&t, ops);
	target_untrack(&t);
	target_tell(&t, CMD_UFFD, 0, 0, 0);
	target_fetch_uffd(&t);
	target_track(&t, ops);
	target_tell(&t, CMD_WRITE, 3, 1, 0);
	target_expect(&t, 3, 1);
	target_end(&t);
}

/*
 * The kernel takes a page's table entry away after a write, before the look: the
 * write must still be reported.
 */
static void dropped_entries(void **state)
{
	struct target t;

	target_start(&t);
	target_track(&t, *state);
	target_tell(&t, CMD_WRITE, 0, 1024, 0);
	target_expect(&t, 0, 1024);
	target_tell(&t, CMD_WRITE, 100, 10, 0);
	target_tell(&t, CMD_MADVISE, 100, 10, MADV_DONTNEED);
	target_expect(&t, 100, 10);
	target_expect(&t, 0, 0);
	target_tell(&t, CMD_READ, 100, 10, 0);
	target_expect(&t, 0, 0);
	target_tell(&t, CMD_WRITE, 200, 8, 0);
	target_tell(&t, CMD_MADVISE, 200, 8, MADV_REMOVE);
	ferry_bitmap_zero(&t.dirty);
	target_collect(&t);
	assert_true(ferry_bitmap_test(&t.dirty, 0, 207)); /* written, then punched */
	target_end(&t);
}

/* The same where the VMM reads the page again before the look; softdirty cannot. */
static void dropped_and_read_again(void **state)
{
	struct target t;

	target_start(&t);
	target_track(&t, *state);
	target_tell(&t, CMD_WRITE, 0, 1024, 0);
	target_expect(&t, 0, 1024);
	target_tell(&t, CMD_WRITE, 100, 10, 0);
	target_tell(&t, CMD_MADVISE, 100, 10, MADV_DONTNEED);
	target_tell(&t, CMD_READ, 100, 10, 0);
	target_expect(&t, 100, 10);
	/* clean pages that are dropped and read again stay clean */
	target_tell(&t, CMD_MADVISE, 100, 10, MADV_DONTNEED);
	target_tell(&t, CMD_READ, 100, 10, 0);
	target_expect(&t, 0, 0);
	target_end(&t);
}

/* Where page tables may vanish whole, one that was there and is gone counts as written. */
static void absent_pages_are_dirty_once(void **state)
{
	struct target t;

	target_start(&t);
	/* data that the VMM never touched: put there by pwrite, as a loader does */
	assert_int_equal(pwrite(t.ram.blocks[0].fd, "x", 1, 3000 * FERRY_PAGE_SIZE), 1);
	target_track(&t, *state);
	target_expect(&t, 0, 0);
	target_tell(&t, CMD_WRITE, 512, 512, 0);
	target_expect(&t, 512, 512);
	target_tell(&t, CMD_MADVISE, 512, 512, MADV_DONTNEED);
	target_expect(&t, 512, 512);
	target_expect(&t, 0, 0);
	target_tell(&t, CMD_WRITE, 600, 1, 0);
	target_expect(&t, 600, 1);
	target_end(&t);
}

/*
 * Splitting a written huge page drops all its entries at once, and the page table with them.
 * Some kernels scan a missing page table as clean, so the tracker must not let it come to that.
 */
static void huge_pages(void **state)
{
	struct target t;
	int prefilled;

	for (prefilled = 0; prefilled < 2; prefilled++) {
		char dir[] = HUGE_DIR;

		target_start_on(&t, rig_huge_file(dir), SIZE, FERRY_PAGE_SIZE);
		rig_huge_unmount(dir);
		if (prefilled)
			target_tell(&t, CMD_WRITE, 0, PAGES, 0);
		target_track(&t, *state);
		target_expect(&t, 0, 0);
		target_tell(&t, CMD_WRITE, 0, PAGES, 0);
		target_tell(&t, CMD_MADVISE, 5, 1, MADV_REMOVE);
		target_tell(&t, CMD_MADVISE, 517, 1, MADV_REMOVE);
		target_expect(&t, 0, PAGES);
		target_expect(&t, 0, 0);
		target_tell(&t, CMD_WRITE, 600, 1, 0);
		ferry_bitmap_zero(&t.dirty);
		target_collect(&t);
		assert_true(ferry_bitmap_test(&t.dirty, 0, 600));
		target_end(&t);
	}
}

int main(void)
{
	const struct CMUnitTest pagemap[] = {
		TEST(pagemap, reports_what_was_written),
		TEST(pagemap, many_regions),
		TEST(pagemap, parts_of_a_large_block),
		TEST(pagemap, parts_of_hugetlb),
		TEST(pagemap, stop_leaves_nothing),
		TEST(pagemap, dropped_entries),
		TEST(pagemap, dropped_and_read_again),
		TEST(pagemap, huge_pages),
	};
	const struct CMUnitTest softdirty[] = {
		TEST(softdirty, reports_what_was_written),
		TEST(softdirty, many_regions),
		TEST(softdirty, stop_leaves_nothing),
		TEST(softdirty, dropped_entries),
		TEST(softdirty, absent_pages_are_dirty_once),
	};

	return RIG_RUN(pagemap) + RIG_RUN(softdirty);
}
