// SPDX-License-Identifier: GPL-2.0-or-later
/* What is computed from the numbers of a migration. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>

#include "engine/stats.h"

#define S 1000000000ull

static void the_eta_is_pages_by_their_pace(void **state)
{
	struct ferry_progress p = { .round_pages = 1000, .round_done_pages = 200,
				    .pages_per_s = 100 };

	(void)state;
	assert_int_equal(ferry_progress_eta_ns(&p), 8 * S);
	p.round_done_pages = 600;
	assert_int_equal(ferry_progress_eta_ns(&p), 4 * S);
	p.pages_per_s = 400;
	assert_int_equal(ferry_progress_eta_ns(&p), S);
}

/* Memory that is compressed ten times: by the bytes on the line it would take ten times as long. */
static void bytes_on_the_line_do_not_matter(void **state)
{
	struct ferry_progress p = { .round_pages = 1000, .round_done_pages = 200,
				    .pages_per_s = 100 };
	uint64_t rate;

	(void)state;
	for (rate = 1; rate < 1ull << 40; rate *= 10) {
		p.bytes_per_s = rate;
		p.sent_bytes = rate * 7;
		p.dirty_bytes_per_s = rate * 3;
		assert_int_equal(ferry_progress_eta_ns(&p), 8 * S);
	}
}

static void no_eta(void **state)
{
	struct ferry_progress p = { .round_pages = 1000, .round_done_pages = 200,
				    .bytes_per_s = 4096 };

	(void)state;
	assert_int_equal(ferry_progress_eta_ns(&p), 0); /* no pace yet */
	p.pages_per_s = 100;
	p.round_done_pages = 1000;
	assert_int_equal(ferry_progress_eta_ns(&p), 0);
	p.round_done_pages = 1001; /* of the round before */
	assert_int_equal(ferry_progress_eta_ns(&p), 0);
	p.round_done_pages = 0;
	p.round_pages = 1ull << 34; /* 64 TiB, a page a second */
	p.pages_per_s = 1;
	assert_true(ferry_progress_eta_ns(&p) > 500ull * 365 * 86400 * S);
}

static void every_mode_has_its_name(void **state)
{
	int i;

	(void)state;
	for (i = 0; i < FERRY_MODE_COUNT; i++)
		assert_int_equal(ferry_mode_parse(ferry_mode_name((enum ferry_mode)i)), i);
	assert_int_equal(ferry_mode_parse("swim"), -EINVAL);
	assert_string_equal(ferry_mode_name(FERRY_MODE_COUNT), "invalid");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_eta_is_pages_by_their_pace),
		cmocka_unit_test(bytes_on_the_line_do_not_matter),
		cmocka_unit_test(no_eta),
		cmocka_unit_test(every_mode_has_its_name),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
