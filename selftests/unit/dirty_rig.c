// SPDX-License-Identifier: GPL-2.0-or-later
#include "dirty_rig.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/uffd.h"
#include "huge_pool.h"

#define WRITERS 2

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
		control->uffd = ferry_uffd_create(NULL);
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
	control->uffd = ferry_uffd_create(NULL);
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

static void wait_for(int *word, int value)
{
	uint64_t deadline = ferry_clock_in_ms(WAIT_MS);

	while (__atomic_load_n(word, __ATOMIC_ACQUIRE) != value) {
		assert_true(ferry_clock_ns() < deadline);
		sched_yield();
	}
}

void target_tell(struct target *t, enum command command, uint64_t a, uint64_t b, uint64_t c)
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
static uint8_t *map_aligned(int fd, uint64_t size_bytes)
{
	uint8_t *room = map_or_fail(NULL, size_bytes + HUGE_SIZE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	uint8_t *at = (uint8_t *)(((uintptr_t)room + HUGE_SIZE - 1) & ~(HUGE_SIZE - 1));

	munmap(room, size_bytes + HUGE_SIZE);
	return map_or_fail(at, size_bytes, MAP_SHARED | MAP_FIXED, fd);
}

void target_fetch_uffd(struct target *t)
{
	int pidfd = (int)syscall(SYS_pidfd_open, t->t.pid, 0);

	t->t.uffd = t->control->uffd < 0 ? -1 :
		    (int)syscall(SYS_pidfd_getfd, pidfd, t->control->uffd, 0);
	close(pidfd);
}

void target_start_on(struct target *t, int fd, uint64_t size_bytes, uint32_t page_size)
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
	t->mem = map_aligned(fd, size_bytes);
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
	target_fetch_uffd(t);
}

int rig_memory_file(unsigned int flags)
{
	return memfd_create("test-dirty", MFD_CLOEXEC | flags);
}

void target_start(struct target *t)
{
	target_start_on(t, rig_memory_file(0), SIZE, FERRY_PAGE_SIZE);
}

void target_track(struct target *t, const struct ferry_dirty_ops *ops)
{
	int ret = ops->start(&t->t, &t->d, &t->err);

	if (ret)
		print_error("start: %s\n", t->err.text);
	assert_int_equal(ret, 0);
	assert_ptr_equal(t->d->ops, ops);
}

void target_untrack(struct target *t)
{
	t->d->ops->stop(t->d);
	t->d = NULL;
}

void target_collect(struct target *t)
{
	int ret = t->d->ops->collect(t->d, &t->dirty, &t->err);

	if (ret)
		print_error("collect: %s\n", t->err.text);
	assert_int_equal(ret, 0);
}

void target_expect(struct target *t, uint64_t first, uint64_t pages)
{
	struct ferry_bitmap_run run = { 0 };

	ferry_bitmap_zero(&t->dirty);
	target_collect(t);
	assert_int_equal(ferry_bitmap_count(&t->dirty), pages);
	if (!pages)
		return;
	assert_true(ferry_bitmap_next_run(&t->dirty, &run, 0));
	assert_int_equal(run.first_page, first);
	assert_int_equal(run.pages, pages);
}

void target_end(struct target *t)
{
	if (t->d)
		target_untrack(t);
	kill(t->t.pid, SIGKILL);
	waitpid(t->t.pid, NULL, 0);
	if (t->t.uffd >= 0)
		close(t->t.uffd);
	munmap(t->shadow, t->ram.blocks[0].size_bytes);
	munmap(t->control, 4096);
	ferry_bitmap_free(&t->dirty);
	ferry_ram_free(&t->ram);
}

void rig_huge_unmount(const char *dir)
{
	umount2(dir, MNT_DETACH);
	rmdir(dir);
}

int rig_huge_file(char *dir)
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
		rig_huge_unmount(dir);
	return fd;
}

/* ---- which tracker ---- */

static void cannot_run_here(void **state)
{
	const struct ferry_dirty_ops *ops = *state;
	const struct ferry_ram none = { 0 };
	struct ferry_dirty_target self = { .pid = getpid(), .ram = &none, .uffd = -1 };
	struct ferry_error err = { 0 };

	assert_true(ops->supported(&self, &err) < 0);
	print_message("SKIP: all tests of %s: %s\n", ops->name, err.text);
	skip();
}

int rig_skip(const struct ferry_dirty_ops *ops)
{
	char name[64];
	const struct CMUnitTest tests[] = { {
		.name = name, .test_func = cannot_run_here,
		.initial_state = (void *)(uintptr_t)ops,
	} };

	snprintf(name, sizeof(name), "%s cannot_run_here", ops->name);
	return cmocka_run_group_tests(tests, NULL, NULL);
}

bool rig_runs_here(const struct ferry_dirty_ops *ops)
{
	const struct ferry_ram none = { 0 };
	struct ferry_dirty_target self = { .pid = getpid(), .ram = &none, .uffd = -1 };

	return !ops->supported(&self, NULL);
}
