// SPDX-License-Identifier: GPL-2.0-or-later
/* The order in which the background of postcopy takes pages, of each kind there is. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "engine/order.h"

#define PAGES 100u

static struct ferry_ram_block blocks[2] = {
	{ .name = "a", .size_bytes = PAGES * FERRY_PAGE_SIZE, .page_size = FERRY_PAGE_SIZE },
	{ .name = "b", .size_bytes = PAGES * FERRY_PAGE_SIZE, .page_size = FERRY_PAGE_SIZE },
};
static const struct ferry_ram ram = { blocks, 2 };
static struct ferry_bitmap left, hot;
static struct ferry_order order;

static void begin(enum ferry_order_kind kind)
{
	assert_int_equal(ferry_bitmap_init(&left, &ram), 0);
	assert_int_equal(ferry_bitmap_init(&hot, &ram), 0);
	ferry_bitmap_set(&left, 0, 0, PAGES);
	ferry_bitmap_set(&left, 1, 0, PAGES);
	ferry_order_init(&order, kind);
	ferry_bitmap_set(&hot, 0, 70, 5);
	ferry_bitmap_set(&hot, 1, 20, 1);
	if (ferry_order_hot(&order))
		assert_int_equal(ferry_order_heat(&order, &ram, &hot), 0);
}

static void takes(uint64_t most, unsigned int block, uint64_t first, uint64_t pages)
{
	unsigned int got_block = 9;
	uint64_t got_first = 999;

	assert_int_equal(ferry_order_take(&order, &left, most, &got_block, &got_first), pages);
	if (!pages)
		return;
	assert_int_equal(got_block, block);
	assert_int_equal(got_first, first);
}

/* All that is left comes, each page once, whatever the order. Return: how many. */
static unsigned int drain(void)
{
	unsigned int block, sum = 0;
	uint64_t n, first;

	while ((n = ferry_order_take(&order, &left, 7, &block, &first))) {
		assert_true(n <= 7 && block < 2 && first + n <= PAGES);
		sum += (unsigned int)n;
	}
	assert_int_equal(ferry_bitmap_count(&left), 0);
	takes(7, 0, 0, 0);
	return sum;
}

static void end(void)
{
	ferry_order_free(&order);
	ferry_bitmap_free(&left);
	ferry_bitmap_free(&hot);
}

static void by_address(void **state)
{
	(void)state;
	begin(FERRY_ORDER_ADDRESS);
	takes(32, 0, 0, 32);
	ferry_order_asked(&order, 1, 50);
	takes(32, 0, 32, 32);
	ferry_bitmap_clear(&left, 0, 64, 6);
	ferry_bitmap_clear(&left, 0, 72, 1);
	takes(32, 0, 70, 2);
	takes(32, 0, 73, 27);
	takes(32, 1, 0, 32);
	assert_int_equal(drain(), 68);
	end();
}

static void behind_the_page_asked_for(void **state)
{
	(void)state;
	begin(FERRY_ORDER_NEAR);
	takes(32, 0, 0, 32);
	ferry_order_asked(&order, 1, 90);
	takes(8, 1, 90, 8);
	takes(8, 1, 98, 2);
	takes(8, 0, 32, 8); /* around */
	ferry_order_asked(&order, 0, 10);
	ferry_order_asked(&order, 0, 60);
	takes(8, 0, 60, 8);
	/* The last page of all: nothing is behind it. */
	ferry_order_asked(&order, 1, PAGES);
	takes(8, 0, 40, 8);
	assert_int_equal(drain(), 2 * PAGES - 66);
	end();
}

static void what_was_written_last(void **state)
{
	(void)state;
	begin(FERRY_ORDER_HOT);
	ferry_bitmap_clear(&left, 0, 71, 1); /* somebody had asked for it */
	takes(32, 0, 70, 1);
	ferry_order_asked(&order, 1, 50);
	takes(2, 0, 72, 2);
	takes(32, 0, 74, 1);
	takes(32, 1, 20, 1);
	takes(32, 0, 0, 32);
	assert_int_equal(drain(), 2 * PAGES - 38);
	end();
}

static void one_step_then_what_was_written_last(void **state)
{
	(void)state;
	begin(FERRY_ORDER_BOTH);
	takes(3, 0, 70, 3);
	ferry_order_asked(&order, 1, 50);
	takes(8, 1, 50, 8);
	takes(8, 0, 73, 2);
	takes(8, 1, 20, 1);
	takes(8, 1, 58, 8);
	assert_int_equal(drain(), 2 * PAGES - 22);
	end();
}

static void chosen_by_name(void **state)
{
	(void)state;
	unsetenv("FERRY_POSTCOPY_ORDER");
	assert_int_equal(ferry_order_kind(), FERRY_ORDER_NEAR);
	setenv("FERRY_POSTCOPY_ORDER", "both", 1);
	assert_int_equal(ferry_order_kind(), FERRY_ORDER_BOTH);
	setenv("FERRY_POSTCOPY_ORDER", "backwards", 1);
	assert_int_equal(ferry_order_kind(), FERRY_ORDER_NEAR);
	unsetenv("FERRY_POSTCOPY_ORDER");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(by_address), cmocka_unit_test(behind_the_page_asked_for),
		cmocka_unit_test(what_was_written_last),
		cmocka_unit_test(one_step_then_what_was_written_last),
		cmocka_unit_test(chosen_by_name),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
