/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_ENGINE_STATE_H
#define FERRY_ENGINE_STATE_H

#include <stdbool.h>
#include <stdio.h>

/*
 * The published state of one side of a migration. Names are QEMU's, plus
 * commit-unknown (source) and commit-wait (destination). Which state may follow
 * which is a table in state.c, the same table that selftests/model checks.
 */
enum ferry_role {
	FERRY_ROLE_SOURCE,
	FERRY_ROLE_DESTINATION,
	FERRY_ROLE_CPR, /* both sides at once: a hand-over between two VMMs of this host */
	FERRY_ROLE_COUNT,
};

enum ferry_state {
	FERRY_STATE_NONE,
	FERRY_STATE_SETUP,
	FERRY_STATE_ACTIVE,
	FERRY_STATE_PRE_SWITCHOVER,
	FERRY_STATE_DEVICE,
	FERRY_STATE_POSTCOPY_DEVICE,
	FERRY_STATE_POSTCOPY_ACTIVE,
	FERRY_STATE_POSTCOPY_PAUSED,
	FERRY_STATE_POSTCOPY_RECOVER_SETUP,
	FERRY_STATE_POSTCOPY_RECOVER,
	FERRY_STATE_COMMIT_UNKNOWN,
	FERRY_STATE_COMMIT_WAIT,
	FERRY_STATE_COMPLETED,
	FERRY_STATE_FAILED,
	FERRY_STATE_CANCELLING,
	FERRY_STATE_CANCELLED,
	FERRY_STATE_COUNT,
};

/** ferry_state_name() - Return: "postcopy-active" and the like; never NULL. */
const char *ferry_state_name(enum ferry_state state);

/** ferry_state_parse() - Return: the state of that name, or -EINVAL. */
int ferry_state_parse(const char *name);

/** ferry_role_name() - Return: "source", "destination" or "cpr". */
const char *ferry_role_name(enum ferry_role role);

/** ferry_role_parse() - Return: the role of that name, or -EINVAL. */
int ferry_role_parse(const char *name);

/** ferry_state_legal() - may @role go from @from to @to? */
bool ferry_state_legal(enum ferry_role role, enum ferry_state from, enum ferry_state to);

/** ferry_state_final() - has a migration in this state ended for good? */
bool ferry_state_final(enum ferry_state state);

/** ferry_state_print_table() - one line "ROLE FROM TO" for each legal transition. */
void ferry_state_print_table(FILE *out);

/**
 * ferry_state_move() - change a published state by compare-and-swap
 * @state: where it is published
 * @role: whose table applies
 * @from: what it must be now
 * @to: what it becomes
 *
 * Context: any thread; by convention only the migration thread calls it.
 * Return: 0, -EBUSY if the state is not @from, -EPERM if the table forbids it.
 */
int ferry_state_move(enum ferry_state *state, enum ferry_role role, enum ferry_state from,
		     enum ferry_state to);

#endif
