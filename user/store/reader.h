/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_STORE_READER_H
#define FERRY_STORE_READER_H

#include <limits.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "store/extent.h"
#include "store/format.h"

/*
 * A snapshot file that was opened: all but its pages has been read and checked, and is here.
 * Reading extents is for any number of threads.
 */
struct ferry_store_file {
	char path[PATH_MAX];
	int fd;
	int direct_fd; /* for pages, past the page cache; -1: fd */
	bool pages_verified; /* set by ferry_store_read_all() when it compared all checksums */
	struct ferry_store_header header;
	struct ferry_store_commit commit;
	struct ferry_store_places places;
	struct ferry_store_block *blocks; /* header.blocks of them */
	uint64_t **bits;  /* of each block: which pages the file holds */
	uint64_t **sums;  /* of each block: a checksum an extent */
	uint64_t *order;  /* commit.order_count entries, block << 48 | page; NULL none */
	uint8_t *device;
};

/**
 * ferry_store_open() - open a file and check everything but its pages
 *
 * On failure @f->header.version and what follows it may be filled as far as it was readable.
 * Return: 0; -ENODATA the file was never finished; -EPROTONOSUPPORT made by a newer ferry;
 * -EPROTO no snapshot, or damaged: the text names what does not hold; -EPIPE cut short; -errno.
 */
int ferry_store_open(struct ferry_store_file *f, const char *path, struct ferry_error *err);
void ferry_store_close(struct ferry_store_file *f);

/** ferry_store_direct() - read pages past the page cache from now on. Return: 0 or -errno. */
int ferry_store_direct(struct ferry_store_file *f, struct ferry_error *err);

/** ferry_store_pages() - which pages of an extent the file holds. */
void ferry_store_pages(const struct ferry_store_file *f, unsigned int block, uint64_t extent,
		       struct ferry_store_set *set);

/**
 * ferry_store_read() - the pages of an extent that the file holds
 * @buf: room for a whole extent, page-aligned; each page at its place
 * @verify: compare the checksum
 *
 * Return: 0; -EILSEQ the bytes are not what was written; -EPIPE the file has been cut; -errno.
 */
int ferry_store_read(const struct ferry_store_file *f, unsigned int block, uint64_t extent,
		     bool verify, uint8_t *buf, struct ferry_error *err);

/** ferry_store_ahead() - this extent will be read soon, if there is one of that number. */
void ferry_store_ahead(const struct ferry_store_file *f, unsigned int block, uint64_t extent);

struct ferry_store_read_params {
	unsigned int threads;
	bool verify;
	/* Each extent that has pages: take them. Any thread. NULL: they are only verified. */
	int (*take)(void *ctx, unsigned int block, uint64_t extent,
		    const struct ferry_store_set *set, const uint8_t *buf, struct ferry_error *err);
	void *ctx;
	const int *stop; /* nonzero ends it with -ECANCELED; may be NULL */
};

/** ferry_store_read_all() - every page the file holds, by several threads. Return: 0 or -errno. */
int ferry_store_read_all(struct ferry_store_file *f, const struct ferry_store_read_params *params,
			 struct ferry_error *err);

#endif
