/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_INJECT_TRACER_H
#define FERRY_INJECT_TRACER_H

#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"
#include "inject/gadget.h"

/**
 * struct ferry_tracer_call - one system call in one thread of the target
 * @pid: thread group; @tid: the thread
 * @mem_fd: /proc/PID/mem of the program in which @gadgets were found
 * @inexact_ok: use the thread even if it would see EINTR from a sleep, should we
 *              die in the middle
 * @stop_ms: how long the thread has to come to a stop
 * @nr: the call
 * @args: its arguments
 * @result: out: what it returned
 */
struct ferry_tracer_call {
	pid_t pid;
	pid_t tid;
	int mem_fd;
	struct ferry_gadgets gadgets;
	int inexact_ok;
	unsigned int stop_ms;
	long nr;
	const uint64_t *args;
	int64_t result;
};

/**
 * ferry_tracer_run() - stop the thread, run the call, put everything back
 *
 * Blocks for up to @stop_ms and the time the call takes (at most 10 s).
 *
 * Return: 0 with @result; -EINTR when the call may have run and the result was not seen.
 * Otherwise it did not run: -EAGAIN no good moment in this thread, try another; -ETIMEDOUT
 * the thread does not stop; -ESRCH it is gone; -EBUSY somebody traces it; -EPERM; -EACCES
 * the target's seccomp filter forbids the call; -ENOEXEC not 64-bit code.
 */
int ferry_tracer_run(struct ferry_tracer_call *call, struct ferry_error *err);

/**
 * ferry_tracer_task_field() - the value of a line of /proc/PID/task/TID/status
 * @name: with the colon, for instance "TracerPid:"
 * @value: the rest of the line without leading blanks; empty when there is no such line
 *
 * Return: 0 or -errno (-ENOENT, -ESRCH: no such thread).
 */
int ferry_tracer_task_field(pid_t pid, pid_t tid, const char *name, char *value, int size);

/*
 * For tests, NULL otherwise: called in the tracing thread before every step that
 * the target could notice. Killing the process in it, or returning non-zero, which
 * ends the tracing on the spot just as a kill would, must do the target no harm.
 */
extern int (*ferry_tracer_probe)(void);

#endif
