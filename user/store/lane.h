/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_STORE_LANE_H
#define FERRY_STORE_LANE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"

/*
 * One channel's way into a file: buffers of an extent each, filled by the caller, and writes
 * out of them, or out of memory of the caller's. Plain ones are done when they return. Direct
 * ones pass the page cache by: they are queued on an io_uring of the lane's own, several at a
 * time, and are known to be done after a flush only. One thread uses a lane.
 */
struct ferry_store_lane;

/**
 * ferry_store_lane_create() - a lane into @fd
 * @direct: @fd was opened with O_DIRECT
 *
 * Return: 0; -ENOMEM; -EPERM, -ENOSYS and the like when there is no io_uring here.
 */
int ferry_store_lane_create(int fd, bool direct, struct ferry_store_lane **out,
			    struct ferry_error *err);

/** ferry_store_lane_buffer() - a free one, page-aligned. May wait. Return: 0 or a write's error. */
int ferry_store_lane_buffer(struct ferry_store_lane *lane, uint8_t **buf);

/**
 * ferry_store_lane_write() - some pages of the buffer handed out last, or of other memory, to @off
 * @from: page-aligned; other memory stays as it is until the next flush
 *
 * Return: 0, -errno of any write.
 */
int ferry_store_lane_write(struct ferry_store_lane *lane, const uint8_t *from, size_t len,
			   off_t off);

/** ferry_store_lane_flush() - until all that was written is in the file. Return: 0 or -errno. */
int ferry_store_lane_flush(struct ferry_store_lane *lane);

/** ferry_store_lane_free() - waits for what is under way; NULL is fine. */
void ferry_store_lane_free(struct ferry_store_lane *lane);

#endif
