// SPDX-License-Identifier: GPL-2.0-or-later
/* FERRY_TRACK: of what a tracker can be made, and each kind of descriptor it refuses. */
#include "harness.h"
#include "snapshot.h"
#include "tracker.h"

#include <fcntl.h>
#include <linux/memfd.h>
#include <sys/eventfd.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>

#define PAGES 200UL

FIXTURE(track)
{
	int dev;
	struct tracker t;
	char *view;
};

FIXTURE_SETUP(track)
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

FIXTURE_TEARDOWN(track)
{
	munmap(self->view, PAGES * PAGE);
	tracker_end(&self->t);
	close(self->dev);
}

TEST_F(track, made)
{
	struct ferry_tracker_stats stats;
	struct tracker a, b;

	ASSERT_EQ(0, tracker_of(&a, memfd_make(65)));
	EXPECT_EQ(65, a.npages);
	EXPECT_EQ(FD_CLOEXEC, fcntl(a.fd, F_GETFD));
	ASSERT_EQ(0, tracker_stats(&a, &stats));
	EXPECT_EQ(a.id, stats.out_id);
	EXPECT_EQ(65, stats.out_pages);
	EXPECT_EQ(0, stats.out_state);
	EXPECT_EQ(0, stats.out_dirty_pages);
	EXPECT_EQ(0, stats.out_views);
	EXPECT_EQ(0, tracker_sync(&a));
	/* A number is never used twice. */
	EXPECT_LT(self->t.id, a.id);
	tracker_end(&a);
	ASSERT_EQ(0, tracker_of(&b, memfd_make(1)));
	EXPECT_LT(a.id, b.id);
	tracker_end(&b);
}

TEST_F(track, of_a_part_of_a_page)
{
	int memfd = memfd_make(1);
	struct tracker t;
	char *view;

	ASSERT_EQ(0, ftruncate(memfd, (off_t)PAGE + 1));
	ASSERT_EQ(0, tracker_of(&t, memfd));
	EXPECT_EQ(2, t.npages);
	ASSERT_EQ(0, tracker_start(&t));
	view = tracker_view(&t);
	ASSERT_NE(NULL, view);
	store(view + PAGE, 1);
	EXPECT_EQ(1, tracker_sync(&t));
	EXPECT_EQ(2, t.bits[0]);
	tracker_end(&t);
}

TEST_F(track, of_a_tmpfs_file)
{
	char path[] = "/tmp/ram-XXXXXX";
	int fd = mkstemp(path);
	struct tracker t;
	char *view;

	ASSERT_LE(0, fd);
	ASSERT_EQ(0, unlink(path));
	ASSERT_EQ(0, ftruncate(fd, 64 * (off_t)PAGE));
	ASSERT_EQ(0, tracker_of(&t, fd));
	ASSERT_EQ(0, tracker_start(&t));
	view = tracker_view(&t);
	ASSERT_NE(NULL, view);
	store(view + 9 * PAGE, 1);
	EXPECT_EQ(1, tracker_sync(&t));
	EXPECT_EQ(1UL << 9, t.bits[0]);
	tracker_end(&t);
}

static int sealed(int seal)
{
	int fd = memfd_make(4);

	return fcntl(fd, F_ADD_SEALS, seal) ? -1 : fd;
}

static int opened_again(int flags)
{
	char path[64];
	int fd = memfd_make(4), again;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	again = open(path, flags);
	close(fd);
	return again;
}

static int ramfs_file(void)
{
	int fd;

	if (mkdir("/tmp/ramfs", 0700) && errno != EEXIST)
		return -1;
	if (mount("none", "/tmp/ramfs", "ramfs", 0, NULL))
		return -1;
	fd = open("/tmp/ramfs/file", O_RDWR | O_CREAT, 0600);
	if (fd >= 0 && ftruncate(fd, (off_t)PAGE))
		fd = -1;
	umount2("/tmp/ramfs", MNT_DETACH);
	return fd;
}

static int fifo(void)
{
	int fd;

	unlink("/tmp/fifo");
	if (mkfifo("/tmp/fifo", 0600))
		return -1;
	fd = open("/tmp/fifo", O_RDWR);
	unlink("/tmp/fifo");
	return fd;
}

static int socket_end(void)
{
	int pair[2];

	if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair))
		return -1;
	close(pair[1]);
	return pair[0];
}

static int hugetlb_memfd(void)
{
	int fd = memfd_create("huge", MFD_HUGETLB | MFD_CLOEXEC);

	return fd >= 0 && !ftruncate(fd, 4 << 20) ? fd : -1;
}

static int closed(void)
{
	int fd = memfd_make(1);

	close(fd);
	return fd;
}

static int live_bitmap(int tracker)
{
	struct ferry_bitmap_fd bitmap = { .size = sizeof(bitmap) };

	return ferry_ioctl(tracker, FERRY_BITMAP, &bitmap) ? -1 : bitmap.out_fd;
}

TEST_F(track, refuses)
{
	struct tracker other = { .fd = -1 };
	int made = tracker_make(&other, 4);
	struct {
		const char *what;
		int fd;
		int expected;
		int or_else;
	} cases[] = {
		{ "no descriptor", -1, EBADF, 0 },
		{ "a number nobody opened", 1000000, EBADF, 0 },
		{ "INT_MIN", (int)0x80000000, EBADF, 0 },
		{ "a memfd opened by path only", opened_again(O_PATH), EBADF, 0 },
		{ "a memfd to read", opened_again(O_RDONLY), EACCES, 0 },
		{ "a memfd to write", opened_again(O_WRONLY), EACCES, 0 },
		{ "an empty memfd", memfd_make(0), EINVAL, 0 },
		{ "a pipe", fifo(), EINVAL, 0 },
		{ "a socket", socket_end(), EINVAL, 0 },
		{ "an eventfd", eventfd(0, 0), EINVAL, 0 },
		{ "/dev/null", open("/dev/null", O_RDWR), EINVAL, 0 },
		{ "/dev/zero", open("/dev/zero", O_RDWR), EINVAL, 0 },
		{ "a file in memory that is not tmpfs", ramfs_file(), EINVAL, 0 },
		{ "a disk", open("/dev/vda", O_RDWR), EINVAL, 0 },
		{ "a folder", open("/tmp", O_RDONLY | O_DIRECTORY), EACCES, EINVAL },
		{ "/dev/ferry", open("/dev/ferry", O_RDWR), EINVAL, 0 },
		{ "itself: a tracker", dup(self->t.fd), EINVAL, 0 },
		{ "another tracker", other.fd, EINVAL, 0 },
		{ "a live bitmap", live_bitmap(self->t.fd), EINVAL, EACCES },
		{ "hugetlb memory", hugetlb_memfd(), EOPNOTSUPP, 0 },
		{ "a memfd sealed against writing", sealed(F_SEAL_WRITE), EPERM, 0 },
		{ "a memfd sealed against future writing", sealed(F_SEAL_FUTURE_WRITE), EPERM, 0 },
		{ "a closed descriptor", closed(), EBADF, 0 },
	};

	ASSERT_EQ(0, made);
	for (unsigned int i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct ferry_track a = { .size = sizeof(a), .memfd = cases[i].fd };
		struct snapshot before;
		int ret;

		EXPECT_TRUE(cases[i].fd >= 0 || i == 0 || i == 2) {
			TH_LOG("cannot make %s", cases[i].what);
		}
		snapshot_take(&before, &self->t);
		ret = ferry_ioctl(self->dev, FERRY_TRACK, &a);
		EXPECT_TRUE(ret == -cases[i].expected || (cases[i].or_else && ret == -cases[i].or_else)) {
			TH_LOG("%s: %d instead of %d", cases[i].what, ret, -cases[i].expected);
		}
		EXPECT_UNCHANGED(&before);
		EXPECT_EQ(0, a.out_fd);
	}
	tracker_end(&other);
}

TEST_F(track, takes_other_seals)
{
	const int seals[] = { F_SEAL_GROW, F_SEAL_SHRINK, F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL };

	for (unsigned int i = 0; i < 3; i++) {
		struct tracker t;

		EXPECT_EQ(0, tracker_of(&t, sealed(seals[i])));
		tracker_end(&t);
	}
}

TEST_F(track, of_the_largest_file)
{
	struct ferry_query query;
	struct snapshot before;
	struct ferry_track a = { .size = sizeof(a) };
	int memfd = memfd_make(1);

	ASSERT_EQ(0, ferry_query(&query));
	if (query.out_max_pages >= (1UL << 51) - 1)
		SKIP(return, "no file can be larger than out_max_pages");
	ASSERT_EQ(0, ftruncate(memfd, (off_t)((query.out_max_pages + 1) * PAGE)));
	a.memfd = memfd;
	snapshot_take(&before, &self->t);
	EXPECT_EQ(-EFBIG, ferry_ioctl(self->dev, FERRY_TRACK, &a));
	EXPECT_UNCHANGED(&before);
	close(memfd);
}

TEST_F(track, without_a_free_descriptor)
{
	struct ferry_track a = { .size = sizeof(a), .memfd = self->t.memfd };
	struct snapshot before;
	struct rlimit limit, none;
	int ret;

	snapshot_take(&before, &self->t);
	ASSERT_EQ(0, getrlimit(RLIMIT_NOFILE, &limit));
	none = limit;
	none.rlim_cur = (rlim_t)before.next_fd;
	ASSERT_EQ(0, setrlimit(RLIMIT_NOFILE, &none));
	ret = ferry_ioctl(self->dev, FERRY_TRACK, &a);
	EXPECT_EQ(-EMFILE, ret);
	EXPECT_EQ(-EMFILE, ferry_ioctl(self->t.fd, FERRY_BITMAP,
				       &(struct ferry_bitmap_fd){
					       .size = sizeof(struct ferry_bitmap_fd) }));
	ASSERT_EQ(0, setrlimit(RLIMIT_NOFILE, &limit));
	EXPECT_UNCHANGED(&before);
}

HARNESS_MAIN
