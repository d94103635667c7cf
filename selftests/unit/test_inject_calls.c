// SPDX-License-Identifier: GPL-2.0-or-later
/* The remote system calls that ferry makes: a userfaultfd, seen or unseen, and madvise. */
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cmocka.h>

#include "inject/tracer.h"
#include "inject_rig.h"

#define PAGE 4096

static int open_device(void)
{
	int dev = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);

	if (dev < 0) {
		print_message("SKIP: no /dev/userfaultfd (%s)\n", strerror(errno));
		skip();
	}
	return dev;
}

static void test_userfaultfd(void **state)
{
	struct uffdio_api api = { .api = UFFD_API };
	int dev = open_device(), remote = -1, uffd = -1, fds[8];
	struct ferry_error err = { 0 };
	struct ferry_inject *inj;
	struct target t;

	(void)state;
	assert_int_equal(target_start(&t, TARGET_PPOLL), 0); /* inherits dev */
	inj = rig_open(t.pid);
	assert_int_equal(ferry_inject_find_fds(t.pid, "/dev/userfaultfd", fds, 8), 1);
	assert_int_equal(fds[0], dev);
	assert_int_equal(ferry_inject_userfaultfd(inj, dev, &remote, &uffd, &err), 0);
	assert_int_equal(ioctl(uffd, UFFDIO_API, &api), 0);
	assert_true(fcntl(uffd, F_GETFL) & O_NONBLOCK);
	assert_true(fcntl(uffd, F_GETFD) & FD_CLOEXEC);
	assert_int_equal(ferry_inject_find_fds(t.pid, "anon_inode:[userfaultfd]", fds, 8), 1);
	assert_int_equal(fds[0], remote);
	assert_int_equal(ferry_inject_close_fd(inj, remote, &err), 0);
	assert_int_equal(ferry_inject_find_fds(t.pid, "anon_inode:[userfaultfd]", fds, 8), 0);
	assert_int_equal(ferry_inject_close_fd(inj, remote, &err), -EBADF);
	assert_non_null(strstr(err.text, "closing descriptor"));
	close(uffd);
	/* The pipe is no /dev/userfaultfd. */
	assert_int_equal(ferry_inject_userfaultfd(inj, t.report->fds[0], &remote, &uffd, &err),
			 -ENOTTY);
	assert_non_null(strstr(err.text, "is not /dev/userfaultfd"));
	assert_int_equal(ferry_inject_userfaultfd(inj, 1000, &remote, &uffd, &err), -EBADF);
	assert_int_equal(ferry_inject_take_fd(t.pid, 1000), -EBADF);
	ferry_inject_close(inj);
	target_stop(&t);
	close(dev);
}

/* The result is unseen, whichever step it was: found by looking, or made again by the caller. */
static void test_userfaultfd_unseen(void **state)
{
	int dev = open_device(), remote, uffd, fds[8], step, found = 0, rc;
	struct ferry_error err = { 0 };
	struct ferry_inject *inj;
	struct target t;

	(void)state;
	assert_int_equal(target_start(&t, TARGET_PPOLL), 0);
	inj = rig_open(t.pid);
	ferry_tracer_probe = rig_count_down;
	for (step = 0; ; step++) {
		rig_steps_left = step;
		rc = ferry_inject_userfaultfd(inj, dev, &remote, &uffd, &err);
		if (!rc) {
			found += rig_steps_left < 0;
			close(uffd);
			uffd = rig_steps_left;
			rig_steps_left = 1 << 20;
			assert_int_equal(ferry_inject_close_fd(inj, remote, &err), 0);
			if (uffd >= 0)
				break;
		} else {
			assert_int_equal(rc, -EINTR);
			rig_steps_left = 1 << 20;
			/* It may have come after we looked; a poked target has made it. */
			rig_assert_alive(&t);
			if (ferry_inject_find_fds(t.pid, "anon_inode:[userfaultfd]", fds, 8) == 1)
				assert_int_equal(ferry_inject_close_fd(inj, fds[0], &err), 0);
		}
		assert_int_equal(ferry_inject_find_fds(t.pid, "anon_inode:[userfaultfd]", fds, 8),
				 0);
	}
	ferry_tracer_probe = NULL;
	print_message("unseen and found by looking: %d of %d\n", found, step);
	assert_true(found > 0);
	rig_assert_alive(&t);
	ferry_inject_close(inj);
	target_stop(&t);
	close(dev);
}

static void test_madvise(void **state)
{
	char *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct ferry_error err = { 0 };
	struct ferry_inject *inj;
	struct target t;
	char there = 0;

	(void)state;
	page[5] = 'x';
	assert_int_equal(target_start(&t, TARGET_PPOLL), 0); /* has a copy of the page */
	inj = rig_open(t.pid);
	assert_int_equal(ferry_inject_madvise(inj, (uintptr_t)page, PAGE, MADV_DONTNEED, &err), 0);
	{
		struct iovec local = { &there, 1 }, remote = { page + 5, 1 };

		there = 'y';
		assert_int_equal(process_vm_readv(t.pid, &local, 1, &remote, 1, 0), 1);
	}
	assert_int_equal(there, 0);
	assert_int_equal(page[5], 'x');
	assert_int_equal(ferry_inject_madvise(inj, (uintptr_t)page + 1, PAGE, MADV_DONTNEED, &err),
			 -EINVAL);
	assert_non_null(strstr(err.text, "madvise"));
	ferry_inject_close(inj);
	target_stop(&t);
	munmap(page, PAGE);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_userfaultfd),
		cmocka_unit_test_teardown(test_userfaultfd_unseen, rig_no_probe),
		cmocka_unit_test(test_madvise),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
