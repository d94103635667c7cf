// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Frames of the main channel: the 8-byte header, the table of types with the
 * bounds of their lengths, and bodies that are one number. Others: body.c.
 *
 * The table is the only place that knows how long a frame may be. A type is
 * added by its number in wire.h and one row here.
 */
#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <string.h>

#include "wire/wire.h"

struct frame_bytes {
	uint16_t type;
	uint16_t flags;
	uint32_t length;
};

static_assert(sizeof(struct frame_bytes) == FERRY_WIRE_FRAME_BYTES, "frame size");
static_assert(offsetof(struct frame_bytes, length) == 4, "frame length");

#define BLOCKS_HEAD 8u	/* count and reserved */
#define BLOCK_HEAD 16u	/* of each, before its name */
#define HASH_BYTES 16u

struct frame_type {
	const char *name;
	uint32_t min;
	uint32_t max;
	uint32_t multiple; /* length must be one of this; 0 or 1: any */
};

static const struct frame_type types[] = {
	[0] = { NULL, 0, 0, 0 },
	[FERRY_WIRE_CONFIG] = { "CONFIG", FERRY_WIRE_CONFIG_BYTES, FERRY_WIRE_CONFIG_BYTES, 0 },
	[FERRY_WIRE_BLOCKS] = { "BLOCKS", BLOCKS_HEAD + BLOCK_HEAD + 1,
				BLOCKS_HEAD + FERRY_WIRE_MAX_BLOCKS *
						      (BLOCK_HEAD + FERRY_WIRE_MAX_NAME), 0 },
	[FERRY_WIRE_READY] = { "READY", 0, 0, 0 },
	[FERRY_WIRE_FLUSH] = { "FLUSH", 4, 4, 0 },
	[FERRY_WIRE_FLUSHED] = { "FLUSHED", 4, 4, 0 },
	[FERRY_WIRE_HASHES] = { "HASHES", HASH_BYTES, HASH_BYTES * FERRY_WIRE_MAX_BLOCKS,
				HASH_BYTES },
	[FERRY_WIRE_VERIFIED] = { "VERIFIED", 0, 0, 0 },
	[FERRY_WIRE_PACKAGE] = { "PACKAGE", 0, FERRY_WIRE_MAX_PACKAGE, 0 },
	[FERRY_WIRE_PING] = { "PING", 4, 4, 0 },
	[FERRY_WIRE_PONG] = { "PONG", 4, 4, 0 },
	[FERRY_WIRE_RUN] = { "RUN", 4, 4, 0 },
	[FERRY_WIRE_RUNNING] = { "RUNNING", 8, 8, 0 },
	[FERRY_WIRE_REFUSED] = { "REFUSED", 0, FERRY_WIRE_MAX_TEXT, 0 },
	[FERRY_WIRE_ACK] = { "ACK", FERRY_WIRE_SUMMARY_BYTES, FERRY_WIRE_SUMMARY_BYTES, 0 },
	[FERRY_WIRE_ABORT] = { "ABORT", 0, FERRY_WIRE_MAX_TEXT, 0 },
	[FERRY_WIRE_ASK] = { "ASK", 0, 0, 0 },
	[FERRY_WIRE_ANSWER] = { "ANSWER", 4, 4, 0 },
	[FERRY_WIRE_GUEST] = { "GUEST", 1, FERRY_WIRE_MAX_GUEST, 0 },
	[FERRY_WIRE_CANNOT] = { "CANNOT", 0, FERRY_WIRE_MAX_TEXT, 0 },
	[FERRY_WIRE_DISCARD] = { "DISCARD", FERRY_WIRE_RUN_BYTES,
				 FERRY_WIRE_RUN_BYTES * FERRY_WIRE_MAX_RUNS, FERRY_WIRE_RUN_BYTES },
	[FERRY_WIRE_POSTCOPY] = { "POSTCOPY", 0, 0, 0 },
	[FERRY_WIRE_RUNNING_LACKS] = { "RUNNING_LACKS", 8, 8, 0 },
	[FERRY_WIRE_PLACED] = { "PLACED", 0, 0, 0 },
	[FERRY_WIRE_RECEIVED] = { "RECEIVED", FERRY_WIRE_RECEIVED_BYTES + 8,
				  FERRY_WIRE_RECEIVED_BYTES + FERRY_WIRE_MAX_RECEIVED, 8 },
	[FERRY_WIRE_RECEIVED_END] = { "RECEIVED_END", 8, 8, 0 },
	[FERRY_WIRE_REQUEST] = { "REQUEST", FERRY_WIRE_REQUEST_BYTES, FERRY_WIRE_REQUEST_BYTES, 0 },
	[FERRY_WIRE_REQUEST_BLOCK] = { "REQUEST_BLOCK", FERRY_WIRE_RUN_BYTES, FERRY_WIRE_RUN_BYTES,
				       0 },
};

static_assert(sizeof(types) / sizeof(types[0]) == FERRY_WIRE_TYPE_COUNT, "a row for each type");

static const struct frame_type *find_type(unsigned int type)
{
	if (type >= FERRY_WIRE_TYPE_COUNT || !types[type].name)
		return NULL;
	return &types[type];
}

const char *ferry_wire_type_name(unsigned int type)
{
	const struct frame_type *t = find_type(type);

	return t ? t->name : "unknown";
}

void ferry_wire_frame_encode(const struct ferry_wire_frame *f, uint8_t buf[FERRY_WIRE_FRAME_BYTES])
{
	struct frame_bytes b = {
		.type = htole16(f->type),
		.flags = htole16(f->flags),
		.length = htole32(f->length),
	};

	memcpy(buf, &b, sizeof(b));
}

int ferry_wire_frame_decode(struct ferry_wire_frame *f, const uint8_t buf[FERRY_WIRE_FRAME_BYTES])
{
	const struct frame_type *t;
	struct frame_bytes b;

	memcpy(&b, buf, sizeof(b));
	*f = (struct ferry_wire_frame){
		.type = le16toh(b.type),
		.flags = le16toh(b.flags),
		.length = le32toh(b.length),
	};
	if (f->flags & ~FERRY_WIRE_OPTIONAL)
		return -EPROTO;
	t = find_type(f->type);
	if (!t) {
		if (!(f->flags & FERRY_WIRE_OPTIONAL))
			return -EPROTONOSUPPORT;
		return f->length > FERRY_WIRE_MAX_OPTIONAL ? -EMSGSIZE : 0;
	}
	if (f->length < t->min || f->length > t->max)
		return -EMSGSIZE;
	if (t->multiple && f->length % t->multiple)
		return -EMSGSIZE;
	return 0;
}

void ferry_wire_u32_encode(uint32_t v, uint8_t buf[4])
{
	v = htole32(v);
	memcpy(buf, &v, sizeof(v));
}

int ferry_wire_u32_decode(uint32_t *v, const uint8_t *buf, size_t len)
{
	if (len != sizeof(*v))
		return -EMSGSIZE;
	memcpy(v, buf, sizeof(*v));
	*v = le32toh(*v);
	return 0;
}

void ferry_wire_u64_encode(uint64_t v, uint8_t buf[8])
{
	v = htole64(v);
	memcpy(buf, &v, sizeof(v));
}

int ferry_wire_u64_decode(uint64_t *v, const uint8_t *buf, size_t len)
{
	if (len != sizeof(*v))
		return -EMSGSIZE;
	memcpy(v, buf, sizeof(*v));
	*v = le64toh(*v);
	return 0;
}
