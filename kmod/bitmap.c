// SPDX-License-Identifier: GPL-2.0-only
/*
 * The bits of a tracker, how many are set, and the descriptor through which user space
 * looks at them.
 *
 * Bits are set by faults, with the page's folio locked, and by commands; they are cleared
 * by commands only, one at a time. To clear is done in two steps with the protecting of the
 * pages in between: take the bits of a word, then settle which of them stay. The counter
 * follows later, after 64 pages at most and the word at hand (pass.h), so that words with a
 * page each do not all touch it. Until then it is too high by what was taken, which tells of
 * a watermark early by at most 127 pages; the other way round every sync of a guest with
 * many pinned pages would fall below the watermark and reach it again.
 */
#include <linux/anon_inodes.h>
#include <linux/bitops.h>
#include <linux/file.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/vmalloc.h>
#include <linux/ferry.h>

#include "bitmap.h"
#include "compat.h"
#include "dev.h"
#include "event.h"
#include "tracker.h"

/**
 * ferry_bitmap_alloc - memory for a bitmap, charged to the caller's memory cgroup
 * @bytes: how much, whole pages
 *
 * Return: zeroed memory whose pages can be mapped, or NULL.
 */
unsigned long *ferry_bitmap_alloc(size_t bytes)
{
	/* Who asks for more than there is gets an error; nobody is killed for it. */
	return __vmalloc(bytes, GFP_KERNEL_ACCOUNT | __GFP_ZERO | __GFP_RETRY_MAYFAIL |
			 __GFP_NOWARN);
}

/**
 * ferry_bitmap_free - undo ferry_bitmap_alloc()
 * @bitmap: or NULL
 */
void ferry_bitmap_free(unsigned long *bitmap)
{
	vfree(bitmap);
}

/**
 * ferry_bitmap_mark - note that pages were written
 * @tracker: the tracker
 * @first: the first page
 * @npages: how many; those beyond the tracker's are left out
 *
 * Context: any that may take watch.lock; faults call it with the folio locked.
 * Return: how many were not noted before.
 */
unsigned long ferry_bitmap_mark(struct ferry_tracker *tracker, unsigned long first,
				unsigned long npages)
{
	unsigned long marked = 0;

	if (first >= tracker->npages)
		return 0;
	npages = min(npages, tracker->npages - first);
	while (npages) {
		unsigned long bit = first % BITS_PER_LONG;
		unsigned long n = min(npages, BITS_PER_LONG - bit);

		marked += ferry_bitmap_set(tracker, first / BITS_PER_LONG,
					   GENMASK(bit + n - 1, bit));
		first += n;
		npages -= n;
	}
	if (marked)
		ferry_event_dirty(tracker, marked);
	return marked;
}

/**
 * ferry_bitmap_valid - which bits of a word stand for pages
 * @tracker: the tracker
 * @word: index of a word
 *
 * Return: all, but for the end of the last word.
 */
unsigned long ferry_bitmap_valid(const struct ferry_tracker *tracker, unsigned long word)
{
	if (word == tracker->npages / BITS_PER_LONG)
		return BIT(tracker->npages % BITS_PER_LONG) - 1;
	return ~0UL;
}

/* --- the live bitmap ------------------------------------------------------- */

/* The tracker's file is what keeps the tracker. */
static int export_release(struct inode *inode, struct file *file)
{
	fput(file->private_data);
	return 0;
}

static vm_fault_t export_fault(struct vm_fault *vmf)
{
	struct file *owner = vmf->vma->vm_file->private_data;
	struct ferry_tracker *tracker = owner->private_data;

	if (vmf->pgoff >= tracker->bitmap_bytes >> PAGE_SHIFT)
		return VM_FAULT_SIGBUS;
	vmf->page = vmalloc_to_page((u8 *)tracker->bitmap + (vmf->pgoff << PAGE_SHIFT));
	get_page(vmf->page);
	return 0;
}

static const struct vm_operations_struct export_vm_ops = {
	.fault = export_fault,
};

static int export_mmap(struct file *file, struct vm_area_struct *vma)
{
	struct file *owner = file->private_data;
	struct ferry_tracker *tracker = owner->private_data;
	unsigned long pages = tracker->bitmap_bytes >> PAGE_SHIFT;

	if (vma->vm_flags & VM_WRITE)
		return -EPERM;
	if (vma->vm_pgoff > pages || vma_pages(vma) > pages - vma->vm_pgoff)
		return -EINVAL;
	ferry_compat_vm_flags_mod(vma, VM_DONTEXPAND, VM_MAYWRITE);
	vma->vm_ops = &export_vm_ops;
	return 0;
}

static const struct file_operations export_fops = {
	.owner = THIS_MODULE,
	.release = export_release,
	.mmap = export_mmap,
	.llseek = noop_llseek,
};

/**
 * ferry_bitmap_export - FERRY_BITMAP
 * @call: with struct ferry_bitmap_fd
 *
 * Return: 0, -EOPNOTSUPP, -ENOMEM, -EMFILE, -ENFILE.
 */
int ferry_bitmap_export(struct ferry_call *call)
{
	struct ferry_bitmap_fd *arg = call->arg;
	struct file *file;
	int fd;

	if (arg->reserved)
		return -EOPNOTSUPP;
	fd = get_unused_fd_flags(O_CLOEXEC);
	if (fd < 0)
		return fd;
	/* Open for writing, so that we are asked about PROT_WRITE and can say what holds. */
	file = anon_inode_getfile("[ferry-bitmap]", &export_fops, call->file, O_RDWR);
	if (IS_ERR(file)) {
		put_unused_fd(fd);
		return PTR_ERR(file);
	}
	get_file(call->file);
	call->new_fd = fd;
	call->new_file = file;
	arg->out_fd = fd;
	arg->out_bytes = call->tracker->bitmap_bytes;
	return 0;
}
