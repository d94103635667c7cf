// SPDX-License-Identifier: GPL-2.0-or-later
/* Processes that no remote system call can be made in, each refused by name and left alone. */
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "inject/tracer.h"
#include "inject_rig.h"

static void test_no_process(void **state)
{
	struct ferry_error err = { 0 };
	struct ferry_inject *inj;
	int64_t result;
	struct target t;

	(void)state;
	assert_int_equal(target_start(&t, TARGET_PPOLL), 0);
	inj = rig_open(t.pid);
	kill(t.pid, SIGKILL);
	rig_wait_state(t.pid, 'Z');
	assert_int_equal(ferry_inject_syscall(inj, SYS_getpid, rig_no_args, &result, &err), -ESRCH);
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
	pid = rig_start_child(exec_on_byte, &fds[0]);
	inj = rig_open(pid);
	assert_int_equal(rig_call(inj, SYS_getpid, rig_no_args), pid);
	assert_int_equal(write(fds[1], "x", 1), 1);
	for (;;) {
		char name[32] = "";

		assert_int_equal(ferry_tracer_task_field(pid, pid, "Name:", name, sizeof(name)), 0);
		if (!strcmp(name, "sleep"))
			break;
		sched_yield();
	}
	assert_int_equal(ferry_inject_syscall(inj, SYS_getpid, rig_no_args, &result, &err), -ESRCH);
	assert_non_null(strstr(err.text, "another program"));
	rig_assert_untraced(pid);
	ferry_inject_close(inj);
	rig_end_child(pid);
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
	inj = rig_open(t.pid);
	assert_int_equal(pipe(fds), 0);
	tr = (struct tracing){ t.pid, fds[1] };
	tracer = rig_start_child(trace_it, &tr);
	assert_int_equal(read(fds[0], &c, 1), 1);
	snprintf(number, sizeof(number), "%d", tracer);
	assert_int_equal(ferry_inject_open(t.pid, &other, &err), -EBUSY);
	assert_non_null(strstr(err.text, number));
	memset(&err, 0, sizeof(err));
	assert_int_equal(ferry_inject_syscall(inj, SYS_getpid, rig_no_args, &result, &err), -EBUSY);
	assert_non_null(strstr(err.text, number));
	rig_end_child(tracer);
	assert_int_equal(rig_call(inj, SYS_getpid, rig_no_args), t.pid);
	rig_assert_alive(&t);
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
	pid = rig_start_child(exec_elf32, &fd);
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
	rig_end_child(pid);
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
	pid = rig_start_child(forbid_getppid, &fds[1]);
	assert_int_equal(read(fds[0], &c, 1), 1);
	inj = rig_open(pid);
	assert_int_equal(ferry_inject_syscall(inj, SYS_getppid, rig_no_args, &result, &err),
			 -EPERM);
	assert_non_null(strstr(err.text, "seccomp"));
	assert_int_equal(rig_call(inj, SYS_getpid, rig_no_args), pid);
	assert_int_equal(waitpid(pid, NULL, WNOHANG), 0);
	ferry_inject_close(inj);
	rig_end_child(pid);
	close(fds[0]);
	close(fds[1]);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_no_process),
		cmocka_unit_test(test_exec),
		cmocka_unit_test(test_busy),
		cmocka_unit_test(test_unprivileged),
		cmocka_unit_test(test_32bit),
		cmocka_unit_test(test_seccomp),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
