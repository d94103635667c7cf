// SPDX-License-Identifier: GPL-2.0-or-later
/* The command line of ferry-vmm: one table that parses and explains it. */
#include "vmm/vmm.h"

#include <argp.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define MOST_BYTES (1ULL << 38)
#define FIRST_KEY 256 /* no letter */
enum { SIZE = -5, TEXT, RAM, WORD, FLAG };

static struct options opt = { .vcpus = 1, .blocks = 1, .ram = { 64 << 20 } };

/* What each is, and where its value goes. */
static const struct row {
	const char *name, *arg, *help;
	void *value;
	int most; /* a number up to this, or SIZE, ...; WORD: one of those in @arg */
} rows[] = {
	{ "engine", "kvm|threads", "who runs the guest (kvm); threads needs no KVM", &opt.threads, WORD },
	{ "vcpus", "N", "1 to 64 (1)", &opt.vcpus, MAX_VCPUS },
	{ "ram", "SIZE[,SIZE...]", "at most 8 blocks of guest RAM (64M)", opt.ram, RAM },
	{ "ram-file", "PATH", "RAM in files PATH, PATH.1, ..., not in memfds", &opt.ram_file, TEXT },
	{ "port", "PATH", "be a guest that ferry can take, as port:PATH", &opt.port, TEXT },
	{ "incoming", NULL, "wait for a guest to arrive at --port", &opt.incoming, FLAG },
	{ "adopt", NULL, "with --incoming: it brings its RAM, by ferry cpr", &opt.adopt, FLAG },
	{ "tracker-log", "none|log|ring", "KVM's log or rings for --tracker port (none)", &opt.log, WORD },
	{ "working-set", "SIZE", "how much RAM the guest writes (a quarter)", &opt.working_set, SIZE },
	{ "fill", "SIZE", "this much more holds data that does not compress", &opt.fill, SIZE },
	{ "dirty-rate", "PAGES", "all vCPUs write a second, or max (max)", &opt.dirty_rate, 1000000000 },
	{ "zero-share", "PERCENT", "of writes that make a page zero (0)", &opt.zero_percent, 100 },
	{ "pattern", "seq|random|hot", "hot: 9 of 10 writes to 1 of 10 pages (seq)", &opt.pattern, WORD },
	{ "save", "FILE", "at SIGTERM save the device state there", &opt.save, TEXT },
	{ "load", "FILE", "go on from such a state, with the same --ram-file", &opt.load, TEXT },
	{ "json", NULL, "print one object a line", &opt.json, FLAG },
};
#define ROWS (sizeof(rows) / sizeof(rows[0]))

/* A number, with K, M or G if it is a size. Return: where it ends, NULL for nonsense. */
static const char *parse_number(const char *text, bool size, uint64_t *value)
{
	static const char units[] = "KMG";
	const char *unit;
	char *end;

	errno = 0;
	*value = strtoull(text, &end, 10);
	if (*text < '0' || *text > '9' || errno || *value > MOST_BYTES)
		return NULL;
	unit = size && *end ? strchr(units, *end) : NULL;
	if (unit)
		*value <<= 10 * (unit - units + 1);
	if (size && (*value % PAYLOAD_PAGE || *value > MOST_BYTES || !*value))
		return NULL;
	return unit ? end + 1 : end;
}

static bool parse_ram(const char *text)
{
	for (opt.blocks = 0; text && opt.blocks < PAYLOAD_MAX_BLOCKS; text++) {
		text = parse_number(text, true, &opt.ram[opt.blocks++]);
		if (!text || *text != ',')
			return text && !*text;
	}
	return false;
}

/* Which of the words in @words it is. */
static bool parse_word(const char *words, const char *arg, uint64_t *number)
{
	size_t bytes = strlen(arg);

	for (*number = 0; strncmp(words, arg, bytes) || !strchr("|", words[bytes]); ++*number) {
		words = strchr(words, '|');
		if (!words++)
			return false;
	}
	return bytes > 0;
}

static bool parse_value(const struct row *row, char *arg)
{
	uint64_t *number = row->value;
	const char *end;

	switch (row->most) {
	case TEXT:
		*(char **)row->value = arg;
		return true;
	case FLAG:
		*number = 1;
		return true;
	case RAM:
		return parse_ram(arg);
	case WORD:
		return parse_word(row->arg, arg, number);
	}
	*number = 0;
	if (number == &opt.dirty_rate && !strcmp(arg, "max"))
		return true;
	end = parse_number(arg, row->most == SIZE, number);
	return end && !*end && (row->most == SIZE || *number <= (uint64_t)row->most) &&
	       (*number || number == &opt.zero_percent);
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
	if (key >= FIRST_KEY && key < FIRST_KEY + (int)ROWS) {
		if (!parse_value(&rows[key - FIRST_KEY], arg))
			argp_error(state, "%s is no value for --%s", arg, rows[key - FIRST_KEY].name);
	} else if (key == ARGP_KEY_ARG) {
		argp_error(state, "it takes options only, not %s", arg);
	} else if (key == ARGP_KEY_END) {
		if (opt.adopt && (!opt.incoming || opt.ram_file))
			argp_error(state, "--adopt goes with --incoming, and without --ram-file");
		if (opt.incoming && !opt.port)
			argp_error(state, "--incoming needs --port PATH");
		if (opt.load && (!opt.ram_file || opt.incoming))
			argp_error(state, "--load needs the --ram-file of the guest, and no --incoming");
	} else {
		return ARGP_ERR_UNKNOWN;
	}
	return 0;
}

struct options options_parse(int argc, char **argv)
{
	struct argp_option options[ROWS + 1] = { 0 };
	const struct argp argp = { .options = options, .parser = parse, .doc =
		"A small VMM that can be migrated: its guest writes memory and checks what it wrote.\v"
		"Once a second and at SIGUSR2 it prints the work done, and how long a vCPU stood still. "
		"SIGUSR1 checks all of RAM, SIGTERM checks it and ends. Exit status 0: all was well. "
		"A guest that arrives brings its working set, fill, rate, share and pattern along." };
	uint64_t given, i;

	for (i = 0; i < ROWS; i++)
		options[i] = (struct argp_option){ .name = rows[i].name, .key = FIRST_KEY + (int)i,
						   .arg = rows[i].arg, .doc = rows[i].help };
	argp_err_exit_status = 2;
	argp_parse(&argp, argc, argv, 0, NULL, NULL);
	for (given = opt.working_set, i = 0; !given && i < opt.blocks; i++)
		opt.working_set += opt.ram[i] / 4 / PAYLOAD_PAGE * PAYLOAD_PAGE;
	return opt;
}
