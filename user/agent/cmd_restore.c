// SPDX-License-Identifier: GPL-2.0-or-later
#include "agent/command.h"
#include "agent/guardian.h"
#include "agent/start.h"

int ferry_command_restore(const struct ferry_args *args)
{
	struct ferry_worker_params params = { .options = args->job };
	int r = ferry_start_file(args, FERRY_ROLE_DESTINATION, &params);

	return r ? r : ferry_guardian_run(&params);
}
