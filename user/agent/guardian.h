/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_AGENT_GUARDIAN_H
#define FERRY_AGENT_GUARDIAN_H

#include "agent/worker.h"

/**
 * ferry_guardian_run() - start a worker and see to it that nothing is left half done
 *
 * The calling process becomes the guardian until the migration has ended or needs a person.
 * @params: sock, guardian are filled here; lock_fd is held already
 *
 * Return: the exit code.
 */
int ferry_guardian_run(struct ferry_worker_params *params);

/**
 * ferry_guardian_adopt() - the hidden command a worker starts when its guardian has died
 * @args: ID STYLE SOCK LOCK WORKER NAME=FD...
 *
 * Return: the exit code.
 */
int ferry_guardian_adopt(int count, char **args);

#endif
