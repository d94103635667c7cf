// SPDX-License-Identifier: GPL-2.0-or-later
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/clock.h"
#include "wire/wire.h"
#include "xport/multifd_send.h"
#include "xport/rate.h"

#define MIB (1ull << 20)

/* A clock of our own: all of this is arithmetic. */
#define START (1000 * FERRY_NS_PER_S)

static void unlimited(void **state)
{
	struct ferry_rate rate;
	int i;

	(void)state;
	ferry_rate_init(&rate, 0);
	for (i = 0; i < 1000; i++)
		assert_int_equal(ferry_rate_take(&rate, UINT64_MAX, START), 0);
}

static void pays_afterwards(void **state)
{
	struct ferry_rate rate;

	(void)state;
	ferry_rate_init(&rate, MIB);
	assert_int_equal(ferry_rate_get(&rate), MIB);
	assert_int_equal(ferry_rate_take(&rate, MIB, START), 0);
	assert_int_equal(ferry_rate_take(&rate, 1, START), FERRY_NS_PER_S);
	/* Nothing was taken by asking. */
	assert_int_equal(ferry_rate_take(&rate, MIB, START + 1), FERRY_NS_PER_S - 1);
	assert_int_equal(ferry_rate_take(&rate, MIB, START + FERRY_NS_PER_S), 0);
	assert_int_equal(ferry_rate_take(&rate, MIB, START + FERRY_NS_PER_S), FERRY_NS_PER_S);
}

/* Who always does as told gets the limit, not more, not much less. */
static void long_run(void **state)
{
	uint64_t now = START, bytes = 0, wait_ns;
	struct ferry_rate rate;

	(void)state;
	ferry_rate_init(&rate, 100 * MIB);
	while (now < START + 10 * FERRY_NS_PER_S) {
		wait_ns = ferry_rate_take(&rate, 64 * 1024, now);
		if (!wait_ns)
			bytes += 64 * 1024;
		now += wait_ns + 3000; /* wakes up a little late each time */
	}
	assert_in_range(bytes, 999 * MIB, 1003 * MIB);
}

/* An idle time is no licence for a burst. */
static void no_burst(void **state)
{
	uint64_t later = START + 3600 * FERRY_NS_PER_S, bytes = 0;
	struct ferry_rate rate;

	(void)state;
	ferry_rate_init(&rate, 100 * MIB);
	assert_int_equal(ferry_rate_take(&rate, MIB, START), 0);
	while (!ferry_rate_take(&rate, 65536, later))
		bytes += 65536;
	assert_in_range(bytes, 65536, 100 * MIB / 40);
}

static void change(void **state)
{
	struct ferry_rate rate;

	(void)state;
	ferry_rate_init(&rate, 1);
	assert_int_equal(ferry_rate_take(&rate, UINT64_MAX, START), 0); /* no overflow */
	assert_true(ferry_rate_take(&rate, 1, START) > FERRY_NS_PER_S);
	ferry_rate_set(&rate, MIB);
	assert_int_equal(ferry_rate_get(&rate), MIB);
	assert_int_equal(ferry_rate_take(&rate, MIB, START), 0);
	assert_int_equal(ferry_rate_take(&rate, MIB, START), FERRY_NS_PER_S);
	ferry_rate_set(&rate, 0);
	assert_int_equal(ferry_rate_take(&rate, MIB, START), 0);
	assert_int_equal(ferry_rate_take(&rate, MIB, START), 0);
}

static void share(void **state)
{
	(void)state;
	assert_int_equal(ferry_multifd_send_share(1 << 20, 2, 0), FERRY_WIRE_MAX_PACKET_PAGES);
	assert_int_equal(ferry_multifd_send_share(300, 4, 0), 75);
	assert_int_equal(ferry_multifd_send_share(300, 64, 0), 16);
	assert_int_equal(ferry_multifd_send_share(0, 1, 0), 16);
	/* 4 MiB/s: a twentieth of a second is 51 pages. */
	assert_int_equal(ferry_multifd_send_share(1 << 20, 2, 4 * MIB), 51);
	assert_int_equal(ferry_multifd_send_share(1 << 20, 2, 1), 1);
	assert_int_equal(ferry_multifd_send_share(UINT64_MAX, 1, UINT64_MAX),
			 FERRY_WIRE_MAX_PACKET_PAGES);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(unlimited), cmocka_unit_test(pays_afterwards),
		cmocka_unit_test(long_run),  cmocka_unit_test(no_burst),
		cmocka_unit_test(change),    cmocka_unit_test(share),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
