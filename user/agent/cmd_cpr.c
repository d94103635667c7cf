// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "agent/command.h"
#include "agent/guardian.h"
#include "agent/runtime.h"
#include "agent/start.h"
#include "agent/store.h"
#include "base/log.h"
#include "guest/guest.h"

static int usage(const char *text)
{
	ferry_log_error("%s", text);
	return FERRY_EXIT_USAGE;
}

static int check_arguments(const struct ferry_args *args)
{
	if (args->exec && args->to)
		return usage("ferry cpr takes --to GUEST or --exec, not both");
	if (!args->exec && !args->to)
		return usage("ferry cpr needs the new VMM: --to GUEST if it has been started, or --exec "
			     "-- COMMAND... to start it");
	if (args->exec && (!args->command || !args->command[0]))
		return usage("--exec needs the command of the new VMM: --exec -- COMMAND...");
	if (args->count > 1)
		return usage("ferry cpr takes one GUEST; what starts the new VMM comes after --exec --");
	return 0;
}

int ferry_command_cpr(const struct ferry_args *args)
{
	struct ferry_worker_params params = { .options = args->job, .command = args->command };
	int r = check_arguments(args);

	if (!r)
		r = ferry_start_new(args, FERRY_ROLE_CPR, &params);
	if (r)
		return r;
	if (ferry_uuid_make(params.record.uuid)) {
		ferry_log_error("no random numbers for the migration's uuid");
		return FERRY_EXIT_FAILED;
	}
	return ferry_guardian_run(&params);
}
