/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_AGENT_TASK_H
#define FERRY_AGENT_TASK_H

#include <stdint.h>

#include "base/error.h"

/**
 * ferry_task_request() - have the process of an id carry out a task, and wait for its end
 * @command: "spill" or "fill"
 * @pages: how many were written or taken in
 *
 * Return: 0; -ECONNREFUSED no process serves the id; -EREMOTEIO it failed, with the reason.
 */
int ferry_task_request(const char *id, const char *command, const char *path, uint64_t *pages,
		       struct ferry_error *err);

#endif
