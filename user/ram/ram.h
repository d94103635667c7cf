/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_RAM_RAM_H
#define FERRY_RAM_RAM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

/*
 * Guest RAM as ferry sees it: a few named blocks, each a range of a shared
 * memory file that the agent has open and mapped. "Page" is the 4 KiB unit of
 * all bitmaps and of the wire; page_size is what the host backs the block with.
 */
#define FERRY_PAGE_SHIFT 12
#define FERRY_PAGE_SIZE (1ul << FERRY_PAGE_SHIFT)
#define FERRY_RAM_MAX_BLOCKS 256
#define FERRY_RAM_NAME_MAX 128 /* with the final NUL */
#define FERRY_RAM_MAX_BLOCK_BYTES (1ull << 46)

struct ferry_hugetlb;

struct ferry_ram_block {
	char name[FERRY_RAM_NAME_MAX];
	uint64_t size_bytes;   /* multiple of page_size */
	uint32_t page_size;    /* bytes; 4096 or the huge page's */
	int fd;		       /* the memory file, owned */
	uint64_t fd_off_bytes; /* where the block begins in it */
	uint64_t vmm_addr;     /* where the VMM has it mapped (source of tracking); 0 unknown */
	uint8_t *map;	       /* our own shared mapping, or NULL */
	bool map_writable;
	struct ferry_hugetlb *hugetlb; /* of huge pages: see ram/hugetlb.h */
};

struct ferry_ram {
	struct ferry_ram_block *blocks;
	unsigned int count;
};

static inline uint64_t ferry_ram_block_pages(const struct ferry_ram_block *b)
{
	return b->size_bytes >> FERRY_PAGE_SHIFT;
}

/* What the host shows, frees and protects as one, in pages. */
static inline uint64_t ferry_ram_unit_pages(const struct ferry_ram_block *b)
{
	return b->page_size >> FERRY_PAGE_SHIFT;
}

/* hugetlb memory; huge pages of tmpfs are no kind of their own. */
static inline bool ferry_ram_is_huge(const struct ferry_ram_block *b)
{
	return b->page_size > FERRY_PAGE_SIZE;
}

/** ferry_ram_init() - an empty set of blocks. */
void ferry_ram_init(struct ferry_ram *ram);

/** ferry_ram_free() - unmap, close and free all blocks. */
void ferry_ram_free(struct ferry_ram *ram);

/**
 * ferry_ram_add() - append a copy of @block, whose fd the set owns from then on
 *
 * Return: 0; -EINVAL (size, page size, name: empty, too long or not printable),
 * -EEXIST (name), -E2BIG (too many); the fd stays the caller's on failure.
 */
int ferry_ram_add(struct ferry_ram *ram, const struct ferry_ram_block *block,
		  struct ferry_error *err);

/**
 * ferry_ram_map() - map every block, shared; for reading not those of huge pages
 *
 * Who reads a hole through a mapping allocates it, and where no huge page is free is killed.
 * Return: 0 or -errno.
 */
int ferry_ram_map(struct ferry_ram *ram, bool writable, struct ferry_error *err);

/**
 * ferry_ram_write() - write pages at once, through our own, writable mapping if there is one
 *
 * pwrite(2) would wait for the file's lock as long as another thread writes to it. Where the
 * mapping cannot be populated first it is not used: a full tmpfs is then an error, and no
 * signal. Huge pages can be written in no other way.
 * Return: 0; -ENOMEM no huge page is free; -errno.
 */
int ferry_ram_write(const struct ferry_ram_block *block, uint64_t first, uint64_t pages,
		    const uint8_t *data);

/**
 * ferry_ram_zero() - pages that were written are zeros again, or a hole
 *
 * Return: 0 or -errno.
 */
int ferry_ram_zero(const struct ferry_ram_block *block, uint64_t first, uint64_t pages);

/** ferry_ram_find() - index of the block of that name, or -ENOENT. */
int ferry_ram_find(const struct ferry_ram *ram, const char *name);

/** ferry_ram_bytes() / ferry_ram_pages() - sums over all blocks. */
uint64_t ferry_ram_bytes(const struct ferry_ram *ram);
uint64_t ferry_ram_pages(const struct ferry_ram *ram);

/**
 * ferry_ram_punch() - give all memory of all blocks back and assert that none is left
 *
 * Blocks of huge pages are mapped, to be written, and as many are reserved for them.
 * Return: 0; -ENOMEM that many huge pages are not free; -EBUSY when data is still there afterwards
 * (names the block); -errno.
 */
int ferry_ram_punch(struct ferry_ram *ram, struct ferry_error *err);

#endif
