// SPDX-License-Identifier: GPL-2.0-or-later
#include "agent/options.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "agent/nearest.h"
#include "wire/wire.h"

#define OPTIONS_MAX_TIMEOUT_S 86400

struct option_spec {
	const char *name;
	const char *value; /* how help calls it; NULL takes none */
	unsigned int takes;
	const char *help;
	int (*set)(struct ferry_args *args, const char *value, struct ferry_error *err);
};

static int option_number(const char *name, const char *value, uint64_t low, uint64_t high,
			 uint64_t *n, struct ferry_error *err)
{
	if (ferry_size_parse(value, n) || *n < low || *n > high)
		return ferry_error_set(err, EINVAL, "%s %s: it takes a number from %llu to %llu",
				       name, value, (unsigned long long)low,
				       (unsigned long long)high);
	return 0;
}

static int set_channels(struct ferry_args *a, const char *value, struct ferry_error *err)
{
	uint64_t n;
	int r = option_number("--channels", value, 1, FERRY_WIRE_MAX_CHANNELS, &n, err);

	if (!r)
		a->job.channels = (uint32_t)n;
	return r;
}

static int set_bandwidth(struct ferry_args *a, const char *value, struct ferry_error *err)
{
	if (ferry_size_parse(value, &a->job.max_bandwidth))
		return ferry_error_set(err, EINVAL,
				       "--max-bandwidth %s: it takes bytes per second, like 100M",
				       value);
	return 0;
}

static int set_downtime(struct ferry_args *a, const char *value, struct ferry_error *err)
{
	uint64_t n;
	int r = option_number("--downtime-limit", value, 1, UINT32_MAX, &n, err);

	if (!r)
		a->job.downtime_limit_ms = (uint32_t)n;
	return r;
}

static int set_tracker(struct ferry_args *a, const char *value, struct ferry_error *err)
{
	static const char *const names[] = { "auto", "kmod", "pagemap", "softdirty", "port",
					     "none" };
	size_t i;

	for (i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		if (!strcmp(value, names[i]))
			break;
	if (i == sizeof(names) / sizeof(names[0]))
		return ferry_error_set(err, EINVAL,
				       "--tracker %s: there are auto, kmod, pagemap, softdirty, "
				       "port and none", value);
	snprintf(a->job.tracker, sizeof(a->job.tracker), "%s", value);
	return 0;
}

static int set_on_stall(struct ferry_args *a, const char *value, struct ferry_error *err)
{
	int policy = ferry_on_stall_parse(value, err);

	if (policy < 0) {
		ferry_error_prefix(err, "--on-stall %s", value);
		return policy;
	}
	a->job.on_stall = (enum ferry_on_stall)policy;
	return 0;
}

static int set_postcopy(struct ferry_args *a, const char *value, struct ferry_error *err)
{
	uint64_t n;

	if (!strcmp(value, "now")) {
		a->job.postcopy = FERRY_POSTCOPY_NOW;
	} else if (!strcmp(value, "on-stall")) {
		a->job.postcopy = FERRY_POSTCOPY_ON_STALL;
	} else if (!strncmp(value, "after=", 6) && !ferry_size_parse(value + 6, &n) && n) {
		a->job.postcopy = FERRY_POSTCOPY_AFTER;
		a->job.postcopy_rounds = n;
	} else {
		return ferry_error_set(err, EINVAL, "--postcopy %s: it takes now, after=ROUNDS (1 or "
				       "more) or on-stall", value);
	}
	return 0;
}

static int set_timeout(struct ferry_args *a, const char *value, struct ferry_error *err)
{
	uint64_t n;
	int r = option_number("--timeout", value, 1, OPTIONS_MAX_TIMEOUT_S, &n, err);

	if (!r)
		a->job.timeout_ms = (uint32_t)n * 1000;
	a->timeout = !r;
	return r;
}

static int set_compress(struct ferry_args *a, const char *value, struct ferry_error *err)
{
	unsigned int codec;

	for (codec = 0; codec < FERRY_WIRE_CODEC_COUNT; codec++) {
		if (!strcmp(value, ferry_wire_codec_name(codec))) {
			a->job.codec = (uint8_t)codec;
			return 0;
		}
	}
	return ferry_error_set(err, EINVAL, "--compress %s: there are none, zstd and lz4", value);
}

static int set_spill(struct ferry_args *a, const char *value, struct ferry_error *err)
{
	if (*value != '/' || strlen(value) >= sizeof(a->job.spill_dir))
		return ferry_error_set(err, EINVAL, "--spill %s: it takes the full path of a folder",
				       value);
	snprintf(a->job.spill_dir, sizeof(a->job.spill_dir), "%s", value);
	return 0;
}

static int set_id(struct ferry_args *a, const char *value, struct ferry_error *err)
{
	(void)err;
	a->id = value;
	return 0;
}

#define FLAG(fn, field)                                                                    \
	static int fn(struct ferry_args *a, const char *value, struct ferry_error *err)    \
	{                                                                                  \
		(void)value;                                                               \
		(void)err;                                                                 \
		a->field = true;                                                           \
		return 0;                                                                  \
	}

FLAG(set_dma_barrier, job.dma_barrier)
FLAG(set_verify, job.verify)
FLAG(set_checksum, job.checksum)
FLAG(set_pause, job.pause_before_switchover)
FLAG(set_keep, job.keep_source)
FLAG(set_live, job.live)
FLAG(set_direct, job.direct)
FLAG(set_record, job.record)
FLAG(set_lazy, job.lazy)
FLAG(set_no_verify, job.no_verify)
FLAG(set_release, job.release_ram)
FLAG(set_json, json)
FLAG(set_quiet, quiet)
FLAG(set_force_source, force_source)
FLAG(set_force_destination, force_destination)
FLAG(set_fault_points, fault_points)
FLAG(set_help, help)
FLAG(set_exec, exec)

static int set_to(struct ferry_args *a, const char *value, struct ferry_error *err)
{
	(void)err;
	a->to = value;
	return 0;
}

#define TAKES_FILE (FERRY_TAKES_SAVE | FERRY_TAKES_RESTORE | FERRY_TAKES_INSPECT)

static const struct option_spec option_specs[] = {
	{ "--channels", "N", FERRY_TAKES_SEND | TAKES_FILE, "data channels (2)", set_channels },
	{ "--max-bandwidth", "SIZE", FERRY_TAKES_SEND | FERRY_TAKES_SAVE, "bytes per second at most (unlimited)",
	  set_bandwidth },
	{ "--downtime-limit", "MS", FERRY_TAKES_SEND | FERRY_TAKES_SAVE, "switch over when it fits this (300)",
	  set_downtime },
	{ "--tracker", "NAME", FERRY_TAKES_SEND | FERRY_TAKES_SAVE, "auto, kmod, port, pagemap, softdirty or none (auto)",
	  set_tracker },
	{ "--dma-barrier", NULL, FERRY_TAKES_SEND | FERRY_TAKES_SAVE, "stop the guest shortly at each scan",
	  set_dma_barrier },
	{ "--verify", NULL, FERRY_TAKES_SEND, "compare hashes of all RAM before the switchover",
	  set_verify },
	{ "--pause-before-switchover", NULL, FERRY_TAKES_SEND, "stop there until 'continue'",
	  set_pause },
	{ "--on-stall", "POLICY", FERRY_TAKES_SEND, "wait, throttle, postcopy or cancel (wait)",
	  set_on_stall },
	{ "--keep-source", NULL, FERRY_TAKES_SEND, "leave the source VMM, stopped", set_keep },
	{ "--compress", "NAME", FERRY_TAKES_SEND, "none, zstd or lz4 (none)", set_compress },
	{ "--checksum", NULL, FERRY_TAKES_SEND, "of every run of pages on the wire", set_checksum },
	{ "--postcopy", "WHEN", FERRY_TAKES_SEND, "now, after=ROUNDS or on-stall (never)",
	  set_postcopy },
	{ "--live", NULL, FERRY_TAKES_SAVE, "the guest runs while its memory is written", set_live },
	{ "--direct", NULL, TAKES_FILE, "past the page cache", set_direct },
	{ "--record", NULL, FERRY_TAKES_SAVE, "with --live: also in which order pages are touched",
	  set_record },
	{ "--lazy", NULL, FERRY_TAKES_RESTORE, "start the guest at once, its memory follows",
	  set_lazy },
	{ "--no-verify", NULL, FERRY_TAKES_RESTORE | FERRY_TAKES_INSPECT,
	  "do not compare the checksums of pages", set_no_verify },
	{ "--to", "GUEST", FERRY_TAKES_CPR, "the new VMM, started to wait for a guest, with the same RAM",
	  set_to },
	{ "--exec", NULL, FERRY_TAKES_CPR, "start the new VMM by the command after --", set_exec },
	{ "--release-ram", NULL, FERRY_TAKES_SEND,
	  "postcopy: free memory here as it is sent; no recovery", set_release },
	{ "--spill", "DIR", FERRY_TAKES_SEND, "postcopy: write unsent pages there if the link breaks",
	  set_spill },
	{ "--force-source", NULL, FERRY_TAKES_FORCE,
	  "the destination is gone for good: run the guest here", set_force_source },
	{ "--force-destination", NULL, FERRY_TAKES_FORCE,
	  "the source is gone for good: run the guest here", set_force_destination },
	{ "--fault-points", NULL, FERRY_TAKES_FAULT_POINTS, "list the stages of FERRY_FAULT",
	  set_fault_points },
	{ "--id", "ID", FERRY_TAKES_ALL, "name of the migration (from the guest's path)", set_id },
	{ "--timeout", "SECONDS", FERRY_TAKES_ALL, "for connections and answers (30)",
	  set_timeout },
	{ "--json", NULL, FERRY_TAKES_ALL, "one JSON object a line on standard output", set_json },
	{ "--quiet", NULL, FERRY_TAKES_ALL, "only errors", set_quiet },
	{ "--help", NULL, FERRY_TAKES_ALL, "this text", set_help },
};

static const struct option_spec *option_find(const char *word, size_t len)
{
	size_t i;

	for (i = 0; i < sizeof(option_specs) / sizeof(option_specs[0]); i++)
		if (strlen(option_specs[i].name) == len && !memcmp(option_specs[i].name, word, len))
			return &option_specs[i];
	return NULL;
}

static int option_unknown(const char *command, unsigned int takes, const char *word, size_t len,
			  struct ferry_error *err)
{
	struct ferry_nearest meant = { .word = word, .length = len };
	size_t i;

	for (i = 0; i < sizeof(option_specs) / sizeof(option_specs[0]); i++)
		if (option_specs[i].takes & (takes | FERRY_TAKES_ALL))
			ferry_nearest_try(&meant, option_specs[i].name);
	return ferry_error_set(err, EINVAL, "ferry %s does not know %.*s%s%s%s; 'ferry %s --help' "
			       "shows what it takes", command, (int)len, word,
			       meant.best ? "; did you mean " : "", meant.best ? meant.best : "",
			       meant.best ? "?" : "", command);
}

/* One option, at argv[*at]. */
static int option_take(const char *command, unsigned int takes, int argc, char **argv, int *at,
		       struct ferry_args *args, struct ferry_error *err)
{
	const char *word = argv[*at], *eq = strchr(word, '='), *value = NULL;
	const struct option_spec *spec;
	size_t len;

	if (!strcmp(word, "-h"))
		word = "--help";
	len = eq ? (size_t)(eq - word) : strlen(word);
	spec = option_find(word, len);
	if (!spec || !(spec->takes & (takes | FERRY_TAKES_ALL)))
		return option_unknown(command, takes, word, len, err);
	if (spec->value) {
		value = eq ? eq + 1 : *at + 1 < argc ? argv[++*at] : NULL;
		if (!value)
			return ferry_error_set(err, EINVAL, "%s needs %s after it", word,
					       spec->value);
	} else if (eq) {
		return ferry_error_set(err, EINVAL, "%s takes no value", spec->name);
	}
	return spec->set(args, value, err) ? -EINVAL : 0;
}

int ferry_options_parse(const char *command, unsigned int takes, int argc, char **argv,
			struct ferry_args *args, struct ferry_error *err)
{
	bool only_operands = false;
	int i;

	memset(args, 0, sizeof(*args));
	args->job.channels = 2;
	args->job.downtime_limit_ms = 300;
	args->job.timeout_ms = 30000;
	snprintf(args->job.tracker, sizeof(args->job.tracker), "auto");
	for (i = 0; i < argc; i++) {
		if (!only_operands && !strcmp(argv[i], "--")) {
			if (args->exec) {
				args->command = argv + i + 1;
				break;
			}
			only_operands = true;
		} else if (!only_operands && argv[i][0] == '-' && argv[i][1]) {
			int r = option_take(command, takes, argc, argv, &i, args, err);

			if (r)
				return r;
		} else if (args->count == FERRY_MAX_OPERANDS) {
			return ferry_error_set(err, EINVAL, "too many words for ferry %s: '%s'",
					       command, argv[i]);
		} else {
			args->operands[args->count++] = argv[i];
		}
	}
	if (args->job.verify && (args->job.postcopy != FERRY_POSTCOPY_NEVER ||
				 args->job.on_stall == FERRY_ON_STALL_POSTCOPY))
		return ferry_error_set(err, EINVAL, "--verify compares all of the memory before the "
				       "guest runs at the destination; with postcopy it comes "
				       "after: leave one of them out (--checksum goes with both)");
	if (args->job.record && !args->job.live)
		return ferry_error_set(err, EINVAL, "--record goes with --live: what the guest touches "
				       "is only seen while it runs");
	if (args->job.release_ram && (args->job.keep_source || args->job.spill_dir[0]))
		return ferry_error_set(err, EINVAL, "--release-ram frees the guest's memory here as it "
				       "is sent, so neither --keep-source nor --spill go with it");
	return 0;
}

void ferry_options_print(unsigned int takes)
{
	size_t i;

	for (i = 0; i < sizeof(option_specs) / sizeof(option_specs[0]); i++) {
		const struct option_spec *s = &option_specs[i];
		char left[64];

		if (!(s->takes & (takes | FERRY_TAKES_ALL)))
			continue;
		snprintf(left, sizeof(left), "%s %s", s->name, s->value ? s->value : "");
		printf("  %-28s %s\n", left, s->help);
	}
}
