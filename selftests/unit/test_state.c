// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/state.h"

#define SOURCE FERRY_ROLE_SOURCE
#define DESTINATION FERRY_ROLE_DESTINATION

static void names(void **state)
{
	int i, k;

	(void)state;
	for (i = 0; i < FERRY_STATE_COUNT; i++) {
		const char *name = ferry_state_name((enum ferry_state)i);

		/* postcopy-recover-setup is the longest: records and lists have room for it. */
		assert_in_range(strlen(name), 4, 22);
		assert_int_equal(ferry_state_parse(name), i);
		for (k = 0; k < i; k++)
			assert_string_not_equal(name, ferry_state_name((enum ferry_state)k));
	}
	assert_string_equal(ferry_state_name(FERRY_STATE_POSTCOPY_RECOVER_SETUP),
			    "postcopy-recover-setup");
	assert_string_equal(ferry_state_name(FERRY_STATE_COUNT), "invalid");
	assert_int_equal(ferry_state_parse("invalid"), -EINVAL);
	assert_int_equal(ferry_state_parse(""), -EINVAL);
	assert_int_equal(ferry_state_parse("Active"), -EINVAL);
	assert_string_equal(ferry_role_name(SOURCE), "source");
	assert_string_equal(ferry_role_name(FERRY_ROLE_CPR), "cpr");
	assert_int_equal(ferry_role_parse("destination"), DESTINATION);
	assert_int_equal(ferry_role_parse("neither"), -22);
	assert_string_equal(ferry_role_name(DESTINATION), "destination");
	assert_string_equal(ferry_role_name(FERRY_ROLE_COUNT), "invalid");
}

/* The rules a table must obey whatever else is in it. */
static void table(void **state)
{
	unsigned int role, from, to;

	(void)state;
	for (role = 0; role < FERRY_ROLE_COUNT; role++) {
		for (from = 0; from < FERRY_STATE_COUNT; from++) {
			unsigned int successors = 0;

			for (to = 0; to < FERRY_STATE_COUNT; to++)
				successors += ferry_state_legal(role, from, to);
			/* What is final stays. */
			if (ferry_state_final(from))
				assert_int_equal(successors, 0);
			assert_false(ferry_state_legal(role, from, from));
			assert_false(ferry_state_legal(role, from, FERRY_STATE_NONE));
			/* Cancelled is only reached by cancelling. */
			if (from != FERRY_STATE_CANCELLING)
				assert_false(ferry_state_legal(role, from, FERRY_STATE_CANCELLED));
		}
	}
	assert_true(ferry_state_final(FERRY_STATE_COMPLETED));
	assert_true(ferry_state_final(FERRY_STATE_FAILED));
	assert_true(ferry_state_final(FERRY_STATE_CANCELLED));
	assert_false(ferry_state_final(FERRY_STATE_COMMIT_UNKNOWN));
	assert_false(ferry_state_final(FERRY_STATE_COMMIT_WAIT));
}

static void who_owns(void **state)
{
	(void)state;
	/* From commit-unknown no cancel leads back, from postcopy-active nothing does. */
	assert_false(ferry_state_legal(SOURCE, FERRY_STATE_COMMIT_UNKNOWN,
				       FERRY_STATE_CANCELLING));
	assert_false(ferry_state_legal(SOURCE, FERRY_STATE_POSTCOPY_ACTIVE, FERRY_STATE_FAILED));
	assert_false(ferry_state_legal(SOURCE, FERRY_STATE_POSTCOPY_ACTIVE,
				       FERRY_STATE_CANCELLING));
	/* postcopy-device may complete at once, and be cancelled. */
	assert_true(ferry_state_legal(SOURCE, FERRY_STATE_POSTCOPY_DEVICE, FERRY_STATE_COMPLETED));
	assert_true(ferry_state_legal(SOURCE, FERRY_STATE_POSTCOPY_DEVICE,
				      FERRY_STATE_CANCELLING));
	/* Each side has its own waiting. */
	assert_false(ferry_state_legal(SOURCE, FERRY_STATE_DEVICE, FERRY_STATE_COMMIT_WAIT));
	assert_false(ferry_state_legal(DESTINATION, FERRY_STATE_DEVICE,
				       FERRY_STATE_COMMIT_UNKNOWN));
	/* The destination completes from commit-wait only. */
	assert_false(ferry_state_legal(DESTINATION, FERRY_STATE_DEVICE, FERRY_STATE_COMPLETED));
	assert_false(ferry_state_legal(FERRY_ROLE_COUNT, FERRY_STATE_NONE, FERRY_STATE_SETUP));
	assert_false(ferry_state_legal(SOURCE, FERRY_STATE_COUNT, FERRY_STATE_SETUP));
	assert_false(ferry_state_legal(SOURCE, FERRY_STATE_NONE, FERRY_STATE_COUNT));
}

static void move(void **state)
{
	enum ferry_state s = FERRY_STATE_NONE;

	(void)state;
	assert_int_equal(ferry_state_move(&s, SOURCE, FERRY_STATE_NONE, FERRY_STATE_SETUP), 0);
	assert_int_equal(s, FERRY_STATE_SETUP);
	/* Legal, but not where we are: another thread was faster. */
	assert_int_equal(ferry_state_move(&s, SOURCE, FERRY_STATE_ACTIVE, FERRY_STATE_DEVICE),
			 -EBUSY);
	assert_int_equal(s, FERRY_STATE_SETUP);
	assert_int_equal(ferry_state_move(&s, SOURCE, FERRY_STATE_SETUP, FERRY_STATE_COMPLETED),
			 -EPERM);
	assert_int_equal(s, FERRY_STATE_SETUP);
	/* Illegal and elsewhere: illegal counts. */
	assert_int_equal(ferry_state_move(&s, SOURCE, FERRY_STATE_NONE, FERRY_STATE_COMPLETED),
			 -EPERM);
}

/* The printed table is what the model's is compared with: every legal move, one line. */
static void printed(void **state)
{
	char *text = NULL, *line, *save = NULL;
	unsigned int role, from, to, legal = 0, lines = 0;
	size_t bytes;
	FILE *out = open_memstream(&text, &bytes);

	(void)state;
	assert_non_null(out);
	ferry_state_print_table(out);
	fclose(out);
	for (role = 0; role < FERRY_ROLE_COUNT; role++)
		for (from = 0; from < FERRY_STATE_COUNT; from++)
			for (to = 0; to < FERRY_STATE_COUNT; to++)
				legal += ferry_state_legal(role, from, to);
	for (line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
		char r[16], a[32], b[32];

		assert_int_equal(sscanf(line, "%15s %31s %31s", r, a, b), 3);
		role = (enum ferry_role)ferry_role_parse(r);
		assert_true(ferry_state_legal(role, (enum ferry_state)ferry_state_parse(a),
					      (enum ferry_state)ferry_state_parse(b)));
		lines++;
	}
	assert_int_equal(lines, legal);
	assert_true(legal > 40);
	free(text);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(names),    cmocka_unit_test(table), cmocka_unit_test(who_owns),
		cmocka_unit_test(move),	    cmocka_unit_test(printed),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
