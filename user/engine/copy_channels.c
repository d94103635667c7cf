// SPDX-License-Identifier: GPL-2.0-or-later
/* The carrier of a migration: multifd channels, and the main channel for its barriers. */
#include "base/clock.h"
#include "engine/copy.h"

static void page_sent(void *ctx, unsigned int block, uint64_t page, const void *bytes)
{
	ferry_copy_page_sent(ctx, block, page, bytes);
}

static int carry_queue(void *ctx, unsigned int block, uint64_t first_page, uint64_t pages,
		       bool zero, struct ferry_error *err)
{
	struct ferry_copy *copy = ctx;

	return ferry_multifd_send_queue(copy->pool, block, first_page, pages, zero, err);
}

static int carry_drain(void *ctx, uint64_t deadline_ns, struct ferry_error *err)
{
	struct ferry_copy *copy = ctx;

	return ferry_multifd_send_drain(copy->pool, deadline_ns, err);
}

/* SYNC on the channels, FLUSH on the main channel, and the destination's FLUSHED. */
static int carry_barrier(void *ctx, uint32_t round, struct ferry_error *err)
{
	struct ferry_copy *copy = ctx;
	int r = ferry_multifd_send_sync(copy->pool, round, err);

	if (!r)
		r = ferry_link_flush(copy->link, round, err);
	if (!r)
		r = ferry_link_wait(copy->link, FERRY_LINK_FLUSHED,
				    ferry_clock_in_ms(copy->job->options.timeout_ms), err);
	return r;
}

static uint64_t carry_pending(void *ctx)
{
	struct ferry_copy *copy = ctx;

	return ferry_multifd_send_pending(copy->pool);
}

static void carry_stats(void *ctx, struct ferry_carrier_stats *stats)
{
	struct ferry_copy *copy = ctx;
	struct ferry_multifd_send_stats now;

	ferry_multifd_send_stats(copy->pool, &now);
	stats->sent_bytes = now.sent_bytes;
	stats->normal_pages = now.normal_pages;
	stats->zero_pages = now.zero_pages;
}

static void carry_watch(void *ctx, bool on)
{
	struct ferry_copy *copy = ctx;

	ferry_multifd_send_watch(copy->pool, on);
}

static uint64_t carry_rtt_ns(void *ctx)
{
	struct ferry_copy *copy = ctx;

	return ferry_link_rtt_ns(copy->link);
}

static const struct ferry_carrier_ops channels_carrier = {
	.queue = carry_queue,
	.drain = carry_drain,
	.barrier = carry_barrier,
	.pending = carry_pending,
	.stats = carry_stats,
	.watch = carry_watch,
	.rtt_ns = carry_rtt_ns,
};

int ferry_copy_channels(struct ferry_copy *copy, struct ferry_link *link, const int *fds,
			unsigned int channels, struct ferry_error *err)
{
	struct ferry_multifd_send_params params = {
		.fds = fds,
		.channels = channels,
		.ram = copy->ram,
		.rate = &copy->job->rate,
		.codec = copy->job->options.codec,
		.checksum = copy->job->options.checksum,
		.page_sent = page_sent,
		.ctx = copy,
	};
	int r;

	copy->link = link;
	copy->carrier = &channels_carrier;
	copy->carrier_ctx = copy;
	r = ferry_multifd_send_create(&params, &copy->pool, err);
	if (!r)
		ferry_multifd_send_watch(copy->pool, false);
	return r;
}
