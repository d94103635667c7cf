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
#include "guest/peers.h"

#include <errno.h>
#include <linux/kcmp.h>
#include <stdio.h>
#include <stdlib.h>
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

void ferry_peers_allow(struct ferry_peers *p, pid_t pid)
{
	if (p->n_allowed < FERRY_GUEST_MAX_PEERS)
		p->allowed[p->n_allowed++] = pid;
}

int ferry_peers_ram(struct ferry_peers *p, const struct ferry_ram *ram, struct ferry_error *err)
{
	struct ferry_peers_file *files = calloc(ram->count, sizeof(*files));
	unsigned int i;

	free(p->files);
	p->files = files;
	p->n_files = files ? ram->count : 0;
	if (!files)
		return ferry_error_set(err, ENOMEM, "guest RAM list: no memory");
	for (i = 0; i < ram->count; i++) {
		const struct ferry_ram_block *b = &ram->blocks[i];
		struct stat st;

		if (fstat(b->fd, &st))
			return ferry_error_set(err, errno, "guest RAM '%s': %s", b->name,
					       strerror(errno));
		files[i].dev = st.st_dev;
		files[i].ino = st.st_ino;
		strcpy(files[i].name, b->name);
	}
	return 0;
}

/* Return: the file of guest RAM that this is, or NULL. */
static const struct ferry_peers_file *find_file(const struct ferry_peers *p, dev_t dev, ino_t ino)
{
	unsigned int i;

	for (i = 0; i < p->n_files; i++)
		if (dev == p->files[i].dev && ino == p->files[i].ino)
			return &p->files[i];
	return NULL;
}

/* What one process maps of the RAM. */
struct look {
	const struct ferry_peers *peers;
	unsigned int plain, views;
	const char *name; /* of the first one */
};

static int look_area(void *ctx, const struct ferry_proc_area *area)
{
	struct look *l = ctx;
	const struct ferry_peers_file *file = find_file(l->peers, area->dev, area->ino);
	struct ferry_vmflags flags;

	if (!file || !area->shared)
		return 0;
	if (!l->name)
		l->name = file->name;
	if (!ferry_vmflags_parse(area->flags, &flags) && ferry_vmflags_is_view(&flags))
		l->views++;
	else
		l->plain++;
	return 0;
}

/* smaps costs the kernel a walk of all page tables: only for who has such a mapping. */
static int look_once(const struct ferry_peers *p, pid_t pid, struct look *l)
{
	int r;

	*l = (struct look){ .peers = p };
	r = ferry_proc_maps(pid, look_area, l);
	if (!r && l->plain) {
		*l = (struct look){ .peers = p };
		r = ferry_proc_smaps(pid, look_area, l);
	}
	return r == -ENOENT || r == -ESRCH ? 0 : r;
}

static int cannot_look(pid_t pid, int r, struct ferry_error *err)
{
	return ferry_error_set(err, -r, "looking whether pid %d maps guest RAM: %s; run ferry as "
			       "root (CAP_SYS_PTRACE)", (int)pid, strerror(-r));
}

/* Return: 0, also when the process has ended; -errno with a text. */
static int look(const struct ferry_peers *p, pid_t pid, struct look *l, struct ferry_error *err)
{
	uint64_t deadline_ns = ferry_clock_in_ms(PASSING_MS);
	int r;

	/* A process that is just ending may be closed to us for a moment. */
	while ((r = look_once(p, pid, l)) == -EACCES && ferry_clock_ns() < deadline_ns)
		ferry_clock_sleep_ns(FERRY_NS_PER_MS);
	return r ? cannot_look(pid, r, err) : 0;
}

/* A child of the VMM between vfork and exec has the VMM's own memory. */
static bool is_vmm(const struct ferry_peers *p, pid_t pid)
{
	return pid == p->vmm || syscall(SYS_kcmp, pid, p->vmm, KCMP_VM, 0, 0) == 0;
}

static bool is_in(pid_t pid, const pid_t *list, unsigned int count)
{
	while (count--)
		if (pid == list[count])
			return true;
	return false;
}

static bool may_map_plainly(const struct ferry_peers *p, pid_t pid)
{
	return pid == getppid() || is_in(pid, p->allowed, p->n_allowed);
}

/* Init may hold rights we have not, and is nobody's vhost backend. */
static bool is_nobody(pid_t pid)
{
	return pid == getpid() || pid == 1;
}

static int refuse_plain(const struct ferry_peers *p, pid_t pid, const char *block,
			struct ferry_error *err)
{
	char comm[32];

	ferry_proc_comm(pid, comm);
	return ferry_error_set(err, EBUSY, "pid %d (%s) maps guest RAM '%s' too and may write it "
			       "unseen; %s%s", (int)pid, comm, block, p->advice,
			       p->source ? "; with the kernel module (ferry.ko) it may map a "
			       "tracked view of it instead" : "");
}

static int refuse_view(pid_t pid, const char *why, struct ferry_error *err)
{
	char comm[32];

	ferry_proc_comm(pid, comm);
	return ferry_error_set(err, EBUSY, "pid %d (%s) maps a tracked view of guest RAM, %s",
			       (int)pid, comm, why);
}

struct search {
	struct ferry_peers *peers;
	struct ferry_error *err;
	unsigned int views;
	int (*fn)(void *fn_ctx, pid_t pid, int fd);
	void *fn_ctx;
	pid_t pid;
};

/* ---- before anything is known of trackers ---- */

static int check_pid(void *ctx, pid_t pid)
{
	struct search *s = ctx;
	struct ferry_peers *p = s->peers;
	struct look l;
	int r;

	if (is_nobody(pid) || pid == p->vmm)
		return 0;
	r = look(p, pid, &l, s->err);
	if (r || (!l.plain && !l.views) || may_map_plainly(p, pid) ||
	    is_in(pid, p->members, p->n_members) || is_vmm(p, pid))
		return r;
	if (l.plain)
		return refuse_plain(p, pid, l.name, s->err);
	if (!p->source)
		return refuse_view(pid, "which is to be overwritten; end it first", s->err);
	p->viewer = pid;
	return 0;
}

int ferry_peers_check(struct ferry_peers *p, struct ferry_error *err)
{
	struct search s = { .peers = p, .err = err };

	p->viewer = 0;
	return ferry_proc_pids(check_pid, &s);
}

int ferry_peers_check_views(const struct ferry_peers *p, struct ferry_error *err)
{
	if (!p->viewer)
		return 0;
	return refuse_view(p->viewer, "and only the kmod tracker sees what it writes there; use "
			   "--tracker kmod ('ferry doctor' says whether it works), or end it", err);
}

/* ---- for the kmod tracker ---- */

static int count_pid(void *ctx, pid_t pid)
{
	struct search *s = ctx;
	struct ferry_peers *p = s->peers;
	struct look l = { .peers = p };
	int r;

	if (is_nobody(pid))
		return 0;
	/*
	 * Whether all of the VMM's are views the sum tells: reading its flags again and again
	 * would cost a walk of all its page tables.
	 */
	if (pid == p->vmm) {
		r = ferry_proc_maps(pid, look_area, &l);
		s->views += l.plain;
		return r ? cannot_look(pid, r, s->err) : 0;
	}
	r = look(p, pid, &l, s->err);
	if (r || (!l.plain && !l.views) || is_vmm(p, pid))
		return r;
	if (l.plain && !may_map_plainly(p, pid))
		return refuse_plain(p, pid, l.name, s->err);
	s->views += l.views;
	return 0;
}

int ferry_peers_count(struct ferry_peers *p, struct ferry_error *err)
{
	struct search s = { .peers = p, .err = err };
	int r = ferry_proc_pids(count_pid, &s);

	return r ? r : (int)s.views;
}

static int others_fd(void *ctx, int number, const char *link)
{
	struct search *s = ctx;
	char path[64];
	struct stat st;
	int fd, r;

	(void)link;
	snprintf(path, sizeof(path), "/proc/%d/fd/%d", (int)s->pid, number);
	if (stat(path, &st) || !find_file(s->peers, st.st_dev, st.st_ino))
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

static int others_pid(void *ctx, pid_t pid)
{
	struct search *s = ctx;
	struct ferry_peers *p = s->peers;
	struct look l;
	int r;

	/* Members' views are made from our own trackers. */
	if (is_nobody(pid) || pid == p->vmm || is_in(pid, p->members, p->n_members))
		return 0;
	r = look(p, pid, &l, s->err);
	if (r || !l.views || is_vmm(p, pid))
		return r;
	s->pid = pid;
	r = ferry_proc_fds(pid, others_fd, s);
	return r == -ENOENT || r == -ESRCH ? 0 : r;
}

int ferry_peers_others(struct ferry_peers *p, int (*fn)(void *fn_ctx, pid_t pid, int fd),
		       void *fn_ctx, struct ferry_error *err)
{
	struct search s = { .peers = p, .fn = fn, .fn_ctx = fn_ctx, .err = err };

	/* check() has looked: mostly there is nobody. */
	return p->viewer ? ferry_proc_pids(others_pid, &s) : 0;
}
