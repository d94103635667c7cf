// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Writing a snapshot file and reading it back: RAM of many shapes arrives byte for byte, what
 * is zero stays a hole, later rounds win, and a file that is not finished leaves nothing.
 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/io.h"
#include "ram/sparse.h"
#include "store/reader.h"
#include "store/writer.h"

#define MIB (1ull << 20)
#define DEVICE "the state of devices"

static char folder[] = "/tmp/ferry-writer-XXXXXX";
static char path[64];
static bool direct, still;

static void ram_make(struct ferry_ram *ram, const uint64_t *sizes, unsigned int count)
{
	unsigned int i;

	ferry_ram_init(ram);
	for (i = 0; i < count; i++) {
		struct ferry_ram_block b = { .size_bytes = sizes[i], .page_size = 4096 };

		snprintf(b.name, sizeof(b.name), "block%u", i);
		b.fd = memfd_create(b.name, MFD_CLOEXEC);
		assert_true(b.fd >= 0);
		assert_int_equal(ftruncate(b.fd, (off_t)sizes[i]), 0);
		assert_int_equal(ferry_ram_add(ram, &b, NULL), 0);
	}
}

static void fill(struct ferry_ram *ram, unsigned int block, uint64_t page, uint64_t pages,
		 uint64_t seed)
{
	uint64_t words[512], i;

	for (; pages--; page++) {
		for (i = 0; i < 512; i++)
			words[i] = seed ? seed * 0x9e3779b97f4a7c15ull + (page << 9) + i + 1 : 0;
		assert_int_equal(ferry_io_pwrite(ram->blocks[block].fd, words, sizeof(words),
						 (off_t)(page * 4096)), 0);
	}
}

static void punch(struct ferry_ram *ram, unsigned int block, uint64_t page, uint64_t pages)
{
	assert_int_equal(fallocate(ram->blocks[block].fd,
				   FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)(page * 4096),
				   (off_t)(pages * 4096)), 0);
}

static struct ferry_store_writer *writer_make(const struct ferry_ram *ram, unsigned int channels,
					      bool partial)
{
	const struct ferry_store_writer_params params = {
		.path = path,
		.id = "test",
		.ram = ram,
		.channels = channels,
		.direct = direct,
		.still = still,
		.partial = partial,
		.kind = "qmp",
		.vmm = "a VMM",
		.uuid = { 1, 2, 3 },
	};
	struct ferry_store_writer *w;
	struct ferry_error err = { 0 };

	if (ferry_store_writer_create(&params, &w, &err))
		fail_msg("%s", err.text);
	return w;
}

static void queue_data(struct ferry_store_writer *w, const struct ferry_ram *ram)
{
	unsigned int i;

	for (i = 0; i < ram->count; i++) {
		uint64_t page = 0, pages, end = ferry_ram_block_pages(&ram->blocks[i]);

		while (ferry_sparse_next(&ram->blocks[i], &page, &pages, end) > 0) {
			assert_int_equal(ferry_store_writer_queue(w, i, page, pages, false, NULL), 0);
			page += pages;
		}
	}
}

static void finish(struct ferry_store_writer *w)
{
	const struct ferry_store_tail tail = {
		.device = (const uint8_t *)DEVICE,
		.device_bytes = sizeof(DEVICE),
	};
	struct ferry_error err = { 0 };

	if (ferry_store_writer_finish(w, &tail, &err))
		fail_msg("%s", err.text);
	ferry_store_writer_free(w);
}

static int take(void *ctx, unsigned int block, uint64_t extent, const struct ferry_store_set *set,
		const uint8_t *buf, struct ferry_error *err)
{
	struct ferry_ram *to = ctx;
	unsigned int first = 0, pages;

	(void)err;
	for (; (pages = ferry_store_set_run(set, &first)); first += pages)
		if (ferry_io_pwrite(to->blocks[block].fd, buf + first * 4096ul, pages * 4096ul,
				    (off_t)(extent * MIB + first * 4096ul)))
			return -EIO;
	return 0;
}

/* What the file gives is what @ram holds. Return: pages in the file. */
static uint64_t compare(const struct ferry_ram *ram)
{
	static uint8_t a[MIB], b[MIB];
	struct ferry_store_read_params params = { .threads = 3, .verify = true, .take = take };
	uint64_t sizes[FERRY_RAM_MAX_BLOCKS], pages;
	struct ferry_store_file f;
	struct ferry_error err = { 0 };
	struct ferry_ram got;
	unsigned int i;

	for (i = 0; i < ram->count; i++)
		sizes[i] = ram->blocks[i].size_bytes;
	ram_make(&got, sizes, ram->count);
	params.ctx = &got;
	if (ferry_store_open(&f, path, &err) || ferry_store_read_all(&f, &params, &err))
		fail_msg("%s", err.text);
	assert_true(f.pages_verified);
	assert_int_equal(f.commit.device_bytes, sizeof(DEVICE));
	assert_memory_equal(f.device, DEVICE, sizeof(DEVICE));
	for (i = 0; i < ram->count; i++) {
		uint64_t at = 0, end = sizes[i] / 4096, n, m, other = 0;

		/* Where neither holds data there is nothing to compare. */
		for (;; at += n, other = at) {
			uint64_t mine = at, theirs = other;
			int x = ferry_sparse_next(&ram->blocks[i], &mine, &n, end);
			int y = ferry_sparse_next(&got.blocks[i], &theirs, &m, end);

			if (!x && !y)
				break;
			at = !x || (y && theirs < mine) ? theirs : mine;
			n = end - at < 256 ? end - at : 256;
			memset(a, 0, sizeof(a));
			memset(b, 0, sizeof(b));
			assert_int_equal(ferry_io_pread(ram->blocks[i].fd, a, n * 4096,
							(off_t)(at * 4096)), 0);
			assert_int_equal(ferry_io_pread(got.blocks[i].fd, b, n * 4096,
							(off_t)(at * 4096)), 0);
			assert_memory_equal(a, b, n * 4096);
		}
	}
	pages = f.commit.pages;
	ferry_store_close(&f);
	ferry_ram_free(&got);
	return pages;
}

static uint64_t disk_bytes(void)
{
	struct stat st;

	assert_int_equal(stat(path, &st), 0);
	return (uint64_t)st.st_blocks * 512;
}

static uint64_t round_trip(struct ferry_ram *ram, unsigned int channels)
{
	struct ferry_store_writer *w = writer_make(ram, channels, false);
	uint64_t pages;

	queue_data(w, ram);
	finish(w);
	pages = compare(ram);
	ferry_ram_free(ram);
	return pages;
}

static void shapes(void **state)
{
	const uint64_t one[] = { 8 * MIB }, odd[] = { 3 * MIB + 4096, 4096, MIB - 4096, 260 * 4096 };
	struct ferry_ram ram;
	unsigned int i;

	(void)state;
	ram_make(&ram, one, 1); /* nothing at all */
	assert_int_equal(round_trip(&ram, 2), 0);
	assert_true(disk_bytes() < 128 << 10);

	ram_make(&ram, one, 1);
	fill(&ram, 0, 0, 2048, 1);
	assert_int_equal(round_trip(&ram, 1), 2048);

	ram_make(&ram, one, 1); /* every other page */
	for (i = 0; i < 2048; i += 2)
		fill(&ram, 0, i, 1, 2);
	assert_int_equal(round_trip(&ram, 3), 1024);
	assert_true(disk_bytes() < 5 * MIB);

	ram_make(&ram, one, 1); /* allocated, and zero */
	fill(&ram, 0, 0, 2048, 0);
	fill(&ram, 0, 777, 1, 3);
	assert_int_equal(round_trip(&ram, 4), 1);
	assert_true(disk_bytes() < 128 << 10);

	ram_make(&ram, odd, 4); /* several blocks, of no whole MiB */
	for (i = 0; i < 4; i++)
		fill(&ram, i, odd[i] / 4096 - 1, 1, i + 4);
	fill(&ram, 0, 100, 500, 9);
	assert_int_equal(round_trip(&ram, 2), 504);
}

static void four_gib(void **state)
{
	const uint64_t size = 4096 * MIB;
	struct ferry_ram ram;

	(void)state;
	ram_make(&ram, &size, 1);
	fill(&ram, 0, 0, 3, 1);
	fill(&ram, 0, 524288, 300, 2);
	fill(&ram, 0, 1048575, 1, 3);
	assert_int_equal(round_trip(&ram, 2), 304);
	assert_true(disk_bytes() < 2 * MIB);
}

/* Later rounds win; zero after bytes frees their place; the checksums follow. */
static void rounds(void **state)
{
	const uint64_t sizes[] = { 4 * MIB, 2 * MIB + 8192 };
	struct ferry_store_writer_stats stats;
	struct ferry_store_writer *w;
	struct ferry_ram ram;
	uint64_t full;

	(void)state;
	ram_make(&ram, sizes, 2);
	fill(&ram, 0, 0, 1024, 1);
	fill(&ram, 1, 0, 514, 2);
	w = writer_make(&ram, 3, false);
	queue_data(w, &ram);
	assert_int_equal(ferry_store_writer_drain(w, FERRY_CLOCK_NEVER, NULL), 0);
	assert_int_equal(ferry_store_writer_pending(w), 0);
	full = ferry_store_writer_bytes(w);

	fill(&ram, 0, 10, 5, 0); /* zeros in place of bytes */
	fill(&ram, 0, 300, 100, 7);
	punch(&ram, 1, 256, 258); /* a hole in their place */
	assert_int_equal(ferry_store_writer_queue(w, 0, 10, 5, false, NULL), 0);
	assert_int_equal(ferry_store_writer_queue(w, 0, 300, 100, false, NULL), 0);
	assert_int_equal(ferry_store_writer_queue(w, 1, 256, 258, true, NULL), 0);
	assert_int_equal(ferry_store_writer_drain(w, FERRY_CLOCK_NEVER, NULL), 0);
	assert_true(ferry_store_writer_bytes(w) <= full - 258 * 4096);

	fill(&ram, 1, 256, 1, 8); /* and bytes again */
	fill(&ram, 0, 12, 1, 9);
	assert_int_equal(ferry_store_writer_queue(w, 1, 256, 1, false, NULL), 0);
	assert_int_equal(ferry_store_writer_queue(w, 0, 12, 1, false, NULL), 0);
	ferry_store_writer_stats(w, &stats);
	finish(w);
	assert_int_equal(compare(&ram), 1024 - 4 + 256 + 1);
	assert_int_equal(stats.zero_pages, 5 + 258);
	ferry_ram_free(&ram);
}

/* Some pages only: those of zeros are there too, the others are not. */
static void partial(void **state)
{
	const uint64_t size = 2 * MIB;
	struct ferry_store_writer *w;
	struct ferry_store_file f;
	struct ferry_store_set set;
	struct ferry_ram ram;
	uint8_t *buf = malloc(MIB);

	(void)state;
	ram_make(&ram, &size, 1);
	fill(&ram, 0, 0, 300, 1);
	punch(&ram, 0, 20, 2);
	w = writer_make(&ram, 2, true);
	assert_int_equal(ferry_store_writer_queue(w, 0, 10, 11, false, NULL), 0);
	assert_int_equal(ferry_store_writer_queue(w, 0, 21, 1, true, NULL), 0);
	finish(w);
	assert_int_equal(ferry_store_open(&f, path, NULL), 0);
	assert_true(f.header.features & FERRY_STORE_FEATURE_PARTIAL);
	assert_int_equal(f.commit.pages, 12);
	ferry_store_pages(&f, 0, 0, &set);
	assert_int_equal(set.words[0], 0xfffull << 10);
	assert_int_equal(ferry_store_read(&f, 0, 0, true, buf, NULL), 0);
	assert_int_equal(buf[20 * 4096], 0);
	assert_int_equal(buf[21 * 4096 + 4095], 0);
	assert_int_not_equal(buf[19 * 4096], 0);
	ferry_store_close(&f);
	ferry_ram_free(&ram);
	free(buf);
}

static void past_the_cache(void **state)
{
	const uint64_t size = 4 * MIB;
	struct ferry_store_writer *w;
	struct ferry_ram ram;
	unsigned int i;

	ram_make(&ram, &size, 1);
	direct = true;
	for (i = 0; i < 1024; i += 3)
		fill(&ram, 0, i, 1, 1);
	fill(&ram, 0, 512, 256, 2);
	w = writer_make(&ram, 2, false);
	queue_data(w, &ram);
	assert_int_equal(ferry_store_writer_drain(w, FERRY_CLOCK_NEVER, NULL), 0);
	fill(&ram, 0, 512, 100, 0);
	fill(&ram, 0, 0, 9, 3);
	assert_int_equal(ferry_store_writer_queue(w, 0, 0, 9, false, NULL), 0);
	assert_int_equal(ferry_store_writer_queue(w, 0, 512, 100, false, NULL), 0);
	finish(w);
	compare(&ram);
	ferry_ram_free(&ram);
	rounds(state);
	direct = false;
}

static unsigned int names(void)
{
	char command[128];
	unsigned int n = 0;
	FILE *p;

	snprintf(command, sizeof(command), "ls -A %s | wc -l", folder);
	p = popen(command, "r");
	assert_int_equal(fscanf(p, "%u", &n), 1);
	pclose(p);
	return n;
}

/* Looked at through our mappings, the same comes out. */
static void through_mappings(void **state)
{
	const uint64_t odd[] = { 3 * MIB + 4096, 4096, MIB - 4096 };
	struct ferry_ram ram;
	unsigned int i;

	(void)state;
	still = true;
	ram_make(&ram, odd, 3);
	for (i = 0; i < 700; i += 3)
		fill(&ram, 0, i, 1 + i % 2, i % 5);
	fill(&ram, 2, 200, 55, 4);
	fill(&ram, 1, 0, 1, 0);
	assert_int_equal(ferry_ram_map(&ram, false, NULL), 0);
	assert_true(round_trip(&ram, 3) > 200);
	still = false;
}

static void through_mappings_past_the_cache(void **state)
{
	direct = true;
	through_mappings(state);
	direct = false;
}

/* Until it is finished there is nothing; then there is the file alone. */
static void nothing_is_left(void **state)
{
	const uint64_t size = MIB;
	struct ferry_store_writer *w;
	struct ferry_ram ram;

	(void)state;
	unlink(path);
	ram_make(&ram, &size, 1);
	fill(&ram, 0, 0, 256, 1);
	w = writer_make(&ram, 2, false);
	queue_data(w, &ram);
	ferry_store_writer_abort(w);
	assert_int_equal(ferry_store_writer_drain(w, FERRY_CLOCK_NEVER, NULL), -ECANCELED);
	ferry_store_writer_free(w);
	assert_int_equal(names(), 0);
	w = writer_make(&ram, 2, false);
	queue_data(w, &ram);
	finish(w);
	assert_int_equal(names(), 1);
	ferry_ram_free(&ram);
}

/* An older snapshot is replaced, nothing else is. */
static void existing(void **state)
{
	struct ferry_store_writer_params params = {
		.path = path, .id = "x", .channels = 1, .kind = "qmp", .vmm = "",
	};
	const uint64_t size = MIB;
	struct ferry_store_writer *w;
	struct ferry_error err = { 0 };
	struct ferry_ram ram;
	int fd;

	(void)state;
	ram_make(&ram, &size, 1);
	params.ram = &ram;
	round_trip(&ram, 1);
	ram_make(&ram, &size, 1);
	fill(&ram, 0, 1, 1, 5);
	w = writer_make(&ram, 1, false);
	queue_data(w, &ram);
	finish(w);
	assert_int_equal(compare(&ram), 1);

	fd = open(path, O_WRONLY | O_TRUNC);
	assert_int_equal(write(fd, "precious", 8), 8);
	close(fd);
	assert_int_equal(ferry_store_writer_create(&params, &w, &err), -EEXIST);
	assert_non_null(strstr(err.text, "is no snapshot of ferry's"));
	params.path = folder;
	assert_int_equal(ferry_store_writer_create(&params, &w, &err), -EEXIST);
	assert_non_null(strstr(err.text, "a folder"));
	params.path = "/nonexistent/file";
	assert_int_equal(ferry_store_writer_create(&params, &w, &err), -ENOENT);
	assert_non_null(strstr(err.text, "/nonexistent"));
	params.path = "/proc/self/file";
	assert_true(ferry_store_writer_create(&params, &w, &err) < 0);
	params.path = path;
	params.kind = "port:0123456789012345678901234567890123456789012345678901234567890123";
	assert_int_equal(ferry_store_writer_create(&params, &w, &err), -ENAMETOOLONG);
	ferry_ram_free(&ram);
	unlink(path);
}

static uint64_t never_pay(void *ctx, uint64_t bytes, uint64_t now_ns)
{
	(void)ctx;
	(void)now_ns;
	return bytes ? FERRY_NS_PER_S : 0;
}

/* Who waits for the rate limit can be stopped. */
static void abort_while_waiting(void **state)
{
	const uint64_t size = MIB;
	struct ferry_store_writer_params params = {
		.path = path, .id = "x", .channels = 2, .kind = "qmp", .vmm = "", .pay = never_pay,
	};
	struct ferry_store_writer *w;
	struct ferry_ram ram;

	(void)state;
	ram_make(&ram, &size, 1);
	fill(&ram, 0, 0, 256, 1);
	params.ram = &ram;
	assert_int_equal(ferry_store_writer_create(&params, &w, NULL), 0);
	queue_data(w, &ram);
	assert_int_equal(ferry_store_writer_drain(w, ferry_clock_in_ms(5), NULL), -ETIMEDOUT);
	assert_int_equal(ferry_store_writer_pending(w), 256);
	ferry_store_writer_abort(w);
	assert_int_equal(ferry_store_writer_drain(w, FERRY_CLOCK_NEVER, NULL), -ECANCELED);
	ferry_store_writer_free(w);
	ferry_ram_free(&ram);
}

static int setup(void **state)
{
	(void)state;
	if (!mkdtemp(folder))
		return -1;
	snprintf(path, sizeof(path), "%s/snap", folder);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	unlink(path);
	return rmdir(folder);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(shapes),
		cmocka_unit_test(four_gib),
		cmocka_unit_test(rounds),
		cmocka_unit_test(partial),
		cmocka_unit_test(past_the_cache),
		cmocka_unit_test(through_mappings),
		cmocka_unit_test(through_mappings_past_the_cache),
		cmocka_unit_test(nothing_is_left),
		cmocka_unit_test(existing),
		cmocka_unit_test(abort_while_waiting),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
