// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * How the kmod tracker tries the module out before it relies on it, against modules that are
 * none: open("/dev/ferry") and FERRY_* ioctls come to the functions below. A written page is
 * one whose first byte changed; how a module is wrong about that is what differs.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/ferry.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/error.h"
#include "dirty/dirty.h"
#include "ram/ram.h"

#define PAGES 2u

enum kind {
	SOUND,
	PROTECTS_ONCE,	/* only the first store to a page is ever seen */
	NEVER_CLEAN,	/* what was reported is reported again */
	BLIND,
	OTHER_PAGE,	/* the wrong page */
	SCAN_FAILS,
	START_FAILS,
};

static struct {
	enum kind kind;
	unsigned int scans;
	uint8_t seen[PAGES];
	bool reported[PAGES];
} module;

static int do_track(struct ferry_track *track)
{
	/* A "view" is the file itself, which is enough to be mapped. */
	track->out_fd = fcntl(track->memfd, F_DUPFD_CLOEXEC, 0);
	track->out_pages = PAGES;
	return track->out_fd < 0 ? -1 : 0;
}

static bool page_dirty(int fd, unsigned int page)
{
	bool changed;
	uint8_t now;

	assert_int_equal(pread(fd, &now, 1, (off_t)(page * FERRY_PAGE_SIZE)), 1);
	changed = now != module.seen[page];
	module.seen[page] = now;
	if (module.kind == BLIND || (module.kind == PROTECTS_ONCE && module.reported[page]))
		return false;
	changed |= module.kind == NEVER_CLEAN && module.reported[page];
	module.reported[page] |= changed;
	return changed;
}

static int do_scan(int fd, struct ferry_scan *scan)
{
	struct ferry_extent *extents = (struct ferry_extent *)(uintptr_t)scan->extents;

	module.scans++;
	if (module.kind == SCAN_FAILS) {
		errno = EINTR;
		return -1;
	}
	scan->out_extents = 0;
	for (unsigned int page = 0; page < PAGES; page++) {
		if (!page_dirty(fd, page))
			continue;
		if (!scan->out_extents)
			extents[scan->out_extents++] = (struct ferry_extent){
				.first_page = page + (module.kind == OTHER_PAGE),
			};
		extents[0].npages++;
	}
	return 0;
}

int ioctl(int fd, unsigned long request, ...)
{
	struct ferry_query *query;
	va_list args;
	void *arg;

	va_start(args, request);
	arg = va_arg(args, void *);
	va_end(args);
	switch (request) {
	case FERRY_QUERY:
		query = arg;
		query->out_api_version = FERRY_API_VERSION;
		query->out_page_bytes = FERRY_PAGE_SIZE;
		query->out_max_pages = 1 << 20;
		return 0;
	case FERRY_TRACK:
		return do_track(arg);
	case FERRY_START:
		errno = EALREADY;
		return module.kind == START_FAILS ? -1 : 0;
	case FERRY_SCAN:
		return do_scan(fd, arg);
	}
	return (int)syscall(SYS_ioctl, fd, request, arg);
}

int open(const char *path, int flags, ...)
{
	va_list args;
	mode_t mode;

	va_start(args, flags);
	mode = flags & O_CREAT ? va_arg(args, mode_t) : 0;
	va_end(args);
	return (int)syscall(SYS_openat, AT_FDCWD, strcmp(path, "/dev/ferry") ? path : "/dev/null",
			    flags, mode);
}

static int tried(enum kind kind, struct ferry_error *err)
{
	const struct ferry_ram ram = { .count = 0 };
	const struct ferry_dirty_target target = { .ram = &ram, .uffd = -1 };

	memset(&module, 0, sizeof(module));
	module.kind = kind;
	return ferry_dirty_kmod.supported(&target, err);
}

static void a_sound_module_is_taken(void **state)
{
	struct ferry_error err = { 0 };

	(void)state;
	assert_int_equal(tried(SOUND, &err), 0);
	assert_int_equal(module.scans, 3);
}

static void one_that_loses_writes_is_not(void **state)
{
	static const enum kind kinds[] = { PROTECTS_ONCE, NEVER_CLEAN, BLIND, OTHER_PAGE };
	static const unsigned int scans[] = { 3, 2, 1, 1 };
	struct ferry_error err = { 0 };

	(void)state;
	for (unsigned int i = 0; i < 4; i++) {
		assert_int_equal(tried(kinds[i], &err), -EOPNOTSUPP);
		assert_int_equal(module.scans, scans[i]);
		assert_string_equal(err.text, "the kernel module does not tell written pages on "
				    "this kernel: use another tracker");
	}
}

static void one_that_fails_is_not(void **state)
{
	struct ferry_error err = { 0 };

	(void)state;
	assert_int_equal(tried(SCAN_FAILS, &err), -EINTR);
	assert_string_equal(err.text, "trying out the kernel module: Interrupted system call");
	assert_int_equal(tried(START_FAILS, &err), -EALREADY);
	assert_string_equal(err.text, "starting a tracker: Operation already in progress");
	assert_int_equal(module.scans, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_sound_module_is_taken),
		cmocka_unit_test(one_that_loses_writes_is_not),
		cmocka_unit_test(one_that_fails_is_not),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
