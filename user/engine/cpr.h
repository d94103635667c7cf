/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_ENGINE_CPR_H
#define FERRY_ENGINE_CPR_H

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "engine/job.h"
#include "fault/keep.h"
#include "guest/guest.h"
#include "ram/ram.h"

/* Private to engine/cpr*.c. The design note is in cpr.c. */
struct ferry_cpr {
	struct ferry_job *job;
	struct ferry_guest *from, *to; /* the VMMs; NULL: not reached */
	struct ferry_ram ram;	       /* as the old VMM has it */
	struct ferry_ram to_ram;       /* and the new one */
	struct ferry_keep *keep;
	int uffd;
	uint64_t *addr; /* where the new VMM maps each block */
	uint8_t *state;
	size_t state_bytes;
};

/* cpr_check.c */

/** ferry_cpr_check_kind() - can its pages be kept? Return: 0 or -EOPNOTSUPP. */
int ferry_cpr_check_kind(const struct ferry_cpr *c, struct ferry_error *err);
/** ferry_cpr_check_ram() - is the new VMM's RAM the guest's own? */
int ferry_cpr_check_ram(const struct ferry_cpr *c, struct ferry_error *err);

/* cpr_exec.c */

/**
 * ferry_cpr_exec() - start job->command with a listening socket, whose guest is record.uri
 *
 * In the record, which knows it before it can do anything. Return: 0 or -errno.
 */
int ferry_cpr_exec(struct ferry_cpr *c, struct ferry_error *err);

/** ferry_cpr_take_name() - put that socket in the place of the old VMM's. */
void ferry_cpr_take_name(struct ferry_job *job);

/* cpr_settle.c */

/** ferry_cpr_settle() - COMMIT is durable: start the guest in the new VMM, end the old. */
void ferry_cpr_settle(struct ferry_cpr *c, struct ferry_outcome *out);

/**
 * ferry_cpr_back() - the one place that gives the guest back to the old VMM
 * @state: FERRY_STATE_FAILED or FERRY_STATE_CANCELLED
 */
void ferry_cpr_back(struct ferry_cpr *c, enum ferry_state state, const struct ferry_error *why,
		    struct ferry_outcome *out);

/**
 * ferry_cpr_undo() - what cpr_back() does, without telling anybody: by the record alone
 * @from: the old VMM if it is open, else NULL
 * @resume: also the run state
 *
 * In this order: the new VMM is ended, the pages it touched are put back, the old VMM
 * resumes. Return: 0; -errno: what comes after the failed step was not done.
 */
int ferry_cpr_undo(struct ferry_job *job, struct ferry_guest *from, bool resume,
		   struct ferry_error *err);

#endif
