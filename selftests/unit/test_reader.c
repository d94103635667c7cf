// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Snapshot files from anybody: every field changed in turn, with checksums that were made to
 * fit, random bits flipped, and cut off at every boundary. All of it is refused with a
 * sentence that names the file and what does not hold; a file that is refused for nothing
 * would show, too.
 */
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cmocka.h>
#include <xxhash.h>

#include "base/clock.h"
#include "base/io.h"
#include "store/reader.h"
#include "store/writer.h"

#define MIB (1ull << 20)
#define DEVICE "the state of devices"

static char folder[] = "/dev/shm/ferry-reader-XXXXXX";
static char path[64];
static uint8_t *image; /* a good file */
static size_t image_bytes;
static struct ferry_store_file good;

static size_t most = SIZE_MAX;	   /* that one read gives */
static unsigned int fails_after; /* so many reads; 0 never */

/* A disk that gives little at a time, or fails. */
ssize_t pread(int fd, void *buf, size_t n, off_t off)
{
	if (fails_after && !--fails_after) {
		errno = EIO;
		return -1;
	}
	return syscall(SYS_pread64, fd, buf, n < most ? n : most, off);
}

static void write_file(const uint8_t *bytes, size_t len)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);

	assert_true(fd >= 0);
	assert_int_equal(ferry_io_pwrite(fd, bytes, len, 0), 0);
	close(fd);
}

/* Two blocks, pages with gaps, device state, an order of first touch. */
static void make_good(void)
{
	const uint64_t sizes[] = { 2 * MIB + 12288, 3 * 4096 }, order[] = { 5, 1ull << 48 | 2, 300 };
	const struct ferry_store_tail tail = {
		.device = (const uint8_t *)DEVICE, .device_bytes = sizeof(DEVICE),
		.order = order, .order_count = 3,
	};
	struct ferry_store_writer_params params = {
		.path = path, .id = "t", .channels = 2, .kind = "qmp", .vmm = "a VMM",
		.uuid = { 7, 8, 9 },
	};
	struct ferry_store_writer *w;
	struct ferry_ram ram;
	struct stat st;
	unsigned int i;
	int fd;

	ferry_ram_init(&ram);
	for (i = 0; i < 2; i++) {
		struct ferry_ram_block b = { .size_bytes = sizes[i], .page_size = 4096 };
		uint8_t page[4096];

		snprintf(b.name, sizeof(b.name), "block%u", i);
		b.fd = memfd_create(b.name, MFD_CLOEXEC);
		assert_int_equal(ftruncate(b.fd, (off_t)sizes[i]), 0);
		memset(page, 0x51 + (int)i, sizeof(page));
		assert_int_equal(ferry_io_pwrite(b.fd, page, sizeof(page), 4096), 0);
		assert_int_equal(ferry_io_pwrite(b.fd, page, sizeof(page), 0), 0);
		if (!i)
			assert_int_equal(ferry_io_pwrite(b.fd, page, sizeof(page), 300 * 4096), 0);
		assert_int_equal(ferry_ram_add(&ram, &b, NULL), 0);
	}
	params.ram = &ram;
	assert_int_equal(ferry_store_writer_create(&params, &w, NULL), 0);
	for (i = 0; i < 2; i++)
		assert_int_equal(ferry_store_writer_queue(w, i, 0, sizes[i] / 4096, false, NULL), 0);
	assert_int_equal(ferry_store_writer_finish(w, &tail, NULL), 0);
	ferry_store_writer_free(w);
	ferry_ram_free(&ram);
	assert_int_equal(stat(path, &st), 0);
	image_bytes = (size_t)st.st_size;
	image = malloc(image_bytes);
	fd = open(path, O_RDONLY);
	assert_int_equal(ferry_io_pread(fd, image, image_bytes, 0), 0);
	close(fd);
	assert_int_equal(ferry_store_open(&good, path, NULL), 0);
}

/* Return: what opening and reading all of it says. */
static int try_file(struct ferry_error *err)
{
	struct ferry_store_read_params params = { .threads = fails_after ? 1 : 2, .verify = true };
	static struct ferry_store_file f;
	int r;

	memset(err, 0, sizeof(*err));
	r = ferry_store_open(&f, path, err);
	if (!r) {
		r = ferry_store_read_all(&f, &params, err);
		ferry_store_close(&f);
	}
	if (r) {
		assert_int_equal(err->errnum, -r);
		assert_non_null(strstr(err->text, path));
	}
	return r;
}

static void must_be(int wanted, const char *words, const char *what)
{
	struct ferry_error err;
	int r = try_file(&err);

	if (r != wanted || !strstr(err.text, words))
		fail_msg("%s: %d (%s), wanted %d (%s)", what, r, err.text, wanted, words);
}

/* Whoever changes a file can make its checksums fit. */
static void fix_sums(uint8_t *bytes)
{
	XXH3_state_t *hash = XXH3_createState();
	unsigned int i;
	uint64_t sum;

	sum = htole64(XXH3_64bits(bytes, 4088));
	memcpy(bytes + 4088, &sum, 8);
	XXH3_64bits_reset(hash);
	XXH3_64bits_update(hash, bytes, 4096);
	XXH3_64bits_update(hash, bytes + 8192, 2 * 256);
	for (i = 0; i < 2; i++) {
		XXH3_64bits_update(hash, bytes + good.blocks[i].bitmap_off,
				   good.blocks[i].bitmap_bytes);
		XXH3_64bits_update(hash, bytes + good.blocks[i].sums_off, good.blocks[i].sums_bytes);
	}
	sum = htole64(XXH3_64bits_digest(hash));
	memcpy(bytes + 4096 + 48, &sum, 8);
	sum = htole64(XXH3_64bits(bytes + 4096, 4088));
	memcpy(bytes + 8192 - 8, &sum, 8);
	XXH3_freeState(hash);
}

struct change {
	size_t off;
	uint8_t with; /* XORed */
	int wanted;
	const char *words;
};

static void fields(void **state)
{
	const struct change changes[] = {
		{ 0, 1, -EPROTO, "is no snapshot" },
		{ 8, 1, -EPROTONOSUPPORT, "(version)" },
		{ 10, 8, -EPROTONOSUPPORT, "least version" },
		{ 12, 3, -EPROTO, "damaged" }, /* one block */
		{ 13, 0xff, -EPROTO, "number of blocks" },
		{ 23, 2, -EPROTONOSUPPORT, "features" },
		{ 24, 1, -EPROTO, "uuid" },
		{ 48, 0x80, -EPROTO, "kind of the guest" },
		{ 112, 0x80, -EPROTO, "name of the VMM" },
		{ 176, 1, -EPROTO, "reserved part of the header" },
		{ 4087, 1, -EPROTO, "reserved part of the header" },
		{ 4096, 1, -EPROTO, "magic of the commit record" },
		{ 4104, 2, -EPROTO, "flags" },
		{ 4108, 1, -EPROTO, "checksum of the device state" }, /* a byte less of it */
		{ 4112, 1, -EPROTO, "uuid" },
		{ 4128, 1, -EPROTO, "place of the device state" },
		{ 4136, 1, -EPROTO, "checksum of the device state" },
		{ 4152, 1, -EPROTO, "order of first touch" },
		{ 4160, 2, -EPROTO, "length of the file" },
		{ 4168, 1, -EPROTO, "checksum of the order" },
		{ 4176, 1, -EPROTO, "number of pages" },
		{ 4184, 1, -EPIPE, "cut short: it has" }, /* a byte more than there are */
		{ 4192, 1, -EPROTO, "reserved part of the commit" },
		{ 8192, 0x80, -EPROTO, "name of a block" },
		{ 8320, 1, -EPROTO, "size or page size" },
		{ 8328, 1, -EPROTO, "size or page size" },
		{ 8332, 1, -EPROTO, "reserved part of the block table" },
		{ 8336, 1, -EPROTO, "place of a bitmap" },
		{ 8344, 1, -EPROTO, "place of a bitmap" },
		{ 8352, 1, -EPROTO, "place of the checksums" },
		{ 8360, 1, -EPROTO, "place of the checksums" },
		{ 8368, 1, -EPROTO, "place of the pages" },
		{ 8376, 1, -EPROTO, "reserved part of the block table" },
		{ 8197 + 256, 1, -EPROTO, "there twice" }, /* block1 becomes block0 */
	};
	uint8_t *bytes = malloc(image_bytes);
	char what[64];
	size_t i;

	(void)state;
	write_file(image, image_bytes);
	must_be(0, "", "the good file");
	for (i = 0; i < sizeof(changes) / sizeof(changes[0]); i++) {
		const struct change *c = &changes[i];

		memcpy(bytes, image, image_bytes);
		bytes[c->off] ^= c->with;
		fix_sums(bytes);
		write_file(bytes, image_bytes);
		snprintf(what, sizeof(what), "byte %zu changed", c->off);
		must_be(c->wanted, c->words, what);
	}
	free(bytes);
}

/* Bitmaps and checksums that say something impossible. */
static void tables(void **state)
{
	uint8_t *bytes = malloc(image_bytes);

	(void)state;
	memcpy(bytes, image, image_bytes);
	bytes[good.blocks[1].bitmap_off] ^= 0x80; /* the eighth page of three */
	fix_sums(bytes);
	write_file(bytes, image_bytes);
	must_be(-EPROTO, "pages beyond its block", "a page too many");

	memcpy(bytes, image, image_bytes);
	bytes[good.blocks[0].sums_off + 16] ^= 1; /* of the third MiB, which is empty */
	fix_sums(bytes);
	write_file(bytes, image_bytes);
	must_be(-EPROTO, "pages that are not there", "a sum of nothing");

	memcpy(bytes, image, image_bytes);
	bytes[good.blocks[0].sums_off] ^= 1;
	fix_sums(bytes);
	write_file(bytes, image_bytes);
	must_be(-EILSEQ, "at MiB 0", "another sum");

	memcpy(bytes, image, image_bytes);
	bytes[good.blocks[0].bitmap_off] ^= 4; /* another page, a hole */
	fix_sums(bytes);
	write_file(bytes, image_bytes);
	must_be(-EPROTO, "number of pages", "a page more");

	memcpy(bytes, image, image_bytes);
	memset(bytes + 4096, 0, 4096);
	write_file(bytes, image_bytes);
	must_be(-ENODATA, "no commit record", "no commit record");
	memset(bytes, 0, 8192);
	write_file(bytes, image_bytes);
	must_be(-ENODATA, "never finished", "no header");
	free(bytes);
}

/* Any bit that is part of the file, without a checksum that fits. */
static void flips(void **state)
{
	uint8_t *bytes = malloc(image_bytes);
	struct ferry_error err;
	unsigned int i;

	(void)state;
	srandom(4711);
	for (i = 0; i < 180; i++) {
		const struct { size_t off, len; } parts[] = {
			{ 0, 8192 + 512 },
			{ good.blocks[0].bitmap_off, good.blocks[0].bitmap_bytes },
			{ good.blocks[1].bitmap_off, good.blocks[1].bitmap_bytes },
			{ good.blocks[0].sums_off, good.blocks[0].sums_bytes },
			{ good.blocks[0].pages_off, 8192 },
			{ good.blocks[0].pages_off + 300 * 4096, 4096 },
			{ good.blocks[1].pages_off, 8192 },
			{ good.commit.device_off, good.commit.device_bytes },
			{ good.commit.order_off, good.commit.order_count * 8 },
		};
		unsigned int part = i % (sizeof(parts) / sizeof(parts[0]));
		size_t off = parts[part].off + (size_t)random() % parts[part].len;

		memcpy(bytes, image, image_bytes);
		bytes[off] ^= (uint8_t)(1u << random() % 8);
		write_file(bytes, image_bytes);
		if (!try_file(&err))
			fail_msg("a flipped bit of byte %zu was not noticed", off);
	}
	free(bytes);
}

static void cuts(void **state)
{
	const uint64_t at[] = {
		0, 1, 7, 8, 4095, 4096, 4097, 8191, 8192, 8192 + 256, 8192 + 512,
		good.blocks[0].bitmap_off, good.blocks[0].sums_off, good.blocks[1].bitmap_off,
		good.blocks[1].sums_off, good.places.meta_end, good.blocks[0].pages_off,
		good.blocks[0].pages_off + 4096, good.blocks[1].pages_off,
		good.blocks[1].pages_off + 4096, good.commit.device_off, good.commit.device_off + 3,
		good.commit.order_off, image_bytes - 8, image_bytes - 1,
	};
	uint8_t *longer = calloc(1, image_bytes + 1);
	size_t i;

	(void)state;
	for (i = 0; i < sizeof(at) / sizeof(at[0]); i++) {
		struct ferry_error err;
		int r;

		write_file(image, at[i]);
		r = try_file(&err);
		if (at[i] < 8 ? r != -EPROTO : r != -EPIPE)
			fail_msg("cut at %llu: %d, %s", (unsigned long long)at[i], r, err.text);
		assert_non_null(strstr(err.text, "cut short"));
	}
	memcpy(longer, image, image_bytes);
	write_file(longer, image_bytes + 1);
	must_be(-EPROTO, "length of the file", "a byte too many");
	free(longer);
}

static void not_files(void **state)
{
	struct ferry_store_file f;
	struct ferry_error err = { 0 };
	char pipe_path[80];

	(void)state;
	assert_int_equal(ferry_store_open(&f, "/nonexistent/x", &err), -ENOENT);
	assert_non_null(strstr(err.text, "/nonexistent/x"));
	assert_int_equal(ferry_store_open(&f, folder, &err), -EINVAL);
	assert_int_equal(ferry_store_open(&f, "/dev/zero", &err), -EINVAL);
	snprintf(pipe_path, sizeof(pipe_path), "%s/pipe", folder);
	assert_int_equal(mkfifo(pipe_path, 0600), 0);
	assert_int_equal(ferry_store_open(&f, pipe_path, &err), -EINVAL);
	unlink(pipe_path);
}

/* The file is cut, or a page goes bad, between opening it and reading its pages. */
static void changed_meanwhile(void **state)
{
	struct ferry_error err = { 0 };
	struct ferry_store_file f;
	uint8_t *buf = aligned_alloc(4096, MIB);

	(void)state;
	write_file(image, image_bytes);
	assert_int_equal(ferry_store_open(&f, path, NULL), 0);
	assert_int_equal(ferry_store_read(&f, 0, 0, true, buf, NULL), 0);
	/* Past the page cache, where the file system does that. */
	if (!ferry_store_direct(&f, &err))
		assert_int_equal(ferry_store_read(&f, 0, 1, true, buf, NULL), 0);
	ferry_io_close(&f.direct_fd);
	assert_int_equal(pwrite(f.fd, "", 1, 0), -1); /* opened for reading only */
	assert_int_equal(truncate(path, (off_t)good.blocks[0].pages_off + 5000), 0);
	assert_int_equal(ferry_store_read(&f, 0, 0, true, buf, &err), -EPIPE);
	assert_non_null(strstr(err.text, "cut short"));
	assert_int_equal(ferry_store_read(&f, 0, 1, true, buf, &err), -EPIPE);
	ferry_store_close(&f);
	free(buf);
}

static int take_one(void *ctx, unsigned int block, uint64_t extent,
		    const struct ferry_store_set *set, const uint8_t *buf, struct ferry_error *err)
{
	(void)set;
	(void)buf;
	if (block == 0 && extent == 1)
		return ferry_error_set(err, ENOSPC, "no room");
	++*(int *)ctx;
	return 0;
}

/* The first who fails ends it, and so does a cancel. */
static void read_all_ends(void **state)
{
	int taken = 0, stop = 1;
	struct ferry_store_read_params params = { .threads = 1, .take = take_one, .ctx = &taken };
	struct ferry_error err = { 0 };
	struct ferry_store_file f;

	(void)state;
	write_file(image, image_bytes);
	assert_int_equal(ferry_store_open(&f, path, NULL), 0);
	assert_int_equal(ferry_store_read_all(&f, &params, &err), -ENOSPC);
	assert_string_equal(err.text, "no room");
	assert_int_equal(taken, 1);
	assert_false(f.pages_verified);
	params.stop = &stop;
	assert_int_equal(ferry_store_read_all(&f, &params, &err), -ECANCELED);
	assert_int_equal(taken, 1);
	ferry_store_close(&f);
}

static void bad_disk(void **state)
{
	unsigned int reads, failed = 0;
	struct ferry_error err;

	(void)state;
	write_file(image, image_bytes);
	most = 1000; /* no page comes in one piece */
	must_be(0, "", "short reads");
	most = SIZE_MAX;
	/* Wherever it fails, that is what is said. */
	for (reads = 1; reads < 100; reads++) {
		fails_after = reads;
		if (!try_file(&err))
			break;
		assert_int_equal(err.errnum, EIO);
		assert_non_null(strstr(err.text, "Input/output error"));
		failed++;
	}
	fails_after = 0;
	assert_true(failed > 8 && reads < 100);
}

/* What version 1 wrote on the day it was made is read for ever. */
static void fixture(void **state)
{
	struct ferry_store_read_params params = { .threads = 1, .verify = true };
	struct ferry_error err = { 0 };
	struct ferry_store_file f;
	uint8_t *buf = malloc(MIB);
	char command[160];

	(void)state;
	snprintf(command, sizeof(command), "gzip -dc selftests/testdata/snapshot-1.gz > %s", path);
	assert_int_equal(system(command), 0);
	if (ferry_store_open(&f, path, &err) || ferry_store_read_all(&f, &params, &err))
		fail_msg("%s", err.text);
	assert_string_equal(f.header.kind, "qmp");
	assert_string_equal(f.blocks[1].name, "block1");
	assert_int_equal(f.commit.pages, 5);
	assert_int_equal(f.commit.order_count, 3);
	assert_int_equal(f.order[1], 1ull << 48 | 2);
	assert_memory_equal(f.device, DEVICE, sizeof(DEVICE));
	assert_int_equal(ferry_store_read(&f, 0, 1, true, buf, NULL), 0);
	assert_int_equal(buf[(300 - 256) * 4096 + 17], 0x51);
	ferry_store_close(&f);
	free(buf);
}

static int setup(void **state)
{
	(void)state;
	if (!mkdtemp(folder))
		return -1;
	snprintf(path, sizeof(path), "%s/snap", folder);
	make_good();
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	ferry_store_close(&good);
	free(image);
	unlink(path);
	return rmdir(folder);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(fields),
		cmocka_unit_test(tables),
		cmocka_unit_test(flips),
		cmocka_unit_test(cuts),
		cmocka_unit_test(not_files),
		cmocka_unit_test(changed_meanwhile),
		cmocka_unit_test(read_all_ends),
		cmocka_unit_test(bad_disk),
		cmocka_unit_test(fixture),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
