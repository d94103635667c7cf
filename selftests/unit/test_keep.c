// SPDX-License-Identifier: GPL-2.0-or-later
/* Pages kept before another process touches them, and put back. That process is a child. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/uffd.h"
#include "fault/keep.h"

#define PAGES 64u
#define BYTES (PAGES * FERRY_PAGE_SIZE)

static struct ferry_error err;
static char path[64];
static int stuck;

static void on_stuck(void *ctx)
{
	(void)ctx;
	stuck++;
}

/* RAM of one block, page n full of n + 1 but for holes in the odd ones. */
static void make_ram(struct ferry_ram *ram)
{
	struct ferry_ram_block b = { .name = "ram", .size_bytes = BYTES,
				     .page_size = FERRY_PAGE_SIZE };
	uint8_t page[FERRY_PAGE_SIZE];
	unsigned int i;

	ferry_ram_init(ram);
	b.fd = memfd_create("keep", MFD_CLOEXEC);
	assert_int_equal(ftruncate(b.fd, BYTES), 0);
	for (i = 0; i < PAGES; i += 2) {
		memset(page, (int)i + 1, sizeof(page));
		assert_int_equal(pwrite(b.fd, page, sizeof(page), i * FERRY_PAGE_SIZE),
				 sizeof(page));
	}
	assert_int_equal(ferry_ram_add(ram, &b, &err), 0);
	snprintf(path, sizeof(path), "/tmp/ferry-keep-%d", (int)getpid());
	unlink(path);
	stuck = 0;
}

static uint8_t byte_at(const struct ferry_ram *ram, unsigned int page)
{
	uint8_t byte;

	assert_int_equal(pread(ram->blocks[0].fd, &byte, 1, page * FERRY_PAGE_SIZE + 7), 1);
	return byte;
}

static blkcnt_t blocks_of(const struct ferry_ram *ram)
{
	struct stat st;

	assert_int_equal(fstat(ram->blocks[0].fd, &st), 0);
	return st.st_blocks;
}

/* A mapping of our own stands for the other process's: faults are faults. */
static struct ferry_keep *start(const struct ferry_ram *ram, uint8_t **map, uint64_t *addr, int *uffd)
{
	struct ferry_keep_params p = { .ram = ram, .path = path, .stuck = on_stuck };
	struct ferry_keep *k = NULL;

	*uffd = ferry_uffd_create(&err);
	if (*uffd < 0) {
		print_message("SKIP: %s\n", err.text);
		skip();
	}
	*map = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, ram->blocks[0].fd, 0);
	assert_ptr_not_equal(*map, MAP_FAILED);
	*addr = (uintptr_t)*map;
	p.mapper = (struct ferry_fault_mapper){ *uffd, getpid(), addr, NULL };
	if (ferry_keep_start(&p, &k, &err))
		fail_msg("%s", err.text);
	return k;
}

static void end(struct ferry_keep *k, uint8_t *map, int uffd, struct ferry_ram *ram)
{
	ferry_keep_stop(k, true);
	munmap(map, BYTES);
	close(uffd);
	ferry_ram_free(ram);
	unlink(path);
}

static void what_is_touched_comes_back(void **state)
{
	struct ferry_keep *k;
	struct ferry_ram ram;
	blkcnt_t before;
	uint64_t addr;
	uint8_t *map;
	int uffd;

	(void)state;
	make_ram(&ram);
	before = blocks_of(&ram);
	k = start(&ram, &map, &addr, &uffd);
	assert_int_equal(ferry_fault_uffd_assert_empty(&(struct ferry_fault_mapper){ uffd, getpid(),
						       &addr, NULL }, &ram, &err), 0);
	/* Written; written twice; read; a hole written; a hole read. */
	map[7] = 99;
	map[2 * FERRY_PAGE_SIZE] = 1;
	map[2 * FERRY_PAGE_SIZE + 7] = 99;
	assert_int_equal(map[4 * FERRY_PAGE_SIZE + 7], 5);
	map[3 * FERRY_PAGE_SIZE + 7] = 99;
	assert_int_equal(map[5 * FERRY_PAGE_SIZE], 0);
	assert_int_equal(ferry_keep_pages(k), 5);
	assert_int_equal(ferry_keep_failed(k, &err), 0);
	assert_int_equal(ferry_fault_uffd_assert_empty(&(struct ferry_fault_mapper){ uffd, getpid(),
						       &addr, NULL }, &ram, &err), -EBUSY);
	ferry_keep_stop(k, false);
	assert_int_equal(byte_at(&ram, 0), 99);
	assert_int_equal(ferry_keep_put_back(path, &ram, &err), 0);
	assert_int_equal(byte_at(&ram, 0), 1);
	assert_int_equal(byte_at(&ram, 2), 3);
	assert_int_equal(byte_at(&ram, 3), 0);
	assert_int_equal(blocks_of(&ram), before);
	/* Once only: the file is the sign that it has to be done. */
	assert_int_equal(access(path, F_OK), -1);
	map[7] = 50;
	assert_int_equal(ferry_keep_put_back(path, &ram, &err), 0);
	assert_int_equal(byte_at(&ram, 0), 50);
	end(NULL, map, uffd, &ram);
	assert_int_equal(stuck, 0);
}

static void released(void **state)
{
	struct ferry_keep *k;
	struct ferry_ram ram;
	struct stat st;
	uint64_t addr;
	uint8_t *map;
	int uffd;

	(void)state;
	make_ram(&ram);
	k = start(&ram, &map, &addr, &uffd);
	map[0] = 1;
	ferry_keep_stop(k, true);
	map[6 * FERRY_PAGE_SIZE] = 1; /* nobody would answer */
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_size, 24 + FERRY_PAGE_SIZE);
	ferry_keep_drop(path);
	assert_int_equal(access(path, F_OK), -1);
	end(NULL, map, uffd, &ram);
}

static void append(const void *bytes, size_t len)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_APPEND, 0600);

	assert_int_equal(write(fd, bytes, len), len);
	close(fd);
}

/* A worker that was killed writing left a part of an entry: nobody had touched that page. */
static void a_cut_file(void **state)
{
	struct { uint64_t magic; uint32_t block, flags; uint64_t page; } e = {
		0x4b45455059525246ull, 0, 0, 2 };
	uint8_t page[FERRY_PAGE_SIZE] = { 0 };
	struct ferry_ram ram;

	(void)state;
	make_ram(&ram);
	append(&e, sizeof(e));
	append(page, 100);
	assert_int_equal(ferry_keep_put_back(path, &ram, &err), 0);
	assert_int_equal(byte_at(&ram, 2), 3);
	append(&e, 10);
	assert_int_equal(ferry_keep_put_back(path, &ram, &err), 0);
	append(&e, sizeof(e));
	append(page, sizeof(page));
	e.page = PAGES;
	append(&e, sizeof(e));
	append(page, sizeof(page));
	assert_int_equal(ferry_keep_put_back(path, &ram, &err), -EPROTO);
	assert_non_null(strstr(err.text, "of another guest, or damaged"));
	assert_int_equal(access(path, F_OK), 0);
	unlink(path);
	e.page = 2;
	e.magic++;
	append(&e, sizeof(e));
	append(page, sizeof(page));
	assert_int_equal(ferry_keep_put_back(path, &ram, &err), -EPROTO);
	unlink(path);
	ferry_ram_free(&ram);
}

static void no_second_file(void **state)
{
	struct ferry_keep_params p = { .path = path, .stuck = on_stuck };
	struct ferry_keep *k;
	struct ferry_ram ram;

	(void)state;
	make_ram(&ram);
	p.ram = &ram;
	append("x", 1);
	assert_int_equal(ferry_keep_start(&p, &k, &err), -EEXIST);
	assert_non_null(strstr(err.text, path));
	unlink(path);
	ferry_ram_free(&ram);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_is_touched_comes_back), cmocka_unit_test(released),
		cmocka_unit_test(a_cut_file), cmocka_unit_test(no_second_file),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
