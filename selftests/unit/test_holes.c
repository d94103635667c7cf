// SPDX-License-Identifier: GPL-2.0-or-later
/* Holes known from an earlier look, and what makes such knowledge worthless. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "engine/holes.h"

#define PAGES 512u /* of a block: 2 MiB */

struct state {
	struct ferry_ram ram;
	struct ferry_holes holes;
	struct ferry_bitmap pages;
};

/* Two blocks, all data. */
static int setup(void **state)
{
	struct state *s = calloc(1, sizeof(*s));
	struct ferry_error err;
	unsigned int i;

	ferry_ram_init(&s->ram);
	for (i = 0; i < 2; i++) {
		struct ferry_ram_block block = {
			.size_bytes = PAGES * FERRY_PAGE_SIZE,
			.page_size = FERRY_PAGE_SIZE,
			.fd = memfd_create("block", MFD_CLOEXEC),
		};
		char page[FERRY_PAGE_SIZE];
		unsigned int p;

		snprintf(block.name, sizeof(block.name), "block%u", i);
		memset(page, 1, sizeof(page));
		for (p = 0; p < PAGES; p++)
			assert_int_equal(write(block.fd, page, sizeof(page)), sizeof(page));
		assert_int_equal(ferry_ram_add(&s->ram, &block, &err), 0);
	}
	assert_int_equal(ferry_bitmap_init(&s->pages, &s->ram), 0);
	assert_int_equal(ferry_holes_init(&s->holes, &s->ram), 0);
	*state = s;
	return 0;
}

static int teardown(void **state)
{
	struct state *s = *state;

	ferry_holes_free(&s->holes);
	ferry_bitmap_free(&s->pages);
	ferry_ram_free(&s->ram);
	free(s);
	return 0;
}

static void punch(struct state *s, unsigned int block, unsigned int page, unsigned int pages)
{
	assert_int_equal(fallocate(s->ram.blocks[block].fd,
				   FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
				   page * FERRY_PAGE_SIZE, pages * FERRY_PAGE_SIZE), 0);
}

static void look(struct state *s)
{
	struct ferry_error err;

	assert_int_equal(ferry_holes_look(&s->holes, &err), 0);
	assert_true(ferry_holes_known(&s->holes, 0));
	assert_true(ferry_holes_known(&s->holes, 1));
}

/* Write a page through a mapping, as a guest does. */
static void touch(struct state *s, unsigned int block, unsigned int page)
{
	char *mem = mmap(NULL, PAGES * FERRY_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED,
			 s->ram.blocks[block].fd, 0);

	assert_ptr_not_equal(mem, MAP_FAILED);
	mem[page * FERRY_PAGE_SIZE] = 2;
	munmap(mem, PAGES * FERRY_PAGE_SIZE);
}

/* Of all pages, those of @block from @page on are holes, and no others. */
static void check_holes(struct state *s, unsigned int block, unsigned int page, unsigned int pages)
{
	struct ferry_error err;
	unsigned int i;

	ferry_bitmap_set(&s->pages, 0, 0, PAGES);
	ferry_bitmap_set(&s->pages, 1, 0, PAGES);
	assert_int_equal(ferry_holes_find(&s->holes, &s->pages, &err), 0);
	assert_int_equal(ferry_bitmap_count(&s->pages), pages);
	for (i = page; i < page + pages; i++)
		assert_true(ferry_bitmap_test(&s->pages, block, i));
}

static void without_a_look(void **state)
{
	struct state *s = *state;

	punch(s, 1, 7, 3);
	check_holes(s, 1, 7, 3);
	assert_false(ferry_holes_known(&s->holes, 0));
}

static void a_look_stands(void **state)
{
	struct state *s = *state;

	punch(s, 0, 60, 4);
	look(s);
	check_holes(s, 0, 60, 4);
	assert_true(ferry_holes_known(&s->holes, 0));
}

static void written_holes_are_none(void **state)
{
	struct state *s = *state;
	struct ferry_error err;

	punch(s, 0, 0, PAGES);
	look(s);
	touch(s, 0, 0);
	touch(s, 0, 10);
	ferry_bitmap_set(&s->pages, 0, 0, PAGES);
	assert_int_equal(ferry_holes_find(&s->holes, &s->pages, &err), 0);
	assert_int_equal(ferry_bitmap_count(&s->pages), PAGES - 2);
	assert_false(ferry_bitmap_test(&s->pages, 0, 0));
	assert_false(ferry_bitmap_test(&s->pages, 0, 10));
}

/* A guest that writes, also to pages it never had, must not cost a walk. */
static void writes_do_not_end_it(void **state)
{
	struct state *s = *state;
	unsigned int i;

	punch(s, 0, 100, 50);
	look(s);
	for (i = 0; i < 120; i += 2)
		touch(s, 0, i);
	assert_true(ferry_holes_known(&s->holes, 0));
	assert_true(ferry_bitmap_test(&s->holes.data, 0, 118));
	touch(s, 0, 101);
	assert_true(ferry_holes_known(&s->holes, 0));
	punch(s, 0, 101, 1); /* it was none at the look, but is known since */
	assert_false(ferry_holes_known(&s->holes, 0));
}

/* The number of pages is what it was, yet one is a hole. */
static void a_page_for_a_page_is_noticed(void **state)
{
	struct state *s = *state;

	punch(s, 0, 7, 2);
	look(s);
	punch(s, 0, 300, 1);
	touch(s, 0, 8);
	assert_false(ferry_holes_known(&s->holes, 0));
	assert_true(ferry_holes_known(&s->holes, 1));

	look(s);
	punch(s, 0, 8, 1);
	punch(s, 1, 511, 1);
	touch(s, 1, 511); /* the same page again: no hole, and nothing else became one */
	assert_false(ferry_holes_known(&s->holes, 0));
	assert_true(ferry_holes_known(&s->holes, 1));
}

/* Blocks that are no data would make up for a hole. */
static void allocated_is_not_written(void **state)
{
	struct state *s = *state;
	struct ferry_error err;

	punch(s, 0, 40, 8);
	assert_int_equal(fallocate(s->ram.blocks[0].fd, FALLOC_FL_KEEP_SIZE, 40 * FERRY_PAGE_SIZE,
				   4 * FERRY_PAGE_SIZE), 0);
	assert_int_equal(ferry_holes_look(&s->holes, &err), 0);
	assert_false(ferry_holes_known(&s->holes, 0));
	assert_true(ferry_holes_known(&s->holes, 1));
	check_holes(s, 0, 40, 8);
}

/* A huge page might reach over the end of such a file. */
static void odd_sizes_are_walked_over(void **state)
{
	struct state *s = *state;
	struct ferry_error err;

	assert_int_equal(ftruncate(s->ram.blocks[0].fd, (PAGES + 3) * FERRY_PAGE_SIZE), 0);
	punch(s, 0, 9, 1);
	assert_int_equal(ferry_holes_look(&s->holes, &err), 0);
	assert_false(ferry_holes_known(&s->holes, 0));
	check_holes(s, 0, 9, 1);
}

static void a_hole_made_later_ends_it(void **state)
{
	struct state *s = *state;

	look(s);
	punch(s, 1, 20, 1);
	assert_true(ferry_holes_known(&s->holes, 0));
	assert_false(ferry_holes_known(&s->holes, 1));
	check_holes(s, 1, 20, 1);
}

static void only_pages_in_question(void **state)
{
	struct state *s = *state;
	struct ferry_error err;

	punch(s, 0, 0, PAGES);
	punch(s, 1, 30, 10);
	look(s);
	ferry_bitmap_set(&s->pages, 1, 35, 20);
	ferry_bitmap_set(&s->pages, 0, 63, 1);
	assert_int_equal(ferry_holes_find(&s->holes, &s->pages, &err), 0);
	assert_int_equal(ferry_bitmap_count(&s->pages), 6);
	assert_true(ferry_bitmap_test(&s->pages, 0, 63));
	assert_true(ferry_bitmap_test(&s->pages, 1, 35));
	assert_false(ferry_bitmap_test(&s->pages, 1, 40));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(without_a_look, setup, teardown),
		cmocka_unit_test_setup_teardown(a_look_stands, setup, teardown),
		cmocka_unit_test_setup_teardown(written_holes_are_none, setup, teardown),
		cmocka_unit_test_setup_teardown(a_hole_made_later_ends_it, setup, teardown),
		cmocka_unit_test_setup_teardown(writes_do_not_end_it, setup, teardown),
		cmocka_unit_test_setup_teardown(a_page_for_a_page_is_noticed, setup, teardown),
		cmocka_unit_test_setup_teardown(allocated_is_not_written, setup, teardown),
		cmocka_unit_test_setup_teardown(odd_sizes_are_walked_over, setup, teardown),
		cmocka_unit_test_setup_teardown(only_pages_in_question, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
