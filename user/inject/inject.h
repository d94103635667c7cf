/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_INJECT_INJECT_H
#define FERRY_INJECT_INJECT_H

#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"

/*
 * System calls run inside another process (the VMM) by ptrace. The target is
 * stopped for a fraction of a millisecond per call. The tracer may be killed
 * at any instruction: the target goes on as if nothing had happened, at worst
 * with the call done and its result unseen.
 *
 * Each call is traced by a short-lived thread of ours: no other thread may wait
 * for "any child" (waitpid(-1)) meanwhile, or it may take that thread's stops.
 * Stops raise SIGCHLD. Call only what the target's seccomp filter allows.
 */
struct ferry_inject;

/**
 * ferry_inject_open() - find out how to run calls in @pid; does not stop it
 * @pid: thread-group leader of the target
 * @out: freed by ferry_inject_close()
 *
 * Return: 0; -ESRCH no such process, -EPERM not allowed (says what is needed),
 * -EBUSY somebody else traces it (names the tracer), -ENOEXEC no usable
 * syscall instruction or a foreign architecture (32-bit target).
 */
int ferry_inject_open(pid_t pid, struct ferry_inject **out, struct ferry_error *err);

/** ferry_inject_close() - free it; NULL is fine. */
void ferry_inject_close(struct ferry_inject *inj);

/**
 * ferry_inject_syscall() - run one system call in the target's main thread
 * @nr: x86-64 system call number; it must not block
 * @args: its six arguments, addresses being the target's
 * @result: what the call returned there (negative errno included)
 *
 * The main thread is stopped for the call; when it cannot be stopped within
 * 2 s (uninterruptible sleep) another thread is tried.
 *
 * Return: 0 when the call ran and @result is known; -ETIMEDOUT, -EBUSY, -ESRCH,
 * -EPERM with a text otherwise; the call did not run then, or (-EINTR) may have.
 */
int ferry_inject_syscall(struct ferry_inject *inj, long nr, const uint64_t args[6],
			 int64_t *result, struct ferry_error *err);

/**
 * ferry_inject_userfaultfd() - make a userfaultfd for the target's memory
 * @dev_fd: number, in the target, of an open /dev/userfaultfd (passed there by
 *          other means, for instance QMP getfd); the target needs no right of its own
 * @remote_fd: number of the new descriptor in the target
 * @uffd: our own copy (pidfd_getfd), close-on-exec, non-blocking, UFFDIO_API not done yet
 *
 * The copy in the target stays open until ferry_inject_close_fd().
 */
int ferry_inject_userfaultfd(struct ferry_inject *inj, int dev_fd, int *remote_fd, int *uffd,
			     struct ferry_error *err);

/** ferry_inject_close_fd() - close(2) in the target. Return: 0, -EBADF, or as above. */
int ferry_inject_close_fd(struct ferry_inject *inj, int remote_fd, struct ferry_error *err);

/** ferry_inject_madvise() - madvise(2) in the target. */
int ferry_inject_madvise(struct ferry_inject *inj, uint64_t addr, uint64_t len, int advice,
			 struct ferry_error *err);

/**
 * ferry_inject_settle() - wait until no call is about to run that a killed tracer has left
 *
 * The target makes such a call by itself as soon as it gets a processor. For whoever looks
 * at what the killed one has done: afterwards nothing more comes of it. Waits for 1 s at most.
 */
void ferry_inject_settle(pid_t pid);

/**
 * ferry_inject_find_fds() - descriptors of @pid whose /proc/PID/fd link equals @link
 * @link: for instance "anon_inode:[userfaultfd]" or "/dev/userfaultfd"
 * @fds: filled with up to @max numbers, ascending
 *
 * Return: how many there are (may exceed @max), or -errno.
 */
int ferry_inject_find_fds(pid_t pid, const char *link, int *fds, int max);

/** ferry_inject_take_fd() - our own close-on-exec copy of a target's descriptor (pidfd_getfd). */
int ferry_inject_take_fd(pid_t pid, int remote_fd);

#endif
