// SPDX-License-Identifier: GPL-2.0-or-later
#include "xport/compress.h"

#include <endian.h>
#include <errno.h>
#include <lz4.h>
#include <stdlib.h>
#include <string.h>
#include <zstd.h>

/* The fastest of zstd's ordinary levels: memory is copied once, not stored for years. */
#define ZSTD_LEVEL 1

/* Less gain than an eighth is not worth the time it takes to unpack. */
#define MIN_GAIN 8u

/* After so many runs in vain the guest's memory is taken for random or encrypted ... */
#define PATIENCE 4u
/* ... and one of so many is tried, which finds out when that ends: a sixteenth of the cost. */
#define SAMPLE 16u

struct ferry_compress {
	unsigned int codec;
	unsigned int in_vain; /* runs that did not get smaller, one after the other */
	unsigned int skipped; /* since the last one that was tried */
	ZSTD_CCtx *pack;
	ZSTD_DCtx *unpack;
	void *lz4; /* its hash table */
};

int ferry_compress_create(unsigned int codec, enum ferry_compress_way way,
			  struct ferry_compress **out)
{
	struct ferry_compress *c;

	*out = NULL;
	if (codec == FERRY_WIRE_CODEC_RAW)
		return 0;
	if (codec != FERRY_WIRE_CODEC_ZSTD && codec != FERRY_WIRE_CODEC_LZ4)
		return -EINVAL;
	c = calloc(1, sizeof(*c));
	if (!c)
		return -ENOMEM;
	c->codec = codec;
	if (codec == FERRY_WIRE_CODEC_ZSTD && way == FERRY_COMPRESS_PACK)
		c->pack = ZSTD_createCCtx();
	else if (codec == FERRY_WIRE_CODEC_ZSTD)
		c->unpack = ZSTD_createDCtx();
	else if (way == FERRY_COMPRESS_PACK)
		c->lz4 = malloc((size_t)LZ4_sizeofState());
	if (!c->pack && !c->unpack && !c->lz4 &&
	    (codec == FERRY_WIRE_CODEC_ZSTD || way == FERRY_COMPRESS_PACK)) {
		free(c);
		return -ENOMEM;
	}
	*out = c;
	return 0;
}

void ferry_compress_free(struct ferry_compress *c)
{
	if (!c)
		return;
	ZSTD_freeCCtx(c->pack);
	ZSTD_freeDCtx(c->unpack);
	free(c->lz4);
	free(c);
}

size_t ferry_compress_pack(struct ferry_compress *c, const void *from, size_t bytes, void *to)
{
	size_t room = bytes - bytes / MIN_GAIN, n;

	if (c->in_vain >= PATIENCE && ++c->skipped < SAMPLE)
		return 0;
	c->skipped = 0;
	if (c->codec == FERRY_WIRE_CODEC_ZSTD) {
		n = ZSTD_compressCCtx(c->pack, to, room, from, bytes, ZSTD_LEVEL);
		if (ZSTD_isError(n))
			n = 0;
	} else {
		n = (size_t)LZ4_compress_fast_extState(c->lz4, from, to, (int)bytes, (int)room, 1);
	}
	c->in_vain = n ? 0 : c->in_vain + 1;
	return n;
}

static int unpack_zstd(ZSTD_DCtx *ctx, const void *from, size_t bytes, void *to, size_t want)
{
	uint32_t magic;
	size_t n;

	/* The library would also take formats of its youth, empty frames, and several in a row. */
	if (bytes < sizeof(magic))
		return -EBADMSG;
	memcpy(&magic, from, sizeof(magic));
	if (le32toh(magic) != ZSTD_MAGICNUMBER || ZSTD_getFrameContentSize(from, bytes) != want ||
	    ZSTD_findFrameCompressedSize(from, bytes) != bytes)
		return -EBADMSG;
	n = ZSTD_decompressDCtx(ctx, to, want, from, bytes);
	return n == want ? 0 : -EBADMSG;
}

int ferry_compress_unpack(struct ferry_compress *c, const void *from, size_t bytes, void *to,
			  size_t want)
{
	if (c->codec == FERRY_WIRE_CODEC_ZSTD)
		return unpack_zstd(c->unpack, from, bytes, to, want);
	return LZ4_decompress_safe(from, to, (int)bytes, (int)want) == (int)want ? 0 : -EBADMSG;
}
