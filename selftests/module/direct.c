// SPDX-License-Identifier: GPL-2.0-or-later
/* Direct I/O by bare system calls: the test programs link nothing. See direct.h. */
#include "direct.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "tracker.h"

enum { ENTRIES = 16 };

uint64_t direct_expect(uint64_t block, uint64_t word)
{
	return (block + 1) * 0x9e3779b97f4a7c15ULL + word;
}

int direct_fill(const char *disk)
{
	int fd = open(disk, O_RDWR | O_CLOEXEC), ret = 0;
	uint64_t *page = malloc(PAGE), first = 0;

	if (fd < 0 || !page)
		ret = -errno;
	if (!ret && pread(fd, &first, sizeof(first), (DIRECT_BLOCKS - 1) * PAGE) !=
		    sizeof(first))
		ret = -EIO;
	for (uint64_t block = 0; !ret && first != direct_expect(DIRECT_BLOCKS - 1, 0) &&
				 block < DIRECT_BLOCKS; block++) {
		for (uint64_t word = 0; word < PAGE / 8; word++)
			page[word] = direct_expect(block, word);
		if (pwrite(fd, page, PAGE, (off_t)(block * PAGE)) != (ssize_t)PAGE)
			ret = -EIO;
	}
	if (!ret && fsync(fd))
		ret = -errno;
	free(page);
	if (fd >= 0)
		close(fd);
	return ret;
}

static int uring_make(struct direct *d, void *fixed, size_t bytes)
{
	struct iovec buffer = { fixed, bytes };

	d->ring = (int)syscall(SYS_io_uring_setup, ENTRIES, &d->params);
	if (d->ring < 0)
		return -errno;
	d->sq = mmap(NULL, d->params.sq_off.array + ENTRIES * sizeof(unsigned int),
		     PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, d->ring, IORING_OFF_SQ_RING);
	d->cq = mmap(NULL, d->params.cq_off.cqes +
		     d->params.cq_entries * sizeof(struct io_uring_cqe),
		     PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, d->ring, IORING_OFF_CQ_RING);
	d->sqes = mmap(NULL, ENTRIES * sizeof(struct io_uring_sqe),
		       PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, d->ring, IORING_OFF_SQES);
	if (d->sq == MAP_FAILED || d->cq == MAP_FAILED || d->sqes == MAP_FAILED)
		return -errno;
	if (d->way == DIRECT_URING_FIXED &&
	    syscall(SYS_io_uring_register, d->ring, IORING_REGISTER_BUFFERS, &buffer, 1))
		return -errno;
	return 0;
}

int direct_make(struct direct *d, enum direct_way way, const char *disk, void *fixed,
		size_t bytes)
{
	memset(d, 0, sizeof(*d));
	d->way = way;
	d->ring = -1;
	d->disk = open(disk, O_RDONLY | O_DIRECT | O_CLOEXEC);
	if (d->disk < 0)
		return -errno;
	switch (way) {
	case DIRECT_AIO:
		return syscall(SYS_io_setup, ENTRIES, &d->aio) ? -errno : 0;
	case DIRECT_URING:
	case DIRECT_URING_FIXED:
		return uring_make(d, fixed, bytes);
	default:
		return 0;
	}
}

void direct_end(struct direct *d)
{
	if (d->aio)
		syscall(SYS_io_destroy, d->aio);
	if (d->ring >= 0) {
		munmap(d->sq, d->params.sq_off.array + ENTRIES * sizeof(unsigned int));
		munmap(d->cq, d->params.cq_off.cqes +
		       d->params.cq_entries * sizeof(struct io_uring_cqe));
		munmap(d->sqes, ENTRIES * sizeof(struct io_uring_sqe));
		close(d->ring);
	}
	close(d->disk);
}

static int uring_submit(struct direct *d, char *at, uint64_t block)
{
	_Atomic unsigned int *tail = (void *)(d->sq + d->params.sq_off.tail);
	unsigned int slot = *tail % ENTRIES;
	struct io_uring_sqe *sqe = &d->sqes[slot];

	memset(sqe, 0, sizeof(*sqe));
	sqe->opcode = d->way == DIRECT_URING_FIXED ? IORING_OP_READ_FIXED : IORING_OP_READ;
	sqe->fd = d->disk;
	sqe->addr = (uintptr_t)at;
	sqe->len = PAGE;
	sqe->off = block * PAGE;
	((unsigned int *)(d->sq + d->params.sq_off.array))[slot] = slot;
	*tail += 1;
	return syscall(SYS_io_uring_enter, d->ring, 1, 0, 0, NULL, 0) == 1 ? 0 : -errno;
}

int direct_submit(struct direct *d, char *at, uint64_t block)
{
	struct iocb io = {
		.aio_lio_opcode = IOCB_CMD_PREAD,
		.aio_fildes = (uint32_t)d->disk,
		.aio_buf = (uintptr_t)at,
		.aio_nbytes = PAGE,
		.aio_offset = (int64_t)(block * PAGE),
	}, *list = &io;

	switch (d->way) {
	case DIRECT_READ:
		return pread(d->disk, at, PAGE, (off_t)(block * PAGE)) == (ssize_t)PAGE ? 0 : -EIO;
	case DIRECT_AIO:
		return syscall(SYS_io_submit, d->aio, 1, &list) == 1 ? 0 : -errno;
	default:
		return uring_submit(d, at, block);
	}
}

static int aio_reap(struct direct *d, bool wait)
{
	struct io_event events[ENTRIES];
	long n = syscall(SYS_io_getevents, d->aio, wait ? 1L : 0L, (long)ENTRIES, events, NULL);

	if (n < 0)
		return -errno;
	for (long i = 0; i < n; i++)
		if (events[i].res != (int64_t)PAGE)
			return -EIO;
	return (int)n;
}

static int uring_reap(struct direct *d, bool wait)
{
	_Atomic unsigned int *head = (void *)(d->cq + d->params.cq_off.head);
	_Atomic unsigned int *tail = (void *)(d->cq + d->params.cq_off.tail);
	struct io_uring_cqe *cqes = (void *)(d->cq + d->params.cq_off.cqes);
	int n = 0;

	/* Entering also runs what the kernel left for this task to complete. */
	if (syscall(SYS_io_uring_enter, d->ring, 0, wait ? 1 : 0, IORING_ENTER_GETEVENTS, NULL,
		    0) < 0)
		return -errno;
	for (; *head != *tail; n++) {
		if (cqes[*head % d->params.cq_entries].res != (int)PAGE)
			return -EIO;
		*head += 1;
	}
	return n;
}

int direct_reap(struct direct *d, bool wait)
{
	switch (d->way) {
	case DIRECT_READ:
		return 0;
	case DIRECT_AIO:
		return aio_reap(d, wait);
	default:
		return uring_reap(d, wait);
	}
}
