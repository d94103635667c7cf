// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A KVM guest whose memory is a view: its stores are noted exactly, none is lost while a
 * host thread writes too, and the view can be put in the place of a plain mapping, and
 * taken away, under the running guest.
 *
 * The guest adds 1 to a word of each page it is sent over (machine.h). So every word's value
 * is known, and their sum is the number of stores.
 */
#include "harness.h"
#include "machine.h"
#include "shadow.h"
#include "tracker.h"

#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/ioctl.h>
#include <sys/resource.h>

#define PAGES 512UL
#define BYTES (PAGES * PAGE)
#define DEADLINE_NS 60000000000ULL

FIXTURE(kvm)
{
	struct tracker t;
	struct shadow shadow;
	struct machine machine;
	char *at;		/* the guest's memory, tracked or not */
	_Atomic int stop, pause, paused;
	_Atomic uint64_t passes;
	_Atomic uint64_t host_stores;
	_Atomic int trouble;
};

/*
 * One machine exists as long as this program runs, which is what switches a static key in
 * the scheduler: QEMU 7.2's emulation can lose its way when code is patched that another
 * processor is about to run ("Oops: int3" in __schedule), so that shall not happen in each
 * test.
 */
static void __attribute__((constructor)) keep_a_machine(void)
{
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);

	if (kvm >= 0)
		(void)!ioctl(kvm, KVM_CREATE_VM, 0);
}

FIXTURE_SETUP(kvm)
{
	ASSERT_EQ(0, tracker_make(&self->t, PAGES));
	self->at = tracker_view(&self->t);
	ASSERT_NE(NULL, self->at);
	ASSERT_EQ(0, machine_make(&self->machine, self->at, BYTES, 0));
	ASSERT_EQ(0, shadow_make(&self->shadow, self->t.memfd, PAGES));
}

FIXTURE_TEARDOWN(kvm)
{
	machine_end(&self->machine);
	shadow_end(&self->shadow);
	tracker_end(&self->t);
}

TEST_F(kvm, guest_stores_are_counted)
{
	ASSERT_LE(0, tracker_sync(&self->t));
	for (int round = 0; round < 30; round++) {
		uint64_t stride = 1 + (uint64_t)round % 3, n = 100;

		ASSERT_EQ(0, machine_pass(&self->machine, 16 * PAGE, n, stride * PAGE));
		ASSERT_EQ(n, tracker_sync(&self->t));
		for (uint64_t i = 0; i < n; i++)
			EXPECT_TRUE(bit_get(self->t.bits, 16 + i * stride));
		ASSERT_EQ(0, tracker_sync(&self->t));
	}
	EXPECT_EQ(30, *(uint32_t *)(self->at + 16 * PAGE));
}

TEST_F(kvm, clear_and_scan_protect_from_the_guest)
{
	struct ferry_pages pages = { .size = sizeof(pages), .npages = PAGES,
				     .bitmap = (uintptr_t)self->t.bits };
	struct ferry_extent extent;
	struct ferry_scan scan = { .size = sizeof(scan), .flags = FERRY_SCAN_CLEAR,
				   .npages = PAGES, .extents = (uintptr_t)&extent,
				   .max_extents = 1 };

	ASSERT_LE(0, tracker_sync(&self->t));
	for (int round = 0; round < 5; round++) {
		ASSERT_EQ(0, machine_pass(&self->machine, 30 * PAGE, 50, PAGE));
		ASSERT_EQ(50, tracker_get(&self->t));
		ASSERT_EQ(0, ferry_ioctl(self->t.fd, FERRY_CLEAR, &pages));
		EXPECT_EQ(50, pages.out_pages);
		ASSERT_EQ(0, machine_pass(&self->machine, 30 * PAGE, 50, PAGE));
		ASSERT_EQ(0, ferry_ioctl(self->t.fd, FERRY_SCAN, &scan));
		EXPECT_EQ(30, extent.first_page);
		EXPECT_EQ(50, extent.npages);
	}
}

TEST_F(kvm, started_under_a_guest_that_has_written)
{
	ASSERT_EQ(0, tracker_stop(&self->t));
	ASSERT_EQ(0, machine_pass(&self->machine, 16 * PAGE, 64, PAGE));
	ASSERT_EQ(0, tracker_start(&self->t));
	ASSERT_EQ(0, machine_pass(&self->machine, 16 * PAGE, 64, PAGE));
	EXPECT_EQ(64, tracker_sync(&self->t));
}

static FIXTURE_DATA(kvm) *scene;

static void rest_if_asked(void)
{
	if (!scene->pause)
		return;
	scene->paused++;
	while (scene->pause && !scene->stop)
		usleep(200);
	scene->paused--;
}

static void *guest_main(void *unused)
{
	while (!scene->stop && !scene->trouble) {
		rest_if_asked();
		/* Which word of each page differs from pass to pass. */
		if (machine_pass(&scene->machine, PAGE + scene->passes % 16 * 4, PAGES - 1, PAGE))
			scene->trouble = 1;
		else
			scene->passes++;
	}
	while (!scene->stop)
		rest_if_asked();
	return NULL;
}

static void *host_main(void *unused)
{
	uint32_t random = 3;

	while (!scene->stop) {
		rest_if_asked();
		for (int i = 0; i < 16; i++) {
			char *at = scene->at + PAGE + random_next(&random) % (PAGES - 1) * PAGE;

			atomic_fetch_add((_Atomic uint32_t *)(at + 2048), 1);
		}
		scene->host_stores += 16;
	}
	return NULL;
}

static int paused(int n)
{
	uint64_t end = clock_ns() + DEADLINE_NS;

	while (scene->paused != n) {
		if (clock_ns() > end)
			return -ETIMEDOUT;
		usleep(100);
	}
	return 0;
}

/* The 32-bit words that guest and host added to, beyond the code's page. */
static uint64_t stores_in(struct shadow *shadow)
{
	uint64_t sum = 0;

	for (uint64_t page = 1; page < PAGES; page++)
		for (size_t word = 0; word < PAGE / 4; word++) {
			uint32_t value;

			memcpy(&value, shadow->copy + page * PAGE + word * 4, sizeof(value));
			sum += value;
		}
	return sum;
}

TEST_F_TIMEOUT(kvm, no_write_is_lost, 300)
{
	uint64_t end = clock_ns() + harness_seconds(2) * 1000000000ULL, where = 0;
	unsigned int rounds = 0;
	pthread_t threads[2];
	long stale = 0;

	scene = self;
	ASSERT_EQ(0, pthread_create(&threads[0], NULL, guest_main, NULL));
	ASSERT_EQ(0, pthread_create(&threads[1], NULL, host_main, NULL));
	setpriority(PRIO_PROCESS, 0, -5);
	while ((clock_ns() < end || self->passes < 3) && !stale && !self->trouble) {
		uint64_t next = clock_ns() + 150000000ULL;

		do {
			ASSERT_EQ(0, shadow_follow(&self->shadow, &self->t, rounds++));
		} while (clock_ns() < next);
		self->pause = 1;
		ASSERT_EQ(0, paused(2));
		ASSERT_EQ(0, shadow_follow(&self->shadow, &self->t, rounds++));
		stale = shadow_stale(&self->shadow, &where);
		self->pause = 0;
		ASSERT_EQ(0, paused(0));
	}
	self->stop = 1;
	for (int i = 0; i < 2; i++)
		pthread_join(threads[i], NULL);
	ASSERT_EQ(0, shadow_follow(&self->shadow, &self->t, 0));
	printf("#   %u syncs, %llu guest passes, %llu host stores\n", rounds,
	       (unsigned long long)self->passes, (unsigned long long)self->host_stores);
	EXPECT_EQ(0, stale) {
		TH_LOG("stale pages, the first is %llu", (unsigned long long)where);
	}
	EXPECT_EQ(0, self->trouble);
	EXPECT_EQ(self->passes * (PAGES - 1) + self->host_stores, stores_in(&self->shadow));
}

/* Map fd somewhere, then move that over the guest's memory: never a moment without any. */
static int put_in_place(int fd, char *at)
{
	char *spare = file_map(fd, PAGES);

	if (!spare)
		return -errno;
	return mremap(spare, BYTES, BYTES, MREMAP_MAYMOVE | MREMAP_FIXED, at) == at ? 0 : -errno;
}

TEST_F_TIMEOUT(kvm, switched_in_place, 300)
{
	unsigned int rounds = 0, switches = 0;
	uint64_t end = clock_ns() + harness_seconds(2) * 1000000000ULL, where = 0;
	pthread_t threads[2];
	long stale = 0;

	scene = self;
	ASSERT_EQ(0, put_in_place(self->t.memfd, self->at));
	ASSERT_EQ(0, tracker_stop(&self->t));
	ASSERT_EQ(0, pthread_create(&threads[0], NULL, guest_main, NULL));
	ASSERT_EQ(0, pthread_create(&threads[1], NULL, host_main, NULL));
	setpriority(PRIO_PROCESS, 0, -5);
	while ((clock_ns() < end || switches < 3) && !stale && !self->trouble) {
		uint64_t next = clock_ns() + 150000000ULL;

		/* On: from here every store is noted, and then everything is copied once. */
		ASSERT_EQ(0, tracker_start(&self->t));
		ASSERT_EQ(0, put_in_place(self->t.fd, self->at));
		shadow_all(&self->shadow);
		do {
			ASSERT_EQ(0, shadow_follow(&self->shadow, &self->t, rounds++));
		} while (clock_ns() < next);
		self->pause = 1;
		ASSERT_EQ(0, paused(2));
		ASSERT_EQ(0, shadow_follow(&self->shadow, &self->t, rounds++));
		stale = shadow_stale(&self->shadow, &where);
		self->pause = 0;
		ASSERT_EQ(0, paused(0));
		/* Off again. */
		ASSERT_EQ(0, put_in_place(self->t.memfd, self->at));
		ASSERT_EQ(0, tracker_stop(&self->t));
		switches++;
		usleep(20000);
	}
	self->stop = 1;
	for (int i = 0; i < 2; i++)
		pthread_join(threads[i], NULL);
	printf("#   %u switches, %u syncs, %llu guest passes\n", switches, rounds,
	       (unsigned long long)self->passes);
	EXPECT_EQ(0, stale) {
		TH_LOG("stale pages, the first is %llu", (unsigned long long)where);
	}
	EXPECT_EQ(0, self->trouble);
	shadow_all(&self->shadow);
	EXPECT_EQ(self->passes * (PAGES - 1) + self->host_stores, stores_in(&self->shadow));
}

HARNESS_MAIN
