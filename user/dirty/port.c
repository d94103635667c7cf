// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Tracker by the VMM's own dirty log (KVM's, or its ring), asked for through its port.
 *
 * For what vCPUs write nothing is cheaper. What else writes guest RAM has to be in that
 * log, or be known not to be:
 *
 *	the VMM's threads (emulated devices)	the VMM promises it, or we refuse
 *	registered further processes		the same
 *	direct I/O				not needed: the engine keeps suspects for it
 *	strangers				check() refused them
 */
#include "dirty/dirty.h"

#include <errno.h>
#include <stdlib.h>

struct port_tracker {
	struct ferry_dirty base;
	const struct ferry_dirty_log *log;
};

static int port_supported(const struct ferry_dirty_target *target, struct ferry_error *err)
{
	const struct ferry_dirty_log *log = target->log;

	if (!log)
		return ferry_error_set(err, EOPNOTSUPP, "only VMMs that link libferry (port:) can "
				       "offer their own dirty log");
	if (!log->offered)
		return ferry_error_set(err, EOPNOTSUPP, "this VMM offers no dirty log (dirty_start, "
				       "dirty_stop, dirty_sync of struct ferry_port_ops)");
	if (!log->sees_process)
		return ferry_error_set(err, EOPNOTSUPP, "this VMM's dirty log has only what its vCPUs "
				       "write, not its devices (FERRY_PORT_LOG_PROCESS says "
				       "otherwise)");
	if (log->members && !log->sees_members)
		return ferry_error_set(err, EOPNOTSUPP, "%u further processes have registered with "
				       "the VMM, and its dirty log has not what they write "
				       "(FERRY_PORT_LOG_MEMBERS says otherwise)", log->members);
	return 0;
}

static int port_start(const struct ferry_dirty_target *target, struct ferry_dirty **out,
		      struct ferry_error *err)
{
	struct port_tracker *t = calloc(1, sizeof(*t));
	int r;

	if (!t)
		return ferry_error_set(err, ENOMEM, "no memory for a tracker");
	t->base.ops = &ferry_dirty_port;
	t->log = target->log;
	r = t->log->start(t->log->ctx, target->ram, err);
	if (r) {
		free(t);
		return r;
	}
	*out = &t->base;
	return 0;
}

static int port_collect(struct ferry_dirty *dirty, struct ferry_bitmap *pages,
			struct ferry_error *err)
{
	struct port_tracker *t = (struct port_tracker *)dirty;

	return t->log->collect(t->log->ctx, pages, err);
}

static void port_stop(struct ferry_dirty *dirty)
{
	struct port_tracker *t = (struct port_tracker *)dirty;

	t->log->stop(t->log->ctx);
	free(t);
}

const struct ferry_dirty_ops ferry_dirty_port = {
	.name = "port",
	.supported = port_supported,
	.start = port_start,
	.collect = port_collect,
	.stop = port_stop,
};
