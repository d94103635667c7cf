// SPDX-License-Identifier: GPL-2.0-only
/*
 * /dev/ferry, and the table of all commands. A command's struct is copied in and out here,
 * by the rules of the UAPI header: it starts with the size the caller knows, what is beyond
 * our own must be zero, and on an error nothing is written back.
 */
#include <linux/compat.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/stddef.h>
#include <linux/uaccess.h>
#include <linux/ferry.h>

#include "bitmap.h"
#include "dev.h"
#include "event.h"
#include "scan.h"
#include "sync.h"
#include "tracker.h"

/*
 * @min_size is the size of the struct when it was first published and stays when it grows;
 * @out is where its out_ fields begin, which are the rest of it; @flags are those that the
 * command knows.
 */
struct command {
	unsigned int cmd;
	bool on_tracker;
	u32 size;
	u32 min_size;
	u32 out;
	u32 flags;
	int (*run)(struct ferry_call *call);
};

#define COMMAND(_cmd, _on_tracker, _struct, _last, _out, _flags, _run) {		\
	.cmd = _cmd,									\
	.on_tracker = _on_tracker,							\
	.size = sizeof(struct _struct),							\
	.min_size = offsetofend(struct _struct, _last),					\
	.out = _out,									\
	.flags = _flags,								\
	.run = _run,									\
}
#define ON_DEVICE(_cmd, _struct, _last, _out, _run)					\
	COMMAND(_cmd, false, _struct, _last, offsetof(struct _struct, _out), 0, _run)
#define ON_TRACKER(_cmd, _struct, _last, _out, _flags, _run)				\
	COMMAND(_cmd, true, _struct, _last, offsetof(struct _struct, _out), _flags, _run)
/* Of these the caller's struct may be in read-only memory. */
#define ON_TRACKER_NO_OUT(_cmd, _struct, _last, _run)					\
	COMMAND(_cmd, true, _struct, _last, sizeof(struct _struct), 0, _run)

static const struct command commands[] = {
	ON_DEVICE(FERRY_QUERY, ferry_query, out_trackers, out_api_version, ferry_tracker_query),
	ON_DEVICE(FERRY_TRACK, ferry_track, out_pages, out_fd, ferry_tracker_create),
	ON_TRACKER_NO_OUT(FERRY_START, ferry_start, flags, ferry_sync_start),
	ON_TRACKER_NO_OUT(FERRY_STOP, ferry_start, flags, ferry_sync_stop),
	ON_TRACKER(FERRY_SYNC, ferry_pages, out_pages, out_pages, 0, ferry_sync_sync),
	ON_TRACKER(FERRY_GET, ferry_pages, out_pages, out_pages, 0, ferry_sync_get),
	ON_TRACKER(FERRY_CLEAR, ferry_pages, out_pages, out_pages, 0, ferry_sync_clear),
	ON_TRACKER(FERRY_SCAN, ferry_scan, out_pages, out_extents, FERRY_SCAN_CLEAR,
		   ferry_scan_run),
	ON_TRACKER(FERRY_STATS, ferry_tracker_stats, out_watermarks, out_id, 0,
		   ferry_tracker_stats),
	ON_TRACKER_NO_OUT(FERRY_WATCH, ferry_watch, reserved, ferry_event_watch),
	ON_TRACKER(FERRY_BITMAP, ferry_bitmap_fd, out_bytes, out_fd, 0, ferry_bitmap_export),
};

/* Room for any of the structs. */
union argument {
	struct {
		__u32 size;
		__u32 flags;
	};
	struct ferry_query query;
	struct ferry_track track;
	struct ferry_start start;
	struct ferry_pages pages;
	struct ferry_scan scan;
	struct ferry_tracker_stats stats;
	struct ferry_watch watch;
	struct ferry_bitmap_fd bitmap;
};

static const struct command *command_find(unsigned int cmd, bool on_tracker)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(commands); i++)
		if (commands[i].cmd == cmd && commands[i].on_tracker == on_tracker)
			return &commands[i];
	return NULL;
}

/* The new descriptor appears only when the caller has its number. */
static int call_finish(struct ferry_call *call, int err)
{
	if (!call->new_file)
		return err;
	if (err) {
		put_unused_fd(call->new_fd);
		fput(call->new_file);
	} else {
		fd_install(call->new_fd, call->new_file);
	}
	return err;
}

/* Write the out_ fields, as far as the caller knows them. */
static int command_reply(const struct command *command, void __user *user,
			 const union argument *argument, u32 size)
{
	u32 end = min(size, command->size);

	if (command->out >= end)
		return 0;
	return copy_to_user(user + command->out, (const u8 *)argument + command->out,
			    end - command->out) ? -EFAULT : 0;
}

static long command_run(struct ferry_call *call, unsigned int cmd, void __user *user)
{
	const struct command *command = command_find(cmd, call->tracker);
	union argument argument;
	u32 size;
	int err;

	if (!command)
		return -ENOTTY;
	if (get_user(size, (u32 __user *)user))
		return -EFAULT;
	if (size < command->min_size)
		return -EINVAL;
	err = copy_struct_from_user(&argument, command->size, user, size);
	if (err)
		return err;
	if (argument.flags & ~command->flags)
		return -EOPNOTSUPP;

	/* Put back what was read: that the reply cannot be written must be known before. */
	err = command_reply(command, user, &argument, size);
	if (err)
		return err;
	call->arg = &argument;
	err = command->run(call);
	if (!err)
		err = command_reply(command, user, &argument, size);
	return call_finish(call, err);
}

static long device_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	struct ferry_call call = { .file = file };

	return command_run(&call, cmd, (void __user *)arg);
}

/**
 * ferry_dev_tracker_ioctl - a command on a tracker's descriptor
 * @file: the tracker's file
 * @cmd: which command
 * @arg: user address of its struct
 *
 * Context: process context, may sleep.
 * Return: 0 or a negative errno, as the UAPI header says for each command.
 */
long ferry_dev_tracker_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	struct ferry_call call = { .file = file, .tracker = file->private_data };

	return command_run(&call, cmd, (void __user *)arg);
}

static const struct file_operations device_fops = {
	.owner = THIS_MODULE,
	.open = nonseekable_open,
	.unlocked_ioctl = device_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
	.llseek = noop_llseek,
};

static struct miscdevice device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "ferry",
	.fops = &device_fops,
	.mode = 0660,
};

/**
 * ferry_dev_init - make /dev/ferry; user space may call at once
 *
 * Return: 0 or a negative errno.
 */
int __init ferry_dev_init(void)
{
	return misc_register(&device);
}

/** ferry_dev_exit - undo ferry_dev_init() */
void ferry_dev_exit(void)
{
	misc_deregister(&device);
}
