/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_AGENT_TASK_H
#define FERRY_AGENT_TASK_H

#include <stdint.h>

#include "agent/options.h"

/**
 * ferry_task_request() - have the process of an id carry out a task, and wait for its end
 * @args: the first operand is the id
 * @command: "spill" or "fill"
 * @pages: how many were written or taken in
 *
 * Return: 0; -ECONNREFUSED no process serves the id; -EREMOTEIO it failed, with the reason.
 */
int ferry_task_request(const struct ferry_args *args, const char *command, const char *path,
		       uint64_t *pages, struct ferry_error *err);

/** ferry_task_print() - that it has ended, for --json. */
void ferry_task_print(const char *id, const char *event, const char *path, uint64_t pages);

#endif
