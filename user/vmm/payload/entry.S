/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The guest's way in, at CPL 3 with IOPL 3 and in 64-bit mode. Around the batches written
 * in C, which leave vector registers alone, it keeps known values in every register and
 * compares them: a register class that is lost by a move is an error of the payload.
 */
#include "vmm/payload/payload.h"

	.section payload, "ax", @progbits
	.globl payload_entry
	.hidden payload_entry, payload_batch, payload_registers
payload_entry:			/* rdi: lane, rsi: map */
	mov	%rdi, %rbx
	mov	%rsi, %r12
	xor	%esi, %esi
next:	mov	%rbx, %rdi
	call	payload_registers
	call	load_vectors
	mov	%rbx, %rdi
	mov	%r12, %rsi
	call	payload_batch
	call	watch_registers
	mov	%rax, %r13
	call	store_vectors
	cmpq	$0, LANE_RATE(%rbx)
	je	1f
	mov	$PAYLOAD_PORT, %edx	/* the VMM keeps the rate */
	out	%al, %dx
1:	mov	%r13, %rsi
	jmp	next

load_vectors:
	mov	LANE_XMASK(%rbx), %eax
	xor	%edx, %edx
	test	%eax, %eax
	jz	1f
	xrstor64 LANE_LOADED(%rbx)
	ret
1:	fxrstor64 LANE_LOADED(%rbx)
	ret

store_vectors:
	mov	LANE_XMASK(%rbx), %eax
	xor	%edx, %edx
	test	%eax, %eax
	jz	1f
	xsave64	LANE_FOUND(%rbx)
	ret
1:	fxsave64 LANE_FOUND(%rbx)
	ret

/*
 * A value in each general register and in the flags, for a while; the bases of FS and GS.
 * Returns in rax 0, or which was wrong: its place in the list below, 20 for others.
 */
#define WATCH rbx, rdx, rsi, rdi, rbp, r8, r9, r10, r11, r12, r13, r14, r15
#define FLAGS 0xcd5		/* CF PF AF ZF SF DF OF: lea and jrcxz leave them alone */
watch_registers:
	push	%rbx
	push	%rbp
	push	%r12
	push	%r13
	push	%r14
	push	%r15
	mov	%rsp, LANE_STACK(%rbx)
	mov	LANE_GENERATION(%rbx), %rax
	.set	n, 0
	.irp	reg, WATCH
	.set	n, n + 1
	lea	n * 0x01010101(%rax), %\reg
	.endr
	pushq	$(FLAGS | 0x3202)	/* IF and IOPL as they are */
	popfq
	mov	$2000, %ecx
1:	lea	-1(%rcx), %rcx
	jrcxz	2f
	jmp	1b
2:	pushfq
	pop	%rcx
	cld
	and	$FLAGS, %ecx
	cmp	$FLAGS, %ecx
	mov	$20, %ecx
	jne	3f
	mov	$21, %ecx
	cmp	%rax, %fs:LANE_GENERATION
	jne	3f
	mov	$22, %ecx
	cmp	%rsp, %fs:LANE_STACK
	jne	3f
	.set	n, 0
	.irp	reg, WATCH
	.set	n, n + 1
	lea	n * 0x01010101(%rax), %rcx
	sub	%\reg, %rcx
	mov	$n, %ecx
	jne	3f
	.endr
	mov	%fs:LANE_SELF, %rbx
	mov	%gs:0, %rdx
	sub	$LANE_GS, %rdx
	mov	$23, %ecx
	cmp	%rbx, %rdx
	jne	3f
	xor	%ecx, %ecx
3:	mov	%rcx, %rax
	mov	%fs:LANE_STACK, %rsp
	pop	%r15
	pop	%r14
	pop	%r13
	pop	%r12
	pop	%rbp
	pop	%rbx
	ret

	.section .note.GNU-stack, "", @progbits
