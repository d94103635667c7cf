/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_STORE_ASIDE_H
#define FERRY_STORE_ASIDE_H

#include <limits.h>
#include <stdbool.h>

#include "base/error.h"

/*
 * A file that is written where nobody sees it and gets its name when it is complete. Where
 * the file system knows files without a name (O_TMPFILE) nothing is left whatever dies;
 * elsewhere it is called ".NAME.ID.part" in the same folder until then.
 */
struct ferry_store_aside {
	char path[PATH_MAX]; /* the name it is to have */
	char part[PATH_MAX]; /* the one it has meanwhile; "" none */
	char id[64];
	int dir_fd;
	int fd;
};

/**
 * ferry_store_aside_open() - an empty file beside @path
 * @id: tells files of the same name apart
 *
 * Refuses a folder, a device, and any file there that is no snapshot and not empty: only an
 * older snapshot is replaced.
 * Return: 0; -EEXIST something else has that name; -errno.
 */
int ferry_store_aside_open(struct ferry_store_aside *a, const char *path, const char *id,
			   struct ferry_error *err);

/**
 * ferry_store_aside_publish() - the file, synced by the caller, gets its name, durably
 * @step: called with "file-named" between the name and the folder's sync; may be NULL
 */
int ferry_store_aside_publish(struct ferry_store_aside *a,
			      int (*step)(void *ctx, const char *stage, struct ferry_error *err),
			      void *ctx, struct ferry_error *err);

/** ferry_store_aside_close() - close; what was not published is gone. */
void ferry_store_aside_close(struct ferry_store_aside *a);

/** ferry_store_aside_remove() - what a process that died left of @path under @id, if anything. */
void ferry_store_aside_remove(const char *path, const char *id);

#endif
