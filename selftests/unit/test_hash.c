// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
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

#include "ram/hash.h"

#define PAGES 300 /* several chunks and a rest */

static struct ferry_ram make_ram(void)
{
	struct ferry_ram_block b = {
		.name = "m",
		.size_bytes = PAGES * FERRY_PAGE_SIZE,
		.page_size = FERRY_PAGE_SIZE,
	};
	struct ferry_ram ram;

	b.fd = memfd_create("test-hash", MFD_CLOEXEC);
	assert_true(b.fd >= 0);
	assert_int_equal(ftruncate(b.fd, (off_t)b.size_bytes), 0);
	ferry_ram_init(&ram);
	assert_int_equal(ferry_ram_add(&ram, &b, NULL), 0);
	return ram;
}

static void fill(const struct ferry_ram *ram, uint64_t page, uint8_t byte)
{
	uint8_t bytes[FERRY_PAGE_SIZE];

	memset(bytes, byte, sizeof(bytes));
	assert_int_equal(pwrite(ram->blocks[0].fd, bytes, sizeof(bytes),
				(off_t)(page * FERRY_PAGE_SIZE)), FERRY_PAGE_SIZE);
}

static int same(const struct ferry_ram *a, const struct ferry_ram *b)
{
	uint64_t ha[2], hb[2];

	assert_int_equal(ferry_hash_block(&a->blocks[0], ha), 0);
	assert_int_equal(ferry_hash_block(&b->blocks[0], hb), 0);
	return !memcmp(ha, hb, sizeof(ha));
}

static void page_hashes_differ(void **state)
{
	uint8_t a[FERRY_PAGE_SIZE] = { 0 }, b[FERRY_PAGE_SIZE] = { 0 };

	(void)state;
	assert_true(ferry_hash_page(a) == ferry_hash_page(b));
	b[FERRY_PAGE_SIZE - 1] = 1;
	assert_true(ferry_hash_page(a) != ferry_hash_page(b));
}

static void contents_count_not_allocation(void **state)
{
	struct ferry_ram a = make_ram(), b = make_ram();
	uint64_t page;

	(void)state;
	for (page = 10; page < 200; page++) {
		fill(&a, page, (uint8_t)page);
		fill(&b, page, (uint8_t)page);
	}
	fill(&a, 250, 0); /* zeros here, a hole there */
	assert_true(same(&a, &b));
	assert_int_equal(ferry_ram_map(&b, false, NULL), 0);
	assert_true(same(&a, &b)); /* read by pread and through a mapping */

	fill(&b, 251, 7);
	assert_false(same(&a, &b));
	fill(&a, 251, 7);
	assert_true(same(&a, &b));
	fill(&a, 11, 12); /* two pages change places */
	fill(&a, 12, 11);
	assert_false(same(&a, &b));
	ferry_ram_free(&a);
	ferry_ram_free(&b);
}

static void nothing_is_allocated(void **state)
{
	struct ferry_ram a = make_ram();
	uint64_t hash[2];
	struct stat st;
	int mapped;

	(void)state;
	fill(&a, 0, 1);
	fill(&a, 100, 1);
	fill(&a, PAGES - 1, 1);
	for (mapped = 0; mapped < 2; mapped++) {
		assert_int_equal(ferry_hash_block(&a.blocks[0], hash), 0);
		assert_true(hash[0] && hash[1]);
		assert_int_equal(fstat(a.blocks[0].fd, &st), 0);
		assert_int_equal(st.st_blocks, 3 * FERRY_PAGE_SIZE / 512);
		assert_int_equal(ferry_ram_map(&a, true, NULL), 0);
	}
	ferry_ram_free(&a);
}

static void empty_is_zero_and_errors(void **state)
{
	struct ferry_ram a = make_ram();
	uint64_t hash[2] = { 1, 1 };

	(void)state;
	assert_int_equal(ferry_hash_block(&a.blocks[0], hash), 0);
	assert_int_equal(hash[0], 0);
	assert_int_equal(hash[1], 0);
	close(a.blocks[0].fd);
	assert_int_equal(ferry_hash_block(&a.blocks[0], hash), -EBADF);
	a.blocks[0].fd = dup(0);
	ferry_ram_free(&a);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(page_hashes_differ),
		cmocka_unit_test(contents_count_not_allocation),
		cmocka_unit_test(nothing_is_allocated),
		cmocka_unit_test(empty_is_zero_and_errors),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
