// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Both multifd pools, against each other and against packets made by hand.
 *
 * A rig has a source and a destination RAM of three blocks (none a multiple of
 * 2 MiB, one that begins inside its file) and one socket pair a channel: ours[]
 * belongs to the sending pool or to the test, theirs[] to the receiving one.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/io.h"
#include "ram/bitmap.h"
#include "ram/ram.h"
#include "wire/wire.h"
#include "ram/hash.h"
#include "xport/compress.h"
#include "xport/multifd_recv.h"
#include "xport/multifd_send.h"
#include "xport/sock.h"

#define MAX_CHANNELS 4
#define BLOCKS 3
#define SOON_MS 20000
#define MS(ms) ((ms) * FERRY_NS_PER_MS)

static const uint64_t block_pages[BLOCKS] = { 1283, 515, 1 };
static const uint64_t block_off_pages[BLOCKS] = { 0, 3, 0 };

struct rig {
	unsigned int channels;
	int ours[MAX_CHANNELS];
	int theirs[MAX_CHANNELS];
	struct ferry_ram from, to;
	struct ferry_bitmap received;
	struct ferry_rate rate;
	uint8_t codec;
	bool checksum;
	struct ferry_multifd_send *send;
	struct ferry_multifd_recv *recv;
	struct ferry_error err;
};

static uint64_t soon(void)
{
	return ferry_clock_in_ms(SOON_MS);
}

static void make_ram(struct ferry_ram *ram)
{
	unsigned int i;

	ferry_ram_init(ram);
	for (i = 0; i < BLOCKS; i++) {
		struct ferry_ram_block b = {
			.size_bytes = block_pages[i] * FERRY_PAGE_SIZE,
			.page_size = FERRY_PAGE_SIZE,
			.fd = memfd_create("ferry-test", MFD_CLOEXEC),
			.fd_off_bytes = block_off_pages[i] * FERRY_PAGE_SIZE,
		};

		assert_true(b.fd >= 0);
		snprintf(b.name, sizeof(b.name), "block%u", i);
		assert_int_equal(ftruncate(b.fd, (off_t)(b.fd_off_bytes + b.size_bytes)), 0);
		assert_int_equal(ferry_ram_add(ram, &b, NULL), 0);
	}
}

static void connect_tcp(struct rig *rig)
{
	struct ferry_uri uri;
	unsigned int i;
	bool all;
	int lfd;

	assert_int_equal(ferry_uri_parse("tcp:127.0.0.1:0", &uri, NULL), 0);
	lfd = ferry_sock_listen(&uri, &all, NULL);
	assert_true(lfd >= 0);
	for (i = 0; i < rig->channels; i++) {
		rig->ours[i] = ferry_sock_connect(&uri, soon(), NULL, NULL);
		rig->theirs[i] = ferry_sock_accept(lfd, soon());
		assert_true(rig->ours[i] >= 0 && rig->theirs[i] >= 0);
	}
	close(lfd);
}

static struct rig *make_rig(unsigned int channels, bool tcp)
{
	struct rig *rig = calloc(1, sizeof(*rig));
	unsigned int i;

	assert_non_null(rig);
	rig->channels = channels;
	make_ram(&rig->from);
	make_ram(&rig->to);
	assert_int_equal(ferry_bitmap_init(&rig->received, &rig->to), 0);
	ferry_rate_init(&rig->rate, 0);
	if (tcp) {
		connect_tcp(rig);
		return rig;
	}
	for (i = 0; i < channels; i++) {
		int sv[2];

		assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0,
					    sv), 0);
		rig->ours[i] = sv[0];
		rig->theirs[i] = sv[1];
	}
	return rig;
}

static void start_send(struct rig *rig, void (*page_sent)(void *, unsigned int, uint64_t,
							  const void *), void *ctx)
{
	struct ferry_multifd_send_params params = {
		.fds = rig->ours, .channels = rig->channels, .ram = &rig->from,
		.rate = &rig->rate, .codec = rig->codec, .checksum = rig->checksum,
		.page_sent = page_sent, .ctx = ctx,
	};
	unsigned int i;

	assert_int_equal(ferry_multifd_send_create(&params, &rig->send, &rig->err), 0);
	for (i = 0; i < rig->channels; i++)
		rig->ours[i] = -1;
}

static void start_recv(struct rig *rig)
{
	struct ferry_multifd_recv_params params = {
		.fds = rig->theirs, .channels = rig->channels, .ram = &rig->to,
		.received = &rig->received, .codec = rig->codec, .checksum = rig->checksum,
	};
	unsigned int i;

	assert_int_equal(ferry_multifd_recv_create(&params, &rig->recv, &rig->err), 0);
	for (i = 0; i < rig->channels; i++)
		rig->theirs[i] = -1;
}

static void free_rig(struct rig *rig)
{
	unsigned int i;

	ferry_multifd_send_free(rig->send);
	ferry_multifd_recv_free(rig->recv);
	for (i = 0; i < rig->channels; i++) {
		ferry_io_close(&rig->ours[i]);
		ferry_io_close(&rig->theirs[i]);
	}
	ferry_bitmap_free(&rig->received);
	ferry_ram_free(&rig->from);
	ferry_ram_free(&rig->to);
	free(rig);
}

static off_t page_off(unsigned int block, uint64_t page)
{
	return (off_t)((block_off_pages[block] + page) * FERRY_PAGE_SIZE);
}

/* A page whose every word tells what it is; version 0 is a page of zeros. */
static void make_page(uint64_t *words, unsigned int block, uint64_t page, uint64_t version)
{
	unsigned int i;

	for (i = 0; i < FERRY_PAGE_SIZE / sizeof(*words); i++)
		words[i] = version ? version << 40 | (uint64_t)block << 32 | page << 10 | i : 0;
}

static void write_page(struct rig *rig, unsigned int block, uint64_t page, uint64_t version)
{
	uint64_t words[FERRY_PAGE_SIZE / 8];

	make_page(words, block, page, version);
	assert_int_equal(ferry_io_pwrite(rig->from.blocks[block].fd, words, sizeof(words),
					 page_off(block, page)), 0);
}

static void read_page(const struct ferry_ram *ram, unsigned int block, uint64_t page, void *out)
{
	assert_int_equal(ferry_io_pread(ram->blocks[block].fd, out, FERRY_PAGE_SIZE,
					page_off(block, page)), 0);
}

static void check_page(struct rig *rig, unsigned int block, uint64_t page, uint64_t version)
{
	uint64_t want[FERRY_PAGE_SIZE / 8], got[FERRY_PAGE_SIZE / 8];

	make_page(want, block, page, version);
	read_page(&rig->to, block, page, got);
	if (memcmp(want, got, sizeof(want)))
		fail_msg("block %u page %llu is not version %llu", block,
			 (unsigned long long)page, (unsigned long long)version);
}

static void check_equal(struct rig *rig)
{
	uint8_t a[FERRY_PAGE_SIZE], b[FERRY_PAGE_SIZE];
	unsigned int i;
	uint64_t p;

	for (i = 0; i < BLOCKS; i++) {
		for (p = 0; p < block_pages[i]; p++) {
			read_page(&rig->from, i, p, a);
			read_page(&rig->to, i, p, b);
			if (memcmp(a, b, sizeof(a)))
				fail_msg("block %u page %llu differs", i, (unsigned long long)p);
		}
	}
}

static uint64_t allocated_pages(const struct ferry_ram *ram)
{
	uint64_t pages = 0;
	unsigned int i;
	struct stat st;

	for (i = 0; i < ram->count; i++) {
		assert_int_equal(fstat(ram->blocks[i].fd, &st), 0);
		pages += (uint64_t)st.st_blocks * 512 / FERRY_PAGE_SIZE;
	}
	return pages;
}

static void queue(struct rig *rig, unsigned int block, uint64_t first, uint64_t pages, bool zero)
{
	if (ferry_multifd_send_queue(rig->send, block, first, pages, zero, &rig->err))
		fail_msg("%s", rig->err.text);
}

static void finish_round(struct rig *rig, uint32_t round)
{
	if (ferry_multifd_send_sync(rig->send, round, &rig->err))
		fail_msg("sync: %s", rig->err.text);
	if (ferry_multifd_recv_wait(rig->recv, round, soon(), &rig->err))
		fail_msg("wait: %s", rig->err.text);
	assert_int_equal(ferry_multifd_send_pending(rig->send), 0);
}

/* Dense, scattered, and a written page of zeros. Return: pages with data. */
static uint64_t fill(struct rig *rig)
{
	uint64_t p, pages = 0;

	for (p = 100; p < 900; p++, pages++)
		write_page(rig, 0, p, 1);
	write_page(rig, 0, 1282, 1);
	for (p = 0; p < block_pages[1]; p += 7, pages++)
		write_page(rig, 1, p, 1);
	write_page(rig, 2, 0, 1);
	write_page(rig, 0, 1000, 0);
	return pages + 2;
}

static void check_move(unsigned int channels, bool tcp)
{
	struct rig *rig = make_rig(channels, tcp);
	struct ferry_multifd_send_stats sent;
	struct ferry_multifd_recv_stats got;
	uint64_t data = fill(rig), all = ferry_ram_pages(&rig->from);
	unsigned int i;

	start_recv(rig);
	start_send(rig, NULL, NULL);
	for (i = 0; i < BLOCKS; i++)
		queue(rig, i, 0, block_pages[i], false);
	finish_round(rig, 1);
	check_equal(rig);
	ferry_multifd_send_stats(rig->send, &sent);
	ferry_multifd_recv_stats(rig->recv, &got);
	assert_int_equal(sent.normal_pages, data);
	assert_int_equal(sent.zero_pages, all - data);
	assert_int_equal(got.normal_pages, data);
	assert_int_equal(got.zero_pages, all - data);
	assert_int_equal(sent.sent_bytes, got.received_bytes);
	assert_true(sent.sent_bytes > data * FERRY_PAGE_SIZE);
	assert_true(sent.sent_bytes < (data + 16) * FERRY_PAGE_SIZE);
	assert_int_equal(ferry_bitmap_count(&rig->received), data);
	/* Holes stayed holes, and nothing was allocated at the source by looking. */
	assert_int_equal(allocated_pages(&rig->to), data);
	assert_int_equal(allocated_pages(&rig->from), data + 1);
	free_rig(rig);
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
	struct rig *rig = make_rig(2, false);
	uint64_t data = fill(rig), p;

	(void)state;
	start_recv(rig);
	start_send(rig, NULL, NULL);
	queue(rig, 0, 0, block_pages[0], false);
	queue(rig, 1, 0, block_pages[1], false);
	queue(rig, 2, 0, 1, false);
	finish_round(rig, 1);

	/* Found to be zero, known to be zero, and zero where nothing ever was. */
	for (p = 100; p < 200; p++)
		write_page(rig, 0, p, 0);
	queue(rig, 0, 50, 150, false);
	queue(rig, 0, 400, 100, true);
	queue(rig, 0, 905, 50, true);
	finish_round(rig, 2);
	for (p = 0; p < block_pages[0]; p++)
		check_page(rig, 0, p, (p >= 200 && p < 400) || (p >= 500 && p < 900) || p == 1282);
	assert_int_equal(allocated_pages(&rig->to), data - 200);
	assert_int_equal(ferry_bitmap_count(&rig->received), data - 200);
	assert_false(ferry_bitmap_test(&rig->received, 0, 150));
	assert_true(ferry_bitmap_test(&rig->received, 0, 200));
	free_rig(rig);
}

/* The same pages in every round; whatever channel takes them, the last version stays. */
static void many_rounds(void **state)
{
	struct rig *rig = make_rig(4, false);
	uint32_t round;
	uint64_t p;

	(void)state;
	start_recv(rig);
	start_send(rig, NULL, NULL);
	for (round = 1; round <= 40; round++) {
		for (p = 0; p < 96; p++) {
			write_page(rig, 0, p * 3, (round + p) % 5);
			queue(rig, 0, p * 3, 1, false);
		}
		assert_int_equal(ferry_multifd_send_sync(rig->send, round, &rig->err), 0);
	}
	assert_int_equal(ferry_multifd_recv_wait(rig->recv, 40, soon(), &rig->err), 0);
	for (p = 0; p < 96; p++)
		check_page(rig, 0, p * 3, (40 + p) % 5);
	free_rig(rig);
}

/* Put a packet of one page, or a SYNC (@pages 0), on the wire by hand. */
static void put_packet(struct rig *rig, unsigned int channel, uint64_t sequence, uint32_t round,
		       unsigned int pages, uint64_t version)
{
	struct ferry_wire_packet p = {
		.flags = pages ? 0 : FERRY_WIRE_PACKET_SYNC, .extents = pages ? 1 : 0,
		.round = round, .data_bytes = pages * 4096, .sequence = sequence,
	};
	struct ferry_wire_extent e = { .pages = pages, .first_page = 5, .data_bytes = pages * 4096 };
	uint8_t buf[FERRY_WIRE_PACKET_BYTES + FERRY_WIRE_EXTENT_BYTES];
	uint64_t words[FERRY_PAGE_SIZE / 8];
	int fd = rig->ours[channel];

	ferry_wire_packet_encode(&p, buf);
	ferry_wire_extent_encode(&e, buf + FERRY_WIRE_PACKET_BYTES);
	assert_int_equal(ferry_io_write(fd, buf, pages ? sizeof(buf) : FERRY_WIRE_PACKET_BYTES,
					soon()), 0);
	make_page(words, 0, 5, version);
	if (pages)
		assert_int_equal(ferry_io_write(fd, words, sizeof(words), soon()), 0);
}

/* Channel 1 is late with the old copy of a page that channel 0 has a new one of already. */
static void slow_channel(void **state)
{
	struct rig *rig = make_rig(2, false);

	(void)state;
	start_recv(rig);
	put_packet(rig, 0, 0, 1, 0, 0);
	put_packet(rig, 0, 1, 2, 1, 2);
	put_packet(rig, 0, 2, 2, 0, 0);
	assert_int_equal(ferry_multifd_recv_wait(rig->recv, 1, ferry_clock_in_ms(100), &rig->err),
			 -ETIMEDOUT);
	assert_non_null(strstr(rig->err.text, "1 of 2"));
	check_page(rig, 0, 5, 0); /* the new copy waits at the barrier */
	put_packet(rig, 1, 0, 1, 1, 1);
	put_packet(rig, 1, 1, 1, 0, 0);
	assert_int_equal(ferry_multifd_recv_wait(rig->recv, 1, soon(), &rig->err), 0);
	put_packet(rig, 1, 2, 2, 0, 0);
	assert_int_equal(ferry_multifd_recv_wait(rig->recv, 2, soon(), &rig->err), 0);
	check_page(rig, 0, 5, 2);
	free_rig(rig);
}

static void rate_is_kept(void **state)
{
	struct rig *rig = make_rig(2, false);
	uint64_t start, p, ns;

	(void)state;
	for (p = 0; p < 1280; p++) /* 5 MiB */
		write_page(rig, 0, p, 1);
	ferry_rate_set(&rig->rate, 10 << 20);
	start_recv(rig);
	start_send(rig, NULL, NULL);
	start = ferry_clock_ns();
	queue(rig, 0, 0, 1280, false);
	finish_round(rig, 1);
	ns = ferry_clock_ns() - start;
	/* 500 ms, less the last packet of each channel and 20 ms of credit, more when busy. */
	assert_in_range(ns, MS(380), MS(3000));
	check_equal(rig);

	/* So slow that it would take minutes; then the limit is lifted. */
	ferry_rate_set(&rig->rate, 32 << 10);
	start = ferry_clock_ns();
	queue(rig, 0, 0, 1280, false);
	while (ferry_multifd_send_pending(rig->send) == 1280)
		ferry_clock_sleep_ns(FERRY_NS_PER_MS);
	ferry_rate_set(&rig->rate, 0);
	finish_round(rig, 2);
	assert_true(ferry_clock_ns() - start < 10 * FERRY_NS_PER_S);
	free_rig(rig);
}

static void abort_while_waiting_for_rate(void **state)
{
	struct rig *rig = make_rig(2, false);
	uint64_t start;

	(void)state;
	fill(rig);
	ferry_rate_set(&rig->rate, 1);
	start_recv(rig);
	start_send(rig, NULL, NULL);
	queue(rig, 0, 100, 800, false);
	while (ferry_multifd_send_pending(rig->send) == 800)
		ferry_clock_sleep_ns(FERRY_NS_PER_MS);
	start = ferry_clock_ns();
	ferry_multifd_send_abort(rig->send);
	assert_int_equal(ferry_multifd_send_sync(rig->send, 1, &rig->err), -ECANCELED);
	assert_int_equal(ferry_multifd_send_queue(rig->send, 0, 0, 1, false, &rig->err),
			 -ECANCELED);
	free_rig(rig);
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

/* Nobody reads at the other end: sockets and ring fill up, then abort. */
static void abort_unblocks_sender(void **state)
{
	struct rig *rig = make_rig(2, false);
	uint64_t start = ferry_clock_ns();
	pthread_t thread;
	uint64_t p;
	int r = 0;

	(void)state;
	fill(rig);
	start_send(rig, NULL, NULL);
	assert_int_equal(pthread_create(&thread, NULL, abort_soon, rig), 0);
	for (p = 0; !r; p += 2) /* apart, so that runs do not merge */
		r = ferry_multifd_send_queue(rig->send, 0, 100 + p % 800, 1, false, &rig->err);
	assert_int_equal(r, -ECANCELED);
	pthread_join(thread, NULL);
	assert_int_equal(ferry_multifd_send_sync(rig->send, 1, &rig->err), -ECANCELED);
	free_rig(rig);
	assert_true(ferry_clock_ns() - start < 5 * FERRY_NS_PER_S);
}

static void abort_unblocks_receiver(void **state)
{
	struct rig *rig = make_rig(4, false);
	uint64_t start = ferry_clock_ns();
	pthread_t thread;

	(void)state;
	start_recv(rig);
	put_packet(rig, 0, 0, 1, 0, 0); /* one of them waits at the barrier */
	assert_int_equal(pthread_create(&thread, NULL, abort_soon, rig), 0);
	assert_int_equal(ferry_multifd_recv_wait(rig->recv, 1, FERRY_CLOCK_NEVER, &rig->err),
			 -ECANCELED);
	pthread_join(thread, NULL);
	free_rig(rig);
	assert_true(ferry_clock_ns() - start < 5 * FERRY_NS_PER_S);
}

static void expect_error(struct rig *rig, int r, const char *says)
{
	assert_int_equal(rig->err.errnum, -r);
	if (!strstr(rig->err.text, says))
		fail_msg("'%s' is not in '%s'", says, rig->err.text);
}

static void dead_destination(void **state)
{
	bool tcp = *state != NULL;
	struct rig *rig = make_rig(2, tcp);
	int r = 0;

	fill(rig);
	start_send(rig, NULL, NULL);
	ferry_io_close(&rig->theirs[1]);
	while (!r) /* until the other channel's socket and the ring are full, at the latest */
		r = ferry_multifd_send_queue(rig->send, 0, 100, 700, false, &rig->err);
	assert_true(r == -EPIPE || r == -ECONNRESET);
	expect_error(rig, r, "multifd channel 1: connection lost: ");
	assert_int_equal(ferry_multifd_send_sync(rig->send, 1, &rig->err), r);
	expect_error(rig, r, "multifd channel 1: connection lost: ");
	free_rig(rig);
}

static void dead_source(void **state)
{
	struct rig *rig = make_rig(3, false);
	int r;

	(void)state;
	start_recv(rig);
	put_packet(rig, 0, 0, 1, 0, 0);
	put_packet(rig, 1, 0, 1, 0, 0);
	ferry_io_close(&rig->ours[2]);
	r = ferry_multifd_recv_wait(rig->recv, 1, soon(), &rig->err);
	assert_int_equal(r, -EPIPE);
	expect_error(rig, r, "multifd channel 2: connection lost: the source closed it");
	free_rig(rig);
}

/* A source that is done and goes: the rounds it finished stay finished. */
static void source_goes_after_round(void **state)
{
	struct rig *rig = make_rig(2, true);
	int r;

	(void)state;
	fill(rig);
	start_recv(rig);
	start_send(rig, NULL, NULL);
	queue(rig, 0, 0, block_pages[0], false);
	assert_int_equal(ferry_multifd_send_sync(rig->send, 1, &rig->err), 0);
	ferry_multifd_send_free(rig->send);
	rig->send = NULL;
	assert_int_equal(ferry_multifd_recv_wait(rig->recv, 1, soon(), &rig->err), 0);
	check_page(rig, 0, 500, 1);
	r = ferry_multifd_recv_wait(rig->recv, 2, soon(), &rig->err);
	assert_int_equal(r, -EPIPE);
	expect_error(rig, r, "connection lost: ");
	assert_int_equal(ferry_multifd_recv_wait(rig->recv, 1, soon(), &rig->err), 0);
	free_rig(rig);
}

/* One packet of up to two extents, sent to channel 0 of two; both must end. */
struct bad {
	const char *says;
	int want;
	struct ferry_wire_packet packet;
	struct ferry_wire_extent extents[2];
	uint32_t magic_error;
	size_t cut; /* send only so many bytes, then close; 0: all, and stay */
};

#define ZERO_EXTENT(b, first, n) \
	{ .block = (b), .kind = FERRY_WIRE_EXTENT_ZERO, .pages = (n), .first_page = (first) }

static const struct bad bads[] = {
	{ "makes no sense", -EPROTO, { .flags = 1, .round = 1 }, { { 0 } }, 1, 0 },
	{ "makes no sense", -EPROTO, { .flags = 4, .round = 1 }, { { 0 } }, 0, 0 },
	{ "makes no sense", -EPROTO, { .round = 1 }, { { 0 } }, 0, 0 },
	{ "out of bounds", -EMSGSIZE, { .round = 1, .extents = 513 }, { { 0 } }, 0, 0 },
	{ "sequence number", -EPROTO, { .flags = 1, .round = 1, .sequence = 1 }, { { 0 } }, 0, 0 },
	{ "another round", -EPROTO, { .flags = 1, .round = 2 }, { { 0 } }, 0, 0 },
	{ "another round", -EPROTO, { .extents = 1, .round = 0 }, { ZERO_EXTENT(0, 0, 1) }, 0, 0 },
	{ "an extent makes no sense", -EPROTO, { .extents = 1, .round = 1 },
	  { ZERO_EXTENT(0, 0, 0) }, 0, 0 },
	{ "outside of guest memory", -ERANGE, { .extents = 1, .round = 1 },
	  { ZERO_EXTENT(3, 0, 1) }, 0, 0 },
	{ "outside of guest memory", -ERANGE, { .extents = 1, .round = 1 },
	  { ZERO_EXTENT(1, 500, 16) }, 0, 0 },
	{ "outside of guest memory", -ERANGE, { .extents = 1, .round = 1 },
	  { ZERO_EXTENT(1, UINT64_MAX, 2) }, 0, 0 },
	{ "overlap", -EEXIST, { .extents = 2, .round = 1 },
	  { ZERO_EXTENT(1, 10, 10), ZERO_EXTENT(1, 5, 6) }, 0, 0 },
	{ "do not add up", -EPROTO, { .extents = 1, .round = 1, .data_bytes = 4096 },
	  { ZERO_EXTENT(0, 0, 1) }, 0, 0 },
	{ "inside packet 0 of round 1", -EPIPE, { .flags = 1, .round = 1 }, { { 0 } }, 0, 31 },
	{ "inside packet 0 of round 1", -EPIPE, { .extents = 2, .round = 1 },
	  { ZERO_EXTENT(0, 0, 1), ZERO_EXTENT(0, 1, 1) }, 0, 40 },
	{ "inside packet 0 of round 1", -EPIPE, { .extents = 1, .round = 1, .data_bytes = 4096 },
	  { { .pages = 1, .data_bytes = 4096 } }, 0, 56 },
	{ "inside packet 0 of round 1", -EPIPE, /* so many are not read into a buffer first */
	  { .extents = 1, .round = 1, .data_bytes = 131072 },
	  { { .pages = 32, .data_bytes = 131072 } }, 0, 56 },
};

static void garbage(void **state)
{
	uint8_t buf[FERRY_WIRE_PACKET_BYTES + 2 * FERRY_WIRE_EXTENT_BYTES];
	size_t i, len;

	(void)state;
	for (i = 0; i < sizeof(bads) / sizeof(bads[0]); i++) {
		const struct bad *b = &bads[i];
		struct rig *rig = make_rig(2, false);
		int r;

		start_recv(rig);
		ferry_wire_packet_encode(&b->packet, buf);
		buf[0] ^= (uint8_t)b->magic_error;
		ferry_wire_extent_encode(&b->extents[0], buf + 32);
		ferry_wire_extent_encode(&b->extents[1], buf + 56);
		len = 32 + (b->packet.extents < 2 ? b->packet.extents : 2) * 24u;
		assert_int_equal(ferry_io_write(rig->ours[0], buf, b->cut ? b->cut : len, soon()),
				 0);
		if (b->cut)
			ferry_io_close(&rig->ours[0]);
		r = ferry_multifd_recv_wait(rig->recv, 1, soon(), &rig->err);
		if (r != b->want)
			fail_msg("case %zu: %d %s", i, r, rig->err.text);
		expect_error(rig, r, b->says);
		expect_error(rig, r, "multifd channel 0: ");
		assert_int_equal(allocated_pages(&rig->to), 0);
		assert_int_equal(ferry_bitmap_count(&rig->received), 0);
		free_rig(rig);
	}
}

/* Memory that cannot be written, met on both ways into it. */
static void memory_refuses(void **state)
{
	unsigned int pages;

	(void)state;
	for (pages = 1; pages <= 64; pages += 63) {
		struct rig *rig = make_rig(1, false);
		int fd = memfd_create("ferry-sealed", MFD_CLOEXEC | MFD_ALLOW_SEALING);
		uint64_t p;
		int r;

		assert_int_equal(ftruncate(fd, (off_t)rig->to.blocks[0].size_bytes), 0);
		assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE), 0);
		close(rig->to.blocks[0].fd);
		rig->to.blocks[0].fd = fd;
		for (p = 0; p < pages; p++)
			write_page(rig, 0, p, 1);
		start_send(rig, NULL, NULL);
		start_recv(rig);
		queue(rig, 0, 0, pages, false);
		r = ferry_multifd_recv_wait(rig->recv, 1, soon(), &rig->err);
		assert_int_equal(r, -EPERM);
		expect_error(rig, r, "multifd channel 0: writing to memory block 'block0': Oper");
		assert_int_equal(ferry_bitmap_count(&rig->received), 0);
		free_rig(rig);
	}
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
		write_page(s->rig, 0, n % 256, n % 3);
	return NULL;
}

/* While the guest writes, what page_sent sees is still exactly what arrives. */
static void watched(void **state)
{
	struct rig *rig = make_rig(2, false);
	struct seen *seen = calloc(1, sizeof(*seen));
	struct scribbler s = { .rig = rig };
	uint8_t got[FERRY_PAGE_SIZE];
	pthread_t thread;
	uint32_t round;
	uint64_t p;

	(void)state;
	assert_non_null(seen);
	start_recv(rig);
	start_send(rig, remember, seen);
	queue(rig, 0, 0, 256, false);
	finish_round(rig, 1);
	for (p = 0; p < 256; p++)
		assert_int_equal(seen->calls[p], 0);
	ferry_multifd_send_watch(rig->send, true);
	assert_int_equal(pthread_create(&thread, NULL, scribble, &s), 0);
	for (round = 2; round < 12; round++) {
		queue(rig, 0, 0, 200, false);
		queue(rig, 0, 200, 56, round & 1);
		finish_round(rig, round);
		for (p = 0; p < 256; p++) {
			assert_int_equal(seen->calls[p], round - 1);
			read_page(&rig->to, 0, p, got);
			assert_memory_equal(got, seen->bytes[p], sizeof(got));
		}
	}
	__atomic_store_n(&s.stop, 1, __ATOMIC_RELAXED);
	pthread_join(thread, NULL);
	ferry_multifd_send_watch(rig->send, false);
	queue(rig, 0, 0, 256, false);
	finish_round(rig, 12);
	assert_int_equal(seen->calls[0], 11 - 1);
	free_rig(rig);
	free(seen);
}

static void fill_random(struct rig *rig, unsigned int block, uint64_t first, uint64_t pages)
{
	static uint64_t x = 88172645463325252ull;
	uint64_t words[FERRY_PAGE_SIZE / 8], p;
	unsigned int i;

	for (p = first; p < first + pages; p++) {
		for (i = 0; i < FERRY_PAGE_SIZE / 8; i++) {
			x ^= x << 13;
			x ^= x >> 7;
			x ^= x << 17;
			words[i] = x;
		}
		assert_int_equal(ferry_io_pwrite(rig->from.blocks[block].fd, words, sizeof(words),
						 page_off(block, p)), 0);
	}
}

/* What is packed arrives as it was, takes less of the line, and pages count as before. */
static void check_packed(uint8_t codec, bool checksum, unsigned int channels)
{
	struct rig *rig = make_rig(channels, false);
	uint64_t data = fill(rig), all = ferry_ram_pages(&rig->from);
	struct ferry_multifd_send_stats sent, then;
	struct ferry_multifd_recv_stats got;
	unsigned int i;

	rig->codec = codec;
	rig->checksum = checksum;
	start_recv(rig);
	start_send(rig, NULL, NULL);
	for (i = 0; i < BLOCKS; i++)
		queue(rig, i, 0, block_pages[i], false);
	finish_round(rig, 1);
	check_equal(rig);
	ferry_multifd_send_stats(rig->send, &sent);
	ferry_multifd_recv_stats(rig->recv, &got);
	assert_int_equal(sent.normal_pages, data);
	assert_int_equal(sent.zero_pages, all - data);
	assert_int_equal(got.normal_pages, data);
	assert_int_equal(got.received_bytes, sent.sent_bytes);
	assert_int_equal(allocated_pages(&rig->to), data);
	if (codec)
		assert_true(sent.sent_bytes < data * FERRY_PAGE_SIZE * 2 / 3);

	/* Random bytes are not made larger than their headers make them. */
	fill_random(rig, 0, 0, 600);
	queue(rig, 0, 0, 600, false);
	queue(rig, 0, 700, 50, true);
	finish_round(rig, 2);
	for (i = 700; i < 750; i++)
		write_page(rig, 0, i, 0);
	check_equal(rig);
	ferry_multifd_send_stats(rig->send, &then);
	assert_in_range(then.sent_bytes - sent.sent_bytes, 600 * FERRY_PAGE_SIZE,
			604 * FERRY_PAGE_SIZE);
	free_rig(rig);
}

static void packed(void **state)
{
	unsigned int codec, checksum;

	(void)state;
	for (codec = 0; codec < FERRY_WIRE_CODEC_COUNT; codec++)
		for (checksum = 0; checksum < 2; checksum++)
			check_packed((uint8_t)codec, checksum, 1 + codec);
}

/* The rate limit is one of the line: what packs to a tenth goes ten times as fast. */
static void rate_counts_what_is_on_the_wire(void **state)
{
	struct rig *rig = make_rig(2, false);
	uint64_t start, p;

	(void)state;
	rig->codec = FERRY_WIRE_CODEC_ZSTD;
	for (p = 0; p < 1280; p++) /* 5 MiB of one byte */
		assert_int_equal(fallocate(rig->from.blocks[0].fd, 0, page_off(0, p), 4096), 0);
	for (p = 0; p < 1280; p++)
		assert_int_equal(pwrite(rig->from.blocks[0].fd, "x", 1, page_off(0, p)), 1);
	ferry_rate_set(&rig->rate, 1 << 20);
	start_recv(rig);
	start_send(rig, NULL, NULL);
	start = ferry_clock_ns();
	queue(rig, 0, 0, 1280, false);
	finish_round(rig, 1);
	/* Raw it would be 5 s. */
	assert_true(ferry_clock_ns() - start < MS(2500));
	check_equal(rig);
	free_rig(rig);
}

/* Packets of one extent, pages 5 and 6 of block 0, with one thing wrong. */
struct wrong {
	const char *name, *says;
	int want;
	uint8_t agreed, codec;	 /* of the migration, of the extent */
	bool agreed_sum;
	uint32_t xor_sum;	 /* into a right checksum; 1 with none: leave it out */
	int flip;		 /* a byte of the data, -1 none */
	uint64_t claim_page;	 /* instead of 5 */
};

static const struct wrong wrongs[] = {
	{ "codec", "compressed in a way that was not agreed on", -EPROTO, 0,
	  FERRY_WIRE_CODEC_ZSTD, false, 0, -1, 5 },
	{ "other codec", "compressed in a way that was not agreed on", -EPROTO,
	  FERRY_WIRE_CODEC_ZSTD, FERRY_WIRE_CODEC_LZ4, false, 0, -1, 5 },
	{ "sum not agreed on", "an extent has a checksum, which was not agreed on", -EPROTO, 0, 0,
	  false, 2, -1, 5 },
	{ "no sum", "an extent has no checksum", -EPROTO, 0, 0, true, 1, -1, 5 },
	{ "wrong sum", "block 'block0', pages 5 to 6, in packet 0 of round 1: its checksum is wrong",
	  -EBADMSG, 0, 0, true, 0x100, -1, 5 },
	{ "wrong byte", "block 'block0', pages 5 to 6, in packet 0 of round 1: its checksum is wrong",
	  -EBADMSG, 0, 0, true, 0, 4097, 5 },
	{ "wrong place", "block 'block0', pages 9 to 10, in packet 0 of round 1: its checksum is "
	  "wrong", -EBADMSG, 0, 0, true, 0, -1, 9 },
	{ "damaged zstd", "block 'block0', pages 5 to 6, in packet 0 of round 1: its compressed data "
	  "is damaged", -EBADMSG, FERRY_WIRE_CODEC_ZSTD, FERRY_WIRE_CODEC_ZSTD, false, 0, 0, 5 },
	{ "damaged lz4", "block 'block0', pages 5 to 6, in packet 0 of round 1: its compressed data "
	  "is damaged", -EBADMSG, FERRY_WIRE_CODEC_LZ4, FERRY_WIRE_CODEC_LZ4, false, 0, 0, 5 },
};

static void put_wrong(struct rig *rig, const struct wrong *w)
{
	struct ferry_wire_extent e = { .pages = 2, .first_page = w->claim_page, .codec = w->codec,
				       .data_bytes = 8192 };
	uint8_t buf[FERRY_WIRE_PACKET_BYTES + FERRY_WIRE_EXTENT_BYTES], out[8192];
	struct ferry_wire_packet p = { .extents = 1, .round = 1 };
	struct ferry_compress *c;
	uint64_t pages[1024];

	make_page(pages, 0, 5, 1);
	make_page(pages + 512, 0, 6, 1);
	memcpy(out, pages, sizeof(out));
	if (w->codec) {
		assert_int_equal(ferry_compress_create(w->codec, FERRY_COMPRESS_PACK, &c), 0);
		e.data_bytes = (uint32_t)ferry_compress_pack(c, pages, sizeof(pages), out);
		assert_true(e.data_bytes);
		ferry_compress_free(c);
	}
	if (w->agreed_sum || w->xor_sum)
		e.checksum = ferry_hash_extent(0, 5, 2, pages) ^ w->xor_sum;
	if (w->xor_sum == 1)
		e.checksum = 0;
	if (w->flip >= 0)
		out[w->flip] ^= 0x40;
	p.data_bytes = e.data_bytes;
	ferry_wire_packet_encode(&p, buf);
	ferry_wire_extent_encode(&e, buf + FERRY_WIRE_PACKET_BYTES);
	assert_int_equal(ferry_io_write(rig->ours[0], buf, sizeof(buf), soon()), 0);
	/* It may have hung up over the head alone. */
	ferry_io_write(rig->ours[0], out, e.data_bytes, soon());
}

static void damaged(void **state)
{
	size_t i;

	(void)state;
	for (i = 0; i < sizeof(wrongs) / sizeof(wrongs[0]); i++) {
		const struct wrong *w = &wrongs[i];
		struct rig *rig = make_rig(2, false);
		int r;

		rig->codec = w->agreed;
		rig->checksum = w->agreed_sum;
		start_recv(rig);
		put_wrong(rig, w);
		r = ferry_multifd_recv_wait(rig->recv, 1, soon(), &rig->err);
		if (r != w->want)
			fail_msg("%s: %d %s", w->name, r, rig->err.text);
		expect_error(rig, r, w->says);
		/* Not one byte of it was used. */
		assert_int_equal(allocated_pages(&rig->to), 0);
		assert_int_equal(ferry_bitmap_count(&rig->received), 0);
		free_rig(rig);
	}
}

/* The same packets with nothing wrong: it is what is wrong that makes them fail. */
static void undamaged(void **state)
{
	unsigned int codec, sum;

	(void)state;
	for (codec = 0; codec < FERRY_WIRE_CODEC_COUNT; codec++) {
		for (sum = 0; sum < 2; sum++) {
			struct wrong w = { "none", "", 0, (uint8_t)codec, (uint8_t)codec, sum, 0,
					   -1, 5 };
			struct rig *rig = make_rig(1, false);

			rig->codec = w.agreed;
			rig->checksum = w.agreed_sum;
			start_recv(rig);
			put_wrong(rig, &w);
			put_packet(rig, 0, 1, 1, 0, 0);
			if (ferry_multifd_recv_wait(rig->recv, 1, soon(), &rig->err))
				fail_msg("%s", rig->err.text);
			check_page(rig, 0, 5, 1);
			check_page(rig, 0, 6, 1);
			free_rig(rig);
		}
	}
}

static void callers_mistakes(void **state)
{
	struct rig *rig = make_rig(1, false);
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
	start_send(rig, NULL, NULL);
	assert_int_equal(ferry_multifd_send_sync(rig->send, 2, &rig->err), -EINVAL);
	assert_int_equal(ferry_multifd_send_queue(rig->send, 3, 0, 1, false, NULL), -EINVAL);
	assert_int_equal(ferry_multifd_send_queue(rig->send, 2, 0, 2, false, NULL), -EINVAL);
	assert_int_equal(ferry_multifd_send_queue(rig->send, 2, 1, UINT64_MAX, true, NULL), -EINVAL);
	assert_int_equal(ferry_multifd_send_queue(rig->send, 2, 1, 0, false, NULL), 0);
	/* A VMM that shrinks its memory file under us is an error, not a SIGBUS. */
	assert_int_equal(ftruncate(rig->from.blocks[0].fd, 0), 0);
	queue(rig, 0, 0, 1, false);
	assert_int_equal(ferry_multifd_send_sync(rig->send, 1, &rig->err), -EPIPE);
	expect_error(rig, -EPIPE, "multifd channel 0: reading the guest's memory file");
	ferry_multifd_send_free(NULL);
	ferry_multifd_recv_free(NULL);
	free_rig(rig);
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
		cmocka_unit_test(garbage),
		cmocka_unit_test(memory_refuses),
		cmocka_unit_test(watched),
		cmocka_unit_test(packed),
		cmocka_unit_test(rate_counts_what_is_on_the_wire),
		cmocka_unit_test(damaged),
		cmocka_unit_test(undamaged),
		cmocka_unit_test(callers_mistakes),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
