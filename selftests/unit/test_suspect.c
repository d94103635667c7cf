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

#include "dirty/suspect.h"
#include "ram/hash.h"

#define PAGES 200

struct fixture {
	struct ferry_ram ram;
	struct ferry_suspect *s;
	struct ferry_bitmap collected;
	struct ferry_bitmap changed;
	bool mapped;
};

static struct fixture make(bool mapped)
{
	struct fixture f = { .mapped = mapped };
	struct ferry_ram_block b = {
		.size_bytes = PAGES * FERRY_PAGE_SIZE,
		.page_size = FERRY_PAGE_SIZE,
	};
	int i;

	ferry_ram_init(&f.ram);
	for (i = 0; i < 2; i++) {
		snprintf(b.name, sizeof(b.name), "m%d", i);
		b.fd = memfd_create("test-suspect", MFD_CLOEXEC);
		assert_true(b.fd >= 0);
		assert_int_equal(ftruncate(b.fd, (off_t)b.size_bytes), 0);
		assert_int_equal(ferry_ram_add(&f.ram, &b, NULL), 0);
	}
	if (mapped)
		assert_int_equal(ferry_ram_map(&f.ram, false, NULL), 0);
	assert_int_equal(ferry_bitmap_init(&f.collected, &f.ram), 0);
	assert_int_equal(ferry_bitmap_init(&f.changed, &f.ram), 0);
	return f;
}

static void drop(struct fixture *f)
{
	ferry_suspect_free(f->s);
	ferry_bitmap_free(&f->collected);
	ferry_bitmap_free(&f->changed);
	ferry_ram_free(&f->ram);
}

static void put(struct fixture *f, unsigned int block, uint64_t page, uint8_t byte)
{
	uint8_t bytes[FERRY_PAGE_SIZE];

	memset(bytes, byte, sizeof(bytes));
	assert_int_equal(pwrite(f->ram.blocks[block].fd, bytes, sizeof(bytes),
				(off_t)(page * FERRY_PAGE_SIZE)), FERRY_PAGE_SIZE);
}

static void send_page(struct fixture *f, unsigned int block, uint64_t page)
{
	uint8_t bytes[FERRY_PAGE_SIZE];

	assert_int_equal(pread(f->ram.blocks[block].fd, bytes, sizeof(bytes),
			       (off_t)(page * FERRY_PAGE_SIZE)), FERRY_PAGE_SIZE);
	ferry_suspect_sent(f->s, block, page, ferry_hash_page(bytes));
}

static void suspect_run(struct fixture *f, unsigned int block, uint64_t page, uint64_t pages)
{
	ferry_bitmap_zero(&f->collected);
	ferry_bitmap_set(&f->collected, block, page, pages);
	ferry_suspect_add(f->s, &f->collected);
}

static void expect_settled(struct fixture *f, uint64_t want_checked, uint64_t want_found)
{
	uint64_t checked = 99, found = 99;

	assert_int_equal(ferry_suspect_settle(f->s, &f->changed, &checked, &found), 0);
	assert_int_equal(checked, want_checked);
	assert_int_equal(found, want_found);
	assert_int_equal(ferry_suspect_pages(f->s), 0);
}

/* The bug this is for: the page is sent, then DMA changes it, and nobody reports it. */
static void late_dma(bool mapped)
{
	struct fixture f = make(mapped);
	uint64_t page;

	assert_int_equal(ferry_suspect_create(&f.ram, &f.s), 0);
	for (page = 0; page < 100; page++)
		put(&f, 1, page, 1);
	suspect_run(&f, 1, 0, 100);
	assert_int_equal(ferry_suspect_pages(f.s), 100);
	for (page = 0; page < 100; page++)
		send_page(&f, 1, page);
	put(&f, 1, 7, 2);
	put(&f, 1, 99, 2);
	put(&f, 1, 150, 2); /* changed, but never suspect */
	expect_settled(&f, 100, 2);
	assert_true(ferry_bitmap_test(&f.changed, 1, 7));
	assert_true(ferry_bitmap_test(&f.changed, 1, 99));
	assert_int_equal(ferry_bitmap_count(&f.changed), 2);
	drop(&f);
}

static void late_dma_mapped(void **state)
{
	(void)state;
	late_dma(true);
}

static void late_dma_unmapped(void **state)
{
	(void)state;
	late_dma(false);
}

static void never_sent_counts_as_changed(void **state)
{
	struct fixture f = make(true);

	(void)state;
	assert_int_equal(ferry_suspect_create(&f.ram, &f.s), 0);
	put(&f, 0, 5, 1);
	send_page(&f, 0, 5); /* before it became suspect: not remembered */
	suspect_run(&f, 0, 5, 1);
	expect_settled(&f, 1, 1);

	/* settle() forgot: the hash of the first time does not count for the second */
	suspect_run(&f, 0, 5, 1);
	send_page(&f, 0, 5);
	ferry_bitmap_zero(&f.changed);
	expect_settled(&f, 1, 0);
	suspect_run(&f, 0, 5, 1);
	expect_settled(&f, 1, 1);
	drop(&f);
}

static void collected_again(void **state)
{
	struct fixture f = make(true);

	(void)state;
	assert_int_equal(ferry_suspect_create(&f.ram, &f.s), 0);
	put(&f, 0, 0, 1);
	suspect_run(&f, 0, 0, 1);
	send_page(&f, 0, 0);
	put(&f, 0, 0, 2);
	suspect_run(&f, 0, 0, 1);
	send_page(&f, 0, 0);
	expect_settled(&f, 1, 0);
	/* a page that @changed has already is not found again */
	ferry_bitmap_set(&f.changed, 0, 1, 1);
	suspect_run(&f, 0, 1, 1);
	expect_settled(&f, 1, 0);
	drop(&f);
}

/* Suspects that are holes compare as zeros and stay holes. */
static void holes(void **state)
{
	struct fixture f = make(true);
	uint8_t zeros[FERRY_PAGE_SIZE] = { 0 };
	struct stat st;
	uint64_t page;

	(void)state;
	assert_int_equal(ferry_suspect_create(&f.ram, &f.s), 0);
	put(&f, 0, 50, 3);
	put(&f, 0, 60, 0);
	suspect_run(&f, 0, 0, PAGES);
	for (page = 0; page < PAGES; page++)
		ferry_suspect_sent(f.s, 0, page, ferry_hash_page(zeros));
	expect_settled(&f, PAGES, 1);
	assert_true(ferry_bitmap_test(&f.changed, 0, 50));
	assert_int_equal(fstat(f.ram.blocks[0].fd, &st), 0);
	assert_int_equal(st.st_blocks, 2 * FERRY_PAGE_SIZE / 512);

	/* sent with data, then punched */
	ferry_bitmap_zero(&f.changed);
	suspect_run(&f, 0, 50, 1);
	send_page(&f, 0, 50);
	assert_int_equal(ferry_ram_punch(&f.ram, NULL), 0);
	expect_settled(&f, 1, 1);
	assert_int_equal(fstat(f.ram.blocks[0].fd, &st), 0);
	assert_int_equal(st.st_blocks, 0);
	drop(&f);
}

static void read_error(void **state)
{
	struct fixture f = make(false);
	uint64_t checked, found;
	int fd;

	(void)state;
	assert_int_equal(ferry_suspect_create(&f.ram, &f.s), 0);
	suspect_run(&f, 1, 3, 4);
	fd = f.ram.blocks[1].fd;
	f.ram.blocks[1].fd = -1;
	assert_int_equal(ferry_suspect_settle(f.s, &f.changed, &checked, &found), -EBADF);
	/* still there: nothing was forgotten */
	assert_int_equal(ferry_suspect_pages(f.s), 4);
	f.ram.blocks[1].fd = fd;
	expect_settled(&f, 4, 4);
	ferry_suspect_free(NULL);
	drop(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(late_dma_mapped),
		cmocka_unit_test(late_dma_unmapped),
		cmocka_unit_test(never_sent_counts_as_changed),
		cmocka_unit_test(collected_again),
		cmocka_unit_test(holes),
		cmocka_unit_test(read_error),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
