// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/spill.h"

#include <errno.h>
#include <string.h>

#include "base/clock.h"
#include "base/io.h"
#include "store/reader.h"
#include "store/writer.h"

/* The file takes or gives what its disk can. */
#define SPILL_THREADS 2

static int queue_all(struct ferry_store_writer *w, const struct ferry_bitmap *left,
		     uint64_t *pages, struct ferry_error *err)
{
	struct ferry_bitmap_run run = { 0 };
	int r = 0;

	*pages = 0;
	while (!r && ferry_bitmap_next_run(left, &run, 0)) {
		r = ferry_store_writer_queue(w, run.block, run.first_page, run.pages, false, err);
		*pages += run.pages;
	}
	return r ? r : ferry_store_writer_drain(w, FERRY_CLOCK_NEVER, err);
}

int ferry_spill_write(struct ferry_job *job, const struct ferry_ram *ram, const char *kind,
		      const struct ferry_bitmap *left, const char *path, uint64_t *pages,
		      struct ferry_error *err)
{
	struct ferry_store_writer_params params = {
		.path = path,
		.id = job->record.id,
		.ram = ram,
		.channels = SPILL_THREADS,
		.partial = true,
		.kind = kind,
		.vmm = "",
	};
	const struct ferry_store_tail tail = { 0 };
	struct ferry_store_writer *w;
	int r;

	memcpy(params.uuid, job->record.uuid, sizeof(params.uuid));
	r = ferry_store_writer_create(&params, &w, err);
	if (r)
		return r;
	r = queue_all(w, left, pages, err);
	if (!r)
		r = ferry_store_writer_finish(w, &tail, err);
	ferry_store_writer_free(w);
	return r;
}

/* ---- at the destination ---- */

struct fill {
	struct ferry_incoming *in;
	const struct ferry_store_file *file;
	unsigned int block[FERRY_RAM_MAX_BLOCKS]; /* of the guest, for each of the file's */
	uint64_t pages; /* atomic */
};

static int check_file(struct fill *fill, struct ferry_error *err)
{
	const struct ferry_store_file *f = fill->file;
	const struct ferry_ram *ram = fill->in->ram;
	unsigned int i;

	if (!(f->header.features & FERRY_STORE_FEATURE_PARTIAL))
		return ferry_error_set(err, EINVAL, "%s is a snapshot of a guest, not the pages that "
				       "'ferry spill' writes", f->path);
	if (memcmp(f->header.uuid, fill->in->job->record.uuid, sizeof(f->header.uuid)))
		return ferry_error_set(err, EINVAL, "%s was spilled by another migration", f->path);
	for (i = 0; i < f->header.blocks; i++) {
		int at = ferry_ram_find(ram, f->blocks[i].name);

		if (at < 0 || ram->blocks[at].size_bytes != f->blocks[i].size_bytes)
			return ferry_error_set(err, EINVAL, "%s has a memory block '%s' that this "
					       "guest has not, or of another size", f->path,
					       f->blocks[i].name);
		fill->block[i] = (unsigned int)at;
	}
	return 0;
}

/* One run that the file has: what is missing of it. */
static int take_run(struct fill *fill, unsigned int index, uint64_t first, uint64_t pages,
		    const uint8_t *buf, struct ferry_error *err)
{
	const struct ferry_ram_block *block = &fill->in->ram->blocks[index];
	const struct ferry_multifd_sink *sink = &fill->in->sink;
	uint64_t done = 0;
	int r = 0;

	while (done < pages && !r) {
		uint64_t at = first + done, n = sink->claim(sink->ctx, index, at, pages - done);

		if (!n) {
			done += sink->skip(sink->ctx, index, at, pages - done);
			continue;
		}
		r = ferry_ram_write(block, at, n, buf + (done << FERRY_PAGE_SHIFT));
		if (r)
			sink->unclaim(sink->ctx, index, at, n);
		else
			r = sink->placed(sink->ctx, index, at, n, false);
		__atomic_add_fetch(&fill->pages, n, __ATOMIC_RELAXED);
		done += n;
	}
	return r ? ferry_error_set(err, -r, "taking in pages of memory block '%s': %s", block->name,
				   strerror(-r)) : 0;
}

static int take(void *ctx, unsigned int block, uint64_t extent, const struct ferry_store_set *set,
		const uint8_t *buf, struct ferry_error *err)
{
	struct fill *fill = ctx;
	unsigned int first = 0, pages;
	int r = 0;

	for (; !r && (pages = ferry_store_set_run(set, &first)); first += pages)
		r = take_run(fill, fill->block[block], extent * FERRY_STORE_EXTENT_PAGES + first,
			     pages, buf + ((size_t)first << FERRY_PAGE_SHIFT), err);
	return r;
}

int ferry_spill_read(struct ferry_incoming *in, const char *path, uint64_t *pages,
		     struct ferry_error *err)
{
	struct ferry_store_file file;
	struct fill fill = { .in = in, .file = &file };
	const struct ferry_store_read_params params = {
		.threads = SPILL_THREADS,
		.verify = true,
		.take = take,
		.ctx = &fill,
	};
	int r = ferry_store_open(&file, path, err);

	*pages = 0;
	if (r)
		return r;
	r = check_file(&fill, err);
	if (!r)
		r = ferry_store_read_all(&file, &params, err);
	*pages = fill.pages;
	ferry_store_close(&file);
	return r;
}
