/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_ENGINE_FAULT_POINTS_H
#define FERRY_ENGINE_FAULT_POINTS_H

#include <stdio.h>
#include <sys/types.h>

#include "base/error.h"
#include "engine/state.h"

/*
 * Named places where a test can stop, kill, fail or delay a migration:
 * FERRY_FAULT=STAGE:stop|kill|fail|delay=MS, FERRY_FAULT_SIDE=worker|guardian
 * (default worker: the process that passes the point is the one that is hit).
 * Each fault fires once, at the first passage. `ferry doctor --fault-points`
 * prints the stages.
 */

/**
 * ferry_fault_point_init() - read the environment
 * @guardian: pid of the guardian, for FERRY_FAULT_SIDE=guardian
 *
 * Return: 0, or -EINVAL with the text of what is wrong with the variable.
 */
int ferry_fault_point_init(pid_t guardian, struct ferry_error *err);

/**
 * ferry_fault_point() - the migration passes a stage
 * @stage: one of the names of the list
 *
 * Return: 0; -ECANCELED with a text when a test asked this stage to fail.
 */
int ferry_fault_point(const char *stage, struct ferry_error *err);

/** ferry_fault_point_list() - one line a stage: name, role, what has just happened. */
void ferry_fault_point_list(FILE *out);

#endif
