// SPDX-License-Identifier: GPL-2.0-or-later
/* See multifd_rig.h. */
#include "multifd_rig.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>

#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/io.h"
#include "wire/wire.h"
#include "xport/sock.h"

#define SOON_MS 20000

const uint64_t rig_block_pages[RIG_BLOCKS] = { 1283, 515, 1 };
static const uint64_t block_off_pages[RIG_BLOCKS] = { 0, 3, 0 };

uint64_t rig_soon(void)
{
	return ferry_clock_in_ms(SOON_MS);
}

static void make_ram(struct ferry_ram *ram)
{
	unsigned int i;

	ferry_ram_init(ram);
	for (i = 0; i < RIG_BLOCKS; i++) {
		struct ferry_ram_block b = {
			.size_bytes = rig_block_pages[i] * FERRY_PAGE_SIZE,
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
		rig->ours[i] = ferry_sock_connect(&uri, rig_soon(), NULL, NULL);
		rig->theirs[i] = ferry_sock_accept(lfd, rig_soon());
		assert_true(rig->ours[i] >= 0 && rig->theirs[i] >= 0);
	}
	close(lfd);
}

struct rig *rig_make(unsigned int channels, bool tcp)
{
	struct rig *rig = calloc(1, sizeof(*rig));
	unsigned int i;

	assert_non_null(rig);
	rig->channels = channels;
	make_ram(&rig->from);
	make_ram(&rig->to);
	assert_int_equal(ferry_bitmap_init(&rig->received, &rig->to), 0);
	ferry_rate_init(&rig->rate, 0);
	ferry_multifd_turns_init(&rig->turns);
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

void rig_start_send(struct rig *rig, void (*page_sent)(void *, unsigned int, uint64_t,
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

void rig_start_recv(struct rig *rig)
{
	struct ferry_multifd_recv_params params = {
		.fds = rig->theirs, .channels = rig->channels, .ram = &rig->to,
		.received = &rig->received, .turns = &rig->turns, .codec = rig->codec,
		.checksum = rig->checksum,
	};
	unsigned int i;

	assert_int_equal(ferry_multifd_recv_create(&params, &rig->recv, &rig->err), 0);
	for (i = 0; i < rig->channels; i++)
		rig->theirs[i] = -1;
}

void rig_free(struct rig *rig)
{
	unsigned int i;

	ferry_multifd_send_free(rig->send);
	ferry_multifd_recv_free(rig->recv);
	for (i = 0; i < rig->channels; i++) {
		ferry_io_close(&rig->ours[i]);
		ferry_io_close(&rig->theirs[i]);
	}
	ferry_multifd_turns_free(&rig->turns);
	ferry_bitmap_free(&rig->received);
	ferry_ram_free(&rig->from);
	ferry_ram_free(&rig->to);
	free(rig);
}

off_t rig_page_off(unsigned int block, uint64_t page)
{
	return (off_t)((block_off_pages[block] + page) * FERRY_PAGE_SIZE);
}

void rig_make_page(uint64_t *words, unsigned int block, uint64_t page, uint64_t version)
{
	unsigned int i;

	for (i = 0; i < FERRY_PAGE_SIZE / sizeof(*words); i++)
		words[i] = version ? version << 40 | (uint64_t)block << 32 | page << 10 | i : 0;
}

void rig_write_page(struct rig *rig, unsigned int block, uint64_t page, uint64_t version)
{
	uint64_t words[FERRY_PAGE_SIZE / 8];

	rig_make_page(words, block, page, version);
	assert_int_equal(ferry_io_pwrite(rig->from.blocks[block].fd, words, sizeof(words),
					 rig_page_off(block, page)), 0);
}

void rig_read_page(const struct ferry_ram *ram, unsigned int block, uint64_t page, void *out)
{
	assert_int_equal(ferry_io_pread(ram->blocks[block].fd, out, FERRY_PAGE_SIZE,
					rig_page_off(block, page)), 0);
}

void rig_check_page(struct rig *rig, unsigned int block, uint64_t page, uint64_t version)
{
	uint64_t want[FERRY_PAGE_SIZE / 8], got[FERRY_PAGE_SIZE / 8];

	rig_make_page(want, block, page, version);
	rig_read_page(&rig->to, block, page, got);
	if (memcmp(want, got, sizeof(want)))
		fail_msg("block %u page %llu is not version %llu", block,
			 (unsigned long long)page, (unsigned long long)version);
}

void rig_check_equal(struct rig *rig)
{
	uint8_t a[FERRY_PAGE_SIZE], b[FERRY_PAGE_SIZE];
	unsigned int i;
	uint64_t p;

	for (i = 0; i < RIG_BLOCKS; i++) {
		for (p = 0; p < rig_block_pages[i]; p++) {
			rig_read_page(&rig->from, i, p, a);
			rig_read_page(&rig->to, i, p, b);
			if (memcmp(a, b, sizeof(a)))
				fail_msg("block %u page %llu differs", i, (unsigned long long)p);
		}
	}
}

uint64_t rig_allocated_pages(const struct ferry_ram *ram)
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

void rig_queue(struct rig *rig, unsigned int block, uint64_t first, uint64_t pages, bool zero)
{
	if (ferry_multifd_send_queue(rig->send, block, first, pages, zero, &rig->err))
		fail_msg("%s", rig->err.text);
}

void rig_finish_round(struct rig *rig, uint32_t round)
{
	if (ferry_multifd_send_sync(rig->send, round, &rig->err))
		fail_msg("sync: %s", rig->err.text);
	if (ferry_multifd_recv_wait(rig->recv, round, rig_soon(), &rig->err))
		fail_msg("wait: %s", rig->err.text);
	assert_int_equal(ferry_multifd_send_pending(rig->send), 0);
}

uint64_t rig_fill(struct rig *rig)
{
	uint64_t p, pages = 0;

	for (p = 100; p < 900; p++, pages++)
		rig_write_page(rig, 0, p, 1);
	rig_write_page(rig, 0, 1282, 1);
	for (p = 0; p < rig_block_pages[1]; p += 7, pages++)
		rig_write_page(rig, 1, p, 1);
	rig_write_page(rig, 2, 0, 1);
	rig_write_page(rig, 0, 1000, 0);
	return pages + 2;
}

void rig_move_all(struct rig *rig, struct ferry_multifd_send_stats *sent,
		  struct ferry_multifd_recv_stats *got)
{
	unsigned int i;

	rig_start_recv(rig);
	rig_start_send(rig, NULL, NULL);
	for (i = 0; i < RIG_BLOCKS; i++)
		rig_queue(rig, i, 0, rig_block_pages[i], false);
	rig_finish_round(rig, 1);
	rig_check_equal(rig);
	ferry_multifd_send_stats(rig->send, sent);
	ferry_multifd_recv_stats(rig->recv, got);
}

void rig_put_packet(struct rig *rig, unsigned int channel, uint64_t sequence, uint32_t round,
		       unsigned int pages, uint64_t version)
{
	struct ferry_wire_packet p = {
		.flags = pages ? 0 : FERRY_WIRE_PACKET_SYNC, .extents = pages ? 1 : 0,
		.round = round, .data_bytes = pages * 4096, .sequence = sequence,
	};
	struct ferry_wire_extent e = { .pages = pages, .first_page = 5,
				       .data_bytes = pages * 4096 };
	uint8_t buf[FERRY_WIRE_PACKET_BYTES + FERRY_WIRE_EXTENT_BYTES];
	uint64_t words[FERRY_PAGE_SIZE / 8];
	int fd = rig->ours[channel];

	ferry_wire_packet_encode(&p, buf);
	ferry_wire_extent_encode(&e, buf + FERRY_WIRE_PACKET_BYTES);
	assert_int_equal(ferry_io_write(fd, buf, pages ? sizeof(buf) : FERRY_WIRE_PACKET_BYTES,
					rig_soon()), 0);
	rig_make_page(words, 0, 5, version);
	if (pages)
		assert_int_equal(ferry_io_write(fd, words, sizeof(words), rig_soon()), 0);
}

void rig_expect_error(struct rig *rig, int r, const char *says)
{
	assert_int_equal(rig->err.errnum, -r);
	if (!strstr(rig->err.text, says))
		fail_msg("'%s' is not in '%s'", says, rig->err.text);
}
