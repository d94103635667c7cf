// SPDX-License-Identifier: GPL-2.0-or-later
/* The port's codec: everything there and back, its bytes, and the exact error of each bad one. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "port/proto.h"

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

static const uint8_t zeros[FERRY_PROTO_MAX_BYTES];

static int decode_head(uint16_t type, uint16_t flags, uint32_t length, int32_t status)
{
	struct ferry_proto_head h = { .type = type, .flags = flags, .length = length,
				      .sequence = 7, .status = status }, back;
	uint8_t buf[FERRY_PROTO_MAX_BYTES + 1] = { 0 };
	int r;

	ferry_proto_head_encode(&h, buf);
	r = ferry_proto_head_decode(&back, buf, FERRY_PROTO_HEAD_BYTES + length);
	if (!r)
		assert_memory_equal(&h, &back, sizeof(h));
	return r;
}

static void head_bytes_are_as_documented(void **state)
{
	static const uint8_t bytes[] = { 7, 0, 1, 0, 8, 0, 0, 0, 0x44, 0x33, 0x22, 0x11,
					 0xff, 0xff, 0xff, 0xff };
	struct ferry_proto_head h = { .type = FERRY_PROTO_SAVE, .flags = FERRY_PROTO_REPLY,
				      .length = 8, .sequence = 0x11223344, .status = -1 };
	uint8_t buf[FERRY_PROTO_HEAD_BYTES];

	(void)state;
	ferry_proto_head_encode(&h, buf);
	assert_memory_equal(buf, bytes, sizeof(bytes));
}

static void head_is_checked(void **state)
{
	struct ferry_proto_head h;
	size_t i;

	(void)state;
	for (i = 0; i < FERRY_PROTO_HEAD_BYTES; i++)
		assert_int_equal(ferry_proto_head_decode(&h, zeros, i), -EMSGSIZE);
	assert_int_equal(decode_head(FERRY_PROTO_STATE, 0, 0, 0), 0);
	assert_int_equal(decode_head(FERRY_PROTO_STATE, 2, 0, 0), -EPROTO);
	assert_int_equal(decode_head(FERRY_PROTO_STATE, 0, 0, -1), -EPROTO);
	assert_int_equal(decode_head(FERRY_PROTO_STATE, FERRY_PROTO_REPLY, 4, 1), -EPROTO);
	assert_int_equal(decode_head(FERRY_PROTO_STATE, FERRY_PROTO_REPLY, 4, -4096), -EPROTO);
	assert_int_equal(decode_head(FERRY_PROTO_STATE, FERRY_PROTO_REPLY, 511, -4095), 0);
	assert_int_equal(decode_head(FERRY_PROTO_STATE, FERRY_PROTO_REPLY, 512, -5), -EMSGSIZE);
	assert_int_equal(decode_head(0, 0, 0, 0), -EOPNOTSUPP);
	assert_int_equal(decode_head(FERRY_PROTO_TYPE_COUNT, 0, 0, 0), -EOPNOTSUPP);
	/* An unknown request is refused by an error that is known. */
	assert_int_equal(decode_head(999, FERRY_PROTO_REPLY, 3, -EOPNOTSUPP), 0);
	/* The packet is as long as it says. */
	assert_int_equal(ferry_proto_head_decode(&h, zeros, FERRY_PROTO_HEAD_BYTES + 1), -EMSGSIZE);
	assert_int_equal(ferry_proto_head_decode(&h, zeros, FERRY_PROTO_MAX_BYTES + 1), -EMSGSIZE);
}

static void bounds_of_each_type(void **state)
{
	static const struct {
		uint16_t type, min, max, reply_min, reply_max;
		unsigned int fds_min, fds_max, reply_fds;
	} t[] = {
		{ FERRY_PROTO_HELLO, 24, 24, 32, 95, 0, 0, 0 },
		{ FERRY_PROTO_RAM, 4, 4, 33, 159, 0, 0, 1 },
		{ FERRY_PROTO_STATE, 0, 0, 4, 4, 0, 0, 0 },
		{ FERRY_PROTO_CHECK, 0, 0, 0, 0, 0, 0, 0 },
		{ FERRY_PROTO_PAUSE, 0, 0, 0, 0, 0, 0, 0 },
		{ FERRY_PROTO_RESUME, 0, 0, 0, 0, 0, 0, 0 },
		{ FERRY_PROTO_SAVE, 8, 8, 8, 8, 1, 1, 0 },
		{ FERRY_PROTO_LOAD, 0, 0, 0, 0, 1, 1, 0 },
		{ FERRY_PROTO_RUN, 0, 0, 0, 0, 0, 0, 0 },
		{ FERRY_PROTO_QUIT, 0, 0, 0, 0, 0, 0, 0 },
		{ FERRY_PROTO_DIRECT_IO, 0, 0, 4, 515, 0, 0, 0 },
		{ FERRY_PROTO_LOG_START, 0, 0, 0, 0, 1, 1, 0 },
		{ FERRY_PROTO_LOG_SYNC, 0, 0, 0, 0, 0, 0, 0 },
		{ FERRY_PROTO_LOG_STOP, 0, 0, 0, 0, 0, 0, 0 },
		{ FERRY_PROTO_THROTTLE, 4, 4, 0, 0, 0, 0, 0 },
		{ FERRY_PROTO_QUIESCE, 4, 4, 0, 0, 0, 0, 0 },
		{ FERRY_PROTO_USERFAULTFD, 4, 4, 0, 0, 0, 1, 1 },
		{ FERRY_PROTO_VIEW, 8, 8, 0, 0, 1, 1, 0 },
		{ FERRY_PROTO_RESET, 0, 0, 0, 0, 0, 0, 0 },
		{ FERRY_PROTO_MEMBER, 4, 4, 4, 4, 0, 0, 1 },
		{ FERRY_PROTO_MEMBER_RAM, 33, 159, 0, 0, 0, 0, 0 },
		{ FERRY_PROTO_JOIN, 0, 0, 0, 0, 0, 0, 0 },
		{ FERRY_PROTO_CHANNEL, 0, 0, 0, 0, 1, 1, 0 },
		{ FERRY_PROTO_ADOPT, 33, 159, 0, 0, 0, 1, 0 },
	};
	size_t i;

	(void)state;
	assert_int_equal(COUNT(t), FERRY_PROTO_TYPE_COUNT - 1);
	for (i = 0; i < COUNT(t); i++) {
		struct ferry_proto_head h = { .type = t[i].type };

		assert_int_equal(decode_head(t[i].type, 0, t[i].min, 0), 0);
		assert_int_equal(decode_head(t[i].type, 0, t[i].max, 0), 0);
		assert_int_equal(decode_head(t[i].type, 0, t[i].max + 1u, 0), -EMSGSIZE);
		if (t[i].min)
			assert_int_equal(decode_head(t[i].type, 0, t[i].min - 1u, 0), -EMSGSIZE);
		assert_int_equal(decode_head(t[i].type, 1, t[i].reply_min, 0), 0);
		assert_int_equal(decode_head(t[i].type, 1, t[i].reply_max, 0), 0);
		assert_int_equal(decode_head(t[i].type, 1, t[i].reply_max + 1u, 0), -EMSGSIZE);
		assert_int_equal(ferry_proto_min_fds(&h), t[i].fds_min);
		assert_int_equal(ferry_proto_max_fds(&h), t[i].fds_max);
		h.flags = FERRY_PROTO_REPLY;
		assert_int_equal(ferry_proto_max_fds(&h), t[i].reply_fds);
		h.status = -EIO;
		assert_int_equal(ferry_proto_max_fds(&h), 0);
		assert_string_not_equal(ferry_proto_type_name(t[i].type), "unknown");
	}
	assert_string_equal(ferry_proto_type_name(0), "unknown");
}

static void hello_round_trip(void **state)
{
	struct ferry_proto_hello h = { .version = 3, .min_version = 2, .features = 1ull << 40,
				       .role = FERRY_PROTO_ROLE_MEMBER }, back;
	uint8_t buf[FERRY_PROTO_MAX_BODY], again[FERRY_PROTO_MAX_BODY];

	(void)state;
	assert_int_equal(ferry_proto_hello_encode(&h, buf), FERRY_PROTO_HELLO_BYTES);
	assert_memory_equal(buf, "FRPT", 4);
	assert_int_equal(ferry_proto_hello_decode(&back, buf, FERRY_PROTO_HELLO_BYTES), 0);
	ferry_proto_hello_encode(&back, again);
	assert_memory_equal(buf, again, FERRY_PROTO_HELLO_BYTES);
	assert_int_equal(back.features, h.features);
	assert_int_equal(ferry_proto_hello_decode(&back, buf, 23), -EMSGSIZE);
	buf[20] = 1; /* reserved */
	assert_int_equal(ferry_proto_hello_decode(&back, buf, 24), -EPROTO);
	buf[20] = 0;
	buf[16] = 3; /* role */
	assert_int_equal(ferry_proto_hello_decode(&back, buf, 24), -EPROTO);
	buf[16] = 1;
	buf[6] = 0; /* min_version */
	assert_int_equal(ferry_proto_hello_decode(&back, buf, 24), -EPROTO);
	buf[6] = 4; /* above version */
	assert_int_equal(ferry_proto_hello_decode(&back, buf, 24), -EPROTO);
	buf[6] = 1;
	buf[0] ^= 1;
	assert_int_equal(ferry_proto_hello_decode(&back, buf, 24), -EPROTO);
}

static void versions_must_meet(void **state)
{
	(void)state;
	assert_int_equal(ferry_proto_agree(1, 1, 0), 0);
	assert_int_equal(ferry_proto_agree(9, 1, 0xffffffff), 0);
	assert_int_equal(ferry_proto_agree(9, 2, 0), -EPROTONOSUPPORT);
	assert_int_equal(ferry_proto_agree(0, 0, 0), -EPROTONOSUPPORT);
	assert_int_equal(ferry_proto_agree(1, 1, 1ull << 32), -EPROTONOSUPPORT);
}

static void welcome_round_trip(void **state)
{
	struct ferry_proto_welcome w = { .version = 1, .min_version = 1, .has = 3, .blocks = 256,
					 .members = 16, .kind = "vmm/1" }, back;
	uint8_t buf[FERRY_PROTO_MAX_BODY], again[FERRY_PROTO_MAX_BODY];
	size_t len;

	(void)state;
	len = ferry_proto_welcome_encode(&w, buf);
	assert_int_equal(len, 37);
	assert_int_equal(ferry_proto_welcome_decode(&back, buf, len), 0);
	assert_int_equal(ferry_proto_welcome_encode(&back, again), len);
	assert_memory_equal(buf, again, len);
	assert_string_equal(back.kind, w.kind);
	assert_int_equal(ferry_proto_welcome_decode(&back, buf, len - 1), -EMSGSIZE);
	assert_int_equal(ferry_proto_welcome_decode(&back, buf, 31), -EMSGSIZE);
	buf[33] = 0x7f;
	assert_int_equal(ferry_proto_welcome_decode(&back, buf, len), -EPROTO);
	w.blocks = 257;
	assert_int_equal(ferry_proto_welcome_decode(
		&back, buf, ferry_proto_welcome_encode(&w, buf)), -EPROTO);
	w.blocks = 0;
	assert_int_equal(ferry_proto_welcome_decode(
		&back, buf, ferry_proto_welcome_encode(&w, buf)), -EPROTO);
	w.blocks = 1;
	w.members = 17;
	assert_int_equal(ferry_proto_welcome_decode(
		&back, buf, ferry_proto_welcome_encode(&w, buf)), -EPROTO);
	w.members = 0;
	/* Who takes over RAM has none yet. */
	w.has = FERRY_PROTO_HAS_ADOPT;
	assert_int_equal(ferry_proto_welcome_decode(
		&back, buf, ferry_proto_welcome_encode(&w, buf)), -EPROTO);
	w.blocks = 0;
	assert_int_equal(ferry_proto_welcome_decode(
		&back, buf, ferry_proto_welcome_encode(&w, buf)), 0);
	w.blocks = 1;
	w.has = 0x80;
	assert_int_equal(ferry_proto_welcome_decode(
		&back, buf, ferry_proto_welcome_encode(&w, buf)), -EPROTO);
	/* A member has no kind, a VMM has one. */
	w.has = FERRY_PROTO_IS_MEMBER;
	assert_int_equal(ferry_proto_welcome_decode(
		&back, buf, ferry_proto_welcome_encode(&w, buf)), -EPROTO);
	w.kind[0] = 0;
	assert_int_equal(ferry_proto_welcome_decode(
		&back, buf, ferry_proto_welcome_encode(&w, buf)), 0);
}

static int ram_code(struct ferry_proto_ram ram)
{
	uint8_t buf[FERRY_PROTO_MAX_BODY];
	struct ferry_proto_ram back;

	return ferry_proto_ram_decode(&back, buf, ferry_proto_ram_encode(&ram, buf));
}

static void ram_round_trip(void **state)
{
	const struct ferry_proto_ram good = { .bytes = 1 << 21, .fd_offset = 4096,
					      .addr = 0x7f0000000000, .page_bytes = 4096,
					      .name = "ram" };
	struct ferry_proto_ram ram = good, back;
	uint8_t buf[FERRY_PROTO_MAX_BODY], again[FERRY_PROTO_MAX_BODY];
	size_t len;

	(void)state;
	len = ferry_proto_ram_encode(&ram, buf);
	assert_int_equal(len, 35);
	assert_int_equal(ferry_proto_ram_decode(&back, buf, len), 0);
	assert_int_equal(ferry_proto_ram_encode(&back, again), len);
	assert_memory_equal(buf, again, len);
	assert_string_equal(back.name, ram.name);
	assert_int_equal(ferry_proto_ram_decode(&back, buf, len - 1), -EMSGSIZE);
	assert_int_equal(ferry_proto_ram_decode(&back, buf, 31), -EMSGSIZE);
#define BAD(field, value) do { ram = good; ram.field = value; \
		assert_int_equal(ram_code(ram), -EPROTO); } while (0)
	BAD(bytes, 0);
	BAD(bytes, 4097);
	BAD(bytes, (1ull << 46) + 4096);
	BAD(fd_offset, 1);
	BAD(fd_offset, (1ull << 46) + 4096);
	BAD(addr, 0);
	BAD(addr, 4095);
	BAD(addr, UINT64_MAX - 4095);
	BAD(page_bytes, 2048);
	BAD(page_bytes, 12288);
	BAD(page_bytes, 1u << 31);
	BAD(page_bytes, 8192); /* of the offset */
	BAD(name[0], 0);
	BAD(name[1], '\n');
#undef BAD
}

static void view_round_trip(void **state)
{
	struct ferry_proto_view v = { .block = 255, .map = FERRY_PROTO_MAP_ALL }, back;
	uint8_t buf[FERRY_PROTO_MAX_BODY];

	(void)state;
	assert_int_equal(ferry_proto_view_encode(&v, buf), 8);
	assert_int_equal(ferry_proto_view_decode(&back, buf, 8), 0);
	assert_memory_equal(&v, &back, sizeof(v));
	assert_int_equal(ferry_proto_view_decode(&back, buf, 7), -EMSGSIZE);
	v.block = 256;
	ferry_proto_view_encode(&v, buf);
	assert_int_equal(ferry_proto_view_decode(&back, buf, 8), -EPROTO);
	v.block = 0;
	v.map = FERRY_PROTO_MAP_ALL + 1;
	ferry_proto_view_encode(&v, buf);
	assert_int_equal(ferry_proto_view_decode(&back, buf, 8), -EPROTO);
}

static void numbers_and_texts(void **state)
{
	uint8_t buf[8];
	char text[6];
	uint64_t big;
	uint32_t v;

	(void)state;
	ferry_proto_u32_encode(0x01020304, buf);
	assert_int_equal(buf[0], 4);
	assert_int_equal(ferry_proto_u32_decode(&v, buf, 4), 0);
	assert_int_equal(v, 0x01020304);
	assert_int_equal(ferry_proto_u32_decode(&v, buf, 3), -EMSGSIZE);
	ferry_proto_u64_encode(1ull << 56, buf);
	assert_int_equal(buf[7], 1);
	assert_int_equal(ferry_proto_u64_decode(&big, buf, 8), 0);
	assert_int_equal(big, 1ull << 56);
	assert_int_equal(ferry_proto_u64_decode(&big, buf, 7), -EMSGSIZE);
	ferry_proto_text(text, sizeof(text), (const uint8_t *)"a\x1b[0mb", 6);
	assert_string_equal(text, "a?[0m");
	ferry_proto_text(text, sizeof(text), zeros, 0);
	assert_string_equal(text, "");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(head_bytes_are_as_documented),
		cmocka_unit_test(head_is_checked),
		cmocka_unit_test(bounds_of_each_type),
		cmocka_unit_test(hello_round_trip),
		cmocka_unit_test(versions_must_meet),
		cmocka_unit_test(welcome_round_trip),
		cmocka_unit_test(ram_round_trip),
		cmocka_unit_test(view_round_trip),
		cmocka_unit_test(numbers_and_texts),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
