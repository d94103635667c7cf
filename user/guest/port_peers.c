// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * /proc/PID/maps tells who maps a file; smaps whether as a tracked view, at the cost of a
 * walk of the process's page tables, so only those that map it are asked. A view's
 * writes are noted by the tracker it was made from; whose that is /proc cannot tell, so
 * the kmod tracker counts (see ferry_dirty_views.count).
 */
#include "guest/port_peers.h"

#include <errno.h>
#include <linux/kcmp.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/clock.h"
#include "guest/proc.h"
#include "guest/vmflags.h"
#include "inject/inject.h"

/* A refusal that lasts this long is no accident. */
#define PASSING_MS 200u

/* One process's mappings of the RAM. */
struct look {
	const struct ferry_peers *peers;
	bool flags; /* tell views from plain ones */
	int plain, views;
};

static int look_area(void *ctx, const struct ferry_proc_area *area)
{
	struct look *l = ctx;
	struct ferry_vmflags flags;
	unsigned int i;

	for (i = 0; i < l->peers->n_files; i++)
		if (area->shared && area->dev == l->peers->files[i].dev &&
		    area->ino == l->peers->files[i].ino)
			break;
	if (i == l->peers->n_files)
		return 0;
	if (l->flags && !ferry_vmflags_parse(area->flags, &flags) &&
	    ferry_vmflags_is_view(&flags))
		l->views++;
	else
		l->plain++;
	return 0;
}

static int look_once(const struct ferry_peers *p, pid_t pid, struct look *l)
{
	int r;

	*l = (struct look){ .peers = p };
	r = ferry_proc_maps(pid, look_area, l);
	if (!r && l->plain) {
		*l = (struct look){ .peers = p, .flags = true };
		r = ferry_proc_smaps(pid, look_area, l);
	}
	return r == -ENOENT || r == -ESRCH ? 0 : r;
}

/* Return: 0, also when the process has ended; -errno with a text. */
static int look(const struct ferry_peers *p, pid_t pid, struct look *l, struct ferry_error *err)
{
	uint64_t deadline_ns = ferry_clock_in_ms(PASSING_MS);
	int r;

	/* A process that is just ending may be closed to us for a moment. */
	while ((r = look_once(p, pid, l)) == -EACCES && ferry_clock_ns() < deadline_ns)
		ferry_clock_sleep_ns(FERRY_NS_PER_MS);
	if (!r)
		return 0;
	return ferry_error_set(err, -r, "looking whether pid %d maps guest RAM: %s; run ferry as "
			       "root (CAP_SYS_PTRACE)", (int)pid, strerror(-r));
}

static bool is_allowed(const struct ferry_peers *p, pid_t pid)
{
	unsigned int i;

	if (pid == p->vmm || pid == getppid())
		return true;
	for (i = 0; i < p->n_allowed; i++)
		if (pid == p->allowed[i])
			return true;
	/* A child of the VMM between vfork and exec has the VMM's own memory. */
	return syscall(SYS_kcmp, pid, p->vmm, KCMP_VM, 0, 0) == 0;
}

struct search {
	struct ferry_peers *peers;
	struct ferry_error *err;
	int count;
	int (*fn)(void *fn_ctx, pid_t pid, int fd);
	void *fn_ctx;
	pid_t pid;
};

static int refuse(pid_t pid, const char *why, struct ferry_error *err)
{
	char comm[32];

	ferry_proc_comm(pid, comm);
	return ferry_error_set(err, EBUSY, "pid %d (%s) maps guest RAM too, %s", (int)pid, comm,
			       why);
}

static int check_pid(void *ctx, pid_t pid)
{
	struct search *s = ctx;
	struct look l;
	int r;

	/* Init may hold rights we have not, and is nobody's vhost backend. */
	if (pid == s->peers->vmm || pid == getpid() || pid == 1)
		return 0;
	r = look(s->peers, pid, &l, s->err);
	if (r || (!l.plain && !l.views) || is_allowed(s->peers, pid))
		return r;
	if (l.plain)
		return refuse(pid, "and may write it unseen; end it, or let it register with the "
			      "VMM's port (ferry_port_join())", s->err);
	if (!s->peers->source)
		return refuse(pid, "which is to be overwritten; end it first", s->err);
	s->peers->viewer = pid;
	return 0;
}

int ferry_peers_check(struct ferry_peers *p, struct ferry_error *err)
{
	struct search s = { .peers = p, .err = err };

	p->viewer = 0;
	return ferry_proc_pids(check_pid, &s);
}

static int count_pid(void *ctx, pid_t pid)
{
	struct search *s = ctx;
	struct look l;
	int r;

	if (pid == getpid() || pid == 1)
		return 0;
	/* Whether all of the VMM's are views the sum tells: its flags cost a long walk. */
	if (pid == s->peers->vmm) {
		l = (struct look){ .peers = s->peers };
		r = ferry_proc_maps(pid, look_area, &l);
		s->count += l.plain;
		return r ? ferry_error_set(s->err, -r, "reading /proc/%d/maps: %s", (int)pid,
					   strerror(-r)) : 0;
	}
	r = look(s->peers, pid, &l, s->err);
	if (r || (!l.plain && !l.views) ||
	    !syscall(SYS_kcmp, pid, s->peers->vmm, KCMP_VM, 0, 0))
		return r;
	if (l.plain && pid != getppid())
		return refuse(pid, "not as a tracked view, and writes it unseen", s->err);
	s->count += l.views;
	return 0;
}

int ferry_peers_count(struct ferry_peers *p, struct ferry_error *err)
{
	struct search s = { .peers = p, .err = err };
	int r = ferry_proc_pids(count_pid, &s);

	return r ? r : s.count;
}

static int files_fd(void *ctx, int number, const char *link)
{
	struct search *s = ctx;
	char path[64];
	struct stat st;
	unsigned int i;
	int fd, r;

	(void)link;
	snprintf(path, sizeof(path), "/proc/%d/fd/%d", (int)s->pid, number);
	if (stat(path, &st))
		return 0;
	for (i = 0; i < s->peers->n_files; i++)
		if (st.st_dev == s->peers->files[i].dev && st.st_ino == s->peers->files[i].ino)
			break;
	if (i == s->peers->n_files)
		return 0;
	fd = ferry_inject_take_fd(s->pid, number);
	if (fd < 0)
		return fd == -EBADF || fd == -ESRCH ? 0 :
		       ferry_error_set(s->err, -fd, "taking a copy of descriptor %d of pid %d: %s; "
				       "run ferry as root", number, (int)s->pid, strerror(-fd));
	r = s->fn(s->fn_ctx, s->pid, fd);
	if (r <= 0)
		close(fd);
	return r < 0 ? r : 0;
}

static int files_pid(void *ctx, pid_t pid)
{
	struct search *s = ctx;
	struct look l;
	int r;

	if (pid == getpid() || pid == 1 || is_allowed(s->peers, pid))
		return 0;
	r = look(s->peers, pid, &l, s->err);
	if (r || !l.views)
		return r;
	s->pid = pid;
	r = ferry_proc_fds(pid, files_fd, s);
	return r == -ENOENT || r == -ESRCH ? 0 : r;
}

int ferry_peers_files(struct ferry_peers *p, int (*fn)(void *fn_ctx, pid_t pid, int fd),
		      void *fn_ctx, struct ferry_error *err)
{
	struct search s = { .peers = p, .fn = fn, .fn_ctx = fn_ctx, .err = err };

	return p->viewer ? ferry_proc_pids(files_pid, &s) : 0;
}
