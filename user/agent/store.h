/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_AGENT_STORE_H
#define FERRY_AGENT_STORE_H

#include "base/error.h"
#include "engine/record.h"

/** ferry_store_save() - write a record beside, fsync, rename over, fsync the folder. */
int ferry_store_save(const struct ferry_record *record, struct ferry_error *err);

/**
 * ferry_store_load() - read the record of @id
 * @record: freed by ferry_record_free()
 *
 * Return: 0, -ENOENT no such id (says how to list them), -EPROTO not a sane record.
 */
int ferry_store_load(const char *id, struct ferry_record *record, struct ferry_error *err);

/** ferry_store_list() - call @each with every id that has a record, in order of names. */
int ferry_store_list(void (*each)(void *ctx, const char *id), void *ctx, struct ferry_error *err);

/** ferry_store_claimed() - Return: 0; -EBUSY another migration than @id, not over, is of @vmm. */
int ferry_store_claimed(const char *id, pid_t vmm, struct ferry_error *err);

struct json_object;

/** ferry_store_stats() - add the numbers of a migration to an object, as §JSON names them. */
void ferry_store_stats(struct json_object *to, const struct ferry_stats *stats);

/**
 * ferry_store_unserved() - what to tell somebody who wants something of a process that is not there
 *
 * Return: -ECONNREFUSED with a text: that it is over, or what to type; -errno, above all -ENOENT
 * such an id is not known.
 */
int ferry_store_unserved(const char *id, struct ferry_error *err);

#endif
