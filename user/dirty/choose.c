// SPDX-License-Identifier: GPL-2.0-or-later
#include "dirty/dirty.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

/*
 * In the order "auto" asks them: the most able first. A name without ops is
 * known to the command line but not part of this build.
 */
static const struct {
	const char *name;
	const struct ferry_dirty_ops *ops;
} trackers[] = {
	{ "kmod", NULL },
	{ "pagemap", &ferry_dirty_pagemap },
	{ "softdirty", &ferry_dirty_softdirty },
	{ "port", NULL },
};

#define TRACKERS (sizeof(trackers) / sizeof(trackers[0]))

/* So that several reasons fit into one error. */
#define REASON_CHARS 300

static int choose_auto(const struct ferry_dirty_target *target,
		       const struct ferry_dirty_ops **ops, struct ferry_error *err)
{
	char reasons[sizeof(err->text)] = "";
	struct ferry_error why;
	size_t i, len = 0;

	for (i = 0; i < TRACKERS; i++) {
		if (!trackers[i].ops)
			continue;
		memset(&why, 0, sizeof(why));
		if (!trackers[i].ops->supported(target, &why)) {
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
		if (!trackers[i].ops)
			return ferry_error_set(err, EOPNOTSUPP,
					       "dirty tracker %s is not part of this build: use --tracker auto",
					       name);
		ret = trackers[i].ops->supported(target, err);
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
