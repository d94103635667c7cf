// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Anything at any time: threads of two processes do random commands with random arguments,
 * mappings, stores and closings on a few shared trackers. The kernel must neither complain
 * (run.sh looks) nor hang, and afterwards all must be as if nothing had been.
 *
 * Three times FERRY_SECONDS long; FERRY_SEED repeats a run's choices, if not their interleaving.
 */
#include "harness.h"
#include "tracker.h"

#include <fcntl.h>
#include <linux/falloc.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>

enum { SLOTS = 6, VIEWS = 4, THREADS = 3 };
#define PAGES 320UL

struct shared {
	_Atomic int stop;
	_Atomic uint64_t calls;
	_Atomic uint64_t successes;
};

/* Descriptors and views of a process; threads race for them on purpose. */
static struct shared *shared;
static _Atomic int tracker_fds[SLOTS], memfds[SLOTS];
static char *_Atomic views[VIEWS];
static int dev;
static uint32_t seed;

static void on_fault(int sig, siginfo_t *info, void *context)
{
	/* A view that another thread took away: give the store somewhere to go. */
	void *page = (void *)((uintptr_t)info->si_addr & ~(PAGE - 1));

	if (mmap(page, PAGE, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED)
		_exit(99);
}

static uint64_t odd_number(uint32_t *r)
{
	static const uint64_t numbers[] = {
		0, 1, 2, 63, 64, 65, 128, PAGES, PAGES - 1, PAGES + 1, 256, 4096, 0x7fffffff,
		0x80000000, 0xffffffff, 1ULL << 32, 1ULL << 52, 1ULL << 63, ~0ULL, ~63ULL, ~4095ULL,
	};
	uint32_t n = random_next(r);

	return n % 4 ? numbers[n / 4 % (sizeof(numbers) / sizeof(numbers[0]))] : n % PAGES;
}

static void argument_fuzz(void *argument, size_t size, uint32_t *r)
{
	uint32_t *words = argument;

	for (size_t i = 0; i < size / 4; i++)
		words[i] = random_next(r) % 8 ? 0 : (uint32_t)odd_number(r);
	words[0] = random_next(r) % 16 ? (uint32_t)size : (uint32_t)odd_number(r);
}

static void count(int ret)
{
	shared->calls++;
	if (ret >= 0)
		shared->successes++;
}

static void track(uint32_t *r)
{
	struct ferry_track t = { .size = sizeof(t), .memfd = memfds[random_next(r) % SLOTS] };
	int ret = ferry_ioctl(dev, FERRY_TRACK, &t), old;

	count(ret);
	if (ret)
		return;
	old = atomic_exchange(&tracker_fds[random_next(r) % SLOTS], t.out_fd);
	if (old > 0)
		close(old);
	if (random_next(r) % 4)
		ferry_ioctl(t.out_fd, FERRY_START,
			    &(struct ferry_start){ .size = sizeof(struct ferry_start) });
}

static void pages_command(uint32_t *r, int fd)
{
	static const unsigned long commands[] = { FERRY_SYNC, FERRY_GET, FERRY_CLEAR };
	uint64_t bits[8];
	struct ferry_pages p = { .size = sizeof(p), .npages = PAGES, .bitmap = (uintptr_t)bits };

	for (int i = 0; i < 8; i++)
		bits[i] = (uint64_t)random_next(r) << 40 | random_next(r);
	if (random_next(r) % 3 == 0) {
		p.first_page = odd_number(r);
		/* So that a right one is often enough among them. */
		p.npages = random_next(r) % 2 ? PAGES - p.first_page : odd_number(r);
	}
	if (p.npages > 512 && p.first_page < PAGES)
		p.npages %= 512;
	if (random_next(r) % 16 == 0)
		p.bitmap = odd_number(r);
	count(ferry_ioctl(fd, commands[random_next(r) % 3], &p));
}

static void scan(uint32_t *r, int fd)
{
	struct ferry_extent extents[16];
	struct ferry_scan s = { .size = sizeof(s), .flags = random_next(r) % 2, .npages = PAGES,
				.extents = (uintptr_t)extents,
				.max_extents = 1 + random_next(r) % 16 };

	if (random_next(r) % 3 == 0) {
		s.first_page = odd_number(r);
		s.npages = random_next(r) % 2 ? PAGES - s.first_page : odd_number(r);
	}
	if (random_next(r) % 16 == 0)
		s.extents = odd_number(r);
	count(ferry_ioctl(fd, FERRY_SCAN, &s));
}

static void watch(uint32_t *r, int fd)
{
	int events = random_next(r) % 2 ? eventfd(0, EFD_NONBLOCK) : -1;
	struct ferry_watch w = { .size = sizeof(w), .watermark_pages = odd_number(r) % (PAGES + 2),
				 .eventfd = events };

	count(ferry_ioctl(fd, FERRY_WATCH, &w));
	if (events >= 0)
		close(events);
}

static void bitmap(uint32_t *r, int fd)
{
	struct ferry_bitmap_fd b = { .size = sizeof(b) };
	int ret = ferry_ioctl(fd, FERRY_BITMAP, &b);
	char *at;

	count(ret);
	if (ret)
		return;
	at = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, b.out_fd,
		  random_next(r) % 4 ? 0 : (off_t)(odd_number(r) & ~(PAGE - 1)));
	if (at != MAP_FAILED) {
		load(at);
		munmap(at, PAGE);
	}
	close(b.out_fd);
}

static void rubbish(uint32_t *r, int fd)
{
	uint32_t argument[64];
	size_t sizes[] = { 8, 16, 24, 32, 40, 48, 56, 96, 256 };

	argument_fuzz(argument, sizes[random_next(r) % 9], r);
	count(ferry_ioctl(random_next(r) % 4 ? fd : dev,
			  _IO(FERRY_IOC_TYPE, random_next(r) % 2 ? 0x10 + random_next(r) % 10 :
			      random_next(r) % 256),
			  random_next(r) % 16 ? (void *)argument : (void *)odd_number(r)));
	/* What may have been made by luck. */
	if (argument[3] > 2 && argument[3] < 1024 && argument[0] == 32)
		close((int)argument[3]);
}

static void map(uint32_t *r, int fd)
{
	off_t offset = random_next(r) % 2 ? 0 : (off_t)(odd_number(r) * PAGE);
	size_t bytes = random_next(r) % 2 ? PAGES * PAGE : (odd_number(r) % 512 + 1) * PAGE;
	char *at = mmap(NULL, bytes, random_next(r) % 4 ? PROT_READ | PROT_WRITE : PROT_READ,
			random_next(r) % 8 ? MAP_SHARED : MAP_PRIVATE, fd, offset), *old;

	count(at == MAP_FAILED ? -1 : 0);
	if (at == MAP_FAILED)
		return;
	/* Only whole ones are kept, so that all know their size. */
	if (bytes != PAGES * PAGE) {
		munmap(at, bytes);
		return;
	}
	old = atomic_exchange(&views[random_next(r) % VIEWS], at);
	if (old)
		munmap(old, PAGES * PAGE);
}

static void use_view(uint32_t *r)
{
	char *at = views[random_next(r) % VIEWS];
	size_t from = random_next(r) % PAGES, n = random_next(r) % (PAGES - from) + 1;
	char *to = at + from * PAGE, *spare;

	if (!at)
		return;
	switch (random_next(r) % 12) {
	case 0:
		count(madvise(to, n * PAGE, MADV_DONTNEED));
		break;
	case 1:
		count(madvise(to, n * PAGE, MADV_PAGEOUT));
		break;
	case 2:
		count(mprotect(to, n * PAGE, PROT_READ));
		count(mprotect(to, n * PAGE, PROT_READ | PROT_WRITE));
		break;
	case 3:
		count(madvise(to, n * PAGE, MADV_REMOVE));
		break;
	case 4:
		spare = mmap(NULL, n * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (mremap(to, n * PAGE, n * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, spare) == spare)
			count(0);
		munmap(spare, n * PAGE);
		break;
	case 5:
		count(madvise(to, n * PAGE, 23 /* MADV_POPULATE_WRITE */));
		break;
	default:
		for (size_t i = 0; i < n && i < 32; i++)
			store(to + i * PAGE, (char)i);
	}
}

static void use_memfd(uint32_t *r)
{
	int slot = (int)(random_next(r) % SLOTS), fd = memfds[slot];

	switch (random_next(r) % 4) {
	case 0:
		count(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
				(off_t)(random_next(r) % PAGES * PAGE), 16 * (off_t)PAGE));
		break;
	case 1:
		count(ftruncate(fd, (off_t)(random_next(r) % (2 * PAGES) * PAGE)));
		count(ftruncate(fd, (off_t)(PAGES * PAGE)));
		break;
	case 2:
		count((int)pwrite(fd, "fuzz", 4, (off_t)(random_next(r) % PAGES * PAGE)));
		break;
	}
}

static void fork_and_die(uint32_t *r)
{
	pid_t child = fork();

	if (!child) {
		for (int i = 0; i < 50; i++)
			use_view(r);
		_exit(0);
	}
	if (child > 0 && random_next(r) % 2)
		kill(child, SIGKILL);
	if (child > 0)
		waitpid(child, NULL, 0);
}

static void *fuzz(void *arg)
{
	uint32_t random = seed + (uint32_t)(uintptr_t)arg * 7919, *r = &random;

	while (!shared->stop) {
		int slot = (int)(random_next(r) % SLOTS), fd = tracker_fds[slot];

		switch (random_next(r) % 20) {
		case 0: track(r); break;
		case 1: case 2: case 3: case 4: pages_command(r, fd); break;
		case 5: case 6: scan(r, fd); break;
		case 7: watch(r, fd); break;
		case 8: bitmap(r, fd); break;
		case 9: case 10: rubbish(r, fd); break;
		case 11: case 12: map(r, fd); break;
		case 13: use_memfd(r); break;
		case 14:
			if (random_next(r) % 8 == 0)
				fork_and_die(r);
			break;
		case 15:
			if (random_next(r) % 8 == 0) {
				fd = atomic_exchange(&tracker_fds[slot], -1);
				if (fd > 0)
					close(fd);
			}
			break;
		default: use_view(r);
		}
	}
	return NULL;
}

static int fuzz_process(int number)
{
	struct sigaction action = { .sa_sigaction = on_fault, .sa_flags = SA_SIGINFO };
	pthread_t threads[THREADS];

	sigaction(SIGSEGV, &action, NULL);
	sigaction(SIGBUS, &action, NULL);
	for (intptr_t i = 0; i < THREADS; i++)
		if (pthread_create(&threads[i], NULL, fuzz, (void *)(i + 10 * number)))
			return 98;
	for (int i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
	return 0;
}

TEST(anything_at_any_time)
{
	const char *given = getenv("FERRY_SEED");
	struct ferry_query query;
	pid_t children[2];
	int status;

	seed = given ? (uint32_t)strtoul(given, NULL, 0) : (uint32_t)clock_ns();
	printf("#   FERRY_SEED=%u\n", seed);
	dev = ferry_open();
	ASSERT_LE(0, dev);
	shared = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, shared);
	for (int i = 0; i < SLOTS; i++) {
		struct ferry_track t = { .size = sizeof(t) };

		memfds[i] = t.memfd = memfd_make(PAGES);
		ASSERT_EQ(0, ferry_ioctl(dev, FERRY_TRACK, &t));
		tracker_fds[i] = t.out_fd;
	}
	for (int i = 0; i < 2; i++) {
		children[i] = fork();
		ASSERT_LE(0, children[i]);
		if (!children[i]) {
			/* Not the harness's group: it would go with a failed one. */
			_exit(fuzz_process(i));
		}
	}
	sleep(3 * harness_seconds(2));
	shared->stop = 1;
	for (int i = 0; i < 2; i++) {
		ASSERT_EQ(children[i], waitpid(children[i], &status, 0));
		EXPECT_EQ(0, status);
	}
	printf("#   %llu calls, %llu of them right\n", (unsigned long long)shared->calls,
	       (unsigned long long)shared->successes);
	EXPECT_LT(1000, shared->calls);
	EXPECT_LT(shared->calls / 10, shared->successes);
	EXPECT_LT(shared->successes, shared->calls);
	for (int i = 0; i < SLOTS; i++)
		close(tracker_fds[i]);
	/* All that was made is gone; what children had may take a moment. */
	for (int i = 0; i < 1000; i++) {
		ASSERT_EQ(0, ferry_query(&query));
		if (!query.out_trackers)
			break;
		usleep(10000);
	}
	EXPECT_EQ(0, query.out_trackers);
}

/* After all that a tracker still works. */
TEST(and_then_it_works)
{
	struct tracker t;
	char *view;

	ASSERT_EQ(0, tracker_make(&t, 100));
	view = tracker_view(&t);
	ASSERT_NE(NULL, view);
	store(view + 50 * PAGE, 1);
	EXPECT_EQ(1, tracker_sync(&t));
	EXPECT_EQ(0, tracker_sync(&t));
	tracker_end(&t);
}

HARNESS_MAIN
