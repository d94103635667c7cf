// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A file that has no name until it is complete: on file systems that know such files, and on
 * those that do not, where a process that dies leaves one that the next one removes.
 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/error.h"
#include "store/aside.h"

static char folder[] = "/dev/shm/ferry-aside-XXXXXX";
static char path[64], part[80];
static bool knows_nameless = true;

/* As the file system does that knows no files without a name. */
int openat(int dir, const char *name, int flags, ...)
{
	va_list args;
	int mode;

	va_start(args, flags);
	mode = va_arg(args, int);
	va_end(args);
	if (!knows_nameless && (flags & O_TMPFILE) == O_TMPFILE) {
		errno = EOPNOTSUPP;
		return -1;
	}
	return (int)syscall(SYS_openat, dir, name, flags, mode);
}

static void life(void)
{
	struct ferry_store_aside a;
	struct ferry_error err = { 0 };

	assert_int_equal(ferry_store_aside_open(&a, path, "vm1", &err), 0);
	assert_int_equal(write(a.fd, "half", 4), 4);
	assert_int_equal(access(path, F_OK), -1);
	assert_int_equal(access(part, F_OK), knows_nameless ? -1 : 0);
	ferry_store_aside_close(&a);
	assert_int_equal(access(part, F_OK), -1);

	assert_int_equal(ferry_store_aside_open(&a, path, "vm1", &err), 0);
	assert_int_equal(write(a.fd, "FERRYRAM", 8), 8);
	assert_int_equal(ferry_store_aside_publish(&a, NULL, NULL, &err), 0);
	ferry_store_aside_close(&a);
	assert_int_equal(access(path, F_OK), 0);
	assert_int_equal(access(part, F_OK), -1);

	/* A newer one takes its place. */
	assert_int_equal(ferry_store_aside_open(&a, path, "vm1", &err), 0);
	assert_int_equal(ferry_store_aside_publish(&a, NULL, NULL, &err), 0);
	ferry_store_aside_close(&a);
	assert_int_equal(unlink(path), 0);
}

static void without_a_name(void **state)
{
	(void)state;
	life();
}

static void with_one_of_its_own(void **state)
{
	struct ferry_store_aside a;

	(void)state;
	knows_nameless = false;
	life();
	/* Its process dies: what is left is found by the id. */
	assert_int_equal(ferry_store_aside_open(&a, path, "vm1", NULL), 0);
	ferry_store_aside_remove(path, "vm2");
	assert_int_equal(access(part, F_OK), 0);
	ferry_store_aside_remove(path, "vm1");
	assert_int_equal(access(part, F_OK), -1);
	ferry_store_aside_close(&a);
	knows_nameless = true;
}

static int no_step(void *ctx, const char *stage, struct ferry_error *err)
{
	assert_string_equal(stage, "file-named");
	return ferry_error_set(err, ECANCELED, "%s", (const char *)ctx);
}

static void failures(void **state)
{
	struct ferry_store_aside a;
	struct ferry_error err = { 0 };
	char why[] = "asked to";

	(void)state;
	assert_int_equal(ferry_store_aside_open(&a, "", "x", &err), -EINVAL);
	assert_int_equal(ferry_store_aside_open(&a, "/dev/null", "x", &err), -EEXIST);
	assert_non_null(strstr(err.text, "no file"));
	assert_int_equal(symlink("/dev/shm/elsewhere", path), 0);
	assert_int_equal(ferry_store_aside_open(&a, path, "x", &err), -EEXIST);
	assert_non_null(strstr(err.text, "symbolic link"));
	unlink(path);
	assert_int_equal(ferry_store_aside_open(&a, path, "x", &err), 0);
	assert_int_equal(ferry_store_aside_publish(&a, no_step, why, &err), -ECANCELED);
	assert_string_equal(err.text, why);
	ferry_store_aside_close(&a);
	unlink(path);
}

static int setup(void **state)
{
	(void)state;
	if (!mkdtemp(folder))
		return -1;
	snprintf(path, sizeof(path), "%s/snap", folder);
	snprintf(part, sizeof(part), "%s/.snap.vm1.part", folder);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	unlink(path);
	return rmdir(folder);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(without_a_name),
		cmocka_unit_test(with_one_of_its_own),
		cmocka_unit_test(failures),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
