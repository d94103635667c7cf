/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_WIRE_WIRE_H
#define FERRY_WIRE_WIRE_H

#include <stddef.h>
#include <stdint.h>

/*
 * The bytes two agents exchange, version 1; Documentation/wire.rst draws them.
 * Everything is little-endian. The codec is pure: no descriptors, no allocation,
 * each function reads or writes only the buffer it is given.
 *
 * Main channel: HELLO each way, then frames each way. Multifd channels: HELLO
 * each way, then packets from source to destination.
 */
#define FERRY_WIRE_MAGIC 0x59525246u	   /* "FRRY" */
#define FERRY_WIRE_PACKET_MAGIC 0x504d5246u /* "FRMP" */
#define FERRY_WIRE_VERSION 1
#define FERRY_WIRE_MIN_VERSION 1
#define FERRY_WIRE_FEATURE_ZSTD (1ull << 0)	/* offered: extents compressed by zstd */
#define FERRY_WIRE_FEATURE_LZ4 (1ull << 1)	/* offered: extents compressed by LZ4 */
#define FERRY_WIRE_FEATURE_CHECKSUM (1ull << 2) /* offered: a checksum in each extent */
#define FERRY_WIRE_FEATURE_POSTCOPY (1ull << 3) /* offered: all that is said of postcopy here */
#define FERRY_WIRE_FEATURES                                                               \
	(FERRY_WIRE_FEATURE_ZSTD | FERRY_WIRE_FEATURE_LZ4 | FERRY_WIRE_FEATURE_CHECKSUM | \
	 FERRY_WIRE_FEATURE_POSTCOPY)
#define FERRY_WIRE_FEATURES_NEEDED 0xffffffff00000000ull /* unknown bits in here refuse a peer */

#define FERRY_WIRE_HELLO_BYTES 64
#define FERRY_WIRE_FRAME_BYTES 8
#define FERRY_WIRE_PACKET_BYTES 32
#define FERRY_WIRE_EXTENT_BYTES 24
#define FERRY_WIRE_UUID_BYTES 16
#define FERRY_WIRE_MAX_CHANNELS 64
#define FERRY_WIRE_MAX_BLOCKS 256
#define FERRY_WIRE_MAX_NAME 127
#define FERRY_WIRE_MAX_TEXT 1024
#define FERRY_WIRE_MAX_GUEST 71 /* bytes of GUEST */
#define FERRY_WIRE_MAX_EXTENTS 512	  /* in one packet */
#define FERRY_WIRE_MAX_PACKET_PAGES 256	  /* with data, in one packet: 1 MiB */
#define FERRY_WIRE_MAX_OPTIONAL (1u << 20) /* an unknown frame that may be skipped */
#define FERRY_WIRE_MAX_BLOCK_BYTES (1ull << 46)
#define FERRY_WIRE_MAX_HOST_PAGE (1u << 30)
#define FERRY_WIRE_PAGE_BYTES 4096u
#define FERRY_WIRE_RUN_BYTES 16
#define FERRY_WIRE_MAX_RUNS 4096	  /* in one DISCARD */
#define FERRY_WIRE_REQUEST_BYTES 12
#define FERRY_WIRE_RECEIVED_BYTES 16	  /* before the bits */
#define FERRY_WIRE_MAX_RECEIVED (64u << 10) /* bytes of bits in one RECEIVED */
#define FERRY_WIRE_MAX_PACKAGE (64u << 20) /* device state; more means RAM is in it */

enum ferry_wire_role { FERRY_WIRE_ROLE_SOURCE = 1, FERRY_WIRE_ROLE_DESTINATION = 2 };

enum ferry_wire_kind {
	FERRY_WIRE_KIND_MAIN = 1,    /* a new migration */
	FERRY_WIRE_KIND_MULTIFD = 2, /* a data channel of it */
	FERRY_WIRE_KIND_RECOVER = 3, /* a main channel again, after a lost link */
	FERRY_WIRE_KIND_FAULT = 4,   /* requests d>s, and packets with what was requested s>d */
};

/* What the destination answers in its HELLO. */
enum ferry_wire_status {
	FERRY_WIRE_STATUS_OK = 0,
	FERRY_WIRE_STATUS_VERSION = 1, /* no common version or a needed feature is missing */
	FERRY_WIRE_STATUS_BUSY = 2,    /* another migration is being received */
	FERRY_WIRE_STATUS_UUID = 3,    /* never heard of that migration */
	FERRY_WIRE_STATUS_EPOCH = 4,   /* a newer connection exists */
	FERRY_WIRE_STATUS_CHANNEL = 5, /* channel out of range or already there */
};

struct ferry_wire_hello {
	uint16_t version;
	uint16_t min_version;
	uint64_t features;
	uint8_t uuid[FERRY_WIRE_UUID_BYTES];
	uint32_t epoch; /* 1 for the first connection; larger after each reconnect */
	uint8_t role;
	uint8_t kind;
	uint16_t channel;  /* multifd: which, from 0 */
	uint16_t channels; /* multifd channels of this migration */
	uint16_t status;
	uint32_t page_size; /* of extents: 4096 */
};

enum ferry_wire_type {
	FERRY_WIRE_CONFIG = 1,	 /* s>d: struct ferry_wire_config */
	FERRY_WIRE_BLOCKS = 2,	 /* s>d: block table */
	FERRY_WIRE_READY = 3,	 /* d>s: blocks match, RAM is empty, channels may connect */
	FERRY_WIRE_FLUSH = 4,	 /* s>d: u32 round; every channel has been sent its SYNC */
	FERRY_WIRE_FLUSHED = 5,	 /* d>s: u32 round; every channel has loaded up to it */
	FERRY_WIRE_HASHES = 6,	 /* s>d: a 128-bit hash a block, in block order */
	FERRY_WIRE_VERIFIED = 7, /* d>s: the hashes are equal */
	FERRY_WIRE_PACKAGE = 8,	 /* s>d: device state, opaque */
	FERRY_WIRE_PING = 9,	 /* s>d: u32 number */
	FERRY_WIRE_PONG = 10,	 /* d>s: u32 number */
	FERRY_WIRE_RUN = 11,	 /* s>d: u32 FERRY_WIRE_RUN_... flags */
	FERRY_WIRE_RUNNING = 12, /* d>s: u64 ns from RUN received to guest started */
	FERRY_WIRE_REFUSED = 13, /* d>s: text; durable: this migration never runs here */
	FERRY_WIRE_ACK = 14,	 /* s>d: struct ferry_wire_summary */
	FERRY_WIRE_ABORT = 15,	 /* s>d: text; the guest stays at the source. d>s: I gave up, never loaded */
	FERRY_WIRE_ASK = 16,	 /* s>d: empty; only after HELLO kind RECOVER */
	FERRY_WIRE_ANSWER = 17,	 /* d>s: u32 enum ferry_wire_answer */
	FERRY_WIRE_GUEST = 18,	 /* s>d: text: kind of guest, between CONFIG and BLOCKS; without it "qmp" */
	FERRY_WIRE_CANNOT = 19,	 /* d>s: text: no postcopy, and why; before READY */
	FERRY_WIRE_DISCARD = 20, /* s>d: runs of pages that are to come once more, or never came */
	FERRY_WIRE_POSTCOPY = 21, /* s>d: those were all; wait for each of them */
	FERRY_WIRE_RUNNING_LACKS = 22, /* d>s: as RUNNING, and pages are missing */
	FERRY_WIRE_PLACED = 23,	 /* d>s: none is missing any more */
	FERRY_WIRE_RECEIVED = 24, /* d>s: struct ferry_wire_received, bits; before an ANSWER */
	FERRY_WIRE_RECEIVED_END = 25, /* d>s: u64 how many pages are missing */
	FERRY_WIRE_REQUEST = 26, /* d>s, fault channel: pages of the block named last */
	FERRY_WIRE_REQUEST_BLOCK = 27, /* d>s, fault channel: a run */
	FERRY_WIRE_TYPE_COUNT,
};

/* A receiver skips an unknown type that carries this flag; any other is an error. */
#define FERRY_WIRE_OPTIONAL 1u

enum ferry_wire_answer {
	FERRY_WIRE_ANSWER_RAN = 1,
	FERRY_WIRE_ANSWER_WAITING = 2,
	FERRY_WIRE_ANSWER_REFUSED = 3,
	FERRY_WIRE_ANSWER_LACKS = 4, /* it ran, and pages are missing */
};

struct ferry_wire_frame {
	uint16_t type;
	uint16_t flags;
	uint32_t length; /* of what follows the header */
};

#define FERRY_WIRE_RUN_PAUSED 1u /* the guest was paused by a person: own it, leave it so */

/* How the pages of a normal extent stand on the wire. */
enum ferry_wire_codec {
	FERRY_WIRE_CODEC_RAW = 0,
	FERRY_WIRE_CODEC_ZSTD = 1, /* one zstd frame, its content size in its header */
	FERRY_WIRE_CODEC_LZ4 = 2,  /* one LZ4 block */
	FERRY_WIRE_CODEC_COUNT,
};

#define FERRY_WIRE_CONFIG_VERIFY 1u
#define FERRY_WIRE_CONFIG_CHECKSUM 2u /* every extent carries a checksum */
#define FERRY_WIRE_CONFIG_POSTCOPY 4u /* the source may switch to postcopy; else CANNOT */
#define FERRY_WIRE_CONFIG_POSTCOPY_NEEDED 8u /* it will: refuse if it cannot be. With the former */
struct ferry_wire_config {
	uint32_t flags;
	uint8_t codec; /* extents are raw or of this one */
	uint64_t ram_bytes;
};
#define FERRY_WIRE_CONFIG_BYTES 16

struct ferry_wire_block {
	uint64_t size_bytes;
	uint32_t page_size;
	char name[FERRY_WIRE_MAX_NAME + 1];
};

struct ferry_wire_summary {
	uint64_t total_ns;
	uint64_t downtime_ns;
	uint64_t rounds;
	uint64_t sent_bytes;
	uint64_t normal_pages;
	uint64_t zero_pages;
	uint64_t device_bytes;
	char tracker[16];
};
#define FERRY_WIRE_SUMMARY_BYTES 72

/* Multifd packet: header, extents, then the pages of the normal extents in order. */
#define FERRY_WIRE_PACKET_SYNC 1u /* ends a round on this channel; no extents */
enum ferry_wire_extent_kind { FERRY_WIRE_EXTENT_NORMAL = 0, FERRY_WIRE_EXTENT_ZERO = 1 };

struct ferry_wire_packet {
	uint16_t flags;
	uint16_t extents;
	uint32_t round;	     /* 1, 2, 3 …: one more after each SYNC */
	uint32_t data_bytes; /* after the extents */
	uint64_t sequence;   /* 0, 1, 2 … on each channel */
};

struct ferry_wire_extent {
	uint16_t block;
	uint8_t kind;
	uint8_t codec; /* enum ferry_wire_codec */
	uint32_t pages;
	uint64_t first_page;
	uint32_t data_bytes; /* of this extent on the wire; 0 for zero pages; less than raw if not */
	uint32_t checksum;   /* 0: none. ferry_hash_extent() */
};

/* Pages of a block, in DISCARD and REQUEST_BLOCK. */
struct ferry_wire_run {
	uint64_t first_page;
	uint32_t pages; /* not 0 */
	uint16_t block;
};

/*
 * Which pages are placed at the destination, a bit each, byte by byte from the lowest bit on,
 * in whole 64-bit words: the pages behind the end of the block are 0.
 */
struct ferry_wire_received {
	uint64_t first_page; /* a multiple of 64 */
	uint16_t block;
};

/*
 * Every decode function returns 0, or a negative errno:
 * -EPROTO          magic, a reserved field, an enum value or a combination is wrong
 * -EPROTONOSUPPORT versions do not meet (hello), unknown mandatory frame type
 * -EMSGSIZE        length outside the bounds of the type, or buffer too short
 * -ERANGE          an extent outside its block, or no such block
 * -EEXIST          extents of one packet overlap, or two blocks have one name
 */
void ferry_wire_hello_encode(const struct ferry_wire_hello *h, uint8_t buf[FERRY_WIRE_HELLO_BYTES]);
int ferry_wire_hello_decode(struct ferry_wire_hello *h, const uint8_t buf[FERRY_WIRE_HELLO_BYTES]);

/** ferry_wire_hello_check() - do the versions and features of a peer meet ours? */
int ferry_wire_hello_check(const struct ferry_wire_hello *peer);

void ferry_wire_frame_encode(const struct ferry_wire_frame *f, uint8_t buf[FERRY_WIRE_FRAME_BYTES]);

/** ferry_wire_frame_decode() - checks length against the bounds of known types too. */
int ferry_wire_frame_decode(struct ferry_wire_frame *f, const uint8_t buf[FERRY_WIRE_FRAME_BYTES]);

/** ferry_wire_feature_text() - a feature bit in words for a person, and the option it is for. */
const char *ferry_wire_feature_text(uint64_t feature);

/** ferry_wire_codec_name() - Return: "none", "zstd", "lz4", "unknown". */
const char *ferry_wire_codec_name(unsigned int codec);

/** ferry_wire_codec_feature() - what a peer must offer for that codec, 0 for raw. */
uint64_t ferry_wire_codec_feature(unsigned int codec);

/** ferry_wire_type_name() - Return: "PACKAGE" and the like, "unknown" for others. */
const char *ferry_wire_type_name(unsigned int type);
const char *ferry_wire_status_text(unsigned int status);

void ferry_wire_config_encode(const struct ferry_wire_config *c,
			      uint8_t buf[FERRY_WIRE_CONFIG_BYTES]);
int ferry_wire_config_decode(struct ferry_wire_config *c, const uint8_t *buf, size_t len);

/** ferry_wire_blocks_bytes() - room ferry_wire_blocks_encode() needs. */
size_t ferry_wire_blocks_bytes(const struct ferry_wire_block *blocks, unsigned int count);
void ferry_wire_blocks_encode(const struct ferry_wire_block *blocks, unsigned int count,
			      uint8_t *buf);
/** ferry_wire_blocks_decode() - @count: in: room, out: found. */
int ferry_wire_blocks_decode(struct ferry_wire_block *blocks, unsigned int *count,
			     const uint8_t *buf, size_t len);

void ferry_wire_summary_encode(const struct ferry_wire_summary *s,
			       uint8_t buf[FERRY_WIRE_SUMMARY_BYTES]);
int ferry_wire_summary_decode(struct ferry_wire_summary *s, const uint8_t *buf, size_t len);

void ferry_wire_u32_encode(uint32_t v, uint8_t buf[4]);
int ferry_wire_u32_decode(uint32_t *v, const uint8_t *buf, size_t len);
void ferry_wire_u64_encode(uint64_t v, uint8_t buf[8]);
int ferry_wire_u64_decode(uint64_t *v, const uint8_t *buf, size_t len);

void ferry_wire_run_encode(const struct ferry_wire_run *r, uint8_t buf[FERRY_WIRE_RUN_BYTES]);
/** ferry_wire_run_decode() - @block_pages, @blocks: what it must fit. */
int ferry_wire_run_decode(struct ferry_wire_run *r, const uint8_t *buf, size_t len,
			  const uint64_t *block_pages, unsigned int blocks);

/** ferry_wire_request_encode() - all of a run but its block. */
void ferry_wire_request_encode(const struct ferry_wire_run *r,
			       uint8_t buf[FERRY_WIRE_REQUEST_BYTES]);
/** ferry_wire_request_decode() - r->block is in: the block named last. */
int ferry_wire_request_decode(struct ferry_wire_run *r, const uint8_t *buf, size_t len,
			      const uint64_t *block_pages, unsigned int blocks);

void ferry_wire_received_encode(const struct ferry_wire_received *r,
				uint8_t buf[FERRY_WIRE_RECEIVED_BYTES]);
/** ferry_wire_received_decode() - @len: of the whole frame, bits included. */
int ferry_wire_received_decode(struct ferry_wire_received *r, const uint8_t *buf, size_t len,
			       const uint64_t *block_pages, unsigned int blocks);

void ferry_wire_packet_encode(const struct ferry_wire_packet *p,
			      uint8_t buf[FERRY_WIRE_PACKET_BYTES]);
int ferry_wire_packet_decode(struct ferry_wire_packet *p,
			     const uint8_t buf[FERRY_WIRE_PACKET_BYTES]);
void ferry_wire_extent_encode(const struct ferry_wire_extent *e,
			      uint8_t buf[FERRY_WIRE_EXTENT_BYTES]);
int ferry_wire_extent_decode(struct ferry_wire_extent *e,
			     const uint8_t buf[FERRY_WIRE_EXTENT_BYTES]);

/**
 * ferry_wire_packet_check() - do the extents of a packet fit it and the blocks?
 * @block_pages: length of each block
 * @scratch: room for p->extents indices (for the overlap check)
 */
int ferry_wire_packet_check(const struct ferry_wire_packet *p, const struct ferry_wire_extent *e,
			    const uint64_t *block_pages, unsigned int blocks, uint16_t *scratch);

#endif
