// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Which huge pages a memory file has.
 *
 * UFFDIO_CONTINUE maps a page that is in the file, and fails with EFAULT where there is none;
 * it allocates nothing. So a mapping of the block that nobody touches, registered for minor
 * faults, is asked page by page: half a microsecond each. What is punched is unmapped there by the
 * kernel, so that the next answer is true again.
 */
#include "ram/hugetlb.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <linux/userfaultfd.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "base/uffd.h"

struct ferry_hugetlb {
	int uffd;
	uint8_t *map; /* never read or written */
	uint64_t bytes;
};

int ferry_hugetlb_page_size(int fd, uint32_t *bytes, struct ferry_error *err)
{
	struct statfs fs;

	if (fstatfs(fd, &fs))
		return ferry_error_set(err, errno, "%s", strerror(errno));
	if (fs.f_type == TMPFS_MAGIC)
		*bytes = FERRY_PAGE_SIZE;
	else if (fs.f_type != HUGETLBFS_MAGIC)
		return ferry_error_set(err, EOPNOTSUPP,
				       "it is a file on a disk, not shared memory");
	else if (fs.f_bsize != FERRY_HUGETLB_BYTES)
		return ferry_error_set(err, EOPNOTSUPP, "it is of huge pages (hugetlb) of %llu MiB, "
				       "only those of 2 MiB are supported",
				       (unsigned long long)fs.f_bsize >> 20);
	else
		*bytes = FERRY_HUGETLB_BYTES;
	return 0;
}

/* Return: 0 or errno. */
static int watch(struct ferry_hugetlb *h)
{
	struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_MINOR_HUGETLBFS };
	struct uffdio_register reg = {
		.range = { (uintptr_t)h->map, h->bytes },
		.mode = UFFDIO_REGISTER_MODE_MINOR,
	};

	h->uffd = ferry_uffd_create(NULL);
	if (h->uffd < 0)
		return -h->uffd;
	if (ioctl(h->uffd, UFFDIO_API, &api) || ioctl(h->uffd, UFFDIO_REGISTER, &reg))
		return errno;
	return reg.ioctls & (uint64_t)1 << _UFFDIO_CONTINUE ? 0 : EOPNOTSUPP;
}

int ferry_hugetlb_open(struct ferry_ram_block *block, struct ferry_error *err)
{
	struct ferry_hugetlb *h;
	int r;

	if (block->hugetlb || !ferry_ram_is_huge(block))
		return 0;
	h = calloc(1, sizeof(*h));
	if (!h)
		return ferry_error_set(err, ENOMEM, "out of memory");
	h->uffd = -1;
	h->bytes = block->size_bytes;
	h->map = mmap(NULL, h->bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE,
		      block->fd, (off_t)block->fd_off_bytes);
	r = h->map == MAP_FAILED ? errno : 0;
	block->hugetlb = h;
	if (!r)
		r = watch(h);
	if (!r)
		return 0;
	ferry_hugetlb_close(block);
	return ferry_error_set(err, r, "cannot see which huge pages RAM block %s has (%s): that needs "
			       "Linux 5.13 and the right to make a userfaultfd (root)", block->name,
			       strerror(r));
}

void ferry_hugetlb_close(struct ferry_ram_block *block)
{
	struct ferry_hugetlb *h = block->hugetlb;

	block->hugetlb = NULL;
	if (!h)
		return;
	if (h->map != MAP_FAILED)
		munmap(h->map, h->bytes);
	if (h->uffd >= 0)
		close(h->uffd);
	free(h);
}

/* Is the huge page at @off bytes there? Return: 1, 0 or -errno. */
static int is_there(const struct ferry_hugetlb *h, uint64_t off)
{
	struct uffdio_continue c = {
		.range = { (uintptr_t)h->map + off, FERRY_HUGETLB_BYTES },
	};

	while (ioctl(h->uffd, UFFDIO_CONTINUE, &c)) {
		if (errno == EEXIST)
			return 1;
		if (errno == EFAULT)
			return 0;
		if (errno != EAGAIN)
			return -errno;
	}
	return 1;
}

int ferry_hugetlb_next(const struct ferry_ram_block *block, uint64_t *page, uint64_t *pages,
		       uint64_t end_page, uint64_t most)
{
	const uint64_t unit = ferry_ram_unit_pages(block);
	uint64_t at = *page / unit * unit, first;
	int r = 0;

	while (at < end_page && !(r = is_there(block->hugetlb, at << FERRY_PAGE_SHIFT)))
		at += unit;
	if (r <= 0)
		return r;
	first = at > *page ? at : *page;
	do {
		at += unit;
	} while (at < end_page && at - first < most &&
		 (r = is_there(block->hugetlb, at << FERRY_PAGE_SHIFT)) > 0);
	if (r < 0)
		return r;
	*page = first;
	*pages = (at < end_page ? at : end_page) - first;
	return 1;
}

int ferry_hugetlb_reserve(const struct ferry_ram_block *block, struct ferry_error *err)
{
	void *map;

	if (!ferry_ram_is_huge(block))
		return 0;
	/* What a shared mapping reserves stays reserved for the file. */
	map = mmap(NULL, block->size_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, block->fd,
		   (off_t)block->fd_off_bytes);
	if (map == MAP_FAILED)
		return ferry_error_set(err, errno, "there are not enough free huge pages for RAM block "
				       "%s (%llu of 2 MiB): raise vm.nr_hugepages (%s)",
				       block->name,
				       (unsigned long long)block->size_bytes / FERRY_HUGETLB_BYTES,
				       strerror(errno));
	munmap(map, block->size_bytes);
	return 0;
}
