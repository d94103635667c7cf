// SPDX-License-Identifier: GPL-2.0-or-later
#include "fault_rig.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/uffd.h"

int rig_setup(void **state)
{
	struct fault_rig *rig = calloc(1, sizeof(*rig));
	unsigned int i;

	if (!rig)
		return -1;
	*state = rig;
	pthread_mutex_init(&rig->lock, NULL);
	pthread_cond_init(&rig->changed, NULL);
	rig->block = (struct ferry_ram_block){
		.name = "ram", .size_bytes = PAGES * FERRY_PAGE_SIZE, .page_size = FERRY_PAGE_SIZE,
		.fd = memfd_create("ram", MFD_CLOEXEC),
	};
	rig->placed_fd = memfd_create("placed", MFD_CLOEXEC);
	if (rig->block.fd < 0 || ftruncate(rig->block.fd, PAGES * FERRY_PAGE_SIZE))
		return -1;
	rig->own = mmap(NULL, PAGES * FERRY_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED,
			rig->block.fd, 0);
	for (i = 0; i < 2; i++) {
		rig->guest[i] = mmap(NULL, PAGES * FERRY_PAGE_SIZE, PROT_READ | PROT_WRITE,
				     MAP_SHARED, rig->block.fd, 0);
		rig->addr[i][0] = (uintptr_t)rig->guest[i];
		rig->mappers[i] = (struct ferry_fault_mapper){
			.uffd = ferry_uffd_create(NULL), .pid = getpid(), .addr = rig->addr[i],
		};
		if (rig->mappers[i].uffd < 0)
			return -1;
	}
	rig->n_mappers = 1;
	rig->ram = (struct ferry_ram){ &rig->block, 1 };
	return 0;
}

int rig_teardown(void **state)
{
	struct fault_rig *rig = *state;
	unsigned int i;

	ferry_fault_stop(rig->fault, true);
	ferry_fault_pages_free(&rig->pages);
	for (i = 0; i < 2; i++) {
		munmap(rig->guest[i], PAGES * FERRY_PAGE_SIZE);
		close(rig->mappers[i].uffd);
	}
	munmap(rig->own, PAGES * FERRY_PAGE_SIZE);
	close(rig->block.fd);
	close(rig->placed_fd);
	free(rig);
	return 0;
}

static void want(void *ctx, unsigned int block, uint64_t page)
{
	struct fault_rig *rig = ctx;

	assert_int_equal(block, 0);
	pthread_mutex_lock(&rig->lock);
	rig->wanted[page]++;
	pthread_cond_broadcast(&rig->changed);
	pthread_mutex_unlock(&rig->lock);
}

unsigned int rig_wanted(struct fault_rig *rig, uint64_t page)
{
	unsigned int times;

	pthread_mutex_lock(&rig->lock);
	times = rig->wanted[page];
	pthread_mutex_unlock(&rig->lock);
	return times;
}

void rig_wait_wanted(struct fault_rig *rig, uint64_t page, unsigned int times)
{
	struct timespec end;

	clock_gettime(CLOCK_REALTIME, &end);
	end.tv_sec += WAIT_MS / 1000;
	pthread_mutex_lock(&rig->lock);
	while (rig->wanted[page] < times)
		assert_int_equal(pthread_cond_timedwait(&rig->changed, &rig->lock, &end), 0);
	pthread_mutex_unlock(&rig->lock);
}

void rig_start_adopted(struct fault_rig *rig, bool adopted,
		       int (*zap)(void *rig, struct ferry_error *err), int expected)
{
	struct ferry_fault_params params = {
		.ram = &rig->ram, .mappers = rig->mappers, .n_mappers = rig->n_mappers,
		.pages = &rig->pages, .want = want, .ctx = rig,
		.adopted = adopted,
	};
	struct ferry_error err = { 0 };
	int r = ferry_fault_start(&params, zap, &rig->fault, &err);

	if (r != expected)
		print_error("%s\n", err.text);
	assert_int_equal(r, expected);
}

void rig_start(struct fault_rig *rig, uint64_t first, uint64_t lacking)
{
	assert_int_equal(ferry_fault_pages_init(&rig->pages, &rig->ram, rig->placed_fd, true, NULL),
			 0);
	ferry_fault_pages_lack(&rig->pages, 0, first, lacking);
	rig_start_adopted(rig, false, NULL, 0);
}

struct ferry_fault_stats rig_stats_now(struct fault_rig *rig)
{
	struct ferry_fault_stats st;

	ferry_fault_stats(rig->fault, &st);
	return st;
}

void rig_wait_waiting(struct fault_rig *rig, uint64_t waiting)
{
	uint64_t deadline_ns = ferry_clock_in_ms(WAIT_MS);

	while (rig_stats_now(rig).waiting != waiting) {
		assert_true(ferry_clock_ns() < deadline_ns);
		ferry_clock_sleep_ns(FERRY_NS_PER_MS);
	}
}

/* ---- somebody touches pages ---- */

static void *touch(void *arg)
{
	struct toucher *t = arg;

	t->first = *(volatile const uint8_t *)t->at;
	t->last = *(volatile const uint8_t *)(t->at + FERRY_PAGE_SIZE - 1);
	__atomic_store_n(&t->done, 1, __ATOMIC_RELEASE);
	return NULL;
}

void rig_touch_start(struct fault_rig *rig, struct toucher *t, unsigned int mapper, uint64_t page)
{
	*t = (struct toucher){ .at = rig->guest[mapper] + page * FERRY_PAGE_SIZE };
	assert_int_equal(pthread_create(&t->thread, NULL, touch, t), 0);
}

void rig_touch_end(struct toucher *t, uint8_t expected)
{
	struct timespec end;

	clock_gettime(CLOCK_REALTIME, &end);
	end.tv_sec += WAIT_MS / 1000;
	assert_int_equal(pthread_timedjoin_np(t->thread, NULL, &end), 0);
	assert_int_equal(t->first, expected);
	assert_int_equal(t->last, expected);
}

int rig_touched(struct toucher *t)
{
	return __atomic_load_n(&t->done, __ATOMIC_ACQUIRE);
}

void rig_write_page(struct fault_rig *rig, uint64_t page, uint8_t value)
{
	memset(rig->own + page * FERRY_PAGE_SIZE, value, FERRY_PAGE_SIZE);
}

void rig_bring(struct fault_rig *rig, uint64_t page, uint8_t value)
{
	assert_int_equal(ferry_fault_pages_claim(&rig->pages, 0, page, 1), 1);
	rig_write_page(rig, page, value);
	assert_int_equal(ferry_fault_placed(rig->fault, 0, page, 1, false), 0);
}

void rig_punch(struct fault_rig *rig, uint64_t page)
{
	assert_int_equal(fallocate(rig->block.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
				   (off_t)(page * FERRY_PAGE_SIZE), FERRY_PAGE_SIZE), 0);
}
