// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A file of kept pages that somebody has been at. Whatever is in it: what is not a block's of this
 * guest stays as it was, nothing is said to be put back that was not, and the file is removed if and
 * only if all of it was.
 *
 * Input: the file, but that two bytes of it stand for a page of 4096: else none would be whole.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fault/keep.h"

#define PAGES 8
#define BLOCKS 2
#define ENTRY 24 /* magic, block, flags, page */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct {
	struct ferry_ram ram;
	uint8_t *map;
	char path[64];
	int fd;
} guest;

static void must(int good)
{
	if (!good)
		abort();
}

/* A page that is nobody's, a block, another such page, a block, and one more. */
static void start(void)
{
	unsigned int i;

	ferry_ram_init(&guest.ram);
	guest.fd = memfd_create("fuzz", MFD_CLOEXEC);
	must(guest.fd >= 0);
	must(!ftruncate(guest.fd, (BLOCKS * (PAGES + 1) + 1) * FERRY_PAGE_SIZE));
	for (i = 0; i < BLOCKS; i++) {
		struct ferry_ram_block b = { .size_bytes = PAGES * FERRY_PAGE_SIZE,
					     .page_size = FERRY_PAGE_SIZE,
					     .fd_off_bytes = (i * (PAGES + 1) + 1) * FERRY_PAGE_SIZE,
					     .fd = dup(guest.fd) };

		snprintf(b.name, sizeof(b.name), "ram%u", i);
		must(!ferry_ram_add(&guest.ram, &b, NULL));
	}
	guest.map = mmap(NULL, (BLOCKS * (PAGES + 1) + 1) * FERRY_PAGE_SIZE, PROT_READ | PROT_WRITE,
			 MAP_SHARED, guest.fd, 0);
	must(guest.map != MAP_FAILED);
	snprintf(guest.path, sizeof(guest.path), "/tmp/ferry-fuzz-keep-%d", (int)getpid());
}

static void write_file(const uint8_t *data, size_t size)
{
	int fd = open(guest.path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	uint8_t page[FERRY_PAGE_SIZE];

	must(fd >= 0);
	while (size) {
		size_t n = size < ENTRY ? size : ENTRY;
		int hole = n == ENTRY && data[12] & 1;

		must(write(fd, data, n) == (ssize_t)n);
		data += n;
		size -= n;
		if (hole || size < 2)
			continue;
		/* The second byte says how much of it is there. */
		memset(page, data[0], sizeof(page));
		n = data[1] ? sizeof(page) : 100;
		must(write(fd, page, n) == (ssize_t)n);
		data += 2;
		size -= 2;
	}
	close(fd);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct ferry_error err = { 0 };
	unsigned int i;
	int r;

	if (!guest.map)
		start();
	memset(guest.map, 0xa5, (BLOCKS * (PAGES + 1) + 1) * FERRY_PAGE_SIZE);
	write_file(data, size);
	r = ferry_keep_put_back(guest.path, &guest.ram, &err);
	must(r <= 0 && (!r || err.text[0]));
	must(!access(guest.path, F_OK) == !!r);
	for (i = 0; i <= BLOCKS; i++) {
		const uint8_t *nobodys = guest.map + i * (PAGES + 1) * FERRY_PAGE_SIZE;

		must(nobodys[0] == 0xa5 && !memcmp(nobodys, nobodys + 1, FERRY_PAGE_SIZE - 1));
	}
	unlink(guest.path);
	return 0;
}
