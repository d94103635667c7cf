/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_INJECT_PLACE_H
#define FERRY_INJECT_PLACE_H

#include <stdint.h>
#include <sys/types.h>
#include <sys/user.h>

/*
 * The place where a thread of the target was stopped: what its memory says
 * about it. The thread must stay stopped meanwhile.
 */

/**
 * ferry_place_has_stack() - is all memory from @rsp down to @low there?
 *
 * Guard pages (of at least one page) end a stack, so every page is looked at.
 */
int ferry_place_has_stack(pid_t pid, uint64_t rsp, uint64_t low);

/**
 * ferry_place_in_rseq() - is @rip inside a restartable sequence?
 * @rseq_addr: the thread's struct rseq
 *
 * There the kernel would notice that the program counter has left it, forget
 * the sequence, and not abort it on the return to it.
 */
int ferry_place_in_rseq(pid_t pid, uint64_t rip, uint64_t rseq_addr);

/**
 * ferry_place_restarted_call() - which call does restart_syscall(2) stand for here?
 * @regs: as PTRACE_GETREGS tells
 *
 * Return: its number; -1 when it cannot be told; 0 when the thread neither is in
 * restart_syscall(2) nor about to make it.
 */
long ferry_place_restarted_call(pid_t pid, const struct user_regs_struct *regs);

#endif
