/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_ENGINE_FILE_H
#define FERRY_ENGINE_FILE_H

#include <stdbool.h>

#include "engine/job.h"

/*
 * Guests saved to a file and restored from one. Their records say so by their uri,
 * "file:" and an absolute path; a save is the source's side, a restore the destination's.
 */
#define FERRY_FILE_SCHEME "file:"

/** ferry_file_path() - the file of a save's or restore's record; NULL of a migration's. */
const char *ferry_file_path(const struct ferry_record *record);

/** ferry_file_where_before() - where the guest is before anything happened: of a restore, nowhere. */
enum ferry_where ferry_file_where_before(const struct ferry_record *record);

/** ferry_file_uri() - absolute, for the record. Return: 0; -ENAMETOOLONG, -errno with a text. */
int ferry_file_uri(const char *path, char uri[FERRY_SPEC_MAX], struct ferry_error *err);

/* The ways to run them, as ferry_source_run() and the others of job.h. */
void ferry_save_run(struct ferry_job *job, struct ferry_outcome *out);
void ferry_save_recover(struct ferry_job *job, struct ferry_outcome *out);
void ferry_restore_run(struct ferry_job *job, struct ferry_outcome *out);
void ferry_restore_recover(struct ferry_job *job, struct ferry_outcome *out);

#endif
