// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A userfaultfd on a view. What it may do differs from kernel to kernel, and does not
 * matter: refused, or nothing gets past the tracker.
 */
#include "harness.h"
#include "tracker.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>

#ifndef UFFD_FEATURE_WP_HUGETLBFS_SHMEM
#define UFFD_FEATURE_WP_HUGETLBFS_SHMEM (1 << 12)
#endif
#ifndef UFFD_FEATURE_WP_UNPOPULATED
#define UFFD_FEATURE_WP_UNPOPULATED (1 << 13)
#endif
#ifndef UFFD_FEATURE_WP_ASYNC
#define UFFD_FEATURE_WP_ASYNC (1 << 15)
#endif

#define PAGES 64UL
#define BYTES (PAGES * PAGE)

/* Exactly this page was stored to since the last time. */
#define EXPECT_SEEN(page) do {						\
	EXPECT_EQ(1, tracker_sync(&self->t));				\
	EXPECT_TRUE(bit_get(self->t.bits, page));			\
} while (0)

FIXTURE(uffd)
{
	struct tracker t;
	char *at;
	int fd;
};

FIXTURE_VARIANT(uffd)
{
	uint64_t mode;
	uint64_t features;
};

FIXTURE_VARIANT_ADD(uffd, missing) { .mode = UFFDIO_REGISTER_MODE_MISSING };
FIXTURE_VARIANT_ADD(uffd, minor) {
	.mode = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR,
	.features = UFFD_FEATURE_MINOR_SHMEM,
};
FIXTURE_VARIANT_ADD(uffd, wp) {
	.mode = UFFDIO_REGISTER_MODE_WP,
	.features = UFFD_FEATURE_WP_HUGETLBFS_SHMEM,
};
FIXTURE_VARIANT_ADD(uffd, wp_async) {
	.mode = UFFDIO_REGISTER_MODE_WP,
	.features = UFFD_FEATURE_WP_HUGETLBFS_SHMEM | UFFD_FEATURE_WP_UNPOPULATED |
		    UFFD_FEATURE_WP_ASYNC,
};

FIXTURE_SETUP(uffd)
{
	struct uffdio_api api = { .api = UFFD_API, .features = variant->features };

	ASSERT_EQ(0, tracker_make(&self->t, PAGES));
	self->at = tracker_view(&self->t);
	ASSERT_NE(NULL, self->at);
	self->fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	ASSERT_LE(0, self->fd);
	if (ioctl(self->fd, UFFDIO_API, &api)) {
		ASSERT_EQ(EINVAL, errno);
		SKIP(return, "this kernel has not got these features");
	}
}

FIXTURE_TEARDOWN(uffd)
{
	close(self->fd);
	tracker_end(&self->t);
}

/* Refused, or nothing that it makes possible gets past the tracker. */
TEST_F(uffd, nothing_gets_past)
{
	struct uffdio_register reg = {
		.range = { (uintptr_t)self->at, BYTES },
		.mode = variant->mode,
	};
	char *from = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct uffdio_copy copy = { .src = (uintptr_t)from, .len = PAGE };
	struct uffdio_zeropage zero = { .range.len = PAGE };
	struct uffdio_continue cont = { .range.len = PAGE };
	struct uffdio_writeprotect wp = { .range.len = PAGE, .mode = UFFDIO_WRITEPROTECT_MODE_WP };
	uint64_t base = (uintptr_t)self->at;

	ASSERT_NE(MAP_FAILED, from);
	store(from, 5);
	store(self->at, 1);
	EXPECT_EQ(1, tracker_sync(&self->t));
	if (ioctl(self->fd, UFFDIO_REGISTER, &reg)) {
		printf("#   the kernel refuses it\n");
		EXPECT_EQ(EINVAL, errno);
		store(self->at + PAGE, 1);
		EXPECT_SEEN(1);
		return;
	}
	/* A page that this fills in is seen at once, or its first store is. */
	copy.dst = base + 10 * PAGE;
	if (!ioctl(self->fd, UFFDIO_COPY, &copy)) {
		printf("#   a page was copied in\n");
		store(self->at + 10 * PAGE, 6);
		EXPECT_SEEN(10);
	}
	zero.range.start = base + 11 * PAGE;
	if (!ioctl(self->fd, UFFDIO_ZEROPAGE, &zero)) {
		store(self->at + 11 * PAGE, 6);
		EXPECT_SEEN(11);
	}
	ASSERT_EQ(1, pwrite(self->t.memfd, "x", 1, 12 * (off_t)PAGE));
	cont.range.start = base + 12 * PAGE;
	if (!ioctl(self->fd, UFFDIO_CONTINUE, &cont)) {
		store(self->at + 12 * PAGE, 6);
		EXPECT_SEEN(12);
	}
	/* Protected and released again by userfaultfd, the tracker's protection stays. */
	wp.range.start = base;
	if (!ioctl(self->fd, UFFDIO_WRITEPROTECT, &wp)) {
		wp.mode = 0;
		EXPECT_EQ(0, ioctl(self->fd, UFFDIO_WRITEPROTECT, &wp));
		store(self->at, 6);
		EXPECT_SEEN(0);
	}
}

HARNESS_MAIN
