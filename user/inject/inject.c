// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Which thread runs a call, and the calls that ferry needs. How one call runs,
 * and why our death does no harm, is in tracer.c.
 *
 * The main thread is asked first: in a VMM it waits in ppoll most of the time,
 * which restarts without a trace. The others follow in the order of /proc when
 * it cannot be used (uninterruptible sleep, no room on its stack, a restartable
 * sequence). A second pass takes threads that the first found less than ideal.
 */
#include <dirent.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/io.h"
#include "base/uapi_compat.h"
#include "inject/gadget.h"
#include "inject/inject.h"
#include "inject/tracer.h"

#define MAIN_STOP_MS 2000
/* A thread other than the main one is one of many: do not wait as long for it. */
#define OTHER_STOP_MS 250
#define ALL_STOP_MS 4000
/* How long a thread that goes on by itself may take to make our call. */
#define LOOK_MS 50
/* And when it is a stranger's call, and there is no processor for it. */
#define SETTLE_MS 1000
/* Beyond what leaving the kernel takes. */
#define SETTLED_NS 200000
#define POLL_THREAD_NS 200000
#define PASSES 4
#define PASS_PAUSE_NS (2 * FERRY_NS_PER_MS)
#define THREADS_MAX 64
/* More userfaultfds than any VMM holds. */
#define UFFDS_MAX 256
#define UFFD_LINK "anon_inode:[userfaultfd]"

struct ferry_inject {
	pid_t pid;
	int mem_fd;
	struct ferry_gadgets gadgets;
};

static int no_such_process(pid_t pid, struct ferry_error *err)
{
	return ferry_error_set(err, ESRCH,
			       "running a call in process %d: no such process, or it has ended or "
			       "started another program", pid);
}

/* Only the file tells before the process is stopped; a stop checks the code segment too. */
static int check_architecture(pid_t pid, struct ferry_error *err)
{
	unsigned char id[EI_NIDENT + 4];
	char path[64];
	int fd, rc;

	snprintf(path, sizeof(path), "/proc/%d/exe", pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return 0; /* deleted or unreadable: the gadgets and the stop decide */
	rc = ferry_io_pread(fd, id, sizeof(id), 0);
	close(fd);
	if (rc)
		return 0;
	if (id[EI_CLASS] == ELFCLASS64 && (id[18] | id[19] << 8) == EM_X86_64)
		return 0;
	return ferry_error_set(err, ENOEXEC,
			       "running a call in process %d: it is %s program; only 64-bit x86 "
			       "programs are supported, use a 64-bit build of the VMM",
			       pid, id[EI_CLASS] == ELFCLASS32 ? "a 32-bit" : "a foreign");
}

static int check_status(pid_t pid, struct ferry_error *err)
{
	char value[64];

	if (ferry_tracer_task_field(pid, pid, "Tgid:", value, sizeof(value)))
		return no_such_process(pid, err);
	if (ferry_tracer_task_field(pid, pid, "State:", value, sizeof(value)) ||
	    value[0] == 'Z' || value[0] == 'X')
		return no_such_process(pid, err);
	if (!ferry_tracer_task_field(pid, pid, "TracerPid:", value, sizeof(value)) && atoi(value))
		return ferry_error_set(err, EBUSY,
				       "running a call in process %d: it is being traced by process "
				       "%s; end that debugger or tracer and try again", pid, value);
	if (!ferry_tracer_task_field(pid, pid, "x86_Thread_features:", value, sizeof(value)) &&
	    strstr(value, "shstk"))
		return ferry_error_set(err, ENOEXEC,
				       "running a call in process %d: it runs with a shadow stack, "
				       "which forbids that; start it with "
				       "GLIBC_TUNABLES=glibc.cpu.x86_shstk=off", pid);
	return 0;
}

int ferry_inject_open(pid_t pid, struct ferry_inject **out, struct ferry_error *err)
{
	struct ferry_inject *inj;
	char path[64];
	int rc;

	*out = NULL;
	rc = check_status(pid, err);
	if (rc)
		return rc;
	rc = check_architecture(pid, err);
	if (rc)
		return rc;
	inj = calloc(1, sizeof(*inj));
	if (!inj)
		return ferry_error_set(err, ENOMEM, "running a call in process %d: no memory", pid);
	inj->pid = pid;
	snprintf(path, sizeof(path), "/proc/%d/mem", pid);
	inj->mem_fd = open(path, O_RDONLY | O_CLOEXEC);
	if (inj->mem_fd < 0) {
		rc = errno == EACCES || errno == EPERM ?
			ferry_error_set(err, EPERM,
					"running a call in process %d: not allowed to trace it "
					"(%s); run as root, or as its user with "
					"kernel.yama.ptrace_scope=0",
					pid, path) :
			no_such_process(pid, err);
		goto err_free;
	}
	rc = ferry_gadgets_find(pid, inj->mem_fd, &inj->gadgets, err);
	if (rc)
		goto err_close;
	*out = inj;
	return 0;

err_close:
	close(inj->mem_fd);
err_free:
	free(inj);
	return rc;
}

void ferry_inject_close(struct ferry_inject *inj)
{
	if (!inj)
		return;
	close(inj->mem_fd);
	free(inj);
}

/* The main thread first. Return: how many, or -errno. */
static int list_threads(pid_t pid, pid_t *tids, int max)
{
	struct dirent *entry;
	char path[64];
	int n = 0;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/task", pid);
	dir = opendir(path);
	if (!dir)
		return -errno;
	tids[n++] = pid;
	while (n < max && (entry = readdir(dir))) {
		pid_t tid = atoi(entry->d_name);

		if (tid > 0 && tid != pid)
			tids[n++] = tid;
	}
	closedir(dir);
	return n;
}

/* Would another thread, or the same one later, do better after this failure? */
static int worth_another(int rc)
{
	return rc == -EAGAIN || rc == -ETIMEDOUT || rc == -ESRCH;
}

/* One pass over the threads. Return: as ferry_tracer_run(), for the last one tried. */
static int try_threads(struct ferry_inject *inj, struct ferry_tracer_call *call,
		       uint64_t deadline_ns, struct ferry_error *err)
{
	pid_t tids[THREADS_MAX] = { 0 };
	int i, n, rc = -ESRCH;

	n = list_threads(inj->pid, tids, THREADS_MAX);
	for (i = 0; i < n; i++) {
		call->tid = tids[i];
		call->stop_ms = i ? OTHER_STOP_MS : MAIN_STOP_MS;
		rc = ferry_tracer_run(call, err);
		if (!worth_another(rc))
			return rc;
		if (ferry_clock_ns() >= deadline_ns)
			return -ETIMEDOUT;
	}
	return rc;
}

static int explain(struct ferry_inject *inj, long nr, int rc, struct ferry_error *err)
{
	pid_t pid = inj->pid;

	if (ferry_gadgets_check(inj->mem_fd, &inj->gadgets) == -ESRCH)
		return no_such_process(pid, err);
	switch (rc) {
	case -EBUSY:
	case -EPERM:
	case -ENOMEM:
		return rc; /* said where it was found */
	case -EACCES:
		return ferry_error_set(err, EPERM,
				       "running system call %ld in process %d: its seccomp filter "
				       "forbids it; loosen that sandbox", nr, pid);
	case -EAGAIN:
	case -ESRCH:
	case -ETIMEDOUT:
		return ferry_error_set(err, ETIMEDOUT,
				       "running system call %ld in process %d: none of its threads "
				       "could be stopped in time (uninterruptible sleep, or no "
				       "room on the stack); try again when its I/O has settled", nr, pid);
	case -ENOEXEC:
		return ferry_error_set(err, ENOEXEC,
				       "running system call %ld in process %d: its code is not 64-bit, "
				       "or has changed while it runs", nr, pid);
	case -EINTR:
	case -ECANCELED:
		return ferry_error_set(err, EINTR,
				       "running system call %ld in process %d: the process went on "
				       "before the result was seen; the call may have been made", nr, pid);
	default:
		return ferry_error_set(err, -rc, "running system call %ld in process %d: %s", nr,
				       pid, strerror(-rc));
	}
}

int ferry_inject_syscall(struct ferry_inject *inj, long nr, const uint64_t args[6],
			 int64_t *result, struct ferry_error *err)
{
	uint64_t deadline_ns = ferry_clock_in_ms(ALL_STOP_MS);
	struct ferry_tracer_call call = {
		.pid = inj->pid,
		.mem_fd = inj->mem_fd,
		.gadgets = inj->gadgets,
		.nr = nr,
		.args = args,
	};
	int pass, rc = -ESRCH;

	for (pass = 0; pass < PASSES; pass++) {
		if (pass > 1)
			ferry_clock_sleep_ns(PASS_PAUSE_NS);
		call.inexact_ok = pass > 0;
		rc = try_threads(inj, &call, deadline_ns, err);
		if (rc != -EAGAIN)
			break;
	}
	if (rc)
		return explain(inj, nr, rc, err);
	*result = call.result;
	return 0;
}

/* Running time of a thread in ns, and whether it waits of its own accord. */
static uint64_t thread_ran_ns(pid_t pid, pid_t tid, bool *waits)
{
	unsigned long long ran_ns = 0;
	char path[64], state[32];
	FILE *f;

	*waits = ferry_tracer_task_field(pid, tid, "State:", state, sizeof(state)) ||
		 strchr("STZXI", state[0]);
	snprintf(path, sizeof(path), "/proc/%d/task/%d/schedstat", pid, tid);
	f = fopen(path, "re");
	if (!f)
		return 0;
	if (fscanf(f, "%llu", &ran_ns) != 1)
		ran_ns = 0;
	fclose(f);
	return ran_ns;
}

void ferry_inject_settle(pid_t pid)
{
	uint64_t deadline_ns = ferry_clock_in_ms(SETTLE_MS);
	pid_t tids[THREADS_MAX] = { 0 };
	int i, n = list_threads(pid, tids, THREADS_MAX);

	for (i = 0; i < n; i++) {
		bool waits;
		uint64_t before_ns = thread_ran_ns(pid, tids[i], &waits);

		/* The call is the first thing a thread does that goes on; so one that ran made it. */
		while (!waits && ferry_clock_ns() < deadline_ns &&
		       thread_ran_ns(pid, tids[i], &waits) < before_ns + SETTLED_NS)
			ferry_clock_sleep_ns(POLL_THREAD_NS);
	}
}

static int by_number(const void *a, const void *b)
{
	return *(const int *)a - *(const int *)b;
}

int ferry_inject_find_fds(pid_t pid, const char *link, int *fds, int max)
{
	char path[64], target[512];
	struct dirent *entry;
	int found = 0;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/fd", pid);
	dir = opendir(path);
	if (!dir)
		return -errno;
	/* /proc lists descriptors in ascending order, but does not promise it. */
	while ((entry = readdir(dir))) {
		ssize_t n = readlinkat(dirfd(dir), entry->d_name, target, sizeof(target) - 1);

		if (n < 0)
			continue;
		target[n] = '\0';
		if (strcmp(target, link))
			continue;
		if (found < max)
			fds[found] = atoi(entry->d_name);
		found++;
	}
	closedir(dir);
	qsort(fds, (size_t)(found < max ? found : max), sizeof(*fds), by_number);
	return found;
}

int ferry_inject_take_fd(pid_t pid, int remote_fd)
{
	int pidfd, fd;

	pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	if (pidfd < 0)
		return -errno;
	fd = (int)syscall(SYS_pidfd_getfd, pidfd, remote_fd, 0);
	if (fd < 0)
		fd = -errno;
	close(pidfd);
	return fd;
}

/* The one userfaultfd that is in the target now and was not before. Return: it, or -EINTR. */
static int look_for_uffd(pid_t pid, const int *before, int n_before)
{
	int after[UFFDS_MAX], n_after, i, new_fd = -EINTR;

	n_after = ferry_inject_find_fds(pid, UFFD_LINK, after, UFFDS_MAX);
	if (n_before < 0 || n_before > UFFDS_MAX || n_after < 0 || n_after > UFFDS_MAX)
		return -EINTR;
	for (i = 0; i < n_after; i++) {
		if (bsearch(&after[i], before, (size_t)n_before, sizeof(*before), by_number))
			continue;
		if (new_fd >= 0)
			return -EINTR; /* two: which one is ours? */
		new_fd = after[i];
	}
	return new_fd;
}

/* The thread makes the call by itself, if it makes it at all: give it the time. */
static int find_new_uffd(pid_t pid, const int *before, int n_before)
{
	uint64_t deadline_ns = ferry_clock_in_ms(LOOK_MS);
	int fd;

	while ((fd = look_for_uffd(pid, before, n_before)) < 0 && ferry_clock_ns() < deadline_ns)
		ferry_clock_sleep_ns(FERRY_NS_PER_MS);
	return fd;
}

static int new_uffd_failed(pid_t pid, int dev_fd, int64_t result, struct ferry_error *err)
{
	const char *hint = result == -ENOTTY || result == -EBADF ?
		"that descriptor is not /dev/userfaultfd there; pass it again" :
		"look at the target's limit of open files and at its sandbox";

	return ferry_error_set(err, (int)-result,
			       "making a userfaultfd in process %d from its descriptor %d: %s; %s",
			       pid, dev_fd, strerror((int)-result), hint);
}

int ferry_inject_userfaultfd(struct ferry_inject *inj, int dev_fd, int *remote_fd, int *uffd,
			     struct ferry_error *err)
{
	const uint64_t args[6] = { (uint64_t)dev_fd, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK };
	int before[UFFDS_MAX], n_before, rc;
	int64_t result = 0;

	n_before = ferry_inject_find_fds(inj->pid, UFFD_LINK, before, UFFDS_MAX);
	rc = ferry_inject_syscall(inj, SYS_ioctl, args, &result, err);
	if (rc == -EINTR) {
		result = find_new_uffd(inj->pid, before, n_before);
		rc = result < 0 ? rc : 0;
	}
	if (rc) {
		ferry_error_prefix(err, "making a userfaultfd");
		return rc;
	}
	if (result < 0)
		return new_uffd_failed(inj->pid, dev_fd, result, err);
	*remote_fd = (int)result;
	*uffd = ferry_inject_take_fd(inj->pid, *remote_fd);
	if (*uffd >= 0)
		return 0;
	rc = *uffd;
	ferry_inject_close_fd(inj, *remote_fd, NULL);
	*remote_fd = -1;
	return ferry_error_set(err, -rc,
			       "taking over the userfaultfd %d of process %d (pidfd_getfd): %s",
			       (int)result, inj->pid, strerror(-rc));
}

static int syscall_or_text(struct ferry_inject *inj, const char *what, long nr,
			   const uint64_t args[6], struct ferry_error *err)
{
	int64_t result = 0;
	int rc = ferry_inject_syscall(inj, nr, args, &result, err);

	if (rc) {
		ferry_error_prefix(err, "%s", what);
		return rc;
	}
	if (result < 0)
		return ferry_error_set(err, (int)-result, "%s of process %d: %s", what, inj->pid,
				       strerror((int)-result));
	return 0;
}

int ferry_inject_close_fd(struct ferry_inject *inj, int remote_fd, struct ferry_error *err)
{
	const uint64_t args[6] = { (uint64_t)remote_fd };
	char what[64];

	snprintf(what, sizeof(what), "closing descriptor %d", remote_fd);
	return syscall_or_text(inj, what, SYS_close, args, err);
}

int ferry_inject_madvise(struct ferry_inject *inj, uint64_t addr, uint64_t len, int advice,
			 struct ferry_error *err)
{
	const uint64_t args[6] = { addr, len, (uint64_t)advice };
	char what[96];

	snprintf(what, sizeof(what), "madvise %d of %#lx+%#lx", advice, (unsigned long)addr,
		 (unsigned long)len);
	return syscall_or_text(inj, what, SYS_madvise, args, err);
}
