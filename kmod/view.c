// SPDX-License-Identifier: GPL-2.0-only
/*
 * Tracked views: mappings of a tracker. They are shmem's mappings, with its operations, but
 * for page_mkwrite: having one makes the kernel map every page read-only and ask before the
 * first store, and that is where a page's bit is set.
 *
 * The fault and whoever protects a page exclude each other by the folio lock. The fault
 * takes it, sets the bit and returns with it held; the kernel makes the page writable and
 * unlocks. So while a folio is locked by somebody else, no page of it is between "noted" and
 * "writable".
 */
#include <linux/fcntl.h>
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/shmem_fs.h>

#include "bitmap.h"
#include "broken.h"
#include "compat.h"
#include "tracker.h"
#include "trace.h"
#include "view.h"

static struct ferry_tracker *view_tracker(struct vm_area_struct *vma)
{
	return vma->vm_file->private_data;
}

static vm_fault_t view_page_mkwrite(struct vm_fault *vmf)
{
	struct ferry_tracker *tracker = view_tracker(vmf->vma);
	struct folio *folio = page_folio(vmf->page);
	unsigned long first = vmf->pgoff, npages = 1, marked;

	/* folio_lock() begins with a chance to be rescheduled; a fault has had its own. */
	if (!folio_trylock(folio))
		folio_lock(folio);
	if (unlikely(folio->mapping != tracker->mapping)) {
		/* Punched, swapped or migrated meanwhile: fault again. */
		folio_unlock(folio);
		return VM_FAULT_NOPAGE;
	}
	/*
	 * Pairs with the barrier in ferry_sync_start(): it sees the folio, which was put into
	 * the mapping before, or we see that it started.
	 */
	smp_mb();
	if (!READ_ONCE(tracker->started))
		return VM_FAULT_LOCKED;

	/* One fault may map all of a large folio writable. */
	if (unlikely(folio_test_large(folio)) && !ferry_broken(FERRY_BROKEN_NOLARGE)) {
		first = folio->index;
		npages = folio_nr_pages(folio);
		marked = ferry_bitmap_mark(tracker, first, npages);
	} else {
		marked = ferry_bitmap_mark_page(tracker, first);
	}
	this_cpu_inc(tracker->counts->faults);
	this_cpu_add(tracker->counts->marked_pages, marked);
	trace_ferry_mkwrite(tracker, first, npages, marked);
	ferry_broken_widen(FERRY_BROKEN_NOLOCK);
	return VM_FAULT_LOCKED;
}

/* A copy of a view: by fork(2), or one that was split or moved. */
static void view_open(struct vm_area_struct *vma)
{
	struct ferry_tracker *tracker = view_tracker(vma);

	if (!ferry_broken(FERRY_BROKEN_NOVIEWS))
		atomic_inc(&tracker->views);
	if (tracker->shmem_vm_ops->open)
		tracker->shmem_vm_ops->open(vma);
}

static void view_close(struct vm_area_struct *vma)
{
	struct ferry_tracker *tracker = view_tracker(vma);

	if (tracker->shmem_vm_ops->close)
		tracker->shmem_vm_ops->close(vma);
	if (!ferry_broken(FERRY_BROKEN_NOVIEWS))
		atomic_dec(&tracker->views);
}

/*
 * What shmem gave the first view is right for all: it depends on the inode alone. mmap(2)
 * holds mmap_lock and may not take tracker->lock.
 */
static void view_set_ops(struct ferry_tracker *tracker, struct vm_area_struct *vma)
{
	spin_lock(&tracker->vm_ops_lock);
	if (!tracker->shmem_vm_ops) {
		tracker->vm_ops = *vma->vm_ops;
		tracker->vm_ops.open = view_open;
		tracker->vm_ops.close = view_close;
		tracker->vm_ops.page_mkwrite = view_page_mkwrite;
		/* UFFDIO_COPY would make a page writable without a question. */
		if (!ferry_broken(FERRY_BROKEN_UFFD))
			ferry_compat_no_uffd(&tracker->vm_ops);
		tracker->shmem_vm_ops = vma->vm_ops;
	}
	spin_unlock(&tracker->vm_ops_lock);
	vma->vm_ops = &tracker->vm_ops;
}

/**
 * ferry_view_mmap - mmap(2) of a tracker
 * @file: the tracker's file
 * @vma: the new mapping
 *
 * Context: process context, mmap_lock held for writing.
 * Return: 0; -EINVAL when it is not shared or reaches beyond the tracker; -EPERM when it is
 * writable and the memfd is sealed; what shmem's mmap returns.
 */
int ferry_view_mmap(struct file *file, struct vm_area_struct *vma)
{
	struct ferry_tracker *tracker = file->private_data;
	vm_flags_t set = 0;
	bool sealed;
	int err;

	if (!(vma->vm_flags & VM_SHARED))
		return -EINVAL;
	if ((vma->vm_pgoff > tracker->npages ||
	     vma_pages(vma) > tracker->npages - vma->vm_pgoff) &&
	    !ferry_broken(FERRY_BROKEN_NORANGE))
		return -EINVAL;
	sealed = SHMEM_I(file_inode(file))->seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE);
	if (sealed && (vma->vm_flags & VM_WRITE))
		return -EPERM;

	err = ferry_compat_mmap(tracker->memfd, vma);
	if (err)
		return err;
	view_set_ops(tracker, vma);
	/* A view that grew would reach beyond the bitmap. */
	if (!ferry_broken(FERRY_BROKEN_NODONTEXPAND) && !ferry_broken(FERRY_BROKEN_UFFD))
		set |= VM_DONTEXPAND;
	if (!ferry_broken(FERRY_BROKEN_NOHUGEPAGE))
		set |= VM_NOHUGEPAGE;
	ferry_compat_vm_flags_mod(vma, set, sealed ? VM_MAYWRITE : 0);
	atomic_inc(&tracker->views);
	return 0;
}
