// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#include "inject/frame.h"
#include "inject/place.h"

#define PAGE_BYTES 4096ull
#define PAGES_MAX (FERRY_FRAME_MAX / PAGE_BYTES + 2)
#define ERESTART_RESTARTBLOCK 516
/* Offset of rseq_cs in struct rseq. */
#define RSEQ_CS_OFF 8

/* struct rseq_cs of <linux/rseq.h>: a piece of code that is aborted when interrupted. */
struct rseq_section {
	uint32_t version;
	uint32_t flags;
	uint64_t start_ip;
	uint64_t post_commit_offset;
	uint64_t abort_ip;
};

static int read_target(pid_t pid, uint64_t addr, void *to, size_t len)
{
	struct iovec local = { to, len }, remote = { (void *)(uintptr_t)addr, len };

	return process_vm_readv(pid, &local, 1, &remote, 1, 0) == (ssize_t)len ? 0 : -EFAULT;
}

int ferry_place_has_stack(pid_t pid, uint64_t rsp, uint64_t low)
{
	struct iovec remote[PAGES_MAX], local;
	uint8_t seen[PAGES_MAX];
	uint64_t page = rsp & ~(PAGE_BYTES - 1);
	unsigned int n = 0;

	for (;; page -= PAGE_BYTES) {
		if (n == PAGES_MAX)
			return 0;
		remote[n].iov_base = (void *)(uintptr_t)(page > low ? page : low);
		remote[n++].iov_len = 1;
		if (page <= low)
			break;
	}
	local.iov_base = seen;
	local.iov_len = n;
	return process_vm_readv(pid, &local, 1, remote, n, 0) == n;
}

int ferry_place_in_rseq(pid_t pid, uint64_t rip, uint64_t rseq_addr)
{
	struct rseq_section cs;
	uint64_t cs_addr;

	if (read_target(pid, rseq_addr + RSEQ_CS_OFF, &cs_addr, sizeof(cs_addr)) || !cs_addr ||
	    read_target(pid, cs_addr, &cs, sizeof(cs)))
		return 0;
	return rip - cs.start_ip < cs.post_commit_offset;
}

/*
 * The kernel does not tell the number, but wrappers load it just before:
 * mov $nr, %eax; syscall. The thread is after the syscall instruction when the
 * wait was interrupted once more, and before it when it has not begun again.
 */
long ferry_place_restarted_call(pid_t pid, const struct user_regs_struct *regs)
{
	int inside = regs->orig_rax == SYS_restart_syscall &&
		     (long long)regs->rax == -ERESTART_RESTARTBLOCK;
	uint8_t code[7];
	uint32_t nr;

	if (!inside) {
		if (regs->rax != SYS_restart_syscall ||
		    read_target(pid, regs->rip, code, 2) || code[0] != 0x0f || code[1] != 0x05)
			return 0;
	}
	if (read_target(pid, regs->rip + (inside ? 0 : 2) - sizeof(code), code, sizeof(code)) ||
	    code[0] != 0xb8 || code[5] != 0x0f || code[6] != 0x05)
		return -1;
	memcpy(&nr, code + 1, sizeof(nr));
	if (nr == SYS_nanosleep || nr == SYS_clock_nanosleep || nr == SYS_futex || nr == SYS_poll)
		return nr;
	return -1;
}
