// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The end of a snapshot file: checksums of extents that were written more than once, the
 * tables, and the commit record, in the order that a power loss at any moment asks for
 * (Documentation/mapped-ram.rst).
 */
#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/io.h"
#include "store/team.h"
#include "store/writer_private.h"

/* Tables are written in pieces of this size; those of zeros stay holes. */
#define SEAL_PIECE_BYTES 4096u

struct seal {
	struct ferry_store_writer *w;
	uint8_t **bufs; /* one a thread */
};

/* An extent that is not what it was when its checksum was made: from the file. */
static int sum_extent(void *ctx, unsigned int lane, unsigned int block, uint64_t extent,
		      struct ferry_error *err)
{
	struct seal *s = ctx;
	struct ferry_store_writer *w = s->w;
	const struct ferry_store_block *b = &w->blocks[block];
	uint64_t at = b->pages_off + extent * FERRY_STORE_EXTENT_BYTES;
	unsigned int first = 0, pages;
	struct ferry_store_set set;

	if (!w->stale[block][extent])
		return 0;
	ferry_store_set_load(&set, w->bits[block], b->bitmap_bytes / 8, extent);
	for (; (pages = ferry_store_set_run(&set, &first)); first += pages) {
		size_t off = (size_t)first * FERRY_STORE_PAGE_BYTES;
		int r = ferry_io_pread(w->direct_fd >= 0 ? w->direct_fd : w->aside.fd,
				       s->bufs[lane] + off, (size_t)pages * FERRY_STORE_PAGE_BYTES,
				       (off_t)(at + off));

		if (r)
			return ferry_store_writer_error(w, r, "reading back", err);
	}
	if (ferry_store_set_sum(&set, s->bufs[lane], &w->sums[block][extent]))
		return ferry_error_set(err, ENOMEM, "no memory for the checksums of the file");
	return 0;
}

static int sum_stale(struct ferry_store_writer *w, struct ferry_error *err)
{
	unsigned int i, lanes = w->started < FERRY_STORE_MAX_LANES ? w->started :
								     FERRY_STORE_MAX_LANES;
	uint64_t *extents = calloc(w->header.blocks, sizeof(*extents));
	uint8_t *bufs[FERRY_STORE_MAX_LANES] = { NULL };
	struct seal seal = { .w = w, .bufs = bufs };
	const struct ferry_store_work work = {
		.threads = lanes,
		.blocks = w->header.blocks,
		.extents = extents,
		.run = sum_extent,
		.ctx = &seal,
	};
	int r = extents ? 0 : -ENOMEM;

	for (i = 0; i < lanes && !r; i++) {
		bufs[i] = aligned_alloc(FERRY_STORE_PAGE_BYTES, FERRY_STORE_EXTENT_BYTES);
		r = bufs[i] ? 0 : -ENOMEM;
	}
	for (i = 0; i < w->header.blocks && !r; i++)
		extents[i] = ferry_store_extents(w->blocks[i].size_bytes);
	r = r ? ferry_error_set(err, ENOMEM, "no memory for the checksums of the file") :
		ferry_store_team(&work, err);
	for (i = 0; i < lanes; i++)
		free(bufs[i]);
	free(extents);
	return r;
}

/* A table of 64-bit numbers. Counts into @hash what a reader will read there. */
static int write_table(struct ferry_store_writer *w, const uint64_t *words, uint64_t bytes,
		       uint64_t off, XXH3_state_t *hash)
{
	uint64_t piece[SEAL_PIECE_BYTES / 8], at, i;

	for (at = 0; at < bytes; at += SEAL_PIECE_BYTES) {
		uint64_t n = bytes - at < SEAL_PIECE_BYTES ? bytes - at : SEAL_PIECE_BYTES;
		uint64_t any = 0;
		int r;

		for (i = 0; i < n / 8; i++) {
			piece[i] = htole64(words[at / 8 + i]);
			any |= piece[i];
		}
		XXH3_64bits_update(hash, piece, n);
		r = any ? ferry_io_pwrite(w->aside.fd, piece, n, (off_t)(off + at)) : 0;
		if (r)
			return r;
	}
	return 0;
}

static int write_tables(struct ferry_store_writer *w, uint64_t *sum)
{
	uint8_t header[FERRY_STORE_HEADER_BYTES], entry[FERRY_STORE_BLOCK_BYTES];
	XXH3_state_t *hash = XXH3_createState();
	unsigned int i;
	int r;

	if (!hash)
		return -ENOMEM;
	XXH3_64bits_reset(hash);
	ferry_store_header_encode(&w->header, header);
	XXH3_64bits_update(hash, header, sizeof(header));
	r = ferry_io_pwrite(w->aside.fd, header, sizeof(header), FERRY_STORE_HEADER_OFF);
	for (i = 0; i < w->header.blocks && !r; i++) {
		ferry_store_block_encode(&w->blocks[i], entry);
		XXH3_64bits_update(hash, entry, sizeof(entry));
		r = ferry_io_pwrite(w->aside.fd, entry, sizeof(entry),
				    FERRY_STORE_BLOCKS_OFF + (off_t)i * FERRY_STORE_BLOCK_BYTES);
	}
	for (i = 0; i < w->header.blocks && !r; i++) {
		const struct ferry_store_block *b = &w->blocks[i];

		r = write_table(w, w->bits[i], b->bitmap_bytes, b->bitmap_off, hash);
		if (!r)
			r = write_table(w, w->sums[i], b->sums_bytes, b->sums_off, hash);
	}
	*sum = XXH3_64bits_digest(hash);
	XXH3_freeState(hash);
	return r;
}

static uint64_t count_pages(const struct ferry_store_writer *w)
{
	uint64_t n = 0, k;
	unsigned int i;

	for (i = 0; i < w->header.blocks; i++)
		for (k = 0; k < w->blocks[i].bitmap_bytes / 8; k++)
			n += (unsigned int)__builtin_popcountll(w->bits[i][k]);
	return n;
}

static int write_order(struct ferry_store_writer *w, const struct ferry_store_tail *tail,
		       struct ferry_store_commit *c)
{
	uint64_t end = c->device_off + c->device_bytes;
	XXH3_state_t *hash = XXH3_createState();
	int r;

	if (!hash)
		return -ENOMEM;
	c->order_off = (end + FERRY_STORE_PAGE_BYTES - 1) / FERRY_STORE_PAGE_BYTES *
		       FERRY_STORE_PAGE_BYTES;
	c->order_count = tail->order_count;
	XXH3_64bits_reset(hash);
	r = write_table(w, tail->order, tail->order_count * 8, c->order_off, hash);
	c->order_sum = XXH3_64bits_digest(hash);
	XXH3_freeState(hash);
	return r;
}

/* Device state and the order of first touch; @c tells of them afterwards. */
static int write_tail(struct ferry_store_writer *w, const struct ferry_store_tail *tail,
		      struct ferry_store_commit *c)
{
	int r;

	c->device_off = w->places.device_off;
	c->device_bytes = tail->device_bytes;
	c->device_sum = XXH3_64bits(tail->device, tail->device_bytes);
	c->file_bytes = c->device_off + c->device_bytes;
	r = ferry_io_pwrite(w->aside.fd, tail->device, tail->device_bytes, (off_t)c->device_off);
	if (!r && tail->order_count) {
		r = write_order(w, tail, c);
		c->file_bytes = c->order_off + c->order_count * 8;
	}
	/* What ends in zeros, or is empty, ends in a hole. */
	if (!r && ftruncate(w->aside.fd, (off_t)c->file_bytes))
		r = -errno;
	return r;
}

static int step(struct ferry_store_writer *w, const char *stage, struct ferry_error *err)
{
	return w->params.step ? w->params.step(w->params.ctx, stage, err) : 0;
}

static int sync_file(struct ferry_store_writer *w, struct ferry_error *err)
{
	if (!fsync(w->aside.fd))
		return 0;
	return ferry_store_writer_error(w, -errno, "writing", err);
}

int ferry_store_writer_seal(struct ferry_store_writer *w, const struct ferry_store_tail *tail,
			    struct ferry_error *err)
{
	struct ferry_store_commit c = { .flags = tail->flags, .pages = count_pages(w) };
	uint8_t buf[FERRY_STORE_COMMIT_BYTES];
	int r = sum_stale(w, err);

	if (r)
		return r;
	memcpy(c.uuid, w->header.uuid, sizeof(c.uuid));
	r = write_tables(w, &c.meta_sum);
	if (!r)
		r = write_tail(w, tail, &c);
	if (r)
		return ferry_store_writer_error(w, r, "writing", err);
	r = step(w, "file-written", err);
	if (!r)
		r = sync_file(w, err);
	if (!r)
		r = step(w, "file-synced", err);
	if (r)
		return r;
	ferry_store_commit_encode(&c, buf);
	r = ferry_io_pwrite(w->aside.fd, buf, sizeof(buf), FERRY_STORE_COMMIT_OFF);
	if (r)
		return ferry_store_writer_error(w, r, "writing", err);
	r = sync_file(w, err);
	if (!r)
		r = step(w, "file-commit", err);
	return r ? r : ferry_store_aside_publish(&w->aside, w->params.step, w->params.ctx, err);
}

uint64_t ferry_store_writer_bytes(const struct ferry_store_writer *w)
{
	struct stat st;

	return fstat(w->aside.fd, &st) ? 0 : (uint64_t)st.st_blocks * 512;
}
