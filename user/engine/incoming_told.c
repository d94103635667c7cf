// SPDX-License-Identifier: GPL-2.0-or-later
/* What is told of pages that come in: to the source, which are here; to people, how it went. */
#include <errno.h>
#include <stdlib.h>

#include "engine/incoming.h"

uint64_t ferry_incoming_line_pages(struct ferry_multifd_recv *line)
{
	struct ferry_multifd_recv_stats stats;

	ferry_multifd_recv_stats(line, &stats);
	return stats.normal_pages + stats.zero_pages;
}

void ferry_incoming_stats(struct ferry_incoming *in)
{
	struct ferry_fault_thread threads[FERRY_STATS_THREADS] = { 0 };
	struct ferry_stats *out = &in->job->stats;
	struct ferry_fault_stats st;
	unsigned int i;

	if (!in->fault)
		return;
	ferry_fault_stats(in->fault, &st);
	ferry_fault_threads(in->fault, threads, FERRY_STATS_THREADS);
	pthread_mutex_lock(&in->job->lock);
	out->faults = st.wanted;
	out->blocktime_ns = st.total_wait_ns;
	out->blocktime_max_ns = st.max_wait_ns;
	out->waiting = st.waiting;
	out->fault_p50_ns = st.p50_ns;
	out->fault_p99_ns = st.p99_ns;
	out->missing_pages = ferry_fault_pages_missing(&in->pages);
	out->fault_pages = in->line_pages + (in->line ? ferry_incoming_line_pages(in->line) : 0);
	out->background_pages = in->lacked - out->missing_pages;
	/* Some come both ways; some of the line's are dropped then. */
	out->background_pages -= out->fault_pages < out->background_pages ? out->fault_pages :
									      out->background_pages;
	for (i = 0; i < FERRY_STATS_BUCKETS && i < FERRY_FAULT_BUCKETS; i++)
		out->fault_us[i] = st.histogram[i];
	for (i = 0; i < FERRY_STATS_THREADS; i++)
		out->threads[i] = (struct ferry_stats_thread){
			.tid = (int)threads[i].tid,
			.faults = threads[i].faults,
			.wait_ns = threads[i].wait_ns,
			.max_ns = threads[i].max_ns,
		};
	pthread_mutex_unlock(&in->job->lock);
}

int ferry_incoming_tell(struct ferry_incoming *in,
			int (*send)(void *ctx, enum ferry_wire_type type, const void *body,
				    uint32_t length), void *ctx)
{
	uint8_t *body = malloc(FERRY_WIRE_RECEIVED_BYTES + FERRY_WIRE_MAX_RECEIVED), end[8];
	unsigned int i;
	int r = body ? 0 : -ENOMEM;

	for (i = 0; i < in->ram->count && !r; i++) {
		uint64_t words = (in->pages.placed.pages[i] + 63) / 64, w = 0;
		struct ferry_wire_received head = { .block = (uint16_t)i };

		while (w < words && !r) {
			uint64_t n = words - w, k;

			if (n > FERRY_WIRE_MAX_RECEIVED / 8)
				n = FERRY_WIRE_MAX_RECEIVED / 8;
			head.first_page = w * 64;
			ferry_wire_received_encode(&head, body);
			for (k = 0; k < n; k++)
				ferry_wire_u64_encode(__atomic_load_n(&in->pages.placed.words[i][w + k],
								      __ATOMIC_ACQUIRE),
						      body + FERRY_WIRE_RECEIVED_BYTES + k * 8);
			r = send(ctx, FERRY_WIRE_RECEIVED, body,
				 (uint32_t)(FERRY_WIRE_RECEIVED_BYTES + n * 8));
			w += n;
		}
	}
	free(body);
	ferry_wire_u64_encode(ferry_fault_pages_missing(&in->pages), end);
	return r ? r : send(ctx, FERRY_WIRE_RECEIVED_END, end, sizeof(end));
}
