/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_DIRTY_KMOD_H
#define FERRY_DIRTY_KMOD_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "ram/bitmap.h"

struct ferry_extent;

/** ferry_kmod_is_tracker() - is that descriptor a tracker of the kernel module? */
bool ferry_kmod_is_tracker(int fd);

/**
 * ferry_kmod_open_failed() - why /dev/ferry does not open, and what to do
 * @errnum: positive errno of open(2)
 *
 * Return: -@errnum.
 */
int ferry_kmod_open_failed(int errnum, struct ferry_error *err);

/**
 * ferry_kmod_mark() - OR what a scan returned into a bitmap. Pure.
 * @first_page: page of the file that is page 0 of @block
 * @from: the page of the file the scan began at
 * @to: and the one before which it ended
 *
 * Return: 0; -EIO when an extent is empty, out of that range or out of order.
 */
int ferry_kmod_mark(struct ferry_bitmap *pages, unsigned int block, uint64_t first_page,
		    uint64_t from, uint64_t to, const struct ferry_extent *extents,
		    unsigned int count);

#endif
