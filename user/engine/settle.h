/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_ENGINE_SETTLE_H
#define FERRY_ENGINE_SETTLE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "engine/job.h"
#include "engine/link.h"
#include "engine/pager.h"
#include "guest/guest.h"
#include "xport/uri.h"

/*
 * The source after COMMIT, or after it gave up: find out what the destination
 * did, and end the migration by that alone. Used by the worker that made the
 * switchover and by one that takes over from the record.
 */
struct ferry_settle {
	struct ferry_job *job;
	struct ferry_guest *guest;
	struct ferry_link *link; /* NULL: lost; owned */
	struct ferry_uri uri;
	struct ferry_pager *pager; /* postcopy; not owned */
	bool spilled; /* since the link broke */
	uint64_t stopped_ns; /* when the guest was stopped, 0 unknown (another process did) */
};

/**
 * ferry_settle_commit() - COMMIT is durable: RUN, and whatever it takes to know the answer
 * @out: completed; failed, the guest runs here again; or commit-unknown with advice
 */
void ferry_settle_commit(struct ferry_settle *settle, struct ferry_outcome *out);

/** ferry_settle_abort() - COMMIT will never be written: tell the destination if the link lives. */
void ferry_settle_abort(struct ferry_settle *settle, const char *why);

/**
 * ferry_settle_abort_confirm() - make sure that a destination that may wait for RUN knows
 *
 * After the guest has been resumed: takes a new connection if need be. Closes the link.
 * Return: 0 it was told or needs no telling; -errno it may still wait.
 */
int ferry_settle_abort_confirm(struct ferry_settle *settle, const char *why,
			       struct ferry_error *err);

/**
 * ferry_settle_back() - undo at the source, guest resumed; the one place that does it
 * @state: how it ends: FERRY_STATE_FAILED or FERRY_STATE_CANCELLED (the present state must
 *         allow it)
 * @out: where the guest is afterwards, and advice if it could not be resumed
 */
void ferry_settle_back(struct ferry_settle *settle, enum ferry_state state,
		       const struct ferry_error *why, struct ferry_outcome *out);

#endif
