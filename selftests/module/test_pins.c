// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Pages under direct I/O. What a device will write has no fault to be seen by, so such a
 * page stays dirty until the I/O ended. The slow disk holds each request for 50 ms: plenty
 * of syncs happen in between, and the test demands that some did.
 */
#include "harness.h"
#include "direct.h"
#include "shadow.h"
#include "tracker.h"

#include <fcntl.h>
#include <pthread.h>

#define PAGES 64UL
enum { FIRST = 8, REQUESTS = 6 };
/* Apart, so that nobody makes one request of several. */
#define BLOCK(i) (10 + 7 * (i))

FIXTURE(pins)
{
	struct tracker t;
	struct shadow shadow;
	char *at;
	char *io;		/* the mapping that the disk writes to */
	struct direct direct;
};

FIXTURE_VARIANT(pins)
{
	enum direct_way way;
	bool written;		/* the pages are writable when the I/O begins */
};

FIXTURE_VARIANT_ADD(pins, aio) { .way = DIRECT_AIO };
FIXTURE_VARIANT_ADD(pins, aio_written) { .way = DIRECT_AIO, .written = true };
FIXTURE_VARIANT_ADD(pins, uring) { .way = DIRECT_URING };
FIXTURE_VARIANT_ADD(pins, uring_written) { .way = DIRECT_URING, .written = true };
FIXTURE_VARIANT_ADD(pins, fixed) { .way = DIRECT_URING_FIXED };
FIXTURE_VARIANT_ADD(pins, fixed_written) { .way = DIRECT_URING_FIXED, .written = true };

FIXTURE_SETUP(pins)
{
	ASSERT_EQ(0, direct_fill(DISK_SLOW));
	ASSERT_EQ(0, tracker_make(&self->t, PAGES));
	self->at = tracker_view(&self->t);
	ASSERT_NE(NULL, self->at);
	/* The kernel refuses to register a view; a VMM has done so before it was switched. */
	self->io = self->at;
	if (variant->way == DIRECT_URING_FIXED)
		self->io = file_map(self->t.memfd, PAGES);
	ASSERT_NE(NULL, self->io);
	ASSERT_EQ(0, tracker_stop(&self->t));
	ASSERT_EQ(0, direct_make(&self->direct, variant->way, DISK_SLOW,
				 self->io + FIRST * PAGE, REQUESTS * PAGE));
	ASSERT_EQ(0, tracker_start(&self->t));
	if (variant->written)
		for (uint64_t page = 0; page < PAGES; page++)
			store(self->at + page * PAGE, 1);
	ASSERT_EQ(0, shadow_make(&self->shadow, self->t.memfd, PAGES));
}

FIXTURE_TEARDOWN(pins)
{
	direct_end(&self->direct);
	shadow_end(&self->shadow);
	tracker_end(&self->t);
}

static bool arrived(const char *page, uint64_t block)
{
	/* The last word: the device writes them in order. */
	uint64_t word = *(const volatile uint64_t *)(page + PAGE - 8);

	return word == direct_expect(block, PAGE / 8 - 1);
}

/* Until a sync finds nothing; pins may take a moment to be dropped. */
static int becomes_clean(struct tracker *t)
{
	uint64_t end = clock_ns() + 20000000000ULL;

	while (tracker_sync(t) != 0) {
		if (clock_ns() > end)
			return -ETIMEDOUT;
		usleep(1000);
	}
	return 0;
}

TEST_F(pins, stay_dirty_until_the_end)
{
	bool fixed = variant->way == DIRECT_URING_FIXED;
	unsigned int rounds = 0, in_flight = 0, clean = 0;
	uint64_t where = 0;
	int left = REQUESTS;

	ASSERT_LE(0, tracker_sync(&self->t));
	for (uint64_t i = 0; i < REQUESTS; i++)
		ASSERT_EQ(0, direct_submit(&self->direct, self->io + (FIRST + i) * PAGE,
						   BLOCK(i)));
	while (left > 0) {
		int n;

		ASSERT_EQ(0, shadow_follow(&self->shadow, &self->t, 4 * rounds++));
		for (uint64_t i = 0; i < REQUESTS; i++) {
			bool dirty = bit_get(self->t.bits, FIRST + i);

			/* Not arrived after the sync: was under way in it, and must be in it. */
			if (arrived(self->at + (FIRST + i) * PAGE, BLOCK(i)))
				continue;
			in_flight++;
			clean += !dirty;
		}
		n = direct_reap(&self->direct, false);
		ASSERT_LE(0, n);
		left -= n;
	}
	EXPECT_EQ(0, clean) {
		TH_LOG("pages were clean under direct I/O");
	}
	/* Several syncs, each with pages in flight. */
	EXPECT_LT(2 * REQUESTS, in_flight);
	ASSERT_EQ(0, shadow_follow(&self->shadow, &self->t, 0));
	EXPECT_EQ(0, shadow_stale(&self->shadow, &where)) {
		TH_LOG("the disk's last block is not in the copy: page %u", (unsigned int)where);
	}
	for (uint64_t i = 0; i < REQUESTS; i++)
		EXPECT_TRUE(arrived(self->at + (FIRST + i) * PAGE, BLOCK(i)));
	if (fixed) {
		/* Pinned as long as they are registered. */
		EXPECT_LE(REQUESTS, tracker_sync(&self->t));
		EXPECT_LE(REQUESTS, tracker_sync(&self->t));
	} else {
		EXPECT_EQ(0, becomes_clean(&self->t));
		store(self->at + FIRST * PAGE, 9);
		EXPECT_EQ(1, tracker_sync(&self->t));
	}
}

TEST_F(pins, unregistered_become_clean)
{
	if (variant->way != DIRECT_URING_FIXED)
		return;
	EXPECT_LE(REQUESTS, tracker_sync(&self->t));
	EXPECT_LE(REQUESTS, tracker_sync(&self->t));
	direct_end(&self->direct);
	EXPECT_EQ(0, becomes_clean(&self->t));
	ASSERT_EQ(0, direct_make(&self->direct, DIRECT_AIO, DISK_SLOW, NULL, 0));
}

/* "Pages that are pinned at that moment are dirty at once." */
TEST_F(pins, of_before_the_start)
{
	struct ferry_tracker_stats stats;
	unsigned int seen = 0;

	ASSERT_EQ(0, tracker_stop(&self->t));
	ASSERT_LE(0, tracker_sync(&self->t));
	for (uint64_t i = 0; i < REQUESTS; i++)
		ASSERT_EQ(0, direct_submit(&self->direct, self->io + (FIRST + i) * PAGE,
						   BLOCK(i)));
	ASSERT_EQ(0, tracker_start(&self->t));
	ASSERT_LE(0, tracker_get(&self->t));
	for (uint64_t i = 0; i < REQUESTS; i++) {
		if (arrived(self->at + (FIRST + i) * PAGE, BLOCK(i)))
			continue;
		seen++;
		EXPECT_TRUE(bit_get(self->t.bits, FIRST + i));
	}
	EXPECT_LT(0, seen);
	ASSERT_LE(0, tracker_sync(&self->t));
	ASSERT_EQ(0, tracker_stats(&self->t, &stats));
	EXPECT_LT(0, stats.out_pinned_pages);
	for (int left = REQUESTS; left > 0;) {
		int n = direct_reap(&self->direct, true);

		ASSERT_LE(0, n);
		left -= n;
	}
}

/* Refused by the kernel, or such pages stay dirty. */
TEST_F(pins, registered_through_the_view)
{
	struct direct direct;
	int ret = direct_make(&direct, DIRECT_URING_FIXED, DISK_FAST, self->at + 50 * PAGE,
			      4 * PAGE);

	if (ret) {
		EXPECT_TRUE(ret == -EOPNOTSUPP || ret == -EFAULT);
		return;
	}
	for (int round = 0; round < 3; round++) {
		ASSERT_LE(4, tracker_sync(&self->t));
		for (uint64_t page = 50; page < 54; page++)
			EXPECT_TRUE(bit_get(self->t.bits, page));
	}
	direct_end(&direct);
}

/* A sync of one page that is being taken while main goes on. */
struct taker {
	struct tracker *t;
	_Atomic int begun;
	pthread_t thread;
	long dirty;
};

static void *take(void *arg)
{
	struct taker *taker = arg;

	taker->begun = 1;
	taker->dirty = tracker_sync(taker->t);
	return NULL;
}

/*
 * Direct I/O that begins while a sync is under way, into a page that can still be written:
 * it takes no fault, and is seen only by one who looks for pins after the page is protected.
 * The disk is kept busy, so that the sync is over before the block arrives.
 */
TEST_F(pins, begun_in_a_sync)
{
	enum { BEFORE = 3, ROUNDS = 12 };
	char *other = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct taker taker = { .t = &self->t };
	unsigned int in_flight = 0, clean = 0;

	ASSERT_NE(MAP_FAILED, other);
	if (variant->way == DIRECT_URING_FIXED)
		return; /* pinned already */
	for (unsigned int round = 0; round < ROUNDS && !clean; round++) {
		char *page = self->io + (FIRST + round) * PAGE;

		ASSERT_LE(0, tracker_sync(&self->t));
		for (int i = 0; i < BEFORE; i++)
			ASSERT_EQ(0, direct_submit(&self->direct, other, 500 + 7 * i));
		store(page, 1);
		taker.begun = 0;
		ASSERT_EQ(0, pthread_create(&taker.thread, NULL, take, &taker));
		while (!taker.begun)
			sched_yield();
		usleep(1000 * (round % 6));
		ASSERT_EQ(0, direct_submit(&self->direct, page, BLOCK(round)));
		ASSERT_EQ(0, pthread_join(taker.thread, NULL));
		ASSERT_LE(0, taker.dirty);
		ASSERT_LE(0, tracker_sync(&self->t));
		if (!arrived(page, BLOCK(round))) {
			in_flight++;
			clean += !bit_get(self->t.bits, FIRST + round);
		}
		for (int left = BEFORE + 1; left > 0;) {
			int n = direct_reap(&self->direct, true);

			ASSERT_LE(0, n);
			left -= n;
		}
	}
	EXPECT_LT(0, in_flight);
	EXPECT_EQ(0, clean) {
		TH_LOG("a page under direct I/O became clean");
	}
	munmap(other, PAGE);
}

/* Looking at memory by reference is not writing to it: nothing stays dirty for good. */
TEST_F(pins, none_left_behind)
{
	store(self->at + 40 * PAGE, 1);
	for (uint64_t page = 50; page < 60; page++)
		store(self->at + page * PAGE, 1);
	if (variant->way != DIRECT_URING_FIXED)
		EXPECT_EQ(0, becomes_clean(&self->t));
}

HARNESS_MAIN
