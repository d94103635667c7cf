// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Reading a snapshot file. It may come from anybody: nothing is taken for granted.
 *
 * The order of the checks decides what a person is told: what is no snapshot at all, then one
 * of another version, then one that was never finished, then one that is shorter than it
 * says, then damage, named by the field it is in. Tables of guests with much untouched RAM are
 * mostly zeros; those stay untouched memory here too, so what a file costs to open is what
 * it really holds.
 */
#include "store/reader.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/io.h"
#include "ram/zero.h"
#include "store/team.h"

#define READER_PIECE_BYTES (64u << 10)

/*
 * So many extents ahead the disk is told what comes: several threads that take turns look to the
 * kernel like one that jumps about. Enough to keep a fast disk busy, too few to fill memory.
 */
#define READER_AHEAD 8

static int damaged(const struct ferry_store_file *f, const char *what, struct ferry_error *err)
{
	return ferry_error_set(err, EPROTO, "%s is damaged: %s does not hold", f->path, what);
}

static int cut_short(const struct ferry_store_file *f, struct ferry_error *err)
{
	return ferry_error_set(err, EPIPE, "%s is cut short: it ends before what it must hold",
			       f->path);
}

/* Read exactly that much. */
static int get_from(const struct ferry_store_file *f, int fd, void *buf, size_t len, uint64_t off,
		    struct ferry_error *err)
{
	int r = ferry_io_pread(fd, buf, len, (off_t)off);

	if (r == -EPIPE)
		return cut_short(f, err);
	return r ? ferry_error_set(err, -r, "reading %s: %s", f->path, strerror(-r)) : 0;
}

static int get(const struct ferry_store_file *f, void *buf, size_t len, uint64_t off,
	       struct ferry_error *err)
{
	return get_from(f, f->fd, buf, len, off, err);
}

static int open_file(struct ferry_store_file *f, const char *path, uint64_t *bytes,
		     struct ferry_error *err)
{
	struct stat st;

	memcpy(f->path, path, strlen(path) + 1);
	/* Not to hang on a pipe. */
	f->fd = open(f->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (f->fd < 0 || fstat(f->fd, &st))
		return ferry_error_set(err, errno, "cannot open %s: %s", f->path, strerror(errno));
	if (!S_ISREG(st.st_mode))
		return ferry_error_set(err, EINVAL, "%s is no file", f->path);
	*bytes = (uint64_t)st.st_size;
	return 0;
}

/* Header and commit record: is it ours, known, finished and whole? */
static int read_ends(struct ferry_store_file *f, uint64_t bytes, XXH3_state_t *hash,
		     struct ferry_error *err)
{
	uint8_t buf[FERRY_STORE_HEADER_BYTES];
	const char *field = "";
	int r;

	if (bytes < sizeof(buf))
		return ferry_error_set(err, bytes < 8 ? EPROTO : EPIPE, "%s has %llu bytes: it is no "
				       "snapshot, or cut short", f->path, (unsigned long long)bytes);
	r = get(f, buf, sizeof(buf), FERRY_STORE_HEADER_OFF, err);
	if (r)
		return r;
	XXH3_64bits_update(hash, buf, sizeof(buf));
	r = ferry_store_header_decode(&f->header, buf, &field);
	if (r == -EPROTONOSUPPORT)
		return ferry_error_set(err, EPROTONOSUPPORT, "%s was made by a newer or unknown ferry "
				       "(%s): use that one", f->path, field);
	if (r && ferry_zero_is(buf, sizeof(buf)))
		return ferry_error_set(err, ENODATA, "%s was never finished: whoever wrote it was "
				       "stopped; it cannot be used", f->path);
	if (r && memcmp(buf, "FERRYRAM", 8))
		return ferry_error_set(err, EPROTO, "%s is no snapshot made by ferry save", f->path);
	if (r)
		return damaged(f, field, err);
	r = get(f, buf, sizeof(buf), FERRY_STORE_COMMIT_OFF, err);
	if (r)
		return r;
	r = ferry_store_commit_decode(&f->commit, buf, &field);
	if (r == -ENODATA)
		return ferry_error_set(err, ENODATA, "%s was never finished: it has no commit record; "
				       "it cannot be used", f->path);
	if (r)
		return damaged(f, field, err);
	if (bytes < f->commit.file_bytes)
		return ferry_error_set(err, EPIPE, "%s is cut short: it has %llu bytes of %llu", f->path,
				       (unsigned long long)bytes,
				       (unsigned long long)f->commit.file_bytes);
	if (bytes > f->commit.file_bytes)
		return damaged(f, "length of the file", err);
	return 0;
}

static int read_blocks(struct ferry_store_file *f, XXH3_state_t *hash, struct ferry_error *err)
{
	unsigned int i, count = f->header.blocks;
	struct ferry_store_block *scratch = calloc(count, sizeof(*scratch));
	uint8_t buf[FERRY_STORE_BLOCK_BYTES];
	const char *field = "";
	int r = 0;

	f->blocks = calloc(count, sizeof(*f->blocks));
	f->bits = calloc(count, sizeof(*f->bits));
	f->sums = calloc(count, sizeof(*f->sums));
	if (!f->blocks || !f->bits || !f->sums || !scratch)
		r = ferry_error_set(err, ENOMEM, "no memory for the block table of %s", f->path);
	for (i = 0; i < count && !r; i++) {
		r = get(f, buf, sizeof(buf), FERRY_STORE_BLOCKS_OFF +
			(uint64_t)i * FERRY_STORE_BLOCK_BYTES, err);
		if (r)
			break;
		XXH3_64bits_update(hash, buf, sizeof(buf));
		if (ferry_store_block_decode(&f->blocks[i], buf, &field))
			r = damaged(f, field, err);
	}
	if (!r && (ferry_store_blocks_check(f->blocks, count, scratch, &f->places, &field) ||
		   ferry_store_commit_check(&f->commit, &f->header, &f->places, &field)))
		r = damaged(f, field, err);
	free(scratch);
	return r;
}

/* A table of 64-bit numbers. */
static int read_table(struct ferry_store_file *f, uint64_t off, uint64_t bytes, uint64_t **table,
		      XXH3_state_t *hash, struct ferry_error *err)
{
	uint64_t *piece = malloc(READER_PIECE_BYTES);
	uint64_t at, i;
	int r = 0;

	*table = calloc(1, bytes);
	if (!*table || !piece)
		r = ferry_error_set(err, ENOMEM, "no memory for %llu bytes of tables of %s",
				    (unsigned long long)bytes, f->path);
	for (at = 0; at < bytes && !r; at += READER_PIECE_BYTES) {
		uint64_t n = bytes - at < READER_PIECE_BYTES ? bytes - at : READER_PIECE_BYTES;

		r = get(f, piece, n, off + at, err);
		if (r)
			break;
		XXH3_64bits_update(hash, piece, n);
		if (ferry_zero_is(piece, n))
			continue;
		for (i = 0; i < n / 8; i++)
			(*table)[at / 8 + i] = le64toh(piece[i]);
	}
	free(piece);
	return r;
}

/* Which pages there are must agree with the sizes, the checksums and the record. */
static int check_bits(const struct ferry_store_file *f, struct ferry_error *err)
{
	uint64_t total = 0, k;
	unsigned int i;

	for (i = 0; i < f->header.blocks; i++) {
		const struct ferry_store_block *b = &f->blocks[i];
		uint64_t pages = b->size_bytes / FERRY_STORE_PAGE_BYTES;

		if (pages % 64 && f->bits[i][pages / 64] >> pages % 64)
			return damaged(f, "a bitmap, which has pages beyond its block,", err);
		for (k = 0; k < ferry_store_extents(b->size_bytes); k++) {
			struct ferry_store_set set;

			ferry_store_pages(f, i, k, &set);
			if (ferry_store_set_empty(&set) && f->sums[i][k])
				return damaged(f, "a checksum of pages that are not there", err);
			total += ferry_store_set_count(&set);
		}
	}
	return total == f->commit.pages ? 0 : damaged(f, "the number of pages", err);
}

static int read_tables(struct ferry_store_file *f, XXH3_state_t *hash, struct ferry_error *err)
{
	unsigned int i;
	int r = 0;

	for (i = 0; i < f->header.blocks && !r; i++) {
		const struct ferry_store_block *b = &f->blocks[i];

		r = read_table(f, b->bitmap_off, b->bitmap_bytes, &f->bits[i], hash, err);
		if (!r)
			r = read_table(f, b->sums_off, b->sums_bytes, &f->sums[i], hash, err);
	}
	if (!r && XXH3_64bits_digest(hash) != f->commit.meta_sum)
		r = damaged(f, "the checksum of header, block table, bitmaps and checksums", err);
	return r ? r : check_bits(f, err);
}

static int read_order(struct ferry_store_file *f, XXH3_state_t *hash, struct ferry_error *err)
{
	uint64_t i;
	int r;

	if (!f->commit.order_count)
		return 0;
	XXH3_64bits_reset(hash);
	r = read_table(f, f->commit.order_off, f->commit.order_count * 8, &f->order, hash, err);
	if (!r && XXH3_64bits_digest(hash) != f->commit.order_sum)
		r = damaged(f, "the checksum of the order of first touch", err);
	for (i = 0; i < f->commit.order_count && !r; i++) {
		uint64_t block = f->order[i] >> 48, page = f->order[i] & ((1ull << 48) - 1);

		if (block >= f->header.blocks ||
		    page >= f->blocks[block].size_bytes / FERRY_STORE_PAGE_BYTES)
			r = damaged(f, "an entry of the order of first touch", err);
	}
	return r;
}

static int read_device(struct ferry_store_file *f, struct ferry_error *err)
{
	int r;

	f->device = malloc(f->commit.device_bytes ? f->commit.device_bytes : 1);
	if (!f->device)
		return ferry_error_set(err, ENOMEM, "no memory for the device state of %s", f->path);
	r = get(f, f->device, f->commit.device_bytes, f->commit.device_off, err);
	if (!r && XXH3_64bits(f->device, f->commit.device_bytes) != f->commit.device_sum)
		r = damaged(f, "the checksum of the device state", err);
	return r;
}

int ferry_store_open(struct ferry_store_file *f, const char *path, struct ferry_error *err)
{
	XXH3_state_t *hash = XXH3_createState();
	uint64_t bytes = 0;
	int r;

	memset(f, 0, sizeof(*f));
	f->fd = f->direct_fd = -1;
	if (!hash)
		return ferry_error_set(err, ENOMEM, "out of memory");
	XXH3_64bits_reset(hash);
	if (strlen(path) >= sizeof(f->path))
		r = ferry_error_set(err, ENAMETOOLONG, "the file's path is too long");
	else
		r = open_file(f, path, &bytes, err);
	if (!r)
		r = read_ends(f, bytes, hash, err);
	if (!r)
		r = read_blocks(f, hash, err);
	if (!r)
		r = read_tables(f, hash, err);
	if (!r)
		r = read_order(f, hash, err);
	if (!r)
		r = read_device(f, err);
	XXH3_freeState(hash);
	if (r)
		ferry_store_close(f);
	return r;
}

void ferry_store_close(struct ferry_store_file *f)
{
	unsigned int i;

	ferry_io_close(&f->fd);
	ferry_io_close(&f->direct_fd);
	for (i = 0; i < f->header.blocks; i++) {
		if (f->bits)
			free(f->bits[i]);
		if (f->sums)
			free(f->sums[i]);
	}
	free(f->bits);
	free(f->sums);
	free(f->blocks);
	free(f->order);
	free(f->device);
	f->bits = f->sums = NULL;
	f->blocks = NULL;
	f->order = NULL;
	f->device = NULL;
}

/* ---- pages ---- */

int ferry_store_direct(struct ferry_store_file *f, struct ferry_error *err)
{
	char self[32];

	/* The same file, whatever has its name now. */
	snprintf(self, sizeof(self), "/proc/self/fd/%d", f->fd);
	f->direct_fd = open(self, O_RDONLY | O_DIRECT | O_CLOEXEC);
	if (f->direct_fd >= 0)
		return 0;
	return ferry_error_set(err, errno, "--direct: the file system of %s does not do it (%s); leave "
			       "--direct out", f->path, strerror(errno));
}

void ferry_store_pages(const struct ferry_store_file *f, unsigned int block, uint64_t extent,
		       struct ferry_store_set *set)
{
	ferry_store_set_load(set, f->bits[block], f->blocks[block].bitmap_bytes / 8, extent);
}

int ferry_store_read(const struct ferry_store_file *f, unsigned int block, uint64_t extent,
		     bool verify, uint8_t *buf, struct ferry_error *err)
{
	const struct ferry_store_block *b = &f->blocks[block];
	uint64_t at = b->pages_off + extent * FERRY_STORE_EXTENT_BYTES, sum;
	unsigned int first = 0, pages;
	struct ferry_store_set set;
	int r = 0;

	ferry_store_pages(f, block, extent, &set);
	for (; !r && (pages = ferry_store_set_run(&set, &first)); first += pages) {
		size_t off = (size_t)first * FERRY_STORE_PAGE_BYTES;

		r = get_from(f, f->direct_fd >= 0 ? f->direct_fd : f->fd, buf + off,
			     (size_t)pages * FERRY_STORE_PAGE_BYTES, at + off, err);
	}
	if (r || !verify)
		return r;
	if (ferry_store_set_sum(&set, buf, &sum))
		return ferry_error_set(err, ENOMEM, "out of memory");
	if (sum == f->sums[block][extent])
		return 0;
	return ferry_error_set(err, EILSEQ, "%s is damaged: the checksum of the pages of memory block "
			       "'%s' at MiB %llu does not hold", f->path, b->name,
			       (unsigned long long)extent);
}

void ferry_store_ahead(const struct ferry_store_file *f, unsigned int block, uint64_t extent)
{
	const struct ferry_store_block *b = &f->blocks[block];
	struct ferry_store_set set;

	if (extent >= ferry_store_extents(b->size_bytes) || f->direct_fd >= 0)
		return;
	ferry_store_pages(f, block, extent, &set);
	if (!ferry_store_set_empty(&set))
		posix_fadvise(f->fd, (off_t)(b->pages_off + extent * FERRY_STORE_EXTENT_BYTES),
			      FERRY_STORE_EXTENT_BYTES, POSIX_FADV_WILLNEED);
}

struct read_all {
	struct ferry_store_file *f;
	const struct ferry_store_read_params *params;
	uint8_t *bufs[FERRY_STORE_MAX_LANES];
};

static int read_one(void *ctx, unsigned int lane, unsigned int block, uint64_t extent,
		    struct ferry_error *err)
{
	struct read_all *all = ctx;
	struct ferry_store_set set;
	int r;

	ferry_store_ahead(all->f, block, extent + READER_AHEAD);
	ferry_store_pages(all->f, block, extent, &set);
	if (ferry_store_set_empty(&set))
		return 0;
	r = ferry_store_read(all->f, block, extent, all->params->verify, all->bufs[lane], err);
	if (r || !all->params->take)
		return r;
	return all->params->take(all->params->ctx, block, extent, &set, all->bufs[lane], err);
}

int ferry_store_read_all(struct ferry_store_file *f, const struct ferry_store_read_params *params,
			 struct ferry_error *err)
{
	uint64_t *extents = calloc(f->header.blocks, sizeof(*extents));
	struct read_all all = { .f = f, .params = params };
	struct ferry_store_work work = {
		.threads = params->threads < FERRY_STORE_MAX_LANES ? params->threads :
								     FERRY_STORE_MAX_LANES,
		.blocks = f->header.blocks,
		.extents = extents,
		.run = read_one,
		.ctx = &all,
		.stop = params->stop,
	};
	unsigned int i;
	int r = extents ? 0 : -ENOMEM;

	for (i = 0; i < work.threads && !r; i++) {
		all.bufs[i] = aligned_alloc(FERRY_STORE_PAGE_BYTES, FERRY_STORE_EXTENT_BYTES);
		r = all.bufs[i] ? 0 : -ENOMEM;
	}
	for (i = 0; i < f->header.blocks && !r; i++)
		extents[i] = ferry_store_extents(f->blocks[i].size_bytes);
	r = r ? ferry_error_set(err, ENOMEM, "no memory to read %s with %u threads", f->path,
				work.threads) : ferry_store_team(&work, err);
	f->pages_verified = !r && params->verify;
	for (i = 0; i < work.threads; i++)
		free(all.bufs[i]);
	free(extents);
	return r;
}
