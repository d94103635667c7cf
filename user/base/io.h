/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_BASE_IO_H
#define FERRY_BASE_IO_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

/*
 * Full-length I/O: the one place that knows EINTR, short counts, end of file
 * and deadlines. Works on blocking and non-blocking descriptors. A deadline is
 * CLOCK_MONOTONIC nanoseconds (base/clock.h); FERRY_CLOCK_NEVER waits for ever.
 * With a deadline a socket must be non-blocking, or a large write may overrun it.
 */

/**
 * ferry_io_read() - read exactly @len bytes
 *
 * Return: 0; -ENODATA when the stream ended before the first byte, -EPIPE when
 * it ended inside, -ETIMEDOUT, or the errno of read(2).
 */
int ferry_io_read(int fd, void *buf, size_t len, uint64_t deadline_ns);

/** ferry_io_read_some() - what there is, at least a byte. Return: how many; -errno as ferry_io_read(). */
ssize_t ferry_io_read_some(int fd, void *buf, size_t len, uint64_t deadline_ns);

/** ferry_io_write() - write exactly @len bytes. Return: 0, -ETIMEDOUT or -errno. */
int ferry_io_write(int fd, const void *buf, size_t len, uint64_t deadline_ns);

/**
 * ferry_io_writev() - write a whole vector; @iov is used up (changed)
 * @more: non-zero: more follows at once (MSG_MORE), sockets only
 */
int ferry_io_writev(int fd, struct iovec *iov, int n, int more, uint64_t deadline_ns);

/** ferry_io_pread() - read exactly @len bytes at @off. Return: 0, -EPIPE at end of file, -errno. */
int ferry_io_pread(int fd, void *buf, size_t len, off_t off);

/** ferry_io_pwrite() - write exactly @len bytes at @off. Return: 0 or -errno. */
int ferry_io_pwrite(int fd, const void *buf, size_t len, off_t off);

/**
 * ferry_io_wait() - wait until @fd has one of the poll(2) @events
 *
 * Return: the revents (> 0), or -ETIMEDOUT.
 */
int ferry_io_wait(int fd, short events, uint64_t deadline_ns);

/**
 * ferry_io_send_fds() - send bytes with up to FERRY_IO_MAX_FDS descriptors attached
 *
 * The descriptors ride on the first byte. Return: 0, -ETIMEDOUT or -errno.
 */
#define FERRY_IO_MAX_FDS 16
int ferry_io_send_fds(int fd, const void *buf, size_t len, const int *fds, unsigned int n,
		      uint64_t deadline_ns);

/**
 * ferry_io_recv_fds() - one recvmsg(2) that takes descriptors too
 * @n: in: room in @fds; out: how many came (close-on-exec is set on them)
 *
 * Return: bytes read (0 at the end of the stream), -ETIMEDOUT or -errno.
 */
ssize_t ferry_io_recv_fds(int fd, void *buf, size_t len, int *fds, unsigned int *n,
			  uint64_t deadline_ns);

/** ferry_io_nonblock() - set or clear O_NONBLOCK. Return: 0 or -errno. */
int ferry_io_nonblock(int fd, int on);

/** ferry_io_close() - close *@fd unless it is -1 and set it to -1. */
void ferry_io_close(int *fd);

#endif
