// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Faults of a guest whose pages come one by one. The guest is a second mapping of the same
 * memory file in this process, touched by threads; what a channel would receive is written
 * through the first one.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "fault/pages.h"
#include "fault/serve.h"
#include "fault/uffd.h"
#include "fault/waits.h"

#define PAGES 256u
#define WAIT_MS 20000

static struct lab {
	struct ferry_ram_block block;
	struct ferry_ram ram;
	uint8_t *own;	  /* what a channel writes to */
	uint8_t *guest[2]; /* what faults; the second one is another process's, so to say */
	uint64_t addr[2][1];
	struct ferry_fault_mapper mappers[2];
	unsigned int n_mappers;
	int placed_fd;
	struct ferry_fault_pages pages;
	struct ferry_fault *fault;

	pthread_mutex_t lock;
	pthread_cond_t changed;
	unsigned int wanted[PAGES]; /* how often each was asked for */
} lab;

static int open_uffd(void)
{
	int dev = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC), fd;

	if (dev < 0)
		return (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	fd = ioctl(dev, _IO(0xAA, 0x00), O_CLOEXEC | O_NONBLOCK);
	close(dev);
	return fd;
}

static int setup(void **state)
{
	unsigned int i;

	(void)state;
	memset(&lab, 0, sizeof(lab));
	pthread_mutex_init(&lab.lock, NULL);
	pthread_cond_init(&lab.changed, NULL);
	lab.block = (struct ferry_ram_block){
		.name = "ram", .size_bytes = PAGES * FERRY_PAGE_SIZE, .page_size = FERRY_PAGE_SIZE,
		.fd = memfd_create("ram", MFD_CLOEXEC),
	};
	lab.placed_fd = memfd_create("placed", MFD_CLOEXEC);
	if (lab.block.fd < 0 || ftruncate(lab.block.fd, PAGES * FERRY_PAGE_SIZE))
		return -1;
	lab.own = mmap(NULL, PAGES * FERRY_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED,
		       lab.block.fd, 0);
	for (i = 0; i < 2; i++) {
		lab.guest[i] = mmap(NULL, PAGES * FERRY_PAGE_SIZE, PROT_READ | PROT_WRITE,
				    MAP_SHARED, lab.block.fd, 0);
		lab.addr[i][0] = (uintptr_t)lab.guest[i];
		lab.mappers[i] = (struct ferry_fault_mapper){
			.uffd = open_uffd(), .pid = getpid(), .addr = lab.addr[i],
		};
		if (lab.mappers[i].uffd < 0)
			return -1;
	}
	lab.n_mappers = 1;
	lab.ram = (struct ferry_ram){ &lab.block, 1 };
	return 0;
}

static int teardown(void **state)
{
	unsigned int i;

	(void)state;
	ferry_fault_stop(lab.fault, true);
	ferry_fault_pages_free(&lab.pages);
	for (i = 0; i < 2; i++) {
		munmap(lab.guest[i], PAGES * FERRY_PAGE_SIZE);
		close(lab.mappers[i].uffd);
	}
	munmap(lab.own, PAGES * FERRY_PAGE_SIZE);
	close(lab.block.fd);
	close(lab.placed_fd);
	return 0;
}

static void want(void *ctx, unsigned int block, uint64_t page)
{
	(void)ctx;
	assert_int_equal(block, 0);
	pthread_mutex_lock(&lab.lock);
	lab.wanted[page]++;
	pthread_cond_broadcast(&lab.changed);
	pthread_mutex_unlock(&lab.lock);
}

static void wait_wanted(uint64_t page, unsigned int times)
{
	struct timespec end;

	clock_gettime(CLOCK_REALTIME, &end);
	end.tv_sec += WAIT_MS / 1000;
	pthread_mutex_lock(&lab.lock);
	while (lab.wanted[page] < times)
		assert_int_equal(pthread_cond_timedwait(&lab.changed, &lab.lock, &end), 0);
	pthread_mutex_unlock(&lab.lock);
}

static void start_adopted(bool adopted, int (*zap)(void *, struct ferry_error *), int expected)
{
	struct ferry_fault_params params = {
		.ram = &lab.ram, .mappers = lab.mappers, .n_mappers = lab.n_mappers,
		.pages = &lab.pages, .want = want, .adopted = adopted,
	};
	struct ferry_error err = { 0 };
	int r = ferry_fault_start(&params, zap, &lab.fault, &err);

	if (r != expected)
		print_error("%s\n", err.text);
	assert_int_equal(r, expected);
}

/* All pages are placed but [@first, @first + @lacking). */
static void start(uint64_t first, uint64_t lacking)
{
	assert_int_equal(ferry_fault_pages_init(&lab.pages, &lab.ram, lab.placed_fd, true, NULL),
			 0);
	ferry_fault_pages_lack(&lab.pages, 0, first, lacking);
	start_adopted(false, NULL, 0);
}

static struct ferry_fault_stats stats_now(void)
{
	struct ferry_fault_stats st;

	ferry_fault_stats(lab.fault, &st);
	return st;
}

static void wait_waiting(uint64_t waiting)
{
	uint64_t deadline_ns = ferry_clock_in_ms(WAIT_MS);

	while (stats_now().waiting != waiting) {
		assert_true(ferry_clock_ns() < deadline_ns);
		ferry_clock_sleep_ns(FERRY_NS_PER_MS);
	}
}

/* ---- somebody touches pages ---- */

struct toucher {
	pthread_t thread;
	const uint8_t *at;
	int done; /* atomic */
	uint8_t first, last;
};

static void *touch(void *arg)
{
	struct toucher *t = arg;

	t->first = *(volatile const uint8_t *)t->at;
	t->last = *(volatile const uint8_t *)(t->at + FERRY_PAGE_SIZE - 1);
	__atomic_store_n(&t->done, 1, __ATOMIC_RELEASE);
	return NULL;
}

static void touch_start(struct toucher *t, unsigned int mapper, uint64_t page)
{
	*t = (struct toucher){ .at = lab.guest[mapper] + page * FERRY_PAGE_SIZE };
	assert_int_equal(pthread_create(&t->thread, NULL, touch, t), 0);
}

static void touch_end(struct toucher *t, uint8_t expected)
{
	struct timespec end;

	clock_gettime(CLOCK_REALTIME, &end);
	end.tv_sec += WAIT_MS / 1000;
	assert_int_equal(pthread_timedjoin_np(t->thread, NULL, &end), 0);
	assert_int_equal(t->first, expected);
	assert_int_equal(t->last, expected);
}

static int touched(struct toucher *t)
{
	return __atomic_load_n(&t->done, __ATOMIC_ACQUIRE);
}

static void write_page(uint64_t page, uint8_t value)
{
	memset(lab.own + page * FERRY_PAGE_SIZE, value, FERRY_PAGE_SIZE);
}

static void bring(uint64_t page, uint8_t value)
{
	assert_int_equal(ferry_fault_pages_claim(&lab.pages, 0, page, 1), 1);
	write_page(page, value);
	assert_int_equal(ferry_fault_placed(lab.fault, 0, page, 1, false), 0);
}

/* As a balloon does. */
static void punch(uint64_t page)
{
	assert_int_equal(fallocate(lab.block.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
				   (off_t)(page * FERRY_PAGE_SIZE), FERRY_PAGE_SIZE), 0);
}

/* ---- tests ---- */

static void states(void **state)
{
	struct ferry_fault_pages *p = &lab.pages;

	(void)state;
	assert_int_equal(ferry_fault_pages_init(p, &lab.ram, lab.placed_fd, true, NULL), 0);
	assert_int_equal(ferry_fault_pages_missing(p), 0);
	assert_int_equal(ferry_fault_pages_state(p, 0, 7), FERRY_PAGE_PLACED);
	assert_int_equal(ferry_fault_pages_claim(p, 0, 7, 1), 0);
	ferry_fault_pages_lack(p, 0, 60, 10);
	ferry_fault_pages_lack(p, 0, 60, 10); /* again counts nothing twice */
	assert_int_equal(ferry_fault_pages_missing(p), 10);
	assert_int_equal(ferry_fault_pages_state(p, 0, 60), FERRY_PAGE_ABSENT);
	assert_int_equal(ferry_fault_pages_claim(p, 0, 65, 2), 2);
	assert_int_equal(ferry_fault_pages_state(p, 0, 66), FERRY_PAGE_RECEIVING);
	/* Up to what is claimed already, over the border of a word. */
	assert_int_equal(ferry_fault_pages_claim(p, 0, 60, 10), 5);
	assert_int_equal(ferry_fault_pages_skip(p, 0, 60, 10), 7);
	assert_int_equal(ferry_fault_pages_claim(p, 0, 67, 100), 3);
	ferry_fault_pages_unclaim(p, 0, 67, 3);
	assert_int_equal(ferry_fault_pages_state(p, 0, 68), FERRY_PAGE_ABSENT);
	ferry_fault_pages_place(p, 0, 60, 2);
	assert_int_equal(ferry_fault_pages_missing(p), 8);
	ferry_fault_pages_free(p);

	/* A new worker: what was being received is absent, what was placed is. */
	assert_int_equal(ferry_fault_pages_init(p, &lab.ram, lab.placed_fd, false, NULL), 0);
	assert_int_equal(ferry_fault_pages_missing(p), 8);
	assert_int_equal(ferry_fault_pages_state(p, 0, 61), FERRY_PAGE_PLACED);
	assert_int_equal(ferry_fault_pages_state(p, 0, 62), FERRY_PAGE_ABSENT);
	ferry_fault_pages_free(p);

	lab.block.size_bytes = 40000 * FERRY_PAGE_SIZE;
	assert_int_equal(ferry_fault_pages_init(p, &lab.ram, lab.placed_fd, false, NULL), -EINVAL);
}

static void probe(void **state)
{
	struct ferry_error err = { 0 };
	struct stat st;
	int memfd;

	(void)state;
	assert_int_equal(ferry_fault_uffd_probe(&lab.ram, &err), 0);
	assert_int_equal(fstat(lab.block.fd, &st), 0);
	assert_int_equal(st.st_blocks, 0);
	memfd = lab.block.fd;
	lab.block.fd = open(".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	assert_int_equal(ferry_fault_uffd_probe(&lab.ram, &err), -EINVAL);
	assert_string_equal(err.text, "memory block 'ram' cannot be registered for postcopy: "
			    "Invalid argument");
	close(lab.block.fd);
	lab.block.fd = memfd;
}

static void absent_page_is_asked_for_once(void **state)
{
	struct toucher a, b;

	(void)state;
	start(3, 2);
	touch_start(&a, 0, 3);
	wait_wanted(3, 1);
	touch_start(&b, 0, 3);
	wait_waiting(2);
	assert_int_equal(lab.wanted[3], 1);
	assert_false(touched(&a) || touched(&b));
	bring(3, 0x33);
	touch_end(&a, 0x33);
	touch_end(&b, 0x33);
	assert_int_equal(stats_now().wanted, 2);
	assert_int_equal(ferry_fault_pages_missing(&lab.pages), 1);
}

static void page_being_received_is_not_seen(void **state)
{
	struct toucher a;

	(void)state;
	start(5, 1);
	assert_int_equal(ferry_fault_pages_claim(&lab.pages, 0, 5, 1), 1);
	memset(lab.own + 5 * FERRY_PAGE_SIZE, 0x55, FERRY_PAGE_SIZE / 2);
	touch_start(&a, 0, 5); /* a minor fault: half the page is in the file */
	wait_waiting(1);
	assert_int_equal(lab.wanted[5], 0);
	assert_false(touched(&a));
	write_page(5, 0x56);
	assert_int_equal(ferry_fault_placed(lab.fault, 0, 5, 1, false), 0);
	touch_end(&a, 0x56);
}

static void page_that_stopped_coming_is_asked_for_again(void **state)
{
	struct toucher a;

	(void)state;
	start(5, 2);
	assert_int_equal(ferry_fault_pages_claim(&lab.pages, 0, 5, 1), 1);
	touch_start(&a, 0, 5);
	wait_waiting(1);
	ferry_fault_ask_again(lab.fault);
	assert_int_equal(lab.wanted[5], 0);
	ferry_fault_pages_unclaim(&lab.pages, 0, 5, 1);
	ferry_fault_ask_again(lab.fault);
	wait_wanted(5, 1);
	assert_int_equal(lab.wanted[6], 0);
	bring(5, 1);
	touch_end(&a, 1);
}

static void pages_of_zeros(void **state)
{
	struct toucher a, b;
	struct stat st;

	(void)state;
	start(10, 4);
	touch_start(&a, 0, 10);
	wait_wanted(10, 1);
	assert_int_equal(ferry_fault_pages_claim(&lab.pages, 0, 10, 4), 4);
	assert_int_equal(ferry_fault_placed(lab.fault, 0, 10, 4, true), 0);
	touch_end(&a, 0);
	touch_start(&b, 0, 12);
	touch_end(&b, 0);
	/* Only what was touched is allocated. */
	assert_int_equal(fstat(lab.block.fd, &st), 0);
	assert_int_equal(st.st_blocks, 2 * FERRY_PAGE_SIZE / 512);
}

static void placed_page_is_shown_again(void **state)
{
	struct toucher a;

	(void)state;
	start(20, 1);
	bring(20, 7);
	touch_start(&a, 0, 20);
	touch_end(&a, 7);
	/* As reclaim does. */
	assert_int_equal(madvise(lab.guest[0], PAGES * FERRY_PAGE_SIZE, MADV_DONTNEED), 0);
	touch_start(&a, 0, 20);
	touch_end(&a, 7);
	punch(20);
	touch_start(&a, 0, 20);
	touch_end(&a, 0);
	assert_int_equal(lab.wanted[20], 0);
}

/* A page that is given back before its bytes are all here is a hole, and wanted from nobody. */
static void given_back_while_it_comes(void **state)
{
	struct toucher a;

	(void)state;
	start(20, 2);
	assert_int_equal(ferry_fault_pages_claim(&lab.pages, 0, 20, 2), 2);
	write_page(20, 7);
	write_page(21, 8);
	punch(20);
	touch_start(&a, 0, 20);
	wait_waiting(1);
	assert_false(touched(&a));
	assert_int_equal(ferry_fault_placed(lab.fault, 0, 20, 2, false), 0);
	touch_end(&a, 0);
	assert_int_equal(lab.wanted[20], 0);
	touch_start(&a, 0, 21);
	touch_end(&a, 8);
}

/* There is nothing to give back of a page that has not come: it comes, as Documentation says. */
static void given_back_before_it_comes(void **state)
{
	struct toucher a;

	(void)state;
	start(20, 1);
	punch(20);
	touch_start(&a, 0, 20);
	wait_wanted(20, 1);
	bring(20, 7);
	touch_end(&a, 7);
	punch(20);
	touch_start(&a, 0, 20);
	touch_end(&a, 0);
}

static int zap_guest(void *ctx, struct ferry_error *err)
{
	(void)ctx;
	(void)err;
	return madvise(lab.guest[0], PAGES * FERRY_PAGE_SIZE, MADV_DONTNEED);
}

static void mapped_pages_are_noticed(void **state)
{
	struct toucher a;

	(void)state;
	write_page(30, 9);
	touch_start(&a, 0, 30);
	touch_end(&a, 9);
	assert_int_equal(ferry_fault_pages_init(&lab.pages, &lab.ram, lab.placed_fd, true, NULL),
			 0);
	ferry_fault_pages_lack(&lab.pages, 0, 30, 1);
	start_adopted(false, NULL, -EBUSY);
	/* Nothing stays armed. */
	touch_start(&a, 0, 31);
	touch_end(&a, 0);
	close(lab.mappers[0].uffd);
	lab.mappers[0].uffd = open_uffd();
	start_adopted(false, zap_guest, 0);
	touch_start(&a, 0, 30);
	wait_wanted(30, 1);
	bring(30, 10);
	touch_end(&a, 10);
}

static void every_process_is_served(void **state)
{
	struct toucher a, b, c;

	(void)state;
	lab.n_mappers = 2;
	start(40, 2);
	touch_start(&a, 0, 40);
	touch_start(&b, 1, 40);
	touch_start(&c, 1, 41);
	wait_waiting(3);
	bring(40, 4);
	touch_end(&a, 4);
	touch_end(&b, 4);
	assert_int_equal(ferry_fault_pages_claim(&lab.pages, 0, 41, 1), 1);
	assert_int_equal(ferry_fault_placed(lab.fault, 0, 41, 1, true), 0);
	touch_end(&c, 0);
}

/* With all pages there memory is as any other: what is missing in it is zeros. */
static void nothing_stays_armed(void **state)
{
	struct toucher a;

	(void)state;
	start(40, 2);
	touch_start(&a, 0, 40);
	wait_wanted(40, 1);
	bring(40, 4);
	touch_end(&a, 4);
	ferry_fault_stop(lab.fault, true);
	lab.fault = NULL;
	touch_start(&a, 0, 41);
	touch_end(&a, 0);
}

static void new_worker_takes_over(void **state)
{
	struct toucher a, b;

	(void)state;
	start(50, 3);
	touch_start(&a, 0, 50);
	wait_wanted(50, 1);
	assert_int_equal(ferry_fault_pages_claim(&lab.pages, 0, 51, 1), 1);
	write_page(51, 0xee); /* not all of it came */
	ferry_fault_stop(lab.fault, false);
	ferry_fault_pages_free(&lab.pages);
	touch_start(&b, 0, 51); /* nobody listens */

	assert_int_equal(ferry_fault_pages_init(&lab.pages, &lab.ram, lab.placed_fd, false, NULL),
			 0);
	start_adopted(true, NULL, 0);
	wait_wanted(50, 2);
	wait_wanted(51, 1);
	assert_false(touched(&a) || touched(&b));
	bring(50, 5);
	bring(51, 6);
	touch_end(&a, 5);
	touch_end(&b, 6);
}

static void swept_pages_do_not_fault(void **state)
{
	struct toucher a;
	uint64_t before;

	(void)state;
	write_page(60, 6);
	write_page(61, 0xee);
	write_page(62, 8);
	start(61, 1);
	assert_int_equal(ferry_fault_sweep(lab.fault, NULL, NULL), 0);
	before = stats_now().faults;
	touch_start(&a, 0, 60);
	touch_end(&a, 6);
	touch_start(&a, 0, 62);
	touch_end(&a, 8);
	assert_int_equal(stats_now().faults, before);
	touch_start(&a, 0, 61); /* was not placed, and was not swept */
	wait_wanted(61, 1);
	bring(61, 7);
	touch_end(&a, 7);
}

/* ---- channels and faults race for the same pages ---- */

struct channel {
	pthread_t thread;
	unsigned int seed;
	unsigned int placed;
};

static uint8_t value_of(uint64_t page)
{
	return (uint8_t)(page % 7 ? page * 31 + 1 : 0); /* every seventh is zeros */
}

static void *run_channel(void *arg)
{
	struct channel *ch = arg;

	while (ferry_fault_pages_missing(&lab.pages)) {
		uint64_t page = (uint64_t)rand_r(&ch->seed) % PAGES, n, i;

		n = ferry_fault_pages_claim(&lab.pages, 0, page,
					    PAGES - page < 5 ? PAGES - page : 5);
		for (i = page; i < page + n; i++) {
			if (value_of(i))
				write_page(i, value_of(i));
			if (ferry_fault_placed(lab.fault, 0, i, 1, !value_of(i)))
				return NULL;
			ch->placed++;
		}
	}
	return ch;
}

static void *run_guest(void *arg)
{
	unsigned int seed = *(unsigned int *)arg;
	uint64_t i, wrong = 0;

	for (i = 0; i < 4 * PAGES; i++) {
		uint64_t page = (uint64_t)rand_r(&seed) % PAGES;
		const volatile uint8_t *at = lab.guest[i & 1] + page * FERRY_PAGE_SIZE;

		wrong += at[0] != value_of(page) || at[4095] != value_of(page);
		if (i % 16 == 0)
			madvise(lab.guest[i & 1], PAGES * FERRY_PAGE_SIZE, MADV_DONTNEED);
	}
	return wrong ? NULL : arg;
}

static void races(void **state)
{
	struct channel channels[3] = { { .seed = 1 }, { .seed = 2 }, { .seed = 3 } };
	unsigned int seeds[2] = { 10, 11 }, i, sum = 0;
	pthread_t guests[2];
	void *result;

	(void)state;
	lab.n_mappers = 2;
	start(0, PAGES);
	for (i = 0; i < 2; i++)
		assert_int_equal(pthread_create(&guests[i], NULL, run_guest, &seeds[i]), 0);
	for (i = 0; i < 3; i++)
		assert_int_equal(pthread_create(&channels[i].thread, NULL, run_channel,
						&channels[i]), 0);
	for (i = 0; i < 3; i++) {
		pthread_join(channels[i].thread, &result);
		assert_non_null(result);
		sum += channels[i].placed;
	}
	for (i = 0; i < 2; i++) {
		pthread_join(guests[i], &result);
		assert_non_null(result);
	}
	assert_int_equal(sum, PAGES);
}

/* A byte of a page that a balloon may have taken at any time since it was placed. */
static bool given_or_there(uint64_t page, uint64_t at)
{
	uint8_t byte = *(volatile uint8_t *)(lab.guest[0] + page * FERRY_PAGE_SIZE + at);

	return byte == value_of(page) || !byte;
}

static void *run_balloon_guest(void *arg)
{
	unsigned int seed = *(unsigned int *)arg;
	uint64_t i, wrong = 0;

	for (i = 0; i < 8 * PAGES; i++) {
		uint64_t page = (uint64_t)rand_r(&seed) % PAGES;

		wrong += !given_or_there(page, 0) || !given_or_there(page, FERRY_PAGE_SIZE - 1);
		page = (uint64_t)rand_r(&seed) % PAGES;
		if (ferry_fault_pages_state(&lab.pages, 0, page) == FERRY_PAGE_PLACED)
			punch(page);
	}
	return wrong ? NULL : arg;
}

/* Nobody waits for ever, and nobody is asked for a page that has been there. */
static void races_with_a_balloon(void **state)
{
	struct channel channels[2] = { { .seed = 4 }, { .seed = 5 } };
	unsigned int seeds[2] = { 20, 21 }, i;
	pthread_t guests[2];
	struct timespec end;
	void *result;

	(void)state;
	start(0, PAGES);
	for (i = 0; i < 2; i++)
		assert_int_equal(pthread_create(&guests[i], NULL, run_balloon_guest, &seeds[i]),
				 0);
	for (i = 0; i < 2; i++)
		assert_int_equal(pthread_create(&channels[i].thread, NULL, run_channel,
						&channels[i]), 0);
	clock_gettime(CLOCK_REALTIME, &end);
	end.tv_sec += WAIT_MS / 1000;
	for (i = 0; i < 2; i++) {
		assert_int_equal(pthread_timedjoin_np(guests[i], &result, &end), 0);
		assert_non_null(result);
		pthread_join(channels[i].thread, &result);
		assert_non_null(result);
	}
	for (i = 0; i < PAGES; i++)
		assert_true(lab.wanted[i] <= 2); /* once by each guest */
	assert_int_equal(stats_now().waiting, 0);
}

static void waits_are_counted(void **state)
{
	struct ferry_fault_waits w = { 0 };
	unsigned int i;

	(void)state;
	assert_true(ferry_fault_waits_add(&w, 0, 5, 100, 1000));
	assert_false(ferry_fault_waits_add(&w, 0, 5, 101, 2000));
	assert_false(ferry_fault_waits_add(&w, 0, 5, 100, 3000)); /* the same one again */
	assert_true(ferry_fault_waits_add(&w, 1, 5, 102, 3000));
	for (i = 0; i < 100; i++)
		assert_true(ferry_fault_waits_add(&w, 2, i, 200, 0));
	assert_false(ferry_fault_waits_any(&w, 0, 0, 5));
	assert_int_equal(ferry_fault_waits_end(&w, 0, 0, 5, 4000), 0);
	assert_true(ferry_fault_waits_any(&w, 0, 5, 1));
	assert_false(ferry_fault_waits_any(&w, 1, 6, 1));
	assert_int_equal(ferry_fault_waits_end(&w, 0, 5, 1, 1000 + 1500), 2);
	assert_int_equal(w.stats.histogram[1], 1); /* 1.5 us */
	assert_int_equal(w.stats.histogram[0], 1); /* 0.5 us */
	assert_int_equal(w.stats.max_wait_ns, 1500);
	assert_int_equal(ferry_fault_waits_end(&w, 2, 0, 100, 1ull << 62), 100);
	assert_int_equal(w.stats.histogram[FERRY_FAULT_BUCKETS - 1], 100);
	assert_int_equal(w.count, 1);
	assert_int_equal(w.n_threads, 3);
	ferry_fault_waits_free(&w);
}

/* To an eighth of what they are, from the top. */
static void waits_in_percent(void **state)
{
	struct ferry_fault_waits w = { 0 };
	uint64_t i, p;

	(void)state;
	assert_int_equal(ferry_fault_waits_percentile(&w, 50), 0);
	for (i = 1; i <= 100; i++) {
		assert_true(ferry_fault_waits_add(&w, 0, i, 1, 0));
		assert_int_equal(ferry_fault_waits_end(&w, 0, i, 1, i * 1000), 1);
	}
	p = ferry_fault_waits_percentile(&w, 50);
	assert_in_range(p, 50000, 50000 * 9 / 8);
	p = ferry_fault_waits_percentile(&w, 99);
	assert_in_range(p, 99000, 99000 * 9 / 8);
	assert_in_range(ferry_fault_waits_percentile(&w, 1), 1000, 1125);
	assert_true(ferry_fault_waits_add(&w, 0, 1, 1, 0));
	assert_int_equal(ferry_fault_waits_end(&w, 0, 1, 1, UINT64_MAX), 1);
	assert_true(ferry_fault_waits_percentile(&w, 100) > 1ull << 40);
	assert_true(ferry_fault_waits_add(&w, 0, 1, 1, 7));
	assert_int_equal(ferry_fault_waits_end(&w, 0, 1, 1, 7), 1);
	ferry_fault_waits_free(&w);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(waits_in_percent),
		cmocka_unit_test_setup_teardown(states, setup, teardown),
		cmocka_unit_test_setup_teardown(probe, setup, teardown),
		cmocka_unit_test_setup_teardown(absent_page_is_asked_for_once, setup, teardown),
		cmocka_unit_test_setup_teardown(page_being_received_is_not_seen, setup, teardown),
		cmocka_unit_test_setup_teardown(page_that_stopped_coming_is_asked_for_again, setup,
						teardown),
		cmocka_unit_test_setup_teardown(pages_of_zeros, setup, teardown),
		cmocka_unit_test_setup_teardown(placed_page_is_shown_again, setup, teardown),
		cmocka_unit_test_setup_teardown(given_back_while_it_comes, setup, teardown),
		cmocka_unit_test_setup_teardown(given_back_before_it_comes, setup, teardown),
		cmocka_unit_test_setup_teardown(races_with_a_balloon, setup, teardown),
		cmocka_unit_test_setup_teardown(mapped_pages_are_noticed, setup, teardown),
		cmocka_unit_test_setup_teardown(every_process_is_served, setup, teardown),
		cmocka_unit_test_setup_teardown(nothing_stays_armed, setup, teardown),
		cmocka_unit_test_setup_teardown(new_worker_takes_over, setup, teardown),
		cmocka_unit_test_setup_teardown(swept_pages_do_not_fault, setup, teardown),
		cmocka_unit_test_setup_teardown(races, setup, teardown),
		cmocka_unit_test(waits_are_counted),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
