/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef MODULE_DIRECT_H
#define MODULE_DIRECT_H

#include <linux/aio_abi.h>
#include <linux/io_uring.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Ways by which a device writes into pages of a process while nobody looks. */
enum direct_way {
	DIRECT_READ,		/* read(2); it returns when all is over */
	DIRECT_AIO,		/* io_submit(2) */
	DIRECT_URING,
	DIRECT_URING_FIXED,	/* into a registered buffer: pinned until the queue ends */
};

#define DISK_FAST "/dev/vda"
#define DISK_SLOW "/dev/vdc"	/* a request every 50 ms */
#define DIRECT_BLOCKS 1024UL	/* of 4 KiB, with words as direct_expect() says */

struct direct {
	enum direct_way way;
	int disk;
	aio_context_t aio;
	int ring;
	struct io_uring_params params;
	char *sq;
	char *cq;
	struct io_uring_sqe *sqes;
};

/* All return 0 or a negative errno. fixed is the buffer of DIRECT_URING_FIXED. */
int direct_make(struct direct *direct, enum direct_way way, const char *disk, void *fixed,
		size_t bytes);
void direct_end(struct direct *direct);
/* Read one block to at. */
int direct_submit(struct direct *direct, char *at, uint64_t block);
/* How many ended since the last call; waits for one if told to. -EIO if one failed. */
int direct_reap(struct direct *direct, bool wait);
/* Fill a disk's blocks, each unlike any other, once. */
int direct_fill(const char *disk);
uint64_t direct_expect(uint64_t block, uint64_t word);

#endif
