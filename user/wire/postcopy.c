// SPDX-License-Identifier: GPL-2.0-or-later
/* The bodies of the frames that postcopy adds: runs of pages, requests, maps of what has come. */
#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <string.h>

#include "wire/wire.h"

struct run_bytes {
	uint64_t first_page;
	uint32_t pages;
	uint16_t block;
	uint16_t reserved;
};

struct received_bytes {
	uint64_t first_page;
	uint16_t block;
	uint16_t reserved[3];
};

static_assert(sizeof(struct run_bytes) == FERRY_WIRE_RUN_BYTES, "run size");
static_assert(offsetof(struct run_bytes, pages) == 8, "run pages");
static_assert(offsetof(struct run_bytes, block) == FERRY_WIRE_REQUEST_BYTES, "a request ends there");
static_assert(sizeof(struct received_bytes) == FERRY_WIRE_RECEIVED_BYTES, "received size");
static_assert(offsetof(struct received_bytes, block) == 8, "received block");

/* Return: 0, -ERANGE. */
static int fits(uint16_t block, uint64_t first, uint64_t pages, const uint64_t *block_pages,
		unsigned int blocks)
{
	if (block >= blocks || first >= block_pages[block] || pages > block_pages[block] - first)
		return -ERANGE;
	return 0;
}

void ferry_wire_run_encode(const struct ferry_wire_run *r, uint8_t buf[FERRY_WIRE_RUN_BYTES])
{
	struct run_bytes b = {
		.first_page = htole64(r->first_page),
		.pages = htole32(r->pages),
		.block = htole16(r->block),
	};

	memcpy(buf, &b, sizeof(b));
}

int ferry_wire_run_decode(struct ferry_wire_run *r, const uint8_t *buf, size_t len,
			  const uint64_t *block_pages, unsigned int blocks)
{
	struct run_bytes b;

	if (len != sizeof(b))
		return -EMSGSIZE;
	memcpy(&b, buf, sizeof(b));
	*r = (struct ferry_wire_run){
		.first_page = le64toh(b.first_page),
		.pages = le32toh(b.pages),
		.block = le16toh(b.block),
	};
	if (!r->pages || b.reserved)
		return -EPROTO;
	return fits(r->block, r->first_page, r->pages, block_pages, blocks);
}

void ferry_wire_request_encode(const struct ferry_wire_run *r,
			       uint8_t buf[FERRY_WIRE_REQUEST_BYTES])
{
	uint8_t run[FERRY_WIRE_RUN_BYTES];

	ferry_wire_run_encode(r, run);
	memcpy(buf, run, FERRY_WIRE_REQUEST_BYTES);
}

int ferry_wire_request_decode(struct ferry_wire_run *r, const uint8_t *buf, size_t len,
			      const uint64_t *block_pages, unsigned int blocks)
{
	uint8_t run[FERRY_WIRE_RUN_BYTES];

	if (len != FERRY_WIRE_REQUEST_BYTES)
		return -EMSGSIZE;
	ferry_wire_run_encode(r, run);
	memcpy(run, buf, FERRY_WIRE_REQUEST_BYTES);
	return ferry_wire_run_decode(r, run, sizeof(run), block_pages, blocks);
}

void ferry_wire_received_encode(const struct ferry_wire_received *r,
				uint8_t buf[FERRY_WIRE_RECEIVED_BYTES])
{
	struct received_bytes b = {
		.first_page = htole64(r->first_page),
		.block = htole16(r->block),
	};

	memcpy(buf, &b, sizeof(b));
}

int ferry_wire_received_decode(struct ferry_wire_received *r, const uint8_t *buf, size_t len,
			       const uint64_t *block_pages, unsigned int blocks)
{
	struct received_bytes b;
	uint64_t bits, last;

	if (len <= sizeof(b) || (len - sizeof(b)) % 8 ||
	    len - sizeof(b) > FERRY_WIRE_MAX_RECEIVED)
		return -EMSGSIZE;
	bits = (len - sizeof(b)) * 8;
	memcpy(&b, buf, sizeof(b));
	*r = (struct ferry_wire_received){
		.first_page = le64toh(b.first_page),
		.block = le16toh(b.block),
	};
	if (b.reserved[0] || b.reserved[1] || b.reserved[2] || r->first_page % 64)
		return -EPROTO;
	if (r->block >= blocks || r->first_page >= block_pages[r->block] ||
	    bits > (block_pages[r->block] - r->first_page + 63) / 64 * 64)
		return -ERANGE;
	/* The pages behind the end of the block, all of them in the last word. */
	memcpy(&last, buf + len - 8, 8);
	last = le64toh(last);
	if (r->first_page + bits > block_pages[r->block] &&
	    last >> (block_pages[r->block] % 64))
		return -EPROTO;
	return 0;
}
