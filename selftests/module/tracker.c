// SPDX-License-Identifier: GPL-2.0-or-later
/* What every test of the module does before it tests anything. */
#include "tracker.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

int ferry_open(void)
{
	int fd = open("/dev/ferry", O_RDWR | O_CLOEXEC);

	return fd < 0 ? -errno : fd;
}

int ferry_ioctl(int fd, unsigned long command, void *arg)
{
	return ioctl(fd, command, arg) < 0 ? -errno : 0;
}

int ferry_query(struct ferry_query *query)
{
	int fd = ferry_open(), ret;

	if (fd < 0)
		return fd;
	memset(query, 0, sizeof(*query));
	query->size = sizeof(*query);
	ret = ferry_ioctl(fd, FERRY_QUERY, query);
	close(fd);
	return ret;
}

int memfd_make(uint64_t npages)
{
	int fd = memfd_create("ram", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	if (fd < 0)
		return -errno;
	if (ftruncate(fd, (off_t)(npages * PAGE))) {
		int ret = -errno;

		close(fd);
		return ret;
	}
	return fd;
}

int tracker_of(struct tracker *tracker, int memfd)
{
	struct ferry_track track = { .size = sizeof(track), .memfd = memfd };
	int dev = ferry_open(), ret;

	memset(tracker, 0, sizeof(*tracker));
	tracker->memfd = memfd;
	tracker->fd = -1;
	if (dev < 0)
		return dev;
	ret = ferry_ioctl(dev, FERRY_TRACK, &track);
	close(dev);
	if (ret)
		return ret;
	tracker->fd = track.out_fd;
	tracker->id = track.out_id;
	tracker->npages = track.out_pages;
	tracker->bits = calloc((track.out_pages + 63) / 64, sizeof(uint64_t));
	return tracker->bits ? 0 : -ENOMEM;
}

int tracker_make(struct tracker *tracker, uint64_t npages)
{
	int memfd = memfd_make(npages), ret;

	if (memfd < 0)
		return memfd;
	ret = tracker_of(tracker, memfd);
	if (!ret)
		ret = tracker_start(tracker);
	return ret;
}

int tracker_start(struct tracker *tracker)
{
	return ferry_ioctl(tracker->fd, FERRY_START,
			   &(struct ferry_start){ .size = sizeof(struct ferry_start) });
}

int tracker_stop(struct tracker *tracker)
{
	return ferry_ioctl(tracker->fd, FERRY_STOP,
			   &(struct ferry_start){ .size = sizeof(struct ferry_start) });
}

void tracker_end(struct tracker *tracker)
{
	if (tracker->fd >= 0)
		close(tracker->fd);
	if (tracker->memfd >= 0)
		close(tracker->memfd);
	free(tracker->bits);
	memset(tracker, 0, sizeof(*tracker));
	tracker->fd = tracker->memfd = -1;
}

char *file_map(int fd, uint64_t npages)
{
	char *at = mmap(NULL, npages * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	return at == MAP_FAILED ? NULL : at;
}

char *file_map_huge(int fd, uint64_t npages)
{
	char *at = mmap(NULL, npages * PAGE + HUGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (at == MAP_FAILED)
		return NULL;
	at = (char *)(((uintptr_t)at + HUGE - 1) & ~(HUGE - 1));
	at = mmap(at, npages * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
	return at == MAP_FAILED ? NULL : at;
}

char *tracker_view(const struct tracker *tracker)
{
	return file_map(tracker->fd, tracker->npages);
}

static long all_pages(struct tracker *tracker, unsigned long command)
{
	struct ferry_pages pages = {
		.size = sizeof(pages),
		.npages = tracker->npages,
		.bitmap = (uintptr_t)tracker->bits,
	};
	int ret = ferry_ioctl(tracker->fd, command, &pages);

	return ret ? ret : (long)pages.out_pages;
}

long tracker_sync(struct tracker *tracker)
{
	return all_pages(tracker, FERRY_SYNC);
}

long tracker_get(struct tracker *tracker)
{
	return all_pages(tracker, FERRY_GET);
}

int tracker_stats(const struct tracker *tracker, struct ferry_tracker_stats *stats)
{
	memset(stats, 0, sizeof(*stats));
	stats->size = sizeof(*stats);
	return ferry_ioctl(tracker->fd, FERRY_STATS, stats);
}

bool bit_get(const uint64_t *bits, uint64_t bit)
{
	return bits[bit / 64] >> (bit % 64) & 1;
}

long bits_count(const uint64_t *bits, uint64_t n)
{
	long count = 0;

	for (uint64_t i = 0; i < n; i++)
		count += bit_get(bits, i);
	return count;
}

uint64_t clock_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000ULL + (uint64_t)now.tv_nsec;
}

/* Knuth's 64-bit multiplier cut to 32 bits: enough to choose pages. */
uint32_t random_next(uint32_t *state)
{
	*state = *state * 1664525u + 1013904223u;
	return *state >> 8;
}

int text_write(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	ssize_t length = (ssize_t)strlen(text);
	int ret = 0;

	if (fd < 0)
		return -errno;
	if (write(fd, text, (size_t)length) != length)
		ret = errno ? -errno : -EIO;
	close(fd);
	return ret;
}
