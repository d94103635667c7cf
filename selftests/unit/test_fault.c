// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Faults of a guest whose pages come one by one: each is asked for once, seen when it is whole,
 * and shown again; what is given back is a hole.
 */
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

#include "base/uffd.h"
#include "fault/uffd.h"
#include "fault_rig.h"

static void probe(void **state)
{
	struct fault_rig *rig = *state;
	struct ferry_error err = { 0 };
	struct stat st;
	int memfd;

	assert_int_equal(ferry_fault_uffd_probe(&rig->ram, &err), 0);
	assert_int_equal(fstat(rig->block.fd, &st), 0);
	assert_int_equal(st.st_blocks, 0);
	memfd = rig->block.fd;
	rig->block.fd = open(".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	assert_int_equal(ferry_fault_uffd_probe(&rig->ram, &err), -EINVAL);
	assert_string_equal(err.text, "memory block 'ram' cannot be registered for postcopy: "
			    "Invalid argument");
	close(rig->block.fd);
	rig->block.fd = memfd;
}

static void absent_page_is_asked_for_once(void **state)
{
	struct fault_rig *rig = *state;
	struct toucher a, b;

	rig_start(rig, 3, 2);
	rig_touch_start(rig, &a, 0, 3);
	rig_wait_wanted(rig, 3, 1);
	rig_touch_start(rig, &b, 0, 3);
	rig_wait_waiting(rig, 2);
	assert_int_equal(rig_wanted(rig, 3), 1);
	assert_false(rig_touched(&a) || rig_touched(&b));
	rig_bring(rig, 3, 0x33);
	rig_touch_end(&a, 0x33);
	rig_touch_end(&b, 0x33);
	assert_int_equal(rig_stats_now(rig).wanted, 2);
	assert_int_equal(ferry_fault_pages_missing(&rig->pages), 1);
}

static void page_being_received_is_not_seen(void **state)
{
	struct fault_rig *rig = *state;
	struct toucher a;

	rig_start(rig, 5, 1);
	assert_int_equal(ferry_fault_pages_claim(&rig->pages, 0, 5, 1), 1);
	memset(rig->own + 5 * FERRY_PAGE_SIZE, 0x55, FERRY_PAGE_SIZE / 2);
	rig_touch_start(rig, &a, 0, 5); /* a minor fault: half the page is in the file */
	rig_wait_waiting(rig, 1);
	assert_int_equal(rig_wanted(rig, 5), 0);
	assert_false(rig_touched(&a));
	rig_write_page(rig, 5, 0x56);
	assert_int_equal(ferry_fault_placed(rig->fault, 0, 5, 1, false), 0);
	rig_touch_end(&a, 0x56);
}

static void page_that_stopped_coming_is_asked_for_again(void **state)
{
	struct fault_rig *rig = *state;
	struct toucher a;

	rig_start(rig, 5, 2);
	assert_int_equal(ferry_fault_pages_claim(&rig->pages, 0, 5, 1), 1);
	rig_touch_start(rig, &a, 0, 5);
	rig_wait_waiting(rig, 1);
	ferry_fault_ask_again(rig->fault);
	assert_int_equal(rig_wanted(rig, 5), 0);
	ferry_fault_pages_unclaim(&rig->pages, 0, 5, 1);
	ferry_fault_ask_again(rig->fault);
	rig_wait_wanted(rig, 5, 1);
	assert_int_equal(rig_wanted(rig, 6), 0);
	rig_bring(rig, 5, 1);
	rig_touch_end(&a, 1);
}

static void pages_of_zeros(void **state)
{
	struct fault_rig *rig = *state;
	struct toucher a, b;
	struct stat st;

	rig_start(rig, 10, 4);
	rig_touch_start(rig, &a, 0, 10);
	rig_wait_wanted(rig, 10, 1);
	assert_int_equal(ferry_fault_pages_claim(&rig->pages, 0, 10, 4), 4);
	assert_int_equal(ferry_fault_placed(rig->fault, 0, 10, 4, true), 0);
	rig_touch_end(&a, 0);
	rig_touch_start(rig, &b, 0, 12);
	rig_touch_end(&b, 0);
	/* Only what was touched is allocated. */
	assert_int_equal(fstat(rig->block.fd, &st), 0);
	assert_int_equal(st.st_blocks, 2 * FERRY_PAGE_SIZE / 512);
}

static void placed_page_is_shown_again(void **state)
{
	struct fault_rig *rig = *state;
	struct toucher a;

	rig_start(rig, 20, 1);
	rig_bring(rig, 20, 7);
	rig_touch_start(rig, &a, 0, 20);
	rig_touch_end(&a, 7);
	/* As reclaim does. */
	assert_int_equal(madvise(rig->guest[0], PAGES * FERRY_PAGE_SIZE, MADV_DONTNEED), 0);
	rig_touch_start(rig, &a, 0, 20);
	rig_touch_end(&a, 7);
	rig_punch(rig, 20);
	rig_touch_start(rig, &a, 0, 20);
	rig_touch_end(&a, 0);
	assert_int_equal(rig_wanted(rig, 20), 0);
}

/* A page that is given back before its bytes are all here is a hole, and wanted from nobody. */
static void given_back_while_it_comes(void **state)
{
	struct fault_rig *rig = *state;
	struct toucher a;

	rig_start(rig, 20, 2);
	assert_int_equal(ferry_fault_pages_claim(&rig->pages, 0, 20, 2), 2);
	rig_write_page(rig, 20, 7);
	rig_write_page(rig, 21, 8);
	rig_punch(rig, 20);
	rig_touch_start(rig, &a, 0, 20);
	rig_wait_waiting(rig, 1);
	assert_false(rig_touched(&a));
	assert_int_equal(ferry_fault_placed(rig->fault, 0, 20, 2, false), 0);
	rig_touch_end(&a, 0);
	assert_int_equal(rig_wanted(rig, 20), 0);
	rig_touch_start(rig, &a, 0, 21);
	rig_touch_end(&a, 8);
}

/* There is nothing to give back of a page that has not come: it comes, as Documentation says. */
static void given_back_before_it_comes(void **state)
{
	struct fault_rig *rig = *state;
	struct toucher a;

	rig_start(rig, 20, 1);
	rig_punch(rig, 20);
	rig_touch_start(rig, &a, 0, 20);
	rig_wait_wanted(rig, 20, 1);
	rig_bring(rig, 20, 7);
	rig_touch_end(&a, 7);
	rig_punch(rig, 20);
	rig_touch_start(rig, &a, 0, 20);
	rig_touch_end(&a, 0);
}

static int zap_guest(void *ctx, struct ferry_error *err)
{
	struct fault_rig *rig = ctx;

	(void)err;
	return madvise(rig->guest[0], PAGES * FERRY_PAGE_SIZE, MADV_DONTNEED);
}

static void mapped_pages_are_noticed(void **state)
{
	struct fault_rig *rig = *state;
	struct toucher a;

	rig_write_page(rig, 30, 9);
	rig_touch_start(rig, &a, 0, 30);
	rig_touch_end(&a, 9);
	assert_int_equal(ferry_fault_pages_init(&rig->pages, &rig->ram, rig->placed_fd, true, NULL),
			 0);
	ferry_fault_pages_lack(&rig->pages, 0, 30, 1);
	rig_start_adopted(rig, false, NULL, -EBUSY);
	/* Nothing stays armed. */
	rig_touch_start(rig, &a, 0, 31);
	rig_touch_end(&a, 0);
	close(rig->mappers[0].uffd);
	rig->mappers[0].uffd = ferry_uffd_create(NULL);
	rig_start_adopted(rig, false, zap_guest, 0);
	rig_touch_start(rig, &a, 0, 30);
	rig_wait_wanted(rig, 30, 1);
	rig_bring(rig, 30, 10);
	rig_touch_end(&a, 10);
}

static void every_process_is_served(void **state)
{
	struct fault_rig *rig = *state;
	struct toucher a, b, c;

	rig->n_mappers = 2;
	rig_start(rig, 40, 2);
	rig_touch_start(rig, &a, 0, 40);
	rig_touch_start(rig, &b, 1, 40);
	rig_touch_start(rig, &c, 1, 41);
	rig_wait_waiting(rig, 3);
	rig_bring(rig, 40, 4);
	rig_touch_end(&a, 4);
	rig_touch_end(&b, 4);
	assert_int_equal(ferry_fault_pages_claim(&rig->pages, 0, 41, 1), 1);
	assert_int_equal(ferry_fault_placed(rig->fault, 0, 41, 1, true), 0);
	rig_touch_end(&c, 0);
}

/* With all pages there memory is as any other: what is missing in it is zeros. */
static void nothing_stays_armed(void **state)
{
	struct fault_rig *rig = *state;
	struct toucher a;

	rig_start(rig, 40, 2);
	rig_touch_start(rig, &a, 0, 40);
	rig_wait_wanted(rig, 40, 1);
	rig_bring(rig, 40, 4);
	rig_touch_end(&a, 4);
	ferry_fault_stop(rig->fault, true);
	rig->fault = NULL;
	rig_touch_start(rig, &a, 0, 41);
	rig_touch_end(&a, 0);
}

static void new_worker_takes_over(void **state)
{
	struct fault_rig *rig = *state;
	struct toucher a, b;

	rig_start(rig, 50, 3);
	rig_touch_start(rig, &a, 0, 50);
	rig_wait_wanted(rig, 50, 1);
	assert_int_equal(ferry_fault_pages_claim(&rig->pages, 0, 51, 1), 1);
	rig_write_page(rig, 51, 0xee); /* not all of it came */
	ferry_fault_stop(rig->fault, false);
	ferry_fault_pages_free(&rig->pages);
	rig_touch_start(rig, &b, 0, 51); /* nobody listens */

	assert_int_equal(ferry_fault_pages_init(&rig->pages, &rig->ram, rig->placed_fd, false,
						NULL), 0);
	rig_start_adopted(rig, true, NULL, 0);
	rig_wait_wanted(rig, 50, 2);
	rig_wait_wanted(rig, 51, 1);
	assert_false(rig_touched(&a) || rig_touched(&b));
	rig_bring(rig, 50, 5);
	rig_bring(rig, 51, 6);
	rig_touch_end(&a, 5);
	rig_touch_end(&b, 6);
}

static void swept_pages_do_not_fault(void **state)
{
	struct fault_rig *rig = *state;
	struct toucher a;
	uint64_t before;

	rig_write_page(rig, 60, 6);
	rig_write_page(rig, 61, 0xee);
	rig_write_page(rig, 62, 8);
	rig_start(rig, 61, 1);
	assert_int_equal(ferry_fault_sweep(rig->fault, NULL, NULL), 0);
	before = rig_stats_now(rig).faults;
	rig_touch_start(rig, &a, 0, 60);
	rig_touch_end(&a, 6);
	rig_touch_start(rig, &a, 0, 62);
	rig_touch_end(&a, 8);
	assert_int_equal(rig_stats_now(rig).faults, before);
	rig_touch_start(rig, &a, 0, 61); /* was not placed, and was not swept */
	rig_wait_wanted(rig, 61, 1);
	rig_bring(rig, 61, 7);
	rig_touch_end(&a, 7);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		RIG_TEST(probe),
		RIG_TEST(absent_page_is_asked_for_once),
		RIG_TEST(page_being_received_is_not_seen),
		RIG_TEST(page_that_stopped_coming_is_asked_for_again),
		RIG_TEST(pages_of_zeros),
		RIG_TEST(placed_page_is_shown_again),
		RIG_TEST(given_back_while_it_comes),
		RIG_TEST(given_back_before_it_comes),
		RIG_TEST(mapped_pages_are_noticed),
		RIG_TEST(every_process_is_served),
		RIG_TEST(nothing_stays_armed),
		RIG_TEST(new_worker_takes_over),
		RIG_TEST(swept_pages_do_not_fault),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
