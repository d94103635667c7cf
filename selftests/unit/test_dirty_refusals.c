// SPDX-License-Identifier: GPL-2.0-or-later
/* What a tracker refuses to start on, when it fails later, and which one is chosen. */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "dirty_rig.h"

#define NO_SUCH_PID (1 << 23) /* pid_max is at most 2^22 */
#define SHMEM_ENABLED "/sys/kernel/mm/transparent_hugepage/shmem_enabled"

static void start_refuses(void **state)
{
	const struct ferry_dirty_ops *ops = *state;
	struct ferry_dirty *d = NULL;
	struct target t;

	target_start(&t);
	t.ram.blocks[0].vmm_addr = 0;
	assert_int_equal(ops->start(&t.t, &d, &t.err), -EINVAL);
	assert_non_null(strstr(t.err.text, "RAM block mem"));
	t.ram.blocks[0].vmm_addr = (uintptr_t)t.mem;
	kill(t.t.pid, SIGKILL);
	waitpid(t.t.pid, NULL, 0);
	assert_int_equal(ops->start(&t.t, &d, &t.err), -ESRCH);
	assert_null(d);
	target_end(&t);
}

static void start_needs_a_fresh_uffd(void **state)
{
	const struct ferry_dirty_ops *ops = *state;
	struct ferry_dirty *d = NULL;
	struct target t;
	int first;

	target_start(&t);
	first = t.t.uffd;
	t.t.uffd = -1;
	assert_int_equal(ops->start(&t.t, &d, &t.err), -EBADF);
	t.t.uffd = first;
	target_track(&t, ops);
	/* the handshake of this userfaultfd is done */
	assert_int_equal(ops->start(&t.t, &d, &t.err), -EINVAL);
	/* and the range belongs to it */
	target_tell(&t, CMD_UFFD, 0, 0, 0);
	target_fetch_uffd(&t);
	assert_int_equal(ops->start(&t.t, &d, &t.err), -EBUSY);
	assert_non_null(strstr(t.err.text, "another userfaultfd"));
	assert_null(d);
	target_untrack(&t);
	close(first);
	target_end(&t);
}

static void collect_fails_after_remap(void **state)
{
	struct target t;

	target_start(&t);
	target_track(&t, *state);
	target_tell(&t, CMD_REMAP, 7, 1, 0);
	assert_int_equal(t.d->ops->collect(t.d, &t.dirty, &t.err), -EPERM);
	assert_non_null(strstr(t.err.text, "RAM block mem"));
	target_end(&t);
}

static void collect_fails_after_death(void **state)
{
	struct target t;

	target_start(&t);
	target_track(&t, *state);
	target_tell(&t, CMD_WRITE, 0, 10, 0);
	kill(t.t.pid, SIGKILL);
	waitpid(t.t.pid, NULL, 0);
	assert_int_equal(t.d->ops->collect(t.d, &t.dirty, &t.err), -ESRCH);
	target_end(&t);
}

static void supported_needs_a_process(void **state)
{
	const struct ferry_dirty_ops *ops = *state;
	const struct ferry_ram none = { 0 };
	struct ferry_dirty_target self = { .pid = NO_SUCH_PID, .ram = &none, .uffd = -1 };
	struct ferry_error err = { 0 };

	assert_int_equal(ops->supported(&self, &err), -ESRCH);
	assert_int_equal(err.errnum, ESRCH);
}

static void pagemap_needs_a_right(void **state)
{
	const struct ferry_dirty_ops *ops = *state;
	const struct ferry_ram none = { 0 };
	struct ferry_dirty_target self = { .ram = &none, .uffd = -1 };
	struct ferry_error err = { 0 };
	char on = '0';
	int fd, status;
	pid_t pid;

	fd = open("/proc/sys/vm/unprivileged_userfaultfd", O_RDONLY | O_CLOEXEC);
	assert_true(fd < 0 || read(fd, &on, 1) == 1);
	close(fd);
	if (geteuid() != 0 || on == '1') {
		print_message("SKIP: needs root, and vm.unprivileged_userfaultfd = 0\n");
		skip();
	}
	pid = fork();
	if (pid == 0) {
		if (setresuid(65534, 65534, 65534))
			_exit(2);
		self.pid = getpid();
		_exit(!(ops->supported(&self, &err) == -EPERM &&
			strstr(err.text, "/dev/userfaultfd")));
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
}

static void pagemap_on_an_old_kernel(void **state)
{
	const struct ferry_ram none = { 0 };
	struct ferry_dirty_target self = { .pid = getpid(), .ram = &none, .uffd = -1 };
	struct ferry_error err = { 0 };
	unsigned int major_no, minor_no;
	struct utsname un;

	(void)state;
	assert_int_equal(uname(&un), 0);
	assert_int_equal(sscanf(un.release, "%u.%u", &major_no, &minor_no), 2);
	if (major_no > 6 || (major_no == 6 && minor_no >= 7)) {
		print_message("SKIP: kernel %s is not older than 6.7\n", un.release);
		skip();
	}
	assert_int_equal(ferry_dirty_pagemap.supported(&self, &err), -EOPNOTSUPP);
	assert_non_null(strstr(err.text, "older than 6.7"));
}

static void softdirty_without_the_config(void **state)
{
	const struct ferry_ram none = { 0 };
	struct ferry_dirty_target self = { .pid = getpid(), .ram = &none, .uffd = -1 };
	struct ferry_error err = { 0 };
	int ret = ferry_dirty_softdirty.supported(&self, &err);

	(void)state;
	if (!ret || strstr(err.text, "swap is on")) {
		print_message("SKIP: this kernel keeps soft-dirty bits\n");
		skip();
	}
	assert_int_equal(ret, -EOPNOTSUPP);
	assert_non_null(strstr(err.text, "CONFIG_MEM_SOFT_DIRTY"));
}

/* A swap area as the kernel would show it: our own file over /proc/swaps. */
static void pretend_swap(bool on)
{
	char path[] = "/tmp/ferry-test-swaps-XXXXXX";
	int fd;

	if (!on) {
		assert_int_equal(umount2("/proc/swaps", MNT_DETACH), 0);
		return;
	}
	if (unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL)) {
		print_message("SKIP: needs a mount namespace of its own (root)\n");
		skip();
	}
	fd = mkstemp(path);
	assert_true(fd >= 0);
	assert_true(dprintf(fd, "Filename\tType\tSize\tUsed\tPriority\n"
				"/dev/vda2\tpartition\t1\t0\t-2\n") > 0);
	close(fd);
	assert_int_equal(mount(path, "/proc/swaps", NULL, MS_BIND, NULL), 0);
	unlink(path);
}

static void softdirty_refuses_swap(void **state)
{
	const struct ferry_dirty_ops *ops = *state;
	struct target t;

	target_start(&t);
	target_track(&t, ops);
	pretend_swap(true);
	assert_int_equal(ops->supported(&t.t, &t.err), -EOPNOTSUPP);
	assert_non_null(strstr(t.err.text, "swap is on (/dev/vda2)"));
	assert_int_equal(t.d->ops->collect(t.d, &t.dirty, &t.err), -EOPNOTSUPP);
	pretend_swap(false);
	assert_int_equal(ops->supported(&t.t, &t.err), 0);
	target_end(&t);
}

static void softdirty_refuses_huge_pages(void **state)
{
	const struct ferry_dirty_ops *ops = *state;
	char dir[] = HUGE_DIR;
	struct target t;
	int fd;

	target_start_on(&t, rig_huge_file(dir), SIZE, FERRY_PAGE_SIZE);
	assert_int_equal(ops->supported(&t.t, &t.err), -EOPNOTSUPP);
	assert_non_null(strstr(t.err.text, "mounted with \"huge=always\""));
	rig_huge_unmount(dir);
	/* gone from every mount table: when it cannot tell, it refuses */
	assert_int_equal(ops->supported(&t.t, &t.err), -EOPNOTSUPP);
	assert_non_null(strstr(t.err.text, "cannot be found"));
	target_end(&t);

	target_start(&t);
	t.ram.blocks[0].page_size = 2u << 20;
	assert_int_equal(ops->supported(&t.t, &t.err), -EOPNOTSUPP);
	t.ram.blocks[0].page_size = FERRY_PAGE_SIZE;
	assert_int_equal(ops->supported(&t.t, &t.err), 0);
	fd = open(SHMEM_ENABLED, O_RDWR | O_CLOEXEC);
	if (fd < 0 || write(fd, "advise", 6) != 6) {
		print_message("SKIP: cannot change " SHMEM_ENABLED "\n");
		skip();
	}
	assert_int_equal(ops->supported(&t.t, &t.err), -EOPNOTSUPP);
	assert_non_null(strstr(t.err.text, SHMEM_ENABLED " is \"advise\""));
	assert_int_equal(write(fd, "never", 5), 5);
	close(fd);
	assert_int_equal(ops->supported(&t.t, &t.err), 0);
	target_end(&t);
}

static void choose_by_name(void **state)
{
	const struct ferry_dirty_ops *ops = *state, *got = ops;
	const struct ferry_ram none = { 0 };
	struct ferry_dirty_target self = { .pid = getpid(), .ram = &none, .uffd = -1 };
	struct ferry_error err = { 0 };

	assert_int_equal(ferry_dirty_choose("none", &self, &got, &err), 0);
	assert_null(got);
	assert_int_equal(ferry_dirty_choose("magic", &self, &got, &err), -EINVAL);
	assert_non_null(strstr(err.text, "\"magic\""));
	assert_int_equal(ferry_dirty_choose("", &self, &got, &err), -EINVAL);
	assert_int_equal(ferry_dirty_choose(ops->name, &self, &got, &err), 0);
	assert_ptr_equal(got, ops);
	assert_int_equal(ferry_dirty_choose("auto", &self, &got, &err), 0);
	assert_non_null(got);

	self.pid = NO_SUCH_PID;
	assert_int_equal(ferry_dirty_choose(ops->name, &self, &got, &err), -EOPNOTSUPP);
	assert_null(got);
	assert_non_null(strstr(err.text, ops->name));
	assert_int_equal(ferry_dirty_choose("auto", &self, &got, &err), -EOPNOTSUPP);
	assert_non_null(strstr(err.text, "pagemap: "));
	assert_non_null(strstr(err.text, "softdirty: "));
	assert_non_null(strstr(err.text, "--tracker none"));
}

int main(void)
{
	const struct CMUnitTest pagemap[] = {
		TEST(pagemap, start_refuses),
		TEST(pagemap, start_needs_a_fresh_uffd),
		TEST(pagemap, collect_fails_after_remap),
		TEST(pagemap, collect_fails_after_death),
		TEST(pagemap, supported_needs_a_process),
		TEST(pagemap, pagemap_needs_a_right),
		TEST(pagemap, choose_by_name),
	};
	const struct CMUnitTest softdirty[] = {
		TEST(softdirty, start_refuses),
		TEST(softdirty, collect_fails_after_death),
		TEST(softdirty, supported_needs_a_process),
		TEST(softdirty, softdirty_refuses_swap),
		TEST(softdirty, softdirty_refuses_huge_pages),
		TEST(softdirty, choose_by_name),
	};
	const struct CMUnitTest no_pagemap[] = { TEST(pagemap, pagemap_on_an_old_kernel) };
	const struct CMUnitTest no_softdirty[] = { TEST(softdirty, softdirty_without_the_config) };
	int failed = RIG_RUN(pagemap) + RIG_RUN(softdirty);

	if (!rig_runs_here(&ferry_dirty_pagemap))
		failed += cmocka_run_group_tests(no_pagemap, NULL, NULL);
	if (!rig_runs_here(&ferry_dirty_softdirty))
		failed += cmocka_run_group_tests(no_softdirty, NULL, NULL);
	return failed;
}
