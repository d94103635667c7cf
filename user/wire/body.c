// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The bodies of frames that are structures: CONFIG, BLOCKS and ACK (the summary).
 *
 * A block table is a head (count) and then, for each block, a fixed part and
 * its name without a NUL: entries are not aligned, so each fixed part is copied
 * out before it is looked at. Names and the tracker's name are printed to
 * people later, so nothing but printable ASCII is let in.
 */
#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <sys/types.h>

#include "wire/wire.h"

struct config_bytes {
	uint32_t flags;
	uint8_t codec;
	uint8_t reserved[3];
	uint64_t ram_bytes;
};

struct blocks_bytes {
	uint32_t count;
	uint32_t reserved;
};

struct block_bytes {
	uint64_t size_bytes;
	uint32_t page_size;
	uint16_t name_len;
	uint16_t reserved;
};

struct summary_bytes {
	uint64_t total_ns;
	uint64_t downtime_ns;
	uint64_t rounds;
	uint64_t sent_bytes;
	uint64_t normal_pages;
	uint64_t zero_pages;
	uint64_t device_bytes;
	char tracker[16];
};

static_assert(sizeof(struct config_bytes) == FERRY_WIRE_CONFIG_BYTES, "config size");
static_assert(offsetof(struct config_bytes, codec) == 4, "config codec");
static_assert(offsetof(struct config_bytes, ram_bytes) == 8, "config ram_bytes");
static_assert(sizeof(struct blocks_bytes) == 8, "block table head size");
static_assert(sizeof(struct block_bytes) == 16, "block size");
static_assert(offsetof(struct block_bytes, page_size) == 8, "block page_size");
static_assert(offsetof(struct block_bytes, name_len) == 12, "block name_len");
static_assert(sizeof(struct summary_bytes) == FERRY_WIRE_SUMMARY_BYTES, "summary size");
static_assert(offsetof(struct summary_bytes, device_bytes) == 48, "summary device_bytes");
static_assert(offsetof(struct summary_bytes, tracker) == 56, "summary tracker");

#define CONFIG_FLAGS                                             \
	(FERRY_WIRE_CONFIG_VERIFY | FERRY_WIRE_CONFIG_CHECKSUM | \
	 FERRY_WIRE_CONFIG_POSTCOPY | FERRY_WIRE_CONFIG_POSTCOPY_NEEDED)

static bool is_printable(const char *text, size_t len)
{
	size_t i;

	for (i = 0; i < len; i++)
		if (text[i] < 0x20 || text[i] > 0x7e)
			return false;
	return true;
}

void ferry_wire_config_encode(const struct ferry_wire_config *c,
			      uint8_t buf[FERRY_WIRE_CONFIG_BYTES])
{
	struct config_bytes b = {
		.flags = htole32(c->flags),
		.codec = c->codec,
		.ram_bytes = htole64(c->ram_bytes),
	};

	memcpy(buf, &b, sizeof(b));
}

int ferry_wire_config_decode(struct ferry_wire_config *c, const uint8_t *buf, size_t len)
{
	struct config_bytes b;

	if (len != sizeof(b))
		return -EMSGSIZE;
	memcpy(&b, buf, sizeof(b));
	if (b.reserved[0] || b.reserved[1] || b.reserved[2] ||
	    b.codec >= FERRY_WIRE_CODEC_COUNT || (le32toh(b.flags) & ~CONFIG_FLAGS))
		return -EPROTO;
	if ((le32toh(b.flags) & FERRY_WIRE_CONFIG_POSTCOPY_NEEDED) &&
	    !(le32toh(b.flags) & FERRY_WIRE_CONFIG_POSTCOPY))
		return -EPROTO;
	c->flags = le32toh(b.flags);
	c->codec = b.codec;
	c->ram_bytes = le64toh(b.ram_bytes);
	return 0;
}

static size_t name_length(const struct ferry_wire_block *block)
{
	return strnlen(block->name, FERRY_WIRE_MAX_NAME);
}

size_t ferry_wire_blocks_bytes(const struct ferry_wire_block *blocks, unsigned int count)
{
	size_t bytes = sizeof(struct blocks_bytes);
	unsigned int i;

	for (i = 0; i < count; i++)
		bytes += sizeof(struct block_bytes) + name_length(&blocks[i]);
	return bytes;
}

void ferry_wire_blocks_encode(const struct ferry_wire_block *blocks, unsigned int count,
			      uint8_t *buf)
{
	struct blocks_bytes head = { .count = htole32(count) };
	unsigned int i;

	memcpy(buf, &head, sizeof(head));
	buf += sizeof(head);
	for (i = 0; i < count; i++) {
		size_t len = name_length(&blocks[i]);
		struct block_bytes b = {
			.size_bytes = htole64(blocks[i].size_bytes),
			.page_size = htole32(blocks[i].page_size),
			.name_len = htole16((uint16_t)len),
		};

		memcpy(buf, &b, sizeof(b));
		memcpy(buf + sizeof(b), blocks[i].name, len);
		buf += sizeof(b) + len;
	}
}

/* One entry at @buf. Return: bytes it took, or a negative errno. */
static ssize_t block_decode(struct ferry_wire_block *block, const uint8_t *buf, size_t len)
{
	struct block_bytes b;
	size_t name_len;

	if (len < sizeof(b))
		return -EMSGSIZE;
	memcpy(&b, buf, sizeof(b));
	name_len = le16toh(b.name_len);
	if (!name_len || name_len > FERRY_WIRE_MAX_NAME || b.reserved)
		return -EPROTO;
	if (len - sizeof(b) < name_len)
		return -EMSGSIZE;
	memset(block, 0, sizeof(*block));
	block->size_bytes = le64toh(b.size_bytes);
	block->page_size = le32toh(b.page_size);
	memcpy(block->name, buf + sizeof(b), name_len);
	if (!is_printable(block->name, name_len))
		return -EPROTO;
	if (block->page_size < FERRY_WIRE_PAGE_BYTES ||
	    block->page_size > FERRY_WIRE_MAX_HOST_PAGE ||
	    (block->page_size & (block->page_size - 1)))
		return -EPROTO;
	if (!block->size_bytes || block->size_bytes > FERRY_WIRE_MAX_BLOCK_BYTES ||
	    block->size_bytes % block->page_size)
		return -EPROTO;
	return (ssize_t)(sizeof(b) + name_len);
}

int ferry_wire_blocks_decode(struct ferry_wire_block *blocks, unsigned int *count,
			     const uint8_t *buf, size_t len)
{
	struct blocks_bytes head;
	unsigned int i, j, n;

	if (len < sizeof(head))
		return -EMSGSIZE;
	memcpy(&head, buf, sizeof(head));
	buf += sizeof(head);
	len -= sizeof(head);
	n = le32toh(head.count);
	if (head.reserved || !n)
		return -EPROTO;
	if (n > *count || n > FERRY_WIRE_MAX_BLOCKS)
		return -EMSGSIZE;
	for (i = 0; i < n; i++) {
		ssize_t used = block_decode(&blocks[i], buf, len);

		if (used < 0)
			return (int)used;
		buf += used;
		len -= (size_t)used;
		for (j = 0; j < i; j++)
			if (!strcmp(blocks[i].name, blocks[j].name))
				return -EEXIST;
	}
	if (len)
		return -EMSGSIZE;
	*count = n;
	return 0;
}

void ferry_wire_summary_encode(const struct ferry_wire_summary *s,
			       uint8_t buf[FERRY_WIRE_SUMMARY_BYTES])
{
	struct summary_bytes b = {
		.total_ns = htole64(s->total_ns),
		.downtime_ns = htole64(s->downtime_ns),
		.rounds = htole64(s->rounds),
		.sent_bytes = htole64(s->sent_bytes),
		.normal_pages = htole64(s->normal_pages),
		.zero_pages = htole64(s->zero_pages),
		.device_bytes = htole64(s->device_bytes),
	};

	/* What is behind the name is zero on the wire, whatever stands in memory. */
	memcpy(b.tracker, s->tracker, strnlen(s->tracker, sizeof(b.tracker) - 1));
	memcpy(buf, &b, sizeof(b));
}

int ferry_wire_summary_decode(struct ferry_wire_summary *s, const uint8_t *buf, size_t len)
{
	struct summary_bytes b;
	size_t name_len, i;

	if (len != sizeof(b))
		return -EMSGSIZE;
	memcpy(&b, buf, sizeof(b));
	name_len = strnlen(b.tracker, sizeof(b.tracker));
	if (name_len == sizeof(b.tracker) || !is_printable(b.tracker, name_len))
		return -EPROTO;
	for (i = name_len; i < sizeof(b.tracker); i++)
		if (b.tracker[i])
			return -EPROTO;
	*s = (struct ferry_wire_summary){
		.total_ns = le64toh(b.total_ns),
		.downtime_ns = le64toh(b.downtime_ns),
		.rounds = le64toh(b.rounds),
		.sent_bytes = le64toh(b.sent_bytes),
		.normal_pages = le64toh(b.normal_pages),
		.zero_pages = le64toh(b.zero_pages),
		.device_bytes = le64toh(b.device_bytes),
	};
	memcpy(s->tracker, b.tracker, sizeof(s->tracker));
	return 0;
}
