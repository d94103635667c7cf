/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_ENGINE_SPILL_H
#define FERRY_ENGINE_SPILL_H

#include <stdint.h>

#include "engine/incoming.h"
#include "engine/job.h"
#include "ram/bitmap.h"
#include "ram/ram.h"

/*
 * Postcopy without a link: the pages that may be missing at the destination, in a snapshot
 * file that has nothing else (FERRY_STORE_FEATURE_PARTIAL). Its uuid is the migration's.
 */

/**
 * ferry_spill_write() - write these pages of the stopped guest to a file
 * @kind: ferry_guest_kind()
 * @pages: how many it has
 *
 * Return: 0: it is there, for good; -errno nothing is.
 */
int ferry_spill_write(struct ferry_job *job, const struct ferry_ram *ram, const char *kind,
		      const struct ferry_bitmap *left, const char *path, uint64_t *pages,
		      struct ferry_error *err);

/**
 * ferry_spill_read() - take in what the destination lacks, while the guest runs
 * @pages: how many of them it lacked
 *
 * Return: 0; -EINVAL the file is of another migration or another kind; what ferry_store_open()
 * and ferry_store_read() say: the pages taken in before that stay.
 */
int ferry_spill_read(struct ferry_incoming *in, const char *path, uint64_t *pages,
		     struct ferry_error *err);

#endif
