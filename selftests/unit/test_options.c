// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "agent/options.h"
#include "wire/wire.h"

#define EVERYTHING (FERRY_TAKES_SEND | FERRY_TAKES_FORCE | FERRY_TAKES_FAULT_POINTS)

/* One command line, split at spaces; "''" is an empty word. */
static int parse(unsigned int takes, const char *line, struct ferry_args *args,
		 struct ferry_error *err)
{
	static char words[512];
	char *argv[16], *word, *save = NULL;
	int argc = 0;

	snprintf(words, sizeof(words), "%s", line);
	for (word = strtok_r(words, " ", &save); word; word = strtok_r(NULL, " ", &save)) {
		if (!strcmp(word, "''"))
			word[0] = 0;
		argv[argc++] = word;
	}
	return ferry_options_parse("send", takes, argc, argv, args, err);
}

static struct ferry_args good(const char *line)
{
	struct ferry_error err = { 0 };
	struct ferry_args args;

	if (parse(EVERYTHING, line, &args, &err))
		fail_msg("'%s': %s", line, err.text);
	return args;
}

static void defaults(void **state)
{
	struct ferry_args a = good("");

	(void)state;
	assert_int_equal(a.count, 0);
	assert_int_equal(a.job.channels, 2);
	assert_int_equal(a.job.max_bandwidth, 0);
	assert_int_equal(a.job.downtime_limit_ms, 300);
	assert_int_equal(a.job.timeout_ms, 30000);
	assert_string_equal(a.job.tracker, "auto");
	assert_int_equal(a.job.on_stall, FERRY_ON_STALL_WAIT);
	assert_null(a.id);
	assert_false(a.job.dma_barrier || a.job.verify || a.job.pause_before_switchover ||
		     a.job.keep_source || a.json || a.quiet || a.force_source ||
		     a.force_destination || a.fault_points || a.help);
}

static void each_one(void **state)
{
	(void)state;
	assert_int_equal(good("--channels 1").job.channels, 1);
	assert_int_equal(good("--channels=64").job.channels, 64);
	assert_int_equal(good("--max-bandwidth 100M").job.max_bandwidth, 100u << 20);
	assert_int_equal(good("--max-bandwidth=0").job.max_bandwidth, 0);
	assert_int_equal(good("--downtime-limit 1").job.downtime_limit_ms, 1);
	assert_string_equal(good("--tracker softdirty").job.tracker, "softdirty");
	assert_string_equal(good("--tracker none").job.tracker, "none");
	assert_true(good("--dma-barrier").job.dma_barrier);
	assert_true(good("--verify").job.verify);
	assert_true(good("--pause-before-switchover").job.pause_before_switchover);
	assert_int_equal(good("--on-stall cancel").job.on_stall, FERRY_ON_STALL_CANCEL);
	assert_int_equal(good("--on-stall wait").job.on_stall, FERRY_ON_STALL_WAIT);
	assert_true(good("--keep-source").job.keep_source);
	assert_int_equal(good("--on-stall throttle").job.on_stall, FERRY_ON_STALL_THROTTLE);
	assert_int_equal(good("--compress none").job.codec, FERRY_WIRE_CODEC_RAW);
	assert_int_equal(good("--compress zstd").job.codec, FERRY_WIRE_CODEC_ZSTD);
	assert_int_equal(good("--compress=lz4").job.codec, FERRY_WIRE_CODEC_LZ4);
	assert_true(good("--checksum").job.checksum);
	assert_true(good("--force-source").force_source);
	assert_true(good("--force-destination").force_destination);
	assert_true(good("--fault-points").fault_points);
	assert_string_equal(good("--id vm1").id, "vm1");
	assert_string_equal(good("--id=vm1").id, "vm1");
	assert_int_equal(good("--timeout 1").job.timeout_ms, 1000);
	assert_int_equal(good("--timeout 86400").job.timeout_ms, 86400000);
	assert_true(good("--json").json);
	assert_true(good("--quiet").quiet);
	assert_true(good("--help").help);
	assert_true(good("-h").help);
}

static void words(void **state)
{
	struct ferry_args a = good("qmp:/a --json tcp:h:1 --channels 3 x -- --quiet");

	(void)state;
	assert_int_equal(a.count, 4);
	assert_string_equal(a.operands[0], "qmp:/a");
	assert_string_equal(a.operands[1], "tcp:h:1");
	assert_string_equal(a.operands[2], "x");
	assert_string_equal(a.operands[3], "--quiet");
	assert_true(a.json);
	assert_false(a.quiet);
	assert_int_equal(a.job.channels, 3);
	/* A dash alone is a word; the last of two counts. */
	assert_string_equal(good("-").operands[0], "-");
	assert_int_equal(good("--channels 3 --channels 4").job.channels, 4);
}

static void refused(void **state)
{
	static const struct {
		const char *line, *text;
	} cases[] = {
		{ "--channels", "--channels needs N after it" },
		{ "--channels 0", "--channels 0: it takes a number from 1 to 64" },
		{ "--channels 65", "--channels 65: it takes a number from 1 to 64" },
		{ "--channels=", "--channels : it takes a number from 1 to 64" },
		{ "--channels two", "--channels two: it takes a number from 1 to 64" },
		{ "--channels -1", "--channels -1: it takes a number from 1 to 64" },
		{ "--max-bandwidth fast",
		  "--max-bandwidth fast: it takes bytes per second, like 100M" },
		{ "--downtime-limit 0",
		  "--downtime-limit 0: it takes a number from 1 to 4294967295" },
		{ "--downtime-limit 4G",
		  "--downtime-limit 4G: it takes a number from 1 to 4294967295" },
		{ "--tracker best", "--tracker best: there are auto, kmod, pagemap, softdirty, port "
				    "and none" },
		{ "--tracker ''", "--tracker : there are auto, kmod, pagemap, softdirty, port and "
				  "none" },
		{ "--on-stall panic", "--on-stall panic: there are wait, throttle, postcopy and "
				      "cancel" },
		{ "--compress gzip", "--compress gzip: there are none, zstd and lz4" },
		{ "--timeout 0", "--timeout 0: it takes a number from 1 to 86400" },
		{ "--timeout 86401", "--timeout 86401: it takes a number from 1 to 86400" },
		{ "--id", "--id needs ID after it" },
		{ "--json=1", "--json takes no value" },
		{ "--verify=no", "--verify takes no value" },
		{ "--postcopy later", "--postcopy later: it takes now, after=ROUNDS (1 or more) or "
				      "on-stall" },
		{ "--postcopy after=0", "--postcopy after=0: it takes now, after=ROUNDS (1 or more) "
					"or on-stall" },
		{ "--postcopy after=", "--postcopy after=: it takes now, after=ROUNDS (1 or more) or "
				       "on-stall" },
		{ "--verify --postcopy now",
		  "--verify compares all of the memory before the guest runs at the destination; "
		  "with postcopy it comes after: leave one of them out (--checksum goes with "
		  "both)" },
		{ "--on-stall postcopy --verify",
		  "--verify compares all of the memory before the guest runs at the destination; "
		  "with postcopy it comes after: leave one of them out (--checksum goes with "
		  "both)" },
		{ "--checksum=yes", "--checksum takes no value" },
		{ "--release-ram --keep-source",
		  "--release-ram frees the guest's memory here as it is sent, so neither --keep-source "
		  "nor --spill go with it" },
		{ "--release-ram --spill /tmp",
		  "--release-ram frees the guest's memory here as it is sent, so neither --keep-source "
		  "nor --spill go with it" },
		{ "--spill here", "--spill here: it takes the full path of a folder" },
		{ "--fast", "ferry send does not know --fast; 'ferry send --help' shows what it "
			    "takes" },
		{ "--fast=1", "ferry send does not know --fast; 'ferry send --help' shows what it "
			      "takes" },
		{ "-x", "ferry send does not know -x; 'ferry send --help' shows what it takes" },
		{ "--chan 2", "ferry send does not know --chan; did you mean --channels?; 'ferry send "
			      "--help' shows what it takes" },
		{ "--chanels=2", "ferry send does not know --chanels; did you mean --channels?; "
				 "'ferry send --help' shows what it takes" },
		{ "--vreify", "ferry send does not know --vreify; did you mean --verify?; 'ferry send "
			      "--help' shows what it takes" },
		{ "a b c d e", "too many words for ferry send: 'e'" },
	};
	struct ferry_error err;
	struct ferry_args args;
	size_t i;

	(void)state;
	for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		assert_int_equal(parse(EVERYTHING, cases[i].line, &args, &err), -EINVAL);
		assert_string_equal(err.text, cases[i].text);
	}
}

static void postcopy(void **state)
{
	struct ferry_error err;
	struct ferry_args args;

	(void)state;
	assert_int_equal(parse(EVERYTHING, "", &args, &err), 0);
	assert_int_equal(args.job.postcopy, FERRY_POSTCOPY_NEVER);
	assert_int_equal(parse(EVERYTHING, "--postcopy now", &args, &err), 0);
	assert_int_equal(args.job.postcopy, FERRY_POSTCOPY_NOW);
	assert_int_equal(parse(EVERYTHING, "--postcopy=on-stall", &args, &err), 0);
	assert_int_equal(args.job.postcopy, FERRY_POSTCOPY_ON_STALL);
	assert_int_equal(parse(EVERYTHING, "--postcopy after=3", &args, &err), 0);
	assert_int_equal(args.job.postcopy, FERRY_POSTCOPY_AFTER);
	assert_int_equal(args.job.postcopy_rounds, 3);
	assert_int_equal(parse(EVERYTHING, "--on-stall postcopy", &args, &err), 0);
	assert_int_equal(args.job.on_stall, FERRY_ON_STALL_POSTCOPY);
}

/* What belongs to another command is unknown; what belongs to all is not. */
static void belongs_elsewhere(void **state)
{
	static const char *const sends[] = {
		"--channels 1", "--max-bandwidth 1", "--downtime-limit 1", "--tracker none",
		"--dma-barrier", "--verify", "--pause-before-switchover", "--on-stall wait",
		"--keep-source", "--compress none", "--postcopy now", "--force-source", "--force-destination",
		"--fault-points",
	};
	struct ferry_error err;
	struct ferry_args args;
	size_t i;

	(void)state;
	for (i = 0; i < sizeof(sends) / sizeof(sends[0]); i++) {
		assert_int_equal(parse(0, sends[i], &args, &err), -EINVAL);
		assert_non_null(strstr(err.text, "does not know --"));
	}
	assert_int_equal(parse(0, "--json --quiet --id x --timeout 3 --help", &args, &err), 0);
	assert_int_equal(parse(FERRY_TAKES_FORCE, "--force-source", &args, &err), 0);
	assert_int_equal(parse(FERRY_TAKES_FORCE, "--verify", &args, &err), -EINVAL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(defaults), cmocka_unit_test(each_one),
		cmocka_unit_test(words),    cmocka_unit_test(refused),
		cmocka_unit_test(postcopy), cmocka_unit_test(belongs_elsewhere),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
