// SPDX-License-Identifier: GPL-2.0-or-later
#include "xport/packet.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "ram/hash.h"
#include "ram/ram.h"
#include "xport/compress.h"

int ferry_packet_init(struct ferry_packet *p, uint8_t codec, bool checksum)
{
	int r;

	memset(p, 0, sizeof(*p));
	p->codec = codec;
	p->checksum = checksum;
	r = ferry_compress_create(codec, FERRY_COMPRESS_PACK, &p->compress);
	if (r || !p->compress)
		return r;
	p->packed = malloc(FERRY_WIRE_MAX_PACKET_PAGES * FERRY_PAGE_SIZE);
	return p->packed ? 0 : -ENOMEM;
}

void ferry_packet_free(struct ferry_packet *p)
{
	ferry_compress_free(p->compress);
	p->compress = NULL;
	free(p->packed);
	p->packed = NULL;
}

void ferry_packet_begin(struct ferry_packet *p, uint16_t flags, uint32_t round)
{
	p->head = (struct ferry_wire_packet){
		.flags = flags,
		.round = round,
		.sequence = p->sequence++,
	};
	p->normal_pages = 0;
	p->zero_pages = 0;
}

void ferry_packet_add(struct ferry_packet *p, unsigned int block, uint64_t first_page,
		      uint64_t pages, const uint8_t *data)
{
	enum ferry_wire_extent_kind kind = data ? FERRY_WIRE_EXTENT_NORMAL : FERRY_WIRE_EXTENT_ZERO;
	struct ferry_wire_extent *last = &p->extents[p->head.extents];
	uint64_t most = UINT32_MAX;

	if (data)
		p->normal_pages += pages;
	else
		p->zero_pages += pages;
	/* A wrong checksum should name few pages; packing wants to stay in the cache. */
	if (data && (p->compress || p->checksum))
		most = FERRY_COMPRESS_PAGES;
	if (p->head.extents) {
		const uint8_t *before = p->data[p->head.extents - 1];

		last--;
		if (last->block == block && last->kind == kind &&
		    last->first_page + last->pages == first_page && pages + last->pages <= most &&
		    (!data || before + ((size_t)last->pages << FERRY_PAGE_SHIFT) == data)) {
			last->pages += (uint32_t)pages;
			return;
		}
		last++;
	}
	*last = (struct ferry_wire_extent){
		.block = (uint16_t)block,
		.kind = (uint8_t)kind,
		.pages = (uint32_t)pages,
		.first_page = first_page,
	};
	p->data[p->head.extents++] = data;
}

static void add_data(struct ferry_packet *p, const uint8_t *data, size_t len)
{
	struct iovec *last = &p->iov[p->iov_count - 1];

	if (p->iov_count > 1 && (const uint8_t *)last->iov_base + last->iov_len == data) {
		last->iov_len += len;
		return;
	}
	p->iov[p->iov_count++] = (struct iovec){ .iov_base = (void *)(uintptr_t)data,
						 .iov_len = len };
}

void ferry_packet_finish(struct ferry_packet *p)
{
	size_t head_bytes = FERRY_WIRE_PACKET_BYTES;
	uint8_t *packed = p->packed;
	unsigned int i;

	p->iov_count = 1; /* the head's, filled in last */
	for (i = 0; i < p->head.extents; i++) {
		struct ferry_wire_extent *e = &p->extents[i];
		const uint8_t *data = p->data[i];
		size_t n = 0;

		if (p->checksum)
			e->checksum = ferry_hash_extent(e->block, e->first_page, e->pages, data);
		if (data)
			e->data_bytes = e->pages * (uint32_t)FERRY_PAGE_SIZE;
		if (data && p->compress)
			n = ferry_compress_pack(p->compress, data, e->data_bytes, packed);
		if (n) {
			e->codec = p->codec;
			e->data_bytes = (uint32_t)n;
			data = packed;
			packed += n;
		}
		if (data)
			add_data(p, data, e->data_bytes);
		p->head.data_bytes += e->data_bytes;
		ferry_wire_extent_encode(e, p->encoded + head_bytes);
		head_bytes += FERRY_WIRE_EXTENT_BYTES;
	}
	ferry_wire_packet_encode(&p->head, p->encoded);
	p->iov[0] = (struct iovec){ .iov_base = p->encoded, .iov_len = head_bytes };
	p->bytes = head_bytes + p->head.data_bytes;
}
