// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/state.h"

#include <assert.h>
#include <errno.h>
#include <stddef.h>
#include <string.h>

static const char *const state_names[] = {
	[FERRY_STATE_NONE] = "none",
	[FERRY_STATE_SETUP] = "setup",
	[FERRY_STATE_ACTIVE] = "active",
	[FERRY_STATE_PRE_SWITCHOVER] = "pre-switchover",
	[FERRY_STATE_DEVICE] = "device",
	[FERRY_STATE_POSTCOPY_DEVICE] = "postcopy-device",
	[FERRY_STATE_POSTCOPY_ACTIVE] = "postcopy-active",
	[FERRY_STATE_POSTCOPY_PAUSED] = "postcopy-paused",
	[FERRY_STATE_POSTCOPY_RECOVER_SETUP] = "postcopy-recover-setup",
	[FERRY_STATE_POSTCOPY_RECOVER] = "postcopy-recover",
	[FERRY_STATE_COMMIT_UNKNOWN] = "commit-unknown",
	[FERRY_STATE_COMMIT_WAIT] = "commit-wait",
	[FERRY_STATE_COMPLETED] = "completed",
	[FERRY_STATE_FAILED] = "failed",
	[FERRY_STATE_CANCELLING] = "cancelling",
	[FERRY_STATE_CANCELLED] = "cancelled",
};
static_assert(sizeof(state_names) / sizeof(state_names[0]) == FERRY_STATE_COUNT,
	      "every state has a name");

static const char *const role_names[] = {
	[FERRY_ROLE_SOURCE] = "source",
	[FERRY_ROLE_DESTINATION] = "destination",
	[FERRY_ROLE_CPR] = "cpr",
};
static_assert(sizeof(role_names) / sizeof(role_names[0]) == FERRY_ROLE_COUNT,
	      "every role has a name");

/*
 * The legal transitions, a bit for each successor. selftests/model/tables.sh
 * compares this table, as printed by ferry_state_print_table(), with the moves
 * the spin model makes.
 */
#define TO(s) (1u << FERRY_STATE_##s)

static const unsigned int state_next[FERRY_ROLE_COUNT][FERRY_STATE_COUNT] = {
	[FERRY_ROLE_SOURCE] = {
		[FERRY_STATE_NONE] = TO(SETUP),
		[FERRY_STATE_SETUP] = TO(ACTIVE) | TO(CANCELLING) | TO(FAILED),
		[FERRY_STATE_ACTIVE] = TO(PRE_SWITCHOVER) | TO(DEVICE) | TO(POSTCOPY_DEVICE) |
				       TO(CANCELLING) | TO(FAILED),
		[FERRY_STATE_PRE_SWITCHOVER] = TO(DEVICE) | TO(POSTCOPY_DEVICE) | TO(CANCELLING) |
					       TO(FAILED),
		/* REFUSED and ABORTED lead to failed, a lost link after COMMIT to commit-unknown. */
		[FERRY_STATE_DEVICE] = TO(COMPLETED) | TO(COMMIT_UNKNOWN) | TO(CANCELLING) |
				       TO(FAILED),
		[FERRY_STATE_POSTCOPY_DEVICE] = TO(POSTCOPY_ACTIVE) | TO(COMPLETED) |
						TO(COMMIT_UNKNOWN) | TO(CANCELLING) | TO(FAILED),
		[FERRY_STATE_POSTCOPY_ACTIVE] = TO(POSTCOPY_PAUSED) | TO(COMPLETED),
		[FERRY_STATE_POSTCOPY_PAUSED] = TO(POSTCOPY_RECOVER_SETUP),
		[FERRY_STATE_POSTCOPY_RECOVER_SETUP] = TO(POSTCOPY_RECOVER) | TO(POSTCOPY_PAUSED),
		[FERRY_STATE_POSTCOPY_RECOVER] = TO(POSTCOPY_ACTIVE) | TO(POSTCOPY_PAUSED),
		/* The answers ran, refused; or a person's forced resume of the source. */
		[FERRY_STATE_COMMIT_UNKNOWN] = TO(COMPLETED) | TO(POSTCOPY_ACTIVE) | TO(FAILED),
		[FERRY_STATE_CANCELLING] = TO(CANCELLED) | TO(FAILED),
	},
	[FERRY_ROLE_DESTINATION] = {
		[FERRY_STATE_NONE] = TO(SETUP),
		[FERRY_STATE_SETUP] = TO(ACTIVE) | TO(CANCELLING) | TO(FAILED),
		[FERRY_STATE_ACTIVE] = TO(DEVICE) | TO(POSTCOPY_DEVICE) | TO(CANCELLING) |
				       TO(FAILED),
		[FERRY_STATE_DEVICE] = TO(COMMIT_WAIT) | TO(CANCELLING) | TO(FAILED),
		[FERRY_STATE_POSTCOPY_DEVICE] = TO(COMMIT_WAIT) | TO(CANCELLING) | TO(FAILED),
		/* failed: REFUSED, or ABORT from the source; cancelling: a person's ABORTED. */
		[FERRY_STATE_COMMIT_WAIT] = TO(COMPLETED) | TO(POSTCOPY_ACTIVE) | TO(CANCELLING) |
					    TO(FAILED),
		[FERRY_STATE_POSTCOPY_ACTIVE] = TO(POSTCOPY_PAUSED) | TO(COMPLETED),
		[FERRY_STATE_POSTCOPY_PAUSED] = TO(POSTCOPY_RECOVER_SETUP),
		[FERRY_STATE_POSTCOPY_RECOVER_SETUP] = TO(POSTCOPY_RECOVER) | TO(POSTCOPY_PAUSED),
		[FERRY_STATE_POSTCOPY_RECOVER] = TO(POSTCOPY_ACTIVE) | TO(POSTCOPY_PAUSED),
		[FERRY_STATE_CANCELLING] = TO(CANCELLED) | TO(FAILED),
	},
	[FERRY_ROLE_CPR] = {
		[FERRY_STATE_NONE] = TO(SETUP),
		[FERRY_STATE_SETUP] = TO(ACTIVE) | TO(CANCELLING) | TO(FAILED),
		[FERRY_STATE_ACTIVE] = TO(DEVICE) | TO(CANCELLING) | TO(FAILED),
		/* failed, after COMMIT: the new VMM certainly could not start the guest. */
		[FERRY_STATE_DEVICE] = TO(COMPLETED) | TO(COMMIT_UNKNOWN) | TO(CANCELLING) |
				       TO(FAILED),
		/* A worker that takes over; or a person's forced resume in the old VMM. */
		[FERRY_STATE_COMMIT_UNKNOWN] = TO(COMPLETED) | TO(FAILED),
		[FERRY_STATE_CANCELLING] = TO(CANCELLED) | TO(FAILED),
	},
};

const char *ferry_state_name(enum ferry_state state)
{
	return state < FERRY_STATE_COUNT ? state_names[state] : "invalid";
}

int ferry_state_parse(const char *name)
{
	int i;

	for (i = 0; i < FERRY_STATE_COUNT; i++)
		if (!strcmp(name, state_names[i]))
			return i;
	return -EINVAL;
}

const char *ferry_role_name(enum ferry_role role)
{
	return role < FERRY_ROLE_COUNT ? role_names[role] : "invalid";
}

int ferry_role_parse(const char *name)
{
	int i;

	for (i = 0; i < FERRY_ROLE_COUNT; i++)
		if (!strcmp(name, role_names[i]))
			return i;
	return -EINVAL;
}

bool ferry_state_legal(enum ferry_role role, enum ferry_state from, enum ferry_state to)
{
	if (role >= FERRY_ROLE_COUNT || from >= FERRY_STATE_COUNT || to >= FERRY_STATE_COUNT)
		return false;
	return state_next[role][from] & (1u << to);
}

bool ferry_state_final(enum ferry_state state)
{
	return state == FERRY_STATE_COMPLETED || state == FERRY_STATE_FAILED ||
	       state == FERRY_STATE_CANCELLED;
}

void ferry_state_print_table(FILE *out)
{
	unsigned int role, from, to;

	for (role = 0; role < FERRY_ROLE_COUNT; role++)
		for (from = 0; from < FERRY_STATE_COUNT; from++)
			for (to = 0; to < FERRY_STATE_COUNT; to++)
				if (state_next[role][from] & (1u << to))
					fprintf(out, "%s %s %s\n", role_names[role],
						state_names[from], state_names[to]);
}

int ferry_state_move(enum ferry_state *state, enum ferry_role role, enum ferry_state from,
		     enum ferry_state to)
{
	enum ferry_state expected = from;

	if (!ferry_state_legal(role, from, to))
		return -EPERM;
	/* Release: what led to the state is visible to whoever reads it (acquire in readers). */
	if (!__atomic_compare_exchange_n(state, &expected, to, false, __ATOMIC_ACQ_REL,
					 __ATOMIC_ACQUIRE))
		return -EBUSY;
	return 0;
}
