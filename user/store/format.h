/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_STORE_FORMAT_H
#define FERRY_STORE_FORMAT_H

#include <stddef.h>
#include <stdint.h>

/*
 * The bytes of a snapshot file (mapped-ram), version 1; Documentation/mapped-ram.rst draws
 * them. Everything is little-endian. The codec is pure: no descriptors, no allocation.
 *
 * Every page of guest RAM has one place in the file, known from the sizes of the blocks
 * alone: ferry_store_layout() computes it, and a file that says anything else is refused.
 * What is not there (zero pages, untouched RAM) is a hole. The commit record is written
 * last; a file without it is incomplete.
 */
#define FERRY_STORE_MAGIC 0x4d41525952524546ull	 /* "FERRYRAM" */
#define FERRY_STORE_COMMIT_MAGIC 0x454e4f4459524546ull /* "FERYDONE" */
#define FERRY_STORE_VERSION 1
#define FERRY_STORE_MIN_VERSION 1
/*
 * The file holds some pages of a guest, and says nothing of the others: a page whose bit is 0
 * is not in it, one of zeros has its bit and a hole.
 */
#define FERRY_STORE_FEATURE_PARTIAL (1ull << 32)
#define FERRY_STORE_FEATURES FERRY_STORE_FEATURE_PARTIAL
#define FERRY_STORE_FEATURES_NEEDED 0xffffffff00000000ull /* unknown bits in here refuse a file */

#define FERRY_STORE_HEADER_OFF 0
#define FERRY_STORE_COMMIT_OFF 4096
#define FERRY_STORE_BLOCKS_OFF 8192
#define FERRY_STORE_HEADER_BYTES 4096
#define FERRY_STORE_COMMIT_BYTES 4096
#define FERRY_STORE_BLOCK_BYTES 256
#define FERRY_STORE_ALIGN (1u << 20)	  /* of page areas and what follows them */
#define FERRY_STORE_EXTENT_PAGES 256u	  /* under one checksum: 1 MiB */
#define FERRY_STORE_MAX_BLOCKS 256
#define FERRY_STORE_MAX_NAME 127
#define FERRY_STORE_MAX_KIND 63
#define FERRY_STORE_MAX_BLOCK_BYTES (1ull << 46)
#define FERRY_STORE_MAX_DEVICE (64u << 20)
#define FERRY_STORE_PAGE_BYTES 4096u

struct ferry_store_header {
	uint16_t version;
	uint16_t min_version;
	uint64_t features;
	uint8_t uuid[16];	 /* of this file; the commit record carries it too */
	uint32_t blocks;
	uint64_t created_s;	 /* seconds since 1970 */
	char kind[FERRY_STORE_MAX_KIND + 1]; /* whose device state it is: "qmp", "port:my-vmm/1" */
	char vmm[FERRY_STORE_MAX_KIND + 1];  /* "QEMU 7.2.22", for people */
};

struct ferry_store_block {
	char name[FERRY_STORE_MAX_NAME + 1];
	uint64_t size_bytes;
	uint32_t page_size;
	/* The places below follow from the sizes. */
	uint64_t bitmap_off, bitmap_bytes;   /* a bit a page: 1 the file has it, 0 it is zeros */
	uint64_t sums_off, sums_bytes;	     /* u64 an extent: xxh3 of its pages that are there */
	uint64_t pages_off;
};

#define FERRY_STORE_COMMIT_PAUSED 1u /* the guest was paused by a person: it stays so */

struct ferry_store_commit {
	uint32_t flags;
	uint8_t uuid[16];
	uint64_t device_off;
	uint32_t device_bytes;
	uint64_t device_sum;	   /* xxh3 */
	uint64_t meta_sum;	   /* xxh3 of header, block table, bitmaps and sums, in this order */
	uint64_t order_off;	   /* recorded order of first touch; 0 none */
	uint64_t order_count;	   /* entries: u64 block << 48 | page */
	uint64_t order_sum;
	uint64_t pages;		   /* that the file holds */
	uint64_t file_bytes;
};

/* Where everything after the blocks begins. */
struct ferry_store_places {
	uint64_t device_off; /* of at most FERRY_STORE_MAX_DEVICE bytes; the recorded order follows */
	uint64_t meta_end;   /* of the last bitmap or sum */
};

/**
 * ferry_store_layout() - fill in the places of all blocks from their sizes
 *
 * Return: 0; -EINVAL a size or page size no block can have; -E2BIG too many blocks or bytes.
 */
int ferry_store_layout(struct ferry_store_block *blocks, unsigned int count,
		       struct ferry_store_places *places);

/*
 * Decode functions return 0 or
 * -EPROTO           magic, checksum, a reserved field or a value that makes no sense
 * -EPROTONOSUPPORT  a version or needed feature that is not known here
 * -ENODATA          (commit) all zero: it was never written
 * and then *@field names, in words, what it is about. @field may be NULL.
 */
void ferry_store_header_encode(const struct ferry_store_header *h,
			       uint8_t buf[FERRY_STORE_HEADER_BYTES]);
int ferry_store_header_decode(struct ferry_store_header *h,
			      const uint8_t buf[FERRY_STORE_HEADER_BYTES], const char **field);

void ferry_store_block_encode(const struct ferry_store_block *b,
			      uint8_t buf[FERRY_STORE_BLOCK_BYTES]);
/** ferry_store_block_decode() - one entry; ferry_store_blocks_check() looks at them together. */
int ferry_store_block_decode(struct ferry_store_block *b,
			     const uint8_t buf[FERRY_STORE_BLOCK_BYTES], const char **field);

/**
 * ferry_store_blocks_check() - are all places where they must be, and no name twice?
 * @scratch: room for @count blocks
 */
int ferry_store_blocks_check(const struct ferry_store_block *blocks, unsigned int count,
			     struct ferry_store_block *scratch, struct ferry_store_places *places,
			     const char **field);

void ferry_store_commit_encode(const struct ferry_store_commit *c,
			       uint8_t buf[FERRY_STORE_COMMIT_BYTES]);
int ferry_store_commit_decode(struct ferry_store_commit *c,
			      const uint8_t buf[FERRY_STORE_COMMIT_BYTES], const char **field);

/** ferry_store_commit_check() - does it belong to this header and these places? 0 or -EPROTO. */
int ferry_store_commit_check(const struct ferry_store_commit *c,
			     const struct ferry_store_header *h,
			     const struct ferry_store_places *places, const char **field);

#endif
