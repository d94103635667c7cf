/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef MODULE_TRACKER_H
#define MODULE_TRACKER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <linux/ferry.h>

#define PAGE 4096UL
#define HUGE (2UL << 20)

/* A memfd, its tracker and room for a bitmap of it. */
struct tracker {
	int memfd;
	int fd;
	uint64_t id;
	uint64_t npages;
	uint64_t *bits;
};

/* Everything here returns 0 or more, or a negative errno. */
int ferry_open(void);
int ferry_query(struct ferry_query *query);
int ferry_ioctl(int fd, unsigned long command, void *arg);

int memfd_make(uint64_t npages);

int tracker_make(struct tracker *tracker, uint64_t npages);
int tracker_of(struct tracker *tracker, int memfd);
int tracker_start(struct tracker *tracker);
int tracker_stop(struct tracker *tracker);
void tracker_end(struct tracker *tracker);

/* Whole file, readable and writable; NULL when that fails, with errno. */
char *tracker_view(const struct tracker *tracker);
char *file_map(int fd, uint64_t npages);
/* Where huge pages fit. */
char *file_map_huge(int fd, uint64_t npages);

/* Of all pages, into tracker->bits; how many were dirty. */
long tracker_sync(struct tracker *tracker);
long tracker_get(struct tracker *tracker);
int tracker_stats(const struct tracker *tracker, struct ferry_tracker_stats *stats);

bool bit_get(const uint64_t *bits, uint64_t bit);
long bits_count(const uint64_t *bits, uint64_t n);

/* A store that the compiler can neither drop nor move. */
static inline void store(char *at, char value)
{
	*(volatile char *)at = value;
}

static inline char load(const char *at)
{
	return *(const volatile char *)at;
}

uint64_t clock_ns(void);
uint32_t random_next(uint32_t *state);
int text_write(const char *path, const char *text);

#endif
