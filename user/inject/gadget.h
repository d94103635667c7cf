/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_INJECT_GADGET_H
#define FERRY_INJECT_GADGET_H

#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"

/**
 * struct ferry_gadgets - instructions that already exist in the target's text
 * @call: address of "syscall; ret"
 * @restorer: address of "mov $__NR_rt_sigreturn, %rax; syscall" (the C library's signal restorer)
 */
struct ferry_gadgets {
	uint64_t call;
	uint64_t restorer;
};

/* Bytes of the syscall instruction: how far the program counter is beyond it on return. */
#define FERRY_GADGET_SYSCALL_BYTES 2

/**
 * ferry_gadgets_find() - look for both in the target's executable mappings
 * @mem_fd: the target's /proc/PID/mem
 *
 * Return: 0, -ENOEXEC when one is nowhere, or the errno of reading /proc/PID/maps.
 */
int ferry_gadgets_find(pid_t pid, int mem_fd, struct ferry_gadgets *gadgets,
		       struct ferry_error *err);

/**
 * ferry_gadgets_check() - are they (still) there?
 *
 * Return: 0; -ESRCH when the program is gone (exit, exec), -ENOEXEC when the text changed.
 */
int ferry_gadgets_check(int mem_fd, const struct ferry_gadgets *gadgets);

#endif
