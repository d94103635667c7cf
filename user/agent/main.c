// SPDX-License-Identifier: GPL-2.0-or-later
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "agent/command.h"
#include "agent/guardian.h"
#include "agent/nearest.h"
#include "agent/report.h"
#include "agent/runtime.h"
#include "base/log.h"

/* Beside FERRY_TAKES_...: what it prints is all it is for. */
#define COMMAND_TELLS (1u << 30)

struct command {
	const char *name;
	const char *operands;
	int min, max; /* how many operands */
	unsigned int takes;
	const char *help;
	int (*run)(const struct ferry_args *args);
};

static const struct command commands[] = {
	{ "send", "GUEST URI", 2, 2, FERRY_TAKES_SEND, "move a running guest to URI",
	  ferry_command_send },
	{ "recv", "GUEST URI", 2, 2, 0, "take a guest in at URI", ferry_command_recv },
	{ "save", "GUEST FILE", 2, 2, FERRY_TAKES_SAVE, "write a guest to a file; it goes on here",
	  ferry_command_save },
	{ "restore", "GUEST FILE", 2, 2, FERRY_TAKES_RESTORE, "start a guest from such a file",
	  ferry_command_restore },
	{ "inspect", "FILE", 1, 1, FERRY_TAKES_INSPECT | COMMAND_TELLS,
	  "what is in such a file, and is it whole?",
	  ferry_command_inspect },
	{ "cpr", "GUEST", 1, FERRY_MAX_OPERANDS, FERRY_TAKES_CPR,
	  "hand a guest to another VMM of this host: --to GUEST, or --exec -- COMMAND...",
	  ferry_command_cpr },
	{ "list", "", 0, 0, COMMAND_TELLS, "the migrations known here", ferry_command_list },
	{ "status", "[ID]", 0, 1, COMMAND_TELLS, "how one is, or all are", ferry_command_status },
	{ "cancel", "ID", 1, 1, 0, "give up; the guest stays at the source",
	  ferry_command_cancel },
	{ "continue", "ID", 1, 1, 0, "go on from pre-switchover", ferry_command_continue },
	{ "postcopy", "ID", 1, 1, 0, "run the guest at the destination now, its memory follows",
	  ferry_command_postcopy },
	{ "pause", "ID", 1, 1, 0, "postcopy: cut the link until 'recover'", ferry_command_pause },
	{ "spill", "ID FILE", 2, 2, 0, "postcopy: write what the destination lacks to a file",
	  ferry_command_spill },
	{ "set", "ID KEY=VALUE", 2, 2, 0, "max-bandwidth=SIZE, downtime-limit=MS or on-stall=POLICY",
	  ferry_command_set },
	{ "recover", "ID [URI]", 1, 2, 0, "ask the other side what happened, and end it by that",
	  ferry_command_recover },
	{ "resume", "ID", 1, 1, FERRY_TAKES_FORCE, "clean up after all processes died",
	  ferry_command_resume },
	{ "monitor", "", 0, 0, 0, "the kernel module's trackers, and what happens to them",
	  ferry_command_monitor },
	{ "doctor", "", 0, 0, FERRY_TAKES_FAULT_POINTS | COMMAND_TELLS,
	  "what this host can do, and why not", ferry_command_doctor },
};

static void usage(FILE *out)
{
	size_t i;

	fprintf(out, "usage: ferry COMMAND ...\n\n");
	for (i = 0; i < sizeof(commands) / sizeof(commands[0]); i++)
		fprintf(out, "  %-9s %-14s %s\n", commands[i].name, commands[i].operands,
			commands[i].help);
	fprintf(out, "\nGUEST is qmp:PATH, the QMP socket of a running QEMU, or port:PATH, the socket\n"
		     "of a VMM that links libferry.\n"
		     "URI is tcp:HOST:PORT, tcp:[V6]:PORT or unix:PATH.\n"
		     "'ferry COMMAND --help' lists its options; ferry(1) tells the whole story.\n");
}

static void command_usage(FILE *out, const struct command *c)
{
	fprintf(out, "usage: ferry %s %s%s[OPTIONS]\n%s\n", c->name, c->operands,
		c->operands[0] ? " " : "", c->help);
	if (out == stdout)
		ferry_options_print(c->takes);
}

static int run_command(const struct command *c, int argc, char **argv)
{
	struct ferry_error err = { 0 };
	struct ferry_args args;
	int code;

	if (ferry_options_parse(c->name, c->takes, argc, argv, &args, &err)) {
		ferry_log_error("%s", err.text);
		return FERRY_EXIT_USAGE;
	}
	if (args.help) {
		command_usage(stdout, c);
		return FERRY_EXIT_DONE;
	}
	if (args.count < c->min || args.count > c->max) {
		ferry_log_error("ferry %s takes %s", c->name,
				c->operands[0] ? c->operands : "no words after it");
		command_usage(stderr, c);
		return FERRY_EXIT_USAGE;
	}
	/* "ID" or "[ID]" */
	if (args.count && c->operands[strspn(c->operands, "[")] == 'I' &&
	    ferry_runtime_check_id(args.operands[0], &err)) {
		ferry_log_error("%s", err.text);
		return FERRY_EXIT_USAGE;
	}
	code = c->run(&args);
	if ((c->takes & COMMAND_TELLS) && !ferry_report_flush() && code == FERRY_EXIT_DONE) {
		ferry_log_error("ferry %s: not all could be written to standard output", c->name);
		return FERRY_EXIT_FAILED;
	}
	return code;
}

/*
 * Started without a standard stream (">&-"), the next descriptor that is opened would get its
 * number: a lock file, an eventfd, and what is printed would be written into that.
 */
static int open_streams(void)
{
	int fd;

	for (fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
		if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", O_RDWR) != fd)
			return -1;
	return 0;
}

int main(int argc, char **argv)
{
	struct ferry_nearest meant = { 0 };
	size_t i;

	if (open_streams())
		return FERRY_EXIT_FAILED;
	/* A file that may not grow (ulimit -f) is an error like a full disk, not a death. */
	signal(SIGXFSZ, SIG_IGN);
	if (argc < 2) {
		usage(stderr);
		return FERRY_EXIT_USAGE;
	}
	if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h") || !strcmp(argv[1], "help")) {
		usage(stdout);
		return FERRY_EXIT_DONE;
	}
	if (!strcmp(argv[1], "--version")) {
		printf("ferry 0.1\n");
		return FERRY_EXIT_DONE;
	}
	/* Started by a worker whose guardian died, never by a person. */
	if (!strcmp(argv[1], "guardian"))
		return ferry_guardian_adopt(argc - 2, argv + 2);
	for (i = 0; i < sizeof(commands) / sizeof(commands[0]); i++)
		if (!strcmp(argv[1], commands[i].name))
			return run_command(&commands[i], argc - 2, argv + 2);
	meant.word = argv[1];
	meant.length = strlen(argv[1]);
	for (i = 0; i < sizeof(commands) / sizeof(commands[0]); i++)
		ferry_nearest_try(&meant, commands[i].name);
	ferry_log_error("there is no command '%s'%s%s%s; 'ferry --help' lists them", argv[1],
			meant.best ? "; did you mean '" : "", meant.best ? meant.best : "",
			meant.best ? "'?" : "");
	return FERRY_EXIT_USAGE;
}
