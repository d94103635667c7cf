// SPDX-License-Identifier: GPL-2.0-or-later
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "guest/guest.h"
#include "guest/json.h"
#include "guest/proc.h"

static void parse_finds_the_driver(void **state)
{
	const struct ferry_guest_ops *ops = NULL;
	struct ferry_error err = { 0 };
	const char *path = NULL;

	(void)state;
	assert_int_equal(ferry_guest_parse("qmp:/run/vm1.qmp", &ops, &path, &err), 0);
	assert_ptr_equal(ops, &ferry_guest_qemu);
	assert_string_equal(path, "/run/vm1.qmp");
	assert_int_equal(ferry_guest_parse("port:/run/vm1.port", &ops, &path, &err), 0);
	assert_string_equal(ops->scheme, "port");
	assert_string_equal(path, "/run/vm1.port");
}

static void parse_says_what_to_type(void **state)
{
	static const char *const bad[] = { "", "qmp", "qmp:", "/run/vm1.qmp", "QMP:/x", "qm:/x",
					   "qmpx:/x", ":/x" };
	const struct ferry_guest_ops *ops;
	struct ferry_error err;
	const char *path;
	size_t i;

	(void)state;
	for (i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		memset(&err, 0, sizeof(err));
		assert_int_equal(ferry_guest_parse(bad[i], &ops, &path, &err), -EINVAL);
		assert_non_null(strstr(err.text, "qmp:PATH"));
	}
	assert_int_equal(ferry_guest_parse(NULL, &ops, &path, &err), -EINVAL);
	assert_int_equal(ferry_guest_parse("port:", &ops, &path, &err), -EINVAL);
	assert_non_null(strstr(err.text, "port:PATH"));
}

static void open_fails_where_nobody_is(void **state)
{
	char longest[200] = "qmp:";
	struct ferry_guest_open_params params = { .spec = "qmp:/nonexistent/ferry", .held_fd = -1,
						  .timeout_ms = 1000 };
	struct ferry_guest *guest;
	struct ferry_error err;

	(void)state;
	assert_int_equal(ferry_guest_open(&params, &guest, &err), -ENOENT);
	assert_non_null(strstr(err.text, "/nonexistent/ferry"));
	params.spec = "port:/nonexistent/ferry";
	assert_int_equal(ferry_guest_open(&params, &guest, &err), -ENOENT);
	assert_non_null(strstr(err.text, "/nonexistent/ferry: no VMM listens there"));
	memset(longest + 4, 'x', 150);
	params.spec = longest;
	assert_int_equal(ferry_guest_open(&params, &guest, &err), -ENAMETOOLONG);
}

static void json_members_are_checked(void **state)
{
	struct json_object *obj = json_tokener_parse(
		"{\"s\":\"x\",\"b\":true,\"n\":7,\"m\":-1,\"a\":[1,2],\"z\":null}");

	(void)state;
	assert_string_equal(ferry_json_string(obj, "s"), "x");
	assert_null(ferry_json_string(obj, "n"));
	assert_null(ferry_json_string(obj, "none"));
	assert_null(ferry_json_string(NULL, "s"));
	assert_true(ferry_json_bool(obj, "b", false));
	assert_true(ferry_json_bool(obj, "s", true));
	assert_int_equal(ferry_json_uint(obj, "n", 9), 7);
	assert_int_equal(ferry_json_uint(obj, "m", 9), 9);
	assert_int_equal(ferry_json_uint(obj, "z", 9), 9);
	assert_int_equal(ferry_json_length(ferry_json_get(obj, "a", json_type_array)), 2);
	assert_null(ferry_json_get(obj, "a", json_type_object));
	assert_int_equal(ferry_json_length(obj), 0);
	assert_int_equal(ferry_json_length(NULL), 0);
	json_object_put(obj);
}

struct seen {
	dev_t dev;
	ino_t ino;
	uint64_t addr;
	unsigned int hits;
};

static int see_area(void *ctx, const struct ferry_proc_area *area)
{
	struct seen *s = ctx;

	if (area->dev == s->dev && area->ino == s->ino) {
		assert_true(area->shared);
		assert_int_equal(area->start, s->addr);
		assert_int_equal(area->off_bytes, 4096);
		s->hits++;
	}
	return 0;
}

static int see_fd(void *ctx, int fd, const char *link)
{
	(void)link;
	return fd == *(int *)ctx ? 77 : 0;
}

static void proc_shows_a_mapping(void **state)
{
	int fd = memfd_create("ferry-test", MFD_CLOEXEC);
	struct seen s = { 0 };
	struct stat st;
	char comm[32];
	void *map;

	(void)state;
	assert_int_equal(ftruncate(fd, 8192), 0);
	map = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 4096);
	assert_ptr_not_equal(map, MAP_FAILED);
	assert_int_equal(fstat(fd, &st), 0);
	s.dev = st.st_dev;
	s.ino = st.st_ino;
	s.addr = (uintptr_t)map;
	assert_int_equal(ferry_proc_maps(getpid(), see_area, &s), 0);
	assert_int_equal(s.hits, 1);
	assert_int_equal(ferry_proc_fds(getpid(), see_fd, &fd), 77);
	assert_int_equal(ferry_proc_flags(getpid(), fd) & O_ACCMODE, O_RDWR);
	assert_int_equal(ferry_proc_flags(getpid(), 1 << 20), -ENOENT);
	assert_true(ferry_proc_start(getpid()) > 0);
	assert_int_equal(ferry_proc_start(0x7ffffff0), 0);
	assert_int_equal(ferry_proc_maps(0x7ffffff0, see_area, &s), -ENOENT);
	ferry_proc_comm(getpid(), comm);
	assert_memory_equal(comm, "test_guest", 10);
	munmap(map, 4096);
	close(fd);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(parse_finds_the_driver),
		cmocka_unit_test(parse_says_what_to_type),
		cmocka_unit_test(open_fails_where_nobody_is),
		cmocka_unit_test(json_members_are_checked),
		cmocka_unit_test(proc_shows_a_mapping),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
