// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What the kmod tracker decides without a kernel module: the flags of mappings, and
 * what the module's answers become. (The module itself: selftests/hosted.)
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>

#include <errno.h>
#include <linux/ferry.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "dirty/dirty.h"
#include "dirty/kmod.h"
#include "guest/vmflags.h"

static struct ferry_vmflags flags(const char *text)
{
	struct ferry_vmflags f;

	assert_int_equal(ferry_vmflags_parse(text, &f), 0);
	return f;
}

static void assert_flags(const struct ferry_vmflags *f, const char *expected)
{
	char text[FERRY_VMFLAGS_TEXT];

	ferry_vmflags_format(f, text, sizeof(text));
	assert_string_equal(text, expected);
}

static void flags_are_read_and_written(void **state)
{
	char many[FERRY_VMFLAGS_TEXT + 8] = "", small[5];
	struct ferry_vmflags f;
	int i;

	(void)state;
	f = flags(" wr sh rd ?? mr sh ");
	assert_flags(&f, "?? mr rd sh wr");
	assert_true(ferry_vmflags_has(&f, "sh"));
	assert_false(ferry_vmflags_has(&f, "de"));
	f = flags("");
	assert_flags(&f, "");
	f = flags("ab cd ef");
	ferry_vmflags_format(&f, small, sizeof(small));
	assert_string_equal(small, "ab");
	assert_int_equal(ferry_vmflags_parse("r", &f), -EINVAL);
	assert_int_equal(ferry_vmflags_parse("rdw", &f), -EINVAL);
	assert_int_equal(ferry_vmflags_parse("rd \x01x", &f), -EINVAL);
	for (i = 0; i < FERRY_VMFLAGS_MAX; i++)
		sprintf(many + 3 * i, "%c%c ", 'A' + i / 10, '0' + i % 10);
	assert_int_equal(ferry_vmflags_parse(many, &f), 0);
	ferry_vmflags_format(&f, many, sizeof(many));
	assert_int_equal(strlen(many), FERRY_VMFLAGS_MAX * 3 - 1);
	strcat(many, " zz");
	assert_int_equal(ferry_vmflags_parse(many, &f), -EINVAL);
}

static void a_view_differs_as_it_must(void **state)
{
	struct ferry_vmflags plain = flags("rd wr sh mr mw me ms dd dc hg lo lf sd"), view, back;

	(void)state;
	ferry_vmflags_view(&plain, &view);
	assert_flags(&view, "dc dd de me mr ms mw nh rd sd sh wr");
	assert_true(ferry_vmflags_is_view(&view));
	assert_false(ferry_vmflags_is_view(&plain));
	ferry_vmflags_plain(&view, &back);
	assert_flags(&back, "dc dd me mr ms mw rd sd sh wr");
	/* sd comes and goes by itself. */
	plain = flags("rd sh");
	back = flags("rd sd sh");
	assert_true(ferry_vmflags_same(&plain, &back));
	back = flags("rd sh wr");
	assert_false(ferry_vmflags_same(&plain, &back));
}

static void what_must_stay_is_named(void **state)
{
	static const struct {
		const char *flags, *why;
	} rows[] = {
		{ "rd wr sh mr mw ms", NULL }, { "rd wr sh de nh", NULL },
		{ "rd wr mr mw", "not shared" }, { "sh um", "userfaultfd" },
		{ "sh uw", "userfaultfd" }, { "sh ht", "hugetlb" }, { "sh sl", "mseal" },
		{ "sh pf", "device" },
	};
	size_t i;

	(void)state;
	for (i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		struct ferry_vmflags f = flags(rows[i].flags);
		const char *why = ferry_vmflags_exchangeable(&f);

		if (rows[i].why)
			assert_non_null(strstr(why, rows[i].why));
		else
			assert_null(why);
	}
}

static void the_calls_make_them_equal(void **state)
{
	static const struct {
		const char *now, *wanted;
		int n;
		struct ferry_vmflags_call calls[FERRY_VMFLAGS_CALLS];
	} rows[] = {
		{ "rd sh sd", "rd sh", 0, { { 0, 0 } } },
		{ "rd sh", "rd sh dd dc hg", 3,
		  { { SYS_madvise, MADV_DONTFORK }, { SYS_madvise, MADV_DONTDUMP },
		    { SYS_madvise, MADV_HUGEPAGE } } },
		{ "rd sh dd sr", "rd sh rr", 3,
		  { { SYS_madvise, MADV_NORMAL }, { SYS_madvise, MADV_DODUMP },
		    { SYS_madvise, MADV_RANDOM } } },
		{ "rd sh hg", "rd sh nh", 1, { { SYS_madvise, MADV_NOHUGEPAGE } } },
		{ "rd sh", "rd sh lo", 1, { { SYS_mlock, 0 } } },
		{ "rd sh lo", "rd sh lo lf", 1, { { SYS_mlock2, MLOCK_ONFAULT } } },
		{ "rd sh lo lf", "rd sh", 1, { { SYS_munlock, 0 } } },
		/* No call takes these away, or gives them. */
		{ "rd sh hg", "rd sh", -EOPNOTSUPP, { { 0, 0 } } },
		{ "rd sh", "rd sh me", -EOPNOTSUPP, { { 0, 0 } } },
		{ "rd sh xx", "rd sh", -EOPNOTSUPP, { { 0, 0 } } },
		{ "rd sh", "rd sh de nh", -EOPNOTSUPP, { { 0, 0 } } },
	};
	size_t i;

	(void)state;
	for (i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		struct ferry_vmflags now = flags(rows[i].now), wanted = flags(rows[i].wanted);
		struct ferry_vmflags_call calls[FERRY_VMFLAGS_CALLS];
		int j, n = ferry_vmflags_plan(&now, &wanted, calls);

		assert_int_equal(n, rows[i].n);
		for (j = 0; j < n; j++) {
			assert_int_equal(calls[j].nr, rows[i].calls[j].nr);
			assert_int_equal(calls[j].arg, rows[i].calls[j].arg);
		}
	}
}

static struct ferry_ram *two_blocks(struct ferry_ram *ram)
{
	struct ferry_ram_block b = { .name = "a", .size_bytes = 64 << 12, .page_size = 4096 };

	ferry_ram_init(ram);
	b.fd = memfd_create("a", MFD_CLOEXEC);
	assert_int_equal(ferry_ram_add(ram, &b, NULL), 0);
	strcpy(b.name, "b");
	b.fd_off_bytes = 64 << 12;
	b.fd = memfd_create("b", MFD_CLOEXEC);
	assert_int_equal(ferry_ram_add(ram, &b, NULL), 0);
	return ram;
}

static void extents_become_bits(void **state)
{
	/* Block b begins at page 64 of its file. */
	const struct ferry_extent good[] = { { 64, 1 }, { 70, 3 }, { 127, 1 } };
	const struct ferry_extent bad[] = {
		{ 63, 1 }, { 128, 1 }, { 127, 2 }, { 70, 0 }, { UINT64_MAX, 2 }, { 70, UINT64_MAX },
	};
	const struct ferry_extent turned[] = { { 70, 3 }, { 64, 1 } };
	struct ferry_bitmap pages;
	struct ferry_ram ram;
	size_t i;

	(void)state;
	assert_int_equal(ferry_bitmap_init(&pages, two_blocks(&ram)), 0);
	assert_int_equal(ferry_kmod_mark(&pages, 1, 64, 64, 128, good, 3), 0);
	assert_int_equal(ferry_bitmap_count(&pages), 5);
	assert_true(ferry_bitmap_test(&pages, 1, 0));
	assert_true(ferry_bitmap_test(&pages, 1, 6));
	assert_true(ferry_bitmap_test(&pages, 1, 8));
	assert_false(ferry_bitmap_test(&pages, 1, 9));
	assert_true(ferry_bitmap_test(&pages, 1, 63));
	ferry_bitmap_zero(&pages);
	for (i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		assert_int_equal(ferry_kmod_mark(&pages, 1, 64, 64, 128, &bad[i], 1), -EIO);
	assert_int_equal(ferry_bitmap_count(&pages), 0);
	assert_int_equal(ferry_kmod_mark(&pages, 1, 64, 64, 128, turned, 2), -EIO);
	ferry_bitmap_free(&pages);
	ferry_ram_free(&ram);
}

static void why_it_does_not_open(void **state)
{
	struct ferry_error err = { 0 };

	(void)state;
	assert_int_equal(ferry_kmod_open_failed(ENOENT, &err), -ENOENT);
	assert_non_null(strstr(err.text, "modprobe ferry"));
	assert_int_equal(ferry_kmod_open_failed(EACCES, &err), -EACCES);
	assert_non_null(strstr(err.text, "group of /dev/ferry"));
	assert_int_equal(ferry_kmod_open_failed(EIO, &err), -EIO);
	assert_non_null(strstr(err.text, "Input/output error"));
	assert_false(ferry_kmod_is_tracker(0));
	assert_false(ferry_kmod_is_tracker(-1));
}

/* "auto" takes it where it is, and does without where it is not. */
static void auto_prefers_it(void **state)
{
	struct ferry_dirty_target target = { .pid = getpid(), .uffd = -1 };
	const struct ferry_dirty_ops *ops;
	struct ferry_error err = { 0 };
	struct ferry_ram ram;
	bool there;

	(void)state;
	ferry_ram_init(&ram);
	target.ram = &ram;
	there = !ferry_dirty_kmod.supported(&target, &err);
	if (!ferry_dirty_choose("auto", &target, &ops, &err))
		assert_true((ops == &ferry_dirty_kmod) == there);
	if (there) {
		assert_int_equal(ferry_dirty_choose("kmod", &target, &ops, &err), 0);
		assert_ptr_equal(ops, &ferry_dirty_kmod);
	} else {
		assert_int_equal(ferry_dirty_choose("kmod", &target, &ops, &err), -EOPNOTSUPP);
		assert_non_null(strstr(err.text, "dirty tracker kmod does not work here: "));
		assert_null(ops);
	}
	/* A guest that cannot be given views is told so before anything else. */
	ferry_ram_free(&ram);
	target.ram = two_blocks(&ram);
	assert_int_equal(ferry_dirty_kmod.supported(&target, &err), -EOPNOTSUPP);
	assert_non_null(strstr(err.text, "cannot be given a tracked view"));
	ferry_ram_free(&ram);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(flags_are_read_and_written),
		cmocka_unit_test(a_view_differs_as_it_must),
		cmocka_unit_test(what_must_stay_is_named),
		cmocka_unit_test(the_calls_make_them_equal),
		cmocka_unit_test(extents_become_bits),
		cmocka_unit_test(why_it_does_not_open),
		cmocka_unit_test(auto_prefers_it),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
