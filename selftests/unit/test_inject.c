// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Remote system calls. The targets check themselves: registers, flags, vector
 * registers, red zone, interrupted waits, alternate stack (inject/target.c).
 * Every kind is tried with a tracer that lives and, by the probe, with one that
 * goes away at each of its steps; selftests/inject/kill_sweep really kills it.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "inject/frame.h"
#include "inject/inject.h"
#include "inject/tracer.h"

/* Not an object of its own, since each unit test is one program of one file. */
#include "../inject/target.c"

#define CALLS 500
#define ALIVE_MS 3000
#define PAGE 4096

static const uint64_t no_args[6];

static struct ferry_inject *open_ok(pid_t pid)
{
	struct ferry_error err = { 0 };
	struct ferry_inject *inj;
	int rc = ferry_inject_open(pid, &inj, &err);

	if (rc)
		fail_msg("open: %d %s", rc, err.text);
	return inj;
}

static int64_t call_ok(struct ferry_inject *inj, long nr, const uint64_t *args)
{
	struct ferry_error err = { 0 };
	int64_t result = -1;
	int rc = ferry_inject_syscall(inj, nr, args, &result, &err);

	if (rc)
		fail_msg("call %ld: %d %s", nr, rc, err.text);
	return result;
}

static void assert_alive(struct target *t)
{
	int rc = target_alive(t, ALIVE_MS);

	if (rc)
		fail_msg("%s: %s (%s)", target_name(t->kind), strerror(-rc), t->report->what);
}

static void assert_untraced(pid_t pid)
{
	char value[32];

	assert_int_equal(ferry_tracer_task_field(pid, pid, "TracerPid:", value, sizeof(value)), 0);
	assert_string_equal(value, "0");
}

/* A child that runs @body and never returns; @fds[1] is its end of a pair of pipes. */
static pid_t start_child(void (*body)(void *), void *arg)
{
	pid_t pid = fork();

	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		body(arg);
		for (;;)
			pause();
	}
	assert_true(pid > 0);
	return pid;
}

static void end_child(pid_t pid)
{
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
}

static void wait_state(pid_t pid, char state)
{
	uint64_t deadline_ns = ferry_clock_in_ms(ALIVE_MS);
	char value[32] = "";

	while (!ferry_tracer_task_field(pid, pid, "State:", value, sizeof(value)) &&
	       value[0] != state) {
		if (ferry_clock_ns() > deadline_ns)
			fail_msg("state of %d is %s, not %c", pid, value, state);
		ferry_clock_sleep_ns(100000);
	}
}

/* --- transparency --- */

static void test_transparent(void **state)
{
	enum target_kind kind;

	(void)state;
	for (kind = 0; kind < TARGET_KINDS; kind++) {
		struct ferry_inject *inj;
		struct target t;
		uint64_t start;
		int i;

		assert_int_equal(target_start(&t, kind), 0);
		inj = open_ok(t.pid);
		assert_alive(&t);
		start = ferry_clock_ns();
		for (i = 0; i < CALLS; i++) {
			assert_int_equal(call_ok(inj, SYS_getpid, no_args), t.pid);
			if (i % 50 == 0)
				assert_alive(&t);
		}
		print_message("%s: %llu us a call, %llu loops, %llu signals\n", target_name(kind),
			      (unsigned long long)((ferry_clock_ns() - start) / CALLS / 1000),
			      (unsigned long long)t.report->loops,
			      (unsigned long long)t.report->signals);
		assert_alive(&t);
		assert_untraced(t.pid);
		ferry_inject_close(inj);
		target_stop(&t);
	}
}

static int steps_left;

static int count_down(void)
{
	return --steps_left < 0;
}

/* Goes away at step 0, 1, 2, ... until a call gets through. Return: the steps. */
static int sweep(struct ferry_inject *inj, struct target *t)
{
	struct ferry_error err;
	int64_t result;
	int step, rc;

	for (step = 0;; step++) {
		steps_left = step;
		rc = ferry_inject_syscall(inj, SYS_getpid, no_args, &result, &err);
		assert_untraced(t->pid);
		if (steps_left >= 0) {
			assert_int_equal(rc, 0);
			assert_int_equal(result, t->pid);
			return step;
		}
		/* At the very end the result had been seen already. */
		if (rc && rc != -EINTR)
			fail_msg("step %d: %d %s", step, rc, err.text);
		assert_true(step < 10000);
	}
}

static void test_abandoned(void **state)
{
	enum target_kind kind;

	(void)state;
	/* Not sigppoll: see the list in tracer.c of what dying can change. */
	for (kind = 0; kind < TARGET_SIGPPOLL; kind++) {
		struct ferry_inject *inj;
		struct target t;
		int round, steps = 0;

		assert_int_equal(target_start(&t, kind), 0);
		inj = open_ok(t.pid);
		assert_alive(&t);
		ferry_tracer_probe = count_down;
		for (round = 0; round < 10; round++) {
			steps += sweep(inj, &t);
			assert_alive(&t);
		}
		ferry_tracer_probe = NULL;
		assert_true(steps > 100);
		print_message("%s: abandoned %d times, %llu loops, %llu signals\n",
			      target_name(kind), steps, (unsigned long long)t.report->loops,
			      (unsigned long long)t.report->signals);
		ferry_inject_close(inj);
		target_stop(&t);
	}
}

static void test_stopped_group(void **state)
{
	struct ferry_inject *inj;
	struct target t;

	(void)state;
	assert_int_equal(target_start(&t, TARGET_PIPE), 0);
	inj = open_ok(t.pid);
	kill(t.pid, SIGSTOP);
	wait_state(t.pid, 'T');
	assert_int_equal(call_ok(inj, SYS_getpid, no_args), t.pid);
	wait_state(t.pid, 'T');
	assert_int_equal(target_alive(&t, 50), -ETIMEDOUT);
	kill(t.pid, SIGCONT);
	assert_alive(&t);
	ferry_inject_close(inj);
	target_stop(&t);
}

/* --- the frame --- */

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

/* --- operations --- */

static void test_userfaultfd(void **state)
{
	struct uffdio_api api = { .api = UFFD_API };
	int remote = -1, uffd = -1, dev, fds[8];
	struct ferry_error err = { 0 };
	struct ferry_inject *inj;
	struct target t;

	(void)state;
	dev = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	if (dev < 0) {
		print_message("SKIP: no /dev/userfaultfd (%s)\n", strerror(errno));
		skip();
	}
	assert_int_equal(target_start(&t, TARGET_PPOLL), 0); /* inherits dev */
	inj = open_ok(t.pid);
	assert_int_equal(ferry_inject_find_fds(t.pid, "/dev/userfaultfd", fds, 8), 1);
	assert_int_equal(fds[0], dev);
	assert_int_equal(ferry_inject_userfaultfd(inj, dev, &remote, &uffd, &err), 0);
	assert_int_equal(ioctl(uffd, UFFDIO_API, &api), 0);
	assert_true(fcntl(uffd, F_GETFL) & O_NONBLOCK);
	assert_true(fcntl(uffd, F_GETFD) & FD_CLOEXEC);
	assert_int_equal(ferry_inject_find_fds(t.pid, "anon_inode:[userfaultfd]", fds, 8), 1);
	assert_int_equal(fds[0], remote);
	assert_int_equal(ferry_inject_close_fd(inj, remote, &err), 0);
	assert_int_equal(ferry_inject_find_fds(t.pid, "anon_inode:[userfaultfd]", fds, 8), 0);
	assert_int_equal(ferry_inject_close_fd(inj, remote, &err), -EBADF);
	assert_non_null(strstr(err.text, "closing descriptor"));
	close(uffd);
	/* The pipe is no /dev/userfaultfd. */
	assert_int_equal(ferry_inject_userfaultfd(inj, t.report->fds[0], &remote, &uffd, &err),
			 -ENOTTY);
	assert_non_null(strstr(err.text, "is not /dev/userfaultfd"));
	assert_int_equal(ferry_inject_userfaultfd(inj, 1000, &remote, &uffd, &err), -EBADF);
	assert_int_equal(ferry_inject_take_fd(t.pid, 1000), -EBADF);
	ferry_inject_close(inj);
	target_stop(&t);
	close(dev);
}

/* The result is unseen, whichever step it was: found by looking, or made again by the caller. */
static void test_userfaultfd_unseen(void **state)
{
	int remote, uffd, dev, fds[8], step, found = 0, rc;
	struct ferry_error err = { 0 };
	struct ferry_inject *inj;
	struct target t;

	(void)state;
	dev = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	if (dev < 0) {
		print_message("SKIP: no /dev/userfaultfd (%s)\n", strerror(errno));
		skip();
	}
	assert_int_equal(target_start(&t, TARGET_PPOLL), 0);
	inj = open_ok(t.pid);
	ferry_tracer_probe = count_down;
	for (step = 0; ; step++) {
		steps_left = step;
		rc = ferry_inject_userfaultfd(inj, dev, &remote, &uffd, &err);
		if (!rc) {
			found += steps_left < 0;
			close(uffd);
			uffd = steps_left;
			steps_left = 1 << 20;
			assert_int_equal(ferry_inject_close_fd(inj, remote, &err), 0);
			if (uffd >= 0)
				break;
		} else {
			assert_int_equal(rc, -EINTR);
			steps_left = 1 << 20;
			/* It may have come after we looked; a poked target has made it. */
			assert_alive(&t);
			if (ferry_inject_find_fds(t.pid, "anon_inode:[userfaultfd]", fds, 8) == 1)
				assert_int_equal(ferry_inject_close_fd(inj, fds[0], &err), 0);
		}
		assert_int_equal(ferry_inject_find_fds(t.pid, "anon_inode:[userfaultfd]", fds, 8),
				 0);
	}
	ferry_tracer_probe = NULL;
	print_message("unseen and found by looking: %d of %d\n", found, step);
	assert_true(found > 0);
	assert_alive(&t);
	ferry_inject_close(inj);
	target_stop(&t);
	close(dev);
}

static void test_madvise(void **state)
{
	char *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct ferry_error err = { 0 };
	struct ferry_inject *inj;
	struct target t;
	char there = 0;

	(void)state;
	page[5] = 'x';
	assert_int_equal(target_start(&t, TARGET_PPOLL), 0); /* has a copy of the page */
	inj = open_ok(t.pid);
	assert_int_equal(ferry_inject_madvise(inj, (uintptr_t)page, PAGE, MADV_DONTNEED, &err), 0);
	{
		struct iovec local = { &there, 1 }, remote = { page + 5, 1 };

		there = 'y';
		assert_int_equal(process_vm_readv(t.pid, &local, 1, &remote, 1, 0), 1);
	}
	assert_int_equal(there, 0);
	assert_int_equal(page[5], 'x');
	assert_int_equal(ferry_inject_madvise(inj, (uintptr_t)page + 1, PAGE, MADV_DONTNEED, &err),
			 -EINVAL);
	assert_non_null(strstr(err.text, "madvise"));
	ferry_inject_close(inj);
	target_stop(&t);
	munmap(page, PAGE);
}

/* --- refusals --- */

static void test_no_process(void **state)
{
	struct ferry_error err = { 0 };
	struct ferry_inject *inj;
	int64_t result;
	struct target t;

	(void)state;
	assert_int_equal(target_start(&t, TARGET_PPOLL), 0);
	inj = open_ok(t.pid);
	kill(t.pid, SIGKILL);
	wait_state(t.pid, 'Z');
	assert_int_equal(ferry_inject_syscall(inj, SYS_getpid, no_args, &result, &err), -ESRCH);
	assert_non_null(strstr(err.text, "no such process"));
	ferry_inject_close(inj);
	assert_int_equal(ferry_inject_open(t.pid, &inj, &err), -ESRCH);
	assert_null(inj);
	target_stop(&t);
	assert_int_equal(ferry_inject_open(0x3ffffffe, &inj, &err), -ESRCH);
	assert_int_equal(ferry_inject_find_fds(0x3ffffffe, "x", NULL, 0), -ENOENT);
	ferry_inject_close(NULL);
}

static void exec_on_byte(void *arg)
{
	char c;

	if (read(*(int *)arg, &c, 1) == 1)
		execl("/bin/sleep", "sleep", "1000", NULL);
}

static void test_exec(void **state)
{
	struct ferry_error err = { 0 };
	struct ferry_inject *inj;
	int64_t result;
	int fds[2];
	pid_t pid;

	(void)state;
	assert_int_equal(pipe(fds), 0);
	pid = start_child(exec_on_byte, &fds[0]);
	inj = open_ok(pid);
	assert_int_equal(call_ok(inj, SYS_getpid, no_args), pid);
	assert_int_equal(write(fds[1], "x", 1), 1);
	for (;;) {
		char name[32] = "";

		assert_int_equal(ferry_tracer_task_field(pid, pid, "Name:", name, sizeof(name)), 0);
		if (!strcmp(name, "sleep"))
			break;
		sched_yield();
	}
	assert_int_equal(ferry_inject_syscall(inj, SYS_getpid, no_args, &result, &err), -ESRCH);
	assert_non_null(strstr(err.text, "another program"));
	assert_untraced(pid);
	ferry_inject_close(inj);
	end_child(pid);
	close(fds[0]);
	close(fds[1]);
}

struct tracing {
	pid_t target;
	int ready;
};

static void trace_it(void *arg)
{
	struct tracing *tr = arg;

	if (!ptrace(PTRACE_SEIZE, tr->target, NULL, NULL) && write(tr->ready, "x", 1) != 1)
		abort();
}

static void test_busy(void **state)
{
	struct ferry_inject *inj, *other;
	struct ferry_error err = { 0 };
	struct tracing tr;
	char c, number[16];
	int64_t result;
	struct target t;
	int fds[2];
	pid_t tracer;

	(void)state;
	assert_int_equal(target_start(&t, TARGET_PPOLL), 0);
	inj = open_ok(t.pid);
	assert_int_equal(pipe(fds), 0);
	tr = (struct tracing){ t.pid, fds[1] };
	tracer = start_child(trace_it, &tr);
	assert_int_equal(read(fds[0], &c, 1), 1);
	snprintf(number, sizeof(number), "%d", tracer);
	assert_int_equal(ferry_inject_open(t.pid, &other, &err), -EBUSY);
	assert_non_null(strstr(err.text, number));
	memset(&err, 0, sizeof(err));
	assert_int_equal(ferry_inject_syscall(inj, SYS_getpid, no_args, &result, &err), -EBUSY);
	assert_non_null(strstr(err.text, number));
	end_child(tracer);
	assert_int_equal(call_ok(inj, SYS_getpid, no_args), t.pid);
	assert_alive(&t);
	ferry_inject_close(inj);
	target_stop(&t);
	close(fds[0]);
	close(fds[1]);
}

static void test_unprivileged(void **state)
{
	struct ferry_error err = { 0 };
	struct ferry_inject *inj;
	struct target t;
	int status;
	pid_t pid;

	(void)state;
	if (geteuid()) {
		print_message("SKIP: needs root, for a process that another user may not trace\n");
		skip();
	}
	assert_int_equal(target_start(&t, TARGET_PPOLL), 0);
	pid = fork();
	if (!pid) {
		if (setresgid(65534, 65534, 65534) || setresuid(65534, 65534, 65534))
			_exit(2);
		_exit(ferry_inject_open(t.pid, &inj, &err) != -EPERM ||
		      !strstr(err.text, "not allowed"));
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	target_stop(&t);
}

/* An ELF file that calls pause(2) of the i386 ABI for ever. */
static const uint8_t elf32[] = {
	0x7f, 'E', 'L', 'F', 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0,
	2, 0, 3, 0, 1, 0, 0, 0, 0x54, 0x80, 0x04, 0x08, 52, 0, 0, 0,
	0, 0, 0, 0, 0, 0, 0, 0, 52, 0, 32, 0, 1, 0, 0, 0, 0, 0, 0, 0,
	1, 0, 0, 0, 0, 0, 0, 0, 0, 0x80, 0x04, 0x08, 0, 0x80, 0x04, 0x08,
	0x5d, 0, 0, 0, 0x5d, 0, 0, 0, 5, 0, 0, 0, 0, 0x10, 0, 0,
	0xb8, 29, 0, 0, 0, 0xcd, 0x80, 0xeb, 0xf7,
};

static void exec_elf32(void *arg)
{
	char name[] = "elf32", *const argv[] = { name, NULL }, *const envp[] = { NULL };

	fexecve(*(int *)arg, argv, envp);
	_exit(errno == ENOEXEC ? 77 : 1);
}

static void test_32bit(void **state)
{
	int fd = memfd_create("elf32", MFD_CLOEXEC), status = 0;
	struct ferry_error err = { 0 };
	struct ferry_inject *inj;
	pid_t pid;

	(void)state;
	assert_int_equal(write(fd, elf32, sizeof(elf32)), sizeof(elf32));
	pid = start_child(exec_elf32, &fd);
	for (;;) {
		char name[32] = "", sig[32];

		if (waitpid(pid, &status, WNOHANG) == pid) {
			print_message("SKIP: the kernel runs no 32-bit programs (%x)\n", status);
			close(fd);
			skip();
		}
		ferry_tracer_task_field(pid, pid, "Name:", name, sizeof(name));
		snprintf(sig, sizeof(sig), "%d", fd);
		if (!strcmp(name, sig) || strstr(name, "elf32")) /* kernels name it either way */
			break;
		sched_yield();
	}
	assert_int_equal(ferry_inject_open(pid, &inj, &err), -ENOEXEC);
	assert_non_null(strstr(err.text, "32-bit"));
	end_child(pid);
	close(fd);
}

static void on_sys(int sig)
{
	(void)sig;
	_exit(9);
}

static void forbid_getppid(void *arg)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getppid, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog prog = { .len = 4, .filter = code };

	signal(SIGSYS, on_sys);
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ||
	    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog) || write(*(int *)arg, "x", 1) != 1)
		_exit(8);
}

static void test_seccomp(void **state)
{
	struct ferry_error err = { 0 };
	struct ferry_inject *inj;
	int64_t result;
	int fds[2];
	pid_t pid;
	char c;

	(void)state;
	assert_int_equal(pipe(fds), 0);
	pid = start_child(forbid_getppid, &fds[1]);
	assert_int_equal(read(fds[0], &c, 1), 1);
	inj = open_ok(pid);
	assert_int_equal(ferry_inject_syscall(inj, SYS_getppid, no_args, &result, &err), -EPERM);
	assert_non_null(strstr(err.text, "seccomp"));
	assert_int_equal(call_ok(inj, SYS_getpid, no_args), pid);
	assert_int_equal(waitpid(pid, NULL, WNOHANG), 0);
	ferry_inject_close(inj);
	end_child(pid);
	close(fds[0]);
	close(fds[1]);
}

/* --- a main thread that cannot be stopped --- */

struct vforking {
	int fds[2];
	int threads;
};

static void *wait_thread(void *arg)
{
	(void)arg;
	for (;;)
		pause();
	return NULL;
}

/* The parent of a vfork waits where only a fatal signal reaches it. */
static void vfork_body(void *arg)
{
	struct vforking *v = arg;
	pthread_t thread;
	char c;

	if (v->threads)
		pthread_create(&thread, NULL, wait_thread, NULL);
	if (write(v->fds[1], "x", 1) != 1)
		_exit(8);
	if (!syscall(SYS_vfork)) {
		syscall(SYS_prctl, PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
		syscall(SYS_read, v->fds[0], &c, 1);
		syscall(SYS_exit, 0);
	}
	_exit(33);
}

static void run_unstoppable(int threads, int want)
{
	struct vforking v = { .threads = threads };
	struct ferry_error err = { 0 };
	struct ferry_inject *inj;
	int64_t result = 0;
	int ready[2], rc, status;
	uint64_t start;
	pid_t pid;
	char c;

	assert_int_equal(pipe(v.fds), 0);
	assert_int_equal(pipe(ready), 0);
	{
		struct vforking there = { { v.fds[0], ready[1] }, threads };

		pid = start_child(vfork_body, &there);
	}
	assert_int_equal(read(ready[0], &c, 1), 1);
	wait_state(pid, 'D');
	inj = open_ok(pid);
	start = ferry_clock_ns();
	rc = ferry_inject_syscall(inj, SYS_getpid, no_args, &result, &err);
	print_message("unstoppable main thread: %d after %llu ms\n", rc,
		      (unsigned long long)((ferry_clock_ns() - start) / 1000000));
	assert_int_equal(rc, want);
	if (want)
		assert_non_null(strstr(err.text, "could be stopped"));
	else
		assert_int_equal(result, pid);
	assert_true(ferry_clock_ns() - start < 6 * FERRY_NS_PER_S);
	assert_untraced(pid);
	/* It goes on as if nobody had tried. */
	assert_int_equal(write(v.fds[1], "x", 1), 1);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 33);
	ferry_inject_close(inj);
	close(v.fds[0]);
	close(v.fds[1]);
	close(ready[0]);
	close(ready[1]);
}

static void test_unstoppable_other_thread(void **state)
{
	(void)state;
	run_unstoppable(1, 0);
}

static void test_unstoppable(void **state)
{
	(void)state;
	run_unstoppable(0, -ETIMEDOUT);
}

/* A test that fails half-way must not make the next ones fail. */
static int no_probe(void **state)
{
	(void)state;
	ferry_tracer_probe = NULL;
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_resume_regs),
		cmocka_unit_test(test_frame_layout),
		cmocka_unit_test(test_transparent),
		cmocka_unit_test_teardown(test_abandoned, no_probe),
		cmocka_unit_test(test_stopped_group),
		cmocka_unit_test(test_userfaultfd),
		cmocka_unit_test_teardown(test_userfaultfd_unseen, no_probe),
		cmocka_unit_test(test_madvise),
		cmocka_unit_test(test_no_process),
		cmocka_unit_test(test_exec),
		cmocka_unit_test(test_busy),
		cmocka_unit_test(test_unprivileged),
		cmocka_unit_test(test_32bit),
		cmocka_unit_test(test_seccomp),
		cmocka_unit_test(test_unstoppable_other_thread),
		cmocka_unit_test(test_unstoppable),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
