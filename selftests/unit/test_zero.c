// SPDX-License-Identifier: GPL-2.0-or-later
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "ram/zero.h"

/* One set byte at every place of a page, and next to both ends of what is looked at. */
static void every_byte_counts(void **state)
{
	static uint8_t page[4096 + 2];
	size_t i;

	(void)state;
	assert_true(ferry_zero_is(page + 1, 4096));
	for (i = 1; i <= 4096; i++) {
		page[i] = 0x80;
		assert_false(ferry_zero_is(page + 1, 4096));
		page[i] = 0;
	}
	page[0] = 1;
	page[4097] = 1;
	assert_true(ferry_zero_is(page + 1, 4096));
}

static void short_lengths(void **state)
{
	static uint8_t mem[64];
	size_t len;

	(void)state;
	assert_true(ferry_zero_is(mem, 0));
	for (len = 1; len < sizeof(mem); len++) {
		mem[len] = 1;
		assert_true(ferry_zero_is(mem, len));
		assert_false(ferry_zero_is(mem, len + 1));
		mem[len] = 0;
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_byte_counts),
		cmocka_unit_test(short_lengths),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
