/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_INJECT_FRAME_H
#define FERRY_INJECT_FRAME_H

#include <stddef.h>
#include <stdint.h>
#include <sys/user.h>

/* The largest extended register state (AVX-512 and AMX take 11 KiB). */
#define FERRY_FRAME_XSTATE_MAX 16384
#define FERRY_FRAME_MAX (FERRY_FRAME_XSTATE_MAX + 1024)

/**
 * struct ferry_frame - a signal frame to be put on the target's stack
 * @addr: where it goes; the stack pointer that makes "ret; rt_sigreturn" take it
 * @len: how long it is
 */
struct ferry_frame {
	uint64_t addr;
	size_t len;
	uint8_t bytes[FERRY_FRAME_MAX];
};

/* What the thread does when the frame, not the kernel, resumes it. */
enum ferry_frame_resume {
	FERRY_FRAME_EXACT,   /* as if nothing had happened */
	FERRY_FRAME_OVER,    /* a wait with a relative timeout starts over */
	FERRY_FRAME_UNKNOWN, /* restart_syscall(2) of a call we do not know: it would see EINTR */
};

/**
 * ferry_frame_resume_regs() - the registers with which a stopped thread goes on
 * @stopped: as PTRACE_GETREGS tells in an interrupt stop
 * @restart_nr: the call that restart_syscall(2) repeats when @stopped is inside it or about
 *              to make it; -1: unknown; 0: it is not
 * @resume: out
 *
 * A call that the stop interrupted is set up to be made again, which the kernel
 * does by itself only for a thread that it resumes with its own registers.
 */
enum ferry_frame_resume ferry_frame_resume_regs(const struct user_regs_struct *stopped,
						long restart_nr,
						struct user_regs_struct *resume);

/**
 * ferry_frame_build() - make the frame that puts a thread back to @resume
 * @resume: all integer registers
 * @sigmask: blocked signals
 * @restorer: address of the rt_sigreturn gadget
 * @xstate: register state in XSAVE standard format (NT_X86_XSTATE), or 512 bytes
 *          of FXSAVE on a processor without XSAVE
 *
 * Pure. The frame lies below the 128 bytes under the stack pointer that belong
 * to the running function (the ABI's red zone).
 *
 * Return: 0 or -EINVAL for an @xstate of no possible size.
 */
int ferry_frame_build(struct ferry_frame *frame, const struct user_regs_struct *resume,
		      uint64_t sigmask, uint64_t restorer, const void *xstate,
		      size_t xstate_len);

#endif
