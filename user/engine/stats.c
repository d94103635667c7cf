// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/stats.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

static const char *const mode_names[] = {
	[FERRY_MODE_PRECOPY] = "precopy",
	[FERRY_MODE_POSTCOPY] = "postcopy",
	[FERRY_MODE_HYBRID] = "hybrid",
	[FERRY_MODE_SAVE] = "save",
	[FERRY_MODE_SAVE_LIVE] = "save-live",
	[FERRY_MODE_RESTORE] = "restore",
	[FERRY_MODE_RESTORE_LAZY] = "restore-lazy",
	[FERRY_MODE_CPR] = "cpr",
};
static_assert(sizeof(mode_names) / sizeof(mode_names[0]) == FERRY_MODE_COUNT,
	      "every mode has a name");

const char *ferry_mode_name(enum ferry_mode mode)
{
	return mode < FERRY_MODE_COUNT ? mode_names[mode] : "invalid";
}

int ferry_mode_parse(const char *name)
{
	int i;

	for (i = 0; i < FERRY_MODE_COUNT; i++)
		if (!strcmp(name, mode_names[i]))
			return i;
	return -EINVAL;
}

uint64_t ferry_progress_eta_ns(const struct ferry_progress *p)
{
	if (!p->pages_per_s || p->round_pages <= p->round_done_pages)
		return 0;
	return (uint64_t)((double)(p->round_pages - p->round_done_pages) * 1e9 /
			  (double)p->pages_per_s);
}
