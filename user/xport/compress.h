/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_XPORT_COMPRESS_H
#define FERRY_XPORT_COMPRESS_H

#include <stddef.h>
#include <stdint.h>

#include "wire/wire.h"

/*
 * Runs of pages to fewer bytes and back: a zstd frame or an LZ4 block a run, each by
 * itself. A context belongs to one thread and works in one direction.
 */
struct ferry_compress;

enum ferry_compress_way { FERRY_COMPRESS_PACK, FERRY_COMPRESS_UNPACK };

/*
 * So many pages at most become one extent: beyond 128 KiB the ratio gains next to nothing
 * (make bench-compress), and what is read, packed and checked stays within the L2 cache.
 */
#define FERRY_COMPRESS_PAGES 32u

/**
 * ferry_compress_create() - a context
 * @codec: enum ferry_wire_codec; *@out is NULL for FERRY_WIRE_CODEC_RAW
 *
 * Return: 0, -EINVAL no such codec, -ENOMEM.
 */
int ferry_compress_create(unsigned int codec, enum ferry_compress_way way,
			  struct ferry_compress **out);

/** ferry_compress_free() - NULL is fine. */
void ferry_compress_free(struct ferry_compress *c);

/**
 * ferry_compress_pack() - make @bytes at @from smaller
 * @to: has room for @bytes
 *
 * Where data proves incompressible again and again, only a sample of it is still tried.
 *
 * Return: bytes at @to; 0: it is not worth it, send them as they are.
 */
size_t ferry_compress_pack(struct ferry_compress *c, const void *from, size_t bytes, void *to);

/**
 * ferry_compress_unpack() - the reverse, of bytes that nobody vouches for
 * @want: how many bytes must come out; @to has room for exactly those
 *
 * Nothing beyond @to + @want is written and nothing is allocated by what the bytes say.
 *
 * Return: 0, or -EBADMSG when they are not one whole frame or block of that many bytes.
 */
int ferry_compress_unpack(struct ferry_compress *c, const void *from, size_t bytes, void *to,
			  size_t want);

#endif
