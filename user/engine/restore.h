/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_ENGINE_RESTORE_H
#define FERRY_ENGINE_RESTORE_H

#include "base/error.h"
#include "engine/job.h"
#include "guest/guest.h"
#include "ram/ram.h"
#include "store/reader.h"

/**
 * ferry_restore_match() - is this the VMM that the file's guest fits into?
 *
 * Brings the blocks of @ram into the order they have in the file.
 * Return: 0; -EINVAL with what differs and what to do.
 */
int ferry_restore_match(const struct ferry_store_file *file, const struct ferry_guest *guest,
			struct ferry_ram *ram, struct ferry_error *err);

/** ferry_restore_put() - pages of an extent into the guest's memory file. Return: 0 or -errno. */
int ferry_restore_put(const struct ferry_ram *ram, unsigned int block, uint64_t extent,
		      unsigned int first, unsigned int pages, const uint8_t *buf,
		      struct ferry_error *err);

#endif
