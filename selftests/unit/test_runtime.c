// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "agent/runtime.h"

static char dir[] = "/tmp/ferry-runtime-XXXXXX";

static int group_setup(void **state)
{
	(void)state;
	return mkdtemp(dir) ? 0 : -1;
}

static int group_teardown(void **state)
{
	char path[300];

	(void)state;
	snprintf(path, sizeof(path), "%s/new/vm1.lock", dir);
	unlink(path);
	snprintf(path, sizeof(path), "%s/new", dir);
	rmdir(path);
	snprintf(path, sizeof(path), "%s/file", dir);
	unlink(path);
	return rmdir(dir);
}

static int setup(void **state)
{
	char path[300];

	(void)state;
	snprintf(path, sizeof(path), "%s/new", dir);
	return setenv("FERRY_RUNTIME_DIR", path, 1);
}

static void default_ids(void **state)
{
	static const struct {
		const char *guest, *suffix, *id;
	} cases[] = {
		{ "qmp:/run/vm1.qmp", "", "vm1" },
		{ "qmp:/run/vm1.qmp", "-in", "vm1-in" },
		{ "qmp:/run/vm.1.qmp", "", "vm.1" },
		{ "qmp:/run/vm1", "", "vm1" },
		{ "qmp:vm1.sock", "", "vm1" },
		{ "qmp:/run/vms/web/qmp", "", "web" },
		{ "qmp:/run/vms/web/qmp.sock", "-in", "web-in" },
		{ "port:/run/vms/web/port", "", "web" },
		{ "port:/run/vms/web/port.sock", "", "web" },
		/* A folder's name is taken whole. */
		{ "qmp:/run/vms/web.example.org/qmp", "", "web.example.org" },
		/* Only those names, and only in a folder. */
		{ "qmp:/run/vms/web/qmp.socket", "", "qmp" },
		{ "qmp:/run/vms/web/qmp2", "", "qmp2" },
		{ "qmp:qmp.sock", "", "qmp" },
		{ "qmp:qmp", "", "qmp" },
		{ "qmp:./a-b_C.0", "", "a-b_C" },
	};
	char id[64];
	size_t i;

	(void)state;
	for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct ferry_error err = { 0 };

		assert_int_equal(ferry_runtime_default_id(cases[i].guest, cases[i].suffix, id,
							  sizeof(id), &err), 0);
		assert_string_equal(id, cases[i].id);
	}
}

static void no_default_id(void **state)
{
	static const char *const guests[] = {
		"qmp:/run/.hidden", "qmp:/run/vm 1.qmp", "qmp:/run/", "qmp:/qmp", "qmp:./qmp",
		"qmp:/run/v\xc3\xa4m.qmp", "qmp:/run/-vm.qmp",
		"qmp:/run/0123456789012345678901234567890123456789012345678901234567890123.qmp",
	};
	char id[64], text[300];
	size_t i;

	(void)state;
	for (i = 0; i < sizeof(guests) / sizeof(guests[0]); i++) {
		struct ferry_error err = { 0 };

		assert_int_equal(ferry_runtime_default_id(guests[i], "", id, sizeof(id), &err),
				 -EINVAL);
		snprintf(text, sizeof(text), "%s gives no usable id; choose one with --id ID",
			 guests[i]);
		assert_string_equal(err.text, text);
	}
}

static void ids(void **state)
{
	static const char *const good[] = {
		"a", "A-b_c.9", "9", "_", "123456789012345678901234567890123456789012345678901234567890123",
	};
	static const char *const bad[] = {
		"", ".", "..", ".vm", "-vm", "--json", "a/b", "a b", "a\n", "a:b", "\xc3\xa4",
		"1234567890123456789012345678901234567890123456789012345678901234",
	};
	struct ferry_error err;
	char text[300];
	size_t i;

	(void)state;
	for (i = 0; i < sizeof(good) / sizeof(good[0]); i++)
		assert_int_equal(ferry_runtime_check_id(good[i], &err), 0);
	for (i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		assert_int_equal(ferry_runtime_check_id(bad[i], &err), -EINVAL);
		snprintf(text, sizeof(text),
			 "'%s' is no id: up to 63 letters, digits, '.', '_' or '-', not starting "
			 "with a dot or a dash", bad[i]);
		assert_string_equal(err.text, text);
	}
}

static void folder(void **state)
{
	char path[FERRY_RUNTIME_PATH], want[400], file[300], long_path[300];
	struct ferry_error err;
	struct stat st;

	(void)state;
	assert_int_equal(ferry_runtime_dir(path, &err), 0);
	snprintf(want, sizeof(want), "%s/new", dir);
	assert_string_equal(path, want);
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_mode & 07777, 0700);
	/* There already is as good. */
	assert_int_equal(ferry_runtime_dir(path, &err), 0);
	assert_int_equal(ferry_runtime_path("vm1", "json", path, &err), 0);
	snprintf(want, sizeof(want), "%s/new/vm1.json", dir);
	assert_string_equal(path, want);

	snprintf(file, sizeof(file), "%s/file", dir);
	close(open(file, O_CREAT | O_WRONLY, 0600));
	setenv("FERRY_RUNTIME_DIR", file, 1);
	assert_true(ferry_runtime_dir(path, &err) < 0);
	snprintf(want, sizeof(want), "cannot use FERRY_RUNTIME_DIR=%s: ", file);
	assert_memory_equal(err.text, want, strlen(want));
	snprintf(long_path, sizeof(long_path), "%s/none/new", dir);
	setenv("FERRY_RUNTIME_DIR", long_path, 1);
	assert_int_equal(ferry_runtime_dir(path, &err), -ENOENT);
	memset(long_path, 'x', sizeof(long_path) - 1);
	long_path[sizeof(long_path) - 1] = 0;
	setenv("FERRY_RUNTIME_DIR", long_path, 1);
	assert_int_equal(ferry_runtime_dir(path, &err), -ENAMETOOLONG);
	assert_string_equal(err.text, "FERRY_RUNTIME_DIR is too long");
}

/* Held by whoever has a copy, also a child; free when the last one is closed. */
static void lock(void **state)
{
	struct ferry_error err;
	int fd, second, status;
	pid_t child;

	(void)state;
	fd = ferry_runtime_lock("vm1", &err);
	assert_true(fd >= 0);
	assert_true(fcntl(fd, F_GETFD) & FD_CLOEXEC);
	assert_int_equal(ferry_runtime_lock("vm1", &err), -EBUSY);
	assert_string_equal(err.text, "id vm1 is in use by a running ferry: 'ferry status vm1' tells more");
	child = fork();
	if (!child) {
		pause();
		_exit(0);
	}
	close(fd);
	assert_int_equal(ferry_runtime_lock("vm1", &err), -EBUSY);
	kill(child, SIGKILL);
	assert_int_equal(waitpid(child, &status, 0), child);
	/* The file it leaves behind means nothing. */
	second = ferry_runtime_lock("vm1", &err);
	assert_true(second >= 0);
	close(second);
}

/* Whoever was killed a moment ago, and still has the file open, is waited for. */
static void lock_of_the_dying(void **state)
{
	struct ferry_error err;
	int fd, second, status;
	pid_t child;

	(void)state;
	fd = ferry_runtime_lock("vm1", &err);
	assert_true(fd >= 0);
	child = fork();
	if (!child) {
		usleep(200000);
		_exit(0);
	}
	close(fd);
	second = ferry_runtime_lock("vm1", &err);
	assert_true(second >= 0);
	close(second);
	assert_int_equal(waitpid(child, &status, 0), child);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup(default_ids, setup),
		cmocka_unit_test_setup(no_default_id, setup),
		cmocka_unit_test_setup(ids, setup),
		cmocka_unit_test_setup(folder, setup),
		cmocka_unit_test_setup(lock, setup),
		cmocka_unit_test_setup(lock_of_the_dying, setup),
	};

	return cmocka_run_group_tests(tests, group_setup, group_teardown);
}
