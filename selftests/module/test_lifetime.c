// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Who keeps what: the module against rmmod, a tracker against the closing of descriptors;
 * who may open it; what is limited, and that memory is charged and given back.
 *
 * The tests take the module out and put it back; FERRY_KO names it (run.sh's guest has it
 * at the default), and nobody else may use it meanwhile.
 */
#include "harness.h"
#include "tracker.h"

#include <dirent.h>
#include <fcntl.h>
#include <sched.h>
#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#define PARAMETERS "/sys/module/ferry/parameters/"

static int module_remove(void)
{
	return syscall(SYS_delete_module, "ferry", O_NONBLOCK) ? -errno : 0;
}

static int module_insert(void)
{
	const char *path = getenv("FERRY_KO") ?: "/modules/ferry.ko";
	int fd = open(path, O_RDONLY | O_CLOEXEC), ret;

	if (fd < 0)
		return -errno;
	ret = syscall(SYS_finit_module, fd, "", 0) ? -errno : 0;
	close(fd);
	for (int i = 0; !ret && access("/dev/ferry", F_OK); i++) {
		if (i == 1000)
			return -ETIMEDOUT;
		usleep(10000);
	}
	return ret;
}

/* What is dropped at exit of another process may take a moment. */
static int module_remove_soon(void)
{
	int ret = 0;

	for (int i = 0; i < 1000; i++) {
		ret = module_remove();
		if (ret != -EAGAIN)
			return ret;
		usleep(10000);
	}
	return ret;
}

TEST(rmmod_is_refused_while_in_use)
{
	struct ferry_bitmap_fd bitmap = { .size = sizeof(bitmap) };
	struct tracker t;
	int dev = ferry_open();
	char *view, *words;

	ASSERT_LE(0, dev);
	EXPECT_EQ(-EAGAIN, module_remove());
	ASSERT_EQ(0, tracker_make(&t, 64));
	close(dev);
	EXPECT_EQ(-EAGAIN, module_remove());
	view = tracker_view(&t);
	ASSERT_NE(NULL, view);
	ASSERT_EQ(0, ferry_ioctl(t.fd, FERRY_BITMAP, &bitmap));
	words = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, bitmap.out_fd, 0);
	ASSERT_NE(MAP_FAILED, words);
	tracker_end(&t);
	close(bitmap.out_fd);
	/* Only mapped now. */
	EXPECT_EQ(-EAGAIN, module_remove());
	store(view + PAGE, 1);
	EXPECT_EQ(2, load(words));
	munmap(words, PAGE);
	EXPECT_EQ(-EAGAIN, module_remove());
	store(view + 3 * PAGE, 1);
	ASSERT_EQ(0, munmap(view, 32 * PAGE));
	EXPECT_EQ(-EAGAIN, module_remove());
	ASSERT_EQ(0, munmap(view + 32 * PAGE, 32 * PAGE));
	EXPECT_EQ(0, module_remove_soon());
	EXPECT_EQ(-ENOENT, ferry_open());
	EXPECT_EQ(0, module_insert());
}

TEST(rmmod_after_a_child_with_a_view)
{
	struct tracker t;
	int go[2], status;
	char *view, byte;
	pid_t child;

	ASSERT_EQ(0, pipe(go));
	ASSERT_EQ(0, tracker_make(&t, 64));
	view = tracker_view(&t);
	ASSERT_NE(NULL, view);
	child = fork();
	ASSERT_LE(0, child);
	if (!child) {
		close(go[1]);
		close(t.fd);
		if (read(go[0], &byte, 1) != 0)
			_exit(1);
		store(view, 1);
		_exit(0);
	}
	close(go[0]);
	munmap(view, 64 * PAGE);
	tracker_end(&t);
	EXPECT_EQ(-EAGAIN, module_remove());
	close(go[1]);
	ASSERT_EQ(child, waitpid(child, &status, 0));
	EXPECT_EQ(0, status);
	EXPECT_EQ(0, module_remove_soon());
	EXPECT_EQ(0, module_insert());
}

static volatile bool stop;

static void *opener(void *unused)
{
	while (!stop) {
		struct tracker t;
		int memfd = memfd_make(16);
		char *view;

		/* -ENOENT, -ENODEV while it is away. */
		if (!tracker_of(&t, memfd)) {
			tracker_start(&t);
			view = tracker_view(&t);
			if (view) {
				store(view, 1);
				tracker_sync(&t);
				munmap(view, 16 * PAGE);
			}
		}
		tracker_end(&t);
	}
	return NULL;
}

TEST(loaded_and_removed_under_users)
{
	uint64_t end = clock_ns() + harness_seconds(2) * 1000000000ULL;
	int removed = 0, refused = 0;
	pthread_t threads[2];

	for (int i = 0; i < 2; i++)
		ASSERT_EQ(0, pthread_create(&threads[i], NULL, opener, NULL));
	while (clock_ns() < end) {
		int ret = module_remove();

		if (!ret) {
			removed++;
			ASSERT_EQ(0, module_insert());
		} else {
			ASSERT_EQ(-EAGAIN, ret);
			refused++;
		}
	}
	stop = true;
	for (int i = 0; i < 2; i++)
		pthread_join(threads[i], NULL);
	printf("#   removed %d times, refused %d times\n", removed, refused);
	EXPECT_LT(0, removed + refused);
	EXPECT_EQ(0, module_remove_soon());
	EXPECT_EQ(0, module_insert());
}

/* --- who may --------------------------------------------------------------------- */

TEST(device_is_for_its_group)
{
	struct stat status;
	pid_t child;
	int ret;

	ASSERT_EQ(0, stat("/dev/ferry", &status));
	EXPECT_TRUE(S_ISCHR(status.st_mode));
	EXPECT_EQ(0660, status.st_mode & 07777);
	EXPECT_EQ(0, status.st_uid);
	child = fork();
	ASSERT_LE(0, child);
	if (!child) {
		if (setgid(65534) || setuid(65534))
			_exit(9);
		_exit(open("/dev/ferry", O_RDWR) < 0 && errno == EACCES &&
		      open("/dev/ferry", O_RDONLY) < 0 && errno == EACCES ? 0 : 1);
	}
	ASSERT_EQ(child, waitpid(child, &ret, 0));
	EXPECT_EQ(0, ret);
}

/* Who was given descriptors may use them: a VMM without privileges. */
TEST(descriptors_can_be_given_away)
{
	int dev = ferry_open(), status;
	struct tracker t;
	pid_t child;

	ASSERT_LE(0, dev);
	ASSERT_EQ(0, tracker_make(&t, 64));
	child = fork();
	ASSERT_LE(0, child);
	if (!child) {
		struct ferry_track track = { .size = sizeof(track), .memfd = memfd_make(8) };
		char *view;

		if (setgid(65534) || setuid(65534))
			_exit(9);
		view = tracker_view(&t);
		if (!view)
			_exit(1);
		store(view + 5 * PAGE, 1);
		if (tracker_sync(&t) != 1)
			_exit(2);
		store(view + 6 * PAGE, 1);
		_exit(ferry_ioctl(dev, FERRY_TRACK, &track) ? 3 : 0);
	}
	ASSERT_EQ(child, waitpid(child, &status, 0));
	EXPECT_EQ(0, status);
	EXPECT_EQ(1, tracker_sync(&t));
	EXPECT_EQ(1UL << 6, t.bits[0]);
	tracker_end(&t);
	close(dev);
}

TEST(passed_over_a_socket)
{
	union {
		struct cmsghdr header;
		char room[CMSG_SPACE(sizeof(int))];
	} control = { .header = { .cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET,
				  .cmsg_type = SCM_RIGHTS } };
	struct iovec data = { (char[]){ 1 }, 1 };
	struct msghdr message = { .msg_iov = &data, .msg_iovlen = 1, .msg_control = &control,
				  .msg_controllen = sizeof(control) };
	struct ferry_query query;
	uint32_t before;
	struct tracker t;
	int pair[2], fd;
	char *view;

	ASSERT_EQ(0, ferry_query(&query));
	before = query.out_trackers;
	ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	ASSERT_EQ(0, tracker_make(&t, 64));
	memcpy(CMSG_DATA(&control.header), &t.fd, sizeof(int));
	ASSERT_EQ(1, sendmsg(pair[0], &message, 0));
	close(t.fd);
	/* In flight it lives. */
	ASSERT_EQ(0, ferry_query(&query));
	EXPECT_EQ(before + 1, query.out_trackers);
	message.msg_controllen = sizeof(control);
	ASSERT_EQ(1, recvmsg(pair[1], &message, 0));
	memcpy(&fd, CMSG_DATA(&control.header), sizeof(int));
	t.fd = fd;
	view = tracker_view(&t);
	ASSERT_NE(NULL, view);
	store(view, 1);
	EXPECT_EQ(1, tracker_sync(&t));
	munmap(view, 64 * PAGE);
	tracker_end(&t);
	ASSERT_EQ(0, ferry_query(&query));
	EXPECT_EQ(before, query.out_trackers);
}

/* Killed in the middle of anything, nothing stays behind. */
TEST(killed_users)
{
	struct ferry_query query;
	uint32_t before;

	ASSERT_EQ(0, ferry_query(&query));
	before = query.out_trackers;
	for (int round = 0; round < 20; round++) {
		pid_t child = fork();
		int status;

		ASSERT_LE(0, child);
		if (!child) {
			struct tracker t;
			char *view;

			if (tracker_make(&t, 4096))
				_exit(1);
			view = tracker_view(&t);
			for (uint64_t page = 0;; page = (page + 1) % 4096) {
				store(view + page * PAGE, 1);
				if (page % 512 == 0)
					tracker_sync(&t);
			}
		}
		usleep(5000 + 3000 * (unsigned int)round);
		ASSERT_EQ(0, kill(child, SIGKILL));
		ASSERT_EQ(child, waitpid(child, &status, 0));
		EXPECT_EQ(SIGKILL, WTERMSIG(status));
	}
	for (int i = 0; i < 1000; i++) {
		ASSERT_EQ(0, ferry_query(&query));
		if (query.out_trackers == before)
			break;
		usleep(10000);
	}
	EXPECT_EQ(before, query.out_trackers);
}

/* Of the file of the next test, one page in sixteen is written; eight chunks of the module's. */
#define LONG_PAGES (1UL << 18)
#define LONG_STEP 16UL

/* A child syncs all of it and is killed when the first bits are gone. Return: what is dirty then. */
static long killed_in_a_sync(struct tracker *t, char *view, const uint64_t *live)
{
	uint64_t deadline;
	pid_t child;

	for (uint64_t page = 0; page < LONG_PAGES; page += LONG_STEP)
		store(view + page * PAGE, 1);
	child = fork();
	if (child < 0)
		return -errno;
	if (!child) {
		tracker_sync(t);
		pause();
	}
	deadline = clock_ns() + 60000000000ULL;
	while (*(const volatile uint64_t *)live && clock_ns() < deadline)
		;
	if (kill(child, SIGKILL) || waitpid(child, NULL, 0) != child)
		return -errno;
	return tracker_get(t);
}

/* Between chunks it looks whether it was killed, and leaves the rest as it is. */
TEST(a_long_sync_can_be_killed)
{
	struct ferry_bitmap_fd bitmap = { .size = sizeof(bitmap) };
	const long all = LONG_PAGES / LONG_STEP;
	const uint64_t *live;
	struct tracker t;
	long left = 0;
	char *view;

	ASSERT_EQ(0, tracker_make(&t, LONG_PAGES));
	view = tracker_view(&t);
	ASSERT_NE(NULL, view);
	ASSERT_EQ(0, ferry_ioctl(t.fd, FERRY_BITMAP, &bitmap));
	live = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, bitmap.out_fd, 0);
	ASSERT_NE(MAP_FAILED, live);
	/* Where we were not looking for long enough, it was all done. */
	for (int i = 0; i < 10 && !left; i++)
		left = killed_in_a_sync(&t, view, live);
	EXPECT_LT(0, left);
	EXPECT_GT(all, left);
	EXPECT_EQ(left, tracker_sync(&t));
	EXPECT_EQ(0, tracker_sync(&t));
	munmap((void *)live, PAGE);
	close(bitmap.out_fd);
	munmap(view, LONG_PAGES * PAGE);
	tracker_end(&t);
}

/* --- limits ------------------------------------------------------------------------ */

TEST(as_many_as_allowed)
{
	struct ferry_query query;
	struct rlimit many = { 4096, 4096 };
	struct ferry_track track = { .size = sizeof(track) };
	int dev = ferry_open(), *fds;
	uint32_t n = 0;

	ASSERT_LE(0, dev);
	ASSERT_EQ(0, setrlimit(RLIMIT_NOFILE, &many));
	track.memfd = memfd_make(1);
	ASSERT_EQ(0, ferry_query(&query));
	ASSERT_GE(4000, query.out_max_trackers);
	fds = calloc(query.out_max_trackers + 1, sizeof(*fds));
	ASSERT_NE(NULL, fds);
	for (; n + query.out_trackers < query.out_max_trackers; n++) {
		ASSERT_EQ(0, ferry_ioctl(dev, FERRY_TRACK, &track));
		fds[n] = track.out_fd;
	}
	EXPECT_EQ(-ENOSPC, ferry_ioctl(dev, FERRY_TRACK, &track));
	close(fds[--n]);
	EXPECT_EQ(0, ferry_ioctl(dev, FERRY_TRACK, &track));
	close(track.out_fd);
	while (n)
		close(fds[--n]);
	free(fds);
	ASSERT_EQ(0, ferry_query(&query));
	EXPECT_EQ(0, query.out_trackers);
}

TEST(bitmap_memory_is_limited)
{
	char before[64] = "", now[64];
	struct tracker t = { .memfd = -1, .fd = -1 };
	int fd = open(PARAMETERS "max_bitmap_bytes", O_RDONLY);
	struct ferry_query query;

	ASSERT_LE(0, fd);
	ASSERT_LT(0, read(fd, before, sizeof(before) - 1));
	close(fd);
	snprintf(now, sizeof(now), "%lu", 2 * PAGE);
	ASSERT_EQ(0, text_write(PARAMETERS "max_bitmap_bytes", now));
	/* 2 pages of bitmap: 65536 pages of file. */
	EXPECT_EQ(-ENOSPC, tracker_of(&t, memfd_make(65537)));
	tracker_end(&t);
	EXPECT_EQ(0, tracker_of(&t, memfd_make(65536)));
	tracker_end(&t);
	ASSERT_EQ(0, text_write(PARAMETERS "max_bitmap_bytes", before));
	ASSERT_EQ(0, ferry_query(&query));
	EXPECT_EQ(0, query.out_trackers);
}

#define GROUP "/sys/fs/cgroup/ferry-test"

static long group_bytes(void)
{
	char text[32] = "";
	int fd = open(GROUP "/memory.current", O_RDONLY);
	ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);

	if (fd >= 0)
		close(fd);
	return n > 0 ? atol(text) : -1;
}

/* A tracker of 128 GiB of holes has 4 MiB of bits: they are the caller's. */
TEST(memory_is_charged_to_the_caller)
{
	enum { BITS_BYTES = 4 << 20 };
	struct tracker t;
	long before, with, after;
	char pid[32];

	text_write("/sys/fs/cgroup/cgroup.subtree_control", "+memory");
	ASSERT_TRUE(!mkdir(GROUP, 0755) || errno == EEXIST);
	snprintf(pid, sizeof(pid), "%d", getpid());
	ASSERT_EQ(0, text_write(GROUP "/cgroup.procs", pid));
	before = group_bytes();
	ASSERT_LE(0, before);
	ASSERT_EQ(0, tracker_make(&t, (uint64_t)BITS_BYTES * 8));
	free(t.bits);
	t.bits = NULL;
	with = group_bytes();
	/* Charging is not exact to the page: each CPU has a stock. */
	EXPECT_LE(before + BITS_BYTES / 2, with);
	tracker_end(&t);
	/* Charges are given back in batches. */
	for (int i = 0; i < 500 && (after = group_bytes()) > before + BITS_BYTES / 2; i++)
		usleep(10000);
	EXPECT_GE(before + BITS_BYTES / 2, after);
	text_write("/sys/fs/cgroup/cgroup.procs", pid);
	rmdir(GROUP);
}

/*
 * In a group that has not got the memory, a tracker is refused or the caller killed, as
 * its administrator chose; the machine and the module go on. Sweeps the size, so that each
 * of the allocations is the one that fails.
 */
TEST(not_enough_memory)
{
	struct ferry_query query;
	char bytes[32];
	int refused = 0, made = 0, killed = 0;

	text_write("/sys/fs/cgroup/cgroup.subtree_control", "+memory");
	ASSERT_TRUE(!mkdir(GROUP, 0755) || errno == EEXIST);
	for (int kib = 256; kib <= 8192; kib += 256) {
		pid_t child;
		int status;

		snprintf(bytes, sizeof(bytes), "%d", kib << 10);
		ASSERT_EQ(0, text_write(GROUP "/memory.max", bytes));
		child = fork();
		ASSERT_LE(0, child);
		if (!child) {
			struct tracker t;
			int ret;

			if (text_write(GROUP "/cgroup.procs", "0"))
				_exit(9);
			ret = tracker_make(&t, 32UL << 20);
			_exit(ret == -ENOMEM ? 1 : ret ? 2 : 0);
		}
		ASSERT_EQ(child, waitpid(child, &status, 0));
		if (WIFSIGNALED(status)) {
			EXPECT_EQ(SIGKILL, WTERMSIG(status));
			killed++;
			continue;
		}
		EXPECT_GE(1, WEXITSTATUS(status)) {
			TH_LOG("status %d at %d KiB", WEXITSTATUS(status), kib);
		}
		refused += WEXITSTATUS(status) == 1;
		made += WEXITSTATUS(status) == 0;
	}
	printf("#   refused %d, killed %d, made %d\n", refused, killed, made);
	EXPECT_LT(0, refused + killed);
	EXPECT_LT(0, made);
	rmdir(GROUP);
	for (int i = 0; i < 500; i++) {
		ASSERT_EQ(0, ferry_query(&query));
		if (!query.out_trackers)
			break;
		usleep(10000);
	}
	EXPECT_EQ(0, query.out_trackers);
}

HARNESS_MAIN
