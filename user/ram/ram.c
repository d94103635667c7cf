// SPDX-License-Identifier: GPL-2.0-or-later
#include "ram/ram.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/io.h"
#include "ram/hugetlb.h"
#include "ram/sparse.h"

/* x86 has no larger page; a block made of larger ones is a mistake of the sender. */
#define MAX_PAGE_SIZE (1u << 30)

void ferry_ram_init(struct ferry_ram *ram)
{
	memset(ram, 0, sizeof(*ram));
}

static void block_unmap(struct ferry_ram_block *b)
{
	if (b->map)
		munmap(b->map, b->size_bytes);
	b->map = NULL;
	b->map_writable = false;
}

void ferry_ram_free(struct ferry_ram *ram)
{
	unsigned int i;

	for (i = 0; i < ram->count; i++) {
		block_unmap(&ram->blocks[i]);
		ferry_hugetlb_close(&ram->blocks[i]);
		close(ram->blocks[i].fd);
	}
	free(ram->blocks);
	ferry_ram_init(ram);
}

static int check_name(const char *name, struct ferry_error *err)
{
	size_t len = strnlen(name, FERRY_RAM_NAME_MAX);
	size_t i;

	if (len == 0)
		return ferry_error_set(err, EINVAL, "cannot add a RAM block: its name is empty");
	if (len == FERRY_RAM_NAME_MAX)
		return ferry_error_set(err, EINVAL,
				       "cannot add a RAM block: its name is longer than %d bytes",
				       FERRY_RAM_NAME_MAX - 1);
	for (i = 0; i < len; i++) {
		if (name[i] < 0x20 || name[i] > 0x7e)
			return ferry_error_set(err, EINVAL,
					       "cannot add a RAM block: byte %zu of its name is not printable ASCII",
					       i);
	}
	return 0;
}

static int check_geometry(const struct ferry_ram_block *b, struct ferry_error *err)
{
	if (b->page_size < FERRY_PAGE_SIZE || b->page_size > MAX_PAGE_SIZE ||
	    (b->page_size & (b->page_size - 1)))
		return ferry_error_set(err, EINVAL,
				       "cannot add RAM block %s: page size %u is no power of two from 4096 up to 1G",
				       b->name, b->page_size);
	if (b->size_bytes == 0 || b->size_bytes > FERRY_RAM_MAX_BLOCK_BYTES ||
	    b->size_bytes % b->page_size)
		return ferry_error_set(err, EINVAL,
				       "cannot add RAM block %s: %" PRIu64 " bytes is not a number of its %u byte pages up to 64T",
				       b->name, b->size_bytes, b->page_size);
	if (b->fd_off_bytes % b->page_size ||
	    b->fd_off_bytes > (uint64_t)INT64_MAX - b->size_bytes)
		return ferry_error_set(err, EINVAL,
				       "cannot add RAM block %s: file offset %#" PRIx64 " is unaligned or too large",
				       b->name, b->fd_off_bytes);
	if (b->vmm_addr % b->page_size || b->vmm_addr > UINT64_MAX - b->size_bytes)
		return ferry_error_set(err, EINVAL,
				       "cannot add RAM block %s: address %#" PRIx64 " in the VMM is unaligned or too large",
				       b->name, b->vmm_addr);
	if (b->fd < 0)
		return ferry_error_set(err, EINVAL, "cannot add RAM block %s: it has no memory file",
				       b->name);
	return 0;
}

int ferry_ram_add(struct ferry_ram *ram, const struct ferry_ram_block *block,
		  struct ferry_error *err)
{
	struct ferry_ram_block *blocks;
	int ret;

	ret = check_name(block->name, err);
	if (ret)
		return ret;
	ret = check_geometry(block, err);
	if (ret)
		return ret;
	if (ferry_ram_find(ram, block->name) >= 0)
		return ferry_error_set(err, EEXIST,
				       "cannot add RAM block %s: there is one of that name already",
				       block->name);
	if (ram->count == FERRY_RAM_MAX_BLOCKS)
		return ferry_error_set(err, E2BIG,
				       "cannot add RAM block %s: a guest may have at most %d blocks",
				       block->name, FERRY_RAM_MAX_BLOCKS);
	blocks = reallocarray(ram->blocks, ram->count + 1, sizeof(*blocks));
	if (!blocks)
		return ferry_error_set(err, ENOMEM, "cannot add RAM block %s: out of memory",
				       block->name);
	ram->blocks = blocks;
	blocks[ram->count] = *block;
	blocks[ram->count].map = NULL;
	blocks[ram->count].map_writable = false;
	blocks[ram->count].hugetlb = NULL;
	ram->count++;
	return 0;
}

static int block_map(struct ferry_ram_block *b, bool writable, struct ferry_error *err)
{
	int prot = PROT_READ | (writable ? PROT_WRITE : 0);
	struct stat st;
	void *map;

	if (fstat(b->fd, &st))
		return ferry_error_set(err, errno, "cannot look at the memory file of RAM block %s: %s",
				       b->name, strerror(errno));
	/* Past the end of the file an access would be a SIGBUS, not an error. */
	if ((uint64_t)st.st_size < b->fd_off_bytes + b->size_bytes)
		return ferry_error_set(err, EINVAL,
				       "cannot map RAM block %s: its memory file has %lld bytes, the block ends at %" PRIu64,
				       b->name, (long long)st.st_size,
				       b->fd_off_bytes + b->size_bytes);
	map = mmap(NULL, b->size_bytes, prot, MAP_SHARED | MAP_NORESERVE, b->fd,
		   (off_t)b->fd_off_bytes);
	if (map == MAP_FAILED)
		return ferry_error_set(err, errno, "cannot map RAM block %s (%" PRIu64 " bytes%s): %s",
				       b->name, b->size_bytes, writable ? ", writable" : "",
				       strerror(errno));
	/* Guest memory has no place in a core dump of the agent; nothing depends on it. */
	madvise(map, b->size_bytes, MADV_DONTDUMP);
	block_unmap(b);
	b->map = map;
	b->map_writable = writable;
	return 0;
}

int ferry_ram_map(struct ferry_ram *ram, bool writable, struct ferry_error *err)
{
	unsigned int i;
	int ret;

	for (i = 0; i < ram->count; i++) {
		struct ferry_ram_block *b = &ram->blocks[i];

		if (b->map && (b->map_writable || !writable))
			continue;
		ret = ferry_hugetlb_open(b, err);
		if (!ret && (writable || !ferry_ram_is_huge(b)))
			ret = block_map(b, writable, err);
		if (ret)
			return ret;
	}
	return 0;
}

int ferry_ram_find(const struct ferry_ram *ram, const char *name)
{
	unsigned int i;

	for (i = 0; i < ram->count; i++) {
		if (!strcmp(ram->blocks[i].name, name))
			return (int)i;
	}
	return -ENOENT;
}

uint64_t ferry_ram_bytes(const struct ferry_ram *ram)
{
	uint64_t sum = 0;
	unsigned int i;

	for (i = 0; i < ram->count; i++)
		sum += ram->blocks[i].size_bytes;
	return sum;
}

uint64_t ferry_ram_pages(const struct ferry_ram *ram)
{
	return ferry_ram_bytes(ram) >> FERRY_PAGE_SHIFT;
}

static int block_punch(const struct ferry_ram_block *b, struct ferry_error *err)
{
	off_t begin = (off_t)b->fd_off_bytes;
	uint64_t data = 0;
	int ret;

	do {
		ret = fallocate(b->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, begin,
				(off_t)b->size_bytes);
	} while (ret && errno == EINTR);
	if (ret)
		return ferry_error_set(err, errno,
				       "cannot empty RAM block %s: punching its memory file failed: %s",
				       b->name, strerror(errno));
	ret = ferry_sparse_first(b, &data, ferry_ram_block_pages(b));
	if (ret < 0)
		return ferry_error_set(err, -ret,
				       "cannot tell whether RAM block %s is empty: SEEK_DATA failed: %s",
				       b->name, strerror(-ret));
	if (ret)
		return ferry_error_set(err, EBUSY,
				       "RAM block %s still holds data at %#llx after it was emptied: something writes to it; stop that and try again",
				       b->name, (unsigned long long)data << FERRY_PAGE_SHIFT);
	return 0;
}

int ferry_ram_punch(struct ferry_ram *ram, struct ferry_error *err)
{
	unsigned int i;
	int ret;

	for (i = 0; i < ram->count; i++) {
		struct ferry_ram_block *b = &ram->blocks[i];

		ret = ferry_hugetlb_open(b, err);
		if (!ret)
			ret = block_punch(b, err);
		if (!ret)
			ret = ferry_hugetlb_reserve(b, err);
		if (!ret && ferry_ram_is_huge(b) && !b->map_writable)
			ret = block_map(b, true, err);
		if (ret)
			return ret;
	}
	return 0;
}

int ferry_ram_write(const struct ferry_ram_block *block, uint64_t first, uint64_t pages,
		    const uint8_t *data)
{
	size_t bytes = (size_t)pages << FERRY_PAGE_SHIFT;

	if (block->map) {
		uint8_t *at = block->map + (first << FERRY_PAGE_SHIFT);

		if (!madvise(at, bytes, MADV_POPULATE_WRITE)) {
			memcpy(at, data, bytes);
			return 0;
		}
	}
	if (ferry_ram_is_huge(block))
		return block->map ? -ENOMEM : -EBADF;
	return ferry_io_pwrite(block->fd, data, bytes,
			       (off_t)(block->fd_off_bytes + (first << FERRY_PAGE_SHIFT)));
}

int ferry_ram_zero(const struct ferry_ram_block *block, uint64_t first, uint64_t pages)
{
	size_t bytes = (size_t)pages << FERRY_PAGE_SHIFT;
	uint64_t off = first << FERRY_PAGE_SHIFT;

	/* Part of a huge page cannot be freed, and a whole one might not come back. */
	if (ferry_ram_is_huge(block)) {
		if (!block->map || madvise(block->map + off, bytes, MADV_POPULATE_WRITE))
			return block->map ? -ENOMEM : -EBADF;
		memset(block->map + off, 0, bytes);
		return 0;
	}
	return fallocate(block->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			 (off_t)(block->fd_off_bytes + off), (off_t)bytes) ? -errno : 0;
}
