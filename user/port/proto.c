// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * The table below is the only place that knows how long a message may be and whether it
 * carries a descriptor. A type is added by its number in proto.h and one row here.
 *
 * A reply with a status below zero has a text for a body, whatever its type, and no
 * descriptor.
 */
#include "port/proto.h"

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <stdbool.h>
#include <string.h>

struct head_bytes {
	uint16_t type;
	uint16_t flags;
	uint32_t length;
	uint32_t sequence;
	uint32_t status;
};

struct hello_bytes {
	uint32_t magic;
	uint16_t version;
	uint16_t min_version;
	uint64_t features;
	uint32_t role;
	uint32_t reserved;
};

struct welcome_bytes {
	uint32_t magic;
	uint16_t version;
	uint16_t min_version;
	uint64_t features;
	uint32_t has;
	uint32_t blocks;
	uint32_t members;
	uint32_t kind_len;
};

struct ram_bytes {
	uint64_t bytes;
	uint64_t fd_offset;
	uint64_t addr;
	uint32_t page_bytes;
	uint32_t name_len;
};

struct view_bytes {
	uint32_t block;
	uint32_t map;
};

static_assert(sizeof(struct head_bytes) == FERRY_PROTO_HEAD_BYTES, "header size");
static_assert(offsetof(struct head_bytes, status) == 12, "header status");
static_assert(sizeof(struct hello_bytes) == FERRY_PROTO_HELLO_BYTES, "hello size");
static_assert(offsetof(struct hello_bytes, features) == 8, "hello features");
static_assert(sizeof(struct welcome_bytes) == FERRY_PROTO_WELCOME_BYTES, "welcome size");
static_assert(offsetof(struct welcome_bytes, has) == 16, "welcome has");
static_assert(sizeof(struct ram_bytes) == FERRY_PROTO_RAM_BYTES, "ram size");
static_assert(offsetof(struct ram_bytes, page_bytes) == 24, "ram page size");
static_assert(sizeof(struct view_bytes) == FERRY_PROTO_VIEW_BYTES, "view size");

struct message_type {
	const char *name;
	uint16_t min, max;	       /* body of the request */
	uint16_t reply_min, reply_max; /* of a reply that is no error */
	uint8_t fds_min, fds_max;      /* with the request */
	uint8_t reply_fds;
};

#define RAM_MIN (FERRY_PROTO_RAM_BYTES + 1)
#define RAM_MAX (FERRY_PROTO_RAM_BYTES + FERRY_PROTO_MAX_NAME)

static const struct message_type types[] = {
	[0] = { NULL, 0, 0, 0, 0, 0, 0, 0 },
	[FERRY_PROTO_HELLO] = { "HELLO", FERRY_PROTO_HELLO_BYTES, FERRY_PROTO_HELLO_BYTES,
				FERRY_PROTO_WELCOME_BYTES,
				FERRY_PROTO_WELCOME_BYTES + FERRY_PROTO_MAX_KIND, 0, 0, 0 },
	[FERRY_PROTO_RAM] = { "RAM", 4, 4, RAM_MIN, RAM_MAX, 0, 0, 1 },
	[FERRY_PROTO_STATE] = { "STATE", 0, 0, 4, 4, 0, 0, 0 },
	[FERRY_PROTO_CHECK] = { "CHECK", 0, 0, 0, 0, 0, 0, 0 },
	[FERRY_PROTO_PAUSE] = { "PAUSE", 0, 0, 0, 0, 0, 0, 0 },
	[FERRY_PROTO_RESUME] = { "RESUME", 0, 0, 0, 0, 0, 0, 0 },
	[FERRY_PROTO_SAVE] = { "SAVE", 8, 8, 8, 8, 1, 1, 0 },
	[FERRY_PROTO_LOAD] = { "LOAD", 0, 0, 0, 0, 1, 1, 0 },
	[FERRY_PROTO_RUN] = { "RUN", 0, 0, 0, 0, 0, 0, 0 },
	[FERRY_PROTO_QUIT] = { "QUIT", 0, 0, 0, 0, 0, 0, 0 },
	[FERRY_PROTO_DIRECT_IO] = { "DIRECT_IO", 0, 0, 4, 4 + FERRY_PROTO_MAX_TEXT, 0, 0, 0 },
	[FERRY_PROTO_LOG_START] = { "LOG_START", 0, 0, 0, 0, 1, 1, 0 },
	[FERRY_PROTO_LOG_SYNC] = { "LOG_SYNC", 0, 0, 0, 0, 0, 0, 0 },
	[FERRY_PROTO_LOG_STOP] = { "LOG_STOP", 0, 0, 0, 0, 0, 0, 0 },
	[FERRY_PROTO_THROTTLE] = { "THROTTLE", 4, 4, 0, 0, 0, 0, 0 },
	[FERRY_PROTO_QUIESCE] = { "QUIESCE", 4, 4, 0, 0, 0, 0, 0 },
	[FERRY_PROTO_USERFAULTFD] = { "USERFAULTFD", 4, 4, 0, 0, 0, 1, 1 },
	[FERRY_PROTO_VIEW] = { "VIEW", FERRY_PROTO_VIEW_BYTES, FERRY_PROTO_VIEW_BYTES, 0, 0, 1, 1,
			       0 },
	[FERRY_PROTO_RESET] = { "RESET", 0, 0, 0, 0, 0, 0, 0 },
	[FERRY_PROTO_MEMBER] = { "MEMBER", 4, 4, 4, 4, 0, 0, 1 },
	[FERRY_PROTO_MEMBER_RAM] = { "MEMBER_RAM", RAM_MIN, RAM_MAX, 0, 0, 0, 0, 0 },
	[FERRY_PROTO_JOIN] = { "JOIN", 0, 0, 0, 0, 0, 0, 0 },
	[FERRY_PROTO_CHANNEL] = { "CHANNEL", 0, 0, 0, 0, 1, 1, 0 },
	[FERRY_PROTO_ADOPT] = { "ADOPT", RAM_MIN, RAM_MAX, 0, 0, 0, 1, 0 },
};

static_assert(sizeof(types) / sizeof(types[0]) == FERRY_PROTO_TYPE_COUNT, "a row for each type");

static const struct message_type *find_type(unsigned int type)
{
	return type < FERRY_PROTO_TYPE_COUNT && types[type].name ? &types[type] : NULL;
}

const char *ferry_proto_type_name(unsigned int type)
{
	const struct message_type *t = find_type(type);

	return t ? t->name : "unknown";
}

unsigned int ferry_proto_min_fds(const struct ferry_proto_head *head)
{
	const struct message_type *t = find_type(head->type);

	if (!t || head->status < 0)
		return 0;
	return head->flags & FERRY_PROTO_REPLY ? t->reply_fds : t->fds_min;
}

unsigned int ferry_proto_max_fds(const struct ferry_proto_head *head)
{
	const struct message_type *t = find_type(head->type);

	if (!t || head->status < 0)
		return 0;
	return head->flags & FERRY_PROTO_REPLY ? t->reply_fds : t->fds_max;
}

void ferry_proto_head_encode(const struct ferry_proto_head *head,
			     uint8_t buf[FERRY_PROTO_HEAD_BYTES])
{
	struct head_bytes b = {
		.type = htole16(head->type),
		.flags = htole16(head->flags),
		.length = htole32(head->length),
		.sequence = htole32(head->sequence),
		.status = htole32((uint32_t)head->status),
	};

	memcpy(buf, &b, sizeof(b));
}

int ferry_proto_head_decode(struct ferry_proto_head *head, const uint8_t *buf, size_t len)
{
	const struct message_type *t;
	struct head_bytes b;
	uint32_t min, max;
	bool reply;

	memset(head, 0, sizeof(*head));
	if (len < sizeof(b) || len > FERRY_PROTO_MAX_BYTES)
		return -EMSGSIZE;
	memcpy(&b, buf, sizeof(b));
	head->type = le16toh(b.type);
	head->flags = le16toh(b.flags);
	head->length = le32toh(b.length);
	head->sequence = le32toh(b.sequence);
	head->status = (int32_t)le32toh(b.status);
	if (head->length != len - sizeof(b))
		return -EMSGSIZE;
	reply = head->flags & FERRY_PROTO_REPLY;
	/* 4095: the largest errno there is. */
	if ((head->flags & ~FERRY_PROTO_REPLY) || head->status > 0 || head->status < -4095 ||
	    (head->status && !reply))
		return -EPROTO;
	t = find_type(head->type);
	if (!t && !head->status)
		return -EOPNOTSUPP;
	min = head->status || !t ? 0 : reply ? t->reply_min : t->min;
	max = head->status || !t ? FERRY_PROTO_MAX_TEXT : reply ? t->reply_max : t->max;
	return head->length < min || head->length > max ? -EMSGSIZE : 0;
}

static bool is_printable(const char *text, size_t len)
{
	size_t i;

	for (i = 0; i < len; i++)
		if (text[i] < 0x20 || text[i] > 0x7e)
			return false;
	return true;
}

/* Versions a side may claim. */
static bool is_version(uint16_t version, uint16_t min_version)
{
	return min_version && min_version <= version;
}

size_t ferry_proto_hello_encode(const struct ferry_proto_hello *h,
				uint8_t buf[FERRY_PROTO_MAX_BODY])
{
	struct hello_bytes b = {
		.magic = htole32(FERRY_PROTO_MAGIC),
		.version = htole16(h->version),
		.min_version = htole16(h->min_version),
		.features = htole64(h->features),
		.role = htole32(h->role),
	};

	memcpy(buf, &b, sizeof(b));
	return sizeof(b);
}

int ferry_proto_hello_decode(struct ferry_proto_hello *h, const uint8_t *buf, size_t len)
{
	struct hello_bytes b;

	if (len != sizeof(b))
		return -EMSGSIZE;
	memcpy(&b, buf, sizeof(b));
	*h = (struct ferry_proto_hello){
		.version = le16toh(b.version),
		.min_version = le16toh(b.min_version),
		.features = le64toh(b.features),
		.role = le32toh(b.role),
	};
	if (le32toh(b.magic) != FERRY_PROTO_MAGIC || !is_version(h->version, h->min_version) ||
	    b.reserved)
		return -EPROTO;
	return h->role == FERRY_PROTO_ROLE_AGENT || h->role == FERRY_PROTO_ROLE_MEMBER ? 0 :
										       -EPROTO;
}

size_t ferry_proto_welcome_encode(const struct ferry_proto_welcome *w,
				  uint8_t buf[FERRY_PROTO_MAX_BODY])
{
	size_t len = strnlen(w->kind, FERRY_PROTO_MAX_KIND);
	struct welcome_bytes b = {
		.magic = htole32(FERRY_PROTO_MAGIC),
		.version = htole16(w->version),
		.min_version = htole16(w->min_version),
		.features = htole64(w->features),
		.has = htole32(w->has),
		.blocks = htole32(w->blocks),
		.members = htole32(w->members),
		.kind_len = htole32((uint32_t)len),
	};

	memcpy(buf, &b, sizeof(b));
	memcpy(buf + sizeof(b), w->kind, len);
	return sizeof(b) + len;
}

int ferry_proto_welcome_decode(struct ferry_proto_welcome *w, const uint8_t *buf, size_t len)
{
	struct welcome_bytes b;
	size_t kind_len;

	if (len < sizeof(b))
		return -EMSGSIZE;
	memcpy(&b, buf, sizeof(b));
	*w = (struct ferry_proto_welcome){
		.version = le16toh(b.version),
		.min_version = le16toh(b.min_version),
		.features = le64toh(b.features),
		.has = le32toh(b.has),
		.blocks = le32toh(b.blocks),
		.members = le32toh(b.members),
	};
	kind_len = le32toh(b.kind_len);
	if (kind_len > FERRY_PROTO_MAX_KIND || kind_len != len - sizeof(b))
		return -EMSGSIZE;
	if (le32toh(b.magic) != FERRY_PROTO_MAGIC || !is_version(w->version, w->min_version) ||
	    (w->has & ~FERRY_PROTO_HAS_ALL) || !w->blocks != !!(w->has & FERRY_PROTO_HAS_ADOPT) ||
	    w->blocks > FERRY_PROTO_MAX_BLOCKS || w->members > FERRY_PROTO_MAX_MEMBERS)
		return -EPROTO;
	memcpy(w->kind, buf + sizeof(b), kind_len);
	/* A VMM has a kind, a member has none. */
	if (!is_printable(w->kind, kind_len) || !kind_len != !!(w->has & FERRY_PROTO_IS_MEMBER))
		return -EPROTO;
	return 0;
}

size_t ferry_proto_ram_encode(const struct ferry_proto_ram *r, uint8_t buf[FERRY_PROTO_MAX_BODY])
{
	size_t len = strnlen(r->name, FERRY_PROTO_MAX_NAME);
	struct ram_bytes b = {
		.bytes = htole64(r->bytes),
		.fd_offset = htole64(r->fd_offset),
		.addr = htole64(r->addr),
		.page_bytes = htole32(r->page_bytes),
		.name_len = htole32((uint32_t)len),
	};

	memcpy(buf, &b, sizeof(b));
	memcpy(buf + sizeof(b), r->name, len);
	return sizeof(b) + len;
}

static bool ram_is_sane(const struct ferry_proto_ram *r)
{
	uint64_t page = r->page_bytes;

	if (page < FERRY_PROTO_PAGE_BYTES || page > FERRY_PROTO_MAX_PAGE_BYTES ||
	    (page & (page - 1)))
		return false;
	return r->bytes && r->bytes <= FERRY_PROTO_MAX_BLOCK_BYTES &&
	       r->fd_offset <= FERRY_PROTO_MAX_BLOCK_BYTES && r->addr &&
	       r->addr <= UINT64_MAX - r->bytes &&
	       !((r->bytes | r->fd_offset | r->addr) & (page - 1));
}

int ferry_proto_ram_decode(struct ferry_proto_ram *r, const uint8_t *buf, size_t len)
{
	struct ram_bytes b;
	size_t name_len;

	if (len < sizeof(b))
		return -EMSGSIZE;
	memcpy(&b, buf, sizeof(b));
	*r = (struct ferry_proto_ram){
		.bytes = le64toh(b.bytes),
		.fd_offset = le64toh(b.fd_offset),
		.addr = le64toh(b.addr),
		.page_bytes = le32toh(b.page_bytes),
	};
	name_len = le32toh(b.name_len);
	if (name_len > FERRY_PROTO_MAX_NAME || name_len != len - sizeof(b))
		return -EMSGSIZE;
	memcpy(r->name, buf + sizeof(b), name_len);
	return name_len && is_printable(r->name, name_len) && ram_is_sane(r) ? 0 : -EPROTO;
}

size_t ferry_proto_view_encode(const struct ferry_proto_view *v,
			       uint8_t buf[FERRY_PROTO_MAX_BODY])
{
	struct view_bytes b = { .block = htole32(v->block), .map = htole32(v->map) };

	memcpy(buf, &b, sizeof(b));
	return sizeof(b);
}

int ferry_proto_view_decode(struct ferry_proto_view *v, const uint8_t *buf, size_t len)
{
	struct view_bytes b;

	if (len != sizeof(b))
		return -EMSGSIZE;
	memcpy(&b, buf, sizeof(b));
	v->block = le32toh(b.block);
	v->map = le32toh(b.map);
	return v->block >= FERRY_PROTO_MAX_BLOCKS || (v->map & ~FERRY_PROTO_MAP_ALL) ? -EPROTO : 0;
}

size_t ferry_proto_u32_encode(uint32_t v, uint8_t *buf)
{
	v = htole32(v);
	memcpy(buf, &v, sizeof(v));
	return sizeof(v);
}

int ferry_proto_u32_decode(uint32_t *v, const uint8_t *buf, size_t len)
{
	if (len < sizeof(*v))
		return -EMSGSIZE;
	memcpy(v, buf, sizeof(*v));
	*v = le32toh(*v);
	return 0;
}

size_t ferry_proto_u64_encode(uint64_t v, uint8_t *buf)
{
	v = htole64(v);
	memcpy(buf, &v, sizeof(v));
	return sizeof(v);
}

int ferry_proto_u64_decode(uint64_t *v, const uint8_t *buf, size_t len)
{
	if (len < sizeof(*v))
		return -EMSGSIZE;
	memcpy(v, buf, sizeof(*v));
	*v = le64toh(*v);
	return 0;
}

int ferry_proto_agree(uint16_t version, uint16_t min_version, uint64_t features)
{
	if (version < FERRY_PROTO_MIN_VERSION || min_version > FERRY_PROTO_VERSION)
		return -EPROTONOSUPPORT;
	return features & FERRY_PROTO_FEATURES_NEEDED & ~FERRY_PROTO_FEATURES ? -EPROTONOSUPPORT :
										0;
}

void ferry_proto_text(char *out, size_t room, const uint8_t *body, size_t len)
{
	size_t i;

	for (i = 0; i < len && i + 1 < room; i++)
		out[i] = body[i] >= 0x20 && body[i] <= 0x7e ? (char)body[i] : '?';
	if (room)
		out[i] = '\0';
}
