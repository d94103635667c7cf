// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The workload inside the test guest: writes and checks memory all the time and
 * prints a line a tick on the serial line:
 *
 *	TICK 17 bad=0 t=2113 wall=1700000000123 loops=940
 *
 * bad counts every check that ever failed; t and wall are milliseconds of
 * CLOCK_MONOTONIC and CLOCK_REALTIME. The numbers of a guest's ticks, read over
 * all its hosts' serial files, without gap or repeat, prove that it went on.
 *
 * Memory: each CPU has a thread that owns a slice of 4 KiB records. A record
 * holds its number, how often it was written and random words, under a hash. A
 * table beside the records says what number of writes each must show, so a page
 * that is whole but old (a lost write) is bad too; and the sum over the table
 * must be what the thread's own counter says.
 *
 * Disks: "read" reads a disk whose every 8-byte word w of 4 KiB block b is
 * b * DISK_STEP + w, by O_DIRECT into a ring of big buffers that are checked
 * once when they arrive and again when their turn to be reused comes. "rw"
 * writes records at random, by O_DIRECT too, and reads them back.
 *
 * Parameters come from the kernel's command line: ferry.mib=16 ferry.dirty=64
 * (pages a loop and thread) ferry.pause_ms=0 (rest after a loop)
 * ferry.tick_ms=100 ferry.churn=0 (MiB to allocate, fill and free again and
 * again) ferry.disk=/dev/vda:read (up to MAX_DISKS times; modes read and rw)
 * ferry.disk_mib=8 (how much of an rw disk is used).
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define RECORD_SIZE 4096
#define RECORD_WORDS (RECORD_SIZE / 8)
#define RECORD_FILL (RECORD_WORDS - 3)
#define DISK_STEP 0x10001ull
#define DISK_CHUNK (512 * 1024)
#define DISK_RING 8
#define MAX_DISKS 4

struct record {
	uint64_t number;
	uint64_t writes;
	uint64_t fill[RECORD_FILL];
	uint64_t hash; /* last, so that a record torn in the middle shows */
};
_Static_assert(sizeof(struct record) == RECORD_SIZE, "a record is a page");

struct slice {
	struct record *records;
	uint64_t *writes; /* what each record must show */
	uint64_t count;
	uint64_t total; /* what @writes must sum up to */
	uint64_t seed;
};

struct disk {
	char path[64];
	bool write;
};

static unsigned long param_mib = 16, param_dirty = 64, param_pause_ms, param_tick_ms = 100;
static unsigned long param_churn_mib, param_disk_mib = 8;
static struct disk disks[MAX_DISKS];
static unsigned int disk_count;
static unsigned long bad_count, loop_count;

static void bad(const char *what, uint64_t where)
{
	/* The first few say where; a broken guest must not drown its serial line. */
	if (__atomic_fetch_add(&bad_count, 1, __ATOMIC_RELAXED) < 8)
		dprintf(STDOUT_FILENO, "BAD %s %llu\n", what, (unsigned long long)where);
}

static void die(const char *what)
{
	dprintf(STDOUT_FILENO, "GUEST FAILED: %s: %s\n", what, strerror(errno));
	for (;;)
		pause();
}

static uint64_t now_ms(clockid_t clock)
{
	struct timespec ts;

	clock_gettime(clock, &ts);
	return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

static void sleep_ms(unsigned long ms)
{
	struct timespec ts = { (time_t)(ms / 1000), (long)(ms % 1000) * 1000000 };

	nanosleep(&ts, NULL);
}

/* xorshift64 (Marsaglia 2003) */
static uint64_t next_random(uint64_t *seed)
{
	*seed ^= *seed << 13;
	*seed ^= *seed >> 7;
	*seed ^= *seed << 17;
	return *seed;
}

static uint64_t record_hash(const struct record *record)
{
	const uint64_t *word = (const uint64_t *)record;
	uint64_t hash = 0;
	unsigned int i;

	for (i = 0; i < RECORD_WORDS - 1; i++)
		hash = hash * 31 + word[i];
	return hash;
}

static void record_write(struct record *record, uint64_t number, uint64_t writes, uint64_t *seed)
{
	unsigned int i;

	record->number = number;
	record->writes = writes;
	for (i = 0; i < RECORD_FILL; i++)
		record->fill[i] = next_random(seed);
	record->hash = record_hash(record);
}

static void record_check(const struct record *record, uint64_t number, uint64_t writes,
			 const char *what)
{
	if (record->hash != record_hash(record))
		bad(what, number);
	else if (record->number != number || record->writes != writes)
		bad("stale or foreign record", number);
}

static void *map_pages(size_t size)
{
	void *mem = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (mem == MAP_FAILED)
		die("no memory for the workload; give the guest more");
	return mem;
}

static void *memory_thread(void *arg)
{
	struct slice *slice = arg;
	uint64_t i, n, sum;

	for (;;) {
		sum = 0;
		for (i = 0; i < slice->count; i++) {
			record_check(&slice->records[i], i, slice->writes[i], "torn record");
			sum += slice->writes[i];
		}
		if (sum != slice->total)
			bad("sum of writes", sum);
		for (n = 0; n < param_dirty; n++) {
			i = next_random(&slice->seed) % slice->count;
			slice->total++;
			record_write(&slice->records[i], i, ++slice->writes[i], &slice->seed);
		}
		__atomic_fetch_add(&loop_count, 1, __ATOMIC_RELAXED);
		if (param_pause_ms)
			sleep_ms(param_pause_ms);
	}
	return NULL;
}

static void *churn_thread(void *arg)
{
	size_t size = param_churn_mib << 20, i;
	uint64_t turn, *mem;

	(void)arg;
	for (turn = 1;; turn++) {
		mem = map_pages(size);
		for (i = 0; i < size / 8; i += RECORD_WORDS)
			mem[i] = turn + i;
		for (i = 0; i < size / 8; i += RECORD_WORDS)
			if (mem[i] != turn + i || mem[i + 1])
				bad("churned page", i / RECORD_WORDS);
		munmap(mem, size);
		sleep_ms(50); /* let free page reporting see the pages free */
	}
	return NULL;
}

static void disk_chunk_check(const uint64_t *word, uint64_t offset)
{
	uint64_t block, i;

	for (block = 0; block < DISK_CHUNK / RECORD_SIZE; block++, word += RECORD_WORDS)
		for (i = 0; i < RECORD_WORDS; i++)
			if (word[i] != (offset / RECORD_SIZE + block) * DISK_STEP + i) {
				bad("disk block", offset / RECORD_SIZE + block);
				break;
			}
}

static void disk_read_loop(int fd)
{
	uint64_t size = (uint64_t)lseek(fd, 0, SEEK_END) / DISK_CHUNK * DISK_CHUNK;
	uint64_t at[DISK_RING], offset = 0, turn;
	char *ring = map_pages(DISK_RING * DISK_CHUNK), *buffer;

	for (turn = 0;; turn++) {
		buffer = ring + turn % DISK_RING * DISK_CHUNK;
		if (turn >= DISK_RING)
			disk_chunk_check((uint64_t *)buffer, at[turn % DISK_RING]);
		if (pread(fd, buffer, DISK_CHUNK, (off_t)offset) != DISK_CHUNK)
			bad("disk read failed", offset);
		else
			disk_chunk_check((uint64_t *)buffer, offset);
		at[turn % DISK_RING] = offset;
		offset = (offset + DISK_CHUNK) % size;
	}
}

static void disk_write_loop(int fd)
{
	uint64_t count = (param_disk_mib << 20) / RECORD_SIZE, seed = now_ms(CLOCK_REALTIME) | 1;
	uint64_t *writes = map_pages(count * sizeof(*writes)), i;
	struct record *out = map_pages(RECORD_SIZE), *in = map_pages(RECORD_SIZE);
	off_t at;

	for (;;) {
		i = next_random(&seed) % count;
		at = (off_t)(i * RECORD_SIZE);
		if (writes[i]) {
			if (pread(fd, in, RECORD_SIZE, at) != RECORD_SIZE)
				bad("disk read failed", i);
			else
				record_check(in, i, writes[i], "torn disk record");
		}
		record_write(out, i, ++writes[i], &seed);
		if (pwrite(fd, out, RECORD_SIZE, at) != RECORD_SIZE)
			bad("disk write failed", i);
		if (pread(fd, in, RECORD_SIZE, at) != RECORD_SIZE)
			bad("disk read failed", i);
		else
			record_check(in, i, writes[i], "torn disk record");
	}
}

static void *disk_thread(void *arg)
{
	struct disk *disk = arg;
	int fd = open(disk->path, (disk->write ? O_RDWR : O_RDONLY) | O_DIRECT);

	if (fd < 0)
		die(disk->path);
	if (disk->write)
		disk_write_loop(fd);
	else
		disk_read_loop(fd);
	return NULL;
}

static void disk_param(const char *text)
{
	const char *colon = strchr(text, ':');
	struct disk *disk = &disks[disk_count];

	if (!colon || disk_count == MAX_DISKS || (size_t)(colon - text) >= sizeof(disk->path) ||
	    (strcmp(colon, ":read") && strcmp(colon, ":rw"))) {
		errno = EINVAL;
		die("ferry.disk= must be like /dev/vda:read or /dev/vdb:rw, at most four times");
	}
	memcpy(disk->path, text, (size_t)(colon - text));
	disk->write = !strcmp(colon, ":rw");
	disk_count++;
}

static void params_read(void)
{
	static const struct {
		const char *name;
		unsigned long *value;
	} table[] = {
		{ "ferry.mib=", &param_mib },		{ "ferry.dirty=", &param_dirty },
		{ "ferry.pause_ms=", &param_pause_ms },	{ "ferry.tick_ms=", &param_tick_ms },
		{ "ferry.churn=", &param_churn_mib },	{ "ferry.disk_mib=", &param_disk_mib },
	};
	static char line[4096];
	FILE *file = fopen("/proc/cmdline", "r");
	char *word;
	unsigned int i;

	if (!file || !fgets(line, sizeof(line), file))
		die("/proc/cmdline");
	fclose(file);
	for (word = strtok(line, " \n"); word; word = strtok(NULL, " \n")) {
		for (i = 0; i < sizeof(table) / sizeof(table[0]); i++)
			if (!strncmp(word, table[i].name, strlen(table[i].name)))
				*table[i].value = strtoul(word + strlen(table[i].name), NULL, 0);
		if (!strncmp(word, "ferry.disk=", 11))
			disk_param(word + 11);
	}
}

static void thread_start(void *(*run)(void *), void *arg)
{
	pthread_t thread;

	errno = pthread_create(&thread, NULL, run, arg);
	if (errno)
		die("pthread_create");
}

static void slice_start(struct slice *slice, uint64_t count, uint64_t seed)
{
	uint64_t i;

	slice->count = slice->total = count;
	slice->seed = seed;
	slice->records = map_pages(count * RECORD_SIZE);
	slice->writes = map_pages(count * sizeof(*slice->writes));
	for (i = 0; i < count; i++)
		record_write(&slice->records[i], i, slice->writes[i] = 1, &slice->seed);
	thread_start(memory_thread, slice);
}

int main(void)
{
	long cpus = sysconf(_SC_NPROCESSORS_ONLN), cpu;
	struct slice *slices = calloc((size_t)cpus, sizeof(*slices));
	uint64_t next, now, pages, seed = now_ms(CLOCK_REALTIME) * 2 + 1;
	unsigned long tick;
	unsigned int i;

	params_read();
	pages = (param_mib << 20) / RECORD_SIZE / (uint64_t)cpus;
	if (!slices || !pages)
		die("nothing to write: ferry.mib is too small");
	for (cpu = 0; cpu < cpus; cpu++)
		slice_start(&slices[cpu], pages, next_random(&seed));
	if (param_churn_mib)
		thread_start(churn_thread, NULL);
	for (i = 0; i < disk_count; i++)
		thread_start(disk_thread, &disks[i]);

	next = now_ms(CLOCK_MONOTONIC);
	for (tick = 0;; tick++) {
		/* One write a line: nothing else gets into it. */
		dprintf(STDOUT_FILENO, "TICK %lu bad=%lu t=%llu wall=%llu loops=%lu\n", tick,
			__atomic_load_n(&bad_count, __ATOMIC_RELAXED),
			(unsigned long long)now_ms(CLOCK_MONOTONIC),
			(unsigned long long)now_ms(CLOCK_REALTIME),
			__atomic_load_n(&loop_count, __ATOMIC_RELAXED));
		next += param_tick_ms;
		/* One look: by the second one it may be too late, and the rest of the time negative. */
		now = now_ms(CLOCK_MONOTONIC);
		if (next > now)
			sleep_ms(next - now);
		else
			next = now;
	}
}
