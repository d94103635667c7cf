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

#include "base/clock.h"
#include "engine/holes.h"

#define PAGES 64u

struct state {
	struct ferry_ram ram;
	struct ferry_holes holes;
	struct ferry_bitmap pages;
};

/* Two blocks, all data; long enough ago for their change times to mean something. */
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

/* Look until the look stands: change times must first become old. */
static void look(struct state *s)
{
	uint64_t end = ferry_clock_in_ms(10000);
	struct ferry_error err;

	do {
		assert_int_equal(ferry_holes_look(&s->holes, &err), 0);
		assert_true(ferry_clock_ns() < end);
	} while (!ferry_holes_known(&s->holes, 0) || !ferry_holes_known(&s->holes, 1));
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
	char *mem = mmap(NULL, PAGES * FERRY_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED,
			 s->ram.blocks[0].fd, 0);

	assert_ptr_not_equal(mem, MAP_FAILED);
	punch(s, 0, 0, PAGES);
	look(s);
	mem[0] = 2;
	mem[10 * FERRY_PAGE_SIZE] = 2;
	munmap(mem, PAGES * FERRY_PAGE_SIZE);

	ferry_bitmap_set(&s->pages, 0, 0, PAGES);
	assert_int_equal(ferry_holes_find(&s->holes, &s->pages, NULL), 0);
	assert_int_equal(ferry_bitmap_count(&s->pages), PAGES - 2);
	assert_false(ferry_bitmap_test(&s->pages, 0, 0));
	assert_false(ferry_bitmap_test(&s->pages, 0, 10));
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

/* The times of both would be the same: such a look must not stand. */
static void a_hole_made_just_before_keeps_it_from_standing(void **state)
{
	struct state *s = *state;
	struct ferry_error err;

	punch(s, 0, 1, 1);
	assert_int_equal(ferry_holes_look(&s->holes, &err), 0);
	punch(s, 0, 2, 1);
	check_holes(s, 0, 1, 2);
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
		cmocka_unit_test_setup_teardown(a_hole_made_just_before_keeps_it_from_standing,
						setup, teardown),
		cmocka_unit_test_setup_teardown(only_pages_in_question, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
