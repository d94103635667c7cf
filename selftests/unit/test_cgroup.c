// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Control groups in a made-up /proc and /sys/fs/cgroup below a temporary folder, so that both
 * versions are judged on a machine that has one of them.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "guest/cgroup.h"

struct tree {
	char root[64];
	char proc[80];
};

static void put(const struct tree *t, const char *name, const char *text)
{
	char path[512], *slash;
	FILE *f;

	snprintf(path, sizeof(path), "%s/%s", t->root, name);
	for (slash = strchr(path + strlen(t->root) + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
		*slash = '\0';
		assert_true(!mkdir(path, 0700) || errno == EEXIST);
		*slash = '/';
	}
	if (path[strlen(path) - 1] == '/')
		return;
	f = fopen(path, "w");
	assert_non_null(f);
	assert_true(fputs(text, f) >= 0);
	assert_int_equal(fclose(f), 0);
}

static void get(const char *path, char *text, int room)
{
	FILE *f = fopen(path, "r");

	assert_non_null(f);
	assert_non_null(fgets(text, room, f));
	fclose(f);
}

/* Process 7 with threads 7 and 8; @mounts has %s for the root of the tree. */
static struct tree make(const char *mounts, const char *groups)
{
	struct tree t;
	char text[1024];

	strcpy(t.root, "/tmp/ferry-cgroup-XXXXXX");
	assert_non_null(mkdtemp(t.root));
	snprintf(t.proc, sizeof(t.proc), "%s/proc", t.root);
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
	snprintf(text, sizeof(text), mounts, t.root, t.root);
#pragma GCC diagnostic pop
	put(&t, "proc/self/mountinfo", text);
	put(&t, "proc/7/task/7/cgroup", groups);
	put(&t, "proc/7/task/8/cgroup", groups);
	put(&t, "proc/9/task/9/cgroup", groups);
	return t;
}

static void end(const struct tree *t)
{
	char command[128];

	snprintf(command, sizeof(command), "rm -r '%s'", t->root);
	assert_int_equal(system(command), 0);
}

#define V2_MOUNTS "31 23 0:28 / /sys/fs rw - tmpfs tmpfs rw\n" \
		  "41 31 0:37 / %s/two rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
#define V1_MOUNTS "33 31 0:30 / %s/set rw - cgroup cgroup rw,cpuset\n" \
		  "32 31 0:29 / %s/one rw - cgroup cgroup rw,cpuacct,cpu\n"

static void version_2(void **state)
{
	struct tree t = make(V2_MOUNTS, "1:name=systemd:/x\n0::/m.slice/vm.scope\n");
	char was[FERRY_CGROUP_TEXT], seen[64];
	uint64_t quota_us;
	struct ferry_error err = { 0 };
	struct ferry_cgroup g;

	(void)state;
	assert_int_equal(ferry_cgroup_find(t.proc, 7, 8, &g, &err), -EOPNOTSUPP);
	assert_non_null(strstr(err.text, "no cpu.max"));
	put(&t, "two/m.slice/vm.scope/cpu.max", "max 100000\n");
	put(&t, "two/m.slice/vm.scope/cgroup.threads", "7\n8\n");
	assert_int_equal(ferry_cgroup_find(t.proc, 7, 8, &g, &err), 0);
	assert_true(g.v2);
	assert_int_equal(ferry_cgroup_own(t.proc, &g, 7, &err), 0);
	assert_int_equal(ferry_cgroup_read(&g, was, &err), 0);
	assert_string_equal(was, "max 100000");
	assert_int_equal(ferry_cgroup_period_us(&g), 0);
	assert_int_equal(ferry_cgroup_limit(true, was, 0, 200, 30, &quota_us), 0);
	assert_int_equal(quota_us, 70000);
	assert_int_equal(ferry_cgroup_set(&g, quota_us), 0);
	get(g.limit_path, seen, sizeof(seen));
	assert_memory_equal(seen, "70000 50000", 11);
	put(&t, "two/m.slice/vm.scope/cpu.max", "");
	assert_int_equal(ferry_cgroup_restore(g.limit_path, was, 0), 0);
	get(g.limit_path, seen, sizeof(seen));
	assert_string_equal(seen, was);
	end(&t);
}

static void version_1(void **state)
{
	/* A hierarchy of version 2 without controllers is there too, as on mixed hosts. */
	struct tree t = make(V1_MOUNTS, "3:cpuset:/no\n2:cpuacct,cpu:/vm\n0::/\n");
	char was[FERRY_CGROUP_TEXT], seen[64];
	uint64_t quota_us;
	struct ferry_error err = { 0 };
	struct ferry_cgroup g;

	(void)state;
	put(&t, "one/vm/cpu.cfs_quota_us", "-1\n");
	put(&t, "one/vm/cpu.cfs_period_us", "30000\n");
	put(&t, "one/vm/tasks", "8\n7\n");
	assert_int_equal(ferry_cgroup_find(t.proc, 7, 7, &g, &err), 0);
	assert_false(g.v2);
	assert_int_equal(ferry_cgroup_own(t.proc, &g, 7, &err), 0);
	assert_int_equal(ferry_cgroup_read(&g, was, &err), 0);
	assert_int_equal(ferry_cgroup_period_us(&g), 30000);
	assert_int_equal(ferry_cgroup_limit(false, was, 30000, 100, 20, &quota_us), 0);
	assert_int_equal(quota_us, 40000);
	put(&t, "one/vm/cpu.cfs_quota_us", "");
	put(&t, "one/vm/cpu.cfs_period_us", "");
	assert_int_equal(ferry_cgroup_set(&g, quota_us), 0);
	assert_int_equal(ferry_cgroup_period_us(&g), 50000);
	get(g.limit_path, seen, sizeof(seen));
	assert_string_equal(seen, "40000");
	put(&t, "one/vm/cpu.cfs_quota_us", "");
	put(&t, "one/vm/cpu.cfs_period_us", "");
	assert_int_equal(ferry_cgroup_restore(g.limit_path, was, 30000), 0);
	assert_int_equal(ferry_cgroup_period_us(&g), 30000);
	get(g.limit_path, seen, sizeof(seen));
	assert_string_equal(seen, "-1");
	end(&t);
}

/* Inside a container the mount begins somewhere within the hierarchy. */
static void a_mount_of_a_part(void **state)
{
	struct tree t = make("41 31 0:37 /box %s/two rw - cgroup2 cgroup2 rw\n", "0::/box/vm\n");
	struct ferry_error err = { 0 };
	struct ferry_cgroup g;

	(void)state;
	put(&t, "two/vm/cpu.max", "max 100000\n");
	assert_int_equal(ferry_cgroup_find(t.proc, 7, 7, &g, &err), 0);
	put(&t, "proc/7/task/7/cgroup", "0::/boxer/vm\n");
	assert_int_equal(ferry_cgroup_find(t.proc, 7, 7, &g, &err), -EOPNOTSUPP);
	assert_int_equal(ferry_cgroup_find(t.proc, 70, 70, &g, &err), -EOPNOTSUPP);
	end(&t);
}

static void others_in_it(void **state)
{
	struct tree t = make(V2_MOUNTS, "0::/vm\n");
	struct ferry_error err = { 0 };
	struct ferry_cgroup g;

	(void)state;
	put(&t, "two/vm/cpu.max", "max 100000\n");
	put(&t, "two/vm/cgroup.threads", "7\n9\n8\n");
	assert_int_equal(ferry_cgroup_find(t.proc, 7, 7, &g, &err), 0);
	assert_int_equal(ferry_cgroup_own(t.proc, &g, 7, &err), -EOPNOTSUPP);
	assert_non_null(strstr(err.text, "with thread 9 ("));
	put(&t, "two/vm/cgroup.threads", "0\n"); /* of another pid namespace */
	assert_int_equal(ferry_cgroup_own(t.proc, &g, 7, &err), -EOPNOTSUPP);
	put(&t, "two/vm/cgroup.threads", "7\n55\n8\n"); /* 55 has ended */
	assert_int_equal(ferry_cgroup_own(t.proc, &g, 7, &err), 0);
	put(&t, "two/vm/below/", "");
	assert_int_equal(ferry_cgroup_own(t.proc, &g, 7, &err), -EOPNOTSUPP);
	assert_non_null(strstr(err.text, "the group below"));
	end(&t);
}

static void limits(void **state)
{
	static const struct {
		bool v2;
		const char *was;
		unsigned int busy, percent;
		uint64_t want_us; /* of 50 ms; 0: refused */
	} cases[] = {
		{ true, "max 100000", 400, 50, 100000 },
		{ true, "max 100000", 400, 98, 4000 },
		{ true, "max 10000", 100, 99, 1000 },	  /* the kernel takes no less */
		{ true, "max 100000", 60, 50, 15000 },	  /* of what they use */
		{ true, "50000 100000", 400, 50, 12500 },  /* of what they were allowed */
		{ true, "900000 100000", 200, 50, 50000 },
		{ true, "max", 100, 20, 0 },
		{ true, "", 100, 20, 0 },
		{ true, "max 5000000", 100, 20, 0 },
		{ true, "max 0", 100, 20, 0 },
		{ false, "-1", 200, 20, 80000 },
		{ false, "30000", 200, 50, 7500 },
		{ false, "much", 100, 20, 0 },
	};
	uint64_t quota_us;
	size_t i;

	(void)state;
	for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		int r = ferry_cgroup_limit(cases[i].v2, cases[i].was, 100000, cases[i].busy,
					   cases[i].percent, &quota_us);

		assert_int_equal(r, cases[i].want_us ? 0 : -EPROTO);
		if (!r)
			assert_int_equal(quota_us, cases[i].want_us);
	}
}

/* The journal names the files: only limits are ever written to. */
static void where_it_writes(void **state)
{
	struct tree t = make(V2_MOUNTS, "0::/vm\n");
	char path[128];

	(void)state;
	put(&t, "two/passwd", "x");
	snprintf(path, sizeof(path), "%s/two/passwd", t.root);
	assert_int_equal(ferry_cgroup_restore(path, "1", 1), -EINVAL);
	assert_int_equal(ferry_cgroup_restore("cpu.max", "1", 1), -EINVAL);
	assert_int_equal(ferry_cgroup_restore("/tmp/../etc/cpu.max", "1", 1), -EINVAL);
	snprintf(path, sizeof(path), "%s/two/cpu.max", t.root);
	assert_int_equal(ferry_cgroup_restore(path, "1", 1), -ENOENT);
	end(&t);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(version_2),
		cmocka_unit_test(version_1),
		cmocka_unit_test(a_mount_of_a_part),
		cmocka_unit_test(others_in_it),
		cmocka_unit_test(limits),
		cmocka_unit_test(where_it_writes),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
