// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Other processes that map guest RAM.
 *
 * A plain mapping is written unseen by every tracker: refused, by name. A tracked view
 * is told from it by its VmFlags (de, which nothing else gives a mapping of a tmpfs file),
 * but not *whose* view it is: a write through it is noted by the tracker it was made
 * from, and by no other. /proc cannot tell, so the kmod tracker (dirty/kmod.c)
 *
 * - takes copies of the descriptors of trackers that those processes have open, and reads
 *   them too;
 * - counts: the trackers at hand know how many mappings were made from them, /proc how
 *   many views there are. As long as both are the same number, no view is anybody else's.
 *
 * Both look at what this process can see: an agent in a pid namespace of its own sees
 * neither the plain mappings nor the views of those outside.
 */
#include <errno.h>
#include <linux/kcmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "guest/proc.h"
#include "guest/qemu.h"
#include "guest/vmflags.h"
#include "inject/inject.h"

/* What one process maps of a few files. */
struct mapped {
	const struct ferry_qemu_file *files;
	unsigned int n_files;
	unsigned int plain, views;
	unsigned int which; /* the file of the first one */
};

static int map_area(void *ctx, const struct ferry_proc_area *area)
{
	struct mapped *m = ctx;
	struct ferry_vmflags flags;
	unsigned int i;

	for (i = 0; i < m->n_files; i++)
		if (area->shared && area->dev == m->files[i].dev && area->ino == m->files[i].ino)
			break;
	if (i == m->n_files)
		return 0;
	if (!m->plain && !m->views)
		m->which = i;
	if (!ferry_vmflags_parse(area->flags, &flags) && ferry_vmflags_is_view(&flags))
		m->views++;
	else
		m->plain++;
	return 0;
}

/* smaps costs the kernel a walk of all page tables: only for who has such a mapping. */
static int look_at(pid_t pid, struct mapped *m)
{
	int r;

	m->plain = m->views = 0;
	r = ferry_proc_maps(pid, map_area, m);
	if (!r && m->plain) {
		m->plain = 0;
		r = ferry_proc_smaps(pid, map_area, m);
	}
	return r == -ENOENT || r == -ESRCH ? 0 : r;
}

/* A child of QEMU between vfork and exec has QEMU's own memory. */
static bool is_qemu(const struct ferry_qemu *q, pid_t pid)
{
	return pid == q->guest.pid || syscall(SYS_kcmp, pid, q->guest.pid, KCMP_VM, 0, 0) == 0;
}

static bool may_map(const struct ferry_qemu *q, pid_t pid)
{
	unsigned int i;

	if (pid == getppid())
		return true;
	for (i = 0; i < q->n_peers; i++)
		if (pid == q->peers[i])
			return true;
	return is_qemu(q, pid);
}

static int cannot_look(pid_t pid, int r, struct ferry_error *err)
{
	return ferry_error_set(err, -r, "looking whether pid %d maps guest RAM: %s; run ferry as "
			       "root (CAP_SYS_PTRACE)", (int)pid, strerror(-r));
}

static int refuse_plain(const struct ferry_qemu *q, pid_t pid, const char *block,
			struct ferry_error *err)
{
	char comm[32];

	ferry_proc_comm(pid, comm);
	return ferry_error_set(err, EBUSY, "pid %d (%s) maps guest RAM%s%s%s too and may write it "
			       "unseen (vhost-user backend, virtiofsd, ivshmem peer?); end it or "
			       "detach that device first%s", (int)pid, comm, block ? " '" : "",
			       block ? block : "", block ? "'" : "",
			       q->role == FERRY_GUEST_SOURCE ?
			       "; with the kernel module (ferry.ko) it may map a tracked view of it "
			       "instead" : "");
}

static int refuse_view(pid_t pid, const char *why, struct ferry_error *err)
{
	char comm[32];

	ferry_proc_comm(pid, comm);
	return ferry_error_set(err, EBUSY, "pid %d (%s) maps a tracked view of guest RAM, %s",
			       (int)pid, comm, why);
}

/* ---- check(): before anything is known of trackers ---- */

struct check {
	struct ferry_qemu *q;
	const struct ferry_qemu_memory *list;
	struct mapped mapped;
	struct ferry_error *err;
};

static int check_pid(void *ctx, pid_t pid)
{
	struct check *c = ctx;
	int r;

	/* Init may hold rights we have not, and is nobody's vhost backend. */
	if (pid == c->q->guest.pid || pid == getpid() || pid == 1)
		return 0;
	r = look_at(pid, &c->mapped);
	if (r)
		return cannot_look(pid, r, c->err);
	if ((!c->mapped.plain && !c->mapped.views) || may_map(c->q, pid))
		return 0;
	if (c->mapped.plain)
		return refuse_plain(c->q, pid, c->list[c->mapped.which].id, c->err);
	if (c->q->role != FERRY_GUEST_SOURCE)
		return refuse_view(pid, "which is to be overwritten; end it first", c->err);
	c->q->viewer = pid;
	return 0;
}

int ferry_qemu_peers_check(struct ferry_qemu *q, struct ferry_error *err)
{
	struct check c = { .q = q, .err = err };
	struct ferry_qemu_file *files = NULL;
	struct ferry_qemu_memory *list;
	unsigned int i, n;
	int r = ferry_qemu_memory(q, &list, &n, err);

	if (r)
		return r;
	files = calloc(n, sizeof(*files));
	if (!files)
		r = ferry_error_set(err, ENOMEM, "guest RAM list: no memory");
	for (i = 0; !r && i < n; i++)
		files[i] = (struct ferry_qemu_file){ list[i].dev, list[i].ino };
	q->viewer = 0;
	c.list = list;
	c.mapped.files = files;
	c.mapped.n_files = n;
	if (!r)
		r = ferry_proc_pids(check_pid, &c);
	free(files);
	free(list);
	return r;
}

int ferry_qemu_check_views(struct ferry_guest *guest, struct ferry_error *err)
{
	struct ferry_qemu *q = ferry_qemu_of(guest);

	if (!q->viewer)
		return 0;
	return refuse_view(q->viewer, "and only the kmod tracker sees what it writes there; use "
			   "--tracker kmod ('ferry doctor' says whether it works), or end it", err);
}

/* ---- for the kmod tracker ---- */

struct count {
	struct ferry_qemu *q;
	struct mapped mapped;
	unsigned int views;
	struct ferry_error *err;
};

static int count_pid(void *ctx, pid_t pid)
{
	struct count *c = ctx;
	int r;

	if (pid == getpid() || pid == 1)
		return 0;
	/*
	 * Whether all of QEMU's are views the sum tells: reading its flags again and again
	 * would cost a walk of all its page tables.
	 */
	if (pid == c->q->guest.pid) {
		c->mapped.plain = c->mapped.views = 0;
		r = ferry_proc_maps(pid, map_area, &c->mapped);
		c->views += c->mapped.plain;
		return r ? cannot_look(pid, r, c->err) : 0;
	}
	r = look_at(pid, &c->mapped);
	if (r)
		return cannot_look(pid, r, c->err);
	if (!c->mapped.plain && !c->mapped.views)
		return 0;
	if (is_qemu(c->q, pid))
		return 0;
	if (c->mapped.plain && !may_map(c->q, pid))
		return refuse_plain(c->q, pid, NULL, c->err);
	c->views += c->mapped.views;
	return 0;
}

int ferry_qemu_peers_count(struct ferry_qemu *q, struct ferry_error *err)
{
	struct count c = { .q = q, .err = err,
			   .mapped = { .files = q->files, .n_files = q->n_files } };
	int r = ferry_proc_pids(count_pid, &c);

	return r ? r : (int)c.views;
}

struct files {
	struct count count;
	int (*fn)(void *fn_ctx, pid_t pid, int fd);
	void *fn_ctx;
	pid_t pid;
};

static int files_fd(void *ctx, int number, const char *link)
{
	struct files *f = ctx;
	const struct mapped *m = &f->count.mapped;
	char path[64];
	struct stat st;
	unsigned int i;
	int fd, r;

	(void)link;
	snprintf(path, sizeof(path), "/proc/%d/fd/%d", (int)f->pid, number);
	if (stat(path, &st))
		return 0;
	for (i = 0; i < m->n_files; i++)
		if (st.st_dev == m->files[i].dev && st.st_ino == m->files[i].ino)
			break;
	if (i == m->n_files)
		return 0;
	fd = ferry_inject_take_fd(f->pid, number);
	if (fd < 0)
		return fd == -EBADF || fd == -ESRCH ? 0 :
		       ferry_error_set(f->count.err, -fd, "taking a copy of descriptor %d of pid "
				       "%d: %s; run ferry as root", number, (int)f->pid,
				       strerror(-fd));
	r = f->fn(f->fn_ctx, f->pid, fd);
	if (r <= 0)
		close(fd);
	return r < 0 ? r : 0;
}

static int files_pid(void *ctx, pid_t pid)
{
	struct files *f = ctx;
	int r;

	if (pid == getpid() || pid == 1 || pid == f->count.q->guest.pid)
		return 0;
	r = look_at(pid, &f->count.mapped);
	if (r)
		return cannot_look(pid, r, f->count.err);
	if (!f->count.mapped.views || is_qemu(f->count.q, pid))
		return 0;
	f->pid = pid;
	r = ferry_proc_fds(pid, files_fd, f);
	return r == -ENOENT || r == -ESRCH ? 0 : r;
}

int ferry_qemu_peers_files(struct ferry_qemu *q, int (*fn)(void *fn_ctx, pid_t pid, int fd),
			   void *fn_ctx, struct ferry_error *err)
{
	struct files f = { .fn = fn, .fn_ctx = fn_ctx,
			   .count = { .q = q, .err = err,
				      .mapped = { .files = q->files, .n_files = q->n_files } } };

	return ferry_proc_pids(files_pid, &f);
}
