// SPDX-License-Identifier: GPL-2.0-or-later
/* Every operation against a plain array of bools, on blocks with awkward lengths. */
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cmocka.h>

#include "ram/bitmap.h"

#define BLOCKS 4
static const uint64_t lengths[BLOCKS] = { 1, 64, 65, 1000 };
static struct ferry_ram_block blocks[BLOCKS];
static const struct ferry_ram ram = { blocks, BLOCKS };

static int setup(void **state)
{
	int i;

	(void)state;
	for (i = 0; i < BLOCKS; i++)
		blocks[i].size_bytes = lengths[i] << FERRY_PAGE_SHIFT;
	return 0;
}

static void expect_same(const struct ferry_bitmap *map, bool model[BLOCKS][1000])
{
	uint64_t page, sum = 0;
	unsigned int b;

	for (b = 0; b < BLOCKS; b++) {
		for (page = 0; page < lengths[b]; page++) {
			assert_int_equal(ferry_bitmap_test(map, b, page), model[b][page]);
			sum += model[b][page];
		}
	}
	assert_int_equal(ferry_bitmap_count(map), sum);
}

/* The runs cover exactly the model's bits, in order, maximal unless cut at @max_pages. */
static void expect_runs(const struct ferry_bitmap *map, bool model[BLOCKS][1000],
			uint64_t max_pages)
{
	struct ferry_bitmap_run run = { 0 };
	unsigned int b = 0;
	uint64_t page = 0;

	while (ferry_bitmap_next_run(map, &run, max_pages)) {
		uint64_t i, end = run.first_page + run.pages;

		assert_true(run.pages > 0);
		assert_true(max_pages == 0 || run.pages <= max_pages);
		assert_true(end <= lengths[run.block]);
		for (; b < run.block; b++, page = 0) {
			for (; page < lengths[b]; page++)
				assert_false(model[b][page]);
		}
		for (; page < run.first_page; page++)
			assert_false(model[b][page]);
		for (i = run.first_page; i < end; i++)
			assert_true(model[b][i]);
		if (end < lengths[b] && run.pages != max_pages)
			assert_false(model[b][end]);
		page = end;
	}
	for (; b < BLOCKS; b++, page = 0) {
		for (; page < lengths[b]; page++)
			assert_false(model[b][page]);
	}
	/* and it stays at the end */
	assert_false(ferry_bitmap_next_run(map, &run, max_pages));
}

static void random_operations(void **state)
{
	static bool model[BLOCKS][1000];
	struct ferry_bitmap map;
	int step;

	(void)state;
	srand(1);
	memset(model, 0, sizeof(model));
	assert_int_equal(ferry_bitmap_init(&map, &ram), 0);
	for (step = 0; step < 3000; step++) {
		unsigned int b = (unsigned int)rand() % BLOCKS;
		uint64_t first = (uint64_t)rand() % (lengths[b] + 1);
		uint64_t n = (uint64_t)rand() % (lengths[b] - first + 1);
		int op = rand() % 4;

		if (rand() % 2 && n > 3)
			n = (uint64_t)rand() % 3;
		if (op == 0)
			ferry_bitmap_set(&map, b, first, n);
		else if (op == 1)
			ferry_bitmap_clear(&map, b, first, n);
		else if (op == 2)
			ferry_bitmap_set_atomic(&map, b, first, n);
		else
			ferry_bitmap_clear_atomic(&map, b, first, n);
		memset(&model[b][first], op % 2 == 0, n);
		if (step % 16 == 0) {
			expect_same(&map, model);
			expect_runs(&map, model, 0);
			expect_runs(&map, model, 1 + (uint64_t)step % 70);
		}
	}
	ferry_bitmap_wipe(&map);
	memset(model, 0, sizeof(model));
	expect_same(&map, model);
	ferry_bitmap_free(&map);
	assert_int_equal(map.count, 0);
}

static void or_andnot(void **state)
{
	struct ferry_bitmap a, b;

	(void)state;
	assert_int_equal(ferry_bitmap_init(&a, &ram), 0);
	assert_int_equal(ferry_bitmap_init(&b, &ram), 0);
	ferry_bitmap_set(&a, 3, 10, 100);
	ferry_bitmap_set(&b, 3, 50, 100);
	ferry_bitmap_set(&b, 0, 0, 1);
	ferry_bitmap_or(&a, &b);
	assert_int_equal(ferry_bitmap_count(&a), 141);
	assert_int_equal(ferry_bitmap_count(&b), 101);
	ferry_bitmap_andnot(&a, &b);
	assert_int_equal(ferry_bitmap_count(&a), 40);
	assert_true(ferry_bitmap_test(&a, 3, 49));
	assert_false(ferry_bitmap_test(&a, 3, 50));
	assert_false(ferry_bitmap_test(&a, 0, 0));
	ferry_bitmap_free(&a);
	ferry_bitmap_free(&b);
}

static void empty_ram(void **state)
{
	const struct ferry_ram none = { 0 };
	struct ferry_bitmap_run run = { 0 };
	struct ferry_bitmap map;

	(void)state;
	assert_int_equal(ferry_bitmap_init(&map, &none), 0);
	assert_int_equal(ferry_bitmap_count(&map), 0);
	assert_false(ferry_bitmap_next_run(&map, &run, 0));
	ferry_bitmap_free(&map);
}

struct racer {
	struct ferry_bitmap *map;
	uint64_t phase;
};

static void *set_every_third(void *arg)
{
	struct racer *r = arg;
	uint64_t page;

	for (page = r->phase; page < 1000; page += 3)
		ferry_bitmap_set_atomic(r->map, 3, page, 1);
	for (page = r->phase; page < 1000; page += 6)
		ferry_bitmap_clear_atomic(r->map, 3, page, 1);
	return NULL;
}

static void atomics_race(void **state)
{
	struct ferry_bitmap map;
	struct racer racers[3];
	pthread_t threads[3];
	uint64_t page;
	int i, round;

	(void)state;
	assert_int_equal(ferry_bitmap_init(&map, &ram), 0);
	for (round = 0; round < 200; round++) {
		ferry_bitmap_zero(&map);
		for (i = 0; i < 3; i++) {
			racers[i] = (struct racer){ &map, (uint64_t)i };
			assert_int_equal(pthread_create(&threads[i], NULL, set_every_third,
							&racers[i]), 0);
		}
		for (i = 0; i < 3; i++)
			pthread_join(threads[i], NULL);
		for (page = 0; page < 1000; page++)
			assert_int_equal(ferry_bitmap_test(&map, 3, page), page % 6 >= 3);
	}
	ferry_bitmap_free(&map);
}

static unsigned long resident_pages(const struct ferry_bitmap *map)
{
	unsigned char in[(256 << 20) / 4096];
	unsigned long sum = 0;
	size_t i;

	assert_int_equal(mincore(map->words[0], 256 << 20, in), 0);
	for (i = 0; i < sizeof(in); i++)
		sum += in[i] & 1;
	return sum;
}

/* 8 TiB of RAM: 256 MiB of bits, of which one page is paid for. */
static void untouched_words_cost_nothing(void **state)
{
	struct ferry_ram_block huge = { .size_bytes = 8ull << 40 };
	struct ferry_ram one = { &huge, 1 };
	struct ferry_bitmap map, other;

	(void)state;
	assert_int_equal(ferry_bitmap_init(&map, &one), 0);
	assert_int_equal(ferry_bitmap_init(&other, &one), 0);
	ferry_bitmap_set(&map, 0, 1ull << 30, 1);
	ferry_bitmap_clear(&map, 0, 0, 1ull << 20);
	/* a huge zero page or a huge page of the host's may count as 512 */
	assert_true(resident_pages(&map) <= 1024);
	ferry_bitmap_zero(&map);
	assert_int_equal(resident_pages(&map), 0);
	ferry_bitmap_free(&map);
	ferry_bitmap_free(&other);
}

static void out_of_memory(void **state)
{
	struct ferry_ram_block huge[2] = { { .size_bytes = FERRY_RAM_MAX_BLOCK_BYTES },
					   { .size_bytes = FERRY_RAM_MAX_BLOCK_BYTES } };
	struct ferry_ram two = { huge, 2 };
	struct rlimit old, tight;
	struct ferry_bitmap map;

	(void)state;
	assert_int_equal(getrlimit(RLIMIT_AS, &old), 0);
	tight = old;
	tight.rlim_cur = 3ull << 30; /* one of the two 2 GiB arrays fits */
	assert_int_equal(setrlimit(RLIMIT_AS, &tight), 0);
	assert_int_equal(ferry_bitmap_init(&map, &two), -ENOMEM);
	assert_int_equal(setrlimit(RLIMIT_AS, &old), 0);
	assert_int_equal(map.count, 0);
	assert_null(map.words);
}

/* The same the other way: bits are taken out. */
static void takes(void **state)
{
	struct ferry_bitmap map;

	(void)state;
	assert_int_equal(ferry_bitmap_init(&map, &ram), 0);
	assert_int_equal(ferry_bitmap_next_atomic(&map, 3, 0, 1000), 1000);
	assert_int_equal(ferry_bitmap_take_atomic(&map, 3, 10, 10), 0);
	ferry_bitmap_set(&map, 3, 10, 300);
	assert_int_equal(ferry_bitmap_next_atomic(&map, 3, 0, 1000), 10);
	assert_int_equal(ferry_bitmap_next_atomic(&map, 3, 0, 10), 10);
	assert_int_equal(ferry_bitmap_take_atomic(&map, 3, 100, 1), 1);
	assert_int_equal(ferry_bitmap_take_atomic(&map, 3, 100, 1), 0);
	assert_int_equal(ferry_bitmap_take_atomic(&map, 3, 10, 990), 90);
	assert_int_equal(ferry_bitmap_next_atomic(&map, 3, 0, 1000), 101);
	assert_int_equal(ferry_bitmap_take_atomic(&map, 3, 101, 899), 209);
	assert_int_equal(ferry_bitmap_count(&map), 0);
	ferry_bitmap_free(&map);
}

static void claims(void **state)
{
	struct ferry_bitmap map;

	(void)state;
	assert_int_equal(ferry_bitmap_init(&map, &ram), 0);
	assert_int_equal(ferry_bitmap_claim_atomic(&map, 3, 10, 0), 0);
	assert_int_equal(ferry_bitmap_claim_atomic(&map, 3, 200, 1), 1);
	assert_int_equal(ferry_bitmap_claim_atomic(&map, 3, 10, 990), 190);
	assert_int_equal(ferry_bitmap_claim_atomic(&map, 3, 10, 990), 0);
	assert_int_equal(ferry_bitmap_claim_atomic(&map, 3, 201, 799), 799);
	assert_int_equal(ferry_bitmap_claim_atomic(&map, 2, 0, 65), 65);
	assert_int_equal(ferry_bitmap_count(&map), 990 + 65);
	assert_false(ferry_bitmap_test(&map, 3, 9));
	ferry_bitmap_free(&map);
}

static void bits_in_a_file(void **state)
{
	int fd = memfd_create("bits", MFD_CLOEXEC);
	struct ferry_bitmap one, two;

	(void)state;
	assert_true(fd >= 0);
	assert_int_equal(ferry_bitmap_init_file(&one, &ram, fd), 0);
	ferry_bitmap_set(&one, 2, 60, 5);
	ferry_bitmap_set(&one, 3, 999, 1);
	ferry_bitmap_free(&one);
	assert_int_equal(ferry_bitmap_init_file(&one, &ram, fd), 0);
	assert_int_equal(ferry_bitmap_init_file(&two, &ram, fd), 0);
	assert_int_equal(ferry_bitmap_count(&one), 6);
	ferry_bitmap_clear_atomic(&two, 2, 60, 1);
	assert_int_equal(ferry_bitmap_count(&one), 5);
	assert_int_equal(ftruncate(fd, 4096), 0);
	ferry_bitmap_free(&one);
	ferry_bitmap_free(&two);
	assert_int_equal(ferry_bitmap_init_file(&one, &ram, fd), -EINVAL);
	close(fd);
	assert_int_equal(ferry_bitmap_init_file(&one, &ram, fd), -EBADF);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(random_operations),
		cmocka_unit_test(or_andnot),
		cmocka_unit_test(empty_ram),
		cmocka_unit_test(claims),
		cmocka_unit_test(takes),
		cmocka_unit_test(bits_in_a_file),
		cmocka_unit_test(atomics_race),
		cmocka_unit_test(untouched_words_cost_nothing),
		cmocka_unit_test(out_of_memory),
	};

	return cmocka_run_group_tests(tests, setup, NULL);
}
