// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The trackers against a real process: a child that maps the same memory file,
 * makes a userfaultfd (fetched with pidfd_getfd) and obeys a control page. One
 * body for every tracker that this kernel can run; selftests/dirty/vm.sh runs it
 * on other kernels.
 *
 * The race test is what matters: while threads of the child write, every
 * collect()'s pages are copied to a shadow, as a migration does; after the
 * writers have stopped and one last collect(), shadow and memory must be equal.
 * Its twin leaves out the last collect()'s pages and must find stale pages, or
 * the test could not see a lost write.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "dirty/dirty.h"
#include "base/uapi_compat.h"
#include "huge_pool.h"

#define PAGES 4096ul /* 16 MiB */
#define SIZE (PAGES * FERRY_PAGE_SIZE)
#define WRITERS 2
#define ROUNDS 300
#define WAIT_MS 60000 /* kernels under emulation are slow */
#define NO_SUCH_PID (1 << 23) /* pid_max is at most 2^22 */
#define SHMEM_ENABLED "/sys/kernel/mm/transparent_hugepage/shmem_enabled"

enum command {
	CMD_NONE,
	CMD_WRITE,  /* pages arg[0] .. +arg[1] */
	CMD_READ,
	CMD_MADVISE, /* the same, advice arg[2] */
	CMD_REMAP, /* something else over the same */
	CMD_RACE,   /* start the writers; arg[0]: with MADV_DONTNEED among them */
	CMD_STOP,   /* stop them */
	CMD_UFFD,   /* make another userfaultfd */
};

struct control {
	int command; /* atomic; CMD_NONE: done */
	uint64_t arg[3];
	int uffd; /* the child's number for it */
	int ready;
	int racing;
	int chaos;
	uint64_t writes;
};

struct target {
	struct control *control;
	uint8_t *mem; /* the same address in parent and child */
	uint8_t *shadow;
	struct ferry_ram ram;
	struct ferry_bitmap dirty;
	struct ferry_dirty_target t;
	struct ferry_error err;
};

/* ---- the child ---- */

static struct control *control;
static uint8_t *child_mem;

static uint64_t next_random(uint64_t *seed)
{
	*seed ^= *seed << 13;
	*seed ^= *seed >> 7;
	*seed ^= *seed << 17;
	return *seed;
}

static void *race_thread(void *arg)
{
	uint64_t seed = 88172645463325252ull + (uintptr_t)arg;

	while (__atomic_load_n(&control->racing, __ATOMIC_ACQUIRE)) {
		uint64_t r = next_random(&seed);
		uint64_t page = (r >> 8) % PAGES;

		/* Half the writes go to few pages: those are collected while being written. */
		if (r & 1)
			page %= 16;
		__atomic_fetch_add((uint64_t *)(child_mem + page * FERRY_PAGE_SIZE + (r & 0xff8)),
				   1, __ATOMIC_RELAXED);
		if (control->chaos && (r & 0xff) == 0)
			madvise(child_mem + ((r >> 32) % PAGES) * FERRY_PAGE_SIZE, FERRY_PAGE_SIZE,
				MADV_DONTNEED);
		__atomic_fetch_add(&control->writes, 1, __ATOMIC_RELAXED);
	}
	return NULL;
}

static int new_uffd(void)
{
	int dev, fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	if (fd >= 0)
		return fd;
	dev = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	return dev < 0 ? -1 : ioctl(dev, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
}

static void obey(int command, pthread_t *writers)
{
	uint64_t *arg = control->arg;
	uint8_t *from = child_mem + arg[0] * FERRY_PAGE_SIZE;
	uint64_t i;

	switch (command) {
	case CMD_WRITE:
		for (i = 0; i < arg[1]; i++)
			from[i * FERRY_PAGE_SIZE]++;
		break;
	case CMD_READ:
		for (i = 0; i < arg[1]; i++)
			(void)*(volatile uint8_t *)(from + i * FERRY_PAGE_SIZE);
		break;
	case CMD_MADVISE:
		if (madvise(from, arg[1] * FERRY_PAGE_SIZE, (int)arg[2]))
			abort();
		break;
	case CMD_REMAP:
		if (mmap(from, arg[1] * FERRY_PAGE_SIZE, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED)
			abort();
		break;
	case CMD_RACE:
		control->chaos = (int)arg[0];
		control->racing = 1;
		for (i = 0; i < WRITERS; i++)
			pthread_create(&writers[i], NULL, race_thread, (void *)(uintptr_t)i);
		break;
	case CMD_STOP:
		__atomic_store_n(&control->racing, 0, __ATOMIC_RELEASE);
		for (i = 0; i < WRITERS; i++)
			pthread_join(writers[i], NULL);
		break;
	case CMD_UFFD:
		close(control->uffd);
		control->uffd = new_uffd();
		break;
	}
}

static void child_main(struct target *t)
{
	pthread_t writers[WRITERS];
	int command;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	control = t->control;
	child_mem = t->mem;
	control->uffd = new_uffd();
	__atomic_store_n(&control->ready, 1, __ATOMIC_RELEASE);
	for (;;) {
		command = __atomic_load_n(&control->command, __ATOMIC_ACQUIRE);
		if (command == CMD_NONE) {
			sched_yield();
			continue;
		}
		obey(command, writers);
		__atomic_store_n(&control->command, CMD_NONE, __ATOMIC_RELEASE);
	}
}

/* ---- the parent ---- */

static uint64_t size_bytes = SIZE; /* of the target's memory */
static uint32_t page_size = FERRY_PAGE_SIZE;

static void wait_for(int *word, int value)
{
	uint64_t deadline = ferry_clock_in_ms(WAIT_MS);

	while (__atomic_load_n(word, __ATOMIC_ACQUIRE) != value) {
		assert_true(ferry_clock_ns() < deadline);
		sched_yield();
	}
}

static void tell(struct target *t, enum command command, uint64_t a, uint64_t b, uint64_t c)
{
	t->control->arg[0] = a;
	t->control->arg[1] = b;
	t->control->arg[2] = c;
	__atomic_store_n(&t->control->command, command, __ATOMIC_RELEASE);
	wait_for(&t->control->command, CMD_NONE);
}

static void *map_or_fail(void *at, size_t len, int flags, int fd)
{
	void *mem = mmap(at, len, PROT_READ | PROT_WRITE, flags, fd, 0);

	assert_true(mem != MAP_FAILED);
	return mem;
}

/* An address good for huge pages, the same in the parent and the child. */
static uint8_t *map_aligned(int fd)
{
	uint8_t *room = map_or_fail(NULL, size_bytes + HUGE_SIZE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	uint8_t *at = (uint8_t *)(((uintptr_t)room + HUGE_SIZE - 1) & ~(HUGE_SIZE - 1));

	munmap(room, size_bytes + HUGE_SIZE);
	return map_or_fail(at, size_bytes, MAP_SHARED | MAP_FIXED, fd);
}

static void fetch_uffd(struct target *t)
{
	int pidfd = (int)syscall(SYS_pidfd_open, t->t.pid, 0);

	t->t.uffd = t->control->uffd < 0 ? -1 :
		    (int)syscall(SYS_pidfd_getfd, pidfd, t->control->uffd, 0);
	close(pidfd);
}

static void target_start_on(struct target *t, int fd)
{
	struct ferry_ram_block b = {
		.name = "mem",
		.size_bytes = size_bytes,
		.page_size = page_size,
		.fd = fd,
	};

	memset(t, 0, sizeof(*t));
	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, (off_t)size_bytes), 0);
	t->mem = map_aligned(fd);
	b.vmm_addr = (uintptr_t)t->mem;
	t->shadow = map_or_fail(NULL, size_bytes, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	t->control = map_or_fail(NULL, 4096, MAP_SHARED | MAP_ANONYMOUS, -1);
	assert_int_equal(ferry_ram_add(&t->ram, &b, NULL), 0);
	assert_int_equal(ferry_ram_map(&t->ram, true, NULL), 0);
	assert_int_equal(ferry_bitmap_init(&t->dirty, &t->ram), 0);
	t->t.ram = &t->ram;
	t->t.pid = fork();
	assert_true(t->t.pid >= 0);
	if (t->t.pid == 0)
		child_main(t);
	/* the parent writes, if at all, by ram.blocks[0].map */
	munmap(t->mem, size_bytes);
	wait_for(&t->control->ready, 1);
	fetch_uffd(t);
}

static void target_start(struct target *t)
{
	target_start_on(t, memfd_create("test-dirty", MFD_CLOEXEC));
}

static void target_end(struct target *t)
{
	kill(t->t.pid, SIGKILL);
	waitpid(t->t.pid, NULL, 0);
	if (t->t.uffd >= 0)
		close(t->t.uffd);
	munmap(t->shadow, size_bytes);
	munmap(t->control, 4096);
	ferry_bitmap_free(&t->dirty);
	ferry_ram_free(&t->ram);
}

/* The tracker under test, which cmocka hands to each test. */
static const struct ferry_dirty_ops *tracker(void **state)
{
	return *state;
}

static struct ferry_dirty *expect_start(struct target *t, const struct ferry_dirty_ops *ops)
{
	struct ferry_dirty *d = NULL;
	int ret = ops->start(&t->t, &d, &t->err);

	if (ret)
		print_error("start: %s\n", t->err.text);
	assert_int_equal(ret, 0);
	assert_ptr_equal(d->ops, ops);
	return d;
}

static void expect_collect(struct target *t, struct ferry_dirty *d)
{
	int ret = d->ops->collect(d, &t->dirty, &t->err);

	if (ret)
		print_error("collect: %s\n", t->err.text);
	assert_int_equal(ret, 0);
}

/* Collects; the dirty pages must be exactly [first, first + pages). */
static void expect_dirty(struct target *t, struct ferry_dirty *d, uint64_t first, uint64_t pages)
{
	struct ferry_bitmap_run run = { 0 };

	ferry_bitmap_zero(&t->dirty);
	expect_collect(t, d);
	assert_int_equal(ferry_bitmap_count(&t->dirty), pages);
	if (!pages)
		return;
	assert_true(ferry_bitmap_next_run(&t->dirty, &run, 0));
	assert_int_equal(run.first_page, first);
	assert_int_equal(run.pages, pages);
}

static void reports_what_was_written(void **state)
{
	const struct ferry_dirty_ops *ops = tracker(state);
	struct ferry_dirty *d;
	struct target t;

	target_start(&t);
	tell(&t, CMD_WRITE, 0, 100, 0);
	d = expect_start(&t, ops);
	expect_dirty(&t, d, 0, 0); /* written before start(): the bulk round's */
	tell(&t, CMD_WRITE, 10, 5, 0);
	expect_dirty(&t, d, 10, 5);
	expect_dirty(&t, d, 0, 0);
	tell(&t, CMD_READ, 0, 2000, 0);
	expect_dirty(&t, d, 0, 0);
	tell(&t, CMD_WRITE, 1500, 1, 0); /* was read only, then written */
	expect_dirty(&t, d, 1500, 1);
	tell(&t, CMD_WRITE, PAGES - 3, 3, 0); /* the first touch of a page table */
	expect_dirty(&t, d, PAGES - 3, 3);
	tell(&t, CMD_WRITE, 0, PAGES, 0);
	expect_dirty(&t, d, 0, PAGES);

	/* collect() adds to what is there */
	tell(&t, CMD_WRITE, 0, 1, 0);
	ferry_bitmap_zero(&t.dirty);
	ferry_bitmap_set(&t.dirty, 0, 77, 1);
	expect_collect(&t, d);
	assert_int_equal(ferry_bitmap_count(&t.dirty), 2);
	assert_true(ferry_bitmap_test(&t.dirty, 0, 0));
	d->ops->stop(d);
	target_end(&t);
}

/* So large that several threads scan it: nothing is lost or invented where their parts meet. */
static void parts_of_a_large_block(void **state)
{
	const uint64_t large = (1ul << 30) + 100 * FERRY_PAGE_SIZE, pages = large / FERRY_PAGE_SIZE;
	const struct ferry_dirty_ops *ops = tracker(state);
	struct ferry_dirty *d;
	struct target t;

	size_bytes = large;
	target_start(&t);
	d = expect_start(&t, ops);
	expect_dirty(&t, d, 0, 0);
	tell(&t, CMD_WRITE, pages / 2 - 200, 400, 0);
	expect_dirty(&t, d, pages / 2 - 200, 400);
	expect_dirty(&t, d, 0, 0);
	tell(&t, CMD_WRITE, 0, 1, 0);
	expect_dirty(&t, d, 0, 1);
	tell(&t, CMD_WRITE, pages - 1, 1, 0);
	expect_dirty(&t, d, pages - 1, 1);
	d->ops->stop(d);
	target_end(&t);
	size_bytes = SIZE;
}

/* hugetlb pages are scanned whole or not at all: where parts meet there is none in between. */
static void parts_of_hugetlb(void **state)
{
	const uint64_t count = 513, huge_pages = HUGE_SIZE / FERRY_PAGE_SIZE;
	const struct ferry_dirty_ops *ops = tracker(state);
	struct ferry_dirty *d;
	struct target t;

	if (!huge_pool_take(count))
		skip();
	size_bytes = count * HUGE_SIZE;
	page_size = HUGE_SIZE;
	target_start_on(&t, memfd_create("test-dirty", MFD_CLOEXEC | MFD_HUGETLB));
	d = expect_start(&t, ops);
	expect_dirty(&t, d, 0, 0);
	tell(&t, CMD_WRITE, 256 * huge_pages + 300, 1, 0);
	expect_dirty(&t, d, 256 * huge_pages, huge_pages);
	expect_dirty(&t, d, 0, 0);
	tell(&t, CMD_WRITE, 255 * huge_pages, 1, 0);
	expect_dirty(&t, d, 255 * huge_pages, huge_pages);
	tell(&t, CMD_WRITE, count * huge_pages - 1, 1, 0);
	expect_dirty(&t, d, (count - 1) * huge_pages, huge_pages);
	d->ops->stop(d);
	target_end(&t);
	size_bytes = SIZE;
	page_size = FERRY_PAGE_SIZE;
	huge_pool_give_back(count);
}

/* Every other page is a region of its own. */
static void many_regions(void **state)
{
	const struct ferry_dirty_ops *ops = tracker(state);
	struct ferry_dirty *d;
	struct target t;
	uint64_t page;
	int round;

	target_start(&t);
	d = expect_start(&t, ops);
	for (round = 0; round < 2; round++) {
		for (page = 0; page < PAGES; page += 2)
			tell(&t, CMD_WRITE, page + (uint64_t)round, 1, 0);
		ferry_bitmap_zero(&t.dirty);
		expect_collect(&t, d);
		for (page = 0; page < PAGES; page++)
			assert_int_equal(ferry_bitmap_test(&t.dirty, 0, page),
					 page % 2 == (uint64_t)round);
	}
	d->ops->stop(d);
	target_end(&t);
}

/* After stop() the VMM is as before: another tracker can start, on a new userfaultfd. */
static void stop_leaves_nothing(void **state)
{
	const struct ferry_dirty_ops *ops = tracker(state);
	struct ferry_dirty *d;
	struct target t;

	target_start(&t);
	d = expect_start(&t, ops);
	d->ops->stop(d);
	tell(&t, CMD_UFFD, 0, 0, 0);
	fetch_uffd(&t);
	d = expect_start(&t, ops);
	tell(&t, CMD_WRITE, 3, 1, 0);
	expect_dirty(&t, d, 3, 1);
	d->ops->stop(d);
	target_end(&t);
}

/*
 * The kernel takes a page's table entry away after a write, before the look: the
 * write must still be reported.
 */
static void dropped_entries(void **state)
{
	const struct ferry_dirty_ops *ops = tracker(state);
	struct ferry_dirty *d;
	struct target t;

	target_start(&t);
	d = expect_start(&t, ops);
	tell(&t, CMD_WRITE, 0, 1024, 0);
	expect_dirty(&t, d, 0, 1024);
	tell(&t, CMD_WRITE, 100, 10, 0);
	tell(&t, CMD_MADVISE, 100, 10, MADV_DONTNEED);
	expect_dirty(&t, d, 100, 10);
	expect_dirty(&t, d, 0, 0);
	tell(&t, CMD_READ, 100, 10, 0);
	expect_dirty(&t, d, 0, 0);
	tell(&t, CMD_WRITE, 200, 8, 0);
	tell(&t, CMD_MADVISE, 200, 8, MADV_REMOVE);
	ferry_bitmap_zero(&t.dirty);
	expect_collect(&t, d);
	assert_true(ferry_bitmap_test(&t.dirty, 0, 207)); /* written, then punched */
	d->ops->stop(d);
	target_end(&t);
}

/* The same where the VMM reads the page again before the look; softdirty cannot. */
static void dropped_and_read_again(void **state)
{
	const struct ferry_dirty_ops *ops = tracker(state);
	struct ferry_dirty *d;
	struct target t;

	target_start(&t);
	d = expect_start(&t, ops);
	tell(&t, CMD_WRITE, 0, 1024, 0);
	expect_dirty(&t, d, 0, 1024);
	tell(&t, CMD_WRITE, 100, 10, 0);
	tell(&t, CMD_MADVISE, 100, 10, MADV_DONTNEED);
	tell(&t, CMD_READ, 100, 10, 0);
	expect_dirty(&t, d, 100, 10);
	/* clean pages that are dropped and read again stay clean */
	tell(&t, CMD_MADVISE, 100, 10, MADV_DONTNEED);
	tell(&t, CMD_READ, 100, 10, 0);
	expect_dirty(&t, d, 0, 0);
	d->ops->stop(d);
	target_end(&t);
}

/* Where page tables may vanish whole, one that was there and is gone counts as written. */
static void absent_pages_are_dirty_once(void **state)
{
	const struct ferry_dirty_ops *ops = tracker(state);
	struct ferry_dirty *d;
	struct target t;

	target_start(&t);
	/* data that the VMM never touched: put there by pwrite, as a loader does */
	assert_int_equal(pwrite(t.ram.blocks[0].fd, "x", 1, 3000 * FERRY_PAGE_SIZE), 1);
	d = expect_start(&t, ops);
	expect_dirty(&t, d, 0, 0);
	tell(&t, CMD_WRITE, 512, 512, 0);
	expect_dirty(&t, d, 512, 512);
	tell(&t, CMD_MADVISE, 512, 512, MADV_DONTNEED);
	expect_dirty(&t, d, 512, 512);
	expect_dirty(&t, d, 0, 0);
	tell(&t, CMD_WRITE, 600, 1, 0);
	expect_dirty(&t, d, 600, 1);
	d->ops->stop(d);
	target_end(&t);
}

static void copy_dirty(struct target *t)
{
	struct ferry_bitmap_run run = { 0 };

	while (ferry_bitmap_next_run(&t->dirty, &run, 0))
		memcpy(t->shadow + run.first_page * FERRY_PAGE_SIZE,
		       t->ram.blocks[0].map + run.first_page * FERRY_PAGE_SIZE,
		       run.pages * FERRY_PAGE_SIZE);
	ferry_bitmap_zero(&t->dirty);
}

static void collect_behind_barrier(struct target *t, struct ferry_dirty *d)
{
	int status;

	kill(t->t.pid, SIGSTOP);
	assert_int_equal(waitpid(t->t.pid, &status, WUNTRACED), t->t.pid);
	assert_true(WIFSTOPPED(status));
	expect_collect(t, d);
	kill(t->t.pid, SIGCONT);
}

struct race {
	const struct ferry_dirty_ops *ops;
	bool barrier;
	bool chaos;    /* the child drops entries too */
	bool sabotage; /* leave out the last collect() */
};

/* Return: how many pages of the copy are stale at the end. */
static uint64_t race(const struct race *r)
{
	uint64_t page, stale = 0;
	struct ferry_dirty *d;
	struct target t;
	int round;

	target_start(&t);
	d = expect_start(&t, r->ops);
	tell(&t, CMD_RACE, r->chaos, 0, 0);
	for (round = 0; round < ROUNDS; round++) {
		uint64_t before = __atomic_load_n(&t.control->writes, __ATOMIC_RELAXED);
		uint64_t deadline = ferry_clock_in_ms(WAIT_MS);

		if (r->barrier)
			collect_behind_barrier(&t, d);
		else
			expect_collect(&t, d);
		copy_dirty(&t);
		while (__atomic_load_n(&t.control->writes, __ATOMIC_RELAXED) < before + 200) {
			assert_true(ferry_clock_ns() < deadline);
			sched_yield();
		}
	}
	/* At least 200 writes have not been collected. */
	tell(&t, CMD_STOP, 0, 0, 0);
	expect_collect(&t, d);
	if (!r->sabotage)
		copy_dirty(&t);
	for (page = 0; page < PAGES; page++)
		stale += !!memcmp(t.shadow + page * FERRY_PAGE_SIZE,
				  t.ram.blocks[0].map + page * FERRY_PAGE_SIZE, FERRY_PAGE_SIZE);
	print_message("%s%s: %llu writes, %d rounds, %llu stale pages\n", r->ops->name,
		      r->barrier ? " with barrier" : "",
		      (unsigned long long)t.control->writes, ROUNDS, (unsigned long long)stale);
	d->ops->stop(d);
	target_end(&t);
	return stale;
}

static void no_write_is_lost(void **state)
{
	struct race r = { .ops = tracker(state) };

	r.barrier = r.ops->needs_barrier;
	assert_int_equal(race(&r), 0);
}

static void no_write_is_lost_when_entries_are_dropped(void **state)
{
	struct race r = { .ops = tracker(state), .chaos = true };

	assert_int_equal(race(&r), 0);
}

static void the_race_test_sees_a_lost_collect(void **state)
{
	struct race r = { .ops = tracker(state), .sabotage = true };

	r.barrier = r.ops->needs_barrier;
	assert_true(race(&r) > 0);
}

/* Whether needs_barrier is true: without it pages do get lost. */
static void writes_are_lost_without_the_barrier(void **state)
{
	struct race r = { .ops = tracker(state) };
	uint64_t deadline = ferry_clock_in_ms(60000);
	uint64_t stale;

	assert_true(r.ops->needs_barrier);
	do {
		stale = race(&r);
	} while (!stale && ferry_clock_ns() < deadline);
	assert_true(stale > 0);
}

#define HUGE_DIR "/tmp/ferry-test-dirty-XXXXXX"

static void huge_unmount(const char *dir)
{
	umount2(dir, MNT_DETACH);
	rmdir(dir);
}

/* A memory file on a tmpfs with huge=always; skips where that cannot be mounted. */
static int huge_file(char *dir)
{
	char path[80];
	int fd;

	assert_non_null(mkdtemp(dir));
	if (mount("none", dir, "tmpfs", 0, "size=64m,huge=always,mode=0700")) {
		print_message("SKIP: cannot mount a tmpfs with huge=always: %s\n", strerror(errno));
		rmdir(dir);
		skip();
	}
	snprintf(path, sizeof(path), "%s/mem", dir);
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (fd < 0)
		huge_unmount(dir);
	return fd;
}

/*
 * Splitting a written huge page drops all its entries at once, and the page table with them.
 * Some kernels scan a missing page table as clean, so the tracker must not let it come to that.
 */
static void huge_pages(void **state)
{
	const struct ferry_dirty_ops *ops = tracker(state);
	struct ferry_dirty *d;
	struct target t;
	int prefilled;

	for (prefilled = 0; prefilled < 2; prefilled++) {
		char dir[] = HUGE_DIR;

		target_start_on(&t, huge_file(dir));
		huge_unmount(dir);
		if (prefilled)
			tell(&t, CMD_WRITE, 0, PAGES, 0);
		d = expect_start(&t, ops);
		expect_dirty(&t, d, 0, 0);
		tell(&t, CMD_WRITE, 0, PAGES, 0);
		tell(&t, CMD_MADVISE, 5, 1, MADV_REMOVE);
		tell(&t, CMD_MADVISE, 517, 1, MADV_REMOVE);
		expect_dirty(&t, d, 0, PAGES);
		expect_dirty(&t, d, 0, 0);
		tell(&t, CMD_WRITE, 600, 1, 0);
		ferry_bitmap_zero(&t.dirty);
		expect_collect(&t, d);
		assert_true(ferry_bitmap_test(&t.dirty, 0, 600));
		d->ops->stop(d);
		target_end(&t);
	}
}

static void start_refuses(void **state)
{
	const struct ferry_dirty_ops *ops = tracker(state);
	struct ferry_dirty *d = NULL;
	struct target t;

	target_start(&t);
	t.ram.blocks[0].vmm_addr = 0;
	assert_int_equal(ops->start(&t.t, &d, &t.err), -EINVAL);
	assert_non_null(strstr(t.err.text, "RAM block mem"));
	t.ram.blocks[0].vmm_addr = (uintptr_t)t.mem;
	kill(t.t.pid, SIGKILL);
	waitpid(t.t.pid, NULL, 0);
	assert_int_equal(ops->start(&t.t, &d, &t.err), -ESRCH);
	assert_null(d);
	target_end(&t);
}

static void start_needs_a_fresh_uffd(void **state)
{
	const struct ferry_dirty_ops *ops = tracker(state);
	struct ferry_dirty *d, *d2 = NULL;
	struct target t;
	int first;

	target_start(&t);
	first = t.t.uffd;
	t.t.uffd = -1;
	assert_int_equal(ops->start(&t.t, &d, &t.err), -EBADF);
	t.t.uffd = first;
	d = expect_start(&t, ops);
	/* the handshake of this userfaultfd is done */
	assert_int_equal(ops->start(&t.t, &d2, &t.err), -EINVAL);
	/* and the range belongs to it */
	tell(&t, CMD_UFFD, 0, 0, 0);
	fetch_uffd(&t);
	assert_int_equal(ops->start(&t.t, &d2, &t.err), -EBUSY);
	assert_non_null(strstr(t.err.text, "another userfaultfd"));
	assert_null(d2);
	d->ops->stop(d);
	close(first);
	target_end(&t);
}

static void collect_fails_after_remap(void **state)
{
	const struct ferry_dirty_ops *ops = tracker(state);
	struct ferry_dirty *d;
	struct target t;

	target_start(&t);
	d = expect_start(&t, ops);
	tell(&t, CMD_REMAP, 7, 1, 0);
	assert_int_equal(d->ops->collect(d, &t.dirty, &t.err), -EPERM);
	assert_non_null(strstr(t.err.text, "RAM block mem"));
	d->ops->stop(d);
	target_end(&t);
}

static void collect_fails_after_death(void **state)
{
	const struct ferry_dirty_ops *ops = tracker(state);
	struct ferry_dirty *d;
	struct target t;

	target_start(&t);
	d = expect_start(&t, ops);
	tell(&t, CMD_WRITE, 0, 10, 0);
	kill(t.t.pid, SIGKILL);
	waitpid(t.t.pid, NULL, 0);
	assert_int_equal(d->ops->collect(d, &t.dirty, &t.err), -ESRCH);
	d->ops->stop(d);
	target_end(&t);
}

static void supported_needs_a_process(void **state)
{
	const struct ferry_dirty_ops *ops = tracker(state);
	const struct ferry_ram none = { 0 };
	struct ferry_dirty_target self = { .pid = NO_SUCH_PID, .ram = &none, .uffd = -1 };
	struct ferry_error err = { 0 };

	assert_int_equal(ops->supported(&self, &err), -ESRCH);
	assert_int_equal(err.errnum, ESRCH);
}

static void pagemap_needs_a_right(void **state)
{
	const struct ferry_dirty_ops *ops = tracker(state);
	const struct ferry_ram none = { 0 };
	struct ferry_dirty_target self = { .ram = &none, .uffd = -1 };
	struct ferry_error err = { 0 };
	char on = '0';
	int fd, status;
	pid_t pid;

	fd = open("/proc/sys/vm/unprivileged_userfaultfd", O_RDONLY | O_CLOEXEC);
	assert_true(fd < 0 || read(fd, &on, 1) == 1);
	close(fd);
	if (geteuid() != 0 || on == '1') {
		print_message("SKIP: needs root, and vm.unprivileged_userfaultfd = 0\n");
		skip();
	}
	pid = fork();
	if (pid == 0) {
		if (setresuid(65534, 65534, 65534))
			_exit(2);
		self.pid = getpid();
		_exit(!(ops->supported(&self, &err) == -EPERM &&
			strstr(err.text, "/dev/userfaultfd")));
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
}

static void pagemap_on_an_old_kernel(void **state)
{
	const struct ferry_ram none = { 0 };
	struct ferry_dirty_target self = { .pid = getpid(), .ram = &none, .uffd = -1 };
	struct ferry_error err = { 0 };
	unsigned int major_no, minor_no;
	struct utsname un;

	(void)state;
	assert_int_equal(uname(&un), 0);
	assert_int_equal(sscanf(un.release, "%u.%u", &major_no, &minor_no), 2);
	if (major_no > 6 || (major_no == 6 && minor_no >= 7)) {
		print_message("SKIP: kernel %s is not older than 6.7\n", un.release);
		skip();
	}
	assert_int_equal(ferry_dirty_pagemap.supported(&self, &err), -EOPNOTSUPP);
	assert_non_null(strstr(err.text, "older than 6.7"));
}

static void softdirty_without_the_config(void **state)
{
	const struct ferry_ram none = { 0 };
	struct ferry_dirty_target self = { .pid = getpid(), .ram = &none, .uffd = -1 };
	struct ferry_error err = { 0 };
	int ret = ferry_dirty_softdirty.supported(&self, &err);

	(void)state;
	if (!ret || strstr(err.text, "swap is on")) {
		print_message("SKIP: this kernel keeps soft-dirty bits\n");
		skip();
	}
	assert_int_equal(ret, -EOPNOTSUPP);
	assert_non_null(strstr(err.text, "CONFIG_MEM_SOFT_DIRTY"));
}

/* A swap area as the kernel would show it: our own file over /proc/swaps. */
static void pretend_swap(bool on)
{
	char path[] = "/tmp/ferry-test-swaps-XXXXXX";
	int fd;

	if (!on) {
		assert_int_equal(umount2("/proc/swaps", MNT_DETACH), 0);
		return;
	}
	if (unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL)) {
		print_message("SKIP: needs a mount namespace of its own (root)\n");
		skip();
	}
	fd = mkstemp(path);
	assert_true(fd >= 0);
	assert_true(dprintf(fd, "Filename\tType\tSize\tUsed\tPriority\n"
				"/dev/vda2\tpartition\t1\t0\t-2\n") > 0);
	close(fd);
	assert_int_equal(mount(path, "/proc/swaps", NULL, MS_BIND, NULL), 0);
	unlink(path);
}

static void softdirty_refuses_swap(void **state)
{
	const struct ferry_dirty_ops *ops = tracker(state);
	struct ferry_dirty *d;
	struct target t;

	target_start(&t);
	d = expect_start(&t, ops);
	pretend_swap(true);
	assert_int_equal(ops->supported(&t.t, &t.err), -EOPNOTSUPP);
	assert_non_null(strstr(t.err.text, "swap is on (/dev/vda2)"));
	assert_int_equal(d->ops->collect(d, &t.dirty, &t.err), -EOPNOTSUPP);
	pretend_swap(false);
	assert_int_equal(ops->supported(&t.t, &t.err), 0);
	d->ops->stop(d);
	target_end(&t);
}

static void softdirty_refuses_huge_pages(void **state)
{
	const struct ferry_dirty_ops *ops = tracker(state);
	char dir[] = HUGE_DIR;
	struct target t;
	int fd;

	target_start_on(&t, huge_file(dir));
	assert_int_equal(ops->supported(&t.t, &t.err), -EOPNOTSUPP);
	assert_non_null(strstr(t.err.text, "mounted with \"huge=always\""));
	huge_unmount(dir);
	/* gone from every mount table: when it cannot tell, it refuses */
	assert_int_equal(ops->supported(&t.t, &t.err), -EOPNOTSUPP);
	assert_non_null(strstr(t.err.text, "cannot be found"));
	target_end(&t);

	target_start(&t);
	t.ram.blocks[0].page_size = 2u << 20;
	assert_int_equal(ops->supported(&t.t, &t.err), -EOPNOTSUPP);
	t.ram.blocks[0].page_size = FERRY_PAGE_SIZE;
	assert_int_equal(ops->supported(&t.t, &t.err), 0);
	fd = open(SHMEM_ENABLED, O_RDWR | O_CLOEXEC);
	if (fd < 0 || write(fd, "advise", 6) != 6) {
		print_message("SKIP: cannot change " SHMEM_ENABLED "\n");
		skip();
	}
	assert_int_equal(ops->supported(&t.t, &t.err), -EOPNOTSUPP);
	assert_non_null(strstr(t.err.text, SHMEM_ENABLED " is \"advise\""));
	assert_int_equal(write(fd, "never", 5), 5);
	close(fd);
	assert_int_equal(ops->supported(&t.t, &t.err), 0);
	target_end(&t);
}

static void choose_by_name(void **state)
{
	const struct ferry_dirty_ops *ops = tracker(state), *got = ops;
	const struct ferry_ram none = { 0 };
	struct ferry_dirty_target self = { .pid = getpid(), .ram = &none, .uffd = -1 };
	struct ferry_error err = { 0 };

	assert_int_equal(ferry_dirty_choose("none", &self, &got, &err), 0);
	assert_null(got);
	assert_int_equal(ferry_dirty_choose("magic", &self, &got, &err), -EINVAL);
	assert_non_null(strstr(err.text, "\"magic\""));
	assert_int_equal(ferry_dirty_choose("", &self, &got, &err), -EINVAL);
	assert_int_equal(ferry_dirty_choose(ops->name, &self, &got, &err), 0);
	assert_ptr_equal(got, ops);
	assert_int_equal(ferry_dirty_choose("auto", &self, &got, &err), 0);
	assert_non_null(got);

	self.pid = NO_SUCH_PID;
	assert_int_equal(ferry_dirty_choose(ops->name, &self, &got, &err), -EOPNOTSUPP);
	assert_null(got);
	assert_non_null(strstr(err.text, ops->name));
	assert_int_equal(ferry_dirty_choose("auto", &self, &got, &err), -EOPNOTSUPP);
	assert_non_null(strstr(err.text, "pagemap: "));
	assert_non_null(strstr(err.text, "softdirty: "));
	assert_non_null(strstr(err.text, "--tracker none"));
}

static void cannot_run_here(void **state)
{
	const struct ferry_dirty_ops *ops = tracker(state);
	const struct ferry_ram none = { 0 };
	struct ferry_dirty_target self = { .pid = getpid(), .ram = &none, .uffd = -1 };
	struct ferry_error err = { 0 };

	assert_true(ops->supported(&self, &err) < 0);
	print_message("SKIP: all tests of %s: %s\n", ops->name, err.text);
	skip();
}

static bool runs_here(const struct ferry_dirty_ops *ops)
{
	const struct ferry_ram none = { 0 };
	struct ferry_dirty_target self = { .pid = getpid(), .ram = &none, .uffd = -1 };

	return !ops->supported(&self, NULL);
}

#define TEST(tracker_name, test)                                                                   \
	{                                                                                          \
		.name = #tracker_name " " #test, .test_func = test,                                \
		.initial_state = (void *)(uintptr_t)&ferry_dirty_##tracker_name,                   \
	}

int main(void)
{
	const struct CMUnitTest pagemap[] = {
		TEST(pagemap, reports_what_was_written),
		TEST(pagemap, many_regions),
		TEST(pagemap, parts_of_a_large_block),
		TEST(pagemap, parts_of_hugetlb),
		TEST(pagemap, stop_leaves_nothing),
		TEST(pagemap, dropped_entries),
		TEST(pagemap, dropped_and_read_again),
		TEST(pagemap, huge_pages),
		TEST(pagemap, no_write_is_lost),
		TEST(pagemap, no_write_is_lost_when_entries_are_dropped),
		TEST(pagemap, the_race_test_sees_a_lost_collect),
		TEST(pagemap, start_refuses),
		TEST(pagemap, start_needs_a_fresh_uffd),
		TEST(pagemap, collect_fails_after_remap),
		TEST(pagemap, collect_fails_after_death),
		TEST(pagemap, supported_needs_a_process),
		TEST(pagemap, pagemap_needs_a_right),
		TEST(pagemap, choose_by_name),
	};
	const struct CMUnitTest softdirty[] = {
		TEST(softdirty, reports_what_was_written),
		TEST(softdirty, many_regions),
		TEST(softdirty, stop_leaves_nothing),
		TEST(softdirty, dropped_entries),
		TEST(softdirty, absent_pages_are_dirty_once),
		TEST(softdirty, no_write_is_lost),
		TEST(softdirty, writes_are_lost_without_the_barrier),
		TEST(softdirty, the_race_test_sees_a_lost_collect),
		TEST(softdirty, start_refuses),
		TEST(softdirty, collect_fails_after_death),
		TEST(softdirty, supported_needs_a_process),
		TEST(softdirty, softdirty_refuses_swap),
		TEST(softdirty, softdirty_refuses_huge_pages),
		TEST(softdirty, choose_by_name),
	};
	const struct CMUnitTest no_pagemap[] = { TEST(pagemap, cannot_run_here),
						 TEST(pagemap, pagemap_on_an_old_kernel) };
	const struct CMUnitTest no_softdirty[] = { TEST(softdirty, cannot_run_here),
						   TEST(softdirty, softdirty_without_the_config) };
	int failed;

	if (runs_here(&ferry_dirty_pagemap))
		failed = cmocka_run_group_tests(pagemap, NULL, NULL);
	else
		failed = cmocka_run_group_tests(no_pagemap, NULL, NULL);
	if (runs_here(&ferry_dirty_softdirty))
		failed += cmocka_run_group_tests(softdirty, NULL, NULL);
	else
		failed += cmocka_run_group_tests(no_softdirty, NULL, NULL);
	return failed;
}
