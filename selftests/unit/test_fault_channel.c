// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The fault channel: a server over one memory file, what comes of its answers at a pool with
 * a sink over another one, and requests that no honest destination makes.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/io.h"
#include "fault/pages.h"
#include "ram/bitmap.h"
#include "wire/wire.h"
#include "xport/fault_channel.h"
#include "xport/frame.h"
#include "xport/multifd_recv.h"

#define PAGES 100u
#define WAIT_MS 20000

static struct lab {
	struct ferry_ram_block blocks[2][2]; /* of the source, of the destination */
	struct ferry_ram from, to;
	struct ferry_bitmap left; /* at the source */
	int sv[2];
	struct ferry_page_server *server;
	struct ferry_multifd_recv *recv;
	struct ferry_multifd_turns turns;
	struct ferry_page_asker asker;
	struct ferry_fault_pages pages;
	int placed_fd;

	pthread_mutex_t lock;
	pthread_cond_t changed;
	unsigned int placed[2][PAGES]; /* how often */
	unsigned int zeros;
	unsigned int ended;
	bool again; /* what is on its way already is sent once more */
} lab;

static uint64_t take(void *ctx, unsigned int block, uint64_t first, uint64_t pages)
{
	uint64_t n = ferry_bitmap_take_atomic(&lab.left, block, first, pages);

	(void)ctx;
	return n || !lab.again ? n : 1;
}

static void server_ended(void *ctx)
{
	(void)ctx;
	pthread_mutex_lock(&lab.lock);
	lab.ended++;
	pthread_cond_broadcast(&lab.changed);
	pthread_mutex_unlock(&lab.lock);
}

static uint64_t claim(void *ctx, unsigned int block, uint64_t first, uint64_t pages)
{
	(void)ctx;
	return ferry_fault_pages_claim(&lab.pages, block, first, pages);
}

static uint64_t not_absent(void *ctx, unsigned int block, uint64_t first, uint64_t pages)
{
	(void)ctx;
	return ferry_fault_pages_skip(&lab.pages, block, first, pages);
}

static void unclaim(void *ctx, unsigned int block, uint64_t first, uint64_t pages)
{
	(void)ctx;
	ferry_fault_pages_unclaim(&lab.pages, block, first, pages);
}

static int placed(void *ctx, unsigned int block, uint64_t first, uint64_t pages, bool zero)
{
	uint64_t i;

	(void)ctx;
	ferry_fault_pages_place(&lab.pages, block, first, pages);
	pthread_mutex_lock(&lab.lock);
	for (i = first; i < first + pages; i++)
		lab.placed[block][i]++;
	lab.zeros += zero;
	pthread_cond_broadcast(&lab.changed);
	pthread_mutex_unlock(&lab.lock);
	return 0;
}

static const struct ferry_multifd_sink sink = {
	.claim = claim, .skip = not_absent, .unclaim = unclaim, .placed = placed,
};

static void make_ram(struct ferry_ram *ram, struct ferry_ram_block *blocks)
{
	unsigned int i;

	for (i = 0; i < 2; i++) {
		blocks[i] = (struct ferry_ram_block){
			.size_bytes = PAGES * FERRY_PAGE_SIZE, .page_size = FERRY_PAGE_SIZE,
			.fd = memfd_create("ram", MFD_CLOEXEC),
		};
		assert_int_equal(ftruncate(blocks[i].fd, PAGES * FERRY_PAGE_SIZE), 0);
	}
	*ram = (struct ferry_ram){ blocks, 2 };
}

static void fill(unsigned int block, uint64_t page, uint8_t value)
{
	uint8_t bytes[FERRY_PAGE_SIZE];

	memset(bytes, value, sizeof(bytes));
	assert_int_equal(ferry_io_pwrite(lab.from.blocks[block].fd, bytes, sizeof(bytes),
					 (off_t)(page * FERRY_PAGE_SIZE)), 0);
}

static uint8_t arrived(unsigned int block, uint64_t page)
{
	uint8_t bytes[FERRY_PAGE_SIZE];
	unsigned int i;

	assert_int_equal(ferry_io_pread(lab.to.blocks[block].fd, bytes, sizeof(bytes),
					(off_t)(page * FERRY_PAGE_SIZE)), 0);
	for (i = 1; i < sizeof(bytes); i++)
		assert_int_equal(bytes[i], bytes[0]);
	return bytes[0];
}

static void start_server(bool checksum)
{
	struct ferry_page_server_params params = {
		.fd = lab.sv[0], .ram = &lab.from, .checksum = checksum, .take = take,
		.ended = server_ended,
	};
	struct ferry_error err;

	assert_int_equal(ferry_page_server_create(&params, &lab.server, &err), 0);
	lab.sv[0] = -1;
}

static void start_recv(bool checksum)
{
	struct ferry_multifd_recv_params params = {
		.fds = &lab.sv[1], .channels = 1, .ram = &lab.to, .checksum = checksum,
		.sink = &sink, .urgent = true, .turns = &lab.turns, .name = "fault channel",
	};
	struct ferry_error err;

	ferry_page_asker_set(&lab.asker, dup(lab.sv[1]));
	assert_int_equal(ferry_multifd_recv_create(&params, &lab.recv, &err), 0);
	lab.sv[1] = -1;
}

static int setup(void **state)
{
	struct ferry_error err;
	unsigned int i;

	(void)state;
	memset(&lab, 0, sizeof(lab));
	pthread_mutex_init(&lab.lock, NULL);
	pthread_cond_init(&lab.changed, NULL);
	make_ram(&lab.from, lab.blocks[0]);
	make_ram(&lab.to, lab.blocks[1]);
	assert_int_equal(ferry_bitmap_init(&lab.left, &lab.from), 0);
	lab.placed_fd = memfd_create("placed", MFD_CLOEXEC);
	assert_int_equal(ferry_fault_pages_init(&lab.pages, &lab.to, lab.placed_fd, true, &err), 0);
	for (i = 0; i < 2; i++) {
		ferry_bitmap_set(&lab.left, i, 0, PAGES);
		ferry_fault_pages_lack(&lab.pages, i, 0, PAGES);
	}
	ferry_page_asker_init(&lab.asker);
	ferry_multifd_turns_init(&lab.turns);
	return socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, lab.sv);
}

static int teardown(void **state)
{
	unsigned int i;

	(void)state;
	ferry_page_asker_free(&lab.asker);
	ferry_multifd_recv_free(lab.recv);
	ferry_page_server_free(lab.server);
	ferry_multifd_turns_free(&lab.turns);
	for (i = 0; i < 2; i++) {
		ferry_io_close(&lab.sv[i]);
		close(lab.from.blocks[i].fd);
		close(lab.to.blocks[i].fd);
	}
	ferry_fault_pages_free(&lab.pages);
	ferry_bitmap_free(&lab.left);
	close(lab.placed_fd);
	return 0;
}

/* Until a page was placed for the first time, or the server has ended. */
static void await(const unsigned int *count)
{
	struct timespec until;

	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += WAIT_MS / 1000;
	pthread_mutex_lock(&lab.lock);
	while (!*count)
		assert_int_equal(pthread_cond_timedwait(&lab.changed, &lab.lock, &until), 0);
	pthread_mutex_unlock(&lab.lock);
}

/* It counts a page when that has left, so who has it already may be early. */
static void expect_served(uint64_t requests, uint64_t pages, uint64_t zero_pages)
{
	struct ferry_page_server_stats stats;
	int ms;

	for (ms = 0; ms < WAIT_MS; ms++) {
		ferry_page_server_stats(lab.server, &stats);
		if (stats.pages >= pages)
			break;
		usleep(1000);
	}
	assert_int_equal(stats.requests, requests);
	assert_int_equal(stats.pages, pages);
	assert_int_equal(stats.zero_pages, zero_pages);
}

static void asked_and_answered(void **state)
{
	(void)state;
	fill(0, 7, 0x70);
	fill(0, 8, 0x80);
	fill(1, 99, 0x99);
	start_server(true);
	start_recv(true);
	assert_int_equal(ferry_page_asker_ask(&lab.asker, 0, 7, 1), 0);
	assert_int_equal(ferry_page_asker_ask(&lab.asker, 0, 8, 2), 0); /* 9 is a hole */
	assert_int_equal(ferry_page_asker_ask(&lab.asker, 1, 99, 1), 0);
	await(&lab.placed[1][99]); /* in order, so all are there */
	assert_int_equal(arrived(0, 7), 0x70);
	assert_int_equal(arrived(0, 8), 0x80);
	assert_int_equal(arrived(1, 99), 0x99);
	assert_int_equal(lab.placed[0][9], 1);
	assert_int_equal(lab.zeros, 1);
	assert_int_equal(ferry_fault_pages_missing(&lab.pages), 2 * PAGES - 4);
	expect_served(3, 4, 1);
}

/* What was sent already is on its way on another channel. */
static void once(void **state)
{
	(void)state;
	start_server(false);
	start_recv(false);
	assert_int_equal(ferry_bitmap_take_atomic(&lab.left, 0, 3, 1), 1);
	assert_int_equal(ferry_page_asker_ask(&lab.asker, 0, 2, 3), 0);
	assert_int_equal(ferry_page_asker_ask(&lab.asker, 0, 2, 3), 0);
	assert_int_equal(ferry_page_asker_ask(&lab.asker, 0, 5, 1), 0);
	await(&lab.placed[0][5]);
	assert_int_equal(lab.placed[0][2], 1);
	assert_int_equal(lab.placed[0][3], 0);
	assert_int_equal(lab.placed[0][4], 1);
	expect_served(3, 3, 3); /* nothing was filled */
}

/* Unless who serves says that it shall go again: then nobody has to wait for the other copy. */
static void once_more(void **state)
{
	(void)state;
	lab.again = true;
	fill(0, 3, 0x33);
	start_server(false);
	start_recv(false);
	assert_int_equal(ferry_bitmap_take_atomic(&lab.left, 0, 3, 1), 1);
	assert_int_equal(ferry_page_asker_ask(&lab.asker, 0, 2, 3), 0);
	await(&lab.placed[0][4]);
	assert_int_equal(lab.placed[0][3], 1);
	assert_int_equal(arrived(0, 3), 0x33);
	expect_served(1, 3, 2);
}

/* A page that is here is not written again, whatever comes. */
static void late_copy(void **state)
{
	(void)state;
	fill(0, 1, 0x11);
	fill(0, 2, 0x22);
	assert_int_equal(ferry_fault_pages_claim(&lab.pages, 0, 1, 1), 1);
	ferry_fault_pages_place(&lab.pages, 0, 1, 1);
	start_server(false);
	start_recv(false);
	assert_int_equal(ferry_page_asker_ask(&lab.asker, 0, 1, 2), 0);
	await(&lab.placed[0][2]);
	assert_int_equal(lab.placed[0][1], 0);
	assert_int_equal(arrived(0, 1), 0);
	assert_int_equal(arrived(0, 2), 0x22);
}

/* A channel may have the processor taken away while it writes: who waits does not wait for it. */
static void while_others_write(void **state)
{
	unsigned int placed;
	int ms;

	(void)state;
	fill(0, 1, 0x11);
	start_server(false);
	start_recv(false);
	pthread_mutex_lock(&lab.turns.block[0]);
	assert_int_equal(ferry_page_asker_ask(&lab.asker, 0, 1, 1), 0);
	for (placed = 0, ms = 0; !placed && ms < WAIT_MS; ms++) {
		usleep(1000);
		pthread_mutex_lock(&lab.lock);
		placed = lab.placed[0][1];
		pthread_mutex_unlock(&lab.lock);
	}
	pthread_mutex_unlock(&lab.turns.block[0]);
	assert_int_equal(placed, 1);
	assert_int_equal(arrived(0, 1), 0x11);
}

/* But when nobody does it has the turn, and gives it back. */
static void in_its_turn(void **state)
{
	(void)state;
	fill(0, 1, 0x11);
	start_server(false);
	start_recv(false);
	assert_int_equal(ferry_page_asker_ask(&lab.asker, 0, 1, 1), 0);
	await(&lab.placed[0][1]);
	assert_int_equal(arrived(0, 1), 0x11);
	assert_int_equal(pthread_mutex_trylock(&lab.turns.block[0]), 0);
	pthread_mutex_unlock(&lab.turns.block[0]);
}

static void lost_line(void **state)
{
	struct ferry_error err;

	(void)state;
	assert_int_equal(ferry_page_asker_ask(&lab.asker, 0, 1, 1), -ENOTCONN);
	start_server(false);
	start_recv(false);
	ferry_multifd_recv_free(lab.recv);
	lab.recv = NULL;
	await(&lab.ended);
	assert_int_equal(ferry_page_server_why(lab.server, &err), -EPIPE);
	assert_int_equal(ferry_page_asker_ask(&lab.asker, 0, 1, 1), -EPIPE);
	ferry_page_asker_set(&lab.asker, -1);
	assert_int_equal(ferry_page_asker_ask(&lab.asker, 0, 1, 1), -ENOTCONN);
}

/* Who serves a new line has not heard which block was named on the old one. */
static void new_line(void **state)
{
	struct ferry_wire_frame frame;
	struct ferry_error err;
	uint8_t *body = NULL;
	int sv[2];

	(void)state;
	ferry_page_asker_set(&lab.asker, dup(lab.sv[1]));
	assert_int_equal(ferry_page_asker_ask(&lab.asker, 1, 5, 1), 0);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv), 0);
	ferry_page_asker_set(&lab.asker, sv[1]);
	assert_int_equal(ferry_page_asker_ask(&lab.asker, 1, 6, 1), 0);
	assert_int_equal(ferry_frame_recv(sv[0], &frame, &body, ferry_clock_in_ms(WAIT_MS), &err), 0);
	assert_int_equal(frame.type, FERRY_WIRE_REQUEST_BLOCK);
	free(body);
	assert_int_equal(ferry_page_asker_ask(&lab.asker, 1, 7, 1), 0);
	assert_int_equal(ferry_frame_recv(sv[0], &frame, &body, ferry_clock_in_ms(WAIT_MS), &err), 0);
	assert_int_equal(frame.type, FERRY_WIRE_REQUEST);
	free(body);
	close(sv[0]);
}

/* A peer that never reads: no page fault may wait for it. */
static void deaf_peer(void **state)
{
	unsigned int n = 0;
	int r;

	(void)state;
	ferry_page_asker_set(&lab.asker, dup(lab.sv[1]));
	do
		r = ferry_page_asker_ask(&lab.asker, n % 2, 1, 1);
	while (!r && n++ < 10000000);
	assert_int_equal(r, -EPIPE);
}

static void bad_requests(void **state)
{
	static const struct {
		unsigned int type;
		struct ferry_wire_run run;
		int want;
		const char *text;
	} bad[] = {
		{ FERRY_WIRE_REQUEST_BLOCK, { 100, 1, 0 }, -ERANGE,
		  "fault channel: the destination asked for pages outside of guest memory" },
		{ FERRY_WIRE_REQUEST_BLOCK, { 0, 1, 2 }, -ERANGE,
		  "fault channel: the destination asked for pages outside of guest memory" },
		{ FERRY_WIRE_REQUEST_BLOCK, { 0, 0, 0 }, -EPROTO,
		  "fault channel: the destination sent a bad request" },
		{ FERRY_WIRE_ASK, { 0, 0, 0 }, -EPROTO,
		  "fault channel: the destination sent a frame that does not belong there" },
	};
	uint8_t body[FERRY_WIRE_RUN_BYTES];
	struct ferry_error err;
	size_t i;

	for (i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		start_server(false);
		ferry_wire_run_encode(&bad[i].run, body);
		assert_int_equal(ferry_frame_send(lab.sv[1], bad[i].type, body,
						  bad[i].type == FERRY_WIRE_ASK ? 0 : sizeof(body),
						  ferry_clock_in_ms(WAIT_MS)), 0);
		await(&lab.ended);
		assert_int_equal(ferry_page_server_why(lab.server, &err), bad[i].want);
		assert_string_equal(err.text, bad[i].text);
		assert_int_equal(ferry_bitmap_count(&lab.left), 2 * PAGES);
		teardown(state);
		setup(state);
	}
}

int main(void)
{
#define WITH_LAB(test) cmocka_unit_test_setup_teardown(test, setup, teardown)
	const struct CMUnitTest tests[] = {
		WITH_LAB(asked_and_answered), WITH_LAB(once),	   WITH_LAB(once_more),
		WITH_LAB(late_copy),	      WITH_LAB(lost_line), WITH_LAB(new_line),
		WITH_LAB(deaf_peer),	      WITH_LAB(bad_requests),
		WITH_LAB(while_others_write), WITH_LAB(in_its_turn),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
