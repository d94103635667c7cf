// SPDX-License-Identifier: GPL-2.0-only
/* The parameter behind broken.h; only in test builds. */
#include <linux/delay.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/string.h>

#include "broken.h"

static const char *const names[] = {
	[FERRY_BROKEN_NONE] = "none",
	[FERRY_BROKEN_NOLOCK] = "nolock",
	[FERRY_BROKEN_NOCLEAN] = "noclean",
	[FERRY_BROKEN_NOPROTECT] = "noprotect",
	[FERRY_BROKEN_LATECLEAR] = "lateclear",
	[FERRY_BROKEN_NOPUTBACK] = "noputback",
	[FERRY_BROKEN_NOPINS] = "nopins",
	[FERRY_BROKEN_PINFIRST] = "pinfirst",
	[FERRY_BROKEN_NOUNEXPLAINED] = "nounexplained",
	[FERRY_BROKEN_NOLARGE] = "nolarge",
	[FERRY_BROKEN_NOSTARTPROTECT] = "nostartprotect",
	[FERRY_BROKEN_NODONTEXPAND] = "nodontexpand",
	[FERRY_BROKEN_NOHUGEPAGE] = "nohugepage",
	[FERRY_BROKEN_UFFD] = "uffd",
	[FERRY_BROKEN_NORANGE] = "norange",
	[FERRY_BROKEN_NOSEAL] = "noseal",
	[FERRY_BROKEN_NOVIEWS] = "noviews",
	[FERRY_BROKEN_NESTED] = "nested",
};

static_assert(ARRAY_SIZE(names) == FERRY_BROKEN_COUNT);

static int broken_now;

bool ferry_broken(enum ferry_broken what)
{
	return READ_ONCE(broken_now) == what;
}

void ferry_broken_widen(enum ferry_broken what)
{
	/* Direct I/O has to begin in it, and comes less often than stores. */
	unsigned long us = what == FERRY_BROKEN_PINFIRST ? 20000 : 1000;

	if (ferry_broken(what))
		usleep_range(us, 2 * us);
}

static int broken_set(const char *value, const struct kernel_param *kp)
{
	int what = sysfs_match_string(names, value);

	if (what < 0)
		return what;
	WRITE_ONCE(broken_now, what);
	return 0;
}

static int broken_get(char *buffer, const struct kernel_param *kp)
{
	return sysfs_emit(buffer, "%s\n", names[READ_ONCE(broken_now)]);
}

static const struct kernel_param_ops broken_ops = {
	.set = broken_set,
	.get = broken_get,
};

module_param_cb(broken, &broken_ops, NULL, 0600);
MODULE_PARM_DESC(broken, "the safety that is removed, for tests; see broken.h");
