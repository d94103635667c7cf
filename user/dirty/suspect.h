/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_DIRTY_SUSPECT_H
#define FERRY_DIRTY_SUSPECT_H

#include <stdint.h>

#include "base/error.h"
#include "ram/bitmap.h"
#include "ram/ram.h"

/*
 * Pages under direct I/O are marked dirty when they are pinned, and may be
 * collected and re-protected before the DMA lands: a tracker that sees no
 * pinned DMA then reports nothing more. Compensation: every page collected
 * while direct I/O is possible stays suspect, with the hash of the bytes that
 * were sent last; once no DMA can be in flight (guest stopped, or after a
 * barrier) the suspects whose contents differ from that hash are dirty.
 */
struct ferry_suspect;

int ferry_suspect_create(const struct ferry_ram *ram, struct ferry_suspect **out);
void ferry_suspect_free(struct ferry_suspect *s);

/** ferry_suspect_add() - the pages of a collect() become suspect. One caller at a time. */
void ferry_suspect_add(struct ferry_suspect *s, const struct ferry_bitmap *collected);

/**
 * ferry_suspect_sent() - remember what was sent
 * @hash: ferry_hash_page() of the very bytes sent, or of zeros for a page sent as zero
 *
 * Any thread; two threads never send the same page of one round.
 */
void ferry_suspect_sent(struct ferry_suspect *s, unsigned int block, uint64_t page, uint64_t hash);

/** ferry_suspect_pages() - how many pages are suspect now. */
uint64_t ferry_suspect_pages(const struct ferry_suspect *s);

/**
 * ferry_suspect_settle() - no DMA is in flight: find the suspects that changed, forget them all
 * @changed: OR'ed with the pages whose contents are not what was sent last (or that
 *           were never sent since they became suspect); holes compare as zeros and are not
 *           allocated by looking
 * @checked: number of suspects looked at
 * @found: number of pages added to @changed
 *
 * Return: 0 or -errno.
 */
int ferry_suspect_settle(struct ferry_suspect *s, struct ferry_bitmap *changed, uint64_t *checked,
			 uint64_t *found);

#endif
