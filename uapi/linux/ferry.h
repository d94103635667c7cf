/* SPDX-License-Identifier: GPL-2.0-only WITH Linux-syscall-note */
#ifndef _UAPI_LINUX_FERRY_H
#define _UAPI_LINUX_FERRY_H

#include <linux/ioctl.h>
#include <linux/types.h>

/*
 * ferry: which pages of a memfd (or another tmpfs file) were written.
 *
 * Open /dev/ferry, give FERRY_TRACK the memfd, and get a *tracker*: a file descriptor
 * whose shared mapping is a *tracked view* of the same pages. A store through any tracked
 * view of the tracker, by whichever process or device, sets the page's bit:
 *
 *	int dev = open("/dev/ferry", O_RDWR | O_CLOEXEC);
 *	struct ferry_track track = { .size = sizeof(track), .memfd = memfd };
 *	ioctl(dev, FERRY_TRACK, &track);
 *	ram = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, track.out_fd, 0);
 *	ioctl(track.out_fd, FERRY_START, &(struct ferry_start){ .size = ... });
 *	...
 *	struct ferry_pages sync = { .size = sizeof(sync), .npages = pages,
 *				    .bitmap = (uintptr_t)bits };
 *	ioctl(track.out_fd, FERRY_SYNC, &sync);		(get, clear, protect again)
 *
 * Seen: CPU stores of every process that maps a view (an inherited or moved mapping too),
 * KVM guests whose memory slots are views, stores by the kernel on a process's behalf
 * (read(2), process_vm_writev(2), vhost), and DMA into pinned pages: a page that somebody
 * may still write without a fault stays dirty until that ends.
 * Not seen: write(2), fallocate(2), ftruncate(2) of the memfd, and stores through plain
 * mappings of it.
 *
 * Pages are counted from the start of the file, in units of ferry_query.out_page_bytes.
 * Bitmaps are arrays of 64-bit words in host byte order; page first_page is bit 0 of word 0.
 *
 * Every struct starts with its own size, so that it can grow: a program built against a
 * newer header may pass a bigger struct as long as what this module does not know is zero.
 * Fields named out_ are written by the kernel, all others are read. On an error nothing
 * was changed and no field is written, unless a command says otherwise.
 *
 * Any command:
 *	-ENOTTY		no such command, or not on this kind of descriptor
 *	-EFAULT		the argument or a buffer it names is not readable or writable
 *	-EINVAL		size is smaller than the first published struct
 *	-E2BIG		size is larger than known here and what is beyond is not zero
 *	-EOPNOTSUPP	a flag or reserved field that this module does not know is not zero
 * Commands on a tracker may sleep and exclude each other; a fatal signal ends the wait
 * with -EINTR.
 */

#define FERRY_API_VERSION 1

#define FERRY_IOC_TYPE 0xF7

/* On /dev/ferry. */
#define FERRY_QUERY	_IO(FERRY_IOC_TYPE, 0x00)
#define FERRY_TRACK	_IO(FERRY_IOC_TYPE, 0x01)
/* On a tracker. */
#define FERRY_START	_IO(FERRY_IOC_TYPE, 0x10)
#define FERRY_STOP	_IO(FERRY_IOC_TYPE, 0x11)
#define FERRY_SYNC	_IO(FERRY_IOC_TYPE, 0x12)
#define FERRY_GET	_IO(FERRY_IOC_TYPE, 0x13)
#define FERRY_CLEAR	_IO(FERRY_IOC_TYPE, 0x14)
#define FERRY_SCAN	_IO(FERRY_IOC_TYPE, 0x15)
#define FERRY_STATS	_IO(FERRY_IOC_TYPE, 0x16)
#define FERRY_WATCH	_IO(FERRY_IOC_TYPE, 0x17)
#define FERRY_BITMAP	_IO(FERRY_IOC_TYPE, 0x18)
/* 0x19 is kept for FERRY_LIMIT: how many pages a second a writer may dirty. */

/*
 * Bits of ferry_query.out_features. A program must test the bit of what it uses beyond
 * the commands above.
 *
 * FERRY_FEATURE_PINS		pages pinned for DMA stay dirty; without it direct I/O into a
 *				view loses writes
 * FERRY_FEATURE_UNEXPLAINED	so do pages with references nobody explains, which is how DMA
 *				shows on kernels whose direct I/O does not pin
 * FERRY_FEATURE_LIMIT		FERRY_LIMIT is there
 */
#define FERRY_FEATURE_PINS		(1ULL << 0)
#define FERRY_FEATURE_UNEXPLAINED	(1ULL << 1)
#define FERRY_FEATURE_LIMIT		(1ULL << 2)

/**
 * struct ferry_query - what this module can do (FERRY_QUERY)
 * @size: sizeof(struct ferry_query)
 * @flags: 0
 * @out_api_version: FERRY_API_VERSION of the module; commands never change their meaning
 * @out_page_bytes: unit of every page number and count
 * @out_features: FERRY_FEATURE_*
 * @out_max_pages: the largest file a tracker may have
 * @out_max_trackers: how many trackers may exist at once on this machine
 * @out_trackers: how many there are now
 */
struct ferry_query {
	__u32 size;
	__u32 flags;
	__u32 out_api_version;
	__u32 out_page_bytes;
	__aligned_u64 out_features;
	__aligned_u64 out_max_pages;
	__u32 out_max_trackers;
	__u32 out_trackers;
};

/**
 * struct ferry_track - make a tracker (FERRY_TRACK)
 * @size: sizeof(struct ferry_track)
 * @flags: 0
 * @memfd: an open memfd or tmpfs file, for reading and writing; the tracker keeps it open
 * @out_fd: the tracker, close-on-exec, stopped and clean
 * @out_id: its number in netlink messages and tracepoints, never used twice
 * @out_pages: its size; fixed, a view cannot reach beyond it even if the file grows
 *
 * A tracker lives as long as its descriptor or a mapping made from it. mmap(2) of it takes
 * MAP_SHARED and offsets within @out_pages and fails with -EINVAL for anything else, with
 * -EPERM for a writable mapping when the memfd has since been sealed against writing. The
 * mapping cannot be grown. Several trackers of one file are independent.
 *
 *	-EBADF		@memfd is not an open descriptor
 *	-EACCES		@memfd is not open for reading and writing
 *	-EINVAL		@memfd is not shared memory (a disk file, pipe, socket, ...), is empty,
 *			or is itself a tracker
 *	-EOPNOTSUPP	@memfd is hugetlb memory, which is not supported yet
 *	-EPERM		@memfd is sealed against writing
 *	-EFBIG		the file is larger than out_max_pages
 *	-ENOSPC		out_max_trackers exist, or the module's limit for bitmaps is reached
 *	-ENOMEM, -EMFILE, -ENFILE
 */
struct ferry_track {
	__u32 size;
	__u32 flags;
	__s32 memfd;
	__s32 out_fd;
	__aligned_u64 out_id;
	__aligned_u64 out_pages;
};

/**
 * struct ferry_start - begin or end to note writes (FERRY_START, FERRY_STOP)
 * @size: sizeof(struct ferry_start)
 * @flags: 0
 *
 * FERRY_START clears all bits; every store that begins after it returns is noted. Pages
 * that are pinned at that moment are dirty at once. FERRY_STOP keeps the bits as they are;
 * from then on the first store to a page costs a fault and nothing else.
 *
 *	-EALREADY	it is started, or stopped, already
 *	-EINTR		of FERRY_START: it is stopped, and the bits are cleared perhaps
 */
struct ferry_start {
	__u32 size;
	__u32 flags;
};

/**
 * struct ferry_pages - a range of pages and a bitmap of it (FERRY_SYNC, FERRY_GET, FERRY_CLEAR)
 * @size: sizeof(struct ferry_pages)
 * @flags: 0
 * @first_page: a multiple of 64
 * @npages: at least 1; a multiple of 64 unless the range ends with the last page
 * @bitmap: user address of (@npages + 63) / 64 words; those bits of the last word that
 *	    are beyond the range are written as 0 and ignored when read
 * @out_pages: how many bits the command wrote as 1; of FERRY_CLEAR: how many were dirty
 *	       and are clean now
 *
 * FERRY_SYNC	writes the dirty bits to @bitmap, clears them and protects their pages: a
 *		later store is noted again. Pages that stay dirty (pinned) are written as 1
 *		each time.
 * FERRY_GET	writes the dirty bits to @bitmap and changes nothing.
 * FERRY_CLEAR	reads @bitmap and, of the pages it names, clears and protects the dirty ones;
 *		so that a page can be cleaned just before it is sent.
 *
 *	-EINVAL		@first_page or @npages is not as above, or @bitmap is not 8-byte aligned
 *	-ERANGE		the range is not within the tracker
 *	-EFAULT, -EINTR	of FERRY_SYNC: any page whose bit did not reach @bitmap is still
 *			dirty; @bitmap may have been written in part. Of FERRY_CLEAR: no page
 *			is clean that was dirty; when @bitmap was unmapped or the caller
 *			killed meanwhile, other pages of the range may be dirty now
 */
struct ferry_pages {
	__u32 size;
	__u32 flags;
	__aligned_u64 first_page;
	__aligned_u64 npages;
	__aligned_u64 bitmap;
	__aligned_u64 out_pages;
};

/** struct ferry_extent - @npages dirty pages from @first_page on */
struct ferry_extent {
	__aligned_u64 first_page;
	__aligned_u64 npages;
};

/* Of ferry_scan.flags: clear and protect what is returned, as FERRY_SYNC does. */
#define FERRY_SCAN_CLEAR (1U << 0)

/**
 * struct ferry_scan - dirty pages as extents, a buffer at a time (FERRY_SCAN)
 * @size: sizeof(struct ferry_scan)
 * @flags: FERRY_SCAN_CLEAR or 0
 * @first_page: where to look from; any page of the tracker
 * @npages: how far to look; at least 1
 * @extents: user address of an array of struct ferry_extent, 8-byte aligned
 * @max_extents: its room; at least 1
 * @out_extents: how many were written; ascending, not touching each other
 * @out_next_page: the first page not looked at; when it is less than @first_page + @npages
 *		   call again from there (the buffer was full)
 * @out_pages: the sum of the extents' pages
 *
 *	-EINVAL		a count is 0 or @extents is not aligned
 *	-ERANGE		the range is not within the tracker
 *	-EFAULT, -EINTR	with FERRY_SCAN_CLEAR: no page is clean that was dirty; other pages
 *			of the range may be dirty now
 */
struct ferry_scan {
	__u32 size;
	__u32 flags;
	__aligned_u64 first_page;
	__aligned_u64 npages;
	__aligned_u64 extents;
	__u32 max_extents;
	__u32 out_extents;
	__aligned_u64 out_next_page;
	__aligned_u64 out_pages;
};

/* Of ferry_tracker_stats.out_state. */
#define FERRY_STATE_STARTED (1U << 0)

/**
 * struct ferry_tracker_stats - what a tracker did so far (FERRY_STATS)
 * @size: sizeof(struct ferry_tracker_stats)
 * @flags: 0
 * @out_id: as from FERRY_TRACK
 * @out_pages: its size
 * @out_dirty_pages: dirty now; exact when no store and no command is under way
 * @out_state: FERRY_STATE_*
 * @out_views: mappings that exist now
 * @out_faults: first stores that faulted while started
 * @out_marked_pages: bits they set
 * @out_syncs: FERRY_SYNC, FERRY_CLEAR and clearing FERRY_SCAN commands that succeeded
 * @out_cleaned_pages: bits those cleared
 * @out_pinned_pages: times a page stayed dirty because somebody may write it without a fault
 * @out_watermarks: times the watermark was reached
 */
struct ferry_tracker_stats {
	__u32 size;
	__u32 flags;
	__aligned_u64 out_id;
	__aligned_u64 out_pages;
	__aligned_u64 out_dirty_pages;
	__u32 out_state;
	__u32 out_views;
	__aligned_u64 out_faults;
	__aligned_u64 out_marked_pages;
	__aligned_u64 out_syncs;
	__aligned_u64 out_cleaned_pages;
	__aligned_u64 out_pinned_pages;
	__aligned_u64 out_watermarks;
};

/**
 * struct ferry_watch - tell when many pages are dirty (FERRY_WATCH)
 * @size: sizeof(struct ferry_watch)
 * @flags: 0
 * @watermark_pages: how many; 0 stops watching
 * @eventfd: is signalled when the watermark is reached; -1 for none
 * @reserved: 0
 *
 * poll(2) of the tracker says POLLIN as long as at least @watermark_pages are dirty. The
 * eventfd is signalled, and the netlink event sent, once each time that number is reached
 * from below; a tracker that is there already when this is called counts as reaching it.
 * Replaces what was watched before.
 *
 *	-ERANGE		@watermark_pages is more than the tracker has
 *	-EBADF		@eventfd is not an open descriptor
 *	-EINVAL		@eventfd is not an eventfd, or is given with a watermark of 0
 */
struct ferry_watch {
	__u32 size;
	__u32 flags;
	__aligned_u64 watermark_pages;
	__s32 eventfd;
	__u32 reserved;
};

/**
 * struct ferry_bitmap_fd - the live bitmap, to be mapped (FERRY_BITMAP)
 * @size: sizeof(struct ferry_bitmap_fd)
 * @flags: 0
 * @out_fd: close-on-exec; mmap(2) it with PROT_READ from offset 0
 * @reserved: 0
 * @out_bytes: how much can be mapped
 *
 * A look without a system call, word by word as things stand; only FERRY_SYNC, FERRY_CLEAR
 * and FERRY_SCAN make a clean page's next store seen. mmap(2) fails with -EPERM when it asks
 * for writing, -EINVAL beyond @out_bytes. Keeps the tracker alive.
 *
 *	-ENOMEM, -EMFILE, -ENFILE
 */
struct ferry_bitmap_fd {
	__u32 size;
	__u32 flags;
	__s32 out_fd;
	__u32 reserved;
	__aligned_u64 out_bytes;
};

#endif
