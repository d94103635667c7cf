// SPDX-License-Identifier: GPL-2.0-only
/*
 * Trackers: how they are made from a memfd, which exist, and how they end.
 *
 * The tracker's file is a second opening of the memfd whose file operations are replaced by
 * ours before anybody sees it. Its mappings thus are mappings of the memfd's own pages, and
 * everything that the kernel does by inode (seals, truncation, swap, migration) holds for
 * them. An anonymous file that puts the memfd into the VMA instead would let a read-only
 * view of a sealed memfd be made writable and would merge views with plain mappings.
 */
#include <linux/cred.h>
#include <linux/fcntl.h>
#include <linux/file.h>
#include <linux/magic.h>
#include <linux/module.h>
#include <linux/percpu.h>
#include <linux/sched.h>
#include <linux/shmem_fs.h>
#include <linux/slab.h>
#include <linux/ferry.h>

#include "bitmap.h"
#include "broken.h"
#include "dev.h"
#include "event.h"
#include "tracker.h"
#include "trace.h"
#include "view.h"

/* A tracker is cheap but for its bitmap; this is about descriptors gone astray. */
static unsigned int max_trackers = 256;
module_param(max_trackers, uint, 0644);
MODULE_PARM_DESC(max_trackers, "how many trackers may exist at once (256)");

/* 1 TiB of pages of 4 KiB. */
static unsigned long max_pages = 1UL << 28;
module_param(max_pages, ulong, 0644);
MODULE_PARM_DESC(max_pages, "pages of the largest file that can be tracked (2^28)");

/* Eight trackers of the largest size. */
static unsigned long max_bitmap_bytes = 256UL << 20;
module_param(max_bitmap_bytes, ulong, 0644);
MODULE_PARM_DESC(max_bitmap_bytes, "memory of all bitmaps together (256 MiB)");

/*
 * All trackers, by ascending id, and what they hold of the limits. Innermost lock but for
 * the allocator's; held to walk, never while user space is waited for.
 */
static DEFINE_MUTEX(registry_lock);
static LIST_HEAD(registry);
static u64 registry_last_id;
static unsigned int registry_count;
static size_t registry_bytes;

static const struct file_operations tracker_fops;

static int registry_reserve(size_t bytes)
{
	int err = -ENOSPC;

	mutex_lock(&registry_lock);
	if (registry_count < READ_ONCE(max_trackers) &&
	    registry_bytes + bytes <= READ_ONCE(max_bitmap_bytes)) {
		registry_count++;
		registry_bytes += bytes;
		err = 0;
	}
	mutex_unlock(&registry_lock);
	return err;
}

static void registry_unreserve(size_t bytes)
{
	mutex_lock(&registry_lock);
	registry_count--;
	registry_bytes -= bytes;
	mutex_unlock(&registry_lock);
}

static void registry_add(struct ferry_tracker *tracker)
{
	mutex_lock(&registry_lock);
	tracker->id = ++registry_last_id;
	list_add_tail(&tracker->registered, &registry);
	mutex_unlock(&registry_lock);
}

static void registry_remove(struct ferry_tracker *tracker)
{
	mutex_lock(&registry_lock);
	list_del(&tracker->registered);
	mutex_unlock(&registry_lock);
}

/**
 * ferry_tracker_visit - call a function for trackers, by ascending id
 * @after: only those with an id above this
 * @visit: may not sleep long nor look at other trackers; what it returns ends the walk
 *	   unless 0
 * @arg: for @visit
 *
 * Context: process context; a tracker cannot go away while it is visited.
 * Return: what @visit returned last, 0 if it was never called.
 */
int ferry_tracker_visit(u64 after, int (*visit)(struct ferry_tracker *tracker, void *arg),
			void *arg)
{
	struct ferry_tracker *tracker;
	int ret = 0;

	mutex_lock(&registry_lock);
	list_for_each_entry(tracker, &registry, registered) {
		if (tracker->id <= after)
			continue;
		ret = visit(tracker, arg);
		if (ret)
			break;
	}
	mutex_unlock(&registry_lock);
	return ret;
}

/* Whether this file can be tracked, and how many pages it has. */
static int memfd_check(struct file *memfd, unsigned long *npages)
{
	struct inode *inode = file_inode(memfd);
	loff_t bytes = i_size_read(inode);

	if (memfd->f_op == &tracker_fops && !ferry_broken(FERRY_BROKEN_NESTED))
		return -EINVAL;
	if (inode->i_sb->s_magic == HUGETLBFS_MAGIC)
		return -EOPNOTSUPP;
	/* Of a file system on top of another one, the inode and the pages differ. */
	if (!S_ISREG(inode->i_mode) || !shmem_file(memfd) || memfd->f_mapping->host != inode)
		return -EINVAL;
	if ((memfd->f_mode & (FMODE_READ | FMODE_WRITE)) != (FMODE_READ | FMODE_WRITE))
		return -EACCES;
	if (!bytes)
		return -EINVAL;
	if ((SHMEM_I(inode)->seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE)) &&
	    !ferry_broken(FERRY_BROKEN_NOSEAL))
		return -EPERM;
	if (DIV_ROUND_UP_ULL(bytes, PAGE_SIZE) > READ_ONCE(max_pages))
		return -EFBIG;
	*npages = DIV_ROUND_UP_ULL(bytes, PAGE_SIZE);
	return 0;
}

static void tracker_free(struct ferry_tracker *tracker)
{
	free_percpu(tracker->counts);
	kfree(tracker->scratch);
	ferry_bitmap_free(tracker->bitmap);
	registry_unreserve(tracker->bitmap_bytes);
	fput(tracker->memfd);
	kfree(tracker);
}

/* Takes over the reference to @memfd, unless it fails. */
static struct ferry_tracker *tracker_alloc(struct file *memfd, unsigned long npages)
{
	size_t bytes = PAGE_ALIGN(BITS_TO_LONGS(npages) * sizeof(long));
	struct ferry_tracker *tracker;
	int err;

	err = registry_reserve(bytes);
	if (err)
		return ERR_PTR(err);
	err = -ENOMEM;
	tracker = kzalloc(sizeof(*tracker), GFP_KERNEL_ACCOUNT);
	if (!tracker)
		goto err_unreserve;
	tracker->bitmap = ferry_bitmap_alloc(bytes);
	tracker->scratch = kmalloc(sizeof(*tracker->scratch), GFP_KERNEL_ACCOUNT);
	tracker->counts = alloc_percpu_gfp(struct ferry_fault_counts, GFP_KERNEL_ACCOUNT);
	if (!tracker->bitmap || !tracker->scratch || !tracker->counts)
		goto err_free;

	tracker->pid = task_tgid_nr(current);
	tracker->uid = from_kuid(&init_user_ns, current_uid());
	tracker->memfd = memfd;
	tracker->mapping = memfd->f_mapping;
	tracker->npages = npages;
	tracker->bitmap_bytes = bytes;
	tracker->drain_after = jiffies;
	mutex_init(&tracker->lock);
	spin_lock_init(&tracker->vm_ops_lock);
	ferry_event_init_watch(tracker);
	return tracker;

err_free:
	free_percpu(tracker->counts);
	kfree(tracker->scratch);
	ferry_bitmap_free(tracker->bitmap);
	kfree(tracker);
err_unreserve:
	registry_unreserve(bytes);
	return ERR_PTR(err);
}

/* Open the memfd once more, with our operations. */
static struct file *tracker_open(struct ferry_tracker *tracker)
{
	struct file *file;

	file = dentry_open(&tracker->memfd->f_path, O_RDWR | O_LARGEFILE, current_cred());
	if (IS_ERR(file))
		return file;
	/* Put by the last fput(). */
	__module_get(THIS_MODULE);
	replace_fops(file, &tracker_fops);
	/* What shmem's operations can do and ours cannot. */
	file->f_mode &= ~(FMODE_LSEEK | FMODE_PREAD | FMODE_PWRITE |
			  FMODE_CAN_READ | FMODE_CAN_WRITE);
	file->private_data = tracker;
	return file;
}

/**
 * ferry_tracker_create - FERRY_TRACK
 * @call: with struct ferry_track
 *
 * Return: 0 or a negative errno as the UAPI header says.
 */
int ferry_tracker_create(struct ferry_call *call)
{
	struct ferry_track *arg = call->arg;
	struct ferry_tracker *tracker;
	struct file *memfd, *file;
	unsigned long npages;
	int err, fd;

	memfd = fget(arg->memfd);
	if (!memfd)
		return -EBADF;
	err = memfd_check(memfd, &npages);
	if (err)
		goto err_memfd;
	fd = get_unused_fd_flags(O_CLOEXEC);
	if (fd < 0) {
		err = fd;
		goto err_memfd;
	}
	tracker = tracker_alloc(memfd, npages);
	if (IS_ERR(tracker)) {
		err = PTR_ERR(tracker);
		goto err_fd;
	}
	file = tracker_open(tracker);
	if (IS_ERR(file)) {
		put_unused_fd(fd);
		tracker_free(tracker);
		return PTR_ERR(file);
	}
	registry_add(tracker);
	trace_ferry_track(tracker);
	ferry_event_send(tracker, FERRY_CMD_CREATED);

	call->new_fd = fd;
	call->new_file = file;
	arg->out_fd = fd;
	arg->out_id = tracker->id;
	arg->out_pages = npages;
	return 0;

err_fd:
	put_unused_fd(fd);
err_memfd:
	fput(memfd);
	return err;
}

/* The last reference to the tracker's file: no descriptor and no view is left. */
static int tracker_release(struct inode *inode, struct file *file)
{
	struct ferry_tracker *tracker = file->private_data;

	registry_remove(tracker);
	/* What is still to be told comes before the end. */
	ferry_event_release(tracker);
	trace_ferry_destroy(tracker);
	ferry_event_send(tracker, FERRY_CMD_DESTROYED);
	tracker_free(tracker);
	return 0;
}

/* madvise(MADV_REMOVE) of a view comes here; a hole is the memfd's own affair. */
static long tracker_fallocate(struct file *file, int mode, loff_t offset, loff_t len)
{
	struct ferry_tracker *tracker = file->private_data;

	return tracker->memfd->f_op->fallocate(tracker->memfd, mode, offset, len);
}

static const struct file_operations tracker_fops = {
	.owner = THIS_MODULE,
	.fallocate = tracker_fallocate,
	.release = tracker_release,
	.mmap = ferry_view_mmap,
	.poll = ferry_event_poll,
	.unlocked_ioctl = ferry_dev_tracker_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
	.llseek = noop_llseek,
};

/**
 * ferry_tracker_query - FERRY_QUERY
 * @call: with struct ferry_query
 *
 * Return: 0.
 */
int ferry_tracker_query(struct ferry_call *call)
{
	struct ferry_query *arg = call->arg;

	arg->out_api_version = FERRY_API_VERSION;
	arg->out_page_bytes = PAGE_SIZE;
	arg->out_features = FERRY_FEATURE_PINS | FERRY_FEATURE_UNEXPLAINED;
	arg->out_max_pages = READ_ONCE(max_pages);
	arg->out_max_trackers = READ_ONCE(max_trackers);
	mutex_lock(&registry_lock);
	arg->out_trackers = registry_count;
	mutex_unlock(&registry_lock);
	return 0;
}

/**
 * ferry_tracker_counts - what the faults of all CPUs did so far
 * @tracker: the tracker
 *
 * Return: the sums.
 */
struct ferry_fault_counts ferry_tracker_counts(const struct ferry_tracker *tracker)
{
	struct ferry_fault_counts sum = {};
	int cpu;

	for_each_possible_cpu(cpu) {
		const struct ferry_fault_counts *counts = per_cpu_ptr(tracker->counts, cpu);

		sum.faults += READ_ONCE(counts->faults);
		sum.marked_pages += READ_ONCE(counts->marked_pages);
	}
	return sum;
}

/**
 * ferry_tracker_stats - FERRY_STATS
 * @call: with struct ferry_tracker_stats
 *
 * Return: 0, -EINTR.
 */
int ferry_tracker_stats(struct ferry_call *call)
{
	struct ferry_tracker *tracker = call->tracker;
	struct ferry_tracker_stats *arg = call->arg;
	struct ferry_fault_counts counts;

	if (mutex_lock_killable(&tracker->lock))
		return -EINTR;
	counts = ferry_tracker_counts(tracker);
	arg->out_id = tracker->id;
	arg->out_pages = tracker->npages;
	arg->out_dirty_pages = atomic_long_read(&tracker->dirty_pages);
	arg->out_state = tracker->started ? FERRY_STATE_STARTED : 0;
	arg->out_views = atomic_read(&tracker->views);
	arg->out_faults = counts.faults;
	arg->out_marked_pages = counts.marked_pages;
	arg->out_syncs = tracker->syncs;
	arg->out_cleaned_pages = tracker->cleaned_pages;
	arg->out_pinned_pages = tracker->pinned_pages;
	arg->out_watermarks = READ_ONCE(tracker->watch.times);
	mutex_unlock(&tracker->lock);
	return 0;
}
