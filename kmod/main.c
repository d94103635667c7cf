// SPDX-License-Identifier: GPL-2.0-only
/*
 * The module's entry and exit. What user space gets is in <linux/ferry.h>; how it works is
 * said on top of tracker.c (files), view.c (faults), pass.c and protect.c (cleaning).
 *
 * The module cannot be unloaded while a tracker, a view or a bitmap's mapping exists: each
 * holds a file whose operations are here.
 */
#include <linux/init.h>
#include <linux/module.h>

#include "dev.h"
#include "event.h"
#include "protect.h"

#define CREATE_TRACE_POINTS
#include "trace.h"

static int __init ferry_init(void)
{
	int err;

	err = ferry_protect_init();
	if (err)
		return err;
	err = ferry_event_init();
	if (err)
		goto err_protect;
	/* Last: from here on there may be trackers. */
	err = ferry_dev_init();
	if (err)
		goto err_event;
	return 0;

err_event:
	ferry_event_exit();
err_protect:
	ferry_protect_exit();
	return err;
}

static void __exit ferry_exit(void)
{
	ferry_dev_exit();
	ferry_event_exit();
	ferry_protect_exit();
}

module_init(ferry_init);
module_exit(ferry_exit);

MODULE_DESCRIPTION("which pages of a memfd were written, by whomever");
MODULE_LICENSE("GPL");
