// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <linux/futex.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "target.h"

#define SLEEP_NS 2000000l
#define ALT_STACK_BYTES (256 * 1024)
#define SPIN_LOOPS 20000ull
#define RED_ZONE_WORDS 14

static struct target_report *report;
static uint8_t alt_stack[ALT_STACK_BYTES];

static const char *const kind_names[TARGET_KINDS] = {
	[TARGET_PPOLL] = "ppoll",
	[TARGET_NANOSLEEP] = "nanosleep",
	[TARGET_FUTEX] = "futex",
	[TARGET_POLL] = "poll",
	[TARGET_PIPE] = "pipe",
	[TARGET_COMPUTE] = "compute",
	[TARGET_SIGNALS] = "signals",
	[TARGET_SIGPPOLL] = "sigppoll",
};

const char *target_name(enum target_kind kind)
{
	return kind_names[kind];
}

static void failed(const char *what, long got, long want)
{
	if (!report->failures++)
		snprintf(report->what, sizeof(report->what), "%s: got %ld, want %ld", what, got,
			 want);
}

static void check(const char *what, long got, long want)
{
	if (got != want)
		failed(what, got, want);
}

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

static void step_ppoll(void)
{
	struct pollfd p = { .fd = report->fds[0], .events = POLLIN };
	sigset_t none, now;
	char c;

	sigprocmask(SIG_BLOCK, NULL, &now);
	check("SIGALRM is blocked", sigismember(&now, SIGALRM), 1);
	check("SIGUSR1 is blocked", sigismember(&now, SIGUSR1), 0);
	sigemptyset(&none);
	check("ppoll", ppoll(&p, 1, NULL, &none), 1);
	check("read after ppoll", read(report->fds[0], &c, 1), 1);
}

static void step_nanosleep(void)
{
	struct timespec t = { .tv_nsec = SLEEP_NS };
	uint64_t start = now_ns();

	check("nanosleep", nanosleep(&t, NULL), 0);
	if (now_ns() - start < (uint64_t)SLEEP_NS)
		failed("nanosleep was short (ns)", (long)(now_ns() - start), SLEEP_NS);
}

/* As the C library's own wrappers do it: the number is loaded just before the call. */
static long futex(int *word, long op, long val, const struct timespec *timeout)
{
	register long no_word __asm__("r8") = 0;
	register long bits __asm__("r9") = 0xffffffff;
	register const struct timespec *t __asm__("r10") = timeout;
	long ret;

	__asm__ volatile("mov $202, %%eax\n\tsyscall"
			 : "=a"(ret)
			 : "D"(word), "S"(op), "d"(val), "r"(t), "r"(no_word), "r"(bits)
			 : "rcx", "r11", "memory");
	return ret;
}

static void step_futex(void)
{
	struct timespec rel = { .tv_nsec = SLEEP_NS }, until;
	uint64_t end = now_ns() + SLEEP_NS;
	int word = 7;

	check("futex wait", futex(&word, FUTEX_WAIT, 7, &rel), -ETIMEDOUT);
	until.tv_sec = (time_t)(end / 1000000000ull);
	until.tv_nsec = (long)(end % 1000000000ull);
	check("futex wait until", futex(&word, FUTEX_WAIT_BITSET, 7, &until), -ETIMEDOUT);
}

static void step_poll(void)
{
	struct pollfd p = { .fd = report->fds[0], .events = POLLIN };

	check("poll", poll(&p, 1, 2), 0);
}

static void step_pipe(void)
{
	static uint8_t next;
	uint8_t c = 0;

	check("read of the pipe", read(report->fds[0], &c, 1), 1);
	check("byte read", c, next++);
}

/* What the registers held before and after the spin; the assembly knows the offsets. */
struct registers {
	uint64_t rax, rbx, rdx, rsi, rdi, rbp, r8, r9, r10, r12, r13, r14, r15;
	uint64_t rcx, r11, flags;
	uint64_t red_zone[RED_ZONE_WORDS];
	uint8_t ymm[16][32];
};

_Static_assert(offsetof(struct registers, rcx) == 104, "assembly");
_Static_assert(offsetof(struct registers, red_zone) == 128, "assembly");
_Static_assert(offsetof(struct registers, ymm) == 240, "assembly");

/*
 * spin_avx(in: rdi, out: rsi): load everything, count rcx down to nought and r11
 * up without touching a flag, store everything. rcx and r11 are the two that a
 * system call destroys. The red zone is the memory from rsp - 128 to rsp - 16.
 */
void spin_avx(const struct registers *in, struct registers *out);
void spin_sse(const struct registers *in, struct registers *out);

#define SPIN(name, mov_vec, vec)							\
	".globl " name "\n.type " name ", @function\n" name ":\n"			\
	"push %rbx\npush %rbp\npush %r12\npush %r13\npush %r14\npush %r15\n"		\
	"sub $24, %rsp\n"								\
	"mov %rsi, 0(%rsp)\n"								\
	".set i, 0\n.rept 14\n"								\
	"mov 128 + i * 8(%rdi), %rax\nmov %rax, -128 + i * 8(%rsp)\n"			\
	".set i, i + 1\n.endr\n"							\
	".irp i,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n"				\
	mov_vec " 240 + \\i * 32(%rdi), %" vec "\\i\n.endr\n"				\
	"push 120(%rdi)\npopfq\n"							\
	"mov 0(%rdi), %rax\nmov 8(%rdi), %rbx\nmov 16(%rdi), %rdx\n"			\
	"mov 24(%rdi), %rsi\nmov 40(%rdi), %rbp\nmov 48(%rdi), %r8\n"			\
	"mov 56(%rdi), %r9\nmov 64(%rdi), %r10\nmov 72(%rdi), %r12\n"			\
	"mov 80(%rdi), %r13\nmov 88(%rdi), %r14\nmov 96(%rdi), %r15\n"			\
	"mov 104(%rdi), %rcx\nmov 112(%rdi), %r11\nmov 32(%rdi), %rdi\n"		\
	"1: jrcxz 2f\nlea -1(%rcx), %rcx\nlea 1(%r11), %r11\njmp 1b\n"			\
	"2: mov %rax, 8(%rsp)\nmov 0(%rsp), %rax\n"					\
	"mov %rbx, 8(%rax)\nmov %rdx, 16(%rax)\nmov %rsi, 24(%rax)\n"			\
	"mov %rdi, 32(%rax)\nmov %rbp, 40(%rax)\nmov %r8, 48(%rax)\n"			\
	"mov %r9, 56(%rax)\nmov %r10, 64(%rax)\nmov %r12, 72(%rax)\n"			\
	"mov %r13, 80(%rax)\nmov %r14, 88(%rax)\nmov %r15, 96(%rax)\n"			\
	"mov %rcx, 104(%rax)\nmov %r11, 112(%rax)\n"					\
	"mov 8(%rsp), %rbx\nmov %rbx, 0(%rax)\n"					\
	"pushfq\npop %rbx\nmov %rbx, 120(%rax)\ncld\n"					\
	".set i, 0\n.rept 14\n"								\
	"mov -128 + i * 8(%rsp), %rbx\nmov %rbx, 128 + i * 8(%rax)\n"			\
	".set i, i + 1\n.endr\n"							\
	".irp i,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n"				\
	mov_vec " %" vec "\\i, 240 + \\i * 32(%rax)\n.endr\n"				\
	"add $24, %rsp\n"								\
	"pop %r15\npop %r14\npop %r13\npop %r12\npop %rbp\npop %rbx\nret\n"		\
	".size " name ", . - " name "\n"

__asm__(".text\n" SPIN("spin_avx", "vmovdqu", "ymm") SPIN("spin_sse", "movdqu", "xmm"));

static void step_compute(void)
{
	/* DF, OF, SF, ZF, AF, PF, CF in changing patterns; IF and bit 1 are always set. */
	static const uint64_t flags[] = { 0xed7, 0x242, 0x697, 0xa83 };
	static uint64_t seed = 0x9e3779b97f4a7c15ull;
	struct registers in, out;
	uint8_t *bytes = (uint8_t *)&in;
	size_t i;

	for (i = 0; i < sizeof(in); i++) {
		seed = seed * 6364136223846793005ull + 1442695040888963407ull;
		bytes[i] = (uint8_t)(seed >> 56);
	}
	in.rcx = SPIN_LOOPS;
	in.flags = flags[report->loops % 4];
	out = in;
	if (__builtin_cpu_supports("avx"))
		spin_avx(&in, &out);
	else
		spin_sse(&in, &out);
	in.rcx = 0;
	in.r11 += SPIN_LOOPS;
	check("flags", (long)out.flags, (long)in.flags);
	check("general registers differ", !!memcmp(&in, &out, offsetof(struct registers, flags)),
	      0);
	check("red zone differs", !!memcmp(in.red_zone, out.red_zone, sizeof(in.red_zone)), 0);
	check("vector registers differ", !!memcmp(in.ymm, out.ymm, sizeof(in.ymm)), 0);
}

static void on_alarm(int sig)
{
	uint8_t here;

	(void)sig;
	if ((uintptr_t)&here - (uintptr_t)alt_stack >= ALT_STACK_BYTES)
		failed("handler is not on its stack", 1, 0);
	report->signals++;
}

static void start_timer(int flags, long us)
{
	struct itimerval it = { { 0, us }, { 0, us } };
	stack_t ss = { .ss_sp = alt_stack, .ss_size = ALT_STACK_BYTES };
	struct sigaction sa = { .sa_handler = on_alarm, .sa_flags = flags | SA_ONSTACK };

	sigaltstack(&ss, NULL);
	sigaction(SIGALRM, &sa, NULL);
	setitimer(ITIMER_REAL, &it, NULL);
}

static void step_signals(void)
{
	stack_t ss;

	step_pipe();
	check("sigaltstack", sigaltstack(NULL, &ss), 0);
	check("alternate stack moved", ss.ss_sp != alt_stack, 0);
	check("alternate stack flags", ss.ss_flags, 0);
	check("alternate stack size", (long)ss.ss_size, ALT_STACK_BYTES);
}

static void step_sigppoll(void)
{
	uint64_t before = report->signals;
	sigset_t none, now;

	sigemptyset(&none);
	check("ppoll", ppoll(NULL, 0, NULL, &none), -1);
	check("errno of ppoll", errno, EINTR);
	check("handlers run in ppoll", (long)(report->signals - before), 1);
	sigprocmask(SIG_BLOCK, NULL, &now);
	check("SIGALRM is blocked", sigismember(&now, SIGALRM), 1);
}

static void block_alarm(void)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGALRM);
	sigprocmask(SIG_BLOCK, &set, NULL);
}

static void (*const kind_steps[TARGET_KINDS])(void) = {
	[TARGET_PPOLL] = step_ppoll,	     [TARGET_NANOSLEEP] = step_nanosleep,
	[TARGET_FUTEX] = step_futex,	     [TARGET_POLL] = step_poll,
	[TARGET_PIPE] = step_pipe,	     [TARGET_COMPUTE] = step_compute,
	[TARGET_SIGNALS] = step_signals,     [TARGET_SIGPPOLL] = step_sigppoll,
};

static void run(enum target_kind kind)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (kind == TARGET_SIGNALS)
		start_timer(SA_RESTART, 700);
	if (kind == TARGET_SIGPPOLL || kind == TARGET_PPOLL)
		block_alarm();
	if (kind == TARGET_SIGPPOLL)
		start_timer(0, 700);
	for (;;) {
		kind_steps[kind]();
		report->loops++;
	}
}

int target_start(struct target *t, enum target_kind kind)
{
	int fds[2];

	memset(t, 0, sizeof(*t));
	t->kind = kind;
	report = mmap(NULL, sizeof(*report), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
		      -1, 0);
	if (report == MAP_FAILED)
		return -errno;
	if (pipe(fds))
		return -errno;
	report->fds[0] = fds[0];
	report->fds[1] = fds[1];
	t->report = report;
	t->pid = fork();
	if (!t->pid)
		run(kind);
	return t->pid < 0 ? -errno : 0;
}

void target_poke(struct target *t)
{
	uint8_t c = t->next++;

	if (write(t->report->fds[1], &c, 1) != 1)
		perror("write to the target's pipe");
}

int target_alive(struct target *t, unsigned int ms)
{
	uint64_t before = t->report->loops, until = now_ns() + ms * 1000000ull;
	struct timespec pause = { .tv_nsec = 200000 };

	if (t->kind == TARGET_PPOLL || t->kind == TARGET_PIPE || t->kind == TARGET_SIGNALS)
		target_poke(t);
	while (t->report->loops == before) {
		if (waitpid(t->pid, NULL, WNOHANG) != 0)
			return -ECHILD;
		if (now_ns() > until)
			return -ETIMEDOUT;
		nanosleep(&pause, NULL);
	}
	return t->report->failures ? -EIO : 0;
}

void target_stop(struct target *t)
{
	if (t->pid <= 0)
		return;
	kill(t->pid, SIGKILL);
	waitpid(t->pid, NULL, 0);
	close(t->report->fds[0]);
	close(t->report->fds[1]);
	munmap(t->report, sizeof(*t->report));
	t->pid = 0;
}
