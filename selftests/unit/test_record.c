// SPDX-License-Identifier: GPL-2.0-or-later
#include <ctype.h>
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/record.h"

static void phases(void **state)
{
	int i, k;

	(void)state;
	for (i = 0; i < FERRY_PHASE_COUNT; i++) {
		const char *name = ferry_phase_name((enum ferry_phase)i);

		assert_int_equal(ferry_phase_parse(name), i);
		for (k = 0; k < i; k++)
			assert_string_not_equal(name, ferry_phase_name((enum ferry_phase)k));
	}
	/* On disk: these words are a promise. */
	assert_string_equal(ferry_phase_name(FERRY_PHASE_RUN_ACCEPTED), "run-accepted");
	assert_string_equal(ferry_phase_name(FERRY_PHASE_COMMIT_WAIT), "commit-wait");
	assert_string_equal(ferry_phase_name(FERRY_PHASE_COUNT), "invalid");
	assert_int_equal(ferry_phase_parse("invalid"), -EINVAL);
	assert_int_equal(ferry_phase_parse(""), -EINVAL);
	assert_int_equal(ferry_phase_parse("commit "), -EINVAL);
}

static void uuid_there_and_back(void **state)
{
	uint8_t uuid[16], again[16];
	char text[FERRY_UUID_TEXT];
	unsigned int i;

	(void)state;
	for (i = 0; i < 50; i++) {
		assert_int_equal(ferry_uuid_make(uuid), 0);
		ferry_uuid_format(uuid, text);
		assert_int_equal(strlen(text), 36);
		assert_int_equal(text[14], '4');
		assert_non_null(strchr("89ab", text[19]));
		assert_int_equal(ferry_uuid_parse(text, again), 0);
		assert_memory_equal(uuid, again, 16);
	}
	ferry_uuid_make(again);
	assert_memory_not_equal(uuid, again, 16);
}

static void uuid_refused(void **state)
{
	static const char *const bad[] = {
		"",
		"00112233-4455-6677-8899-aabbccddeef",
		"00112233-4455-6677-8899-aabbccddeeff0",
		"00112233-4455-6677-8899-aabbccddeefg",
		"00112233-4455-6677-8899-AABBCCDDEEFF",
		"00112233x4455-6677-8899-aabbccddeeff",
		"001122334-455-6677-8899-aabbccddeeff",
		"00112233-4455-6677-8899- abbccddeeff",
		"00112233-4455-6677-8899-+abbccddeeff",
		"0x112233-4455-6677-8899-aabbccddeeff",
	};
	uint8_t uuid[16];
	size_t i;

	(void)state;
	assert_int_equal(ferry_uuid_parse("00112233-4455-6677-8899-aabbccddeeff", uuid), 0);
	assert_int_equal(uuid[15], 0xff);
	for (i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		assert_int_equal(ferry_uuid_parse(bad[i], uuid), -EINVAL);
}

static void freeing_twice(void **state)
{
	struct ferry_record record = { .undo = strdup("{}") };

	(void)state;
	ferry_record_free(&record);
	assert_null(record.undo);
	ferry_record_free(&record);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(phases),
		cmocka_unit_test(uuid_there_and_back),
		cmocka_unit_test(uuid_refused),
		cmocka_unit_test(freeing_twice),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
