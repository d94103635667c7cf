// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Tracker for kernels from 6.7 on, without a module: the VMM's mapping is
 * registered with a userfaultfd in asynchronous write-protect mode, where a
 * write fault just removes the protection, and PAGEMAP_SCAN on the VMM's
 * pagemap reports what is not protected and protects it again, in one step for
 * each page. No write falls between the two, so the guest may run.
 *
 * What the scan must be asked: category_mask and return_mask exactly
 * PAGE_IS_WRITTEN. Only then does the kernel count an *empty* entry of an existing
 * page table as written (reclaim and MADV_DONTNEED drop entries of file
 * mappings), and put a marker there, which the next scan takes for clean.
 *
 * What not every kernel's scan sees: page tables that do not exist (fixed in 7.2
 * and some stable kernels: there they scan as written). Nothing was ever written there, or a
 * huge mapping was written and then dropped by a split. So start() protects
 * everything with UFFDIO_WRITEPROTECT, which builds all page tables and puts markers
 * in: nothing can be mapped huge afterwards, and the scan is exact from the first
 * one on. The price is 2 MiB of the VMM's memory for each GiB of untouched RAM.
 * What is left on kernels from 6.14 without the fix: a VMM that MADV_DONTNEEDs whole
 * aligned 2 MiB of RAM which it has written since the last scan loses those
 * page tables; VMMs punch the memory file instead, and a hole is sent as zeros.
 *
 * It sees one process: not writes of others, not write(2) to the memory file;
 * and a page pinned for DMA is marked at pin time only (dirty/suspect.h).
 */
#include "dirty/dirty.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "base/io.h"
#include "base/uapi_compat.h"
#include "base/uffd.h"

#define FEATURES                                                                                   \
	((uint64_t)(UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM |             \
		    UFFD_FEATURE_WP_UNPOPULATED | UFFD_FEATURE_WP_ASYNC))

/* 96 KiB of results for each thread; a scan that needs more is asked again from where it stopped. */
#define REGIONS 4096u

/*
 * The last scan is made while the guest stands still, and goes through all of RAM: 0.6 ms a GiB.
 * A thread costs a tenth of that.
 */
#define MAX_PARTS 8u
#define PART_BYTES (512ull << 20)
#define PART_ALIGN (2ull << 20)

/* Small enough that the VMM does not wait long for its mmap_lock while markers are made. */
#define PROTECT_STEP_BYTES (256ull << 20)

struct pagemap {
	struct ferry_dirty base;
	struct ferry_dirty_target target;
	int pagemap_fd;
	int pidfd;
	unsigned int registered; /* blocks */
	struct page_region *regions;
};

static int open_pagemap(pid_t pid, struct ferry_error *err)
{
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/pagemap", (int)pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd >= 0)
		return fd;
	if (errno == ENOENT)
		return ferry_error_set(err, ESRCH, "there is no process %d: has the VMM ended?",
				       (int)pid);
	return ferry_error_set(err, errno,
			       "cannot open %s: %s; run ferry as root or as the user of the VMM",
			       path, strerror(errno));
}

/* Which part of a block one thread scans. */
struct part {
	struct pagemap *pm;
	struct ferry_bitmap *pages;
	unsigned int block;
	uint64_t start, end; /* addresses in the VMM */
	struct page_region *regions;
	pthread_t thread;
	bool has_thread;
	int result;
};

/* Protect what was written in the part and OR it into its bitmap. */
static int scan_part(struct part *part)
{
	uint64_t base = part->pm->target.ram->blocks[part->block].vmm_addr;
	struct page_region *region;
	struct pm_scan_arg arg = {
		.size = sizeof(arg),
		.flags = PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC,
		.start = part->start,
		.end = part->end,
		.vec = (uintptr_t)part->regions,
		.vec_len = REGIONS,
		.category_mask = PAGE_IS_WRITTEN,
		.return_mask = PAGE_IS_WRITTEN,
	};
	int n;

	while (arg.start < part->end) {
		n = ioctl(part->pm->pagemap_fd, PAGEMAP_SCAN, &arg);
		if (n < 0)
			return -errno;
		for (region = part->regions; region < part->regions + n; region++) {
			if (region->start < part->start || region->end > part->end ||
			    region->end <= region->start)
				return -EIO;
			ferry_bitmap_set(part->pages, part->block,
					 (region->start - base) >> FERRY_PAGE_SHIFT,
					 (region->end - region->start) >> FERRY_PAGE_SHIFT);
		}
		if (arg.walk_end <= arg.start)
			return -EIO;
		arg.start = arg.walk_end;
	}
	return 0;
}

static void *scan_thread(void *arg)
{
	struct part *part = arg;

	part->result = scan_part(part);
	return NULL;
}

static void start_thread(struct part *part)
{
	sigset_t all, old;

	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, &old);
	part->has_thread = !pthread_create(&part->thread, NULL, scan_thread, part);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
}

/* How many threads scan a block: each has PART_BYTES at least, and a processor. */
static unsigned int parts_of(uint64_t bytes)
{
	uint64_t parts = bytes / PART_BYTES;
	cpu_set_t cpus;

	if (parts > MAX_PARTS)
		parts = MAX_PARTS;
	if (sched_getaffinity(0, sizeof(cpus), &cpus) || parts < 2)
		return 1;
	return parts < (unsigned int)CPU_COUNT(&cpus) ? (unsigned int)parts :
							(unsigned int)CPU_COUNT(&cpus);
}

/* Protect what was written in block @index and OR it into @pages. */
static int scan(struct pagemap *pm, unsigned int index, struct ferry_bitmap *pages)
{
	const struct ferry_ram_block *b = &pm->target.ram->blocks[index];
	unsigned int n = parts_of(b->size_bytes), i;
	/*
	 * Parts meet where words of the bitmap do, so that no two threads write one, and not inside
	 * of a huge page: the kernel scans one of hugetlb whole or not at all, and splits others.
	 */
	uint64_t align = b->page_size > PART_ALIGN ? b->page_size : PART_ALIGN;
	uint64_t step = b->size_bytes / n / align * align;
	struct part parts[MAX_PARTS];
	int ret = 0;

	for (i = 0; i < n; i++) {
		parts[i] = (struct part){
			.pm = pm, .pages = pages, .block = index, .regions = pm->regions + i * REGIONS,
			.start = b->vmm_addr + i * step,
			.end = b->vmm_addr + (i + 1 < n ? (i + 1) * step : b->size_bytes),
		};
		if (i)
			start_thread(&parts[i]);
	}
	for (i = 0; i < n; i++) {
		if (parts[i].has_thread)
			pthread_join(parts[i].thread, NULL);
		else
			scan_thread(&parts[i]);
		if (!ret)
			ret = parts[i].result;
	}
	return ret;
}

static int scan_error(int ret, const struct ferry_ram_block *b, pid_t pid, struct ferry_error *err)
{
	if (ret == -EPERM)
		return ferry_error_set(err, EPERM,
				       "cannot scan RAM block %s of process %d for dirty pages: part of it is no longer write-protected by ferry; did the VMM map something else there?",
				       b->name, (int)pid);
	return ferry_error_set(err, -ret, "cannot scan RAM block %s of process %d for dirty pages: %s",
			       b->name, (int)pid, strerror(-ret));
}

/* ---- supported() ---- */

static int too_old(const char *what, struct ferry_error *err)
{
	struct utsname un;

	uname(&un);
	return ferry_error_set(err, EOPNOTSUPP,
			       "kernel %s has no %s, it is older than 6.7 or built without: use another tracker or a newer kernel",
			       un.release, what);
}

/* A kernel says which features it knows only to a caller that asks for none. */
static int check_features(struct ferry_error *err)
{
	struct uffdio_api api = { .api = UFFD_API };
	int uffd = ferry_uffd_create(err);
	int ret;

	if (uffd < 0)
		return uffd;
	ret = ioctl(uffd, UFFDIO_API, &api) ? -errno : 0;
	close(uffd);
	if (ret)
		return ferry_error_set(err, -ret, "asking userfaultfd for its features failed: %s",
				       strerror(-ret));
	if (!(api.features & UFFD_FEATURE_WP_ASYNC))
		return too_old("userfaultfd WP_ASYNC", err);
	if ((api.features & FEATURES) != FEATURES)
		return too_old("userfaultfd write protection for shared memory", err);
	return 0;
}

static int api_handshake(int uffd, struct ferry_error *err)
{
	struct uffdio_api api = { .api = UFFD_API, .features = FEATURES };

	if (ioctl(uffd, UFFDIO_API, &api))
		return ferry_error_set(err, errno,
				       "userfaultfd refused write protection of shared memory: %s",
				       strerror(errno));
	return 0;
}

static void unregister_range(int uffd, uint64_t addr, uint64_t len)
{
	struct uffdio_range range = { addr, len };

	ioctl(uffd, UFFDIO_UNREGISTER, &range);
}

static int register_range(int uffd, uint64_t addr, uint64_t len)
{
	struct uffdio_register reg = {
		.range = { addr, len },
		.mode = UFFDIO_REGISTER_MODE_WP,
	};

	if (ioctl(uffd, UFFDIO_REGISTER, &reg))
		return -errno;
	if (reg.ioctls & (1ull << _UFFDIO_WRITEPROTECT))
		return 0;
	unregister_range(uffd, addr, len);
	return -EOPNOTSUPP;
}

/* Does the scan see one write, then none, then the next? Return: 0, 1 for no, or -errno. */
static int trial_scans(int fd, uint64_t addr, volatile uint8_t *mem)
{
	struct page_region regions[4];
	struct pm_scan_arg arg = {
		.size = sizeof(arg),
		.flags = PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC,
		.start = addr,
		.end = addr + 2 * FERRY_PAGE_SIZE,
		.vec = (uintptr_t)regions,
		.vec_len = 4,
		.category_mask = PAGE_IS_WRITTEN,
		.return_mask = PAGE_IS_WRITTEN,
	};
	int first, second, third;

	mem[0] = 1;
	first = ioctl(fd, PAGEMAP_SCAN, &arg);
	if (first < 0)
		return -errno;
	second = ioctl(fd, PAGEMAP_SCAN, &arg);
	mem[FERRY_PAGE_SIZE] = 1;
	third = ioctl(fd, PAGEMAP_SCAN, &arg);
	return first == 1 && second == 0 && third == 1 &&
	       regions[0].start == addr + FERRY_PAGE_SIZE ? 0 : 1;
}

static int trial(int uffd, int memfd, int fd, struct ferry_error *err)
{
	size_t len = 2 * FERRY_PAGE_SIZE;
	uint8_t *mem;
	int ret;

	if (ftruncate(memfd, (off_t)len))
		return ferry_error_set(err, errno, "trying out a memfd failed: %s", strerror(errno));
	mem = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
	if (mem == MAP_FAILED)
		return ferry_error_set(err, errno, "trying out a memfd failed: %s", strerror(errno));
	ret = register_range(uffd, (uintptr_t)mem, len);
	if (ret) {
		ferry_error_set(err, -ret, "userfaultfd cannot write-protect shared memory: %s",
				strerror(-ret));
		goto out_unmap;
	}
	ret = trial_scans(fd, (uintptr_t)mem, mem);
	if (ret == -ENOTTY || ret == -EINVAL)
		ret = too_old("PAGEMAP_SCAN", err);
	else if (ret < 0)
		ferry_error_set(err, -ret, "trying out PAGEMAP_SCAN failed: %s", strerror(-ret));
	else if (ret > 0)
		ret = ferry_error_set(err, EOPNOTSUPP,
				      "PAGEMAP_SCAN does not tell written pages on this kernel: use another tracker");
out_unmap:
	munmap(mem, len);
	return ret;
}

static int pagemap_supported(const struct ferry_dirty_target *target, struct ferry_error *err)
{
	int uffd = -1, memfd = -1, fd = -1;
	int ret;

	ret = check_features(err);
	if (ret)
		return ret;
	uffd = ferry_uffd_create(err);
	if (uffd < 0)
		return uffd;
	ret = api_handshake(uffd, err);
	if (ret)
		goto out_close;
	memfd = memfd_create("ferry-trial", MFD_CLOEXEC);
	if (memfd < 0) {
		ret = ferry_error_set(err, errno, "cannot create a memfd: %s", strerror(errno));
		goto out_close;
	}
	fd = open_pagemap(getpid(), err);
	if (fd < 0) {
		ret = fd;
		goto out_close;
	}
	ret = trial(uffd, memfd, fd, err);
	if (ret)
		goto out_close;
	close(fd);
	fd = open_pagemap(target->pid, err);
	ret = fd < 0 ? fd : 0;

out_close:
	ferry_io_close(&fd);
	ferry_io_close(&memfd);
	ferry_io_close(&uffd);
	return ret;
}

/* ---- start(), collect(), stop() ---- */

static int register_block(struct pagemap *pm, const struct ferry_ram_block *b,
			  struct ferry_error *err)
{
	int ret;

	if (!b->vmm_addr)
		return ferry_error_set(err, EINVAL,
				       "cannot track RAM block %s: it is not known where the VMM has it mapped",
				       b->name);
	ret = register_range(pm->target.uffd, b->vmm_addr, b->size_bytes);
	if (ret == -EBUSY)
		return ferry_error_set(err, EBUSY,
				       "cannot track RAM block %s: another userfaultfd watches it already (a snapshot or postcopy under way in the VMM?)",
				       b->name);
	if (ret)
		return ferry_error_set(err, -ret,
				       "cannot write-protect RAM block %s at %#" PRIx64 " of process %d: %s",
				       b->name, b->vmm_addr, (int)pm->target.pid, strerror(-ret));
	return 0;
}

/* Build all page tables and mark everything in them as protected. */
static int protect_block(struct pagemap *pm, const struct ferry_ram_block *b,
			 struct ferry_error *err)
{
	uint64_t addr = b->vmm_addr, end = b->vmm_addr + b->size_bytes;

	while (addr < end) {
		uint64_t len = end - addr < PROTECT_STEP_BYTES ? end - addr : PROTECT_STEP_BYTES;
		struct uffdio_writeprotect wp = {
			.range = { addr, len },
			.mode = UFFDIO_WRITEPROTECT_MODE_WP,
		};

		if (!ioctl(pm->target.uffd, UFFDIO_WRITEPROTECT, &wp))
			addr += len;
		else if (errno != EAGAIN && errno != EINTR)
			return ferry_error_set(err, errno, "cannot write-protect RAM block %s: %s",
					       b->name, strerror(errno));
	}
	return 0;
}

static void pagemap_stop(struct ferry_dirty *dirty)
{
	struct pagemap *pm = (struct pagemap *)dirty;

	while (pm->registered) {
		const struct ferry_ram_block *b = &pm->target.ram->blocks[--pm->registered];

		unregister_range(pm->target.uffd, b->vmm_addr, b->size_bytes);
	}
	ferry_io_close(&pm->pagemap_fd);
	ferry_io_close(&pm->pidfd);
	free(pm->regions);
	free(pm);
}

static int pagemap_start(const struct ferry_dirty_target *target, struct ferry_dirty **out,
			 struct ferry_error *err)
{
	struct pagemap *pm;
	unsigned int i;
	int ret;

	if (target->uffd < 0)
		return ferry_error_set(err, EBADF,
				       "the pagemap tracker needs a userfaultfd of process %d and has none",
				       (int)target->pid);
	pm = calloc(1, sizeof(*pm));
	if (!pm)
		return ferry_error_set(err, ENOMEM, "cannot start the pagemap tracker: out of memory");
	pm->base.ops = &ferry_dirty_pagemap;
	pm->target = *target;
	pm->pagemap_fd = -1;
	pm->pidfd = (int)syscall(SYS_pidfd_open, target->pid, 0);
	if (pm->pidfd < 0) {
		ret = ferry_error_set(err, errno, "cannot watch process %d: %s", (int)target->pid,
				      strerror(errno));
		goto err_stop;
	}
	ret = pm->pagemap_fd = open_pagemap(target->pid, err);
	if (ret < 0)
		goto err_stop;
	pm->regions = calloc((size_t)MAX_PARTS * REGIONS, sizeof(*pm->regions));
	if (!pm->regions) {
		ret = ferry_error_set(err, ENOMEM, "cannot start the pagemap tracker: out of memory");
		goto err_stop;
	}
	ret = api_handshake(target->uffd, err);
	for (i = 0; !ret && i < target->ram->count; i++) {
		ret = register_block(pm, &target->ram->blocks[i], err);
		if (ret)
			break;
		pm->registered++;
		ret = protect_block(pm, &target->ram->blocks[i], err);
	}
	if (ret)
		goto err_stop;
	*out = &pm->base;
	return 0;

err_stop:
	pagemap_stop(&pm->base);
	return ret;
}

static int pagemap_collect(struct ferry_dirty *dirty, struct ferry_bitmap *pages,
			   struct ferry_error *err)
{
	struct pagemap *pm = (struct pagemap *)dirty;
	struct pollfd dead = { .fd = pm->pidfd, .events = POLLIN };
	unsigned int i;
	int ret;

	for (i = 0; i < pm->target.ram->count; i++) {
		ret = scan(pm, i, pages);
		if (ret)
			return scan_error(ret, &pm->target.ram->blocks[i], pm->target.pid, err);
	}
	/* The memory of a process that ended scans as clean: look afterwards. */
	if (poll(&dead, 1, 0) != 0)
		return ferry_error_set(err, ESRCH, "process %d ended while its memory was tracked",
				       (int)pm->target.pid);
	return 0;
}

const struct ferry_dirty_ops ferry_dirty_pagemap = {
	.name = "pagemap",
	.needs_uffd = true,
	.supported = pagemap_supported,
	.start = pagemap_start,
	.collect = pagemap_collect,
	.stop = pagemap_stop,
};
