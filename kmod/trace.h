/* SPDX-License-Identifier: GPL-2.0-only */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM ferry

#if !defined(FERRY_TRACE_H) || defined(TRACE_HEADER_MULTI_READ)
#define FERRY_TRACE_H

#include <linux/fs.h>
#include <linux/tracepoint.h>

#include "tracker.h"

TRACE_EVENT(ferry_track,
	TP_PROTO(const struct ferry_tracker *tracker),
	TP_ARGS(tracker),
	TP_STRUCT__entry(
		__field(u64, id)
		__field(u64, inode)
		__field(u64, pages)
	),
	TP_fast_assign(
		__entry->id = tracker->id;
		__entry->inode = file_inode(tracker->memfd)->i_ino;
		__entry->pages = tracker->npages;
	),
	TP_printk("id=%llu inode=%llu pages=%llu", __entry->id, __entry->inode, __entry->pages)
);

TRACE_EVENT(ferry_destroy,
	TP_PROTO(const struct ferry_tracker *tracker),
	TP_ARGS(tracker),
	TP_STRUCT__entry(
		__field(u64, id)
		__field(u64, dirty)
	),
	TP_fast_assign(
		__entry->id = tracker->id;
		__entry->dirty = atomic_long_read(&tracker->dirty_pages);
	),
	TP_printk("id=%llu dirty=%llu", __entry->id, __entry->dirty)
);

TRACE_EVENT(ferry_mkwrite,
	TP_PROTO(const struct ferry_tracker *tracker, unsigned long first, unsigned long pages,
		 unsigned long marked),
	TP_ARGS(tracker, first, pages, marked),
	TP_STRUCT__entry(
		__field(u64, id)
		__field(u64, first)
		__field(u64, pages)
		__field(u64, marked)
	),
	TP_fast_assign(
		__entry->id = tracker->id;
		__entry->first = first;
		__entry->pages = pages;
		__entry->marked = marked;
	),
	TP_printk("id=%llu first=%llu pages=%llu marked=%llu", __entry->id, __entry->first,
		  __entry->pages, __entry->marked)
);

TRACE_EVENT(ferry_sync,
	TP_PROTO(const struct ferry_tracker *tracker, unsigned long first, unsigned long pages,
		 unsigned long cleaned, unsigned long pinned),
	TP_ARGS(tracker, first, pages, cleaned, pinned),
	TP_STRUCT__entry(
		__field(u64, id)
		__field(u64, first)
		__field(u64, pages)
		__field(u64, cleaned)
		__field(u64, pinned)
	),
	TP_fast_assign(
		__entry->id = tracker->id;
		__entry->first = first;
		__entry->pages = pages;
		__entry->cleaned = cleaned;
		__entry->pinned = pinned;
	),
	TP_printk("id=%llu first=%llu pages=%llu cleaned=%llu pinned=%llu", __entry->id,
		  __entry->first, __entry->pages, __entry->cleaned, __entry->pinned)
);

TRACE_EVENT(ferry_watermark,
	TP_PROTO(const struct ferry_tracker *tracker, unsigned long watermark,
		 unsigned long dirty),
	TP_ARGS(tracker, watermark, dirty),
	TP_STRUCT__entry(
		__field(u64, id)
		__field(u64, watermark)
		__field(u64, dirty)
	),
	TP_fast_assign(
		__entry->id = tracker->id;
		__entry->watermark = watermark;
		__entry->dirty = dirty;
	),
	TP_printk("id=%llu watermark=%llu dirty=%llu", __entry->id, __entry->watermark,
		  __entry->dirty)
);

#endif

#undef TRACE_INCLUDE_PATH
#define TRACE_INCLUDE_PATH .
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE trace
#include <trace/define_trace.h>
