// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * <linux/ferry.h> is all a program needs, in C and C++, and what it says is frozen: a
 * program built against the first module must work with every later one. Whoever has to
 * change a line here breaks programs; a struct grows at its end, and gets a second line
 * for its new size.
 */
#include <linux/ferry.h>

#include <stddef.h>

#ifndef __cplusplus
#define static_assert _Static_assert
#endif

#define SIZE(type, bytes) static_assert(sizeof(struct type) == (bytes), #type " changed its size")
#define FIELD(type, field, at, bytes) \
	static_assert(offsetof(struct type, field) == (at) && \
		      sizeof(((struct type *)0)->field) == (bytes), \
		      #type "." #field " is not where it was")
#define VALUE(name, value) static_assert((name) == (value), #name " changed its value")
#define SIGNED(type, field) \
	static_assert((__typeof__(((struct type *)0)->field))-1 < 0, #type "." #field " lost its sign")

VALUE(FERRY_API_VERSION, 1);
VALUE(FERRY_IOC_TYPE, 0xf7);
VALUE(FERRY_QUERY, 0xf700);
VALUE(FERRY_TRACK, 0xf701);
VALUE(FERRY_START, 0xf710);
VALUE(FERRY_STOP, 0xf711);
VALUE(FERRY_SYNC, 0xf712);
VALUE(FERRY_GET, 0xf713);
VALUE(FERRY_CLEAR, 0xf714);
VALUE(FERRY_SCAN, 0xf715);
VALUE(FERRY_STATS, 0xf716);
VALUE(FERRY_WATCH, 0xf717);
VALUE(FERRY_BITMAP, 0xf718);
VALUE(FERRY_FEATURE_PINS, 1);
VALUE(FERRY_FEATURE_UNEXPLAINED, 2);
VALUE(FERRY_FEATURE_LIMIT, 4);
static_assert(sizeof(FERRY_FEATURE_PINS) == 8, "features are 64 bits");
VALUE(FERRY_SCAN_CLEAR, 1);
VALUE(FERRY_STATE_STARTED, 1);

FIELD(ferry_query, size, 0, 4);
FIELD(ferry_query, flags, 4, 4);
FIELD(ferry_query, out_api_version, 8, 4);
FIELD(ferry_query, out_page_bytes, 12, 4);
FIELD(ferry_query, out_features, 16, 8);
FIELD(ferry_query, out_max_pages, 24, 8);
FIELD(ferry_query, out_max_trackers, 32, 4);
FIELD(ferry_query, out_trackers, 36, 4);
SIZE(ferry_query, 40);

FIELD(ferry_track, size, 0, 4);
FIELD(ferry_track, flags, 4, 4);
FIELD(ferry_track, memfd, 8, 4);
FIELD(ferry_track, out_fd, 12, 4);
SIGNED(ferry_track, memfd);
SIGNED(ferry_track, out_fd);
FIELD(ferry_track, out_id, 16, 8);
FIELD(ferry_track, out_pages, 24, 8);
SIZE(ferry_track, 32);

FIELD(ferry_start, size, 0, 4);
FIELD(ferry_start, flags, 4, 4);
SIZE(ferry_start, 8);

FIELD(ferry_pages, size, 0, 4);
FIELD(ferry_pages, flags, 4, 4);
FIELD(ferry_pages, first_page, 8, 8);
FIELD(ferry_pages, npages, 16, 8);
FIELD(ferry_pages, bitmap, 24, 8);
FIELD(ferry_pages, out_pages, 32, 8);
SIZE(ferry_pages, 40);

FIELD(ferry_extent, first_page, 0, 8);
FIELD(ferry_extent, npages, 8, 8);
SIZE(ferry_extent, 16);

FIELD(ferry_scan, size, 0, 4);
FIELD(ferry_scan, flags, 4, 4);
FIELD(ferry_scan, first_page, 8, 8);
FIELD(ferry_scan, npages, 16, 8);
FIELD(ferry_scan, extents, 24, 8);
FIELD(ferry_scan, max_extents, 32, 4);
FIELD(ferry_scan, out_extents, 36, 4);
FIELD(ferry_scan, out_next_page, 40, 8);
FIELD(ferry_scan, out_pages, 48, 8);
SIZE(ferry_scan, 56);

FIELD(ferry_tracker_stats, size, 0, 4);
FIELD(ferry_tracker_stats, flags, 4, 4);
FIELD(ferry_tracker_stats, out_id, 8, 8);
FIELD(ferry_tracker_stats, out_pages, 16, 8);
FIELD(ferry_tracker_stats, out_dirty_pages, 24, 8);
FIELD(ferry_tracker_stats, out_state, 32, 4);
FIELD(ferry_tracker_stats, out_views, 36, 4);
FIELD(ferry_tracker_stats, out_faults, 40, 8);
FIELD(ferry_tracker_stats, out_marked_pages, 48, 8);
FIELD(ferry_tracker_stats, out_syncs, 56, 8);
FIELD(ferry_tracker_stats, out_cleaned_pages, 64, 8);
FIELD(ferry_tracker_stats, out_pinned_pages, 72, 8);
FIELD(ferry_tracker_stats, out_watermarks, 80, 8);
SIZE(ferry_tracker_stats, 88);

FIELD(ferry_watch, size, 0, 4);
FIELD(ferry_watch, flags, 4, 4);
FIELD(ferry_watch, watermark_pages, 8, 8);
FIELD(ferry_watch, eventfd, 16, 4);
SIGNED(ferry_watch, eventfd);
FIELD(ferry_watch, reserved, 20, 4);
SIZE(ferry_watch, 24);

FIELD(ferry_bitmap_fd, size, 0, 4);
FIELD(ferry_bitmap_fd, flags, 4, 4);
FIELD(ferry_bitmap_fd, out_fd, 8, 4);
SIGNED(ferry_bitmap_fd, out_fd);
FIELD(ferry_bitmap_fd, reserved, 12, 4);
FIELD(ferry_bitmap_fd, out_bytes, 16, 8);
SIZE(ferry_bitmap_fd, 24);
