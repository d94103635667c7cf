// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Bytes of a peer that are said to be a compressed run of pages: byte 0 says which codec, byte 1
 * how many pages. They unpack to exactly those or are refused; and what we pack ourselves comes
 * back as it was.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "xport/compress.h"

#define PAGE 4096u
#define MAX_PAGES FERRY_COMPRESS_PAGES

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(int ok)
{
	if (!ok)
		abort();
}

static void round_trip(unsigned int codec, const uint8_t *data, size_t size)
{
	static uint8_t plain[MAX_PAGES * PAGE], packed[MAX_PAGES * PAGE], back[MAX_PAGES * PAGE];
	size_t bytes = (size / PAGE + 1) * PAGE, n;
	struct ferry_compress *pack, *unpack;

	if (bytes > sizeof(plain))
		return;
	memset(plain, 0, bytes);
	memcpy(plain, data, size);
	if (ferry_compress_create(codec, FERRY_COMPRESS_PACK, &pack))
		return;
	if (!ferry_compress_create(codec, FERRY_COMPRESS_UNPACK, &unpack)) {
		n = ferry_compress_pack(pack, plain, bytes, packed);
		must(n < bytes);
		if (n) {
			must(!ferry_compress_unpack(unpack, packed, n, back, bytes));
			must(!memcmp(plain, back, bytes));
		}
		ferry_compress_free(unpack);
	}
	ferry_compress_free(pack);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct ferry_compress *contexts[FERRY_WIRE_CODEC_COUNT];
	unsigned int codec;
	size_t want, bytes;
	uint8_t *from, *to;

	if (size < 3)
		return 0;
	codec = data[0] % 2 + 1;
	want = (data[1] % MAX_PAGES + 1) * PAGE;
	data += 2;
	size -= 2;
	round_trip(codec, data, size);
	/* One for all inputs, as a channel has it for all packets. */
	if (!contexts[codec] &&
	    ferry_compress_create(codec, FERRY_COMPRESS_UNPACK, &contexts[codec]))
		return 0;
	/* The wire lets through less than the pages take. */
	bytes = size < want ? size : want - 1;
	/* Exactly as long as they may be used: the sanitizer sees one byte too many. */
	from = malloc(bytes);
	to = malloc(want);
	if (from && to) {
		memcpy(from, data, bytes);
		if (ferry_compress_unpack(contexts[codec], from, bytes, to, want) == 0) {
			size_t i, sum = 0;

			for (i = 0; i < want; i++)
				sum += to[i];
			must(sum <= want * 255);
		}
	}
	free(from);
	free(to);
	return 0;
}
