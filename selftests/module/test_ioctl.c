// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What all commands of <linux/ferry.h> have in common, tested by walking a table of them;
 * and query, start and stop, stats, and what watch refuses. Each error exactly.
 *
 * Around a call that must fail, a snapshot of the tracker (statistics and bitmap) is taken
 * and compared: an error changes nothing. The tracker of the fixture has 200 pages, so that
 * its last bitmap word is in part beyond the end, is started, has one view, and pages 3, 70
 * and 199 are dirty.
 */
#include "harness.h"
#include "snapshot.h"
#include "tracker.h"

#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>

#define PAGES 200UL
#define WORDS SNAPSHOT_WORDS
#define KERNEL_ADDRESS ((void *)0xffff888000000000UL)

/* One row a command: what all of them have in common is tested by walking this. */
static const struct command {
	const char *name;
	unsigned long number;
	size_t size;
	bool on_device;
	uint32_t known_flags;
} commands[] = {
	{ "QUERY", FERRY_QUERY, sizeof(struct ferry_query), true, 0 },
	{ "TRACK", FERRY_TRACK, sizeof(struct ferry_track), true, 0 },
	{ "START", FERRY_START, sizeof(struct ferry_start), false, 0 },
	{ "STOP", FERRY_STOP, sizeof(struct ferry_start), false, 0 },
	{ "SYNC", FERRY_SYNC, sizeof(struct ferry_pages), false, 0 },
	{ "GET", FERRY_GET, sizeof(struct ferry_pages), false, 0 },
	{ "CLEAR", FERRY_CLEAR, sizeof(struct ferry_pages), false, 0 },
	{ "SCAN", FERRY_SCAN, sizeof(struct ferry_scan), false, FERRY_SCAN_CLEAR },
	{ "STATS", FERRY_STATS, sizeof(struct ferry_tracker_stats), false, 0 },
	{ "WATCH", FERRY_WATCH, sizeof(struct ferry_watch), false, 0 },
	{ "BITMAP", FERRY_BITMAP, sizeof(struct ferry_bitmap_fd), false, 0 },
};
#define COMMANDS (sizeof(commands) / sizeof(commands[0]))

/* Any command's argument, with room for a program from the future. */
union argument {
	struct {
		uint32_t size;
		uint32_t flags;
	};
	struct ferry_query query;
	struct ferry_track track;
	struct ferry_start start;
	struct ferry_pages pages;
	struct ferry_scan scan;
	struct ferry_tracker_stats stats;
	struct ferry_watch watch;
	struct ferry_bitmap_fd bitmap;
	char room[256];
};

FIXTURE(ioctl)
{
	int dev;
	struct tracker t;
	char *view;
	uint64_t words[WORDS];
	struct ferry_extent extents[64];
};

FIXTURE_SETUP(ioctl)
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

FIXTURE_TEARDOWN(ioctl)
{
	munmap(self->view, PAGES * PAGE);
	tracker_end(&self->t);
	close(self->dev);
}

/* What a command takes when nothing is wrong with it. */
static void argument_good(union argument *a, const struct command *command, uint64_t *words,
			  struct ferry_extent *extents)
{
	memset(a, 0, sizeof(*a));
	a->size = (uint32_t)command->size;
	switch (command->number) {
	case FERRY_TRACK:
		a->track.memfd = memfd_make(1);
		break;
	case FERRY_SYNC:
	case FERRY_GET:
	case FERRY_CLEAR:
		a->pages.npages = PAGES;
		a->pages.bitmap = (uintptr_t)words;
		break;
	case FERRY_SCAN:
		a->scan.npages = PAGES;
		a->scan.extents = (uintptr_t)extents;
		a->scan.max_extents = 64;
		break;
	case FERRY_WATCH:
		a->watch.eventfd = -1;
		break;
	}
}

static void argument_done(union argument *a, const struct command *command, int ret)
{
	if (command->number == FERRY_TRACK) {
		close(a->track.memfd);
		if (!ret)
			close(a->track.out_fd);
	}
	if (command->number == FERRY_BITMAP && !ret)
		close(a->bitmap.out_fd);
}

/* Fails with exactly this errno, writes nothing to its argument, changes nothing. */
#define EXPECT_FAILS(errno_, fd, command, a, words) do {		\
	struct snapshot before_;					\
	union argument copy_ = *(a);					\
	int ret_;							\
									\
	snapshot_take(&before_, &self->t);				\
	ret_ = ferry_ioctl(fd, (command)->number, a);			\
	EXPECT_EQ(-(errno_), ret_) {					\
		TH_LOG("%s", (command)->name);				\
	}								\
	EXPECT_EQ(0, memcmp(&copy_, a, sizeof(copy_))) {		\
		TH_LOG("%s wrote to its argument", (command)->name);	\
	}								\
	EXPECT_UNCHANGED(&before_);					\
} while (0)

static int command_fd(const struct command *command, int dev, const struct tracker *t)
{
	return command->on_device ? dev : t->fd;
}

TEST_F(ioctl, size_too_small)
{
	const struct command *c;
	union argument a;

	for (c = commands; c < commands + COMMANDS; c++) {
		const uint32_t sizes[] = { 0, 1, 4, 7, (uint32_t)c->size - 8, (uint32_t)c->size - 1 };

		for (unsigned int i = 0; i < 6; i++) {
			if (sizes[i] >= c->size)
				continue;
			argument_good(&a, c, self->words, self->extents);
			a.size = sizes[i];
			EXPECT_FAILS(EINVAL, command_fd(c, self->dev, &self->t), c, &a, 0);
			argument_done(&a, c, -1);
		}
	}
}

TEST_F(ioctl, size_too_big)
{
	const struct command *c;
	union argument a;

	for (c = commands; c < commands + COMMANDS; c++) {
		for (size_t extra = 8; c->size + extra <= sizeof(a); extra += 40) {
			argument_good(&a, c, self->words, self->extents);
			a.size = (uint32_t)(c->size + extra);
			a.room[a.size - 1] = 1;
			EXPECT_FAILS(E2BIG, command_fd(c, self->dev, &self->t), c, &a, 0);
			argument_done(&a, c, -1);
		}
		/* As far as the structure says, it must be readable. */
		argument_good(&a, c, self->words, self->extents);
		a.size = 0xfffffff8;
		{
			struct snapshot before;
			int ret;

			snapshot_take(&before, &self->t);
			ret = ferry_ioctl(command_fd(c, self->dev, &self->t), c->number, &a);
			EXPECT_TRUE(ret == -EFAULT || ret == -E2BIG) {
				TH_LOG("%s of 4 GiB: %d", c->name, ret);
			}
			EXPECT_UNCHANGED(&before);
		}
		argument_done(&a, c, -1);
	}
}

TEST_F(ioctl, size_of_the_future)
{
	const struct command *c;
	union argument a;

	for (c = commands; c < commands + COMMANDS; c++) {
		int ret;

		if (c->number == FERRY_START)
			ASSERT_EQ(0, tracker_stop(&self->t));
		argument_good(&a, c, self->words, self->extents);
		a.size = sizeof(a);
		ret = ferry_ioctl(command_fd(c, self->dev, &self->t), c->number, &a);
		EXPECT_EQ(0, ret) {
			TH_LOG("%s with a bigger structure", c->name);
		}
		argument_done(&a, c, ret);
	}
}

TEST_F(ioctl, unknown_flags)
{
	const struct command *c;
	union argument a;

	for (c = commands; c < commands + COMMANDS; c++) {
		for (int bit = 0; bit < 32; bit++) {
			if (c->known_flags & (1U << bit))
				continue;
			argument_good(&a, c, self->words, self->extents);
			a.flags = c->known_flags | 1U << bit;
			EXPECT_FAILS(EOPNOTSUPP, command_fd(c, self->dev, &self->t), c, &a, 0);
			argument_done(&a, c, -1);
		}
	}
}

TEST_F(ioctl, reserved_fields)
{
	const struct command *watch = &commands[9], *bitmap = &commands[10];
	union argument a;

	argument_good(&a, watch, self->words, self->extents);
	a.watch.reserved = 1;
	EXPECT_FAILS(EOPNOTSUPP, self->t.fd, watch, &a, 0);
	argument_good(&a, bitmap, self->words, self->extents);
	a.bitmap.reserved = 0x80000000;
	EXPECT_FAILS(EOPNOTSUPP, self->t.fd, bitmap, &a, 0);
}

TEST_F(ioctl, argument_is_not_memory)
{
	char *hole = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	const struct command *c;
	union argument a;

	ASSERT_NE(MAP_FAILED, hole);
	ASSERT_EQ(0, munmap(hole + PAGE, PAGE));
	for (c = commands; c < commands + COMMANDS; c++) {
		int fd = command_fd(c, self->dev, &self->t);
		void *const bad[] = { NULL, (void *)8, hole + PAGE, (void *)-8L, KERNEL_ADDRESS };
		struct snapshot before;

		snapshot_take(&before, &self->t);
		for (unsigned int i = 0; i < 5; i++)
			EXPECT_EQ(-EFAULT, ferry_ioctl(fd, c->number, bad[i]));
		/* Its beginning is there, its end is not. */
		if (c->size > 8) {
			argument_good(&a, c, self->words, self->extents);
			memcpy(hole + PAGE - 8, &a, 8);
			EXPECT_EQ(-EFAULT, ferry_ioctl(fd, c->number, hole + PAGE - 8));
			argument_done(&a, c, -1);
		}
		EXPECT_UNCHANGED(&before);
	}
	munmap(hole, PAGE);
}

TEST_F(ioctl, argument_is_read_only)
{
	char *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	const struct command *c;
	union argument a;

	ASSERT_NE(MAP_FAILED, page);
	for (c = commands; c < commands + COMMANDS; c++) {
		bool writes = c->number != FERRY_START && c->number != FERRY_STOP &&
			      c->number != FERRY_WATCH;
		/* The bits are in the buffer and clean, or dirty still. */
		bool may_change = c->number == FERRY_SYNC || c->number == FERRY_CLEAR;
		struct snapshot before;

		if (!writes)
			continue;
		memset(self->words, c->number == FERRY_CLEAR ? 0xff : 0, sizeof(self->words));
		argument_good(&a, c, self->words, self->extents);
		memcpy(page, &a, sizeof(a));
		ASSERT_EQ(0, mprotect(page, PAGE, PROT_READ));
		snapshot_take(&before, &self->t);
		EXPECT_EQ(-EFAULT, ferry_ioctl(command_fd(c, self->dev, &self->t), c->number,
					       page)) {
			TH_LOG("%s", c->name);
		}
		if (!may_change) {
			EXPECT_UNCHANGED(&before);
		} else if (c->number == FERRY_SYNC) {
			ASSERT_LE(0, tracker_get(&self->t));
			for (int i = 0; i < WORDS; i++)
				EXPECT_EQ(before.words[i], self->words[i] | self->t.bits[i]);
		}
		argument_done(&a, c, -1);
		ASSERT_EQ(0, mprotect(page, PAGE, PROT_READ | PROT_WRITE));
		store(self->view + 3 * PAGE, 2);
		store(self->view + 70 * PAGE, 2);
	}
	munmap(page, PAGE);
}

TEST_F(ioctl, unknown_commands)
{
	struct ferry_bitmap_fd bitmap = { .size = sizeof(bitmap) };
	union argument a;

	ASSERT_EQ(0, ferry_ioctl(self->t.fd, FERRY_BITMAP, &bitmap));
	for (unsigned int number = 0; number < 256; number++) {
		unsigned long command = _IO(FERRY_IOC_TYPE, number);
		bool device = false, tracker = false;

		for (unsigned int i = 0; i < COMMANDS; i++)
			if (commands[i].number == command) {
				device = commands[i].on_device;
				tracker = !device;
			}
		memset(&a, 0, sizeof(a));
		a.size = 64;
		if (!device)
			EXPECT_EQ(-ENOTTY, ferry_ioctl(self->dev, command, &a));
		if (!tracker)
			EXPECT_EQ(-ENOTTY, ferry_ioctl(self->t.fd, command, &a));
		EXPECT_EQ(-ENOTTY, ferry_ioctl(bitmap.out_fd, command, &a));
		/* Of the right number but with the size and direction that _IOWR would give. */
		EXPECT_EQ(-ENOTTY, ferry_ioctl(self->t.fd,
					       _IOWR(FERRY_IOC_TYPE, number, uint64_t), &a));
	}
	EXPECT_EQ(-ENOTTY, ferry_ioctl(self->dev, FIONREAD, &a));
	EXPECT_EQ(-ENOTTY, ferry_ioctl(self->t.fd, _IO('K', 0), &a));
	close(bitmap.out_fd);
}

TEST_F(ioctl, query)
{
	struct ferry_query query = { .size = sizeof(query) }, more;
	struct tracker other;

	ASSERT_EQ(0, ferry_ioctl(self->dev, FERRY_QUERY, &query));
	EXPECT_EQ(FERRY_API_VERSION, query.out_api_version);
	EXPECT_EQ(sysconf(_SC_PAGESIZE), query.out_page_bytes);
	EXPECT_EQ(0, query.out_features & ~(FERRY_FEATURE_PINS | FERRY_FEATURE_UNEXPLAINED |
					    FERRY_FEATURE_LIMIT));
	EXPECT_NE(0, query.out_features & FERRY_FEATURE_PINS);
	EXPECT_LE(PAGES, query.out_max_pages);
	EXPECT_LE(1, query.out_trackers);
	EXPECT_LE(query.out_trackers, query.out_max_trackers);
	ASSERT_EQ(0, tracker_make(&other, 1));
	ASSERT_EQ(0, ferry_query(&more));
	EXPECT_EQ(query.out_trackers + 1, more.out_trackers);
	tracker_end(&other);
	ASSERT_EQ(0, ferry_query(&more));
	EXPECT_EQ(query.out_trackers, more.out_trackers);
}

TEST_F(ioctl, start_and_stop)
{
	struct ferry_tracker_stats stats;

	EXPECT_EQ(-EALREADY, tracker_start(&self->t));
	EXPECT_EQ(3, tracker_get(&self->t));
	ASSERT_EQ(0, tracker_stats(&self->t, &stats));
	EXPECT_EQ(FERRY_STATE_STARTED, stats.out_state);

	/* Stopping keeps the bits, and nothing is noted any more. */
	EXPECT_EQ(0, tracker_stop(&self->t));
	EXPECT_EQ(-EALREADY, tracker_stop(&self->t));
	ASSERT_EQ(0, tracker_stats(&self->t, &stats));
	EXPECT_EQ(0, stats.out_state);
	store(self->view + 5 * PAGE, 1);
	store(self->view + 3 * PAGE, 2);
	EXPECT_EQ(3, tracker_sync(&self->t));
	EXPECT_TRUE(bit_get(self->t.bits, 199));
	store(self->view + 3 * PAGE, 3);
	EXPECT_EQ(0, tracker_sync(&self->t));

	/* Starting clears, and protects what was writable. */
	EXPECT_EQ(0, tracker_start(&self->t));
	EXPECT_EQ(0, tracker_get(&self->t));
	store(self->view + 5 * PAGE, 2);
	store(self->view + 3 * PAGE, 4);
	EXPECT_EQ(2, tracker_sync(&self->t));
	EXPECT_EQ(1UL << 3 | 1UL << 5, self->t.bits[0]);
}

TEST_F(ioctl, start_forgets)
{
	ASSERT_EQ(0, tracker_stop(&self->t));
	ASSERT_EQ(3, tracker_get(&self->t));
	ASSERT_EQ(0, tracker_start(&self->t));
	EXPECT_EQ(0, tracker_get(&self->t));
	/* Pages that were dirty and writable before are seen again. */
	store(self->view + 3 * PAGE, 2);
	store(self->view + 199 * PAGE, 2);
	EXPECT_EQ(2, tracker_sync(&self->t));
}

TEST_F(ioctl, stats)
{
	struct ferry_tracker_stats stats;
	char *second;

	ASSERT_EQ(0, tracker_stats(&self->t, &stats));
	EXPECT_EQ(self->t.id, stats.out_id);
	EXPECT_EQ(PAGES, stats.out_pages);
	EXPECT_EQ(3, stats.out_dirty_pages);
	EXPECT_EQ(FERRY_STATE_STARTED, stats.out_state);
	EXPECT_EQ(1, stats.out_views);
	EXPECT_EQ(3, stats.out_faults);
	EXPECT_EQ(3, stats.out_marked_pages);
	EXPECT_EQ(0, stats.out_syncs);
	EXPECT_EQ(0, stats.out_cleaned_pages);
	EXPECT_EQ(0, stats.out_pinned_pages);
	EXPECT_EQ(0, stats.out_watermarks);
	second = tracker_view(&self->t);
	ASSERT_NE(NULL, second);
	ASSERT_EQ(3, tracker_sync(&self->t));
	store(self->view + 3 * PAGE, 2);
	ASSERT_EQ(1, tracker_get(&self->t));
	ASSERT_EQ(0, tracker_stats(&self->t, &stats));
	EXPECT_EQ(1, stats.out_dirty_pages);
	EXPECT_EQ(2, stats.out_views);
	EXPECT_EQ(4, stats.out_faults);
	EXPECT_EQ(4, stats.out_marked_pages);
	EXPECT_EQ(1, stats.out_syncs);
	EXPECT_EQ(3, stats.out_cleaned_pages);
	munmap(second, PAGES * PAGE);
	ASSERT_EQ(0, tracker_stats(&self->t, &stats));
	EXPECT_EQ(1, stats.out_views);
}

TEST_F(ioctl, watch_refuses)
{
	int events = eventfd(0, EFD_CLOEXEC), null = open("/dev/null", O_RDWR);
	const struct {
		uint64_t watermark;
		int eventfd;
		int expected;
	} cases[] = {
		{ PAGES + 1, -1, ERANGE },
		{ ~0ULL, -1, ERANGE },
		{ PAGES + 1, events, ERANGE },
		{ 1, 1000000, EBADF },
		{ 1, -2, EBADF },
		{ 1, null, EINVAL },
		{ 1, self->t.fd, EINVAL },
		{ 1, self->t.memfd, EINVAL },
		{ 0, events, EINVAL },
	};

	ASSERT_LE(0, events);
	ASSERT_LE(0, null);
	for (unsigned int i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		union argument a = { .watch = {
			.size = sizeof(a.watch),
			.watermark_pages = cases[i].watermark,
			.eventfd = cases[i].eventfd,
		} };

		EXPECT_FAILS(cases[i].expected, self->t.fd, &commands[9], &a, 0);
	}
	close(events);
	close(null);
}

TEST_F(ioctl, plain_file_operations)
{
	char byte = 0;

	/* A tracker is no file to read or write. */
	EXPECT_EQ(-1, read(self->t.fd, &byte, 1));
	EXPECT_EQ(-1, write(self->t.fd, &byte, 1));
	EXPECT_EQ(-1, pwrite(self->t.fd, &byte, 1, 0));
	EXPECT_EQ(-1, read(self->dev, &byte, 1));
	EXPECT_EQ(-1, write(self->dev, &byte, 1));
	EXPECT_EQ(MAP_FAILED, mmap(NULL, PAGE, PROT_READ, MAP_SHARED, self->dev, 0));
	EXPECT_EQ(3, tracker_get(&self->t));
}

HARNESS_MAIN
