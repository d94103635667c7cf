// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The port's codec: what is accepted encodes to the same bytes again, and is within its
 * bounds. The first byte chooses the body, the rest is it; or a whole packet.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "port/proto.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(int good)
{
	if (!good)
		abort();
}

static void fuzz_head(const uint8_t *data, size_t size)
{
	uint8_t again[FERRY_PROTO_HEAD_BYTES];
	struct ferry_proto_head h;

	if (ferry_proto_head_decode(&h, data, size))
		return;
	must(h.length <= FERRY_PROTO_MAX_BODY && size == FERRY_PROTO_HEAD_BYTES + h.length);
	must(h.status <= 0 && (!h.status || h.length <= FERRY_PROTO_MAX_TEXT));
	must(ferry_proto_min_fds(&h) <= ferry_proto_max_fds(&h) && ferry_proto_max_fds(&h) <= 1);
	must(*ferry_proto_type_name(h.type));
	ferry_proto_head_encode(&h, again);
	must(!memcmp(again, data, sizeof(again)));
}

static void fuzz_body(uint8_t which, const uint8_t *data, size_t size)
{
	uint8_t again[FERRY_PROTO_MAX_BODY];
	struct ferry_proto_welcome w;
	struct ferry_proto_hello h;
	struct ferry_proto_view v;
	struct ferry_proto_ram r;
	size_t len = 0;
	int bad = 1;

	switch (which % 4) {
	case 0:
		bad = ferry_proto_hello_decode(&h, data, size);
		len = bad ? 0 : ferry_proto_hello_encode(&h, again);
		break;
	case 1:
		bad = ferry_proto_welcome_decode(&w, data, size);
		len = bad ? 0 : ferry_proto_welcome_encode(&w, again);
		break;
	case 2:
		bad = ferry_proto_ram_decode(&r, data, size);
		len = bad ? 0 : ferry_proto_ram_encode(&r, again);
		must(bad || r.addr + r.bytes > r.addr);
		break;
	case 3:
		bad = ferry_proto_view_decode(&v, data, size);
		len = bad ? 0 : ferry_proto_view_encode(&v, again);
		break;
	}
	must(bad || (len == size && !memcmp(again, data, len)));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char text[64];

	fuzz_head(data, size);
	if (!size)
		return 0;
	ferry_proto_text(text, sizeof(text), data, size);
	must(strlen(text) < sizeof(text));
	fuzz_body(data[0], data + 1, size - 1);
	return 0;
}
