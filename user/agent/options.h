/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_AGENT_OPTIONS_H
#define FERRY_AGENT_OPTIONS_H

#include <stdbool.h>

#include "base/error.h"
#include "engine/job.h"

/* Which options a command takes; every command takes those of FERRY_TAKES_ALL. */
#define FERRY_TAKES_SEND (1u << 0)
#define FERRY_TAKES_FORCE (1u << 1)
#define FERRY_TAKES_FAULT_POINTS (1u << 2)
#define FERRY_TAKES_SAVE (1u << 3)
#define FERRY_TAKES_RESTORE (1u << 4)
#define FERRY_TAKES_INSPECT (1u << 5)
#define FERRY_TAKES_CPR (1u << 6)
#define FERRY_TAKES_ALL (1u << 31)

#define FERRY_MAX_OPERANDS 4

/* The words of a command line after the command's name. */
struct ferry_args {
	const char *operands[FERRY_MAX_OPERANDS];
	int count;
	struct ferry_job_options job;
	const char *id;
	const char *to;	 /* cpr */
	char **command;	 /* cpr: the words after --, ended by NULL */
	bool exec;
	bool timeout; /* it was given */
	bool json;
	bool quiet;
	bool force_source;
	bool force_destination;
	bool fault_points;
	bool help;
};

/**
 * ferry_options_parse() - sort @argv into options and operands
 * @takes: FERRY_TAKES_...; any other option is an error that says so
 *
 * Return: 0; -EINVAL with what to type.
 */
int ferry_options_parse(const char *command, unsigned int takes, int argc, char **argv,
			struct ferry_args *args, struct ferry_error *err);

/** ferry_args_answer_ms() - what is asked of a process of this host may take; 0: none was given. */
static inline unsigned int ferry_args_answer_ms(const struct ferry_args *args)
{
	return args->timeout ? args->job.timeout_ms : 0;
}

/** ferry_options_print() - one line an option that @takes allows. */
void ferry_options_print(unsigned int takes);

#endif
