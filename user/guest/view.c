// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * How a mapping is exchanged under a running guest.
 *
 *	mmap	the new mapping at a spare address	fails: nothing has changed
 *	madvise, mlock	until its flags are those of the old one
 *	mremap	onto the old one			the one step others can see
 *
 * mmap(MAP_FIXED) in place would do it in one call, but a failure of that can leave
 * a hole where the RAM was (Linux 6.1 unmaps first). mremap(MREMAP_FIXED) of
 * equal lengths has nothing to refuse once it has unmapped; should it all the same,
 * the file is mapped there again at once, by MAP_FIXED.
 *
 * The spare address is ours to choose (and is in the journal before it is used), in
 * the middle of the largest gap, where neither the heap nor the kernel's own choice
 * for new mappings gets. So what a tracer that was killed has left there can be
 * found and removed by another one; and when the result of a call is not known
 * (-EINTR: the thread ran on by itself) a look at /proc tells.
 *
 * Locked memory (mlockall) is populated by the kernel as it is mapped, while the
 * process's main thread stands still: 50 ms a GiB.
 */
#include "guest/view.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "base/clock.h"
#include "base/log.h"
#include "guest/proc.h"

/* How long a thread that goes on by itself may take to make the call we did not see end. */
#define LOOK_MS 50
#define USER_END 0x7ffffffff000ull
#define USER_BEGIN 0x10000ull
#define HUGE_BYTES (2ull << 20)

/* ---- looking ---- */

struct collect {
	dev_t dev;
	ino_t ino;
	uint64_t at, end; /* what is still to be found */
	struct ferry_view_area *areas;
	unsigned int count, max;
	struct ferry_error *err;
	pid_t pid;
};

static int collect_area(void *ctx, const struct ferry_proc_area *area)
{
	struct collect *c = ctx;
	struct ferry_view_area *out;
	uint64_t off_bytes;
	const char *why;

	if (area->end <= c->at)
		return 0;
	off_bytes = area->off_bytes + (c->at - area->start);
	if (area->start > c->at || area->dev != c->dev || area->ino != c->ino || !area->shared)
		return -ENXIO;
	/* The file again, but another part of it. */
	if (c->count && off_bytes != c->areas[0].off_bytes + (c->at - c->areas[0].start))
		return -ENXIO;
	if (c->count == c->max)
		return -E2BIG;
	out = &c->areas[c->count++];
	*out = (struct ferry_view_area){
		.start = c->at,
		.end = area->end < c->end ? area->end : c->end,
		.off_bytes = off_bytes,
		.dev = area->dev,
		.ino = area->ino,
		.prot = area->prot,
	};
	if (ferry_vmflags_parse(area->flags, &out->flags))
		return -EPROTO;
	why = ferry_vmflags_exchangeable(&out->flags);
	if (why)
		return ferry_error_set(c->err, EOPNOTSUPP, "the mapping at %#" PRIx64 " of process "
				       "%d cannot be exchanged: %s", out->start, (int)c->pid, why);
	if (ferry_vmflags_is_view(&out->flags))
		ferry_vmflags_plain(&out->flags, &out->flags);
	c->at = out->end;
	return c->at == c->end;
}

int ferry_view_areas(pid_t pid, dev_t dev, ino_t ino, uint64_t addr, uint64_t bytes,
		     struct ferry_view_area *areas, unsigned int max, struct ferry_error *err)
{
	struct collect c = { .dev = dev, .ino = ino, .at = addr, .end = addr + bytes,
			     .areas = areas, .max = max, .err = err, .pid = pid };
	int r = ferry_proc_smaps(pid, collect_area, &c);

	if (r == 1)
		return (int)c.count;
	if (!r || r == -ENXIO)
		return ferry_error_set(err, ENXIO, "process %d does not map all of that file at %#"
				       PRIx64 "+%#" PRIx64, (int)pid, addr, bytes);
	if (r == -E2BIG)
		return ferry_error_set(err, E2BIG, "process %d has cut guest RAM into more than %u "
				       "mappings", (int)pid, max);
	if (r != -EOPNOTSUPP)
		ferry_error_set(err, -r, "reading /proc/%d/smaps: %s; run ferry as root", (int)pid,
				strerror(-r));
	return r;
}

struct gap {
	uint64_t last_end, start, bytes;
};

static int gap_area(void *ctx, const struct ferry_proc_area *area)
{
	struct gap *g = ctx;
	uint64_t end = area->start < USER_END ? area->start : USER_END;

	if (end > g->last_end && end - g->last_end > g->bytes) {
		g->start = g->last_end;
		g->bytes = end - g->last_end;
	}
	if (area->end > g->last_end)
		g->last_end = area->end;
	return 0;
}

int ferry_view_find_spare(pid_t pid, uint64_t bytes, uint64_t *addr, struct ferry_error *err)
{
	struct gap g = { .last_end = USER_BEGIN };
	int r = ferry_proc_layout(pid, gap_area, &g);

	if (r)
		return ferry_error_set(err, -r, "reading /proc/%d/maps: %s", (int)pid,
				       strerror(-r));
	if (g.bytes / 4 < bytes)
		return ferry_error_set(err, ENOMEM, "process %d has no room for a second mapping of "
				       "its RAM", (int)pid);
	*addr = (g.start + (g.bytes - bytes) / 2) & ~(HUGE_BYTES - 1);
	return 0;
}

/* What lies in an area's place now. */
struct seen {
	const struct ferry_view_area *area;
	uint64_t at;
	struct ferry_vmflags flags; /* of the first piece */
	int prot;
	bool differ; /* other pieces have others */
};

static int see_area(void *ctx, const struct ferry_proc_area *area)
{
	struct seen *s = ctx;
	const struct ferry_view_area *want = s->area;
	struct ferry_vmflags flags;

	if (area->end <= s->at)
		return 0;
	if (area->start > s->at || area->dev != want->dev || area->ino != want->ino ||
	    !area->shared ||
	    area->off_bytes + (s->at - area->start) != want->off_bytes + (s->at - want->start))
		return -ENXIO;
	if (ferry_vmflags_parse(area->flags, &flags))
		return -EPROTO;
	if (s->at == want->start) {
		s->flags = flags;
		s->prot = area->prot;
	} else if (area->prot != s->prot || !ferry_vmflags_same(&flags, &s->flags)) {
		s->differ = true;
	}
	s->at = area->end;
	return s->at >= want->end;
}

/* Return: 0; -ENXIO when it is not all of the file's mapping; -errno of reading /proc. */
static int see(pid_t pid, const struct ferry_view_area *area, struct seen *s)
{
	int r;

	*s = (struct seen){ .area = area, .at = area->start };
	r = ferry_proc_smaps(pid, see_area, s);
	return r == 1 ? 0 : r ? r : -ENXIO;
}

int ferry_view_look(pid_t pid, const struct ferry_view_area *area)
{
	struct seen s;
	int r = see(pid, area, &s);

	if (r)
		return r == -ENXIO ? FERRY_VIEW_GONE : r;
	return s.differ || s.prot != area->prot || !ferry_vmflags_same(&s.flags, &area->flags) ?
	       FERRY_VIEW_CHANGED : FERRY_VIEW_PLAIN;
}

/* ---- doing ---- */

static int call(const struct ferry_view *view, const char *what, long nr, const uint64_t args[6],
		int64_t *result, struct ferry_error *err)
{
	int r = ferry_inject_syscall(view->inj, nr, args, result, err);

	if (r)
		ferry_error_prefix(err, "%s", what);
	else if (*result < 0 && *result > -4096)
		r = ferry_error_set(err, (int)-*result, "%s in process %d: %s", what,
				    (int)view->pid, strerror((int)-*result));
	return r;
}

/* The spare mapping as an area of its own, to be looked at like one. */
static struct ferry_view_area spare_area(const struct ferry_view *view,
					 const struct ferry_view_area *area)
{
	struct ferry_view_area spare = *area;

	spare.start = view->spare;
	spare.end = view->spare + (area->end - area->start);
	return spare;
}

/* A call whose end was not seen: wait for the mapping it makes. */
static bool appears(const struct ferry_view *view, const struct ferry_view_area *area)
{
	uint64_t deadline_ns = ferry_clock_in_ms(LOOK_MS);
	struct seen s;
	int r;

	while ((r = see(view->pid, area, &s)) && ferry_clock_ns() < deadline_ns)
		ferry_clock_sleep_ns(FERRY_NS_PER_MS);
	return !r;
}

static int map(const struct ferry_view *view, const struct ferry_view_area *to, int fixed,
	       int remote_fd, struct ferry_error *err)
{
	int flags = MAP_SHARED | fixed;
	int64_t result = 0;
	int r;

	if (ferry_vmflags_has(&to->flags, "nr"))
		flags |= MAP_NORESERVE;
	r = call(view, "mapping guest RAM anew", SYS_mmap,
		 (const uint64_t[6]){ to->start, to->end - to->start, (uint64_t)to->prot,
				      (uint64_t)flags, (uint64_t)remote_fd, to->off_bytes },
		 &result, err);
	return r == -EINTR && appears(view, to) ? 0 : r;
}

static int run_plan(const struct ferry_view *view, const struct ferry_view_area *spare,
		    const struct ferry_vmflags_call *calls, int n, struct ferry_error *err)
{
	int64_t result = 0;
	int i, r = 0;

	for (i = 0; !r && i < n; i++)
		r = call(view, "giving the new mapping of guest RAM the flags of the old one",
			 calls[i].nr, (const uint64_t[6]){ spare->start, spare->end - spare->start,
							   (uint64_t)calls[i].arg },
			 &result, err);
	return r;
}

/* What the new mapping must be when it takes its place. */
static void wanted_flags(const struct ferry_view_area *area, const struct seen *now,
			 struct ferry_vmflags *wanted)
{
	*wanted = area->flags;
	if (ferry_vmflags_is_view(&now->flags))
		ferry_vmflags_view(&area->flags, wanted);
}

static int differs(const struct ferry_view *view, const struct seen *now,
		   const struct ferry_vmflags *wanted, struct ferry_error *err)
{
	char is[FERRY_VMFLAGS_TEXT], want[FERRY_VMFLAGS_TEXT];

	ferry_vmflags_format(&now->flags, is, sizeof(is));
	ferry_vmflags_format(wanted, want, sizeof(want));
	return ferry_error_set(err, EOPNOTSUPP, "the new mapping of guest RAM in process %d cannot "
			       "get the flags of the old one: it has \"%s\", wanted \"%s\"",
			       (int)view->pid, is, want);
}

/* Make it as the old one is. */
static int dress(const struct ferry_view *view, const struct ferry_view_area *area,
		 const struct ferry_view_area *spare, struct ferry_error *err)
{
	struct ferry_vmflags_call calls[FERRY_VMFLAGS_CALLS];
	struct ferry_vmflags wanted;
	struct seen now;
	int n, r;

	r = see(view->pid, spare, &now);
	if (r)
		return ferry_error_set(err, -r, "looking at the new mapping of guest RAM in process "
				       "%d: %s", (int)view->pid, strerror(-r));
	wanted_flags(area, &now, &wanted);
	n = ferry_vmflags_plan(&now.flags, &wanted, calls);
	if (n < 0)
		return differs(view, &now, &wanted, err);
	if (!n)
		return 0;
	r = run_plan(view, spare, calls, n, err);
	if (!r)
		r = see(view->pid, spare, &now);
	if (!r && (now.differ || !ferry_vmflags_same(&now.flags, &wanted)))
		return differs(view, &now, &wanted, err);
	return r;
}

/* The kernel unmaps before it moves: be sure that no hole is left when it did not move. */
static int mend(const struct ferry_view *view, const struct ferry_view_area *area, int remote_fd,
		int r, struct ferry_error *err)
{
	struct ferry_error why;
	struct seen s;

	if (see(view->pid, area, &s) != -ENXIO)
		return r;
	if (!map(view, area, MAP_FIXED, remote_fd, &why))
		return r;
	ferry_error_prefix(err, "guest RAM at %#" PRIx64 " of process %d is NOT MAPPED and could not "
			   "be mapped again (%s)", area->start, (int)view->pid, why.text);
	return r;
}

static int move(const struct ferry_view *view, const struct ferry_view_area *area,
		const struct ferry_view_area *spare, int remote_fd, struct ferry_error *err)
{
	uint64_t bytes = area->end - area->start, deadline_ns;
	int64_t result = 0;
	struct seen s;
	int r;

	r = call(view, "putting the new mapping of guest RAM into place", SYS_mremap,
		 (const uint64_t[6]){ spare->start, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED,
				      area->start },
		 &result, err);
	if (r == -EINTR) {
		deadline_ns = ferry_clock_in_ms(LOOK_MS);
		while (!see(view->pid, spare, &s) && ferry_clock_ns() < deadline_ns)
			ferry_clock_sleep_ns(FERRY_NS_PER_MS);
		if (see(view->pid, spare, &s) == -ENXIO && !see(view->pid, area, &s))
			return 0;
	}
	return r ? mend(view, area, remote_fd, r, err) : 0;
}

static int unmap(const struct ferry_view *view, uint64_t start, uint64_t end,
		 struct ferry_error *err)
{
	int64_t result = 0;

	return call(view, "unmapping what is left of an exchange of guest RAM", SYS_munmap,
		    (const uint64_t[6]){ start, end - start }, &result, err);
}

int ferry_view_exchange(const struct ferry_view *view, const struct ferry_view_area *area,
			int remote_fd, struct ferry_error *err)
{
	const struct ferry_view_area spare = spare_area(view, area);
	struct ferry_error late = { 0 };
	int r;

	if (area->end - area->start > view->spare_bytes)
		return ferry_error_set(err, EINVAL, "no spare room for %#" PRIx64 " bytes",
				       area->end - area->start);
	r = map(view, &spare, MAP_FIXED_NOREPLACE, remote_fd, err);
	if (r) {
		if (r == -EINTR && ferry_view_clear_spare(view, area->dev, area->ino, &late))
			ferry_log_warn("%s", late.text);
		return r;
	}
	r = dress(view, area, &spare, err);
	if (!r)
		r = move(view, area, &spare, remote_fd, err);
	/* Whatever file it is of: it was nobody else's address. */
	if (r && unmap(view, spare.start, spare.end, &late))
		ferry_log_warn("%s", late.text);
	return r;
}

/* ---- what is left at the spare address ---- */

struct leftover {
	const struct ferry_view *view;
	dev_t dev;
	ino_t ino;
	uint64_t start, end;
};

static int leftover_area(void *ctx, const struct ferry_proc_area *area)
{
	struct leftover *l = ctx;
	uint64_t low = l->view->spare, high = low + l->view->spare_bytes;

	if (area->end <= low || area->dev != l->dev || area->ino != l->ino)
		return 0;
	if (area->start >= high)
		return 0;
	l->start = area->start > low ? area->start : low;
	l->end = area->end < high ? area->end : high;
	return 1;
}

int ferry_view_clear_spare(const struct ferry_view *view, dev_t dev, ino_t ino,
			   struct ferry_error *err)
{
	struct leftover l = { .view = view, .dev = dev, .ino = ino };
	int r;

	while ((r = ferry_proc_maps(view->pid, leftover_area, &l)) == 1) {
		r = unmap(view, l.start, l.end, err);
		if (r)
			return r;
	}
	return r ? ferry_error_set(err, -r, "reading /proc/%d/maps: %s", (int)view->pid,
				   strerror(-r)) : 0;
}
