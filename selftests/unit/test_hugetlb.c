// SPDX-License-Identifier: GPL-2.0-or-later
/* Memory files of huge pages: which are there, writing, zeroing and freeing them. */
#include <errno.h>
#include <fcntl.h>
#include <linux/memfd.h>
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

#include "engine/holes.h"
#include "huge_pool.h"
#include "ram/hugetlb.h"
#include "ram/ram.h"
#include "ram/sparse.h"

#define UNITS 6ul
/* Tests that run at the same time do not add so many. */
#define MORE_PAGES 4096ul
#define UNIT_PAGES (HUGE_SIZE / FERRY_PAGE_SIZE)

static struct ferry_ram ram;

/* A block of six huge pages that begins at the second one of its file. */
static struct ferry_ram_block *make_block(uint64_t units)
{
	struct ferry_ram_block b = {
		.name = "huge", .size_bytes = units * HUGE_SIZE, .page_size = HUGE_SIZE,
		.fd = memfd_create("test-hugetlb", MFD_CLOEXEC | MFD_HUGETLB),
		.fd_off_bytes = HUGE_SIZE,
	};

	ferry_ram_init(&ram);
	assert_true(b.fd >= 0);
	assert_int_equal(ftruncate(b.fd, (off_t)(b.size_bytes + 2 * HUGE_SIZE)), 0);
	assert_int_equal(ferry_ram_add(&ram, &b, NULL), 0);
	return &ram.blocks[0];
}

static int setup(void **state)
{
	*state = huge_pool_take(UNITS + 2) ? &ram : NULL;
	return 0;
}

static int teardown(void **state)
{
	if (*state)
		huge_pool_give_back(UNITS + 2);
	return 0;
}

static struct ferry_ram_block *start(void **state)
{
	if (!*state)
		skip();
	return make_block(UNITS);
}

/* As a VMM does it: through its mapping. */
static void touch(const struct ferry_ram_block *b, uint64_t unit, uint8_t value)
{
	uint8_t *map = mmap(NULL, HUGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, b->fd,
			    (off_t)(b->fd_off_bytes + unit * HUGE_SIZE));

	assert_ptr_not_equal(map, MAP_FAILED);
	map[FERRY_PAGE_SIZE] = value;
	munmap(map, HUGE_SIZE);
}

static uint8_t byte_at(const struct ferry_ram_block *b, uint64_t page)
{
	uint8_t bytes[FERRY_PAGE_SIZE] = { 0xee };

	assert_int_equal(pread(b->fd, bytes, sizeof(bytes),
			       (off_t)(b->fd_off_bytes + page * FERRY_PAGE_SIZE)), sizeof(bytes));
	return bytes[0];
}

static uint64_t units_there(const struct ferry_ram_block *b)
{
	struct stat st;

	assert_int_equal(fstat(b->fd, &st), 0);
	return (uint64_t)st.st_blocks * 512 / HUGE_SIZE;
}

static void expect(const struct ferry_ram_block *b, uint64_t from, uint64_t end, uint64_t page,
		   uint64_t pages)
{
	uint64_t n = 0;
	int r = ferry_sparse_next(b, &from, &n, end);

	assert_int_equal(r, pages != 0);
	if (!r)
		return;
	assert_int_equal(from, page);
	assert_int_equal(n, pages);
}

static void holes_are_seen(void **state)
{
	struct ferry_ram_block *b = start(state);
	const uint64_t all = UNITS * UNIT_PAGES;
	uint64_t page = 0;

	assert_int_equal(ferry_ram_map(&ram, false, NULL), 0);
	assert_null(b->map); /* who reads a hole through it allocates it */
	expect(b, 0, all, 0, 0);
	touch(b, 1, 7);
	touch(b, 2, 7);
	touch(b, 5, 7);
	touch(b, UNITS, 7); /* not the block's */
	expect(b, 0, all, UNIT_PAGES, 2 * UNIT_PAGES);
	expect(b, UNIT_PAGES + 5, all, UNIT_PAGES + 5, 2 * UNIT_PAGES - 5);
	expect(b, 0, UNIT_PAGES + 9, UNIT_PAGES, 9);
	expect(b, 3 * UNIT_PAGES, all, 5 * UNIT_PAGES, UNIT_PAGES);
	expect(b, 3 * UNIT_PAGES, 5 * UNIT_PAGES, 0, 0);
	assert_int_equal(ferry_sparse_first(b, &page, all), 1);
	assert_int_equal(page, UNIT_PAGES);
	/* and again when one has gone */
	assert_int_equal(fallocate(b->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
				   (off_t)(b->fd_off_bytes + HUGE_SIZE), HUGE_SIZE), 0);
	expect(b, 0, all, 2 * UNIT_PAGES, UNIT_PAGES);
	assert_int_equal(units_there(b), 3); /* looking allocated nothing */
	ferry_ram_free(&ram);
}

/* A page that was sent, and was punched while clean: no tracker tells. */
static void new_holes_are_found(void **state)
{
	struct ferry_ram_block *b = start(state);
	struct ferry_bitmap pages;
	struct ferry_holes holes;

	assert_int_equal(ferry_ram_map(&ram, false, NULL), 0);
	touch(b, 1, 7);
	touch(b, 3, 7);
	assert_int_equal(ferry_holes_init(&holes, &ram), 0);
	assert_int_equal(ferry_bitmap_init(&pages, &ram), 0);
	ferry_bitmap_set(&pages, 0, UNIT_PAGES, UNIT_PAGES);
	ferry_bitmap_set(&pages, 0, 3 * UNIT_PAGES, UNIT_PAGES);
	assert_int_equal(ferry_holes_look(&holes, NULL), 0);
	assert_int_equal(fallocate(b->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
				   (off_t)(b->fd_off_bytes + 3 * HUGE_SIZE), HUGE_SIZE), 0);
	touch(b, 4, 7); /* as many as before */
	assert_int_equal(ferry_holes_find(&holes, &pages, NULL), 0);
	assert_int_equal(ferry_bitmap_count(&pages), UNIT_PAGES);
	assert_true(ferry_bitmap_test(&pages, 0, 3 * UNIT_PAGES));
	ferry_bitmap_free(&pages);
	ferry_holes_free(&holes);
	ferry_ram_free(&ram);
}

static void parts_are_written_and_zeroed(void **state)
{
	static const uint8_t ones[4 * FERRY_PAGE_SIZE] = { [0 ... 4 * FERRY_PAGE_SIZE - 1] = 1 };
	struct ferry_ram_block *b = start(state);

	/* Without a mapping nothing can be. */
	assert_int_equal(ferry_ram_write(b, 0, 1, ones), -EBADF);
	assert_int_equal(ferry_ram_zero(b, 0, 1), -EBADF);
	touch(b, 0, 9);
	assert_int_equal(ferry_ram_punch(&ram, NULL), 0);
	assert_int_equal(units_there(b), 0);
	/* across the border of two */
	assert_int_equal(ferry_ram_write(b, UNIT_PAGES - 2, 4, ones), 0);
	assert_int_equal(byte_at(b, UNIT_PAGES - 3), 0);
	assert_int_equal(byte_at(b, UNIT_PAGES - 2), 1);
	assert_int_equal(byte_at(b, UNIT_PAGES + 1), 1);
	assert_int_equal(byte_at(b, UNIT_PAGES + 2), 0);
	assert_int_equal(byte_at(b, 1), 0); /* nothing of what was there before */
	assert_int_equal(ferry_ram_zero(b, UNIT_PAGES - 1, 2), 0);
	assert_int_equal(byte_at(b, UNIT_PAGES - 2), 1);
	assert_int_equal(byte_at(b, UNIT_PAGES - 1), 0);
	assert_int_equal(byte_at(b, UNIT_PAGES), 0);
	assert_int_equal(byte_at(b, UNIT_PAGES + 1), 1);
	assert_int_equal(units_there(b), 2);
	assert_int_equal(ferry_ram_punch(&ram, NULL), 0);
	assert_int_equal(units_there(b), 0);
	ferry_ram_free(&ram);
}

/* Said before anything is received, not by a SIGBUS of the guest later. */
static void too_few_are_refused(void **state)
{
	struct ferry_ram_block *b;
	struct ferry_error err = { 0 };
	unsigned long units;
	char words[128];

	if (!*state)
		skip();
	units = huge_pool_pages() + MORE_PAGES;
	b = make_block(units);
	assert_int_equal(ferry_ram_punch(&ram, &err), -ENOMEM);
	snprintf(words, sizeof(words), "not enough free huge pages for RAM block huge (%lu of "
		 "2 MiB): raise vm.nr_hugepages", units);
	assert_non_null(strstr(err.text, words));
	assert_null(b->map);
	ferry_ram_free(&ram);
}

static void other_kinds(void **state)
{
	int gib = memfd_create("gib", MFD_CLOEXEC | MFD_HUGETLB | MFD_HUGE_1GB);
	int disk = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
	int small = memfd_create("small", MFD_CLOEXEC);
	struct ferry_error err = { 0 };
	uint32_t bytes = 0;

	(void)state;
	assert_int_equal(ferry_hugetlb_page_size(small, &bytes, &err), 0);
	assert_int_equal(bytes, FERRY_PAGE_SIZE);
	assert_int_equal(ferry_hugetlb_page_size(disk, &bytes, &err), -EOPNOTSUPP);
	assert_string_equal(err.text, "it is a file on a disk, not shared memory");
	assert_int_equal(ferry_hugetlb_page_size(-1, &bytes, &err), -EBADF);
	close(small);
	close(disk);
	if (gib < 0) {
		print_message("SKIP: this processor has no huge pages of 1 GiB\n");
		skip();
	}
	assert_int_equal(ferry_hugetlb_page_size(gib, &bytes, &err), -EOPNOTSUPP);
	assert_string_equal(err.text, "it is of huge pages (hugetlb) of 1024 MiB, only those of "
			    "2 MiB are supported");
	close(gib);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(holes_are_seen, setup, teardown),
		cmocka_unit_test_setup_teardown(new_holes_are_found, setup, teardown),
		cmocka_unit_test_setup_teardown(parts_are_written_and_zeroed, setup, teardown),
		cmocka_unit_test_setup_teardown(too_few_are_refused, setup, teardown),
		cmocka_unit_test(other_kinds),
	};

	return cmocka_run_group_tests_name("hugetlb", tests, NULL, NULL);
}
