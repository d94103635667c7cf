// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "ram/sparse.h"

#define PAGES 64

/* A block of 64 pages that begins at page 8 of its file; pages 3, 4, 5, 20 and 63 hold data. */
static struct ferry_ram_block make_block(void)
{
	static const unsigned int data[] = { 3, 4, 5, 20, 63 };
	struct ferry_ram_block b = {
		.size_bytes = PAGES * FERRY_PAGE_SIZE,
		.page_size = FERRY_PAGE_SIZE,
		.fd_off_bytes = 8 * FERRY_PAGE_SIZE,
	};
	size_t i;

	b.fd = memfd_create("test-sparse", MFD_CLOEXEC);
	assert_true(b.fd >= 0);
	assert_int_equal(ftruncate(b.fd, (off_t)(b.size_bytes + 16 * FERRY_PAGE_SIZE)), 0);
	for (i = 0; i < sizeof(data) / sizeof(data[0]); i++)
		assert_int_equal(pwrite(b.fd, "x", 1, (off_t)((8 + data[i]) * FERRY_PAGE_SIZE)), 1);
	/* data around the block is none of its own */
	assert_int_equal(pwrite(b.fd, "x", 1, 7 * FERRY_PAGE_SIZE), 1);
	assert_int_equal(pwrite(b.fd, "x", 1, (8 + PAGES) * FERRY_PAGE_SIZE), 1);
	return b;
}

static void expect(const struct ferry_ram_block *b, uint64_t from, uint64_t end, uint64_t page,
		   uint64_t pages)
{
	uint64_t n = 0;

	assert_int_equal(ferry_sparse_next(b, &from, &n, end), 1);
	assert_int_equal(from, page);
	assert_int_equal(n, pages);
}

static void walks(void **state)
{
	struct ferry_ram_block b = make_block();
	uint64_t page, pages;
	struct stat st;

	(void)state;
	expect(&b, 0, PAGES, 3, 3);
	expect(&b, 4, PAGES, 4, 2);
	expect(&b, 0, 5, 3, 2); /* cut at the end */
	expect(&b, 6, PAGES, 20, 1);
	expect(&b, 21, PAGES, 63, 1); /* the next data is not the block's */
	expect(&b, 21, UINT64_MAX, 63, 1);
	page = 6;
	assert_int_equal(ferry_sparse_next(&b, &page, &pages, 20), 0);
	page = 21;
	assert_int_equal(ferry_sparse_next(&b, &page, &pages, 63), 0);
	page = PAGES;
	assert_int_equal(ferry_sparse_next(&b, &page, &pages, PAGES), 0);
	page = 5;
	assert_int_equal(ferry_sparse_next(&b, &page, &pages, 5), 0);
	/* looking allocated nothing */
	assert_int_equal(fstat(b.fd, &st), 0);
	assert_int_equal(st.st_blocks, 7 * FERRY_PAGE_SIZE / 512);
	close(b.fd);
}

static void holes_only(void **state)
{
	struct ferry_ram_block b = make_block();
	uint64_t page = 0, pages;

	(void)state;
	assert_int_equal(ftruncate(b.fd, 0), 0);
	assert_int_equal(ferry_sparse_next(&b, &page, &pages, PAGES), 0);
	close(b.fd);
}

static void errors(void **state)
{
	struct ferry_ram_block b = make_block();
	uint64_t page = 0, pages;
	int pipes[2];

	(void)state;
	close(b.fd);
	assert_int_equal(ferry_sparse_next(&b, &page, &pages, PAGES), -EBADF);
	assert_int_equal(pipe(pipes), 0);
	b.fd = pipes[0];
	assert_int_equal(ferry_sparse_next(&b, &page, &pages, PAGES), -ESPIPE);
	close(pipes[0]);
	close(pipes[1]);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(walks),
		cmocka_unit_test(holes_only),
		cmocka_unit_test(errors),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
