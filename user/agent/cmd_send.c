// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "agent/command.h"
#include "agent/guardian.h"
#include "agent/start.h"
#include "base/log.h"

int ferry_command_send(const struct ferry_args *args)
{
	struct ferry_worker_params params = { .options = args->job };
	int r = ferry_start_new(args, FERRY_ROLE_SOURCE, &params);

	if (r)
		return r;
	params.record.keep_source = args->job.keep_source;
	params.record.codec = args->job.codec;
	params.record.checksum = args->job.checksum;
	params.record.release_ram = args->job.release_ram;
	params.record.max_bandwidth = args->job.max_bandwidth;
	memcpy(params.record.spill_dir, args->job.spill_dir, sizeof(params.record.spill_dir));
	params.record.epoch = 1;
	if (ferry_uuid_make(params.record.uuid)) {
		ferry_log_error("no random numbers for the migration's uuid");
		return FERRY_EXIT_FAILED;
	}
	return ferry_guardian_run(&params);
}
