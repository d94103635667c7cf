// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * userfaultfd(2) as postcopy uses it.
 *
 * A range is registered for missing and for minor faults together: the bytes of a page are
 * written into the memory file through another mapping or pwrite(2), where they may be in
 * any state of arrival, and UFFDIO_CONTINUE then enters the whole page into the page tables
 * at once. So nobody sees half a page, and any number of threads can write.
 *
 * What UFFDIO_CONTINUE and UFFDIO_ZEROPAGE answer:
 *
 *   EEXIST   mapped already. It woke nobody: we do.
 *   EAGAIN   the address space is changing, or only a part was done: again.
 *   EFAULT   (CONTINUE) the page is not in the memory file: a hole.
 *   ENOENT   nothing registered is mapped there any more.
 *   ESRCH    the process has ended.
 */
#include "fault/uffd.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/userfaultfd.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/io.h"
#include "base/uapi_compat.h"
#include "base/uffd.h"
#include "ram/hugetlb.h"

#define FEATURES ((uint64_t)(UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM | \
			     UFFD_FEATURE_THREAD_ID))
#define HUGE_FEATURES ((uint64_t)(UFFD_FEATURE_MISSING_HUGETLBFS | UFFD_FEATURE_MINOR_HUGETLBFS))
#define MODES (UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR)

#define BIT(nr) ((uint64_t)1 << (nr))
#define NEEDED_IOCTLS (BIT(_UFFDIO_WAKE) | BIT(_UFFDIO_CONTINUE))

/* Entries of /proc/PID/pagemap looked at in one read. */
#define PAGEMAP_ENTRIES 4096u
#define PAGEMAP_PRESENT BIT(63)

static int handshake(int uffd, const struct ferry_ram *ram, struct ferry_error *err)
{
	struct uffdio_api api = { .api = UFFD_API, .features = FEATURES };
	unsigned int i;

	for (i = 0; i < ram->count; i++)
		if (ferry_ram_is_huge(&ram->blocks[i]))
			api.features |= HUGE_FEATURES;
	if (!ioctl(uffd, UFFDIO_API, &api))
		return 0;
	return ferry_error_set(err, errno == EINVAL ? EOPNOTSUPP : errno,
			       "this kernel's userfaultfd does not handle missing and minor faults "
			       "of shared memory, which postcopy needs: use Linux 5.14 or newer");
}

static int register_range(int uffd, uint64_t addr, uint64_t bytes,
			  const struct ferry_ram_block *block, struct ferry_error *err)
{
	struct uffdio_register reg = { .range = { addr, bytes }, .mode = MODES };
	/* What a hole gets: there is no zero page of 2 MiB, so one is copied. */
	uint64_t needed = NEEDED_IOCTLS | (ferry_ram_is_huge(block) ? BIT(_UFFDIO_COPY) :
								      BIT(_UFFDIO_ZEROPAGE));

	if (ioctl(uffd, UFFDIO_REGISTER, &reg)) {
		if (errno == EBUSY)
			return ferry_error_set(err, EBUSY, "memory block '%s' is registered with "
					       "another userfaultfd already: end what else watches "
					       "this guest's memory", block->name);
		return ferry_error_set(err, errno, "memory block '%s' cannot be registered for "
				       "postcopy: %s", block->name, strerror(errno));
	}
	if ((reg.ioctls & needed) == needed)
		return 0;
	return ferry_error_set(err, EOPNOTSUPP, "the memory of block '%s' can be registered for "
			       "postcopy, but this kernel cannot place pages in it: use tmpfs or a "
			       "memfd, and Linux 5.14 or newer", block->name);
}

static void unregister_range(int uffd, uint64_t addr, uint64_t bytes)
{
	struct uffdio_range range = { addr, bytes };

	ioctl(uffd, UFFDIO_UNREGISTER, &range);
}

static int probe_block(int uffd, const struct ferry_ram_block *b, struct ferry_error *err)
{
	uint64_t bytes = b->page_size;
	void *map;
	int r;

	map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, b->fd,
		   (off_t)b->fd_off_bytes);
	if (map == MAP_FAILED)
		return ferry_error_set(err, errno, "mapping memory block '%s': %s", b->name,
				       strerror(errno));
	r = register_range(uffd, (uintptr_t)map, bytes, b, err);
	munmap(map, bytes);
	return r;
}

int ferry_fault_uffd_probe(const struct ferry_ram *ram, struct ferry_error *err)
{
	int uffd = ferry_uffd_create(err);
	unsigned int i;
	int r;

	if (uffd < 0)
		return uffd;
	r = handshake(uffd, ram, err);
	for (i = 0; i < ram->count && !r; i++)
		r = probe_block(uffd, &ram->blocks[i], err);
	close(uffd);
	return r;
}

int ferry_fault_uffd_arm(const struct ferry_fault_mapper *m, const struct ferry_ram *ram,
			 bool adopted, struct ferry_error *err)
{
	unsigned int i;
	int r = adopted ? 0 : handshake(m->uffd, ram, err);

	for (i = 0; i < ram->count && !r; i++) {
		if (!m->addr[i])
			continue;
		/* Again of the same userfaultfd is allowed and changes nothing. */
		r = register_range(m->uffd, m->addr[i], ram->blocks[i].size_bytes,
				   &ram->blocks[i], err);
	}
	if (!r)
		return 0;
	if (!adopted)
		ferry_fault_uffd_disarm(m, ram);
	ferry_error_prefix(err, "process %d", (int)m->pid);
	return r;
}

void ferry_fault_uffd_disarm(const struct ferry_fault_mapper *m, const struct ferry_ram *ram)
{
	unsigned int i;

	for (i = 0; i < ram->count; i++)
		if (m->addr[i])
			unregister_range(m->uffd, m->addr[i], ram->blocks[i].size_bytes);
}

/*
 * The same by PAGEMAP_SCAN (Linux 6.7), which passes over page tables that do not exist: it
 * takes microseconds, however large the RAM is. Return: also -ENOTTY, the kernel has none.
 */
static int scan_for_present(int pagemap, uint64_t addr, uint64_t bytes, uint64_t *where)
{
	struct page_region region;
	struct pm_scan_arg arg = {
		.size = sizeof(arg),
		.start = addr,
		.end = addr + bytes,
		.vec = (uintptr_t)&region,
		.vec_len = 1,
		.max_pages = 1,
		.category_mask = PAGE_IS_PRESENT,
		.return_mask = PAGE_IS_PRESENT,
	};
	int n = ioctl(pagemap, PAGEMAP_SCAN, &arg);

	if (n < 0)
		return -errno;
	if (n)
		*where = region.start;
	return n ? -EBUSY : 0;
}

/* Return: 0, -EBUSY a page from @addr on is mapped (and @where it is), -errno. */
static int look_for_present(int pagemap, uint64_t addr, uint64_t bytes, uint64_t *where)
{
	uint64_t entries[PAGEMAP_ENTRIES];
	uint64_t page = addr >> FERRY_PAGE_SHIFT, end = (addr + bytes) >> FERRY_PAGE_SHIFT;
	int quick = scan_for_present(pagemap, addr, bytes, where);

	if (quick != -ENOTTY)
		return quick;
	while (page < end) {
		uint64_t i, n = end - page < PAGEMAP_ENTRIES ? end - page : PAGEMAP_ENTRIES;
		int r = ferry_io_pread(pagemap, entries, n * sizeof(entries[0]),
				       (off_t)(page * sizeof(entries[0])));

		if (r)
			return r;
		for (i = 0; i < n; i++)
			if (entries[i] & PAGEMAP_PRESENT) {
				*where = (page + i) << FERRY_PAGE_SHIFT;
				return -EBUSY;
			}
		page += n;
	}
	return 0;
}

int ferry_fault_uffd_assert_empty(const struct ferry_fault_mapper *m, const struct ferry_ram *ram,
				  struct ferry_error *err)
{
	uint64_t where = 0;
	char path[64];
	unsigned int i;
	int fd, r = 0;

	snprintf(path, sizeof(path), "/proc/%d/pagemap", (int)m->pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return ferry_error_set(err, errno, "cannot open %s: %s", path, strerror(errno));
	for (i = 0; i < ram->count && !r; i++) {
		if (!m->addr[i])
			continue;
		r = look_for_present(fd, m->addr[i], ram->blocks[i].size_bytes, &where);
		if (r == -EBUSY)
			ferry_error_set(err, EBUSY, "page 0x%" PRIx64 " of memory block '%s' is "
					"mapped in process %d though its bytes have not come: "
					"nothing would wait for them", where - m->addr[i],
					ram->blocks[i].name, (int)m->pid);
		else if (r)
			ferry_error_set(err, -r, "reading %s: %s", path, strerror(-r));
	}
	close(fd);
	return r;
}

int ferry_fault_uffd_wake(const struct ferry_fault_mapper *m, unsigned int block, uint64_t first,
			  uint64_t pages)
{
	struct uffdio_range range = {
		m->addr[block] + (first << FERRY_PAGE_SHIFT), pages << FERRY_PAGE_SHIFT
	};

	if (!m->addr[block])
		return 0;
	return ioctl(m->uffd, UFFDIO_WAKE, &range) ? -errno : 0;
}

/* What is copied where a huge page is a hole: never touched, so it is no memory of its own. */
static uint8_t zeros[FERRY_HUGETLB_BYTES];

/* A page that is a hole. Return: 0; -EEXIST it is none any more; -errno. */
static int map_zero(const struct ferry_fault_mapper *m, uint64_t addr, uint64_t bytes)
{
	struct uffdio_zeropage zero = { .range = { addr, FERRY_PAGE_SIZE } };
	struct uffdio_copy copy = { .dst = addr, .src = (uintptr_t)zeros, .len = bytes };

	while (bytes > FERRY_PAGE_SIZE ? ioctl(m->uffd, UFFDIO_COPY, &copy) :
					 ioctl(m->uffd, UFFDIO_ZEROPAGE, &zero))
		if (errno != EAGAIN)
			return -errno;
	return 0;
}

int ferry_fault_uffd_map(const struct ferry_fault_mapper *m, unsigned int block, uint64_t first,
			 uint64_t pages, bool holes)
{
	uint64_t addr = m->addr[block] + (first << FERRY_PAGE_SHIFT);
	uint64_t end = addr + (pages << FERRY_PAGE_SHIFT);
	uint64_t step = m->ram->blocks[block].page_size;

	if (!m->addr[block])
		return 0;
	while (addr < end) {
		struct uffdio_continue c = { .range = { addr, end - addr } };
		int r = ioctl(m->uffd, UFFDIO_CONTINUE, &c) ? errno : 0;

		if (!r)
			return 0;
		if (c.mapped > 0) {
			addr += (uint64_t)c.mapped;
			continue;
		}
		if (r == EAGAIN)
			continue;
		if (r == EFAULT && holes) {
			r = -map_zero(m, addr, step);
			if (r == EEXIST)
				continue; /* written to meanwhile: it can be mapped now */
			if (r)
				return -r;
		} else if (r == EEXIST || r == EFAULT) {
			/* A hole: given back while it came. Who waits for it faults again. */
			ferry_fault_uffd_wake(m, block, (addr - m->addr[block]) >> FERRY_PAGE_SHIFT,
					      step >> FERRY_PAGE_SHIFT);
		} else {
			return -r;
		}
		addr += step;
	}
	return 0;
}
