/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_AGENT_WORKER_H
#define FERRY_AGENT_WORKER_H

#include <sys/types.h>

#include "agent/report.h"
#include "engine/job.h"

/*
 * The process that does the migration. It tells its guardian, over a
 * SOCK_SEQPACKET pair, which descriptors to keep ("hold NAME" with the
 * descriptor attached), which no longer ("drop NAME") and how it ended ("done EXIT-CODE").
 */
#define FERRY_WORKER_MAX_HELD 16
#define FERRY_WORKER_NAME 16

struct ferry_worker_held {
	char name[FERRY_WORKER_NAME];
	int fd;
};

struct ferry_worker_params {
	struct ferry_record record; /* moved in */
	struct ferry_job_options options;
	struct ferry_report report;
	char **command; /* cpr: what starts the new VMM, or NULL */
	bool recover; /* go on from the record of another worker */
	int sock;     /* to the guardian */
	int lock_fd;
	pid_t guardian;
	struct ferry_worker_held held[FERRY_WORKER_MAX_HELD];
	unsigned int held_count;
};

/** ferry_worker_main() - run the migration to its end. Return: the exit code. */
int ferry_worker_main(struct ferry_worker_params *params);

#endif
