// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Codec of the snapshot file. Header and commit record are each one 4 KiB block (what a
 * disk writes at once), ending in the xxh3 of all before it.
 */
#include "store/format.h"

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <xxhash.h>

struct header_bytes {
	uint64_t magic;
	uint16_t version;
	uint16_t min_version;
	uint32_t blocks;
	uint64_t features;
	uint8_t uuid[16];
	uint64_t created_s;
	char kind[FERRY_STORE_MAX_KIND + 1];
	char vmm[FERRY_STORE_MAX_KIND + 1];
	uint8_t reserved[FERRY_STORE_HEADER_BYTES - 184];
	uint64_t sum;
};

static_assert(sizeof(struct header_bytes) == FERRY_STORE_HEADER_BYTES, "header size");
static_assert(offsetof(struct header_bytes, features) == 16, "features");
static_assert(offsetof(struct header_bytes, uuid) == 24, "uuid");
static_assert(offsetof(struct header_bytes, created_s) == 40, "created_s");
static_assert(offsetof(struct header_bytes, kind) == 48, "kind");
static_assert(offsetof(struct header_bytes, vmm) == 112, "vmm");
static_assert(offsetof(struct header_bytes, reserved) == 176, "reserved");
static_assert(offsetof(struct header_bytes, sum) == FERRY_STORE_HEADER_BYTES - 8, "sum");

struct block_bytes {
	char name[FERRY_STORE_MAX_NAME + 1];
	uint64_t size_bytes;
	uint32_t page_size;
	uint32_t reserved;
	uint64_t bitmap_off;
	uint64_t bitmap_bytes;
	uint64_t sums_off;
	uint64_t sums_bytes;
	uint64_t pages_off;
	uint64_t more_reserved[9];
};

static_assert(sizeof(struct block_bytes) == FERRY_STORE_BLOCK_BYTES, "block size");
static_assert(offsetof(struct block_bytes, size_bytes) == 128, "size_bytes");
static_assert(offsetof(struct block_bytes, bitmap_off) == 144, "bitmap_off");
static_assert(offsetof(struct block_bytes, pages_off) == 176, "pages_off");

struct commit_bytes {
	uint64_t magic;
	uint32_t flags;
	uint32_t device_bytes;
	uint8_t uuid[16];
	uint64_t device_off;
	uint64_t device_sum;
	uint64_t meta_sum;
	uint64_t order_off;
	uint64_t order_count;
	uint64_t order_sum;
	uint64_t pages;
	uint64_t file_bytes;
	uint8_t reserved[FERRY_STORE_COMMIT_BYTES - 104];
	uint64_t sum;
};

static_assert(sizeof(struct commit_bytes) == FERRY_STORE_COMMIT_BYTES, "commit size");
static_assert(offsetof(struct commit_bytes, uuid) == 16, "uuid");
static_assert(offsetof(struct commit_bytes, device_off) == 32, "device_off");
static_assert(offsetof(struct commit_bytes, reserved) == 96, "reserved");

/* @field: where to say what is wrong, or NULL. */
static int bad(const char **field, int errnum, const char *what)
{
	if (field)
		*field = what;
	return -errnum;
}

static bool all_zero(const void *p, size_t n)
{
	const uint8_t *at = p;

	while (n--)
		if (*at++)
			return false;
	return true;
}

/* A string that fills its field with zeros after its end and has only printable ASCII. */
static bool good_text(const char *text, size_t room, bool may_be_empty)
{
	size_t i, len = strnlen(text, room);

	if (len == room || (!len && !may_be_empty))
		return false;
	for (i = 0; i < len; i++)
		if (text[i] < 0x20 || text[i] > 0x7e)
			return false;
	return all_zero(text + len, room - len);
}

static void put_text(char *to, const char *from, size_t room)
{
	size_t len = strnlen(from, room - 1);

	memcpy(to, from, len);
	memset(to + len, 0, room - len);
}

static uint64_t align(uint64_t off, uint64_t to)
{
	return (off + to - 1) / to * to;
}

static bool good_size(uint64_t bytes, uint32_t page_size)
{
	return page_size >= FERRY_STORE_PAGE_BYTES && !(page_size & (page_size - 1)) && bytes &&
	       bytes % page_size == 0 && bytes <= FERRY_STORE_MAX_BLOCK_BYTES;
}

int ferry_store_layout(struct ferry_store_block *blocks, unsigned int count,
		       struct ferry_store_places *places)
{
	uint64_t off, total = 0;
	unsigned int i;

	if (!count || count > FERRY_STORE_MAX_BLOCKS)
		return count ? -E2BIG : -EINVAL;
	off = FERRY_STORE_BLOCKS_OFF + (uint64_t)count * FERRY_STORE_BLOCK_BYTES;
	for (i = 0; i < count; i++) {
		uint64_t pages = blocks[i].size_bytes / FERRY_STORE_PAGE_BYTES;

		if (!good_size(blocks[i].size_bytes, blocks[i].page_size))
			return -EINVAL;
		total += blocks[i].size_bytes;
		if (total > FERRY_STORE_MAX_BLOCK_BYTES)
			return -E2BIG;
		blocks[i].bitmap_off = align(off, FERRY_STORE_PAGE_BYTES);
		blocks[i].bitmap_bytes = (pages + 63) / 64 * 8;
		blocks[i].sums_off = align(blocks[i].bitmap_off + blocks[i].bitmap_bytes,
					   FERRY_STORE_PAGE_BYTES);
		blocks[i].sums_bytes = (pages + FERRY_STORE_EXTENT_PAGES - 1) /
				       FERRY_STORE_EXTENT_PAGES * 8;
		off = blocks[i].sums_off + blocks[i].sums_bytes;
	}
	places->meta_end = off;
	for (i = 0; i < count; i++) {
		blocks[i].pages_off = align(off, FERRY_STORE_ALIGN);
		off = blocks[i].pages_off + blocks[i].size_bytes;
	}
	places->device_off = align(off, FERRY_STORE_ALIGN);
	return 0;
}

void ferry_store_header_encode(const struct ferry_store_header *h,
			       uint8_t buf[FERRY_STORE_HEADER_BYTES])
{
	struct header_bytes b = {
		.magic = htole64(FERRY_STORE_MAGIC),
		.version = htole16(h->version),
		.min_version = htole16(h->min_version),
		.blocks = htole32(h->blocks),
		.features = htole64(h->features),
		.created_s = htole64(h->created_s),
	};

	memcpy(b.uuid, h->uuid, sizeof(b.uuid));
	put_text(b.kind, h->kind, sizeof(b.kind));
	put_text(b.vmm, h->vmm, sizeof(b.vmm));
	b.sum = htole64(XXH3_64bits(&b, offsetof(struct header_bytes, sum)));
	memcpy(buf, &b, sizeof(b));
}

int ferry_store_header_decode(struct ferry_store_header *h,
			      const uint8_t buf[FERRY_STORE_HEADER_BYTES], const char **field)
{
	struct header_bytes b;

	memcpy(&b, buf, sizeof(b));
	if (le64toh(b.magic) != FERRY_STORE_MAGIC)
		return bad(field, EPROTO, "magic of the header");
	/* The versions first: a newer header may end in another way. */
	if (le16toh(b.min_version) > FERRY_STORE_VERSION)
		return bad(field, EPROTONOSUPPORT, "least version a reader must know");
	if (le16toh(b.version) < FERRY_STORE_MIN_VERSION)
		return bad(field, EPROTONOSUPPORT, "version");
	if (le64toh(b.features) & ~FERRY_STORE_FEATURES & FERRY_STORE_FEATURES_NEEDED)
		return bad(field, EPROTONOSUPPORT, "features");
	if (le64toh(b.sum) != XXH3_64bits(&b, offsetof(struct header_bytes, sum)))
		return bad(field, EPROTO, "checksum of the header");
	if (!all_zero(b.reserved, sizeof(b.reserved)))
		return bad(field, EPROTO, "reserved part of the header");
	if (!good_text(b.kind, sizeof(b.kind), false))
		return bad(field, EPROTO, "kind of the guest in the header");
	if (!good_text(b.vmm, sizeof(b.vmm), true))
		return bad(field, EPROTO, "name of the VMM in the header");
	if (!le32toh(b.blocks) || le32toh(b.blocks) > FERRY_STORE_MAX_BLOCKS)
		return bad(field, EPROTO, "number of blocks");
	*h = (struct ferry_store_header){
		.version = le16toh(b.version),
		.min_version = le16toh(b.min_version),
		.features = le64toh(b.features),
		.blocks = le32toh(b.blocks),
		.created_s = le64toh(b.created_s),
	};
	memcpy(h->uuid, b.uuid, sizeof(h->uuid));
	memcpy(h->kind, b.kind, sizeof(h->kind));
	memcpy(h->vmm, b.vmm, sizeof(h->vmm));
	return 0;
}

void ferry_store_block_encode(const struct ferry_store_block *block,
			      uint8_t buf[FERRY_STORE_BLOCK_BYTES])
{
	struct block_bytes b = {
		.size_bytes = htole64(block->size_bytes),
		.page_size = htole32(block->page_size),
		.bitmap_off = htole64(block->bitmap_off),
		.bitmap_bytes = htole64(block->bitmap_bytes),
		.sums_off = htole64(block->sums_off),
		.sums_bytes = htole64(block->sums_bytes),
		.pages_off = htole64(block->pages_off),
	};

	put_text(b.name, block->name, sizeof(b.name));
	memcpy(buf, &b, sizeof(b));
}

int ferry_store_block_decode(struct ferry_store_block *block,
			     const uint8_t buf[FERRY_STORE_BLOCK_BYTES], const char **field)
{
	struct block_bytes b;

	memcpy(&b, buf, sizeof(b));
	if (!good_text(b.name, sizeof(b.name), false))
		return bad(field, EPROTO, "name of a block");
	if (b.reserved || !all_zero(b.more_reserved, sizeof(b.more_reserved)))
		return bad(field, EPROTO, "reserved part of the block table");
	if (!good_size(le64toh(b.size_bytes), le32toh(b.page_size)))
		return bad(field, EPROTO, "size or page size of a block");
	*block = (struct ferry_store_block){
		.size_bytes = le64toh(b.size_bytes),
		.page_size = le32toh(b.page_size),
		.bitmap_off = le64toh(b.bitmap_off),
		.bitmap_bytes = le64toh(b.bitmap_bytes),
		.sums_off = le64toh(b.sums_off),
		.sums_bytes = le64toh(b.sums_bytes),
		.pages_off = le64toh(b.pages_off),
	};
	memcpy(block->name, b.name, sizeof(block->name));
	return 0;
}

int ferry_store_blocks_check(const struct ferry_store_block *blocks, unsigned int count,
			     struct ferry_store_block *scratch, struct ferry_store_places *places,
			     const char **field)
{
	unsigned int i, j;

	if (!count || count > FERRY_STORE_MAX_BLOCKS)
		return bad(field, EPROTO, "number of blocks");
	memcpy(scratch, blocks, count * sizeof(*blocks));
	if (ferry_store_layout(scratch, count, places))
		return bad(field, EPROTO, "size of all blocks together");
	for (i = 0; i < count; i++) {
		if (blocks[i].bitmap_off != scratch[i].bitmap_off ||
		    blocks[i].bitmap_bytes != scratch[i].bitmap_bytes)
			return bad(field, EPROTO, "place of a bitmap");
		if (blocks[i].sums_off != scratch[i].sums_off ||
		    blocks[i].sums_bytes != scratch[i].sums_bytes)
			return bad(field, EPROTO, "place of the checksums");
		if (blocks[i].pages_off != scratch[i].pages_off)
			return bad(field, EPROTO, "place of the pages");
		for (j = 0; j < i; j++)
			if (!strcmp(blocks[i].name, blocks[j].name))
				return bad(field, EPROTO, "name of a block, which is there twice");
	}
	return 0;
}

void ferry_store_commit_encode(const struct ferry_store_commit *c,
			       uint8_t buf[FERRY_STORE_COMMIT_BYTES])
{
	struct commit_bytes b = {
		.magic = htole64(FERRY_STORE_COMMIT_MAGIC),
		.flags = htole32(c->flags),
		.device_bytes = htole32(c->device_bytes),
		.device_off = htole64(c->device_off),
		.device_sum = htole64(c->device_sum),
		.meta_sum = htole64(c->meta_sum),
		.order_off = htole64(c->order_off),
		.order_count = htole64(c->order_count),
		.order_sum = htole64(c->order_sum),
		.pages = htole64(c->pages),
		.file_bytes = htole64(c->file_bytes),
	};

	memcpy(b.uuid, c->uuid, sizeof(b.uuid));
	b.sum = htole64(XXH3_64bits(&b, offsetof(struct commit_bytes, sum)));
	memcpy(buf, &b, sizeof(b));
}

int ferry_store_commit_decode(struct ferry_store_commit *c,
			      const uint8_t buf[FERRY_STORE_COMMIT_BYTES], const char **field)
{
	struct commit_bytes b;

	memcpy(&b, buf, sizeof(b));
	if (all_zero(&b, sizeof(b)))
		return bad(field, ENODATA, "commit record");
	if (le64toh(b.magic) != FERRY_STORE_COMMIT_MAGIC)
		return bad(field, EPROTO, "magic of the commit record");
	if (le64toh(b.sum) != XXH3_64bits(&b, offsetof(struct commit_bytes, sum)))
		return bad(field, EPROTO, "checksum of the commit record");
	if (!all_zero(b.reserved, sizeof(b.reserved)))
		return bad(field, EPROTO, "reserved part of the commit record");
	if (le32toh(b.flags) & ~FERRY_STORE_COMMIT_PAUSED)
		return bad(field, EPROTO, "flags of the commit record");
	*c = (struct ferry_store_commit){
		.flags = le32toh(b.flags),
		.device_bytes = le32toh(b.device_bytes),
		.device_off = le64toh(b.device_off),
		.device_sum = le64toh(b.device_sum),
		.meta_sum = le64toh(b.meta_sum),
		.order_off = le64toh(b.order_off),
		.order_count = le64toh(b.order_count),
		.order_sum = le64toh(b.order_sum),
		.pages = le64toh(b.pages),
		.file_bytes = le64toh(b.file_bytes),
	};
	memcpy(c->uuid, b.uuid, sizeof(c->uuid));
	return 0;
}

int ferry_store_commit_check(const struct ferry_store_commit *c,
			     const struct ferry_store_header *h,
			     const struct ferry_store_places *places, const char **field)
{
	uint64_t device_end = c->device_off + c->device_bytes;
	uint64_t order_off = align(device_end, FERRY_STORE_PAGE_BYTES);

	if (memcmp(c->uuid, h->uuid, sizeof(c->uuid)))
		return bad(field, EPROTO, "uuid of the commit record");
	if (c->device_off != places->device_off || c->device_bytes > FERRY_STORE_MAX_DEVICE)
		return bad(field, EPROTO, "place of the device state");
	if (!c->order_off && (c->order_count || c->order_sum))
		return bad(field, EPROTO, "order of first touch");
	if (c->order_off && (c->order_off != order_off || !c->order_count ||
			     c->order_count > FERRY_STORE_MAX_BLOCK_BYTES / FERRY_STORE_PAGE_BYTES))
		return bad(field, EPROTO, "order of first touch");
	if (c->file_bytes != (c->order_off ? order_off + c->order_count * 8 : device_end))
		return bad(field, EPROTO, "length of the file");
	return 0;
}
