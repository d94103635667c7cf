// SPDX-License-Identifier: GPL-2.0-or-later
/* Both multifd pools against each other: what arrives, how fast, and who goes away when. */
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/io.h"
#include "multifd_rig.h"
#include "wire/wire.h"

#define MS(ms) ((ms) * FERRY_NS_PER_MS)

static void check_move(unsigned int channels, bool tcp)
{
	struct rig *rig = rig_make(channels, tcp);
	struct ferry_multifd_send_stats sent;
	struct ferry_multifd_recv_stats got;
	uint64_t data = rig_fill(rig), all = ferry_ram_pages(&rig->from);

	rig_move_all(rig, &sent, &got);
	assert_int_equal(sent.normal_pages, data);
	assert_int_equal(sent.zero_pages, all - data);
	assert_int_equal(got.normal_pages, data);
	assert_int_equal(got.zero_pages, all - data);
	assert_int_equal(sent.sent_bytes, got.received_bytes);
	assert_true(sent.sent_bytes > data * FERRY_PAGE_SIZE);
	assert_true(sent.sent_bytes < (data + 16) * FERRY_PAGE_SIZE);
	assert_int_equal(ferry_bitmap_count(&rig->received), data);
	/* Holes stayed holes, and nothing was allocated at the source by looking. */
	assert_int_equal(rig_allocated_pages(&rig->to), data);
	assert_int_equal(rig_allocated_pages(&rig->from), data + 1);
	rig_free(rig);
}

static void moves_unix(void **state)
{
	(void)state;
	check_move(1, false);
	check_move(2, false);
	check_move(4, false);
}

static void moves_tcp(void **state)
{
	(void)state;
	check_move(1, true);
	check_move(2, true);
	check_move(4, true);
}

static void zero_after_data(void **state)
{
	struct rig *rig = rig_make(2, false);
	uint64_t data = rig_fill(rig), p;

	(void)state;
	rig_start_recv(rig);
	rig_start_send(rig, NULL, NULL);
	rig_queue(rig, 0, 0, rig_block_pages[0], false);
	rig_queue(rig, 1, 0, rig_block_pages[1], false);
	rig_queue(rig, 2, 0, 1, false);
	rig_finish_round(rig, 1);

	/* Found to be zero, known to be zero, and zero where nothing ever was. */
	for (p = 100; p < 200; p++)
		rig_write_page(rig, 0, p, 0);
	rig_queue(rig, 0, 50, 150, false);
	rig_queue(rig, 0, 400, 100, true);
	rig_queue(rig, 0, 905, 50, true);
	rig_finish_round(rig, 2);
	for (p = 0; p < rig_block_pages[0]; p++)
		rig_check_page(rig, 0, p, p == 1282 || (p >= 200 && p < 400) ||
						  (p >= 500 && p < 900));
	assert_int_equal(rig_allocated_pages(&rig->to), data - 200);
	assert_int_equal(ferry_bitmap_count(&rig->received), data - 200);
	assert_false(ferry_bitmap_test(&rig->received, 0, 150));
	assert_true(ferry_bitmap_test(&rig->received, 0, 200));
	rig_free(rig);
}

/* The same pages in every round; whatever channel takes them, the last version stays. */
static void many_rounds(void **state)
{
	struct rig *rig = rig_make(4, false);
	uint32_t round;
	uint64_t p;

	(void)state;
	rig_start_recv(rig);
	rig_start_send(rig, NULL, NULL);
	for (round = 1; round <= 40; round++) {
		for (p = 0; p < 96; p++) {
			rig_write_page(rig, 0, p * 3, (round + p) % 5);
			rig_queue(rig, 0, p * 3, 1, false);
		}
		assert_int_equal(ferry_multifd_send_sync(rig->send, round, &rig->err), 0);
	}
	assert_int_equal(ferry_multifd_recv_wait(rig->recv, 40, rig_soon(), &rig->err), 0);
	for (p = 0; p < 96; p++)
		rig_check_page(rig, 0, p * 3, (40 + p) % 5);
	rig_free(rig);
}

/* Channel 1 is late with the old copy of a page that channel 0 has a new one of already. */
static void slow_channel(void **state)
{
	struct rig *rig = rig_make(2, false);

	(void)state;
	rig_start_recv(rig);
	rig_put_packet(rig, 0, 0, 1, 0, 0);
	rig_put_packet(rig, 0, 1, 2, 1, 2);
	rig_put_packet(rig, 0, 2, 2, 0, 0);
	assert_int_equal(ferry_multifd_recv_wait(rig->recv, 1, ferry_clock_in_ms(100), &rig->err),
			 -ETIMEDOUT);
	assert_non_null(strstr(rig->err.text, "1 of 2"));
	rig_check_page(rig, 0, 5, 0); /* the new copy waits at the barrier */
	rig_put_packet(rig, 1, 0, 1, 1, 1);
	rig_put_packet(rig, 1, 1, 1, 0, 0);
	assert_int_equal(ferry_multifd_recv_wait(rig->recv, 1, rig_soon(), &rig->err), 0);
	rig_put_packet(rig, 1, 2, 2, 0, 0);
	assert_int_equal(ferry_multifd_recv_wait(rig->recv, 2, rig_soon(), &rig->err), 0);
	rig_check_page(rig, 0, 5, 2);
	rig_free(rig);
}

static void rate_is_kept(void **state)
{
	struct rig *rig = rig_make(2, false);
	uint64_t start, p, ns;

	(void)state;
	for (p = 0; p < 1280; p++) /* 5 MiB */
		rig_write_page(rig, 0, p, 1);
	ferry_rate_set(&rig->rate, 10 << 20);
	rig_start_recv(rig);
	rig_start_send(rig, NULL, NULL);
	start = ferry_clock_ns();
	rig_queue(rig, 0, 0, 1280, false);
	rig_finish_round(rig, 1);
	ns = ferry_clock_ns() - start;
	/* 500 ms, less the last packet of each channel and 20 ms of credit, more when busy. */
	assert_in_range(ns, MS(380), MS(3000));
	rig_check_equal(rig);

	/* So slow that it would take minutes; then the limit is lifted. */
	ferry_rate_set(&rig->rate, 32 << 10);
	start = ferry_clock_ns();
	rig_queue(rig, 0, 0, 1280, false);
	while (ferry_multifd_send_pending(rig->send) == 1280)
		ferry_clock_sleep_ns(FERRY_NS_PER_MS);
	ferry_rate_set(&rig->rate, 0);
	rig_finish_round(rig, 2);
	assert_true(ferry_clock_ns() - start < 10 * FERRY_NS_PER_S);
	rig_free(rig);
}

static void abort_while_waiting_for_rate(void **state)
{
	struct rig *rig = rig_make(2, false);
	uint64_t start;

	(void)state;
	rig_fill(rig);
	ferry_rate_set(&rig->rate, 1);
	rig_start_recv(rig);
	rig_start_send(rig, NULL, NULL);
	rig_queue(rig, 0, 100, 800, false);
	while (ferry_multifd_send_pending(rig->send) == 800)
		ferry_clock_sleep_ns(FERRY_NS_PER_MS);
	start = ferry_clock_ns();
	ferry_multifd_send_abort(rig->send);
	assert_int_equal(ferry_multifd_send_sync(rig->send, 1, &rig->err), -ECANCELED);
	assert_int_equal(ferry_multifd_send_queue(rig->send, 0, 0, 1, false, &rig->err),
			 -ECANCELED);
	rig_free(rig);
	assert_true(ferry_clock_ns() - start < 2 * FERRY_NS_PER_S);
}

static void *abort_soon(void *arg)
{
	struct rig *rig = arg;

	ferry_clock_sleep_ns(50 * FERRY_NS_PER_MS);
	if (rig->send)
		ferry_multifd_send_abort(rig->send);
	if (rig->recv)
		ferry_multifd_recv_abort(rig->recv);
	return NULL;
}

/* Nobody reads at the other end: sockets and ring rig_fill up, then abort. */
static void abort_unblocks_sender(void **state)
{
	struct rig *rig = rig_make(2, false);
	uint64_t start = ferry_clock_ns();
	pthread_t thread;
	uint64_t p;
	int r = 0;

	(void)state;
	rig_fill(rig);
	rig_start_send(rig, NULL, NULL);
	assert_int_equal(pthread_create(&thread, NULL, abort_soon, rig), 0);
	for (p = 0; !r; p += 2) /* apart, so that runs do not merge */
		r = ferry_multifd_send_queue(rig->send, 0, 100 + p % 800, 1, false, &rig->err);
	assert_int_equal(r, -ECANCELED);
	pthread_join(thread, NULL);
	assert_int_equal(ferry_multifd_send_sync(rig->send, 1, &rig->err), -ECANCELED);
	rig_free(rig);
	assert_true(ferry_clock_ns() - start < 5 * FERRY_NS_PER_S);
}

static void abort_unblocks_receiver(void **state)
{
	struct rig *rig = rig_make(4, false);
	uint64_t start = ferry_clock_ns();
	pthread_t thread;

	(void)state;
	rig_start_recv(rig);
	rig_put_packet(rig, 0, 0, 1, 0, 0); /* one of them waits at the barrier */
	assert_int_equal(pthread_create(&thread, NULL, abort_soon, rig), 0);
	assert_int_equal(ferry_multifd_recv_wait(rig->recv, 1, FERRY_CLOCK_NEVER, &rig->err),
			 -ECANCELED);
	pthread_join(thread, NULL);
	rig_free(rig);
	assert_true(ferry_clock_ns() - start < 5 * FERRY_NS_PER_S);
}

static void dead_destination(void **state)
{
	bool tcp = *state != NULL;
	struct rig *rig = rig_make(2, tcp);
	int r = 0;

	rig_fill(rig);
	rig_start_send(rig, NULL, NULL);
	ferry_io_close(&rig->theirs[1]);
	while (!r) /* until the other channel's socket and the ring are full, at the latest */
		r = ferry_multifd_send_queue(rig->send, 0, 100, 700, false, &rig->err);
	assert_true(r == -EPIPE || r == -ECONNRESET);
	rig_expect_error(rig, r, "multifd channel 1: connection lost: ");
	assert_int_equal(ferry_multifd_send_sync(rig->send, 1, &rig->err), r);
	rig_expect_error(rig, r, "multifd channel 1: connection lost: ");
	rig_free(rig);
}

static void dead_source(void **state)
{
	struct rig *rig = rig_make(3, false);
	int r;

	(void)state;
	rig_start_recv(rig);
	rig_put_packet(rig, 0, 0, 1, 0, 0);
	rig_put_packet(rig, 1, 0, 1, 0, 0);
	ferry_io_close(&rig->ours[2]);
	r = ferry_multifd_recv_wait(rig->recv, 1, rig_soon(), &rig->err);
	assert_int_equal(r, -EPIPE);
	rig_expect_error(rig, r, "multifd channel 2: connection lost: the source closed it");
	rig_free(rig);
}

/* A source that is done and goes: the rounds it finished stay finished. */
static void source_goes_after_round(void **state)
{
	struct rig *rig = rig_make(2, true);
	int r;

	(void)state;
	rig_fill(rig);
	rig_start_recv(rig);
	rig_start_send(rig, NULL, NULL);
	rig_queue(rig, 0, 0, rig_block_pages[0], false);
	assert_int_equal(ferry_multifd_send_sync(rig->send, 1, &rig->err), 0);
	ferry_multifd_send_free(rig->send);
	rig->send = NULL;
	assert_int_equal(ferry_multifd_recv_wait(rig->recv, 1, rig_soon(), &rig->err), 0);
	rig_check_page(rig, 0, 500, 1);
	r = ferry_multifd_recv_wait(rig->recv, 2, rig_soon(), &rig->err);
	assert_int_equal(r, -EPIPE);
	rig_expect_error(rig, r, "connection lost: ");
	assert_int_equal(ferry_multifd_recv_wait(rig->recv, 1, rig_soon(), &rig->err), 0);
	rig_free(rig);
}

/* What page_sent was told last about each page of block 0. */
struct seen {
	uint8_t bytes[256][FERRY_PAGE_SIZE];
	unsigned int calls[256];
};

static void remember(void *ctx, unsigned int block, uint64_t page, const void *bytes)
{
	struct seen *seen = ctx;

	assert_int_equal(block, 0);
	if (bytes)
		memcpy(seen->bytes[page], bytes, FERRY_PAGE_SIZE);
	else
		memset(seen->bytes[page], 0, FERRY_PAGE_SIZE);
	seen->calls[page]++;
}

struct scribbler {
	struct rig *rig;
	int stop;
};

static void *scribble(void *arg)
{
	struct scribbler *s = arg;
	uint64_t n;

	for (n = 0; !__atomic_load_n(&s->stop, __ATOMIC_RELAXED); n++)
		rig_write_page(s->rig, 0, n % 256, n % 3);
	return NULL;
}

/* While the guest writes, what page_sent sees is still exactly what arrives. */
static void watched(void **state)
{
	struct rig *rig = rig_make(2, false);
	struct seen *seen = calloc(1, sizeof(*seen));
	struct scribbler s = { .rig = rig };
	uint8_t got[FERRY_PAGE_SIZE];
	pthread_t thread;
	uint32_t round;
	uint64_t p;

	(void)state;
	assert_non_null(seen);
	rig_start_recv(rig);
	rig_start_send(rig, remember, seen);
	rig_queue(rig, 0, 0, 256, false);
	rig_finish_round(rig, 1);
	for (p = 0; p < 256; p++)
		assert_int_equal(seen->calls[p], 0);
	ferry_multifd_send_watch(rig->send, true);
	assert_int_equal(pthread_create(&thread, NULL, scribble, &s), 0);
	for (round = 2; round < 12; round++) {
		rig_queue(rig, 0, 0, 200, false);
		rig_queue(rig, 0, 200, 56, round & 1);
		rig_finish_round(rig, round);
		for (p = 0; p < 256; p++) {
			assert_int_equal(seen->calls[p], round - 1);
			rig_read_page(&rig->to, 0, p, got);
			assert_memory_equal(got, seen->bytes[p], sizeof(got));
		}
	}
	__atomic_store_n(&s.stop, 1, __ATOMIC_RELAXED);
	pthread_join(thread, NULL);
	ferry_multifd_send_watch(rig->send, false);
	rig_queue(rig, 0, 0, 256, false);
	rig_finish_round(rig, 12);
	assert_int_equal(seen->calls[0], 11 - 1);
	rig_free(rig);
	free(seen);
}

#define HUGE_UNITS 16u
#define HUGE_PAGES 512u

/* One channel of a destination that only notes which huge pages it gets. */
struct noter {
	pthread_t thread;
	int fd;
	unsigned int pages[HUGE_UNITS];
};

static void *note_units(void *arg)
{
	uint8_t head[FERRY_WIRE_PACKET_BYTES], raw[FERRY_WIRE_EXTENT_BYTES];
	struct ferry_wire_packet packet;
	struct ferry_wire_extent e;
	struct noter *n = arg;
	unsigned int i;

	for (;;) {
		if (ferry_io_read(n->fd, head, sizeof(head), rig_soon()) ||
		    ferry_wire_packet_decode(&packet, head) ||
		    packet.flags & FERRY_WIRE_PACKET_SYNC)
			return NULL;
		for (i = 0; i < packet.extents; i++) {
			if (ferry_io_read(n->fd, raw, sizeof(raw), rig_soon()) ||
			    ferry_wire_extent_decode(&e, raw))
				return NULL;
			n->pages[e.first_page / HUGE_PAGES] += e.pages;
		}
	}
}

/* A huge page's 512 small ones go over one channel, which takes two packets for them. */
static void huge_pages_are_not_split(void **state)
{
	struct rig *rig = rig_make(4, false);
	struct noter noters[4] = { 0 };
	unsigned int i, k;

	(void)state;
	/* All zeros, and not really huge: what is sent are extents without data. */
	rig->from.blocks[0].size_bytes = HUGE_UNITS * HUGE_PAGES * FERRY_PAGE_SIZE;
	rig->from.blocks[0].page_size = HUGE_PAGES * FERRY_PAGE_SIZE;
	assert_int_equal(ftruncate(rig->from.blocks[0].fd,
				   (off_t)rig->from.blocks[0].size_bytes), 0);
	rig_start_send(rig, NULL, NULL);
	for (i = 0; i < 4; i++) {
		noters[i].fd = rig->theirs[i];
		assert_int_equal(pthread_create(&noters[i].thread, NULL, note_units, &noters[i]), 0);
	}
	rig_queue(rig, 1, 0, 40, false); /* a small one between */
	rig_queue(rig, 0, 0, 5 * HUGE_PAGES + 100, false);
	rig_queue(rig, 1, 40, 40, false);
	rig_queue(rig, 0, 5 * HUGE_PAGES + 100, (HUGE_UNITS - 5) * HUGE_PAGES - 100, false);
	assert_int_equal(ferry_multifd_send_sync(rig->send, 1, NULL), 0);
	for (i = 0; i < 4; i++)
		pthread_join(noters[i].thread, NULL);
	for (k = 1; k < HUGE_UNITS; k++) {
		unsigned int by = 0;

		for (i = 0; i < 4; i++)
			by += noters[i].pages[k] != 0;
		assert_int_equal(noters[0].pages[k] + noters[1].pages[k] + noters[2].pages[k] +
				 noters[3].pages[k], HUGE_PAGES);
		/* Queued in two parts, one may be two channels'. */
		if (k != 5)
			assert_int_equal(by, 1);
	}
	assert_int_equal(ferry_multifd_send_pending(rig->send), 0);
	rig_free(rig);
}

static void callers_mistakes(void **state)
{
	struct rig *rig = rig_make(1, false);
	struct ferry_multifd_send_params none = { .ram = &rig->from, .rate = &rig->rate };
	struct ferry_multifd_recv_params many = { .channels = 65, .ram = &rig->to,
						  .fds = (const int[65]){ 0 } };
	struct ferry_multifd_send *send;
	struct ferry_multifd_recv *recv;

	(void)state;
	none.fds = rig->ours;
	assert_int_equal(ferry_multifd_send_create(&none, &send, &rig->err), -EINVAL);
	assert_null(send);
	assert_int_equal(ferry_multifd_recv_create(&many, &recv, &rig->err), -EINVAL);
	assert_null(recv);
	none.channels = 1;
	none.codec = 77;
	assert_int_equal(ferry_multifd_send_create(&none, &send, &rig->err), -EINVAL);
	assert_string_equal(rig->err.text, "there is no codec 77");
	rig_start_send(rig, NULL, NULL);
	assert_int_equal(ferry_multifd_send_sync(rig->send, 2, &rig->err), -EINVAL);
	assert_int_equal(ferry_multifd_send_queue(rig->send, 3, 0, 1, false, NULL), -EINVAL);
	assert_int_equal(ferry_multifd_send_queue(rig->send, 2, 0, 2, false, NULL), -EINVAL);
	assert_int_equal(ferry_multifd_send_queue(rig->send, 2, 1, UINT64_MAX, true, NULL),
			 -EINVAL);
	assert_int_equal(ferry_multifd_send_queue(rig->send, 2, 1, 0, false, NULL), 0);
	/* A VMM that shrinks its memory file under us is an error, not a SIGBUS. */
	assert_int_equal(ftruncate(rig->from.blocks[0].fd, 0), 0);
	rig_queue(rig, 0, 0, 1, false);
	assert_int_equal(ferry_multifd_send_sync(rig->send, 1, &rig->err), -EPIPE);
	rig_expect_error(rig, -EPIPE, "multifd channel 0: reading the guest's memory file");
	ferry_multifd_send_free(NULL);
	ferry_multifd_recv_free(NULL);
	rig_free(rig);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(moves_unix),
		cmocka_unit_test(moves_tcp),
		cmocka_unit_test(zero_after_data),
		cmocka_unit_test(many_rounds),
		cmocka_unit_test(slow_channel),
		cmocka_unit_test(rate_is_kept),
		cmocka_unit_test(abort_while_waiting_for_rate),
		cmocka_unit_test(abort_unblocks_sender),
		cmocka_unit_test(abort_unblocks_receiver),
		cmocka_unit_test(dead_destination),
		cmocka_unit_test_prestate(dead_destination, (void *)"tcp"),
		cmocka_unit_test(dead_source),
		cmocka_unit_test(source_goes_after_round),
		cmocka_unit_test(watched),
		cmocka_unit_test(huge_pages_are_not_split),
		cmocka_unit_test(callers_mistakes),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
