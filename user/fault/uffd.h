/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_FAULT_UFFD_H
#define FERRY_FAULT_UFFD_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"
#include "ram/ram.h"

/*
 * The userfaultfd of one address space that maps guest RAM: the VMM's, or another
 * registered process's. Missing pages and pages that are in the memory file but not in its
 * page tables (minor faults) both stop whoever touches them.
 */
struct ferry_fault_mapper {
	int uffd;		/* the caller's */
	pid_t pid;
	const uint64_t *addr;	/* where each block is mapped; 0: not in this one */
	const struct ferry_ram *ram; /* to map and wake; the others are told */
};

/**
 * ferry_fault_uffd_probe() - can this host stop faults on this kind of memory?
 *
 * Tries everything that postcopy needs on a mapping of our own of each block's file; the
 * guest is not touched and no memory is allocated.
 * Return: 0; -EPERM no right to make a userfaultfd, -EOPNOTSUPP a feature or an operation for
 * this memory is missing; the text says which and how to get it.
 */
int ferry_fault_uffd_probe(const struct ferry_ram *ram, struct ferry_error *err);

/**
 * ferry_fault_uffd_arm() - every access to memory that is not mapped there waits from now on
 * @adopted: an earlier worker armed it: only assert that it still is
 *
 * Return: 0; -errno with nothing left registered.
 */
int ferry_fault_uffd_arm(const struct ferry_fault_mapper *m, const struct ferry_ram *ram,
			 bool adopted, struct ferry_error *err);

/** ferry_fault_uffd_disarm() - end it; everybody who waits goes on. */
void ferry_fault_uffd_disarm(const struct ferry_fault_mapper *m, const struct ferry_ram *ram);

/**
 * ferry_fault_uffd_assert_empty() - no page of the RAM is mapped there
 *
 * Return: 0; -EBUSY one is, with its place; -errno.
 */
int ferry_fault_uffd_assert_empty(const struct ferry_fault_mapper *m, const struct ferry_ram *ram,
				  struct ferry_error *err);

/**
 * ferry_fault_uffd_map() - make pages that are in the memory file visible, and wake who waits
 * @holes: what a page that is a hole gets: a page of zeros, or nothing (but who waits is woken)
 *
 * Placement is atomic for each page. Pages that are mapped already only wake. Of huge pages only
 * whole ones.
 * Return: 0; -ESRCH the process is gone, -ENOENT its mapping is, -errno.
 */
int ferry_fault_uffd_map(const struct ferry_fault_mapper *m, unsigned int block, uint64_t first,
			 uint64_t pages, bool holes);

/** ferry_fault_uffd_wake() - who waits for these pages tries again. */
int ferry_fault_uffd_wake(const struct ferry_fault_mapper *m, unsigned int block, uint64_t first,
			  uint64_t pages);

#endif
