/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_AGENT_START_H
#define FERRY_AGENT_START_H

#include "agent/options.h"
#include "agent/worker.h"

/**
 * ferry_start_new() - check GUEST, URI and the id, take the lock, fill a new record
 *
 * Return: 0, or the exit code after the reason was printed.
 */
int ferry_start_new(const struct ferry_args *args, enum ferry_role role,
		    struct ferry_worker_params *params);

/** ferry_start_file() - the same for GUEST and FILE. */
int ferry_start_file(const struct ferry_args *args, enum ferry_role role,
		     struct ferry_worker_params *params);

#endif
