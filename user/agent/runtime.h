/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_AGENT_RUNTIME_H
#define FERRY_AGENT_RUNTIME_H

#include <stdbool.h>

#include "base/error.h"

/*
 * The runtime folder: $FERRY_RUNTIME_DIR, else /run/ferry, else
 * $XDG_RUNTIME_DIR/ferry. Of each migration it holds ID.json (the record),
 * ID.sock (the control socket while a process serves it) and ID.lock; of a guest that
 * runs while memory is missing, ID.layout and ID.placed too.
 */
#define FERRY_RUNTIME_PATH 200

/** ferry_runtime_dir() - its path; made if missing (0700). Return: 0 or -errno with a text. */
int ferry_runtime_dir(char path[FERRY_RUNTIME_PATH], struct ferry_error *err);

/** ferry_runtime_path() - path of "ID.SUFFIX" in it. */
int ferry_runtime_path(const char *id, const char *suffix, char path[FERRY_RUNTIME_PATH],
		       struct ferry_error *err);

/** ferry_runtime_default_id() - the id a guest's path gives; @suffix "-in" or "". */
int ferry_runtime_default_id(const char *guest, const char *suffix, char *id, unsigned int room,
			     struct ferry_error *err);

/** ferry_runtime_check_id() - letters, digits, '.', '_', '-'; no leading dot or dash; at most 63. */
int ferry_runtime_check_id(const char *id, struct ferry_error *err);

/**
 * ferry_runtime_lock() - take the lock of an id; held as long as any copy of it is open
 *
 * Waits a second for a process that was killed and is not gone yet.
 *
 * Return: a descriptor, -EBUSY a process serves this id, -errno.
 */
int ferry_runtime_lock(const char *id, struct ferry_error *err);

/** ferry_runtime_hang_up() - remove the control socket; whoever does it holds the lock. */
void ferry_runtime_hang_up(const char *id);

/**
 * ferry_runtime_kept() - a file that outlives all processes of the migration
 * @name: "placed" or "layout"
 * @fresh: make an empty one in the place of what there is
 *
 * Return: a descriptor, -ENOENT, -errno.
 */
int ferry_runtime_kept(const char *id, const char *name, bool fresh);

/** ferry_runtime_forget() - remove that file; NULL: all there may be of this id. */
void ferry_runtime_forget(const char *id, const char *name);

#endif
