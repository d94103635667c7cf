/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_RAM_HUGETLB_H
#define FERRY_RAM_HUGETLB_H

#include <stdint.h>

#include "base/error.h"
#include "ram/ram.h"

/* The only size of huge page that a block may have: a megabyte more, and who waits notices. */
#define FERRY_HUGETLB_BYTES (2u << 20)

/*
 * What hugetlb memory files lack. They cannot be written but through a mapping, and lseek(2)
 * takes all of them for data: which huge pages are there is asked by a mapping of ours.
 */
struct ferry_hugetlb;

/**
 * ferry_hugetlb_page_size() - what kind of memory file is it?
 * @fd: on tmpfs or hugetlbfs
 * @bytes: the size of its pages, 4096 or FERRY_HUGETLB_BYTES
 *
 * Return: 0; -EOPNOTSUPP huge pages of another size, or another file system; -errno. The
 * error goes on after "guest RAM 'NAME': ".
 */
int ferry_hugetlb_page_size(int fd, uint32_t *bytes, struct ferry_error *err);

/** ferry_hugetlb_open() - get a block of huge pages ready to be asked. Return: 0 or -errno. */
int ferry_hugetlb_open(struct ferry_ram_block *block, struct ferry_error *err);
void ferry_hugetlb_close(struct ferry_ram_block *block);

/**
 * ferry_hugetlb_next() - ferry_sparse_next() for a block that is open
 * @most: pages that are wanted at most
 */
int ferry_hugetlb_next(const struct ferry_ram_block *block, uint64_t *page, uint64_t *pages,
		       uint64_t end_page, uint64_t most);

/**
 * ferry_hugetlb_reserve() - the kernel keeps huge pages for all of the block that has none
 *
 * Punching gives them to whoever asks first, and who then touches the hole gets a SIGBUS.
 * Return: 0; -ENOMEM there are not so many.
 */
int ferry_hugetlb_reserve(const struct ferry_ram_block *block, struct ferry_error *err);

#endif
