// SPDX-License-Identifier: GPL-2.0-or-later
#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <string.h>

#include "wire/wire.h"

struct hello_bytes {
	uint32_t magic;
	uint16_t version;
	uint16_t min_version;
	uint64_t features;
	uint8_t uuid[FERRY_WIRE_UUID_BYTES];
	uint32_t epoch;
	uint8_t role;
	uint8_t kind;
	uint16_t channel;
	uint16_t channels;
	uint16_t status;
	uint32_t page_size;
	uint64_t reserved[2];
};

static_assert(sizeof(struct hello_bytes) == FERRY_WIRE_HELLO_BYTES, "hello size");
static_assert(offsetof(struct hello_bytes, features) == 8, "features");
static_assert(offsetof(struct hello_bytes, uuid) == 16, "uuid");
static_assert(offsetof(struct hello_bytes, epoch) == 32, "epoch");
static_assert(offsetof(struct hello_bytes, role) == 36, "role");
static_assert(offsetof(struct hello_bytes, channel) == 38, "channel");
static_assert(offsetof(struct hello_bytes, status) == 42, "status");
static_assert(offsetof(struct hello_bytes, page_size) == 44, "page_size");
static_assert(offsetof(struct hello_bytes, reserved) == 48, "reserved");

static const char *const status_texts[] = {
	[FERRY_WIRE_STATUS_OK] = "accepted",
	[FERRY_WIRE_STATUS_VERSION] = ("no common protocol version, or a needed feature is missing; "
				       "install the same release of ferry on both hosts"),
	[FERRY_WIRE_STATUS_BUSY] = "another migration is being received there",
	[FERRY_WIRE_STATUS_UUID] = "that migration is not known there",
	[FERRY_WIRE_STATUS_EPOCH] = "a newer connection of this migration exists",
	[FERRY_WIRE_STATUS_CHANNEL] = "that channel is out of range or connected already",
};

#define STATUS_COUNT (sizeof(status_texts) / sizeof(status_texts[0]))
static_assert(STATUS_COUNT == FERRY_WIRE_STATUS_CHANNEL + 1, "a text for each status");

const char *ferry_wire_status_text(unsigned int status)
{
	return status < STATUS_COUNT ? status_texts[status] : "an answer of unknown meaning";
}

struct codec {
	const char *name;
	uint64_t feature;
};

static const struct codec codecs[] = {
	[FERRY_WIRE_CODEC_RAW] = { "none", 0 },
	[FERRY_WIRE_CODEC_ZSTD] = { "zstd", FERRY_WIRE_FEATURE_ZSTD },
	[FERRY_WIRE_CODEC_LZ4] = { "lz4", FERRY_WIRE_FEATURE_LZ4 },
};
static_assert(sizeof(codecs) / sizeof(codecs[0]) == FERRY_WIRE_CODEC_COUNT, "a row for each codec");

const char *ferry_wire_feature_text(uint64_t feature)
{
	if (feature & FERRY_WIRE_FEATURE_ZSTD)
		return "zstd compression (--compress zstd)";
	if (feature & FERRY_WIRE_FEATURE_LZ4)
		return "LZ4 compression (--compress lz4)";
	if (feature & FERRY_WIRE_FEATURE_CHECKSUM)
		return "checksums (--checksum)";
	if (feature & FERRY_WIRE_FEATURE_POSTCOPY)
		return "postcopy (--postcopy, --on-stall postcopy)";
	return "an unknown feature";
}

const char *ferry_wire_codec_name(unsigned int codec)
{
	return codec < FERRY_WIRE_CODEC_COUNT ? codecs[codec].name : "unknown";
}

uint64_t ferry_wire_codec_feature(unsigned int codec)
{
	return codec < FERRY_WIRE_CODEC_COUNT ? codecs[codec].feature : 0;
}

void ferry_wire_hello_encode(const struct ferry_wire_hello *h, uint8_t buf[FERRY_WIRE_HELLO_BYTES])
{
	struct hello_bytes b = {
		.magic = htole32(FERRY_WIRE_MAGIC),
		.version = htole16(h->version),
		.min_version = htole16(h->min_version),
		.features = htole64(h->features),
		.epoch = htole32(h->epoch),
		.role = h->role,
		.kind = h->kind,
		.channel = htole16(h->channel),
		.channels = htole16(h->channels),
		.status = htole16(h->status),
		.page_size = htole32(h->page_size),
	};

	memcpy(b.uuid, h->uuid, sizeof(b.uuid));
	memcpy(buf, &b, sizeof(b));
}

/* Do the fields make sense together? What a source says binds more than an answer. */
static int hello_combination(const struct ferry_wire_hello *h)
{
	if (h->role != FERRY_WIRE_ROLE_SOURCE && h->role != FERRY_WIRE_ROLE_DESTINATION)
		return -EPROTO;
	if (h->kind < FERRY_WIRE_KIND_MAIN || h->kind > FERRY_WIRE_KIND_FAULT)
		return -EPROTO;
	if (h->channels > FERRY_WIRE_MAX_CHANNELS)
		return -EPROTO;
	if (h->role == FERRY_WIRE_ROLE_DESTINATION)
		return 0;
	if (h->status)
		return -EPROTO;
	if (h->kind == FERRY_WIRE_KIND_MULTIFD && h->channel >= h->channels)
		return -EPROTO;
	return 0;
}

int ferry_wire_hello_decode(struct ferry_wire_hello *h, const uint8_t buf[FERRY_WIRE_HELLO_BYTES])
{
	struct hello_bytes b;

	memcpy(&b, buf, sizeof(b));
	if (le32toh(b.magic) != FERRY_WIRE_MAGIC)
		return -EPROTO;
	*h = (struct ferry_wire_hello){
		.version = le16toh(b.version),
		.min_version = le16toh(b.min_version),
		.features = le64toh(b.features),
		.epoch = le32toh(b.epoch),
		.role = b.role,
		.kind = b.kind,
		.channel = le16toh(b.channel),
		.channels = le16toh(b.channels),
		.status = le16toh(b.status),
		.page_size = le32toh(b.page_size),
	};
	memcpy(h->uuid, b.uuid, sizeof(h->uuid));
	if (!h->min_version || h->min_version > h->version)
		return -EPROTO;
	/* A newer peer may use what is reserved to us; hello_check() judges its version. */
	if (h->version <= FERRY_WIRE_VERSION &&
	    (b.reserved[0] || b.reserved[1] || h->status >= STATUS_COUNT))
		return -EPROTO;
	return hello_combination(h);
}

int ferry_wire_hello_check(const struct ferry_wire_hello *peer)
{
	if (peer->min_version > FERRY_WIRE_VERSION || peer->version < FERRY_WIRE_MIN_VERSION)
		return -EPROTONOSUPPORT;
	if (peer->features & FERRY_WIRE_FEATURES_NEEDED & ~FERRY_WIRE_FEATURES)
		return -EPROTONOSUPPORT;
	if (peer->page_size != FERRY_WIRE_PAGE_BYTES)
		return -EPROTONOSUPPORT;
	return 0;
}
