// SPDX-License-Identifier: GPL-2.0-only
/*
 * The module's entry and exit. So far it only proves that the build works against a
 * given kernel: there is no device, no tracker and no netlink family yet, and loading
 * it changes nothing.
 */
#include <linux/init.h>
#include <linux/module.h>

static int __init ferry_init(void)
{
	return 0;
}

static void __exit ferry_exit(void)
{
}

module_init(ferry_init);
module_exit(ferry_exit);

MODULE_DESCRIPTION("ferry dirty page tracking (skeleton: tracks nothing yet)");
MODULE_LICENSE("GPL");
