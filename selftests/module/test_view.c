// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Views: what mmap(2) of a tracker takes and refuses, and that a store through a view is
 * seen however the view, the page or the memfd was treated before.
 */
#include "harness.h"
#include "tracker.h"

#include <fcntl.h>
#include <linux/falloc.h>
#include <sys/uio.h>

#define PAGES 256UL
#define BYTES (PAGES * PAGE)

FIXTURE(view)
{
	struct tracker t;
	char *at;
	char *plain;
};

FIXTURE_SETUP(view)
{
	ASSERT_EQ(0, tracker_make(&self->t, PAGES));
	self->at = tracker_view(&self->t);
	ASSERT_NE(NULL, self->at);
	self->plain = file_map(self->t.memfd, PAGES);
	ASSERT_NE(NULL, self->plain);
}

FIXTURE_TEARDOWN(view)
{
	tracker_end(&self->t);
}

/* Exactly this page was stored to since the last time. */
#define EXPECT_SEEN(page) do {						\
	EXPECT_EQ(1, tracker_sync(&self->t));				\
	EXPECT_TRUE(bit_get(self->t.bits, page));			\
} while (0)

/* A store through a view is seen, and seen again after a sync. */
#define EXPECT_TRACKED(at_, page) do {					\
	store(at_, 1);							\
	EXPECT_SEEN(page);						\
	store(at_, 2);							\
	EXPECT_SEEN(page);						\
} while (0)

static int map_error(int fd, size_t bytes, int prot, int flags, off_t offset)
{
	void *at = mmap(NULL, bytes, prot, flags, fd, offset);

	if (at == MAP_FAILED)
		return -errno;
	munmap(at, bytes);
	return 0;
}

static int views_of(struct tracker *t)
{
	struct ferry_tracker_stats stats;

	return tracker_stats(t, &stats) ? -1 : (int)stats.out_views;
}

TEST_F(view, map_refuses)
{
	const int rw = PROT_READ | PROT_WRITE;
	int fd = self->t.fd;

	EXPECT_EQ(-EINVAL, map_error(fd, BYTES, rw, MAP_PRIVATE, 0));
	EXPECT_EQ(-EINVAL, map_error(fd, BYTES, PROT_READ, MAP_PRIVATE, 0));
	EXPECT_EQ(-EINVAL, map_error(fd, BYTES + PAGE, rw, MAP_SHARED, 0));
	EXPECT_EQ(-EINVAL, map_error(fd, BYTES, rw, MAP_SHARED, (off_t)PAGE));
	EXPECT_EQ(-EINVAL, map_error(fd, PAGE, rw, MAP_SHARED, (off_t)BYTES));
	EXPECT_EQ(-EINVAL, map_error(fd, PAGE, PROT_READ, MAP_SHARED, (off_t)BYTES));
	EXPECT_EQ(-EINVAL, map_error(fd, PAGE, rw, MAP_SHARED, 1LL << 50));
	EXPECT_NE(0, map_error(fd, PAGE, rw, MAP_SHARED, (off_t)(1ULL << 63)));
	EXPECT_NE(0, map_error(fd, 2 * PAGE, rw, MAP_SHARED, (off_t)-PAGE));
	EXPECT_EQ(1, views_of(&self->t));
	/* The last page, and all of them to execute: fine. */
	EXPECT_EQ(0, map_error(fd, PAGE, rw, MAP_SHARED, (off_t)(BYTES - PAGE)));
	EXPECT_EQ(0, map_error(fd, BYTES, rw | PROT_EXEC, MAP_SHARED, 0));
	EXPECT_EQ(1, views_of(&self->t));
}

TEST_F(view, map_a_file_that_grew)
{
	ASSERT_EQ(0, ftruncate(self->t.memfd, (off_t)(BYTES + 64 * PAGE)));
	EXPECT_EQ(-EINVAL, map_error(self->t.fd, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED,
				     (off_t)BYTES));
	EXPECT_EQ(-EINVAL, map_error(self->t.fd, BYTES + 64 * PAGE, PROT_READ, MAP_SHARED, 0));
	EXPECT_TRACKED(self->at + (PAGES - 1) * PAGE, PAGES - 1);
}

TEST_F(view, map_a_part)
{
	char *part = mmap(NULL, 3 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, self->t.fd,
			  100 * (off_t)PAGE);

	ASSERT_NE(MAP_FAILED, part);
	EXPECT_TRACKED(part, 100);
	EXPECT_TRACKED(part + 2 * PAGE + 5, 102);
}

/* The flags that keep a view what it is, and that nobody sees a huge entry of it. */
TEST_F(view, flags)
{
	char line[512], *flags = NULL;
	FILE *smaps = fopen("/proc/self/smaps", "r");
	bool here = false;

	ASSERT_NE(NULL, smaps);
	while (!flags && fgets(line, sizeof(line), smaps)) {
		unsigned long start, end;

		if (sscanf(line, "%lx-%lx ", &start, &end) == 2)
			here = start == (unsigned long)self->at;
		else if (here && !strncmp(line, "VmFlags:", 8))
			flags = line;
	}
	fclose(smaps);
	ASSERT_NE(NULL, flags);
	EXPECT_NE(NULL, strstr(flags, " sh"));
	EXPECT_NE(NULL, strstr(flags, " de")) {
		TH_LOG("can be expanded: %s", flags);
	}
	EXPECT_NE(NULL, strstr(flags, " nh")) {
		TH_LOG("can be huge: %s", flags);
	}
}

TEST_F(view, sealed_with_a_view)
{
	EXPECT_EQ(-1, fcntl(self->t.memfd, F_ADD_SEALS, F_SEAL_WRITE));
	EXPECT_EQ(EBUSY, errno);
	munmap(self->plain, BYTES);
	EXPECT_EQ(-1, fcntl(self->t.memfd, F_ADD_SEALS, F_SEAL_WRITE));
	EXPECT_EQ(EBUSY, errno);
	EXPECT_TRACKED(self->at, 0);
}

TEST_F(view, sealed_without_a_view)
{
	char *at;

	munmap(self->plain, BYTES);
	munmap(self->at, BYTES);
	ASSERT_EQ(0, fcntl(self->t.memfd, F_ADD_SEALS, F_SEAL_WRITE));
	EXPECT_EQ(-EPERM, map_error(self->t.fd, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, 0));
	EXPECT_EQ(-EPERM, map_error(self->t.fd, BYTES, PROT_WRITE, MAP_SHARED, 0));
	/* To read is fine, or refused; to write afterwards is not. */
	at = mmap(NULL, BYTES, PROT_READ, MAP_SHARED, self->t.fd, 0);
	if (at != MAP_FAILED) {
		EXPECT_EQ(-1, mprotect(at, BYTES, PROT_READ | PROT_WRITE));
		EXPECT_EQ(EACCES, errno);
		EXPECT_EQ(0, load(at));
	}
}

TEST_F(view, sealed_for_the_future)
{
	char *at;

	ASSERT_EQ(0, fcntl(self->t.memfd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE));
	EXPECT_EQ(-EPERM, map_error(self->t.fd, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, 0));
	at = mmap(NULL, BYTES, PROT_READ, MAP_SHARED, self->t.fd, 0);
	if (at != MAP_FAILED) {
		EXPECT_EQ(-1, mprotect(at, BYTES, PROT_READ | PROT_WRITE));
		EXPECT_EQ(EACCES, errno);
	}
	/* The view that was there may still be written. */
	EXPECT_TRACKED(self->at + 7 * PAGE, 7);
}

TEST_F(view, plain_mappings_are_not_seen)
{
	store(self->plain + 5 * PAGE, 1);
	EXPECT_EQ(5, pwrite(self->t.memfd, "hello", 5, 6 * (off_t)PAGE));
	EXPECT_EQ(0, tracker_sync(&self->t));
	EXPECT_EQ('h', load(self->at + 6 * PAGE));
	/* Nor do they hide anything: present and dirty there, the view still faults. */
	EXPECT_TRACKED(self->at + 5 * PAGE, 5);
	EXPECT_TRACKED(self->at + 6 * PAGE, 6);
}

TEST_F(view, two_views)
{
	char *second = tracker_view(&self->t);

	ASSERT_NE(NULL, second);
	EXPECT_EQ(2, views_of(&self->t));
	for (int round = 0; round < 4; round++) {
		EXPECT_TRACKED(second + 9 * PAGE, 9);
		EXPECT_TRACKED(self->at + 9 * PAGE, 9);
	}
	store(self->at + 9 * PAGE, 1);
	store(second + 9 * PAGE, 1);
	EXPECT_SEEN(9);
	store(second + 9 * PAGE, 1);
	EXPECT_SEEN(9);
}

TEST_F(view, two_trackers)
{
	struct tracker other;
	char *second;

	ASSERT_EQ(0, tracker_of(&other, dup(self->t.memfd)));
	ASSERT_EQ(0, tracker_start(&other));
	second = tracker_view(&other);
	ASSERT_NE(NULL, second);
	store(self->at + PAGE, 1);
	store(second + 2 * PAGE, 1);
	EXPECT_SEEN(1);
	EXPECT_EQ(1, tracker_get(&other));
	EXPECT_TRUE(bit_get(other.bits, 2));
	/* One's sync takes nothing from the other. */
	store(self->at + 3 * PAGE, 1);
	store(second + 3 * PAGE, 1);
	EXPECT_EQ(2, tracker_sync(&other));
	EXPECT_SEEN(3);
	store(second + 3 * PAGE, 1);
	EXPECT_EQ(0, tracker_sync(&self->t));
	EXPECT_EQ(1, tracker_sync(&other));
	store(self->at + 3 * PAGE, 1);
	EXPECT_EQ(0, tracker_sync(&other));
	EXPECT_SEEN(3);
	tracker_end(&other);
}

TEST_F(view, fork_and_child)
{
	int status;
	pid_t child = fork();

	ASSERT_LE(0, child);
	if (!child) {
		char *own = tracker_view(&self->t);

		store(self->at + 20 * PAGE, 1);
		if (own)
			store(own + 21 * PAGE, 1);
		_exit(views_of(&self->t) == 3 ? 0 : 1);
	}
	ASSERT_EQ(child, waitpid(child, &status, 0));
	EXPECT_EQ(0, status) {
		TH_LOG("a view, its copy and the child's own are not three");
	}
	EXPECT_EQ(2, tracker_sync(&self->t));
	EXPECT_TRUE(bit_get(self->t.bits, 20) && bit_get(self->t.bits, 21));
	EXPECT_EQ(1, views_of(&self->t));
	EXPECT_TRACKED(self->at + 20 * PAGE, 20);
}

/* Entries that fork copied, or did not, are protected in the child too. */
TEST_F(view, fork_between_syncs)
{
	int go[2], gone[2], status;
	pid_t child;
	char byte = 0;

	ASSERT_EQ(0, pipe(go));
	ASSERT_EQ(0, pipe(gone));
	store(self->at + 30 * PAGE, 1);
	child = fork();
	ASSERT_LE(0, child);
	if (!child) {
		for (int i = 0; i < 5 && read(go[0], &byte, 1) == 1; i++) {
			store(self->at + 30 * PAGE, 2);
			if (write(gone[1], "", 1) != 1)
				_exit(1);
		}
		_exit(0);
	}
	EXPECT_SEEN(30);
	for (int i = 0; i < 5; i++) {
		ASSERT_EQ(1, write(go[1], "", 1));
		ASSERT_EQ(1, read(gone[0], &byte, 1));
		EXPECT_SEEN(30);
	}
	ASSERT_EQ(child, waitpid(child, &status, 0));
	EXPECT_EQ(0, status);
}

TEST_F(view, split_and_count)
{
	ASSERT_EQ(0, munmap(self->at + 100 * PAGE, 10 * PAGE));
	EXPECT_EQ(2, views_of(&self->t));
	EXPECT_TRACKED(self->at + 99 * PAGE, 99);
	EXPECT_TRACKED(self->at + 110 * PAGE, 110);
	ASSERT_EQ(0, mprotect(self->at + 50 * PAGE, 10 * PAGE, PROT_READ));
	EXPECT_EQ(4, views_of(&self->t));
	EXPECT_TRACKED(self->at + 49 * PAGE, 49);
	EXPECT_TRACKED(self->at + 60 * PAGE, 60);
	/* Whether the kernel joins them again is its own business; they must stay tracked. */
	ASSERT_EQ(0, mprotect(self->at + 50 * PAGE, 10 * PAGE, PROT_READ | PROT_WRITE));
	EXPECT_TRACKED(self->at + 55 * PAGE, 55);
	EXPECT_LE(2, views_of(&self->t));
	EXPECT_GE(4, views_of(&self->t));
	ASSERT_EQ(0, munmap(self->at, BYTES));
	EXPECT_EQ(0, views_of(&self->t));
}

TEST_F(view, mremap_cannot_grow)
{
	EXPECT_EQ(MAP_FAILED, mremap(self->at, BYTES, 2 * BYTES, MREMAP_MAYMOVE));
	EXPECT_EQ(EFAULT, errno);
	EXPECT_EQ(MAP_FAILED, mremap(self->at, PAGE, BYTES + PAGE, MREMAP_MAYMOVE));
	EXPECT_EQ(EFAULT, errno);
	ASSERT_EQ(0, ftruncate(self->t.memfd, 2 * (off_t)BYTES));
	EXPECT_EQ(MAP_FAILED, mremap(self->at, BYTES, 2 * BYTES, MREMAP_MAYMOVE));
	EXPECT_EQ(EFAULT, errno);
	EXPECT_EQ(1, views_of(&self->t));
	EXPECT_TRACKED(self->at, 0);
}

TEST_F(view, mremap_shrinks_and_moves)
{
	char *spare = mmap(NULL, BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *twin;

	ASSERT_NE(MAP_FAILED, spare);
	store(self->at + 40 * PAGE, 1);
	EXPECT_SEEN(40);
	store(self->at + 41 * PAGE, 1);
	ASSERT_EQ(spare, mremap(self->at, BYTES, BYTES, MREMAP_MAYMOVE | MREMAP_FIXED, spare));
	EXPECT_EQ(1, views_of(&self->t));
	EXPECT_SEEN(41);
	EXPECT_TRACKED(spare + 40 * PAGE, 40);
	EXPECT_TRACKED(spare + 42 * PAGE, 42);
	ASSERT_EQ(spare, mremap(spare, BYTES, BYTES / 2, 0));
	EXPECT_EQ(1, views_of(&self->t));
	EXPECT_TRACKED(spare + 43 * PAGE, 43);
	/* A second mapping made from the first: refused, or as good as it. */
	twin = mremap(spare, 0, BYTES / 2, MREMAP_MAYMOVE);
	if (twin != MAP_FAILED)
		EXPECT_TRACKED(twin + 44 * PAGE, 44);
	twin = mremap(spare, BYTES / 2, BYTES / 2, MREMAP_MAYMOVE | 4 /* MREMAP_DONTUNMAP */);
	if (twin != MAP_FAILED) {
		EXPECT_TRACKED(twin + 44 * PAGE, 44);
		EXPECT_TRACKED(spare + 45 * PAGE, 45);
	}
	EXPECT_TRACKED(spare + 46 * PAGE, 46);
}

/* The same file and adjoining offsets, but one side is not tracked. */
TEST_F(view, plain_neighbours)
{
	for (int plain_first = 0; plain_first < 2; plain_first++) {
		char *both = mmap(NULL, BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		int fds[2] = { self->t.fd, self->t.memfd };
		char *tracked, *plain;
		uint64_t page;

		ASSERT_NE(MAP_FAILED, both);
		for (int i = 0; i < 2; i++) {
			size_t at = (size_t)i * BYTES / 2;

			ASSERT_EQ(both + at, mmap(both + at, BYTES / 2, PROT_READ | PROT_WRITE,
						  MAP_SHARED | MAP_FIXED, fds[i ^ plain_first],
						  (off_t)at));
		}
		tracked = plain_first ? both + BYTES / 2 : both;
		plain = plain_first ? both : both + BYTES / 2;
		page = (uint64_t)(tracked - both) / PAGE + 1;
		madvise(plain, BYTES / 2, MADV_NOHUGEPAGE);
		EXPECT_TRACKED(tracked + PAGE, page);
		ASSERT_EQ(0, mprotect(both, BYTES, PROT_READ));
		ASSERT_EQ(0, mprotect(both, BYTES, PROT_READ | PROT_WRITE));
		EXPECT_TRACKED(tracked + PAGE, page);
		madvise(both, BYTES, MADV_DONTDUMP);
		madvise(both, BYTES, MADV_DODUMP);
		EXPECT_TRACKED(tracked + PAGE, page);
		store(plain + 3 * PAGE, 1);
		EXPECT_EQ(0, tracker_sync(&self->t));
		munmap(both, BYTES);
	}
}

TEST_F(view, neighbours_of_two_trackers)
{
	char *both = mmap(NULL, BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct tracker other;

	ASSERT_NE(MAP_FAILED, both);
	ASSERT_EQ(0, tracker_of(&other, dup(self->t.memfd)));
	ASSERT_EQ(0, tracker_start(&other));
	ASSERT_EQ(both, mmap(both, BYTES / 2, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
			     self->t.fd, 0));
	ASSERT_NE(MAP_FAILED, mmap(both + BYTES / 2, BYTES / 2, PROT_READ | PROT_WRITE,
				   MAP_SHARED | MAP_FIXED, other.fd, (off_t)BYTES / 2));
	ASSERT_EQ(0, mprotect(both, BYTES, PROT_READ));
	ASSERT_EQ(0, mprotect(both, BYTES, PROT_READ | PROT_WRITE));
	EXPECT_TRACKED(both, 0);
	store(both + BYTES / 2, 1);
	EXPECT_EQ(0, tracker_sync(&self->t));
	EXPECT_EQ(1, tracker_sync(&other));
	tracker_end(&other);
}

TEST_F(view, mprotect_after_sync)
{
	for (int round = 0; round < 4; round++) {
		store(self->at + 12 * PAGE, 1);
		EXPECT_SEEN(12);
		ASSERT_EQ(0, mprotect(self->at, BYTES, PROT_READ));
		ASSERT_EQ(0, mprotect(self->at, BYTES, PROT_READ | PROT_WRITE));
		store(self->at + 12 * PAGE, 2);
		EXPECT_SEEN(12);
		ASSERT_EQ(0, mprotect(self->at, BYTES, PROT_READ | PROT_WRITE | PROT_EXEC));
		store(self->at + 12 * PAGE, 3);
		EXPECT_SEEN(12);
		ASSERT_EQ(0, mprotect(self->at, BYTES, PROT_READ | PROT_WRITE));
		store(self->at + 12 * PAGE, 4);
		EXPECT_SEEN(12);
	}
}

/* The same with many dirty pages side by side: batches protect by other means. */
TEST_F(view, mprotect_after_sync_of_many)
{
	for (int round = 0; round < 4; round++) {
		for (uint64_t page = 0; page < PAGES; page++)
			store(self->at + page * PAGE, 1);
		EXPECT_EQ(PAGES, tracker_sync(&self->t));
		ASSERT_EQ(0, mprotect(self->at, BYTES, PROT_READ));
		ASSERT_EQ(0, mprotect(self->at, BYTES, PROT_READ | PROT_WRITE));
		for (uint64_t page = 0; page < PAGES; page++)
			store(self->at + page * PAGE, 2);
		EXPECT_EQ(PAGES, tracker_sync(&self->t));
		EXPECT_EQ(0, tracker_sync(&self->t));
	}
}

TEST_F(view, made_writable_later)
{
	char *second = mmap(NULL, BYTES, PROT_READ, MAP_SHARED, self->t.fd, 0);

	ASSERT_NE(MAP_FAILED, second);
	EXPECT_EQ(0, load(second + 5 * PAGE));
	ASSERT_EQ(0, mprotect(second, BYTES, PROT_READ | PROT_WRITE));
	EXPECT_TRACKED(second + 5 * PAGE, 5);
	EXPECT_TRACKED(second + 6 * PAGE, 6);
}

TEST_F(view, kernel_stores)
{
	struct iovec local = { (char *)"abc", 3 }, remote;
	int ends[2], memory;

	ASSERT_EQ(0, pipe(ends));
	for (int round = 0; round < 2; round++) {
		ASSERT_EQ(3, write(ends[1], "xyz", 3));
		ASSERT_EQ(3, read(ends[0], self->at + 60 * PAGE, 3));
		EXPECT_SEEN(60);
		remote = (struct iovec){ self->at + 61 * PAGE - 1, 3 };
		ASSERT_EQ(3, process_vm_writev(getpid(), &local, 1, &remote, 1, 0));
		EXPECT_EQ(2, tracker_sync(&self->t));
		EXPECT_TRUE(bit_get(self->t.bits, 60) && bit_get(self->t.bits, 61));
		memory = open("/proc/self/mem", O_RDWR);
		ASSERT_LE(0, memory);
		ASSERT_EQ(3, pwrite(memory, "mem", 3, (off_t)(uintptr_t)(self->at + 62 * PAGE)));
		EXPECT_SEEN(62);
		close(memory);
		ASSERT_EQ(0, madvise(self->at + 63 * PAGE, PAGE, 23 /* MADV_POPULATE_WRITE */));
		EXPECT_SEEN(63);
		store(self->at + 63 * PAGE, 1);
		EXPECT_TRUE(tracker_sync(&self->t) <= 1);
	}
}

TEST_F(view, dropped_pages)
{
	char *page = self->at + 70 * PAGE;

	for (int round = 0; round < 2; round++) {
		store(page, 1);
		ASSERT_EQ(0, madvise(page, PAGE, MADV_DONTNEED));
		EXPECT_SEEN(70);
		EXPECT_EQ(1, load(page));
		ASSERT_EQ(0, madvise(page, PAGE, MADV_DONTNEED));
		EXPECT_TRACKED(page, 70);
		store(page, 1);
		madvise(self->at, BYTES, MADV_PAGEOUT);
		EXPECT_SEEN(70);
		EXPECT_TRACKED(page, 70);
		madvise(self->at, BYTES, MADV_PAGEOUT);
		EXPECT_EQ(2, load(page));
		EXPECT_EQ(0, tracker_sync(&self->t));
		EXPECT_TRACKED(page, 70);
	}
}

TEST_F(view, holes)
{
	char *page = self->at + 80 * PAGE;

	store(page, 1);
	ASSERT_EQ(0, fallocate(self->t.memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			       80 * (off_t)PAGE, (off_t)PAGE));
	EXPECT_SEEN(80);
	EXPECT_EQ(0, load(page));
	EXPECT_TRACKED(page, 80);
	ASSERT_EQ(0, madvise(page, PAGE, MADV_REMOVE));
	EXPECT_EQ(0, tracker_sync(&self->t));
	EXPECT_TRACKED(page, 80);
}

TEST_F(view, truncation)
{
	store(self->at + 10 * PAGE, 1);
	store(self->at + 200 * PAGE, 1);
	ASSERT_EQ(0, ftruncate(self->t.memfd, 100 * (off_t)PAGE));
	EXPECT_LE(1, tracker_sync(&self->t));
	EXPECT_TRUE(bit_get(self->t.bits, 10));
	ASSERT_EQ(0, ftruncate(self->t.memfd, (off_t)BYTES));
	EXPECT_EQ(0, load(self->at + 200 * PAGE));
	EXPECT_EQ(0, tracker_sync(&self->t));
	EXPECT_TRACKED(self->at + 200 * PAGE, 200);
	EXPECT_TRACKED(self->at + 10 * PAGE, 10);
}

TEST_F(view, after_everything_else_is_closed)
{
	int memfd = dup(self->t.memfd);

	close(self->t.memfd);
	self->t.memfd = -1;
	EXPECT_TRACKED(self->at + 10 * PAGE, 10);
	/* Without its descriptor too the view is memory. */
	close(self->t.fd);
	self->t.fd = -1;
	store(self->at + 11 * PAGE, 7);
	EXPECT_EQ(7, load(self->plain + 11 * PAGE));
	ASSERT_EQ(0, munmap(self->at, BYTES));
	ASSERT_EQ(0, tracker_of(&self->t, memfd));
	ASSERT_EQ(0, tracker_start(&self->t));
	self->at = tracker_view(&self->t);
	EXPECT_TRACKED(self->at + 11 * PAGE, 11);
}

TEST_F(view, locked)
{
	ASSERT_EQ(0, mlock(self->at, 64 * PAGE));
	ASSERT_LE(0, tracker_sync(&self->t));
	EXPECT_TRACKED(self->at + 3 * PAGE, 3);
	EXPECT_TRACKED(self->at + 63 * PAGE, 63);
}

HARNESS_MAIN
