// SPDX-License-Identifier: GPL-2.0-or-later
/* What a remote system call leaves for its target to return by: registers and the signal frame. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/user.h>

#include <cmocka.h>

#include "inject/frame.h"

static void test_resume_regs(void **state)
{
	struct user_regs_struct in = { .rip = 0x1000, .orig_rax = 7 }, out;

	(void)state;
	in.rax = (unsigned long long)-512;
	assert_int_equal(ferry_frame_resume_regs(&in, -1, &out), FERRY_FRAME_EXACT);
	assert_int_equal(out.rip, 0xffe);
	assert_int_equal(out.rax, 7);
	in.rax = (unsigned long long)-516;
	assert_int_equal(ferry_frame_resume_regs(&in, -1, &out), FERRY_FRAME_OVER);
	assert_int_equal(out.rax, 7);
	in.orig_rax = SYS_restart_syscall;
	assert_int_equal(ferry_frame_resume_regs(&in, -1, &out), FERRY_FRAME_UNKNOWN);
	assert_int_equal(ferry_frame_resume_regs(&in, 35, &out), FERRY_FRAME_OVER);
	assert_int_equal(out.rax, 35);
	assert_int_equal(out.rip, 0xffe);
	/* Stopped again before the restart was made. */
	in.rax = SYS_restart_syscall;
	assert_int_equal(ferry_frame_resume_regs(&in, 35, &out), FERRY_FRAME_OVER);
	assert_int_equal(out.rax, 35);
	assert_int_equal(out.rip, 0x1000);
	assert_int_equal(ferry_frame_resume_regs(&in, -1, &out), FERRY_FRAME_UNKNOWN);
	assert_int_equal(ferry_frame_resume_regs(&in, 0, &out), FERRY_FRAME_EXACT);
	assert_int_equal(out.rax, SYS_restart_syscall);
	/* A call that returned, and a program that has -512 in rax by itself. */
	in.rax = (unsigned long long)-EINTR;
	assert_int_equal(ferry_frame_resume_regs(&in, -1, &out), FERRY_FRAME_EXACT);
	assert_memory_equal(&in, &out, sizeof(in));
	in.orig_rax = (unsigned long long)-1;
	in.rax = (unsigned long long)-512;
	assert_int_equal(ferry_frame_resume_regs(&in, -1, &out), FERRY_FRAME_EXACT);
	assert_memory_equal(&in, &out, sizeof(in));
}

static void test_frame_layout(void **state)
{
	static uint8_t xstate[FERRY_FRAME_XSTATE_MAX + 8];
	struct user_regs_struct regs = { .rsp = 0x7ffff123, .rip = 0x400000 };
	static struct ferry_frame frame;
	uint64_t word;
	uint32_t half;

	(void)state;
	xstate[512] = 3;
	assert_int_equal(ferry_frame_build(&frame, &regs, 5, 0x1234, xstate, 2696), 0);
	assert_int_equal(frame.addr % 16, 8);
	assert_true(frame.addr + frame.len <= regs.rsp - 128);
	memcpy(&word, frame.bytes, 8);
	assert_int_equal(word, 0x1234);
	memcpy(&word, frame.bytes + 8 + 40 + 184, 8); /* fpstate */
	assert_int_equal(word % 64, 0);
	memcpy(&half, frame.bytes + (word - frame.addr) + 464, 4);
	assert_int_equal(half, 0x46505853);
	memcpy(&half, frame.bytes + (word - frame.addr) + 576, 4);
	assert_int_equal(half, 0x46505845);
	assert_int_equal(ferry_frame_build(&frame, &regs, 5, 1, xstate, 512), 0);
	assert_int_equal(ferry_frame_build(&frame, &regs, 5, 1, xstate, 575), -EINVAL);
	assert_int_equal(ferry_frame_build(&frame, &regs, 5, 1, xstate, sizeof(xstate)), -EINVAL);
	/* AVX said to be in use, but no room for it. */
	if (__builtin_cpu_supports("avx")) {
		xstate[512] = 7;
		assert_int_equal(ferry_frame_build(&frame, &regs, 5, 1, xstate, 576), -EINVAL);
		xstate[512] = 0;
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_resume_regs),
		cmocka_unit_test(test_frame_layout),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
