// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What it costs to learn which pages were written: by ferry.ko, by soft-dirty bits, by
 * PAGEMAP_SCAN, and for the stores of a KVM guest by ferry.ko and by KVM's dirty log.
 * kmod.sh runs this as the only process of an emulated machine with one processor whose
 * time stamp counter counts instructions, so that costs are exact numbers which neither
 * the host's load nor its speed changes. What they leave out: caches, TLB flushes, and the
 * interrupts by which other processors are told of them.
 *
 * A method is measured at points: some pages out of all are stored to, spread evenly or
 * side by side, then its collect() says which. Both are repeated, and each time the number
 * of pages found must be the number stored to, or the benchmark fails.
 *
 *   [grid of one size]  cost[method][point].store[repetition]
 *                       cost[method][point].sync[repetition]
 */
#include "base/uapi_compat.h"
#include "machine.h"
#include "tracker.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/reboot.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <x86intrin.h>

#define TIMES 5
#define GUEST_TIMES 3	/* a store of the nested guest costs ten of the others */
#define SETTLE_TIMES 10

static const struct point {
	const char *name;	/* in ratios */
	const char *label;
	unsigned int permille;
	bool clustered;
} points[] = {
	{ "0pct", "0 %", 0, false },
	{ "0.1pct-spread", "0.1 % spread", 1, false },
	{ "0.1pct-clustered", "0.1 % clustered", 1, true },
	{ "1pct-spread", "1 % spread", 10, false },
	{ "1pct-clustered", "1 % clustered", 10, true },
	{ "10pct-spread", "10 % spread", 100, false },
	{ "10pct-clustered", "10 % clustered", 100, true },
	{ "100pct", "100 %", 1000, true },
};

#define POINTS (sizeof(points) / sizeof(points[0]))
#define POINT_FIRST_STORE 3	/* the costs of first stores hardly differ: this one's ratio */

/* RAM and one method at work on it. */
struct ram {
	uint64_t npages;
	char *at;		/* through which it is written */
	uint64_t *words;	/* room for 16 bytes a page */
	struct tracker tracker;
	struct machine machine;
	int uffd;
	int pagemap;
	int clear_refs;
};

/*
 * begin() maps ram->tracker.memfd at ram->at and sees to it that the next collect() knows
 * of all stores from then on; collect() returns how many pages those were, or leaves a
 * bitmap in ram->words. Both return a negative errno when they cannot.
 */
struct method {
	const char *name;
	bool guest;		/* it is a KVM guest that stores */
	bool leaves_bitmap;
	int (*begin)(struct ram *ram);
	long (*collect)(struct ram *ram);
	void (*end)(struct ram *ram);
};

static size_t ram_bytes(const struct ram *ram)
{
	return ram->npages * PAGE;
}

/* A guest's first page has its code. */
static uint64_t first_page(const struct method *method)
{
	return method->guest ? 1 : 0;
}

static int map_plain(struct ram *ram)
{
	ram->at = file_map(ram->tracker.memfd, ram->npages);
	return ram->at ? 0 : -errno;
}

static int map_view(struct ram *ram)
{
	int ret = tracker_of(&ram->tracker, ram->tracker.memfd);

	if (ret)
		return ret;
	ret = tracker_start(&ram->tracker);
	if (ret)
		return ret;
	ram->at = tracker_view(&ram->tracker);
	return ram->at ? 0 : -errno;
}

static long ferry_collect(struct ram *ram)
{
	return tracker_sync(&ram->tracker);
}

static int softdirty_begin(struct ram *ram)
{
	ram->pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	ram->clear_refs = open("/proc/self/clear_refs", O_WRONLY | O_CLOEXEC);
	if (ram->pagemap < 0 || ram->clear_refs < 0)
		return -errno;
	return map_plain(ram);
}

static long softdirty_collect(struct ram *ram)
{
	off_t from = (off_t)((uintptr_t)ram->at / PAGE * sizeof(uint64_t));
	size_t bytes = ram->npages * sizeof(uint64_t);
	long found = 0;

	if (pread(ram->pagemap, ram->words, bytes, from) != (ssize_t)bytes)
		return -EIO;
	for (uint64_t i = 0; i < ram->npages; i++)
		found += bit_get(&ram->words[i], 55);
	return write(ram->clear_refs, "4", 1) == 1 ? found : -errno;
}

static void softdirty_end(struct ram *ram)
{
	close(ram->pagemap);
	close(ram->clear_refs);
}

static int pagemap_begin(struct ram *ram)
{
	struct uffdio_api api = {
		.api = UFFD_API,
		.features = UFFD_FEATURE_WP_HUGETLBFS_SHMEM | UFFD_FEATURE_WP_UNPOPULATED |
			    UFFD_FEATURE_WP_ASYNC,
	};
	struct uffdio_register range = { .mode = UFFDIO_REGISTER_MODE_WP };
	struct uffdio_writeprotect protect = { .mode = UFFDIO_WRITEPROTECT_MODE_WP };
	int ret = map_plain(ram);

	if (ret)
		return ret;
	ram->uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
	ram->pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	if (ram->uffd < 0 || ram->pagemap < 0)
		return -errno;
	range.range.start = (uintptr_t)ram->at;
	range.range.len = ram_bytes(ram);
	protect.range = range.range;
	if (ioctl(ram->uffd, UFFDIO_API, &api))
		return errno == EINVAL ? -EOPNOTSUPP : -errno;
	if (ioctl(ram->uffd, UFFDIO_REGISTER, &range) ||
	    ioctl(ram->uffd, UFFDIO_WRITEPROTECT, &protect))
		return -errno;
	return 0;
}

static long pagemap_collect(struct ram *ram)
{
	const struct page_region *region = (const void *)ram->words;
	struct pm_scan_arg arg = {
		.size = sizeof(arg),
		.flags = PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC,
		.start = (uintptr_t)ram->at,
		.end = (uintptr_t)ram->at + ram_bytes(ram),
		.vec = (uintptr_t)region,
		.vec_len = ram->npages * 16 / sizeof(*region),
		.category_mask = PAGE_IS_WRITTEN,
		.return_mask = PAGE_IS_WRITTEN,
	};
	long n = ioctl(ram->pagemap, PAGEMAP_SCAN, &arg);
	uint64_t found = 0;

	if (n < 0)
		return -errno;
	for (long i = 0; i < n; i++)
		found += (region[i].end - region[i].start) / PAGE;
	return (long)found;
}

static void pagemap_end(struct ram *ram)
{
	close(ram->pagemap);
	close(ram->uffd);
}

static int guest_plain_begin(struct ram *ram)
{
	int ret = map_plain(ram);

	return ret ? ret : machine_make(&ram->machine, ram->at, ram_bytes(ram), 0);
}

static int guest_view_begin(struct ram *ram)
{
	int ret = map_view(ram);

	return ret ? ret : machine_make(&ram->machine, ram->at, ram_bytes(ram), 0);
}

static int guest_log_begin(struct ram *ram)
{
	int ret = map_plain(ram);

	return ret ? ret : machine_make(&ram->machine, ram->at, ram_bytes(ram),
					KVM_MEM_LOG_DIRTY_PAGES);
}

static long guest_log_collect(struct ram *ram)
{
	struct kvm_dirty_log log = { .dirty_bitmap = ram->words };

	return ioctl(ram->machine.vm, KVM_GET_DIRTY_LOG, &log) ? -errno : 0;
}

static void guest_end(struct ram *ram)
{
	machine_end(&ram->machine);
}

enum { NONE, FERRY, SOFTDIRTY, PAGEMAP, GUEST_NONE, GUEST_FERRY, GUEST_LOG, METHODS };

static const struct method methods[METHODS] = {
	[NONE] = { "none", .begin = map_plain },
	[FERRY] = { "ferry", .begin = map_view, .collect = ferry_collect },
	[SOFTDIRTY] = { "softdirty", .begin = softdirty_begin, .collect = softdirty_collect,
			.end = softdirty_end },
	[PAGEMAP] = { "pagemap", .begin = pagemap_begin, .collect = pagemap_collect,
		      .end = pagemap_end },
	[GUEST_NONE] = { "kvm-none", .guest = true, .begin = guest_plain_begin,
			 .end = guest_end },
	[GUEST_FERRY] = { "kvm-ferry", .guest = true, .begin = guest_view_begin,
			  .collect = ferry_collect, .end = guest_end },
	[GUEST_LOG] = { "kvm-log", .guest = true, .leaves_bitmap = true,
			.begin = guest_log_begin, .collect = guest_log_collect,
			.end = guest_end },
};

static const struct {
	unsigned int ours;
	unsigned int peer;
} pairs[] = { { FERRY, PAGEMAP }, { FERRY, SOFTDIRTY }, { GUEST_FERRY, GUEST_LOG } };

struct cost {
	unsigned int times;	/* 0: not measured */
	uint64_t npages;	/* stored to */
	double store[TIMES];	/* instructions */
	double sync[TIMES];
};

struct grid {
	uint64_t npages;
	unsigned int times;
	bool guests;		/* measure these too */
	const char *suffix;	/* in ratios */
	struct cost cost[METHODS][POINTS];
};

static uint64_t instructions(void)
{
	return __rdtsc();
}

/* Whether the time stamp counter is what this relies on. */
static bool counts_instructions(void)
{
	uint64_t start = instructions(), n = 1000000;

	__asm__ volatile("1: dec %0; jnz 1b" : "+r"(n) : : "cc");
	n = instructions() - start;
	return n >= 2000000 && n < 2200000;	/* and some timer interrupts */
}

static int store_pages(struct ram *ram, const struct method *method, uint64_t n, uint64_t stride)
{
	uint64_t first = first_page(method);

	if (method->guest)
		return machine_pass(&ram->machine, first * PAGE, n, stride * PAGE);
	for (uint64_t i = 0; i < n; i++)
		store(ram->at + (first + i * stride) * PAGE, 1);
	return 0;
}

static uint64_t point_npages(const struct ram *ram, const struct method *method,
			     const struct point *point)
{
	uint64_t n = (ram->npages * point->permille + 500) / 1000;
	uint64_t most = ram->npages - first_page(method);

	return n < most ? n : most;
}

static long found_after(struct ram *ram, const struct method *method, long found)
{
	return method->leaves_bitmap && !found ? bits_count(ram->words, ram->npages) : found;
}

/* All pages present and written once, and nothing more to report. */
static int settle(struct ram *ram, const struct method *method)
{
	uint64_t first = first_page(method);
	int ret = store_pages(ram, method, ram->npages - first, 1);
	long found = 1;

	for (int i = 0; !ret && method->collect && found && i < SETTLE_TIMES; i++) {
		found = found_after(ram, method, method->collect(ram));
		if (found < 0)
			return (int)found;
	}
	return ret ? ret : method->collect && found ? -EBUSY : 0;
}

static int measure_once(struct ram *ram, const struct method *method, const struct point *point,
			struct cost *cost)
{
	uint64_t n = point_npages(ram, method, point);
	uint64_t stride = point->clustered || !n ? 1 : ram->npages / n;
	uint64_t before, between;
	long found;
	int ret;

	before = instructions();
	ret = n ? store_pages(ram, method, n, stride) : 0;
	between = instructions();
	if (ret)
		return ret;
	found = method->collect ? method->collect(ram) : (long)n;
	cost->sync[cost->times] = (double)(instructions() - between);
	cost->store[cost->times++] = (double)(between - before);
	cost->npages = n;
	found = found_after(ram, method, found);
	if (found >= 0 && found != (long)n) {
		printf("%s, %s: %llu pages were stored to, %ld found\n", method->name,
		       point->label, (unsigned long long)n, found);
		return -EBADMSG;
	}
	return found < 0 ? (int)found : 0;
}

static int measure_points(struct ram *ram, const struct method *method, unsigned int times,
			  struct cost cost[POINTS])
{
	int ret = settle(ram, method);

	for (unsigned int i = 0; i < POINTS; i++)
		for (unsigned int k = 0; k < times && !ret; k++)
			ret = measure_once(ram, method, &points[i], &cost[i]);
	return ret;
}

/* Returns -EOPNOTSUPP if this kernel lacks the method. */
static int measure(const struct method *method, const struct grid *grid,
		   struct cost cost[POINTS])
{
	struct ram ram = { .npages = grid->npages };
	size_t room = grid->npages * 16;
	int ret;

	ram.tracker.fd = -1;
	ram.tracker.memfd = memfd_make(ram.npages);
	ram.words = malloc(room);
	if (ram.tracker.memfd < 0 || !ram.words)
		return -ENOMEM;
	memset(ram.words, 1, room);
	ret = method->begin(&ram);
	if (!ret)
		ret = measure_points(&ram, method, method->guest ? GUEST_TIMES : grid->times, cost);
	if (method->end)
		method->end(&ram);
	if (ram.at)
		munmap(ram.at, ram_bytes(&ram));
	tracker_end(&ram.tracker);
	free(ram.words);
	return ret;
}

static int by_number(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

struct middle {
	double median;
	double min;
	double max;
};

static struct middle middle_of(const double *values, unsigned int n)
{
	double sorted[TIMES];

	memcpy(sorted, values, n * sizeof(*values));
	qsort(sorted, n, sizeof(*sorted), by_number);
	return (struct middle){ sorted[n / 2], sorted[0], sorted[n - 1] };
}

enum quantity { SYNC_ALL, SYNC_PAGE, STORE_PAGE };

static void print_cell(const struct method *method, const struct cost *cost,
		       enum quantity quantity, double *farthest)
{
	double by = quantity == SYNC_ALL ? 1000 : (double)cost->npages, off;
	const double *values = quantity == STORE_PAGE ? cost->store : cost->sync;
	struct middle m;

	if (!cost->times || by == 0 || (quantity != STORE_PAGE && !method->collect)) {
		printf(" %11s", "-");
		return;
	}
	m = middle_of(values, cost->times);
	off = m.max - m.median > m.median - m.min ? m.max - m.median : m.median - m.min;
	if (off / m.median > *farthest)
		*farthest = off / m.median;
	printf(" %11.*f", quantity == SYNC_ALL ? 1 : 0, m.median / by);
}

static void print_table(const struct grid *grid, enum quantity quantity)
{
	static const char *const titles[] = {
		[SYNC_ALL] = "thousands of instructions a sync",
		[SYNC_PAGE] = "instructions a sync, by dirty page",
		[STORE_PAGE] = "instructions a first store to a page",
	};
	double farthest = 0;

	printf("\n%llu MiB: %s\n%-16s", (unsigned long long)(grid->npages * PAGE >> 20),
	       titles[quantity], "dirty");
	for (unsigned int m = 0; m < METHODS; m++)
		if (grid->guests || !methods[m].guest)
			printf(" %11s", methods[m].name);
	printf("\n");
	for (unsigned int i = 0; i < POINTS; i++) {
		if (!points[i].permille && quantity != SYNC_ALL)
			continue;
		printf("%-16s", points[i].label);
		for (unsigned int m = 0; m < METHODS; m++)
			if (grid->guests || !methods[m].guest)
				print_cell(&methods[m], &grid->cost[m][i], quantity,
					   &farthest);
		printf("\n");
	}
	printf("medians of %u (guests: %u); the farthest repetition is %.1f %% off\n",
	       grid->times, GUEST_TIMES, 100 * farthest);
}

static void print_ratio(const char *what, const struct grid *grid, const char *point,
			const char *peer, const double *ours, const double *theirs,
			unsigned int n)
{
	double ratios[TIMES];
	struct middle m;

	for (unsigned int k = 0; k < n; k++)
		ratios[k] = ours[k] / theirs[k];
	m = middle_of(ratios, n);
	printf("ratio kmod-%s%s-%s-vs-%s: %.3f (%.3f..%.3f)\n", what, grid->suffix, point, peer,
	       m.median, m.min, m.max);
}

static void print_ratios(const struct grid *grid)
{
	for (unsigned int p = 0; p < sizeof(pairs) / sizeof(pairs[0]); p++) {
		const struct cost *ours = grid->cost[pairs[p].ours];
		const struct cost *theirs = grid->cost[pairs[p].peer];
		const char *peer = methods[pairs[p].peer].name;

		for (unsigned int i = 0; i < POINTS; i++) {
			if (!ours[i].times || !theirs[i].times)
				continue;
			print_ratio("sync-cost", grid, points[i].name, peer, ours[i].sync,
				    theirs[i].sync, ours[i].times);
			if (i == POINT_FIRST_STORE)
				print_ratio("first-store-cost", grid, points[i].name, peer,
					    ours[i].store, theirs[i].store, ours[i].times);
		}
	}
}

static int fill(struct grid *grid)
{
	for (unsigned int m = 0; m < METHODS; m++) {
		int ret;

		if (methods[m].guest && !grid->guests)
			continue;
		ret = measure(&methods[m], grid, grid->cost[m]);
		if (ret == -EOPNOTSUPP && m != FERRY && m != GUEST_FERRY) {
			printf("%s: not in this kernel\n", methods[m].name);
		} else if (ret) {
			printf("%s: cannot be measured: %s\n", methods[m].name, strerror(-ret));
			return ret;
		}
	}
	print_table(grid, SYNC_ALL);
	print_table(grid, SYNC_PAGE);
	print_table(grid, STORE_PAGE);
	return 0;
}

int main(void)
{
	static struct grid grids[] = {
		{ .npages = 1UL << 16, .times = TIMES, .guests = true, .suffix = "" },
		{ .npages = 1UL << 18, .times = 3, .suffix = "-1g" },
	};
	int ret = 0;

	setvbuf(stdout, NULL, _IOLBF, 0);
	if (!counts_instructions()) {
		printf("the time stamp counter does not count instructions: run this by kmod.sh\n");
		ret = -EOPNOTSUPP;
	}
	for (unsigned int i = 0; i < 2 && !ret; i++)
		ret = fill(&grids[i]);
	printf("\n");
	for (unsigned int i = 0; i < 2 && !ret; i++)
		print_ratios(&grids[i]);
	printf("ENDED %d\n", ret);
	if (getpid() == 1)
		reboot(RB_POWER_OFF);
	return ret ? 1 : 0;
}
