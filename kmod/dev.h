/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef FERRY_DEV_H
#define FERRY_DEV_H

struct file;
struct ferry_tracker;

/**
 * struct ferry_call - one ioctl under way
 * @file: what it was called on
 * @tracker: whose file that is, or NULL for /dev/ferry
 * @arg: the command's struct, whole, as far as the caller knows it and zero beyond; out_
 *	 fields reach the caller when the handler returns 0
 * @new_fd: a descriptor that the handler reserved, and
 * @new_file: the file to put there once the caller was told, or NULL
 */
struct ferry_call {
	struct file *file;
	struct ferry_tracker *tracker;
	void *arg;
	int new_fd;
	struct file *new_file;
};

long ferry_dev_tracker_ioctl(struct file *file, unsigned int cmd, unsigned long arg);
int ferry_dev_init(void);
void ferry_dev_exit(void);

#endif
