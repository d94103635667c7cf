// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Faults of a guest of huge pages, which come in pieces of 4 KiB and are shown as a whole. As
 * in fault_rig.h the guest is a second mapping in this process.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/memfd.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/uffd.h"
#include "fault/serve.h"
#include "huge_pool.h"
#include "ram/hugetlb.h"

#define UNITS 4u
#define UNIT_PAGES (HUGE_SIZE / FERRY_PAGE_SIZE)
#define BYTES (UNITS * HUGE_SIZE)
#define WAIT_MS 20000

static struct lab {
	struct ferry_ram ram;
	uint8_t *guest;
	uint64_t addr[1];
	struct ferry_fault_mapper mapper;
	int placed_fd;
	struct ferry_fault_pages pages;
	struct ferry_fault *fault;
	unsigned int wanted[UNITS]; /* how often each was asked for; atomic */
	unsigned int astray;	    /* asked for by another page than its first; atomic */
} lab;

static int setup(void **state)
{
	struct ferry_ram_block b = {
		.name = "huge", .size_bytes = BYTES, .page_size = HUGE_SIZE,
		.fd = memfd_create("huge", MFD_CLOEXEC | MFD_HUGETLB),
	};

	memset(&lab, 0, sizeof(lab));
	if (!huge_pool_take(UNITS))
		return 0;
	*state = &lab;
	if (b.fd < 0 || ftruncate(b.fd, BYTES) || ferry_ram_add(&lab.ram, &b, NULL) ||
	    ferry_ram_punch(&lab.ram, NULL))
		return -1;
	lab.guest = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, b.fd, 0);
	lab.addr[0] = (uintptr_t)lab.guest;
	lab.mapper = (struct ferry_fault_mapper){
		.uffd = ferry_uffd_create(NULL), .pid = getpid(), .addr = lab.addr,
	};
	lab.placed_fd = memfd_create("placed", MFD_CLOEXEC);
	return lab.guest == MAP_FAILED || lab.mapper.uffd < 0 || lab.placed_fd < 0 ? -1 : 0;
}

static int teardown(void **state)
{
	if (!*state)
		return 0;
	ferry_fault_stop(lab.fault, true);
	ferry_fault_pages_free(&lab.pages);
	munmap(lab.guest, BYTES);
	close(lab.mapper.uffd);
	close(lab.placed_fd);
	ferry_ram_free(&lab.ram);
	huge_pool_give_back(UNITS);
	return 0;
}

static void want(void *ctx, unsigned int block, uint64_t page)
{
	(void)ctx;
	(void)block;
	if (page % UNIT_PAGES)
		__atomic_add_fetch(&lab.astray, 1, __ATOMIC_ACQ_REL);
	__atomic_add_fetch(&lab.wanted[page / UNIT_PAGES], 1, __ATOMIC_ACQ_REL);
}

static unsigned int asked(unsigned int unit)
{
	return __atomic_load_n(&lab.wanted[unit], __ATOMIC_ACQUIRE);
}

static unsigned int astray(void)
{
	return __atomic_load_n(&lab.astray, __ATOMIC_ACQUIRE);
}

/* All are placed but unit @first to the last. */
static void start(void **state, unsigned int first)
{
	struct ferry_fault_params params = {
		.ram = &lab.ram, .mappers = &lab.mapper, .n_mappers = 1, .pages = &lab.pages,
		.want = want,
	};
	struct ferry_error err = { 0 };

	if (!*state)
		skip();
	assert_int_equal(ferry_fault_uffd_probe(&lab.ram, &err), 0);
	assert_int_equal(ferry_fault_pages_init(&lab.pages, &lab.ram, lab.placed_fd, true, NULL),
			 0);
	ferry_fault_pages_lack(&lab.pages, 0, first * UNIT_PAGES, (UNITS - first) * UNIT_PAGES);
	if (ferry_fault_start(&params, NULL, &lab.fault, &err))
		fail_msg("%s", err.text);
}

/* ---- somebody touches ---- */

struct toucher {
	pthread_t thread;
	uint64_t page;
	int done; /* atomic */
	uint8_t value;
};

static void *touch(void *arg)
{
	struct toucher *t = arg;

	t->value = *(volatile uint8_t *)(lab.guest + t->page * FERRY_PAGE_SIZE + 9);
	__atomic_store_n(&t->done, 1, __ATOMIC_RELEASE);
	return NULL;
}

static uint64_t waiting(void)
{
	struct ferry_fault_stats st;

	ferry_fault_stats(lab.fault, &st);
	return st.waiting;
}

/* It waits, is the only one, and its huge page has been asked for. */
static void touch_start(struct toucher *t, uint64_t page)
{
	unsigned int before = asked((unsigned int)(page / UNIT_PAGES));
	uint64_t deadline_ns = ferry_clock_in_ms(WAIT_MS);

	*t = (struct toucher){ .page = page };
	assert_int_equal(pthread_create(&t->thread, NULL, touch, t), 0);
	while (waiting() != 1 || asked((unsigned int)(page / UNIT_PAGES)) == before) {
		assert_true(ferry_clock_ns() < deadline_ns);
		ferry_clock_sleep_ns(FERRY_NS_PER_MS);
	}
}

static void touch_end(struct toucher *t, uint8_t expected)
{
	struct timespec end;

	clock_gettime(CLOCK_REALTIME, &end);
	end.tv_sec += WAIT_MS / 1000;
	assert_int_equal(pthread_timedjoin_np(t->thread, NULL, &end), 0);
	assert_int_equal(t->value, expected);
	assert_int_equal(waiting(), 0);
}

/* Pages of one value; 0: zeros, which are not written. */
static void bring(uint64_t first, uint64_t pages, uint8_t value)
{
	static uint8_t bytes[UNIT_PAGES * FERRY_PAGE_SIZE];

	memset(bytes, value, pages * FERRY_PAGE_SIZE);
	assert_int_equal(ferry_fault_pages_claim(&lab.pages, 0, first, pages), pages);
	if (value)
		assert_int_equal(ferry_ram_write(&lab.ram.blocks[0], first, pages, bytes), 0);
	assert_int_equal(ferry_fault_placed(lab.fault, 0, first, pages, !value), 0);
}

static void is(uint64_t page, uint8_t value)
{
	assert_int_equal(lab.guest[page * FERRY_PAGE_SIZE], value);
	assert_int_equal(lab.guest[page * FERRY_PAGE_SIZE + FERRY_PAGE_SIZE - 1], value);
}

static uint64_t units_there(void)
{
	struct stat st;

	assert_int_equal(fstat(lab.ram.blocks[0].fd, &st), 0);
	return (uint64_t)st.st_blocks * 512 / HUGE_SIZE;
}

/* ---- tests ---- */

/* In pieces, from both ends, zeros among them: nobody sees it before the last one is there. */
static void only_whole_ones_are_shown(void **state)
{
	struct toucher t;

	start(state, 1);
	touch_start(&t, UNIT_PAGES + 300);
	assert_int_equal(asked(1), 1);
	bring(UNIT_PAGES + 300, 1, 3); /* the page itself */
	bring(UNIT_PAGES + 400, 112, 5);
	bring(UNIT_PAGES, 200, 4);
	bring(UNIT_PAGES + 200, 100, 0);
	ferry_fault_ask_again(lab.fault);
	assert_int_equal(asked(1), 2);
	/* The last one is being brought when all others are there. */
	assert_int_equal(ferry_fault_pages_claim(&lab.pages, 0, UNIT_PAGES + 301, 1), 1);
	bring(UNIT_PAGES + 302, 98, 6);
	assert_int_equal(waiting(), 1);
	assert_false(__atomic_load_n(&t.done, __ATOMIC_ACQUIRE));
	/* Nobody is asked for it. */
	ferry_fault_ask_again(lab.fault);
	assert_int_equal(asked(1), 2);
	assert_int_equal(ferry_fault_placed(lab.fault, 0, UNIT_PAGES + 301, 1, true), 0);
	touch_end(&t, 3);
	is(UNIT_PAGES, 4);
	is(UNIT_PAGES + 200, 0);
	is(UNIT_PAGES + 301, 0);
	is(UNIT_PAGES + 302, 6);
	is(UNIT_PAGES + 511, 5);
	assert_int_equal(asked(1), 2);
	assert_int_equal(asked(2) + asked(3) + astray(), 0);
	assert_int_equal(ferry_fault_pages_missing(&lab.pages), 2 * UNIT_PAGES);
}

/* One run ends two of them and begins a third. */
static void runs_cross_borders(void **state)
{
	struct toucher t;

	start(state, 1);
	bring(UNIT_PAGES, 500, 1);
	touch_start(&t, 3 * UNIT_PAGES + 7);
	bring(UNIT_PAGES + 500, 12, 2);
	bring(2 * UNIT_PAGES, 400, 3);
	bring(2 * UNIT_PAGES + 400, 212, 4); /* 112 of this one, 100 of the next */
	is(UNIT_PAGES + 511, 2);
	is(2 * UNIT_PAGES + 511, 4);
	assert_int_equal(waiting(), 1);
	bring(3 * UNIT_PAGES + 100, 412, 5);
	touch_end(&t, 4);
	is(3 * UNIT_PAGES + 511, 5);
	assert_int_equal(ferry_fault_pages_missing(&lab.pages), 0);
}

/* What nobody touches is not allocated; what somebody does is zeros, also after a balloon. */
static void zeros(void **state)
{
	struct toucher t;

	start(state, 1);
	bring(2 * UNIT_PAGES, UNIT_PAGES, 0);
	touch_start(&t, UNIT_PAGES + 5);
	bring(UNIT_PAGES, UNIT_PAGES, 0);
	touch_end(&t, 0);
	assert_int_equal(units_there(), 1);
	lab.guest[UNIT_PAGES * FERRY_PAGE_SIZE] = 7;
	assert_int_equal(fallocate(lab.ram.blocks[0].fd,
				   FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, HUGE_SIZE,
				   HUGE_SIZE), 0);
	is(UNIT_PAGES, 0);
	is(2 * UNIT_PAGES + 3, 0);
	assert_int_equal(asked(2), 0);
}

/* What precopy brought is mapped in the background, whole or not at all. */
static void swept(void **state)
{
	struct ferry_fault_stats st;

	if (*state) {
		assert_int_equal(ferry_ram_write(&lab.ram.blocks[0], 3, 1,
						 (const uint8_t[FERRY_PAGE_SIZE]){ 8 }), 0);
		assert_int_equal(ferry_ram_write(&lab.ram.blocks[0], 3 * UNIT_PAGES, 1,
						 (const uint8_t[FERRY_PAGE_SIZE]){ 9 }), 0);
	}
	start(state, 3);
	assert_int_equal(ferry_fault_sweep(lab.fault, NULL, NULL), 0);
	assert_int_equal(lab.guest[3 * FERRY_PAGE_SIZE], 8);
	ferry_fault_stats(lab.fault, &st);
	assert_int_equal(st.faults, 0);
	assert_int_equal(ferry_fault_uffd_assert_empty(&(struct ferry_fault_mapper){
		.pid = getpid(), .addr = (const uint64_t[]){ lab.addr[0] + 3 * HUGE_SIZE },
	}, &(struct ferry_ram){ &(struct ferry_ram_block){ .size_bytes = HUGE_SIZE }, 1 }, NULL), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(only_whole_ones_are_shown, setup, teardown),
		cmocka_unit_test_setup_teardown(runs_cross_borders, setup, teardown),
		cmocka_unit_test_setup_teardown(zeros, setup, teardown),
		cmocka_unit_test_setup_teardown(swept, setup, teardown),
	};

	return cmocka_run_group_tests_name("fault_huge", tests, NULL, NULL);
}
