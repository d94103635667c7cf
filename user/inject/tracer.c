// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * One remote system call. From the target's thread's point of view:
 *
 *	stopped by PTRACE_INTERRUPT, registers O
 *	a signal frame F (frame.h) that restores O is written below its red zone
 *	one PTRACE_SETREGS: rip = "syscall; ret", rsp = F		<- [A
 *	it runs the call, stops at its exit; we read the result
 *	it stops again before it returns to user mode
 *	one PTRACE_SETREGS: O						<- B]
 *	detached
 *
 * Whenever we die the kernel detaches and the thread goes on from where it is.
 * Before A and after B that is O, as if nothing had been: the kernel itself
 * restarts the system call that the stop interrupted, with its restart block
 * and the signals that are pending, which is why this way is preferred. Between
 * A and B the thread runs by itself to the end of the sequence: the call, ret,
 * rt_sigreturn(F), O. No signal is ever left behind, since no stop of ours is
 * one (PTRACE_O_TRACESYSGOOD stops carry number 0x85, which is none; a SIGTRAP
 * of single-stepping would be delivered and kill).
 *
 * What dying between A and B can change for the thread (nothing else is known):
 * - a wait with a relative timeout (nanosleep, poll, futex) starts over;
 * - one in restart_syscall(2) whose number cannot be told sees EINTR; such a
 *   thread is used only when there is no other;
 * - a signal handled just then does not turn its ppoll or pause into EINTR;
 * - if the target's seccomp filter traps the call, the thread gets the SIGSYS.
 * What any ptrace stop changes, dying or not: the calls that the kernel never
 * restarts (epoll_wait, KVM_RUN, ... see signal(7)) return EINTR.
 *
 * A signal that arrives between A and the call: O is put back first, the kernel
 * delivers it (EINTR or restart, as it should be), and we begin again.
 *
 * All of it runs in a thread of its own, because a thread that does not stop
 * cannot be detached from: only the end of its tracer (thread) releases it.
 */
#include <elf.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "inject/frame.h"
#include "inject/place.h"
#include "inject/tracer.h"

/* How long an injected call may take; unmapping a terabyte takes seconds. */
#define CALL_MS 10000
/* How long the kernel may take to detach after the end of a tracer thread. */
#define DETACH_MS 1000
/* Stops come within microseconds: look without sleeping for this long. */
#define SPIN_NS 200000ull
#define POLL_NS 50000ull
/* Signals that may come in our way before another thread is tried. */
#define ATTEMPTS_MAX 32
/* The stop of a system call with PTRACE_O_TRACESYSGOOD. */
#define STOP_SYSCALL (SIGTRAP | 0x80)
#define CS_64BIT 0x33
#define EFLAGS_TF 0x100ull
#define EFLAGS_DF 0x400ull
#define EFLAGS_AC 0x40000ull
/* Signals looked at in the queue of a thread. */
#define SIGINFO_MAX 8
/* SYS_SECCOMP of <asm-generic/siginfo.h>, which the C library does not show. */
#define SYS_SECCOMP_CODE 1
/* From <linux/ptrace.h>, which clashes with <sys/ptrace.h>. */
#define GET_RSEQ_CONFIGURATION 0x420f

struct rseq_configuration {
	uint64_t rseq_abi_pointer;
	uint32_t rseq_abi_size;
	uint32_t signature;
	uint32_t flags;
	uint32_t pad;
};

struct session {
	struct ferry_tracer_call *call;
	struct ferry_error *err;
	int rc;
	int abandoned;
	int attached;
	pid_t tracer_tid;
	struct user_regs_struct old;
	uint64_t sigmask;
	uint8_t xstate[FERRY_FRAME_XSTATE_MAX] __attribute__((aligned(64)));
	struct ferry_frame frame;
};

int (*ferry_tracer_probe)(void);

/* True from the moment that a test wants us to be dead. */
static int gone(struct session *s)
{
	if (!s->abandoned && ferry_tracer_probe && ferry_tracer_probe())
		s->abandoned = 1;
	return s->abandoned;
}

static int trace(struct session *s, int request, uintptr_t addr, uintptr_t data)
{
	if (gone(s))
		return -ECANCELED;
	if (ptrace((enum __ptrace_request)request, s->call->tid, (void *)addr, (void *)data) < 0)
		return -errno;
	return 0;
}

static int get_regs(struct session *s, struct user_regs_struct *regs)
{
	return trace(s, PTRACE_GETREGS, 0, (uintptr_t)regs);
}

static int set_regs(struct session *s, const struct user_regs_struct *regs)
{
	return trace(s, PTRACE_SETREGS, 0, (uintptr_t)regs);
}

static int detach(struct session *s, int sig)
{
	int rc = trace(s, PTRACE_DETACH, 0, (uintptr_t)sig);

	if (!rc)
		s->attached = 0;
	return rc;
}

/* Return: 0, -ESRCH when the thread has ended, -ETIMEDOUT. */
static int wait_stop(struct session *s, int *status, uint64_t deadline_ns)
{
	uint64_t spin_until = ferry_clock_ns() + SPIN_NS;
	pid_t got;

	for (;;) {
		uint64_t now;

		if (gone(s))
			return -ECANCELED;
		got = waitpid(s->call->tid, status, __WALL | __WNOTHREAD | WNOHANG);
		if (got < 0)
			return -ESRCH; /* ECHILD: another thread ran exec */
		if (got > 0)
			return WIFSTOPPED(*status) ? 0 : -ESRCH;
		now = ferry_clock_ns();
		if (now >= deadline_ns)
			return -ETIMEDOUT;
		if (now < spin_until)
			sched_yield();
		else
			ferry_clock_sleep_ns(POLL_NS);
	}
}

static int is_event_stop(int status)
{
	return status >> 16 == PTRACE_EVENT_STOP;
}

static int is_syscall_stop(int status)
{
	return WSTOPSIG(status) == STOP_SYSCALL && !(status >> 16);
}

/* The signal that a stop is about to deliver; 0 for the other stops. */
static int stop_signal(int status)
{
	return is_event_stop(status) || is_syscall_stop(status) || status >> 16 ? 0 :
										  WSTOPSIG(status);
}

static int seize(struct session *s)
{
	pid_t pid = s->call->pid, tid = s->call->tid;
	char tracer[32], state[32];
	int rc;

	rc = trace(s, PTRACE_SEIZE, 0, PTRACE_O_TRACESYSGOOD);
	if (!rc) {
		s->attached = 1;
		return 0;
	}
	if (rc != -EPERM)
		return rc;
	if (!ferry_tracer_task_field(pid, tid, "TracerPid:", tracer, sizeof(tracer)) &&
	    atoi(tracer))
		return ferry_error_set(s->err, EBUSY,
				       "running a call in process %d: thread %d is being traced by "
				       "process %s; end that debugger or tracer and try again",
				       pid, tid, tracer);
	if (ferry_tracer_task_field(pid, tid, "State:", state, sizeof(state)) ||
	    state[0] == 'Z' || state[0] == 'X')
		return -ESRCH;
	return ferry_error_set(s->err, EPERM,
			       "running a call in process %d: not allowed to trace it; run as root, "
			       "or as its user with kernel.yama.ptrace_scope=0", pid);
}

/* Brings the thread to a stop in which nothing but our interrupt is pending. */
static int stop_thread(struct session *s, uint64_t deadline_ns)
{
	int status, rc = trace(s, PTRACE_INTERRUPT, 0, 0);

	while (!rc) {
		rc = wait_stop(s, &status, deadline_ns);
		if (rc || is_event_stop(status))
			return rc;
		/* Any other stop has eaten the interrupt. */
		rc = trace(s, PTRACE_INTERRUPT, 0, 0);
		if (!rc)
			rc = trace(s, PTRACE_CONT, 0, (uintptr_t)stop_signal(status));
	}
	return rc;
}

static int in_rseq_section(struct session *s)
{
	struct rseq_configuration conf;

	if (gone(s) || ptrace((enum __ptrace_request)GET_RSEQ_CONFIGURATION, s->call->tid,
			      (void *)sizeof(conf), &conf) != sizeof(conf))
		return 0;
	return conf.rseq_abi_pointer &&
	       ferry_place_in_rseq(s->call->pid, s->old.rip, conf.rseq_abi_pointer);
}

static int put_frame(struct session *s)
{
	struct iovec local = { s->frame.bytes, s->frame.len };
	struct iovec remote = { (void *)(uintptr_t)s->frame.addr, s->frame.len };

	if (!ferry_place_has_stack(s->call->pid, s->old.rsp, s->frame.addr))
		return -EAGAIN;
	if (gone(s))
		return -ECANCELED;
	if (process_vm_writev(s->call->pid, &local, 1, &remote, 1, 0) != (ssize_t)s->frame.len)
		return -EAGAIN;
	return 0;
}

/* Saves the stopped thread's state and writes the frame that restores it. */
static int prepare(struct session *s)
{
	struct iovec xstate = { s->xstate, sizeof(s->xstate) };
	struct user_regs_struct resume;
	enum ferry_frame_resume how;
	int rc;

	rc = ferry_gadgets_check(s->call->mem_fd, &s->call->gadgets);
	if (!rc)
		rc = get_regs(s, &s->old);
	if (rc)
		return rc;
	if (s->old.cs != CS_64BIT)
		return -ENOEXEC;
	if (in_rseq_section(s))
		return -EAGAIN;
	how = ferry_frame_resume_regs(&s->old, ferry_place_restarted_call(s->call->pid, &s->old),
				      &resume);
	if (how == FERRY_FRAME_UNKNOWN && !s->call->inexact_ok)
		return -EAGAIN;
	rc = trace(s, PTRACE_GETSIGMASK, sizeof(s->sigmask), (uintptr_t)&s->sigmask);
	if (rc)
		return rc;
	rc = trace(s, PTRACE_GETREGSET, NT_X86_XSTATE, (uintptr_t)&xstate);
	if (rc == -ENODEV || rc == -EINVAL) { /* a processor without XSAVE */
		xstate.iov_len = sizeof(struct user_fpregs_struct);
		rc = trace(s, PTRACE_GETFPREGS, 0, (uintptr_t)s->xstate);
	}
	if (!rc)
		rc = ferry_frame_build(&s->frame, &resume, s->sigmask, s->call->gadgets.restorer,
				       s->xstate, xstate.iov_len);
	return rc ? rc : put_frame(s);
}

/* Point A: from here on the thread gets back to where it was without us. */
static int enter(struct session *s)
{
	struct user_regs_struct r = s->old;
	const uint64_t *a = s->call->args;

	r.rip = s->call->gadgets.call;
	r.rsp = s->frame.addr;
	r.rax = (unsigned long long)s->call->nr;
	r.orig_rax = (unsigned long long)-1; /* no restart of the interrupted call here */
	r.rdi = a[0];
	r.rsi = a[1];
	r.rdx = a[2];
	r.r10 = a[3];
	r.r8 = a[4];
	r.r9 = a[5];
	r.eflags &= ~(EFLAGS_TF | EFLAGS_DF | EFLAGS_AC);
	return set_regs(s, &r);
}

static int at_our_call(struct session *s, const struct user_regs_struct *regs)
{
	return regs->rip == s->call->gadgets.call + FERRY_GADGET_SYSCALL_BYTES &&
	       regs->rsp == s->frame.addr;
}

/* A signal came before the call ran: let the kernel deliver it to the thread as it was. */
static int signal_first(struct session *s, int sig)
{
	int rc = set_regs(s, &s->old);

	if (!rc)
		rc = trace(s, PTRACE_CONT, 0, (uintptr_t)sig);
	return rc ? rc : -EAGAIN;
}

/*
 * A seccomp filter that traps skips the call, leaves its number as the result and
 * queues a SIGSYS. The thread did nothing wrong, so it must not see that.
 */
static int trapped_by_seccomp(struct session *s)
{
	struct __ptrace_peeksiginfo_args which = { .off = 0, .nr = SIGINFO_MAX };
	siginfo_t info[SIGINFO_MAX];
	int i, n;

	if (s->call->result != s->call->nr || gone(s))
		return 0;
	n = (int)ptrace(PTRACE_PEEKSIGINFO, s->call->tid, &which, info);
	for (i = 0; i < n; i++)
		if (info[i].si_signo == SIGSYS && info[i].si_code == SYS_SECCOMP_CODE)
			return 1;
	return 0;
}

/* Swallows that SIGSYS and puts the thread back. */
static int leave_trapped(struct session *s)
{
	int status, rc = trace(s, PTRACE_CONT, 0, 0);

	if (!rc)
		rc = wait_stop(s, &status, ferry_clock_in_ms(CALL_MS));
	if (rc)
		return rc;
	rc = set_regs(s, &s->old);
	if (!rc)
		rc = detach(s, stop_signal(status) == SIGSYS ? 0 : stop_signal(status));
	return rc ? rc : -EACCES;
}

/*
 * Lets the thread run to the exit of the call.
 * Return: 0 and the result; -EAGAIN a signal came first and is on its way;
 * -EACCES a seccomp filter forbids the call, the thread is detached.
 */
static int run_call(struct session *s)
{
	uint64_t deadline_ns = ferry_clock_in_ms(CALL_MS);
	struct user_regs_struct regs;
	int status, rc, entered = 0;

	for (;;) {
		rc = trace(s, PTRACE_SYSCALL, 0, 0);
		if (!rc)
			rc = wait_stop(s, &status, deadline_ns);
		if (rc)
			return rc;
		if (stop_signal(status))
			return signal_first(s, stop_signal(status));
		if (!is_syscall_stop(status))
			continue; /* the group was stopped or continued */
		rc = get_regs(s, &regs);
		if (rc)
			return rc;
		if (!at_our_call(s, &regs))
			return -EINTR;
		if (entered++)
			break;
	}
	s->call->result = (int64_t)regs.rax;
	if (trapped_by_seccomp(s))
		return leave_trapped(s);
	return s->call->result <= -512 && s->call->result >= -516 ? -EINTR : 0;
}

/*
 * Point B. At the exit of a call the kernel does not look for one to restart,
 * in an interrupt stop it does, so go from the one to the other first.
 */
static int leave(struct session *s)
{
	struct user_regs_struct regs;
	int status, rc;

	rc = trace(s, PTRACE_INTERRUPT, 0, 0);
	if (!rc)
		rc = trace(s, PTRACE_CONT, 0, 0);
	if (!rc)
		rc = wait_stop(s, &status, ferry_clock_in_ms(CALL_MS));
	if (!rc)
		rc = get_regs(s, &regs);
	if (!rc && at_our_call(s, &regs))
		rc = set_regs(s, &s->old);
	if (!rc)
		rc = detach(s, stop_signal(status));
	return rc;
}

static int run_session(struct session *s)
{
	uint64_t deadline_ns = ferry_clock_in_ms(s->call->stop_ms);
	int rc, attempts = 0;

	rc = seize(s);
	if (rc)
		return rc;
	do {
		rc = stop_thread(s, deadline_ns);
		if (rc)
			return rc;
		rc = prepare(s);
		if (!rc)
			rc = enter(s);
		if (rc) {
			detach(s, 0);
			return rc;
		}
		rc = run_call(s);
	} while (rc == -EAGAIN && ++attempts < ATTEMPTS_MAX);
	if (!rc) {
		/* The result stands; should this fail, the thread finds its way by itself. */
		leave(s);
	} else if (rc != -EAGAIN && rc != -EACCES) {
		rc = -EINTR;
	}
	return rc;
}

static void *session_thread(void *arg)
{
	struct session *s = arg;

	s->tracer_tid = gettid();
	s->rc = run_session(s);
	return NULL;
}

/* Joining a thread does not wait for the end of its tracing. */
static void wait_detached(const struct ferry_tracer_call *call, pid_t tracer_tid)
{
	uint64_t deadline_ns = ferry_clock_in_ms(DETACH_MS);
	char tracer[32];

	while (!ferry_tracer_task_field(call->pid, call->tid, "TracerPid:", tracer,
					sizeof(tracer)) &&
	       atoi(tracer) == tracer_tid && ferry_clock_ns() < deadline_ns)
		ferry_clock_sleep_ns(POLL_NS);
}

int ferry_tracer_run(struct ferry_tracer_call *call, struct ferry_error *err)
{
	struct session *s = calloc(1, sizeof(*s));
	sigset_t all, old;
	pthread_t thread;
	int rc;

	if (!s)
		return ferry_error_set(err, ENOMEM, "running a call in process %d: no memory",
				       call->pid);
	s->call = call;
	s->err = err;
	/* The helper thread takes no signal of the program's. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	rc = pthread_create(&thread, NULL, session_thread, s);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (rc) {
		free(s);
		return ferry_error_set(err, rc,
				       "running a call in process %d: no thread for it: %s",
				       call->pid, strerror(rc));
	}
	pthread_join(thread, NULL);
	if (s->attached)
		wait_detached(call, s->tracer_tid);
	rc = s->rc;
	free(s);
	return rc;
}

int ferry_tracer_task_field(pid_t pid, pid_t tid, const char *name, char *value, int size)
{
	char path[64], line[256];
	size_t len = strlen(name);
	FILE *f;

	value[0] = '\0';
	snprintf(path, sizeof(path), "/proc/%d/task/%d/status", pid, tid);
	f = fopen(path, "re");
	if (!f)
		return -errno;
	while (fgets(line, sizeof(line), f)) {
		if (strncmp(line, name, len))
			continue;
		snprintf(value, (size_t)size, "%s", line + len + strspn(line + len, " \t"));
		value[strcspn(value, "\n")] = '\0';
		break;
	}
	fclose(f);
	return 0;
}
