// SPDX-License-Identifier: GPL-2.0-or-later
/* The command line of ferry-vmm: one table that parses and explains it. */
#include "vmm/vmm.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MOST_BYTES (1ULL << 38)

static struct options opt = { .vcpus = 1, .blocks = 1, .ram = { 64 << 20 } };

/* A row takes a number up to @most, one of @words, a size, a text, or nothing. */
static const struct row {
	const char *name, *arg, *help, *words[4];
	uint64_t *number, most;
	const char **text;
} rows[] = {
	{ "engine", "kvm|threads", "who runs the guest; threads needs no KVM (default kvm)",
	  { "kvm", "threads" }, .number = &opt.threads },
	{ "vcpus", "N", "1 to 64 (default 1)", .number = &opt.vcpus, .most = MAX_VCPUS },
	{ "ram", "SIZE[,SIZE...]", "at most 8 blocks of guest RAM (default 64M)", .most = 0 },
	{ "ram-file", "PATH", "RAM in files PATH, PATH.1, ..., not in memfds", .text = &opt.ram_file },
	{ "port", "PATH", "be a guest that ferry can take, as port:PATH", .text = &opt.port },
	{ "incoming", NULL, "wait for a guest to arrive at --port", .number = &opt.incoming },
	{ "adopt", NULL, "the guest brings its RAM: wait for ferry cpr (with --incoming)",
	  .number = &opt.adopt },
	{ "tracker-log", "none|log|ring", "KVM's dirty log or rings for ferry's tracker port (none)",
	  { "none", "log", "ring" }, .number = &opt.log },
	{ "working-set", "SIZE", "how much RAM the guest writes (default a quarter)", .number = &opt.working_set },
	{ "fill", "SIZE", "this much more holds data that does not compress", .number = &opt.fill },
	{ "dirty-rate", "PAGES", "pages all vCPUs write a second, or max (default)",
	  .number = &opt.dirty_rate, .most = 1000000000 },
	{ "zero-share", "PERCENT", "of all writes that make a page zero (default 0)",
	  .number = &opt.zero_percent, .most = 100 },
	{ "pattern", "seq|random|hot", "hot: 9 of 10 writes go to a tenth of the pages (seq)",
	  { "seq", "random", "hot" }, .number = &opt.pattern },
	{ "save", "FILE", "at SIGTERM save the device state there", .text = &opt.save },
	{ "load", "FILE", "go on from such a state, with the same --ram-file", .text = &opt.load },
	{ "json", NULL, "print one object a line", .number = &opt.json },
	{ "help", NULL, "print this", .most = 0 },
};

static void usage(const char *what, const char *wanted, const char *found)
{
	fprintf(stderr, "ferry-vmm: %s%s%s; ferry-vmm --help says what there is\n", what, wanted, found);
	exit(2);
}

static void print_help(void)
{
	const struct row *row;

	puts("usage: ferry-vmm [OPTION...]\n"
	     "A small VMM that can be migrated: its guest writes memory and checks what it wrote.\n");
	for (row = rows; row < rows + sizeof(rows) / sizeof(rows[0]); row++)
		printf("  --%-11s %-14s %s\n", row->name, row->arg ? row->arg : "", row->help);
	puts("\nOnce a second and at SIGUSR2 it prints the work done, and how long a vCPU stood still.\n"
	     "SIGUSR1 checks all of RAM, SIGTERM checks it and ends. Exit status 0: all was well.\n"
	     "A guest that arrives brings its working set, fill, rate, share and pattern along.");
	exit(0);
}

/* A number, with K, M or G if it is a size. Return: where it ends, NULL for nonsense. */
static const char *parse_number(const char *text, bool size, uint64_t *value)
{
	static const char units[] = "KMG";
	char *end;
	const char *unit;

	errno = 0;
	*value = strtoull(text, &end, 10);
	if (*text < '0' || *text > '9' || errno || *value > MOST_BYTES)
		return NULL;
	unit = size && *end ? strchr(units, *end) : NULL;
	if (unit) {
		*value <<= 10 * (unit - units + 1);
		end++;
	}
	return size && (*value % PAYLOAD_PAGE || *value > MOST_BYTES || !*value) ? NULL : end;
}

static bool parse_ram(const char *text)
{
	for (opt.blocks = 0; opt.blocks < PAYLOAD_MAX_BLOCKS; text++) {
		text = parse_number(text, true, &opt.ram[opt.blocks++]);
		if (!text || (*text && *text != ','))
			return false;
		if (!*text)
			return true;
	}
	return false;
}

static bool parse_value(const struct row *row, const char *arg)
{
	const char *end;

	if (!row->number && !row->text)
		return parse_ram(arg);
	if (row->text) {
		*row->text = arg;
		return true;
	}
	if (!arg) {
		*row->number = 1;
		return true;
	}
	for (*row->number = 0; row->words[*row->number]; ++*row->number)
		if (!strcmp(arg, row->words[*row->number]))
			return true;
	if (row->words[0])
		return false;
	if (row->number == &opt.dirty_rate && !strcmp(arg, "max"))
		return true;
	end = parse_number(arg, !row->most, row->number);
	return end && !*end && (!row->most || *row->number <= row->most) &&
	       (*row->number || row->number == &opt.zero_percent);
}

struct options options_parse(int argc, char **argv)
{
	struct option names[sizeof(rows) / sizeof(rows[0]) + 1] = { 0 };
	uint64_t given;
	unsigned int i;
	int found;

	for (i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
		names[i] = (struct option){ rows[i].name, rows[i].arg ? required_argument : no_argument,
					    NULL, (int)i };
	while ((found = getopt_long(argc, argv, "", names, NULL)) != -1) {
		if (found == '?')
			usage("wrong option", "", "");
		if (!strcmp(rows[found].name, "help"))
			print_help();
		if (!parse_value(&rows[found], optarg))
			usage(optarg, " is no value for --", rows[found].name);
	}
	if (optind < argc)
		usage("it takes options only, not ", argv[optind], "");
	if (opt.adopt && (!opt.incoming || opt.ram_file))
		usage("--adopt goes with --incoming, and without --ram-file", "", "");
	if (opt.incoming && !opt.port)
		usage("--incoming needs --port PATH", "", "");
	if (opt.load && (!opt.ram_file || opt.incoming))
		usage("--load needs the --ram-file of the guest that was saved, and no --incoming", "", "");
	for (given = opt.working_set, i = 0; !given && i < opt.blocks; i++)
		opt.working_set += opt.ram[i] / 4 / PAYLOAD_PAGE * PAYLOAD_PAGE;
	return opt;
}
