/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_DIRTY_HUGE_H
#define FERRY_DIRTY_HUGE_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

/**
 * ferry_huge_possible() - may the kernel back a memory file with transparent huge pages?
 * @fd: the memory file
 * @pid: a process that sees its mount, if ours does not (the VMM)
 * @why: filled when it may: the setting that allows it
 *
 * Splitting or collapsing a huge page drops page table entries of a file
 * mapping, and what they knew of written pages with them.
 */
bool ferry_huge_possible(int fd, pid_t pid, char *why, size_t why_len);

#endif
