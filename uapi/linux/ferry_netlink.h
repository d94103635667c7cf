/* SPDX-License-Identifier: GPL-2.0-only WITH Linux-syscall-note */
#ifndef _UAPI_LINUX_FERRY_NETLINK_H
#define _UAPI_LINUX_FERRY_NETLINK_H

/*
 * Generic netlink family "ferry": which trackers exist (dump), and what happens to them
 * (multicast group "events"). Needs CAP_NET_ADMIN in the initial network namespace, the
 * only one it exists in. The bitmap of a tracker is the truth; an event that is lost to a
 * full socket buffer costs time, never a page.
 *
 * Request FERRY_CMD_GET with NLM_F_DUMP: every tracker is one FERRY_CMD_GET reply; without
 * NLM_F_DUMP, FERRY_A_ID names one. Events carry FERRY_CMD_CREATED, _DESTROYED, _WATERMARK
 * or _THROTTLED. A reply or event is flat:
 *
 *	FERRY_A_ID		u64	the tracker, see ferry_track.out_id
 *	FERRY_A_PID		u32	who made it: process (thread group), in the initial namespace
 *	FERRY_A_UID		u32	and user, in the initial namespace
 *	FERRY_A_INODE		u64	inode number of the memfd
 *	FERRY_A_PAGES		u64	its size
 *	FERRY_A_STATE		u32	FERRY_STATE_* of <linux/ferry.h>
 *	FERRY_A_VIEWS		u32	mappings that exist
 *	FERRY_A_DIRTY_PAGES	u64	dirty now
 *	FERRY_A_WATERMARK_PAGES	u64	0: not watched
 *	FERRY_A_MARKED_PAGES	u64	bits set so far
 *	FERRY_A_CLEANED_PAGES	u64	bits cleared so far
 *	FERRY_A_PINNED_PAGES	u64	times a page stayed dirty
 *	FERRY_A_TIME_NS		u64	events only: CLOCK_MONOTONIC when it happened
 *
 *	-EPERM		no CAP_NET_ADMIN
 *	-EINVAL		FERRY_CMD_GET with neither NLM_F_DUMP nor FERRY_A_ID
 *	-ENOENT		there is no tracker FERRY_A_ID
 */

#define FERRY_GENL_NAME		"ferry"
#define FERRY_GENL_VERSION	1
#define FERRY_GENL_EVENTS	"events"

enum ferry_genl_cmd {
	FERRY_CMD_UNSPEC,
	FERRY_CMD_GET,
	FERRY_CMD_CREATED,
	FERRY_CMD_DESTROYED,
	FERRY_CMD_WATERMARK,
	FERRY_CMD_THROTTLED,	/* kept for FERRY_LIMIT; nothing sends it yet */
	__FERRY_CMD_MAX
};
#define FERRY_CMD_MAX (__FERRY_CMD_MAX - 1)

enum ferry_genl_attr {
	FERRY_A_UNSPEC,
	FERRY_A_PAD,
	FERRY_A_ID,
	FERRY_A_PID,
	FERRY_A_UID,
	FERRY_A_INODE,
	FERRY_A_PAGES,
	FERRY_A_STATE,
	FERRY_A_VIEWS,
	FERRY_A_DIRTY_PAGES,
	FERRY_A_WATERMARK_PAGES,
	FERRY_A_MARKED_PAGES,
	FERRY_A_CLEANED_PAGES,
	FERRY_A_PINNED_PAGES,
	FERRY_A_TIME_NS,
	__FERRY_A_MAX
};
#define FERRY_A_MAX (__FERRY_A_MAX - 1)

#endif
