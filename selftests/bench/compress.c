// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What --compress and --checksum cost and gain: one thread packs and unpacks memory of several
 * kinds, in runs as the multifd channels make them. `make bench-compress` runs it.
 *
 * memory: what this machine has at hand that looks like a guest: this program, its libraries and
 * an address space's worth of small structures; text: words; mixed: every other page random;
 * random: what an encrypted or compressed page cache is; zero: what ferry never packs, but finds
 * and sends as an extent without data.
 */
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "ram/hash.h"
#include "ram/ram.h"
#include "ram/zero.h"
#include "xport/compress.h"

#define MIB (1ul << 20)
#define SIZE (64 * MIB)
#define TIMES 5
#define MAX_RUN FERRY_WIRE_MAX_PACKET_PAGES

struct result {
	double pack, unpack; /* GiB a second of processor time; unpack 0: nothing was packed */
	double ratio;	     /* raw bytes for one on the wire */
};

static uint64_t random_state = 88172645463325252ull;

static uint64_t random_word(void)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return random_state;
}

static void fill_random(uint8_t *at, size_t bytes)
{
	size_t i;

	for (i = 0; i < bytes; i += 8) {
		uint64_t w = random_word();

		memcpy(at + i, &w, 8);
	}
}

static void fill_text(uint8_t *at, size_t bytes)
{
	static const char *const words[] = { "page", "guest ", "the ", "of memory ", "is ", "dirty\n",
					     "and ", "was ", "moved ", "42 ", "to ", "channel ", "a ",
					     "round, ", "which ", "0x1f00 " };
	size_t used = 0;

	while (used < bytes) {
		const char *word = words[random_word() >> 60];
		size_t n = strlen(word);

		n = n < bytes - used ? n : bytes - used;
		memcpy(at + used, word, n);
		used += n;
	}
}

/* Executables, without the holes between their parts; again and again until it is enough. */
static void fill_memory(uint8_t *at, size_t bytes)
{
	static const char *const files[] = { "/proc/self/exe", "/lib/x86_64-linux-gnu/libc.so.6",
					     "/usr/bin/qemu-system-x86_64", "/usr/bin/python3",
					     "/bin/busybox" };
	size_t used = 0, i, before = 1;

	while (used < bytes && used != before) {
		before = used;
		for (i = 0; i < sizeof(files) / sizeof(files[0]) && used < bytes; i++) {
			int fd = open(files[i], O_RDONLY | O_CLOEXEC);
			ssize_t n;

			if (fd < 0)
				continue;
			while (used < bytes && (n = read(fd, at + used, bytes - used)) > 0)
				used += (size_t)n;
			close(fd);
		}
	}
	fill_text(at + used, bytes - used);
}

static void fill_mixed(uint8_t *at, size_t bytes)
{
	size_t i;

	fill_memory(at, bytes);
	for (i = 0; i < bytes; i += 2 * FERRY_PAGE_SIZE)
		fill_random(at + i, FERRY_PAGE_SIZE);
}

static void fill_zero(uint8_t *at, size_t bytes)
{
	memset(at, 0, bytes);
}

/* Processor time of this thread: what others do meanwhile does not count. */
static uint64_t cpu_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
	return (uint64_t)ts.tv_sec * 1000000000ull + (uint64_t)ts.tv_nsec;
}

static double gib_per_s(uint64_t bytes, uint64_t ns)
{
	return (double)bytes / (double)(1 << 30) * 1e9 / (double)(ns ? ns : 1);
}

/* One pass over all of it in runs of @pages, as a channel does it. */
static struct result once(const uint8_t *plain, unsigned int codec, bool checksum,
			  unsigned int pages, uint8_t *packed, uint8_t *back)
{
	size_t run = pages * FERRY_PAGE_SIZE, i, wire = 0;
	struct ferry_compress *pack, *unpack;
	uint64_t pack_ns = 0, unpack_ns = 0;

	if (ferry_compress_create(codec, FERRY_COMPRESS_PACK, &pack) ||
	    ferry_compress_create(codec, FERRY_COMPRESS_UNPACK, &unpack))
		exit(1);
	for (i = 0; i + run <= SIZE; i += run) {
		uint64_t start = cpu_ns(), mid;
		uint32_t sum = checksum ? ferry_hash_extent(0, i / FERRY_PAGE_SIZE, pages,
							    plain + i) : 0;
		size_t n = pack ? ferry_compress_pack(pack, plain + i, run, packed) : 0;
		const uint8_t *got = n ? back : plain + i;

		mid = cpu_ns();
		pack_ns += mid - start;
		wire += n ? n : run;
		if (n && ferry_compress_unpack(unpack, packed, n, back, run))
			exit(1);
		if (checksum && sum != ferry_hash_extent(0, i / FERRY_PAGE_SIZE, pages, got))
			exit(1);
		unpack_ns += cpu_ns() - mid;
	}
	ferry_compress_free(pack);
	ferry_compress_free(unpack);
	return (struct result){ gib_per_s(SIZE, pack_ns),
				wire < SIZE || checksum ? gib_per_s(SIZE, unpack_ns) : 0,
				(double)SIZE / (double)wire };
}

static int by_number(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

/* The median of each number. */
static struct result median_of(const uint8_t *plain, unsigned int codec, bool checksum,
			     unsigned int pages, uint8_t *packed, uint8_t *back)
{
	double pack[TIMES], unpack[TIMES];
	struct result r = { 0 };
	unsigned int i;

	for (i = 0; i < TIMES; i++) {
		r = once(plain, codec, checksum, pages, packed, back);
		pack[i] = r.pack;
		unpack[i] = r.unpack;
	}
	qsort(pack, TIMES, sizeof(pack[0]), by_number);
	qsort(unpack, TIMES, sizeof(unpack[0]), by_number);
	r.pack = pack[TIMES / 2];
	r.unpack = unpack[TIMES / 2];
	return r;
}

static double zero_speed(const uint8_t *plain)
{
	uint64_t start = cpu_ns();
	size_t i, zeros = 0;

	for (i = 0; i < SIZE; i += FERRY_PAGE_SIZE)
		zeros += ferry_zero_is(plain + i, FERRY_PAGE_SIZE);
	if (zeros != SIZE / FERRY_PAGE_SIZE)
		exit(1);
	return gib_per_s(SIZE, cpu_ns() - start);
}

static const struct {
	const char *name;
	void (*fill)(uint8_t *at, size_t bytes);
} kinds[] = {
	{ "memory", fill_memory }, { "text", fill_text },   { "mixed", fill_mixed },
	{ "random", fill_random }, { "zero", fill_zero },
};

#define KINDS (sizeof(kinds) / sizeof(kinds[0]))

static void print_row(const char *data, const char *method, const struct result *r)
{
	printf("%-8s %-18s %8.2f ", data, method, r->pack);
	if (r->unpack > 0)
		printf("%8.2f ", r->unpack);
	else
		printf("%8s ", "-");
	printf("%8.2f\n", r->ratio);
	fflush(stdout);
}

int main(void)
{
	static const unsigned int runs[] = { 1, 8, FERRY_COMPRESS_PAGES, 64, MAX_RUN };
	uint8_t *plain = malloc(SIZE), *packed = malloc(MAX_RUN * FERRY_PAGE_SIZE);
	uint8_t *back = malloc(MAX_RUN * FERRY_PAGE_SIZE);
	double ratio[FERRY_WIRE_CODEC_COUNT][KINDS] = { { 0 } };
	unsigned int codec, i;

	if (!plain || !packed || !back)
		return 1;
	printf("one thread, %lu MiB, medians of %d; GiB of memory a CPU second, ratio = memory / wire\n\n",
	       SIZE / MIB, TIMES);
	printf("%-8s %-18s %8s %8s %8s\n", "data", "method", "pack", "unpack", "ratio");
	for (i = 0; i < KINDS; i++) {
		kinds[i].fill(plain, SIZE);
		if (kinds[i].fill == fill_zero)
			printf("%-8s %-18s %8.2f %8s %8s\n", "zero", "found, not packed",
			       zero_speed(plain), "-", "-");
		for (codec = 0; codec < FERRY_WIRE_CODEC_COUNT; codec++) {
			struct result r = median_of(plain, codec, codec == 0, FERRY_COMPRESS_PAGES,
						  packed, back);

			ratio[codec][i] = r.ratio;
			print_row(kinds[i].name, codec ? ferry_wire_codec_name(codec) : "checksum",
				  &r);
		}
	}
	printf("\nruns of so many pages, memory\n%-8s %18s %8s %8s %8s\n", "codec", "pages", "pack",
	       "unpack", "ratio");
	fill_memory(plain, SIZE);
	for (codec = 1; codec < FERRY_WIRE_CODEC_COUNT; codec++) {
		for (i = 0; i < sizeof(runs) / sizeof(runs[0]); i++) {
			struct result r = median_of(plain, codec, false, runs[i], packed, back);

			printf("%-8s %18u %8.2f %8.2f %8.2f\n", ferry_wire_codec_name(codec), runs[i],
			       r.pack, r.unpack, r.ratio);
			fflush(stdout);
		}
	}
	printf("\n");
	/* Sizes do not vary from run to run. */
	for (codec = 1; codec < FERRY_WIRE_CODEC_COUNT; codec++)
		for (i = 0; i < KINDS; i++)
			printf("ratio %s-%s: %.2f (%.2f..%.2f)\n", ferry_wire_codec_name(codec),
			       kinds[i].name, ratio[codec][i], ratio[codec][i], ratio[codec][i]);
	free(plain);
	free(packed);
	free(back);
	return 0;
}
