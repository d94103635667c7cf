// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "ram/ram.h"

static int new_memfd(uint64_t size)
{
	int fd = memfd_create("test-ram", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, (off_t)size), 0);
	return fd;
}

static struct ferry_ram_block good_block(const char *name, uint64_t pages)
{
	struct ferry_ram_block b = {
		.size_bytes = pages * FERRY_PAGE_SIZE,
		.page_size = FERRY_PAGE_SIZE,
	};

	snprintf(b.name, sizeof(b.name), "%s", name);
	b.fd = new_memfd(b.size_bytes);
	return b;
}

static void add_and_find(void **state)
{
	struct ferry_ram_block a = good_block("pc.ram", 4), b = good_block("vga.vram", 2);
	struct ferry_error err = { 0 };
	struct ferry_ram ram;

	(void)state;
	ferry_ram_init(&ram);
	assert_int_equal(ferry_ram_add(&ram, &a, &err), 0);
	assert_int_equal(ferry_ram_add(&ram, &b, &err), 0);
	assert_int_equal(ferry_ram_find(&ram, "pc.ram"), 0);
	assert_int_equal(ferry_ram_find(&ram, "vga.vram"), 1);
	assert_int_equal(ferry_ram_find(&ram, "vga"), -ENOENT);
	assert_int_equal(ferry_ram_bytes(&ram), 6 * FERRY_PAGE_SIZE);
	assert_int_equal(ferry_ram_pages(&ram), 6);
	assert_int_equal(err.errnum, 0);
	ferry_ram_free(&ram);
	assert_int_equal(ram.count, 0);
	/* the set owned the descriptors */
	assert_int_equal(fcntl(a.fd, F_GETFD), -1);
	assert_int_equal(errno, EBADF);
}

static void add_refuses(void **state)
{
	struct ferry_ram_block good = good_block("m", 4), bad;
	struct ferry_error err;
	struct ferry_ram ram;
	size_t i;
	const struct {
		uint64_t size, off, addr;
		uint32_t page_size;
		int fd;
	} bads[] = {
		{ 0, 0, 0, 4096, 0 },			/* empty */
		{ 4097, 0, 0, 4096, 0 },		/* no whole pages */
		{ 4096, 0, 0, 2u << 20, 0 },		/* less than a page */
		{ FERRY_RAM_MAX_BLOCK_BYTES * 2, 0, 0, 4096, 0 },
		{ 4096, 0, 0, 2048, 0 },		/* page too small */
		{ 8192, 0, 0, 4096 + 8, 0 },		/* no power of two */
		{ 1ull << 31, 0, 0, 1u << 31, 0 },	/* page too large */
		{ 4096, 0, 0, 0, 0 },
		{ 4096, 100, 0, 4096, 0 },		/* offset unaligned */
		{ 8192, INT64_MAX & ~4095ull, 0, 4096, 0 }, /* ends past off_t */
		{ 4096, 0, 12345, 4096, 0 },		/* address unaligned */
		{ 8192, 0, UINT64_MAX & ~4095ull, 4096, 0 },
		{ 4096, 0, 0, 4096, -1 },		/* no file */
	};

	(void)state;
	ferry_ram_init(&ram);
	for (i = 0; i < sizeof(bads) / sizeof(bads[0]); i++) {
		bad = good;
		bad.size_bytes = bads[i].size;
		bad.fd_off_bytes = bads[i].off;
		bad.vmm_addr = bads[i].addr;
		bad.page_size = bads[i].page_size;
		bad.fd = bads[i].fd;
		memset(&err, 0, sizeof(err));
		assert_int_equal(ferry_ram_add(&ram, &bad, &err), -EINVAL);
		assert_int_equal(err.errnum, EINVAL);
		assert_non_null(strstr(err.text, "RAM block m"));
	}
	bad = good;
	bad.name[0] = '\0';
	assert_int_equal(ferry_ram_add(&ram, &bad, &err), -EINVAL);
	memset(bad.name, 'x', sizeof(bad.name));
	assert_int_equal(ferry_ram_add(&ram, &bad, &err), -EINVAL);
	strcpy(bad.name, "a\nb");
	assert_int_equal(ferry_ram_add(&ram, &bad, &err), -EINVAL);
	strcpy(bad.name, "\xc3\xa9");
	assert_int_equal(ferry_ram_add(&ram, &bad, NULL), -EINVAL);
	assert_int_equal(ram.count, 0);

	assert_int_equal(ferry_ram_add(&ram, &good, &err), 0);
	assert_int_equal(ferry_ram_add(&ram, &good, &err), -EEXIST);
	assert_int_equal(ram.count, 1);
	ferry_ram_free(&ram);
}

static void add_too_many(void **state)
{
	struct ferry_ram_block b = good_block("b", 1);
	struct ferry_error err;
	struct ferry_ram ram;
	int i, first = b.fd;

	(void)state;
	ferry_ram_init(&ram);
	for (i = 0; i < FERRY_RAM_MAX_BLOCKS; i++) {
		snprintf(b.name, sizeof(b.name), "b%d", i);
		b.fd = dup(first);
		assert_int_equal(ferry_ram_add(&ram, &b, &err), 0);
	}
	strcpy(b.name, "one more");
	assert_int_equal(ferry_ram_add(&ram, &b, &err), -E2BIG);
	ferry_ram_free(&ram);
	close(first);
}

static void map_shares(void **state)
{
	struct ferry_ram_block b = good_block("m", 8);
	struct ferry_error err;
	struct ferry_ram ram;
	char byte = 'x', seen;

	(void)state;
	/* the block is the second half of its file */
	b.size_bytes = 4 * FERRY_PAGE_SIZE;
	b.fd_off_bytes = 4 * FERRY_PAGE_SIZE;
	ferry_ram_init(&ram);
	assert_int_equal(ferry_ram_add(&ram, &b, &err), 0);
	assert_null(ram.blocks[0].map);
	assert_int_equal(ferry_ram_map(&ram, false, &err), 0);
	assert_false(ram.blocks[0].map_writable);
	assert_int_equal(pwrite(b.fd, &byte, 1, 5 * FERRY_PAGE_SIZE), 1);
	assert_int_equal(ram.blocks[0].map[FERRY_PAGE_SIZE], 'x');

	assert_int_equal(ferry_ram_map(&ram, true, &err), 0);
	assert_true(ram.blocks[0].map_writable);
	ram.blocks[0].map[0] = 'y';
	assert_int_equal(pread(b.fd, &seen, 1, 4 * FERRY_PAGE_SIZE), 1);
	assert_int_equal(seen, 'y');
	ferry_ram_free(&ram);
}

static void map_refuses(void **state)
{
	struct ferry_ram_block b = good_block("m", 4);
	struct ferry_error err = { 0 };
	struct ferry_ram ram;
	char path[64];
	int fd;

	(void)state;
	ferry_ram_init(&ram);
	b.size_bytes = 5 * FERRY_PAGE_SIZE; /* one more than the file has */
	assert_int_equal(ferry_ram_add(&ram, &b, &err), 0);
	assert_int_equal(ferry_ram_map(&ram, false, &err), -EINVAL);
	assert_non_null(strstr(err.text, "16384"));
	ferry_ram_free(&ram);

	b = good_block("m", 4);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", b.fd);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	assert_true(fd >= 0);
	close(b.fd);
	b.fd = fd;
	assert_int_equal(ferry_ram_add(&ram, &b, &err), 0);
	assert_int_equal(ferry_ram_map(&ram, true, &err), -EACCES);
	assert_int_equal(ferry_ram_map(&ram, false, &err), 0);
	ferry_ram_free(&ram);
}

static void punch_empties(void **state)
{
	struct ferry_ram_block a = good_block("a", 16), b = good_block("b", 16);
	struct ferry_error err;
	struct ferry_ram ram;
	struct stat st;

	(void)state;
	/* "b" is the middle of its file: what lies outside the block must survive */
	b.fd_off_bytes = 4 * FERRY_PAGE_SIZE;
	b.size_bytes = 4 * FERRY_PAGE_SIZE;
	assert_int_equal(pwrite(b.fd, "before", 6, 3 * FERRY_PAGE_SIZE), 6);
	assert_int_equal(pwrite(b.fd, "after", 5, 8 * FERRY_PAGE_SIZE), 5);
	ferry_ram_init(&ram);
	assert_int_equal(ferry_ram_add(&ram, &a, &err), 0);
	assert_int_equal(ferry_ram_add(&ram, &b, &err), 0);
	assert_int_equal(ferry_ram_map(&ram, true, &err), 0);
	memset(ram.blocks[0].map, 1, a.size_bytes);
	memset(ram.blocks[1].map, 1, b.size_bytes);

	assert_int_equal(ferry_ram_punch(&ram, &err), 0);
	assert_int_equal(fstat(a.fd, &st), 0);
	assert_int_equal(st.st_blocks, 0);
	assert_int_equal(st.st_size, a.size_bytes);
	assert_int_equal(fstat(b.fd, &st), 0);
	assert_int_equal(st.st_blocks, 2 * FERRY_PAGE_SIZE / 512);
	assert_int_equal(ram.blocks[1].map[FERRY_PAGE_SIZE], 0);
	ferry_ram_free(&ram);
}

static void punch_refuses(void **state)
{
	struct ferry_ram_block b = good_block("m", 4);
	struct ferry_error err = { 0 };
	struct ferry_ram ram;

	(void)state;
	assert_int_equal(pwrite(b.fd, "x", 1, 0), 1);
	ferry_ram_init(&ram);
	assert_int_equal(ferry_ram_add(&ram, &b, &err), 0);
	close(ram.blocks[0].fd);
	ram.blocks[0].fd = open("/dev/zero", O_RDWR | O_CLOEXEC);
	assert_int_equal(ferry_ram_punch(&ram, &err), -ENODEV);
	assert_non_null(strstr(err.text, "RAM block m"));
	ferry_ram_free(&ram);

	b = good_block("sealed", 4);
	assert_int_equal(fcntl(b.fd, F_ADD_SEALS, F_SEAL_WRITE), 0);
	assert_int_equal(ferry_ram_add(&ram, &b, &err), 0);
	assert_int_equal(ferry_ram_punch(&ram, &err), -EPERM);
	ferry_ram_free(&ram);
}

struct busy_writer {
	uint8_t *map;
	int stop; /* atomic */
};

static void *write_on(void *arg)
{
	struct busy_writer *w = arg;

	while (!__atomic_load_n(&w->stop, __ATOMIC_ACQUIRE)) {
		__atomic_store_n(&w->map[0], 1, __ATOMIC_RELAXED);
		__atomic_store_n(&w->map[3 * FERRY_PAGE_SIZE], 1, __ATOMIC_RELAXED);
	}
	return NULL;
}

/* Somebody still writes: sooner or later punch() sees it, and says where. */
static void punch_sees_a_writer(void **state)
{
	struct ferry_ram_block b = good_block("busy", 4);
	uint64_t deadline = ferry_clock_in_ms(20000);
	struct ferry_error err = { 0 };
	struct busy_writer w = { 0 };
	struct ferry_ram ram;
	pthread_t writer;
	int ret;

	(void)state;
	ferry_ram_init(&ram);
	assert_int_equal(ferry_ram_add(&ram, &b, &err), 0);
	assert_int_equal(ferry_ram_map(&ram, true, &err), 0);
	w.map = ram.blocks[0].map;
	assert_int_equal(pthread_create(&writer, NULL, write_on, &w), 0);
	do {
		ret = ferry_ram_punch(&ram, &err);
	} while (!ret && ferry_clock_ns() < deadline);
	__atomic_store_n(&w.stop, 1, __ATOMIC_RELEASE);
	pthread_join(writer, NULL);
	assert_int_equal(ret, -EBUSY);
	assert_non_null(strstr(err.text, "RAM block busy"));
	assert_int_equal(ferry_ram_punch(&ram, &err), 0);
	ferry_ram_free(&ram);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(add_and_find),	 cmocka_unit_test(add_refuses),
		cmocka_unit_test(add_too_many),	 cmocka_unit_test(map_shares),
		cmocka_unit_test(map_refuses),	 cmocka_unit_test(punch_empties),
		cmocka_unit_test(punch_refuses), cmocka_unit_test(punch_sees_a_writer),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
