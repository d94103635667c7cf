/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_FAULT_KEEP_H
#define FERRY_FAULT_KEEP_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "fault/uffd.h"
#include "ram/ram.h"

/*
 * Guest RAM shared with a process that must be able to be undone: each page that it touches
 * is copied to a file before it can see it, and the file puts all of them back.
 */
struct ferry_keep;

struct ferry_keep_params {
	const struct ferry_ram *ram;	   /* blocks with open files */
	struct ferry_fault_mapper mapper;  /* that process; descriptor and table stay the caller's */
	const char *path;		   /* of the file; must not be there */
	/* A page cannot be kept, so the process waits for ever: end it. In a thread of ours. */
	void (*stuck)(void *ctx);
	void *ctx;
};

/**
 * ferry_keep_start() - arm the mapping and begin
 *
 * Pages that are mapped there already are not seen: see ferry_fault_uffd_assert_empty().
 * Return: 0; -errno with nothing armed and no file.
 */
int ferry_keep_start(const struct ferry_keep_params *params, struct ferry_keep **out,
		     struct ferry_error *err);

/** ferry_keep_pages() - how many so far. */
uint64_t ferry_keep_pages(struct ferry_keep *k);

/** ferry_keep_failed() - why a page could not be kept. Return: 0 or -errno. */
int ferry_keep_failed(struct ferry_keep *k, struct ferry_error *err);

/**
 * ferry_keep_stop() - end the thread, free; NULL is fine. The file stays.
 * @release: also disarm: from now on the process touches what it likes. Otherwise who
 *	     touches a page waits as long as the userfaultfd is open.
 */
void ferry_keep_stop(struct ferry_keep *k, bool release);

/**
 * ferry_keep_put_back() - write every kept page back into @ram, then remove the file
 *
 * Only while nobody else writes there. Can be repeated until it has succeeded; once the file
 * has gone it does nothing.
 * Return: 0; -EPROTO it is no file of ours or of another RAM, -errno.
 */
int ferry_keep_put_back(const char *path, const struct ferry_ram *ram, struct ferry_error *err);

/** ferry_keep_drop() - remove the file: what was touched is wanted. Fine if there is none. */
void ferry_keep_drop(const char *path);

#endif
