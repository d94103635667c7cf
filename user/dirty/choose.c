// SPDX-License-Identifier: GPL-2.0-or-later
#include "dirty/dirty.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

/*
 * In the order "auto" asks them: first what sees every writer, then the VMM's own log,
 * cheapest for what vCPUs write, where the VMM promises that it is complete.
 */
static const struct {
	const char *name;
	const struct ferry_dirty_ops *ops;
} trackers[] = {
	{ "kmod", &ferry_dirty_kmod },
	{ "port", &ferry_dirty_port },
	{ "pagemap", &ferry_dirty_pagemap },
	{ "softdirty", &ferry_dirty_softdirty },
};

#define TRACKERS (sizeof(trackers) / sizeof(trackers[0]))

/* So that several reasons fit into one error. */
#define REASON_CHARS 300

/* Does it see all who write this guest's RAM? Each asks by itself for what is its own. */
static int supported(const struct ferry_dirty_ops *ops, const struct ferry_dirty_target *target,
		     struct ferry_error *err)
{
	if (target->log && target->log->members && !ops->sees_other_processes &&
	    ops != &ferry_dirty_port)
		return ferry_error_set(err, EOPNOTSUPP, "%u further processes have registered with "
				       "the VMM, and it sees what the VMM's own writes: load the "
				       "kernel module (ferry.ko)", target->log->members);
	return ops->supported(target, err);
}

static int choose_auto(const struct ferry_dirty_target *target,
		       const struct ferry_dirty_ops **ops, struct ferry_error *err)
{
	char reasons[sizeof(err->text)] = "";
	struct ferry_error why;
	size_t i, len = 0;

	for (i = 0; i < TRACKERS; i++) {
		memset(&why, 0, sizeof(why));
		if (!supported(trackers[i].ops, target, &why)) {
			*ops = trackers[i].ops;
			return 0;
		}
		snprintf(reasons + len, sizeof(reasons) - len, "%s%s: %.*s", len ? "; " : "",
			 trackers[i].name, REASON_CHARS, why.text);
		len = strlen(reasons);
	}
	return ferry_error_set(err, EOPNOTSUPP,
			       "no dirty tracker works for this guest, use --tracker none to stop it while it is copied (%s)",
			       reasons);
}

int ferry_dirty_choose(const char *name, const struct ferry_dirty_target *target,
		       const struct ferry_dirty_ops **ops, struct ferry_error *err)
{
	size_t i;
	int ret;

	*ops = NULL;
	if (!strcmp(name, "none"))
		return 0;
	if (!strcmp(name, "auto"))
		return choose_auto(target, ops, err);
	for (i = 0; i < TRACKERS; i++) {
		if (strcmp(name, trackers[i].name))
			continue;
		ret = supported(trackers[i].ops, target, err);
		if (ret) {
			ferry_error_prefix(err, "dirty tracker %s does not work here", name);
			return -EOPNOTSUPP;
		}
		*ops = trackers[i].ops;
		return 0;
	}
	return ferry_error_set(err, EINVAL,
			       "there is no dirty tracker \"%s\": use auto, kmod, pagemap, softdirty, port or none",
			       name);
}
