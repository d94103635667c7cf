// SPDX-License-Identifier: GPL-2.0-or-later
/* The command line of ferry-vmm: one table that parses and explains it. */
#include "vmm/vmm.h"

#include <argp.h>
#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#define MAX_BLOCKS PAYLOAD_MAX_BLOCKS
#define MAX_BYTES (1ULL << 38)
#define FIRST_KEY 256 /* no letter */

static struct options opt = { .vcpus = 1, .ram = { 64 << 20 } };

/* What each is, and where its value goes. */
static const struct row {
	const char *name, *arg, *help;
	enum { FLAG, TEXT, WORD, NUMBER, SIZES } kind; /* WORD: which of those in @arg */
	uint64_t most; /* of a number; how many sizes */
	void *value;
} rows[] = {
	{ "engine", "kvm|threads", "who runs the guest (kvm); threads needs no KVM",
	  WORD, 0, &opt.threads },
	{ "vcpus", "N", "1 to 64 (1)", NUMBER, MAX_VCPUS, &opt.vcpus },
	{ "ram", "SIZE[,SIZE...]", "up to 8 blocks of its RAM (64M)", SIZES, MAX_BLOCKS, opt.ram },
	{ "ram-file", "PATH", "RAM in files PATH, PATH.1, ..., no memfds", TEXT, 0, &opt.ram_file },
	{ "port", "PATH", "be a guest that ferry can take, as port:PATH", TEXT, 0, &opt.port },
	{ "incoming", NULL, "wait for a guest to arrive at --port", FLAG, 0, &opt.incoming },
	{ "adopt", NULL, "with --incoming: it brings its RAM, by ferry cpr", FLAG, 0, &opt.adopt },
	{ "tracker-log", "none|log|ring", "KVM's, for --tracker port (none)", WORD, 0, &opt.log },
	{ "working-set", "SIZE", "how much RAM the guest writes (a quarter)",
	  SIZES, 1, &opt.work.working_set },
	{ "fill", "SIZE", "this much more holds data that does not compress",
	  SIZES, 1, &opt.work.fill },
	{ "dirty-rate", "PAGES", "all vCPUs write a second, or max (max)",
	  NUMBER, 1000000000, &opt.work.rate },
	{ "zero-share", "PERCENT", "of writes that make a page zero (0)",
	  NUMBER, 100, &opt.work.zero_percent },
	{ "pattern", "seq|random|hot", "hot: 9 of 10 writes to 1 of 10 pages (seq)",
	  WORD, 0, &opt.work.pattern },
};
#define ROWS (sizeof(rows) / sizeof(rows[0]))

/* A number up to @most, with K, M, G or nothing. Return: where it ends; NULL: it is none. */
static const char *parse_number(const char *text, uint64_t most, uint64_t *number)
{
	static const char units[] = "KMG";
	const char *unit;
	char *end;
	int shift;

	*number = strtoull(text, &end, 10);
	unit = *end ? strchr(units, *end) : NULL;
	shift = unit ? 10 * (int)(unit - units + 1) : 0;
	if (!isdigit((unsigned char)*text) || *number > most >> shift)
		return NULL;
	*number <<= shift;
	return unit ? end + 1 : end;
}

/* One or more sizes with commas between them; 0 in what is left of the room for @most. */
static bool parse_sizes(const char *text, uint64_t most, uint64_t *bytes)
{
	memset(bytes, 0, most * sizeof(*bytes));
	for (; most; most--, bytes++) {
		text = parse_number(text, MAX_BYTES, bytes);
		if (!text || !*bytes || *bytes % PAYLOAD_PAGE || !strchr(",", *text))
			return false;
		if (!*text++)
			return true;
	}
	return false;
}

static bool parse_value(const struct row *row, const char *arg)
{
	uint64_t *number = row->value;
	char *words, *word;

	if (row->kind == SIZES)
		return parse_sizes(arg, row->most, number);
	if (row->kind == FLAG) {
		*number = 1;
	} else if (row->kind == TEXT) {
		*(const char **)row->value = arg;
	} else if (row->kind == WORD) {
		words = strdupa(row->arg);
		for (*number = 0; (word = strsep(&words, "|")) && strcmp(word, arg); ++*number)
			;
		return word;
	} else if (number == &opt.work.rate && !strcmp(arg, "max")) {
		*number = 0;
	} else {
		arg = parse_number(arg, row->most, number);
		return arg && !*arg && (*number || number == &opt.work.zero_percent);
	}
	return true;
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
	unsigned int i = (unsigned int)key - FIRST_KEY;

	if (i < ROWS) {
		if (!parse_value(&rows[i], arg))
			argp_error(state, "%s is no value for --%s", arg, rows[i].name);
	} else if (key == ARGP_KEY_ARG) {
		argp_error(state, "it takes options only, not %s", arg);
	} else if (key == ARGP_KEY_END) {
		if (opt.adopt && (!opt.incoming || opt.ram_file))
			argp_error(state, "--adopt goes with --incoming, and without --ram-file");
		if (opt.incoming && !opt.port)
			argp_error(state, "--incoming needs --port PATH");
		if (opt.log != LOG_NONE && opt.threads)
			argp_error(state, "--tracker-log needs --engine kvm");
	} else {
		return ARGP_ERR_UNKNOWN;
	}
	return 0;
}

struct options options_parse(int argc, char **argv)
{
	struct argp_option options[ROWS + 1] = { 0 };
	const struct argp argp = { .options = options, .parser = parse, .doc =
		"A small VMM that can be migrated: its guest checks the pages that it writes.\v"
		"Each second and at SIGUSR2 it prints work done, and how long vCPUs stood still. "
		"SIGUSR1 checks all of RAM, SIGTERM checks it and ends. Exit status 0: all well. "
		"A guest that arrives brings working set, fill, rate, share and pattern along." };
	unsigned int i;

	for (i = 0; i < ROWS; i++)
		options[i] = (struct argp_option){ .name = rows[i].name, .key = FIRST_KEY + (int)i,
						   .arg = rows[i].arg, .doc = rows[i].help };
	argp_err_exit_status = 2;
	argp_parse(&argp, argc, argv, 0, NULL, NULL);
	while (opt.blocks < MAX_BLOCKS && opt.ram[opt.blocks])
		opt.blocks++;
	return opt;
}
