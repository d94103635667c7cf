// SPDX-License-Identifier: GPL-2.0-or-later
/* The watermark (poll and eventfd) and the live bitmap. */
#include "harness.h"
#include "tracker.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>

#define PAGES 300UL

FIXTURE(watch)
{
	struct tracker t;
	char *at;
	int events;
};

FIXTURE_SETUP(watch)
{
	ASSERT_EQ(0, tracker_make(&self->t, PAGES));
	self->at = tracker_view(&self->t);
	ASSERT_NE(NULL, self->at);
	self->events = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	ASSERT_LE(0, self->events);
}

FIXTURE_TEARDOWN(watch)
{
	close(self->events);
	tracker_end(&self->t);
}

static int watch(const struct tracker *t, uint64_t pages, int events)
{
	struct ferry_watch watch = { .size = sizeof(watch), .watermark_pages = pages,
				     .eventfd = events };

	return ferry_ioctl(t->fd, FERRY_WATCH, &watch);
}

/* How often it was signalled since the last time. */
static uint64_t signalled(int events)
{
	uint64_t n;

	return read(events, &n, sizeof(n)) == sizeof(n) ? n : 0;
}

static int polled(const struct tracker *t)
{
	struct pollfd fd = { .fd = t->fd, .events = POLLIN };

	return poll(&fd, 1, 0) < 0 ? -errno : fd.revents;
}

static void store_pages(char *at, uint64_t first, uint64_t n)
{
	for (uint64_t page = first; page < first + n; page++)
		store(at + page * PAGE, 1);
}

static uint64_t watermarks(const struct tracker *t)
{
	struct ferry_tracker_stats stats;

	return tracker_stats(t, &stats) ? 999 : stats.out_watermarks;
}

TEST_F(watch, nothing_watched)
{
	EXPECT_EQ(0, polled(&self->t) & POLLIN);
	store_pages(self->at, 0, PAGES);
	EXPECT_EQ(0, polled(&self->t) & POLLIN);
	EXPECT_EQ(0, watermarks(&self->t));
}

TEST_F(watch, reached_from_below)
{
	ASSERT_EQ(0, watch(&self->t, 10, self->events));
	store_pages(self->at, 0, 9);
	EXPECT_EQ(0, signalled(self->events));
	EXPECT_EQ(0, polled(&self->t) & POLLIN);
	store_pages(self->at, 100, 1);
	EXPECT_EQ(1, signalled(self->events));
	EXPECT_EQ(POLLIN, polled(&self->t) & POLLIN);
	EXPECT_EQ(1, watermarks(&self->t));
	/* Once, however many more. */
	store_pages(self->at, 101, 100);
	EXPECT_EQ(0, signalled(self->events));
	EXPECT_EQ(POLLIN, polled(&self->t) & POLLIN);
	/* Below, and up again. */
	EXPECT_EQ(110, tracker_sync(&self->t));
	EXPECT_EQ(0, polled(&self->t) & POLLIN);
	store_pages(self->at, 0, 9);
	EXPECT_EQ(0, signalled(self->events));
	store_pages(self->at, 200, 20);
	EXPECT_EQ(1, signalled(self->events));
	EXPECT_EQ(2, watermarks(&self->t));
}

TEST_F(watch, reached_already)
{
	store_pages(self->at, 0, 20);
	ASSERT_EQ(0, watch(&self->t, 20, self->events));
	EXPECT_EQ(1, signalled(self->events));
	EXPECT_EQ(1, watermarks(&self->t));
	EXPECT_EQ(POLLIN, polled(&self->t) & POLLIN);
	ASSERT_EQ(0, watch(&self->t, 21, self->events));
	EXPECT_EQ(0, signalled(self->events));
	EXPECT_EQ(0, polled(&self->t) & POLLIN);
	store_pages(self->at, 50, 1);
	EXPECT_EQ(1, signalled(self->events));
	ASSERT_EQ(0, watch(&self->t, 5, self->events));
	EXPECT_EQ(1, signalled(self->events));
	EXPECT_EQ(3, watermarks(&self->t));
}

TEST_F(watch, replaced_and_stopped)
{
	int other = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);

	ASSERT_LE(0, other);
	ASSERT_EQ(0, watch(&self->t, 5, self->events));
	ASSERT_EQ(0, watch(&self->t, 5, other));
	store_pages(self->at, 0, 5);
	EXPECT_EQ(0, signalled(self->events));
	EXPECT_EQ(1, signalled(other));
	ASSERT_EQ(0, watch(&self->t, 0, -1));
	EXPECT_EQ(0, polled(&self->t) & POLLIN);
	ASSERT_LE(0, tracker_sync(&self->t));
	store_pages(self->at, 0, 50);
	EXPECT_EQ(0, signalled(other));
	EXPECT_EQ(1, watermarks(&self->t));
	/* Without an eventfd it is polled. */
	ASSERT_EQ(0, watch(&self->t, 50, -1));
	EXPECT_EQ(POLLIN, polled(&self->t) & POLLIN);
	/* The whole tracker may be asked for. */
	EXPECT_EQ(0, watch(&self->t, PAGES, -1));
	close(other);
}

/* The caller's descriptor may go; the tracker's reference stays until replaced. */
TEST_F(watch, eventfd_closed)
{
	int copy = dup(self->events);

	ASSERT_EQ(0, watch(&self->t, 3, self->events));
	close(self->events);
	store_pages(self->at, 0, 3);
	EXPECT_EQ(1, signalled(copy));
	self->events = copy;
}

TEST_F(watch, by_partial_commands)
{
	struct ferry_pages pages = { .size = sizeof(pages), .npages = 64,
				     .bitmap = (uintptr_t)self->t.bits };

	ASSERT_EQ(0, watch(&self->t, 70, self->events));
	store_pages(self->at, 0, 100);
	EXPECT_EQ(1, signalled(self->events));
	memset(self->t.bits, 0, 40);
	self->t.bits[0] = 0xffffffff;
	ASSERT_EQ(0, ferry_ioctl(self->t.fd, FERRY_CLEAR, &pages));
	EXPECT_EQ(32, pages.out_pages);
	EXPECT_EQ(0, polled(&self->t) & POLLIN);
	store_pages(self->at, 0, 1);
	EXPECT_EQ(0, signalled(self->events));
	store_pages(self->at, 1, 1);
	EXPECT_EQ(1, signalled(self->events));
	/* A fresh start is below everything. */
	ASSERT_EQ(0, tracker_stop(&self->t));
	EXPECT_EQ(POLLIN, polled(&self->t) & POLLIN);
	ASSERT_EQ(0, tracker_start(&self->t));
	EXPECT_EQ(0, polled(&self->t) & POLLIN);
}

static void *wait_for_pages(void *arg)
{
	struct tracker *t = arg;
	struct pollfd fd = { .fd = t->fd, .events = POLLIN };

	return (void *)(intptr_t)(poll(&fd, 1, 60000) == 1 && (fd.revents & POLLIN));
}

TEST_F(watch, poll_is_woken)
{
	pthread_t thread;
	void *woken = NULL;

	ASSERT_EQ(0, watch(&self->t, 40, -1));
	ASSERT_EQ(0, pthread_create(&thread, NULL, wait_for_pages, &self->t));
	store_pages(self->at, 0, 39);
	usleep(50000);	/* so that most often it does sleep by then */
	store_pages(self->at, 39, 1);
	pthread_join(thread, &woken);
	EXPECT_NE(NULL, woken);
}

/* --- the live bitmap ------------------------------------------------------------ */

FIXTURE(live)
{
	struct tracker t;
	struct ferry_bitmap_fd bitmap;
	char *at;
};

FIXTURE_SETUP(live)
{
	ASSERT_EQ(0, tracker_make(&self->t, PAGES));
	self->at = tracker_view(&self->t);
	ASSERT_NE(NULL, self->at);
	self->bitmap.size = sizeof(self->bitmap);
	ASSERT_EQ(0, ferry_ioctl(self->t.fd, FERRY_BITMAP, &self->bitmap));
}

FIXTURE_TEARDOWN(live)
{
	close(self->bitmap.out_fd);
	tracker_end(&self->t);
}

TEST_F(live, shows_what_is)
{
	const volatile uint64_t *words;

	EXPECT_EQ(FD_CLOEXEC, fcntl(self->bitmap.out_fd, F_GETFD));
	EXPECT_LE((PAGES + 63) / 64 * 8, self->bitmap.out_bytes);
	words = mmap(NULL, self->bitmap.out_bytes, PROT_READ, MAP_SHARED, self->bitmap.out_fd, 0);
	ASSERT_NE(MAP_FAILED, words);
	for (int i = 0; i < 5; i++)
		EXPECT_EQ(0, words[i]);
	store(self->at + 70 * PAGE, 1);
	EXPECT_EQ(1UL << 6, words[1]);
	store(self->at + 299 * PAGE, 1);
	EXPECT_EQ(1UL << 43, words[4]);
	EXPECT_EQ(2, tracker_sync(&self->t));
	EXPECT_EQ(0, words[1]);
	EXPECT_EQ(0, words[4]);
	/* Looking is not clearing. */
	store(self->at + 70 * PAGE, 2);
	EXPECT_EQ(1UL << 6, words[1]);
	EXPECT_EQ(1, tracker_get(&self->t));
	/* No more memory than the bitmap is shown, and nothing else in it. */
	for (uint64_t i = 5; i < self->bitmap.out_bytes / 8; i++)
		EXPECT_EQ(0, words[i]);
}

static int map_error(int fd, size_t bytes, int prot, int flags, off_t offset)
{
	void *at = mmap(NULL, bytes, prot, flags, fd, offset);

	if (at == MAP_FAILED)
		return -errno;
	munmap(at, bytes);
	return 0;
}

TEST_F(live, map_refuses)
{
	int fd = self->bitmap.out_fd;
	size_t bytes = (self->bitmap.out_bytes + PAGE - 1) / PAGE * PAGE;
	char *at;

	EXPECT_EQ(-EPERM, map_error(fd, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, 0));
	EXPECT_EQ(-EPERM, map_error(fd, bytes, PROT_WRITE, MAP_SHARED, 0));
	EXPECT_EQ(-EINVAL, map_error(fd, bytes + PAGE, PROT_READ, MAP_SHARED, 0));
	EXPECT_EQ(-EINVAL, map_error(fd, PAGE, PROT_READ, MAP_SHARED, (off_t)bytes));
	EXPECT_EQ(-EINVAL, map_error(fd, PAGE, PROT_READ, MAP_SHARED, 1LL << 40));
	at = mmap(NULL, bytes, PROT_READ, MAP_SHARED, fd, 0);
	ASSERT_NE(MAP_FAILED, at);
	EXPECT_EQ(-1, mprotect(at, bytes, PROT_READ | PROT_WRITE));
	EXPECT_EQ(EACCES, errno);
	EXPECT_EQ(MAP_FAILED, mremap(at, bytes, bytes + PAGE, MREMAP_MAYMOVE));
	EXPECT_EQ(-1, write(fd, "x", 1));
}

/* A private mapping, if there is one, must not be a way to write to the kernel's bitmap. */
TEST_F(live, private_mapping)
{
	char *at = mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, self->bitmap.out_fd, 0);

	if (at == MAP_FAILED)
		return;
	EXPECT_EQ(-1, mprotect(at, PAGE, PROT_READ | PROT_WRITE));
	EXPECT_EQ(0, tracker_get(&self->t));
}

/* By the kernel on our behalf, with force, or not. */
TEST_F(live, written_by_other_means)
{
	int memory = open("/proc/self/mem", O_RDWR), ends[2];
	char *at = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, self->bitmap.out_fd, 0);

	ASSERT_NE(MAP_FAILED, at);
	ASSERT_LE(0, memory);
	load(at);
	EXPECT_EQ(-1, pwrite(memory, "\377", 1, (off_t)(uintptr_t)at));
	ASSERT_EQ(0, pipe(ends));
	ASSERT_EQ(1, write(ends[1], "\377", 1));
	EXPECT_EQ(-1, read(ends[0], at, 1));
	EXPECT_EQ(EFAULT, errno);
	EXPECT_EQ(0, load(at));
	EXPECT_EQ(0, tracker_get(&self->t));
	close(memory);
}

TEST_F(live, keeps_the_tracker)
{
	const volatile uint64_t *words = mmap(NULL, PAGE, PROT_READ, MAP_SHARED,
					      self->bitmap.out_fd, 0);
	struct ferry_query query;
	uint32_t before;

	ASSERT_NE(MAP_FAILED, words);
	ASSERT_EQ(0, ferry_query(&query));
	before = query.out_trackers;
	close(self->t.fd);
	self->t.fd = -1;
	store(self->at + 5 * PAGE, 1);
	EXPECT_EQ(1UL << 5, words[0]);
	munmap(self->at, PAGES * PAGE);
	EXPECT_EQ(1UL << 5, words[0]);
	close(self->bitmap.out_fd);
	self->bitmap.out_fd = -1;
	EXPECT_EQ(1UL << 5, words[0]);
	ASSERT_EQ(0, ferry_query(&query));
	EXPECT_EQ(before, query.out_trackers);
	munmap((void *)words, PAGE);
	ASSERT_EQ(0, ferry_query(&query));
	EXPECT_EQ(before - 1, query.out_trackers);
}

HARNESS_MAIN
