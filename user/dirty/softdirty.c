// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Tracker for kernels without PAGEMAP_SCAN that have CONFIG_MEM_SOFT_DIRTY (Debian
 * 12's 6.1): writing "4" to /proc/PID/clear_refs clears a bit in every page
 * table entry of the VMM and write-protects it; a write sets it again;
 * /proc/PID/pagemap shows it as bit 55.
 *
 * Reading the bits and clearing them are two steps, and a write between them is
 * lost: needs_barrier. The engine stops the guest around collect().
 *
 * The bit lives in the page table entry. A file mapping may lose the entry, and
 * the bit with it, while the page and what was written to it stay: when the page
 * is reclaimed to swap, when huge pages are collapsed or split, when the VMM
 * itself calls MADV_DONTNEED. A later read brings the entry back clean.
 * supported() refuses while swap is on or huge pages are possible, collect() fails
 * if swap appears meanwhile. For what is left, pages without an entry ("absent"):
 *
 *   present before, absent now   reported dirty once: it may have been written, then dropped
 *   absent before, absent now    clean. Wrong only if the VMM faulted, wrote and
 *                                MADV_DONTNEED'ed it all between two collect()s;
 *                                VMMs punch the file instead, and a hole is sent as zeros.
 *
 * There is one such bit for the whole machine's users: a CRIU dump of the same
 * VMM at the same time would clear it under our feet, and we under CRIU's.
 * Sees one process only, and a page pinned for DMA at pin time only (dirty/suspect.h).
 */
#include "dirty/dirty.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "base/io.h"
#include "dirty/huge.h"

#define PM_PRESENT (1ull << 63)
#define PM_SWAPPED (1ull << 62)
#define PM_SOFT_DIRTY (1ull << 55)

/* 256 KiB of pagemap at a time: 128 MiB of guest RAM. */
#define CHUNK_ENTRIES 32768u

struct softdirty {
	struct ferry_dirty base;
	struct ferry_dirty_target target;
	int pagemap_fd;
	int clear_fd;
	int pidfd;
	struct ferry_bitmap absent; /* pages that had no entry at the last look */
	uint64_t *entries;
};

static int open_proc(pid_t pid, const char *name, int flags, struct ferry_error *err)
{
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/%s", (int)pid, name);
	fd = open(path, flags | O_CLOEXEC);
	if (fd >= 0)
		return fd;
	if (errno == ENOENT)
		return ferry_error_set(err, ESRCH, "there is no process %d: has the VMM ended?",
				       (int)pid);
	return ferry_error_set(err, errno,
			       "cannot open %s: %s; run ferry as root or as the user of the VMM",
			       path, strerror(errno));
}

static int clear_refs(int fd, struct ferry_error *err)
{
	if (pwrite(fd, "4", 1, 0) == 1)
		return 0;
	return ferry_error_set(err, errno, "cannot clear the soft-dirty bits of the VMM: %s",
			       strerror(errno));
}

/* ---- supported() ---- */

static int check_swap(struct ferry_error *err)
{
	char line[256], area[200] = "";
	FILE *f = fopen("/proc/swaps", "re");

	/* A kernel without swap has no such file. */
	if (!f)
		return 0;
	/* The first line is a heading. */
	if (fgets(line, sizeof(line), f)) {
		if (fgets(line, sizeof(line), f))
			sscanf(line, "%199s", area);
	}
	fclose(f);
	if (!area[0])
		return 0;
	return ferry_error_set(err, EOPNOTSUPP,
			       "swap is on (%s), and soft-dirty bits are lost when shared memory is swapped out: swapoff it for the migration, or use another tracker",
			       area);
}

static int check_huge(const struct ferry_dirty_target *target, struct ferry_error *err)
{
	char why[256];
	unsigned int i;

	for (i = 0; i < target->ram->count; i++) {
		const struct ferry_ram_block *b = &target->ram->blocks[i];

		if (b->page_size > FERRY_PAGE_SIZE)
			return ferry_error_set(err, EOPNOTSUPP,
					       "RAM block %s is backed by huge pages, which have no soft-dirty bits: use another tracker",
					       b->name);
		if (ferry_huge_possible(b->fd, target->pid, why, sizeof(why)))
			return ferry_error_set(err, EOPNOTSUPP,
					       "RAM block %s may get transparent huge pages (%s), and soft-dirty bits are lost when those are collapsed: set it to never, or use another tracker",
					       b->name, why);
	}
	return 0;
}

static int no_soft_dirty(struct ferry_error *err)
{
	struct utsname un;

	uname(&un);
	return ferry_error_set(err, EOPNOTSUPP,
			       "kernel %s does not keep soft-dirty bits (CONFIG_MEM_SOFT_DIRTY): use another tracker",
			       un.release);
}

/*
 * Clear, see nothing, write, see the bit. On ourselves: a kernel without it takes
 * the clearing and shows no bit, or (no config) never shows one.
 */
static int try_bits(int clear_fd, int pagemap_fd, volatile uint8_t *mem, struct ferry_error *err)
{
	off_t off = (off_t)(((uintptr_t)mem >> FERRY_PAGE_SHIFT) * sizeof(uint64_t));
	uint64_t before, after;
	int ret;

	mem[0] = 1;
	ret = clear_refs(clear_fd, err);
	if (ret)
		return ret;
	ret = ferry_io_pread(pagemap_fd, &before, sizeof(before), off);
	if (ret)
		return ferry_error_set(err, -ret, "cannot read our own pagemap: %s", strerror(-ret));
	mem[0] = 2;
	ret = ferry_io_pread(pagemap_fd, &after, sizeof(after), off);
	if (ret)
		return ferry_error_set(err, -ret, "cannot read our own pagemap: %s", strerror(-ret));
	if ((before & PM_SOFT_DIRTY) || !(after & PM_SOFT_DIRTY))
		return no_soft_dirty(err);
	return 0;
}

static int check_kernel(struct ferry_error *err)
{
	int clear_fd, pagemap_fd, ret;
	void *mem;

	clear_fd = open_proc(getpid(), "clear_refs", O_WRONLY, err);
	if (clear_fd < 0)
		return clear_fd;
	ret = pagemap_fd = open_proc(getpid(), "pagemap", O_RDONLY, err);
	if (ret < 0)
		goto out_clear;
	mem = mmap(NULL, FERRY_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (mem == MAP_FAILED) {
		ret = ferry_error_set(err, errno, "cannot map a page: %s", strerror(errno));
		goto out_pagemap;
	}
	ret = try_bits(clear_fd, pagemap_fd, mem, err);
	munmap(mem, FERRY_PAGE_SIZE);
out_pagemap:
	close(pagemap_fd);
out_clear:
	close(clear_fd);
	return ret;
}

static int softdirty_supported(const struct ferry_dirty_target *target, struct ferry_error *err)
{
	int fd, ret;

	ret = check_kernel(err);
	if (ret)
		return ret;
	ret = check_swap(err);
	if (ret)
		return ret;
	ret = check_huge(target, err);
	if (ret)
		return ret;
	fd = open_proc(target->pid, "clear_refs", O_WRONLY, err);
	if (fd < 0)
		return fd;
	close(fd);
	fd = open_proc(target->pid, "pagemap", O_RDONLY, err);
	if (fd < 0)
		return fd;
	close(fd);
	return 0;
}

/* ---- start(), collect(), stop() ---- */

/* One page as the pagemap shows it; @pages NULL: only learn which are absent. */
static void look_at(struct softdirty *sd, unsigned int block, uint64_t page, uint64_t entry,
		    struct ferry_bitmap *pages)
{
	bool absent = !(entry & (PM_PRESENT | PM_SWAPPED));
	bool was_absent = ferry_bitmap_test(&sd->absent, block, page);

	if (absent && !was_absent)
		ferry_bitmap_set(&sd->absent, block, page, 1);
	else if (!absent && was_absent)
		ferry_bitmap_clear(&sd->absent, block, page, 1);
	if (pages && ((entry & PM_SOFT_DIRTY) || (absent && !was_absent)))
		ferry_bitmap_set(pages, block, page, 1);
}

static int read_block(struct softdirty *sd, unsigned int block, struct ferry_bitmap *pages)
{
	const struct ferry_ram_block *b = &sd->target.ram->blocks[block];
	uint64_t total = ferry_ram_block_pages(b);
	uint64_t page, i, n;
	int ret;

	for (page = 0; page < total; page += n) {
		uint64_t vpn = (b->vmm_addr >> FERRY_PAGE_SHIFT) + page;

		n = total - page < CHUNK_ENTRIES ? total - page : CHUNK_ENTRIES;
		ret = ferry_io_pread(sd->pagemap_fd, sd->entries, n * sizeof(*sd->entries),
				     (off_t)(vpn * sizeof(*sd->entries)));
		if (ret)
			return ret;
		for (i = 0; i < n; i++)
			look_at(sd, block, page + i, sd->entries[i], pages);
	}
	return 0;
}

static int read_all(struct softdirty *sd, struct ferry_bitmap *pages, struct ferry_error *err)
{
	struct pollfd dead = { .fd = sd->pidfd, .events = POLLIN };
	unsigned int i;
	int ret = 0;

	for (i = 0; !ret && i < sd->target.ram->count; i++)
		ret = read_block(sd, i, pages);
	/* The pagemap of a process that ended is empty: look afterwards. */
	if (poll(&dead, 1, 0) != 0)
		return ferry_error_set(err, ESRCH, "process %d ended while its memory was tracked",
				       (int)sd->target.pid);
	if (ret)
		return ferry_error_set(err, -ret, "cannot read the pagemap of process %d: %s",
				       (int)sd->target.pid, strerror(-ret));
	return 0;
}

static void softdirty_stop(struct ferry_dirty *dirty)
{
	struct softdirty *sd = (struct softdirty *)dirty;

	ferry_io_close(&sd->pagemap_fd);
	ferry_io_close(&sd->clear_fd);
	ferry_io_close(&sd->pidfd);
	ferry_bitmap_free(&sd->absent);
	free(sd->entries);
	free(sd);
}

static int open_all(struct softdirty *sd, struct ferry_error *err)
{
	pid_t pid = sd->target.pid;
	unsigned int i;

	for (i = 0; i < sd->target.ram->count; i++) {
		if (!sd->target.ram->blocks[i].vmm_addr)
			return ferry_error_set(err, EINVAL,
					       "cannot track RAM block %s: it is not known where the VMM has it mapped",
					       sd->target.ram->blocks[i].name);
	}
	sd->pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	if (sd->pidfd < 0)
		return ferry_error_set(err, errno, "cannot watch process %d: %s", (int)pid,
				       strerror(errno));
	sd->pagemap_fd = open_proc(pid, "pagemap", O_RDONLY, err);
	if (sd->pagemap_fd < 0)
		return sd->pagemap_fd;
	sd->clear_fd = open_proc(pid, "clear_refs", O_WRONLY, err);
	if (sd->clear_fd < 0)
		return sd->clear_fd;
	sd->entries = calloc(CHUNK_ENTRIES, sizeof(*sd->entries));
	if (!sd->entries || ferry_bitmap_init(&sd->absent, sd->target.ram))
		return ferry_error_set(err, ENOMEM,
				       "cannot start the softdirty tracker: out of memory");
	return 0;
}

static int softdirty_start(const struct ferry_dirty_target *target, struct ferry_dirty **out,
			   struct ferry_error *err)
{
	struct softdirty *sd = calloc(1, sizeof(*sd));
	int ret;

	if (!sd)
		return ferry_error_set(err, ENOMEM,
				       "cannot start the softdirty tracker: out of memory");
	sd->base.ops = &ferry_dirty_softdirty;
	sd->target = *target;
	sd->pagemap_fd = -1;
	sd->clear_fd = -1;
	sd->pidfd = -1;
	ret = open_all(sd, err);
	if (ret)
		goto err_stop;
	ret = clear_refs(sd->clear_fd, err);
	if (ret)
		goto err_stop;
	/* After the clearing: what is absent now and written later stays present, with its bit. */
	ret = read_all(sd, NULL, err);
	if (ret)
		goto err_stop;
	*out = &sd->base;
	return 0;

err_stop:
	softdirty_stop(&sd->base);
	return ret;
}

static int softdirty_collect(struct ferry_dirty *dirty, struct ferry_bitmap *pages,
			     struct ferry_error *err)
{
	struct softdirty *sd = (struct softdirty *)dirty;
	int ret;

	ret = check_swap(err);
	if (ret)
		return ret;
	ret = read_all(sd, pages, err);
	if (ret)
		return ret;
	return clear_refs(sd->clear_fd, err);
}

const struct ferry_dirty_ops ferry_dirty_softdirty = {
	.name = "softdirty",
	.needs_barrier = true,
	.supported = softdirty_supported,
	.start = softdirty_start,
	.collect = softdirty_collect,
	.stop = softdirty_stop,
};
