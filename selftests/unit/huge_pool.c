// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The kernel's pool of huge pages. Tests that run at the same time change it too, so each only
 * adds to it and takes the same away again, under a lock.
 */
#include "huge_pool.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <unistd.h>

#include <cmocka.h>

/* Of the size that a memfd of huge pages gets when it asks for none, 2 MiB. */
#define HUGE_COUNT "/proc/sys/vm/nr_hugepages"

static long count(int fd)
{
	char text[32] = "";

	assert_true(pread(fd, text, sizeof(text) - 1, 0) > 0);
	return strtol(text, NULL, 10);
}

/* Return: how many are lacking then. */
static long change(long by)
{
	int fd = open(HUGE_COUNT, O_RDWR | O_CLOEXEC), len;
	char text[32];
	long wanted;

	if (fd < 0)
		return by;
	assert_int_equal(flock(fd, LOCK_EX), 0);
	wanted = count(fd) + by;
	len = snprintf(text, sizeof(text), "%ld", wanted > 0 ? wanted : 0);
	assert_int_equal(pwrite(fd, text, (size_t)len, 0), len);
	wanted -= count(fd);
	close(fd);
	return wanted;
}

unsigned long huge_pool_pages(void)
{
	int fd = open(HUGE_COUNT, O_RDONLY | O_CLOEXEC);
	long pages;

	assert_true(fd >= 0);
	pages = count(fd);
	close(fd);
	return (unsigned long)pages;
}

bool huge_pool_take(unsigned long pages)
{
	long lacking = change((long)pages);

	if (lacking <= 0)
		return true;
	change(lacking - (long)pages);
	print_message("SKIP: the kernel has no %lu MiB left for huge pages\n",
		      pages * HUGE_SIZE >> 20);
	return false;
}

void huge_pool_give_back(unsigned long pages)
{
	change(-(long)pages);
}
