/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A guest of one sector, for machines that are emulated twice. It counts for ever in the
 * first word of each of 64 pages, and between two rounds reads 4 KiB of the second disk
 * into one of 32 pages by the BIOS (virtio-blk, so by DMA), whose first word it checks:
 * block b of the disk begins with b * 0x10001.
 *
 *	0x500	rounds		0x504	bad reads
 *	0x20000	64 pages of counters
 *	0x60000	32 pages of disk blocks
 */
	.code16
	.globl	_start
_start:
	cli
	xorw	%ax, %ax
	movw	%ax, %ds
	movw	%ax, %ss
	movw	$0x7c00, %sp
	sti
	cld
	movl	$0, 0x500
	movl	$0, 0x504
round:
	movw	$0x2000, %ax
count:
	movw	%ax, %es
	incl	%es:0
	addw	$0x100, %ax
	cmpw	$0x6000, %ax
	jne	count

	movl	0x500, %eax
	andl	$0xff, %eax
	movl	%eax, %ebx
	shll	$3, %eax
	movl	%eax, packet_lba
	movl	%ebx, %eax
	andw	$31, %ax
	shlw	$8, %ax
	addw	$0x6000, %ax
	movw	%ax, packet_segment
	movw	$8, packet_count
	pushl	%ebx
	movb	$0x42, %ah
	movb	$0x81, %dl
	movw	$packet, %si
	int	$0x13
	popl	%ebx
	jc	bad
	movw	packet_segment, %es
	movl	%ebx, %eax
	shll	$16, %eax
	orl	%ebx, %eax
	cmpl	%eax, %es:0
	je	good
bad:
	incl	0x504
good:
	incl	0x500
	jmp	round

	.balign	4
packet:
	.byte	16, 0
packet_count:
	.word	8
	.word	0
packet_segment:
	.word	0
packet_lba:
	.long	0, 0

	.org	510
	.word	0xaa55
