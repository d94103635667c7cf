/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef FERRY_BROKEN_H
#define FERRY_BROKEN_H

#include <linux/types.h>

/*
 * One safety removed at a time, so that a test can be seen to fail without it. Built by
 * `make module FERRY_BROKEN=1` alone; a module that is meant to be used has neither this
 * nor the parameter, and every question below is the constant false.
 *
 * The parameter `broken` (/sys/module/ferry/parameters/broken, root may write it at any
 * time) takes one of these names; "none" is a sound module again. What is asked when a
 * view is mapped holds for views mapped after the change.
 *
 *	nolock		sync: pages are protected without locking their folios
 *	noclean		sync: pages are write-protected but stay dirty in the page table, so
 *			that mprotect(2) makes them writable again (where the kernel has no
 *			CONFIG_MAPPING_DIRTY_HELPERS this changes nothing)
 *	noprotect	sync: bits are cleared and nothing is protected
 *	lateclear	sync: bits are taken after their pages were protected and unlocked
 *	noputback	sync: bits that could not be delivered are not set again
 *	nopins		pages pinned for DMA become clean
 *	pinfirst	pins are looked for before the page is protected
 *	nounexplained	pages with references that nobody explains become clean
 *	nolarge		a fault in a large folio marks only the page that faulted
 *	nostartprotect	start clears the bits and protects nothing
 *	nodontexpand	views are mapped without VM_DONTEXPAND
 *	nohugepage	views are mapped without VM_NOHUGEPAGE
 *	uffd		views keep shmem's userfaultfd operations, and are mapped without
 *			VM_DONTEXPAND, which refuses a userfaultfd too (7.2)
 *	norange		mmap(2) does not look at the tracker's size
 *	noseal		track does not look at the memfd's seals
 *	noviews		copies of a view (fork, split, mremap) are not counted
 *	nested		a tracker may be tracked
 */
enum ferry_broken {
	FERRY_BROKEN_NONE,
	FERRY_BROKEN_NOLOCK,
	FERRY_BROKEN_NOCLEAN,
	FERRY_BROKEN_NOPROTECT,
	FERRY_BROKEN_LATECLEAR,
	FERRY_BROKEN_NOPUTBACK,
	FERRY_BROKEN_NOPINS,
	FERRY_BROKEN_PINFIRST,
	FERRY_BROKEN_NOUNEXPLAINED,
	FERRY_BROKEN_NOLARGE,
	FERRY_BROKEN_NOSTARTPROTECT,
	FERRY_BROKEN_NODONTEXPAND,
	FERRY_BROKEN_NOHUGEPAGE,
	FERRY_BROKEN_UFFD,
	FERRY_BROKEN_NORANGE,
	FERRY_BROKEN_NOSEAL,
	FERRY_BROKEN_NOVIEWS,
	FERRY_BROKEN_NESTED,
	FERRY_BROKEN_COUNT
};

/*
 * ferry_broken_widen() sleeps a little where a removed safety opens a window for a race, so
 * that a test need not wait for it for hours.
 */
#ifdef FERRY_BROKEN
bool ferry_broken(enum ferry_broken what);
void ferry_broken_widen(enum ferry_broken what);
#else
static inline bool ferry_broken(enum ferry_broken what)
{
	return false;
}

static inline void ferry_broken_widen(enum ferry_broken what)
{
}
#endif

#endif
