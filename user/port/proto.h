/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef FERRY_PORT_PROTO_H
#define FERRY_PORT_PROTO_H

#include <stddef.h>
#include <stdint.h>

/*
 * The port protocol, version 1: what the agent and a VMM's libferry exchange on a UNIX
 * socket of type SOCK_SEQPACKET; Documentation/port.rst draws it byte by byte. One packet
 * is one message: a header, a body, up to one descriptor. Little-endian throughout.
 *
 * The agent (or a member, which registers) sends requests, one at a time; each gets one
 * reply of the same type and sequence. The codec is pure: no descriptors, no allocation,
 * each function reads or writes only the buffer it is given.
 */
#define FERRY_PROTO_MAGIC 0x54505246u /* "FRPT" */
#define FERRY_PROTO_VERSION 1
#define FERRY_PROTO_MIN_VERSION 1
#define FERRY_PROTO_FEATURES 0ull	 /* none beyond version 1 yet */
#define FERRY_PROTO_FEATURES_NEEDED 0xffffffff00000000ull /* unknown bits in here refuse a peer */

#define FERRY_PROTO_HEAD_BYTES 16
#define FERRY_PROTO_MAX_BODY 1008
#define FERRY_PROTO_MAX_BYTES (FERRY_PROTO_HEAD_BYTES + FERRY_PROTO_MAX_BODY)
#define FERRY_PROTO_MAX_TEXT 511
#define FERRY_PROTO_MAX_NAME 127
#define FERRY_PROTO_MAX_KIND 63
#define FERRY_PROTO_MAX_BLOCKS 256
#define FERRY_PROTO_MAX_MEMBERS 16
#define FERRY_PROTO_PAGE_BYTES 4096u
#define FERRY_PROTO_MAX_PAGE_BYTES (1u << 30)
#define FERRY_PROTO_MAX_BLOCK_BYTES (1ull << 46)

enum ferry_proto_type {
	FERRY_PROTO_HELLO = 1,
	FERRY_PROTO_RAM = 2,	     /* u32 block; reply: struct ferry_proto_ram, fd */
	FERRY_PROTO_STATE = 3,	     /* reply: u32 FERRY_PROTO_STATE_... */
	FERRY_PROTO_CHECK = 4,
	FERRY_PROTO_PAUSE = 5,
	FERRY_PROTO_RESUME = 6,
	FERRY_PROTO_SAVE = 7,	     /* u64 limit, fd; reply: u64 bytes */
	FERRY_PROTO_LOAD = 8,	     /* fd */
	FERRY_PROTO_RUN = 9,
	FERRY_PROTO_QUIT = 10,
	FERRY_PROTO_DIRECT_IO = 11,  /* reply: u32 0 or 1, text why */
	FERRY_PROTO_LOG_START = 12,  /* fd of the bitmap */
	FERRY_PROTO_LOG_SYNC = 13,
	FERRY_PROTO_LOG_STOP = 14,
	FERRY_PROTO_THROTTLE = 15,   /* u32 percent */
	FERRY_PROTO_QUIESCE = 16,    /* u32 on */
	FERRY_PROTO_USERFAULTFD = 17, /* u32 flags, fd of /dev/userfaultfd or none; reply: fd */
	FERRY_PROTO_VIEW = 18,	     /* struct ferry_proto_view, fd of a tracker */
	FERRY_PROTO_RESET = 19,	     /* views off, log off, throttle off */
	FERRY_PROTO_MEMBER = 20,     /* u32 which; reply: u32 pid, fd of a channel to it */
	FERRY_PROTO_MEMBER_RAM = 21, /* a member: struct ferry_proto_ram, one message a block */
	FERRY_PROTO_JOIN = 22,	     /* a member: those were all */
	FERRY_PROTO_CHANNEL = 23,    /* VMM to member, no reply: fd of an agent's channel */
	FERRY_PROTO_ADOPT = 24,	     /* struct ferry_proto_ram, fd of the RAM; without: could it? */
	FERRY_PROTO_TYPE_COUNT,
};

#define FERRY_PROTO_REPLY 1u

/*
 * USERFAULTFD: the process keeps a copy until RESET. Who waits for a page then goes on waiting
 * when the agent dies, instead of reading zeros.
 */
#define FERRY_PROTO_UFFD_KEEP 1u

struct ferry_proto_head {
	uint16_t type;
	uint16_t flags;
	uint32_t length;   /* of the body */
	uint32_t sequence; /* chosen by who asks, repeated in the reply */
	int32_t status;	   /* reply: 0 or -errno, then the body is a text; request: 0 */
};

enum ferry_proto_role { FERRY_PROTO_ROLE_AGENT = 1, FERRY_PROTO_ROLE_MEMBER = 2 };

/* Request of HELLO. */
struct ferry_proto_hello {
	uint16_t version;
	uint16_t min_version;
	uint64_t features;
	uint32_t role;
};
#define FERRY_PROTO_HELLO_BYTES 24

/* What the VMM offers. */
#define FERRY_PROTO_HAS_LOG (1u << 0)	      /* LOG_... */
#define FERRY_PROTO_HAS_LOG_PROCESS (1u << 1) /* it has all that the VMM's process writes */
#define FERRY_PROTO_HAS_LOG_MEMBERS (1u << 2) /* and what members write */
#define FERRY_PROTO_HAS_THROTTLE (1u << 3)
#define FERRY_PROTO_HAS_QUIESCE (1u << 4)
#define FERRY_PROTO_IS_MEMBER (1u << 5) /* a channel to a member: RAM, USERFAULTFD, VIEW, RESET */
#define FERRY_PROTO_HAS_ADOPT (1u << 6) /* it has no RAM yet and takes that of another VMM */
#define FERRY_PROTO_HAS_ALL 0x7fu

/* Reply to HELLO. */
struct ferry_proto_welcome {
	uint16_t version;
	uint16_t min_version;
	uint64_t features;
	uint32_t has; /* FERRY_PROTO_HAS_... */
	uint32_t blocks;
	uint32_t members;
	char kind[FERRY_PROTO_MAX_KIND + 1]; /* "" of a member */
};
#define FERRY_PROTO_WELCOME_BYTES 32 /* and the kind */

#define FERRY_PROTO_STATE_RUNNING (1u << 0)
#define FERRY_PROTO_STATE_INCOMING (1u << 1) /* waits for LOAD */
#define FERRY_PROTO_STATE_LOADED (1u << 2)   /* loaded, waits for RUN */
#define FERRY_PROTO_STATE_BROKEN (1u << 3)   /* a LOAD failed: only QUIT is left */
#define FERRY_PROTO_STATE_QUIESCED (1u << 4)
#define FERRY_PROTO_STATE_LOG (1u << 5)	     /* the dirty log is on */
#define FERRY_PROTO_STATE_VIEW (1u << 6)     /* a tracked view is mapped */
#define FERRY_PROTO_STATE_ALL 0x7fu

struct ferry_proto_ram {
	uint64_t bytes;
	uint64_t fd_offset;
	uint64_t addr; /* in the process that says it */
	uint32_t page_bytes;
	char name[FERRY_PROTO_MAX_NAME + 1];
};
#define FERRY_PROTO_RAM_BYTES 32 /* and the name */

/* Flags that the plain mapping has, for the new one and for the way back. */
#define FERRY_PROTO_MAP_DONTDUMP (1u << 0)
#define FERRY_PROTO_MAP_DONTFORK (1u << 1)
#define FERRY_PROTO_MAP_HUGEPAGE (1u << 2)   /* way back only: a view has small pages */
#define FERRY_PROTO_MAP_NOHUGEPAGE (1u << 3)
#define FERRY_PROTO_MAP_LOCKED (1u << 4)     /* way back only */
#define FERRY_PROTO_MAP_LOCKED_ONFAULT (1u << 5) /* way back only */
#define FERRY_PROTO_MAP_SEQUENTIAL (1u << 6)
#define FERRY_PROTO_MAP_RANDOM (1u << 7)
#define FERRY_PROTO_MAP_NORESERVE (1u << 8)
#define FERRY_PROTO_MAP_ALL 0x1ffu

struct ferry_proto_view {
	uint32_t block;
	uint32_t map; /* FERRY_PROTO_MAP_... */
};
#define FERRY_PROTO_VIEW_BYTES 8

const char *ferry_proto_type_name(unsigned int type);

/** ferry_proto_fds() - how many descriptors a message of that kind must carry. */
unsigned int ferry_proto_min_fds(const struct ferry_proto_head *head);
unsigned int ferry_proto_max_fds(const struct ferry_proto_head *head);

void ferry_proto_head_encode(const struct ferry_proto_head *head,
			     uint8_t buf[FERRY_PROTO_HEAD_BYTES]);

/**
 * ferry_proto_head_decode() - the header of a packet of @len bytes, checked
 *
 * Return: 0; -EPROTO flags or status; -EOPNOTSUPP unknown type (@head is filled, it can be
 * answered); -EMSGSIZE the packet is cut, or the length is not right for its type.
 */
int ferry_proto_head_decode(struct ferry_proto_head *head, const uint8_t *buf, size_t len);

/* Bodies. Encoders return the bytes written; decoders 0, -EMSGSIZE or -EPROTO. */
size_t ferry_proto_hello_encode(const struct ferry_proto_hello *h,
				uint8_t buf[FERRY_PROTO_MAX_BODY]);
int ferry_proto_hello_decode(struct ferry_proto_hello *h, const uint8_t *buf, size_t len);
size_t ferry_proto_welcome_encode(const struct ferry_proto_welcome *w,
				  uint8_t buf[FERRY_PROTO_MAX_BODY]);
int ferry_proto_welcome_decode(struct ferry_proto_welcome *w, const uint8_t *buf, size_t len);
size_t ferry_proto_ram_encode(const struct ferry_proto_ram *r, uint8_t buf[FERRY_PROTO_MAX_BODY]);
int ferry_proto_ram_decode(struct ferry_proto_ram *r, const uint8_t *buf, size_t len);
size_t ferry_proto_view_encode(const struct ferry_proto_view *v,
			       uint8_t buf[FERRY_PROTO_MAX_BODY]);
int ferry_proto_view_decode(struct ferry_proto_view *v, const uint8_t *buf, size_t len);
size_t ferry_proto_u32_encode(uint32_t v, uint8_t *buf);
int ferry_proto_u32_decode(uint32_t *v, const uint8_t *buf, size_t len);
size_t ferry_proto_u64_encode(uint64_t v, uint8_t *buf);
int ferry_proto_u64_decode(uint64_t *v, const uint8_t *buf, size_t len);

/**
 * ferry_proto_agree() - can two sides talk?
 *
 * Return: 0, or -EPROTONOSUPPORT: no common version, or a needed feature is not known.
 */
int ferry_proto_agree(uint16_t version, uint16_t min_version, uint64_t features);

/** ferry_proto_text() - copy a text of a peer, what is not printable replaced. */
void ferry_proto_text(char *out, size_t room, const uint8_t *body, size_t len);

#endif
