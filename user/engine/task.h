/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_ENGINE_TASK_H
#define FERRY_ENGINE_TASK_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

/*
 * Something that a person asks a paused migration to do, that takes a while, and whose end he
 * waits for: to spill pages to a file (source), to take them in from one (destination). One
 * at a time; carried out by the migration thread.
 */
enum ferry_task_state {
	FERRY_TASK_NONE,
	FERRY_TASK_ASKED,
	FERRY_TASK_RUNS,
	FERRY_TASK_DONE,
	FERRY_TASK_FAILED,
	FERRY_TASK_STATES,
};

#define FERRY_TASK_PATH 512

/* Part of the job, under its lock. */
struct ferry_task {
	enum ferry_task_state state;
	char path[FERRY_TASK_PATH];
	uint64_t pages; /* written or taken in */
	struct ferry_error err;
};

struct ferry_job;

const char *ferry_task_state_name(enum ferry_task_state state);

/**
 * ferry_task_ask() - any thread; at the source this cuts the link, as ferry_job_pause() does
 *
 * Return: 0; -EINVAL not in a state for it, a path too long; -EBUSY another one is under way.
 */
int ferry_task_ask(struct ferry_job *job, const char *path, struct ferry_error *err);

/** ferry_task_take() - the migration thread: is one asked for? It runs from here on. */
bool ferry_task_take(struct ferry_job *job, char path[FERRY_TASK_PATH]);

/** ferry_task_end() - @err NULL: it is done. */
void ferry_task_end(struct ferry_job *job, uint64_t pages, const struct ferry_error *err);

/** ferry_task_now() - a copy. */
void ferry_task_now(struct ferry_job *job, struct ferry_task *task);

#endif
