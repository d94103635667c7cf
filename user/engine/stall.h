/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_ENGINE_STALL_H
#define FERRY_ENGINE_STALL_H

#include "base/error.h"
#include "engine/converge.h"
#include "engine/copy.h"

/* What is done about a migration that gets nowhere: the policy of --on-stall. */

/**
 * ferry_stall_check() - can the policy asked for be carried out at all? Changes nothing.
 *
 * Return: 0; -EOPNOTSUPP with what to do instead.
 */
int ferry_stall_check(struct ferry_copy *copy, struct ferry_error *err);

/**
 * ferry_stall_act() - a round has been judged and does not end it: act, and say so
 *
 * Return: 0 go on; -ETIME the policy is to give up, with the reason.
 */
int ferry_stall_act(struct ferry_copy *copy, const struct ferry_converge_verdict *v,
		    struct ferry_error *err);

/** ferry_stall_lift() - give the guest all of its time back. Safe to repeat; never fails. */
void ferry_stall_lift(struct ferry_copy *copy);

/**
 * ferry_stall_explain() - what a stall comes from
 * @dirty_bytes_per_s: how fast the guest writes
 * @sent_bytes_per_s: how fast its memory goes
 */
void ferry_stall_explain(const struct ferry_converge_verdict *v, uint32_t downtime_limit_ms,
			 uint64_t dirty_bytes_per_s, uint64_t sent_bytes_per_s, char *text,
			 size_t room);

#endif
