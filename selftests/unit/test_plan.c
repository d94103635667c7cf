// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What a lazy restore reads next: every expected order is written out, and none of them is the
 * one that another rule would give.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "store/plan.h"

#define MIB (1ull << 20)
#define BLOCKS 2
#define EXTENTS 8

/* Two blocks of 8 MiB, every extent with a page; but for block 0, extent 3, which is empty. */
static struct ferry_store_block blocks[BLOCKS];
static uint64_t bits[BLOCKS][EXTENTS * FERRY_STORE_EXTENT_WORDS];
static uint64_t *bits_of[BLOCKS] = { bits[0], bits[1] };
static struct ferry_store_file file;

static struct ferry_store_plan plan;

static int setup(void **state)
{
	unsigned int i, k;

	(void)state;
	memset(&file, 0, sizeof(file));
	memset(bits, 0, sizeof(bits));
	for (i = 0; i < BLOCKS; i++) {
		blocks[i].size_bytes = EXTENTS * MIB;
		blocks[i].bitmap_bytes = sizeof(bits[i]);
		for (k = 0; k < EXTENTS; k++)
			bits[i][k * FERRY_STORE_EXTENT_WORDS + k % 4] = i || k != 3;
	}
	file.header.blocks = BLOCKS;
	file.blocks = blocks;
	file.bits = bits_of;
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	ferry_store_plan_free(&plan);
	return 0;
}

static uint64_t entry(unsigned int block, unsigned int extent, unsigned int page)
{
	return (uint64_t)block << 48 | (extent * FERRY_STORE_EXTENT_PAGES + page);
}

/* Take up to @max extents, @ahead of what is asked for: are they these? "0.4 1.2" */
static void expect(bool ahead, unsigned int max, const char *expected)
{
	struct ferry_store_place place;
	char text[256] = "";
	size_t n = 0;

	while (max-- && ferry_store_plan_next(&plan, ahead, &place))
		n += (size_t)snprintf(text + n, sizeof(text) - n, "%s%u.%u", n ? " " : "", place.block,
				      (unsigned int)place.extent);
	assert_string_equal(text, expected);
}

static void file_order(void **state)
{
	(void)state;
	assert_int_equal(ferry_store_plan_init(&plan, &file, NULL), 0);
	expect(false, 99, "");
	expect(true, 99, "0.0 0.1 0.2 0.4 0.5 0.6 0.7 1.0 1.1 1.2 1.3 1.4 1.5 1.6 1.7");
	expect(true, 1, "");
}

static void recorded_order(void **state)
{
	uint64_t order[] = {
		entry(1, 6, 9), entry(0, 7, 0), entry(1, 6, 1), entry(0, 3, 5), /* which is empty */
		entry(1, 2, 0), entry(0, 5, 255), entry(1, 2, 1),
	};

	(void)state;
	file.order = order;
	file.commit.order_count = sizeof(order) / sizeof(order[0]);
	assert_int_equal(ferry_store_plan_init(&plan, &file, NULL), 0);
	/* Not while only what is waited for counts. */
	expect(false, 99, "");
	expect(true, 4, "1.6 0.7 1.2 0.5");
	expect(true, 99, "0.0 0.1 0.2 0.4 0.6 1.0 1.1 1.3 1.4 1.5 1.7");
}

static void what_is_waited_for_comes_first(void **state)
{
	uint64_t order[] = { entry(1, 6, 0), entry(0, 7, 0), entry(1, 4, 0), entry(1, 5, 0) };

	(void)state;
	file.order = order;
	file.commit.order_count = sizeof(order) / sizeof(order[0]);
	assert_int_equal(ferry_store_plan_init(&plan, &file, NULL), 0);
	expect(true, 1, "1.6");
	ferry_store_plan_ask(&plan, 0, 4 * FERRY_STORE_EXTENT_PAGES + 77);
	ferry_store_plan_ask(&plan, 1, 1 * FERRY_STORE_EXTENT_PAGES);
	ferry_store_plan_ask(&plan, 0, 4 * FERRY_STORE_EXTENT_PAGES + 78);
	ferry_store_plan_ask(&plan, 0, 7 * FERRY_STORE_EXTENT_PAGES);
	expect(false, 1, "0.4");
	expect(true, 2, "1.1 0.7");
	/* Then the recorded order again, from where it was and without what came. */
	expect(true, 2, "1.4 1.5");
}

static void near_the_last_one(void **state)
{
	(void)state;
	assert_int_equal(ferry_store_plan_init(&plan, &file, NULL), 0);
	expect(true, 2, "0.0 0.1");
	ferry_store_plan_ask(&plan, 1, 3 * FERRY_STORE_EXTENT_PAGES);
	expect(true, 3, "1.3 1.4 1.5");
	/* Somewhere else now, up to what was read already; an empty extent is such a one. */
	ferry_store_plan_ask(&plan, 1, 1 * FERRY_STORE_EXTENT_PAGES + 5);
	expect(true, 4, "1.1 1.2 0.2 0.4");
	/* At the end of a block nothing is near. */
	ferry_store_plan_ask(&plan, 0, EXTENTS * FERRY_STORE_EXTENT_PAGES - 1);
	expect(true, 3, "0.7 0.5 0.6");
	expect(true, 99, "1.0 1.6 1.7");
}

static void more_than_the_list_holds(void **state)
{
	unsigned int i;

	(void)state;
	assert_int_equal(ferry_store_plan_init(&plan, &file, NULL), 0);
	for (i = 0; i < FERRY_STORE_PLAN_ASKED; i++)
		ferry_store_plan_ask(&plan, 1, 5 * FERRY_STORE_EXTENT_PAGES + i % 256);
	ferry_store_plan_ask(&plan, 1, 2 * FERRY_STORE_EXTENT_PAGES);
	expect(false, 99, "1.5");
	/* In its turn: what lies behind it is near. */
	expect(true, 3, "1.3 1.4 0.0");
	expect(true, 99, "0.1 0.2 0.4 0.5 0.6 0.7 1.0 1.1 1.2 1.6 1.7");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(file_order, setup, teardown),
		cmocka_unit_test_setup_teardown(recorded_order, setup, teardown),
		cmocka_unit_test_setup_teardown(what_is_waited_for_comes_first, setup, teardown),
		cmocka_unit_test_setup_teardown(near_the_last_one, setup, teardown),
		cmocka_unit_test_setup_teardown(more_than_the_list_holds, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
