// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * FERRY_SYNC, FERRY_GET, FERRY_CLEAR and FERRY_SCAN: what they deliver, what they change, and
 * each error exactly. The tracker has 200 pages, so that its last bitmap word is in part
 * beyond the end; pages 3, 70 and 199 are dirty.
 */
#include "harness.h"
#include "snapshot.h"
#include "tracker.h"

#define PAGES 200UL
#define WORDS SNAPSHOT_WORDS
#define KERNEL_ADDRESS ((void *)0xffff888000000000UL)

FIXTURE(sync)
{
	int dev;
	struct tracker t;
	char *view;
	uint64_t words[WORDS];
	struct ferry_extent extents[64];
};

FIXTURE_SETUP(sync)
{
	self->dev = ferry_open();
	ASSERT_LE(0, self->dev);
	ASSERT_EQ(0, tracker_make(&self->t, PAGES));
	self->view = tracker_view(&self->t);
	ASSERT_NE(NULL, self->view);
	store(self->view + 3 * PAGE, 1);
	store(self->view + 70 * PAGE, 1);
	store(self->view + 199 * PAGE, 1);
}

/* Whether the count that watermarks go by is that of the bits. */
static bool count_is_right(struct tracker *t)
{
	struct ferry_tracker_stats stats;
	long bits = tracker_get(t);

	return bits >= 0 && !tracker_stats(t, &stats) && stats.out_dirty_pages == (uint64_t)bits;
}

FIXTURE_TEARDOWN(sync)
{
	EXPECT_TRUE(count_is_right(&self->t));
	munmap(self->view, PAGES * PAGE);
	tracker_end(&self->t);
	close(self->dev);
}

TEST_F(sync, pages_refuses)
{
	static const unsigned long numbers[] = { FERRY_SYNC, FERRY_GET, FERRY_CLEAR };
	static const char *const names[] = { "SYNC", "GET", "CLEAR" };
	char *half = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint64_t good = (uintptr_t)self->words;
	const struct {
		uint64_t first, npages, bitmap;
		int expected;
	} cases[] = {
		{ 1, 64, good, EINVAL },
		{ 63, 64, good, EINVAL },
		{ 32, 32, good, EINVAL },
		{ ~0ULL, 64, good, EINVAL },
		{ 0, 0, good, EINVAL },
		{ 64, 0, good, EINVAL },
		{ 0, 1, good, EINVAL },
		{ 0, 63, good, EINVAL },
		{ 64, 65, good, EINVAL },
		{ 0, 199, good, EINVAL },
		{ 0, 64, good + 4, EINVAL },
		{ 0, 64, good + 1, EINVAL },
		{ 0, 256, good, ERANGE },
		{ 64, 192, good, ERANGE },
		{ 256, 64, good, ERANGE },
		{ 1ULL << 40, 64, good, ERANGE },
		{ ~63ULL, 64, good, ERANGE },
		{ ~63ULL, 128, good, ERANGE },
		{ 64, ~63ULL, good, ERANGE },
		{ 64, 1ULL << 63, good, ERANGE },
		{ 0, ~63ULL, good, ERANGE },
		{ 192, ~191ULL, good, ERANGE },
		{ 0, PAGES, 0, EFAULT },
		{ 0, PAGES, 4096, EFAULT },
		{ 0, PAGES, (uintptr_t)half + PAGE, EFAULT },
		{ 0, PAGES, (uintptr_t)KERNEL_ADDRESS, EFAULT },
		{ 0, PAGES, ~7ULL, EFAULT },
		{ 192, 8, (uintptr_t)half + PAGE, EFAULT },
	};

	ASSERT_NE(MAP_FAILED, half);
	ASSERT_EQ(0, munmap(half + PAGE, PAGE));
	for (unsigned int k = 0; k < 3; k++)
		for (unsigned int i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
			struct ferry_pages a = {
				.size = sizeof(a),
				.first_page = cases[i].first,
				.npages = cases[i].npages,
				.bitmap = cases[i].bitmap,
			};
			struct snapshot before;
			int ret;

			snapshot_take(&before, &self->t);
			ret = ferry_ioctl(self->t.fd, numbers[k], &a);
			EXPECT_EQ(-cases[i].expected, ret) {
				TH_LOG("%s of %llu pages from %llu to %#llx", names[k],
				       (unsigned long long)cases[i].npages,
				       (unsigned long long)cases[i].first,
				       (unsigned long long)cases[i].bitmap);
			}
			EXPECT_UNCHANGED(&before);
			EXPECT_EQ(0, a.out_pages);
		}
}

/* The buffer ends in the middle: what could not be delivered must be dirty still. */
TEST_F(sync, keeps_what_it_cannot_deliver)
{
	enum { MANY = 64 * 1024 };
	char *buffer = mmap(NULL, 3 * PAGE, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint64_t *bitmap = (uint64_t *)(buffer + PAGE);
	unsigned int lost = 0;
	struct tracker t;
	char *view;

	ASSERT_NE(MAP_FAILED, buffer);
	ASSERT_EQ(0, munmap(buffer + 2 * PAGE, PAGE));
	ASSERT_EQ(0, tracker_make(&t, MANY));
	view = tracker_view(&t);
	ASSERT_NE(NULL, view);
	for (uint64_t page = 0; page < MANY; page += 509)
		store(view + page * PAGE, 1);
	for (int round = 0; round < 3; round++) {
		struct ferry_pages pages = { .size = sizeof(pages), .npages = MANY,
					     .bitmap = (uintptr_t)bitmap };

		memset(bitmap, 0, PAGE);
		EXPECT_EQ(-EFAULT, ferry_ioctl(t.fd, FERRY_SYNC, &pages));
		ASSERT_LE(0, tracker_get(&t));
		for (uint64_t page = 0; page < MANY; page += 509) {
			bool there = page < PAGE * 8 && bit_get(bitmap, page);

			lost += !there && !bit_get(t.bits, page);
			/* Delivered ones are clean; they are written again. */
			if (there)
				store(view + page * PAGE, 2);
		}
		ASSERT_LE(0, tracker_get(&t));
		for (uint64_t page = 0; page < MANY; page += 509)
			lost += !bit_get(t.bits, page);
		EXPECT_TRUE(count_is_right(&t));
	}
	EXPECT_EQ(0, lost);
	munmap(view, MANY * PAGE);
	munmap(buffer, 2 * PAGE);
	tracker_end(&t);
}

TEST_F(sync, takes_and_protects)
{
	struct ferry_pages pages = { .size = sizeof(pages), .first_page = 192, .npages = 8,
				     .bitmap = (uintptr_t)self->words };

	/* A part; what is beyond the end is written as 0, other words not at all. */
	memset(self->words, 0xff, sizeof(self->words));
	ASSERT_EQ(0, ferry_ioctl(self->t.fd, FERRY_SYNC, &pages));
	EXPECT_EQ(1, pages.out_pages);
	EXPECT_EQ(1UL << 7, self->words[0]);
	EXPECT_EQ(~0UL, self->words[1]);
	EXPECT_EQ(2, tracker_get(&self->t));
	pages.first_page = 64;
	pages.npages = 64;
	ASSERT_EQ(0, ferry_ioctl(self->t.fd, FERRY_SYNC, &pages));
	EXPECT_EQ(1, pages.out_pages);
	EXPECT_EQ(1UL << 6, self->words[0]);
	EXPECT_EQ(1, tracker_sync(&self->t));
	EXPECT_EQ(1UL << 3, self->t.bits[0]);
	EXPECT_EQ(0, tracker_sync(&self->t));
	for (int round = 0; round < 20; round++) {
		store(self->view + 3 * PAGE, (char)round);
		store(self->view + 199 * PAGE, (char)round);
		EXPECT_EQ(2, tracker_sync(&self->t));
		EXPECT_EQ(0, tracker_sync(&self->t));
	}
}

TEST_F(sync, every_page_by_itself)
{
	ASSERT_LE(0, tracker_sync(&self->t));
	for (uint64_t page = 0; page < PAGES; page++) {
		store(self->view + page * PAGE + page, 1);
		ASSERT_EQ(1, tracker_sync(&self->t));
		EXPECT_TRUE(bit_get(self->t.bits, page));
	}
}

TEST_F(sync, reading_is_not_writing)
{
	ASSERT_LE(0, tracker_sync(&self->t));
	for (uint64_t page = 0; page < PAGES; page++)
		load(self->view + page * PAGE);
	EXPECT_EQ(0, tracker_sync(&self->t));
	store(self->view + 50 * PAGE, 1);
	EXPECT_EQ(1, tracker_sync(&self->t));
	EXPECT_EQ(1UL << 50, self->t.bits[0]);
}

TEST_F(sync, get)
{
	struct ferry_pages pages = { .size = sizeof(pages), .first_page = 64, .npages = 128,
				     .bitmap = (uintptr_t)self->words };

	ASSERT_EQ(0, ferry_ioctl(self->t.fd, FERRY_GET, &pages));
	EXPECT_EQ(1, pages.out_pages);
	EXPECT_EQ(1UL << 6, self->words[0]);
	EXPECT_EQ(0, self->words[1]);
	for (int round = 0; round < 3; round++)
		EXPECT_EQ(3, tracker_get(&self->t));
	memset(self->t.bits, 0xff, WORDS * sizeof(uint64_t));
	EXPECT_EQ(3, tracker_get(&self->t));
	EXPECT_EQ(1UL << 7, self->t.bits[3]);
}

TEST_F(sync, clear)
{
	struct ferry_pages pages = { .size = sizeof(pages), .npages = PAGES,
				     .bitmap = (uintptr_t)self->words };

	/* Clean pages may be named and are not counted; bits beyond the end are ignored. */
	self->words[0] = 1UL << 3 | 1UL << 4;
	self->words[3] = ~0UL;
	ASSERT_EQ(0, ferry_ioctl(self->t.fd, FERRY_CLEAR, &pages));
	EXPECT_EQ(2, pages.out_pages);
	EXPECT_EQ(1UL << 3 | 1UL << 4, self->words[0]);
	EXPECT_EQ(~0UL, self->words[3]);
	EXPECT_EQ(1, tracker_get(&self->t));
	EXPECT_TRUE(bit_get(self->t.bits, 70));
	/* And is protected: the next store is noted. */
	store(self->view + 3 * PAGE, 2);
	store(self->view + 4 * PAGE, 2);
	EXPECT_EQ(3, tracker_sync(&self->t));
	memset(self->words, 0, sizeof(self->words));
	store(self->view + 3 * PAGE, 3);
	ASSERT_EQ(0, ferry_ioctl(self->t.fd, FERRY_CLEAR, &pages));
	EXPECT_EQ(0, pages.out_pages);
	EXPECT_EQ(1, tracker_get(&self->t));
	pages.first_page = 192;
	pages.npages = 8;
	self->words[0] = ~0UL;
	store(self->view + 198 * PAGE, 3);
	ASSERT_EQ(0, ferry_ioctl(self->t.fd, FERRY_CLEAR, &pages));
	EXPECT_EQ(1, pages.out_pages);
}

TEST_F(sync, scan_refuses)
{
	char *half = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint64_t good = (uintptr_t)self->extents;
	const struct {
		uint64_t first, npages, extents;
		uint32_t max;
		int expected;
	} cases[] = {
		{ 0, 0, good, 8, EINVAL },
		{ 0, PAGES, good, 0, EINVAL },
		{ 0, PAGES, good + 4, 8, EINVAL },
		{ 0, PAGES, good + 1, 8, EINVAL },
		{ PAGES, 1, good, 8, ERANGE },
		{ 0, PAGES + 1, good, 8, ERANGE },
		{ 199, 2, good, 8, ERANGE },
		{ 1, ~0ULL, good, 8, ERANGE },
		{ ~0ULL, 1, good, 8, ERANGE },
		{ ~0ULL, 2, good, 8, ERANGE },
		{ 0, ~0ULL, good, 8, ERANGE },
		{ 1ULL << 63, 1ULL << 63, good, 8, ERANGE },
		{ 0, PAGES, 0, 8, EFAULT },
		{ 0, PAGES, (uintptr_t)half + PAGE, 8, EFAULT },
		{ 0, PAGES, (uintptr_t)half + PAGE, 0xffffffff, EFAULT },
		{ 0, PAGES, (uintptr_t)KERNEL_ADDRESS, 8, EFAULT },
		{ 0, PAGES, ~7ULL, 8, EFAULT },
	};

	ASSERT_NE(MAP_FAILED, half);
	ASSERT_EQ(0, munmap(half + PAGE, PAGE));
	for (uint32_t flags = 0; flags <= FERRY_SCAN_CLEAR; flags++)
		for (unsigned int i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
			struct ferry_scan a = {
				.size = sizeof(a),
				.flags = flags,
				.first_page = cases[i].first,
				.npages = cases[i].npages,
				.extents = cases[i].extents,
				.max_extents = cases[i].max,
			};
			struct snapshot before, after;
			int ret;

			snapshot_take(&before, &self->t);
			ret = ferry_ioctl(self->t.fd, FERRY_SCAN, &a);
			EXPECT_EQ(-cases[i].expected, ret) {
				TH_LOG("case %u", i);
			}
			/* What was taken back counts as cleaned and marked for a moment. */
			snapshot_take(&after, &self->t);
			EXPECT_EQ(0, memcmp(before.words, after.words, sizeof(after.words)));
			EXPECT_EQ(0, a.out_extents);
			EXPECT_TRUE(count_is_right(&self->t));
		}
	/* Room for the first extent, none for the second. */
	for (uint32_t flags = 0; flags <= FERRY_SCAN_CLEAR; flags++) {
		struct ferry_extent *one = (struct ferry_extent *)(half + PAGE) - 1;
		struct ferry_scan scan = { .size = sizeof(scan), .flags = flags, .npages = PAGES,
					   .extents = (uintptr_t)one, .max_extents = 3 };

		memset(one, 0, sizeof(*one));
		EXPECT_EQ(-EFAULT, ferry_ioctl(self->t.fd, FERRY_SCAN, &scan));
		ASSERT_LE(2, tracker_get(&self->t));
		EXPECT_TRUE(bit_get(self->t.bits, 3) || (one->first_page == 3 && one->npages == 1));
		EXPECT_TRUE(bit_get(self->t.bits, 70));
		EXPECT_TRUE(bit_get(self->t.bits, 199));
	}
}

TEST_F(sync, scan)
{
	struct ferry_scan scan = { .size = sizeof(scan), .npages = PAGES,
				   .extents = (uintptr_t)self->extents, .max_extents = 64 };

	for (uint64_t page = 60; page < 69; page++)
		store(self->view + page * PAGE, 1);
	/* Over a word's end in one piece. */
	ASSERT_EQ(0, ferry_ioctl(self->t.fd, FERRY_SCAN, &scan));
	EXPECT_EQ(4, scan.out_extents);
	EXPECT_EQ(12, scan.out_pages);
	EXPECT_EQ(PAGES, scan.out_next_page);
	EXPECT_EQ(3, self->extents[0].first_page);
	EXPECT_EQ(1, self->extents[0].npages);
	EXPECT_EQ(60, self->extents[1].first_page);
	EXPECT_EQ(9, self->extents[1].npages);
	EXPECT_EQ(70, self->extents[2].first_page);
	EXPECT_EQ(199, self->extents[3].first_page);
	EXPECT_EQ(12, tracker_get(&self->t));

	/* From the middle to the middle. */
	scan.first_page = 62;
	scan.npages = 3;
	ASSERT_EQ(0, ferry_ioctl(self->t.fd, FERRY_SCAN, &scan));
	EXPECT_EQ(1, scan.out_extents);
	EXPECT_EQ(62, self->extents[0].first_page);
	EXPECT_EQ(3, self->extents[0].npages);
	EXPECT_EQ(65, scan.out_next_page);

	/* Clearing only what is in the range. */
	scan.flags = FERRY_SCAN_CLEAR;
	ASSERT_EQ(0, ferry_ioctl(self->t.fd, FERRY_SCAN, &scan));
	EXPECT_EQ(3, scan.out_pages);
	EXPECT_EQ(9, tracker_get(&self->t));
	EXPECT_FALSE(bit_get(self->t.bits, 62));
	EXPECT_TRUE(bit_get(self->t.bits, 61));
	EXPECT_TRUE(bit_get(self->t.bits, 65));
	store(self->view + 63 * PAGE, 2);
	EXPECT_EQ(10, tracker_get(&self->t));

	/* Nothing there: one call says so. */
	scan.first_page = 100;
	scan.npages = 50;
	ASSERT_EQ(0, ferry_ioctl(self->t.fd, FERRY_SCAN, &scan));
	EXPECT_EQ(0, scan.out_extents);
	EXPECT_EQ(0, scan.out_pages);
	EXPECT_EQ(150, scan.out_next_page);
}

TEST_F(sync, scan_goes_on_where_it_ended)
{
	for (uint32_t flags = 0; flags <= FERRY_SCAN_CLEAR; flags++)
		for (uint32_t room = 1; room <= 5; room++) {
			struct ferry_scan scan = { .size = sizeof(scan), .flags = flags,
						   .extents = (uintptr_t)self->extents,
						   .max_extents = room };
			uint64_t next = 0, seen = 0, last_end = 0;

			ASSERT_LE(0, tracker_sync(&self->t));
			for (uint64_t page = 0; page < PAGES; page++)
				if (page % 7 < 3)
					store(self->view + page * PAGE, 1);
			for (int calls = 0; next < PAGES && calls < 1000; calls++) {
				scan.first_page = next;
				scan.npages = PAGES - next;
				ASSERT_EQ(0, ferry_ioctl(self->t.fd, FERRY_SCAN, &scan));
				ASSERT_LE(scan.out_extents, room);
				ASSERT_LT(next, scan.out_next_page);
				for (uint32_t i = 0; i < scan.out_extents; i++) {
					struct ferry_extent *e = &self->extents[i];

					EXPECT_LE(last_end, e->first_page);
					EXPECT_EQ(0, e->first_page % 7);
					EXPECT_EQ(e->first_page == 196 ? 3 : 3, e->npages);
					last_end = e->first_page + e->npages;
					seen += e->npages;
				}
				next = scan.out_next_page;
			}
			EXPECT_EQ(87, seen);
			EXPECT_EQ(flags ? 0 : 87, tracker_get(&self->t));
		}
}

/* More extents than go out at once, so it fails with words taken that were not counted yet. */
TEST_F(sync, scan_keeps_what_it_cannot_deliver)
{
	enum { MANY = 4096 };
	struct ferry_scan scan = { .size = sizeof(scan), .flags = FERRY_SCAN_CLEAR,
				   .npages = MANY, .extents = 4096, .max_extents = MANY };
	struct tracker t;
	char *view;

	ASSERT_EQ(0, tracker_make(&t, MANY));
	view = tracker_view(&t);
	ASSERT_NE(NULL, view);
	for (uint64_t page = 0; page < MANY; page += 3)
		store(view + page * PAGE, 1);
	EXPECT_EQ(-EFAULT, ferry_ioctl(t.fd, FERRY_SCAN, &scan));
	EXPECT_EQ((MANY + 2) / 3, tracker_get(&t));
	EXPECT_TRUE(count_is_right(&t));
	munmap(view, MANY * PAGE);
	tracker_end(&t);
}

HARNESS_MAIN
