/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef FERRY_COMPAT_H
#define FERRY_COMPAT_H

/*
 * What differs between the kernels this builds for (6.1, 6.12, 7.2), and the only place
 * that asks which one it is. Everything else is written for the newest.
 */
#include <linux/err.h>
#include <linux/eventfd.h>
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/version.h>
#include <linux/workqueue.h>
#include <net/genetlink.h>

/* Where folio batches live. */
#if LINUX_VERSION_CODE >= KERNEL_VERSION(7, 0, 0)
#include <linux/folio_batch.h>
#else
#include <linux/pagevec.h>
#endif

/* Before 6.3 a VMA's flags are a plain field. */
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 3, 0)
static inline void ferry_compat_vm_flags_mod(struct vm_area_struct *vma, unsigned long set,
					     unsigned long clear)
{
	vma->vm_flags = (vma->vm_flags | set) & ~clear;
}
#else
static inline void ferry_compat_vm_flags_mod(struct vm_area_struct *vma, vm_flags_t set,
					     vm_flags_t clear)
{
	vm_flags_mod(vma, set, clear);
}
#endif

/* Before 6.3 a page that is not there is NULL, from then on an error pointer. */
static inline struct folio *ferry_compat_get_folio(struct address_space *mapping, pgoff_t index)
{
	struct folio *folio = filemap_get_folio(mapping, index);

	return IS_ERR(folio) ? NULL : folio;
}

/*
 * How often a folio is mapped. Before 6.6 the function for large folios is not for
 * modules, so it is counted here: each mapping of the whole is also counted in every page
 * of a file's folio.
 */
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 6, 0)
static inline int ferry_compat_mapcount(struct folio *folio)
{
	long i, pages = folio_nr_pages(folio);
	int whole, count;

	if (!folio_test_large(folio))
		return atomic_read(&folio->_mapcount) + 1;
	whole = folio_entire_mapcount(folio);
	count = whole;
	for (i = 0; i < pages; i++)
		count += atomic_read(&folio_page(folio, i)->_mapcount) + 1 - whole;
	return count;
}
#else
static inline int ferry_compat_mapcount(struct folio *folio)
{
	return folio_mapcount(folio);
}
#endif

/*
 * A file's own mmap, called for a VMA of another file. From 6.17 on shmem has mmap_prepare
 * alone, and what stands in for mmap leaves its file in the VMA.
 */
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 17, 0)
static inline int ferry_compat_mmap(struct file *file, struct vm_area_struct *vma)
{
	return call_mmap(file, vma);
}
#else
static inline int ferry_compat_mmap(struct file *file, struct vm_area_struct *vma)
{
	struct file *owner = vma->vm_file;
	int err = vfs_mmap(file, vma);

	if (vma->vm_file != owner)
		vma_set_file(vma, owner);
	return err;
}
#endif

/* From 7.0 on userfaultfd asks the operations of a VMA what it may do there. */
#if LINUX_VERSION_CODE < KERNEL_VERSION(7, 0, 0)
static inline void ferry_compat_no_uffd(struct vm_operations_struct *ops)
{
}
#else
static inline void ferry_compat_no_uffd(struct vm_operations_struct *ops)
{
	ops->uffd_ops = NULL;
}
#endif

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 8, 0)
static inline void ferry_compat_eventfd_signal(struct eventfd_ctx *eventfd)
{
	eventfd_signal(eventfd, 1);
}
#else
static inline void ferry_compat_eventfd_signal(struct eventfd_ctx *eventfd)
{
	eventfd_signal(eventfd);
}
#endif

/* A queue for work on a given CPU; 6.17 wants that said. */
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 17, 0)
#define FERRY_COMPAT_WQ_PERCPU WQ_PERCPU
#else
#define FERRY_COMPAT_WQ_PERCPU 0
#endif

/* Who may listen; stable kernels have it too. Without it events are for everybody. */
#ifdef GENL_MCAST_CAP_NET_ADMIN
#define FERRY_COMPAT_MCAST_FLAGS GENL_MCAST_CAP_NET_ADMIN
#else
#define FERRY_COMPAT_MCAST_FLAGS 0
#endif

#endif
