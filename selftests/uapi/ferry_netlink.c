// SPDX-License-Identifier: GPL-2.0-or-later
/* <linux/ferry_netlink.h> alone, in C and C++; its names and numbers are frozen. See ferry.c. */
#include <linux/ferry_netlink.h>

#ifndef __cplusplus
#define static_assert _Static_assert
#endif

#define VALUE(name, value) static_assert((name) == (value), #name " changed its value")

VALUE(FERRY_GENL_VERSION, 1);
static_assert(sizeof(FERRY_GENL_NAME) == sizeof("ferry"), "the family's name");
static_assert(sizeof(FERRY_GENL_EVENTS) == sizeof("events"), "the group's name");

VALUE(FERRY_CMD_UNSPEC, 0);
VALUE(FERRY_CMD_GET, 1);
VALUE(FERRY_CMD_CREATED, 2);
VALUE(FERRY_CMD_DESTROYED, 3);
VALUE(FERRY_CMD_WATERMARK, 4);
VALUE(FERRY_CMD_THROTTLED, 5);
VALUE(FERRY_CMD_MAX, 5);

VALUE(FERRY_A_UNSPEC, 0);
VALUE(FERRY_A_PAD, 1);
VALUE(FERRY_A_ID, 2);
VALUE(FERRY_A_PID, 3);
VALUE(FERRY_A_UID, 4);
VALUE(FERRY_A_INODE, 5);
VALUE(FERRY_A_PAGES, 6);
VALUE(FERRY_A_STATE, 7);
VALUE(FERRY_A_VIEWS, 8);
VALUE(FERRY_A_DIRTY_PAGES, 9);
VALUE(FERRY_A_WATERMARK_PAGES, 10);
VALUE(FERRY_A_MARKED_PAGES, 11);
VALUE(FERRY_A_CLEANED_PAGES, 12);
VALUE(FERRY_A_PINNED_PAGES, 13);
VALUE(FERRY_A_TIME_NS, 14);
VALUE(FERRY_A_MAX, 14);
