// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Tracker by the kernel module (uapi/linux/ferry.h): for each RAM block a tracker is
 * made from the memory file, and its view takes the place of the VMM's mapping
 * (struct ferry_dirty_views). Whoever writes through a view is seen: vCPUs, QEMU's
 * threads, vhost, other processes with a view, and DMA into pinned pages, which
 * stay dirty until they are unpinned.
 *
 * The views go in before the trackers start. A store through a view before that is
 * not noted, but neither has anything been sent yet; and a page that was pinned
 * through the plain mapping is found pinned by FERRY_START, which it would not be if
 * it had started before.
 *
 * Other processes may have views of their own, made from trackers of their own: those
 * are started and read as well. That none is missing is known by counting: /proc
 * shows as many views as the trackers at hand have (guest/peers.c). They are
 * counted at the start, whenever the trackers' number changes, and once a second,
 * which also finds who maps the RAM plainly in the meantime.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/ferry.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/io.h"
#include "base/log.h"
#include "dirty/dirty.h"
#include "dirty/kmod.h"

#define DEVICE "/dev/ferry"
#define EXTENTS 4096u
/* Trackers of other processes: one each for a few backends and blocks. */
#define FOREIGN_MAX 64u
/* Processes fork and end while they are counted. */
#define COUNT_TRIES 10
#define COUNT_PAUSE_NS (2 * FERRY_NS_PER_MS)
#define COUNT_EVERY_NS FERRY_NS_PER_S

struct tracker {
	int fd;
	bool started;
	pid_t pid;	/* whose it is; 0 ours */
	uint64_t id, pages;
	dev_t dev;
	ino_t ino;
};

struct kmod {
	struct ferry_dirty base;
	struct ferry_dirty_target target;
	struct ferry_dirty_views views;
	struct tracker *trackers; /* first ours, one a block */
	unsigned int count, room;
	bool mapped;
	uint64_t view_count;	/* when last counted */
	uint64_t counted_ns;
	struct ferry_extent *extents;
	struct ferry_error *err;  /* of a search under way */
};

/* ---- asking the module ---- */

static int get_stats(int fd, struct ferry_tracker_stats *stats)
{
	memset(stats, 0, sizeof(*stats));
	stats->size = sizeof(*stats);
	return ioctl(fd, FERRY_STATS, stats) ? -errno : 0;
}

bool ferry_kmod_is_tracker(int fd)
{
	struct ferry_tracker_stats stats;

	return !get_stats(fd, &stats);
}

int ferry_kmod_open_failed(int errnum, struct ferry_error *err)
{
	switch (errnum) {
	case ENOENT:
	case ENXIO:
	case ENODEV:
		return ferry_error_set(err, errnum, "the kernel module is not loaded (no " DEVICE
				       "): modprobe ferry, or insmod ferry.ko built for this kernel");
	case EACCES:
	case EPERM:
		return ferry_error_set(err, errnum, "no right to open " DEVICE ": run ferry as root, "
				       "or add its user to the group of " DEVICE);
	default:
		return ferry_error_set(err, errnum, "opening " DEVICE ": %s", strerror(errnum));
	}
}

static int open_device(struct ferry_error *err)
{
	int fd = open(DEVICE, O_RDWR | O_CLOEXEC);

	return fd < 0 ? ferry_kmod_open_failed(errno, err) : fd;
}

static int query(int dev, struct ferry_query *q, struct ferry_error *err)
{
	*q = (struct ferry_query){ .size = sizeof(*q) };
	if (ioctl(dev, FERRY_QUERY, q))
		return ferry_error_set(err, errno, "asking " DEVICE " what it can do: %s; is it "
				       "ferry's module?", strerror(errno));
	if (q->out_api_version < FERRY_API_VERSION)
		return ferry_error_set(err, EOPNOTSUPP, "the kernel module is too old (interface %u, "
				       "wanted %u): load the one that came with this ferry",
				       q->out_api_version, FERRY_API_VERSION);
	if (q->out_page_bytes != FERRY_PAGE_SIZE)
		return ferry_error_set(err, EOPNOTSUPP, "the kernel module counts pages of %u bytes, "
				       "ferry needs %lu", q->out_page_bytes, FERRY_PAGE_SIZE);
	return 0;
}

static int track(int dev, int memfd, const char *what, struct tracker *t, struct ferry_error *err)
{
	struct ferry_track arg = { .size = sizeof(arg), .memfd = memfd };
	const char *hint = "";
	struct stat st;

	if (fstat(memfd, &st))
		return ferry_error_set(err, errno, "%s: %s", what, strerror(errno));
	if (ioctl(dev, FERRY_TRACK, &arg)) {
		if (errno == ENOSPC)
			hint = "; too many trackers exist, or their bitmaps are too large: see the "
			       "parameters in /sys/module/ferry/parameters";
		if (errno == EFBIG)
			hint = "; the file is larger than the module's limit";
		return ferry_error_set(err, errno, "making a tracker of %s: %s%s", what,
				       strerror(errno), hint);
	}
	*t = (struct tracker){ .fd = arg.out_fd, .id = arg.out_id, .pages = arg.out_pages,
			       .dev = st.st_dev, .ino = st.st_ino };
	return 0;
}

static int set_started(struct tracker *t, bool on)
{
	struct ferry_start arg = { .size = sizeof(arg) };

	if (ioctl(t->fd, on ? FERRY_START : FERRY_STOP, &arg))
		return -errno;
	t->started = on;
	return 0;
}

/* ---- supported() ---- */

/* Does it see one write, then none, then the next: to the same page, and to another? */
static int trial_scans(struct tracker *t, volatile uint8_t *mem, struct ferry_error *err)
{
	static const unsigned int writes[] = { 1, 0, 2 }; /* pages, from the first on */
	struct ferry_extent found[2] = { { 0 } };

	for (unsigned int i = 0; i < sizeof(writes) / sizeof(writes[0]); i++) {
		struct ferry_scan scan = {
			.size = sizeof(scan),
			.flags = FERRY_SCAN_CLEAR,
			.npages = 2,
			.extents = (uintptr_t)found,
			.max_extents = 2,
		};

		for (unsigned int page = 0; page < writes[i]; page++)
			mem[page * FERRY_PAGE_SIZE] = (uint8_t)(i + 1);
		if (ioctl(t->fd, FERRY_SCAN, &scan))
			return ferry_error_set(err, errno, "trying out the kernel module: %s",
					       strerror(errno));
		if (scan.out_extents != (writes[i] != 0) ||
		    (writes[i] && (found[0].first_page || found[0].npages != writes[i])))
			return ferry_error_set(err, EOPNOTSUPP, "the kernel module does not tell "
					       "written pages on this kernel: use another tracker");
	}
	return 0;
}

static int trial(int dev, struct ferry_error *err)
{
	size_t bytes = 2 * FERRY_PAGE_SIZE;
	struct tracker t = { .fd = -1 };
	void *mem = MAP_FAILED;
	int memfd, r;

	memfd = memfd_create("ferry-trial", MFD_CLOEXEC);
	if (memfd < 0 || ftruncate(memfd, (off_t)bytes)) {
		r = ferry_error_set(err, errno, "trying out a memfd: %s", strerror(errno));
		goto out;
	}
	r = track(dev, memfd, "a memfd", &t, err);
	if (r)
		goto out;
	mem = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, t.fd, 0);
	if (mem == MAP_FAILED) {
		r = ferry_error_set(err, errno, "mapping a tracked view: %s", strerror(errno));
		goto out;
	}
	r = set_started(&t, true);
	r = r ? ferry_error_set(err, -r, "starting a tracker: %s", strerror(-r)) :
		trial_scans(&t, mem, err);
out:
	if (mem != MAP_FAILED)
		munmap(mem, bytes);
	ferry_io_close(&t.fd);
	ferry_io_close(&memfd);
	return r;
}

static int kmod_supported(const struct ferry_dirty_target *target, struct ferry_error *err)
{
	struct ferry_query q;
	unsigned int i;
	int dev, r;

	if (target->ram->count && !target->views)
		return ferry_error_set(err, EOPNOTSUPP, "this kind of guest cannot be given a tracked "
				       "view of its RAM");
	dev = open_device(err);
	if (dev < 0)
		return dev;
	r = query(dev, &q, err);
	for (i = 0; !r && i < target->ram->count; i++) {
		const struct ferry_ram_block *b = &target->ram->blocks[i];

		if (b->page_size != FERRY_PAGE_SIZE)
			r = ferry_error_set(err, EOPNOTSUPP, "RAM block %s is hugetlb memory, which "
					    "the kernel module does not track", b->name);
		else if ((b->fd_off_bytes + b->size_bytes) / FERRY_PAGE_SIZE > q.out_max_pages)
			r = ferry_error_set(err, EFBIG, "RAM block %s is larger than the kernel "
					    "module's limit of %" PRIu64 " pages", b->name,
					    (uint64_t)q.out_max_pages);
	}
	if (!r)
		r = trial(dev, err);
	close(dev);
	return r;
}

/* ---- start() ---- */

static int make_trackers(struct kmod *km, struct ferry_error *err)
{
	const struct ferry_ram *ram = km->target.ram;
	struct ferry_query q;
	char what[FERRY_RAM_NAME_MAX + 16];
	int dev, r;

	dev = open_device(err);
	if (dev < 0)
		return dev;
	r = query(dev, &q, err);
	/* What is not unexplained is not seen: kernels before 6.5 do not pin for direct I/O. */
	km->base.sees_pinned_dma = (q.out_features & FERRY_FEATURE_PINS) &&
				   (q.out_features & FERRY_FEATURE_UNEXPLAINED);
	while (!r && km->count < ram->count) {
		snprintf(what, sizeof(what), "RAM block %s", ram->blocks[km->count].name);
		r = track(dev, ram->blocks[km->count].fd, what, &km->trackers[km->count], err);
		if (!r)
			km->count++;
	}
	close(dev);
	return r;
}

static int map_views(struct kmod *km, struct ferry_error *err)
{
	int *fds = calloc(km->room, sizeof(*fds));
	unsigned int i;
	int r;

	if (!fds)
		return ferry_error_set(err, ENOMEM, "tracked views: out of memory");
	for (i = 0; i < km->count; i++)
		fds[i] = km->trackers[i].fd;
	r = km->views.map(km->views.ctx, km->target.ram, fds, err);
	km->mapped = !r;
	free(fds);
	return r;
}

/* A descriptor of another process: a tracker that is not known yet? */
static int add_foreign(void *ctx, pid_t pid, int fd)
{
	struct ferry_tracker_stats stats;
	struct kmod *km = ctx;
	struct stat st;
	unsigned int i;

	if (get_stats(fd, &stats) || fstat(fd, &st))
		return 0;
	for (i = 0; i < km->count; i++)
		if (km->trackers[i].id == stats.out_id)
			return 0;
	if (km->count == km->room)
		return ferry_error_set(km->err, E2BIG, "other processes have more than %u trackers "
				       "of guest RAM", FOREIGN_MAX);
	km->trackers[km->count++] = (struct tracker){
		.fd = fd, .pid = pid, .id = stats.out_id, .pages = stats.out_pages,
		.dev = st.st_dev, .ino = st.st_ino,
	};
	return 1;
}

static int start_all(struct kmod *km, struct ferry_error *err)
{
	unsigned int i;

	for (i = 0; i < km->count; i++) {
		struct tracker *t = &km->trackers[i];
		int r = set_started(t, true);

		if (r == -EALREADY)
			return ferry_error_set(err, EBUSY, "the tracker of guest RAM that pid %d has is "
					       "in use (or was left so by a ferry that was killed): "
					       "end what uses it, or that process", (int)t->pid);
		if (r)
			return ferry_error_set(err, -r, "starting a tracker: %s", strerror(-r));
	}
	return 0;
}

/* Views that were made from the trackers at hand. */
static int sum_views(struct kmod *km, uint64_t *sum, struct ferry_error *err)
{
	struct ferry_tracker_stats stats;
	unsigned int i;
	int r;

	for (*sum = 0, i = 0; i < km->count; i++) {
		r = get_stats(km->trackers[i].fd, &stats);
		if (r)
			return ferry_error_set(err, -r, "asking a tracker for its views: %s",
					       strerror(-r));
		*sum += stats.out_views;
	}
	return 0;
}

static int count_views(struct kmod *km, struct ferry_error *err)
{
	uint64_t before, after;
	int tries, n = 0, r;

	for (tries = 0; tries < COUNT_TRIES; tries++) {
		if (tries)
			ferry_clock_sleep_ns(COUNT_PAUSE_NS);
		r = sum_views(km, &before, err);
		if (r)
			return r;
		n = km->views.count(km->views.ctx, err);
		if (n < 0)
			return n;
		r = sum_views(km, &after, err);
		if (r)
			return r;
		if (before == after && before == (uint64_t)n) {
			km->view_count = before;
			km->counted_ns = ferry_clock_ns();
			return 0;
		}
	}
	return ferry_error_set(err, EBUSY, "guest RAM has %d tracked views, but only %" PRIu64 " of "
			       "trackers that are at hand: another process writes unseen (it must "
			       "keep the descriptor of its tracker open), or the VMM has mapped its "
			       "RAM anew", n, after);
}

static void kmod_stop(struct ferry_dirty *dirty)
{
	struct kmod *km = (struct kmod *)dirty;
	struct ferry_error err = { 0 };
	unsigned int i;

	if (km->mapped && km->views.unmap(km->views.ctx, &err))
		ferry_log_warn("%s", err.text);
	for (i = 0; i < km->count; i++) {
		/* Ours end with the descriptor; what is another's stays, at rest as it was. */
		if (km->trackers[i].pid && km->trackers[i].started)
			set_started(&km->trackers[i], false);
		ferry_io_close(&km->trackers[i].fd);
	}
	free(km->trackers);
	free(km->extents);
	free(km);
}

static int start_stages(struct kmod *km, struct ferry_error *err)
{
	int r = make_trackers(km, err);

	if (!r)
		r = map_views(km, err);
	if (!r) {
		km->err = err;
		r = km->views.others(km->views.ctx, add_foreign, km, err);
	}
	if (!r)
		r = start_all(km, err);
	return r ? r : count_views(km, err);
}

static int kmod_start(const struct ferry_dirty_target *target, struct ferry_dirty **out,
		      struct ferry_error *err)
{
	struct kmod *km;
	int r;

	if (!target->views)
		return ferry_error_set(err, EOPNOTSUPP, "this kind of guest cannot be given a tracked "
				       "view of its RAM");
	km = calloc(1, sizeof(*km));
	if (!km)
		return ferry_error_set(err, ENOMEM, "cannot start the kmod tracker: out of memory");
	km->base.ops = &ferry_dirty_kmod;
	km->target = *target;
	km->views = *target->views;
	km->room = target->ram->count + FOREIGN_MAX;
	km->trackers = calloc(km->room, sizeof(*km->trackers));
	km->extents = calloc(EXTENTS, sizeof(*km->extents));
	if (!km->trackers || !km->extents)
		r = ferry_error_set(err, ENOMEM, "cannot start the kmod tracker: out of memory");
	else
		r = start_stages(km, err);
	if (r) {
		kmod_stop(&km->base);
		return r;
	}
	*out = &km->base;
	return 0;
}

/* ---- collect() ---- */

int ferry_kmod_mark(struct ferry_bitmap *pages, unsigned int block, uint64_t first_page,
		    uint64_t from, uint64_t to, const struct ferry_extent *extents,
		    unsigned int count)
{
	unsigned int i;

	for (i = 0; i < count; i++) {
		const struct ferry_extent *e = &extents[i];

		if (e->first_page < from || e->first_page >= to || !e->npages ||
		    e->npages > to - e->first_page)
			return -EIO;
		ferry_bitmap_set(pages, block, e->first_page - first_page, e->npages);
		from = e->first_page + e->npages;
	}
	return 0;
}

static int scan(struct kmod *km, const struct tracker *t, unsigned int block,
		struct ferry_bitmap *pages)
{
	const struct ferry_ram_block *b = &km->target.ram->blocks[block];
	uint64_t first = b->fd_off_bytes / FERRY_PAGE_SIZE, at = first;
	uint64_t end = first + ferry_ram_block_pages(b);
	int r;

	if (end > t->pages) /* no view reaches beyond */
		end = t->pages;
	while (at < end) {
		struct ferry_scan arg = {
			.size = sizeof(arg),
			.flags = FERRY_SCAN_CLEAR,
			.first_page = at,
			.npages = end - at,
			.extents = (uintptr_t)km->extents,
			.max_extents = EXTENTS,
		};

		if (ioctl(t->fd, FERRY_SCAN, &arg))
			return -errno;
		if (arg.out_extents > EXTENTS || arg.out_next_page <= at ||
		    arg.out_next_page > end)
			return -EIO;
		r = ferry_kmod_mark(pages, block, first, at, arg.out_next_page, km->extents,
				    arg.out_extents);
		if (r)
			return r;
		at = arg.out_next_page;
	}
	return 0;
}

static int collect_block(struct kmod *km, unsigned int block, struct ferry_bitmap *pages)
{
	const struct tracker *own = &km->trackers[block];
	unsigned int i;
	int r = scan(km, own, block, pages);

	for (i = km->target.ram->count; !r && i < km->count; i++)
		if (km->trackers[i].dev == own->dev && km->trackers[i].ino == own->ino)
			r = scan(km, &km->trackers[i], block, pages);
	return r;
}

static int kmod_collect(struct ferry_dirty *dirty, struct ferry_bitmap *pages,
			struct ferry_error *err)
{
	struct kmod *km = (struct kmod *)dirty;
	uint64_t views;
	unsigned int i;
	int r;

	for (i = 0; i < km->target.ram->count; i++) {
		r = collect_block(km, i, pages);
		if (r)
			return ferry_error_set(err, -r, "reading which pages of RAM block %s are "
					       "dirty: %s", km->target.ram->blocks[i].name,
					       strerror(-r));
	}
	r = sum_views(km, &views, err);
	if (r)
		return r;
	if (views != km->view_count || ferry_clock_ns() - km->counted_ns >= COUNT_EVERY_NS)
		return count_views(km, err);
	return 0;
}

const struct ferry_dirty_ops ferry_dirty_kmod = {
	.name = "kmod",
	.sees_other_processes = true,
	.supported = kmod_supported,
	.start = kmod_start,
	.collect = kmod_collect,
	.stop = kmod_stop,
};
