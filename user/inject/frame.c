// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A signal frame made by hand, exactly as the kernel makes one when it delivers
 * a signal on x86-64, low addresses first:
 *
 *	frame->addr	-> address of the restorer	popped by "ret"
 *			   ucontext			uc_flags, uc_stack, registers, mask
 *			   siginfo			unused
 *	64-byte aligned	-> XSAVE image			FP, SSE, AVX, ... protection keys
 *			   FP_XSTATE_MAGIC2
 *	rsp - 128	-> red zone of the interrupted function
 *
 * rt_sigreturn(2) puts all of it back in one step. Three things in it need care:
 * - no XSAVE image, or one whose sizes the kernel does not believe, resets the
 *   vector registers without a word;
 * - the alternate signal stack is set from uc_stack. ptrace(2) cannot tell the
 *   present one; a mode that does not exist is refused inside the kernel, which
 *   ignores that refusal, so the setting stays;
 * - the restart block of the thread is emptied: restart_syscall(2) afterwards
 *   is EINTR, so an interrupted sleep is made again by its own number instead.
 */
#include <cpuid.h>
#include <errno.h>
#include <string.h>
#include <sys/syscall.h>

#include "inject/frame.h"

#define RED_ZONE_BYTES 128
#define FXSAVE_BYTES 512
#define XSAVE_HEADER_BYTES 64
#define SW_BYTES_OFF 464
#define XFEATURE_FP_SSE 3ull
#define FP_MAGIC1 0x46505853u
#define FP_MAGIC2 0x46505845u
#define UC_FP_XSTATE 1
#define UC_SIGCONTEXT_SS 2
#define UC_STRICT_RESTORE_SS 4
/* Neither 0, SS_ONSTACK nor SS_DISABLE: see above. */
#define SS_MODE_NONE 7
/* What the stopped thread shows in rax; the kernel never lets a program see these. */
#define ERESTARTSYS 512
#define ERESTARTNOINTR 513
#define ERESTARTNOHAND 514
#define ERESTART_RESTARTBLOCK 516
/* Length of the syscall instruction, and of int $0x80. */
#define SYSCALL_BYTES 2

/* struct _fpx_sw_bytes of the kernel's <asm/sigcontext.h>, which clashes with <signal.h>. */
struct sw_bytes {
	uint32_t magic1;
	uint32_t extended_bytes;
	uint64_t xfeatures;
	uint32_t xstate_bytes;
	uint32_t padding[7];
};

struct sigframe {
	uint64_t restorer;
	uint64_t uc_flags;
	uint64_t uc_link;
	uint64_t ss_sp;
	uint32_t ss_flags;
	uint32_t ss_pad;
	uint64_t ss_size;
	uint64_t r8, r9, r10, r11, r12, r13, r14, r15;
	uint64_t rdi, rsi, rbp, rbx, rdx, rax, rcx, rsp, rip, eflags;
	uint16_t cs, gs, fs, ss;
	uint64_t err, trapno, oldmask, cr2;
	uint64_t fpstate;
	uint64_t reserved[8];
	uint64_t sigmask;
	uint8_t siginfo[128];
};

_Static_assert(sizeof(struct sw_bytes) == FXSAVE_BYTES - SW_BYTES_OFF, "sw_bytes");
_Static_assert(offsetof(struct sigframe, r8) == 8 + 40, "uc_mcontext");
_Static_assert(offsetof(struct sigframe, sigmask) == 8 + 296, "uc_sigmask");
_Static_assert(sizeof(struct sigframe) == 440, "rt_sigframe");

enum ferry_frame_resume ferry_frame_resume_regs(const struct user_regs_struct *stopped,
						long restart_nr,
						struct user_regs_struct *resume)
{
	long long nr = (long long)stopped->orig_rax;
	long long ret = (long long)stopped->rax;

	*resume = *stopped;
	if (restart_nr && ret == SYS_restart_syscall) {
		resume->rax = (unsigned long long)(restart_nr > 0 ? restart_nr : ret);
		return restart_nr > 0 ? FERRY_FRAME_OVER : FERRY_FRAME_UNKNOWN;
	}
	if (nr < 0)
		return FERRY_FRAME_EXACT;
	switch (-ret) {
	case ERESTARTSYS:
	case ERESTARTNOINTR:
	case ERESTARTNOHAND:
		resume->rax = (unsigned long long)nr;
		resume->rip -= SYSCALL_BYTES;
		return FERRY_FRAME_EXACT;
	case ERESTART_RESTARTBLOCK:
		if (nr == SYS_restart_syscall && restart_nr > 0)
			nr = restart_nr;
		resume->rax = (unsigned long long)nr;
		resume->rip -= SYSCALL_BYTES;
		return nr == SYS_restart_syscall ? FERRY_FRAME_UNKNOWN : FERRY_FRAME_OVER;
	default:
		return FERRY_FRAME_EXACT;
	}
}

/*
 * Bytes of the image up to the last component in use. Never the whole image:
 * it may have room for components that this thread has no permission for (AMX),
 * and the kernel takes an image beyond the thread's own size for a bad one.
 */
static size_t used_bytes(uint64_t xfeatures)
{
	size_t bytes = FXSAVE_BYTES + XSAVE_HEADER_BYTES;
	unsigned int i, size, off, ecx, edx;

	for (i = 2; i < 63; i++) {
		if (!(xfeatures >> i & 1) || !__get_cpuid_count(0xd, i, &size, &off, &ecx, &edx))
			continue;
		if ((size_t)size + off > bytes)
			bytes = (size_t)size + off;
	}
	return bytes;
}

/* Puts the image at @to as the kernel would. Return: its length there, or -EINVAL. */
static int put_xstate(uint8_t *to, const void *xstate, size_t len)
{
	const uint32_t magic2 = FP_MAGIC2;
	struct sw_bytes sw = { .magic1 = FP_MAGIC1 };
	uint64_t xfeatures;
	size_t bytes;

	if (len == FXSAVE_BYTES) {
		memcpy(to, xstate, len);
		memset(to + SW_BYTES_OFF, 0, sizeof(sw));
		return FXSAVE_BYTES;
	}
	if (len < FXSAVE_BYTES + XSAVE_HEADER_BYTES || len > FERRY_FRAME_XSTATE_MAX)
		return -EINVAL;
	memcpy(&xfeatures, (const uint8_t *)xstate + FXSAVE_BYTES, sizeof(xfeatures));
	bytes = used_bytes(xfeatures);
	if (bytes > len)
		return -EINVAL;
	sw.xfeatures = xfeatures | XFEATURE_FP_SSE;
	sw.xstate_bytes = (uint32_t)bytes;
	sw.extended_bytes = (uint32_t)(bytes + sizeof(magic2));
	memcpy(to, xstate, bytes);
	memcpy(to + SW_BYTES_OFF, &sw, sizeof(sw));
	memcpy(to + bytes, &magic2, sizeof(magic2));
	return (int)(bytes + sizeof(magic2));
}

static void put_regs(struct sigframe *f, const struct user_regs_struct *r)
{
	f->r8 = r->r8;
	f->r9 = r->r9;
	f->r10 = r->r10;
	f->r11 = r->r11;
	f->r12 = r->r12;
	f->r13 = r->r13;
	f->r14 = r->r14;
	f->r15 = r->r15;
	f->rdi = r->rdi;
	f->rsi = r->rsi;
	f->rbp = r->rbp;
	f->rbx = r->rbx;
	f->rdx = r->rdx;
	f->rax = r->rax;
	f->rcx = r->rcx;
	f->rsp = r->rsp;
	f->rip = r->rip;
	f->eflags = r->eflags;
	f->cs = (uint16_t)r->cs;
	f->gs = (uint16_t)r->gs;
	f->fs = (uint16_t)r->fs;
	f->ss = (uint16_t)r->ss;
}

int ferry_frame_build(struct ferry_frame *frame, const struct user_regs_struct *resume,
		      uint64_t sigmask, uint64_t restorer, const void *xstate,
		      size_t xstate_len)
{
	struct sigframe f = {
		.restorer = restorer,
		.uc_flags = UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS,
		.ss_flags = SS_MODE_NONE,
		.sigmask = sigmask,
	};
	uint64_t fpstate, top = resume->rsp - RED_ZONE_BYTES;
	int bytes;

	if (xstate_len > FERRY_FRAME_XSTATE_MAX)
		return -EINVAL;
	/* Room for the whole image: the kernel may fault in as much, used or not. */
	fpstate = (top - xstate_len - sizeof(uint32_t)) & ~63ull;
	/* As at the entry of a function: 8 below a multiple of 16. */
	frame->addr = ((fpstate - sizeof(f)) & ~15ull) - 8;
	frame->len = fpstate - frame->addr;
	memset(frame->bytes, 0, frame->len);
	bytes = put_xstate(frame->bytes + frame->len, xstate, xstate_len);
	if (bytes < 0)
		return bytes;
	if (xstate_len > FXSAVE_BYTES)
		f.uc_flags |= UC_FP_XSTATE;
	f.fpstate = fpstate;
	put_regs(&f, resume);
	memcpy(frame->bytes, &f, sizeof(f));
	frame->len += (size_t)bytes;
	return 0;
}
