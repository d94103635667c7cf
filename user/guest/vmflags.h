/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_GUEST_VMFLAGS_H
#define FERRY_GUEST_VMFLAGS_H

#include <stdbool.h>
#include <stddef.h>

/*
 * The flags of a mapping as VmFlags of /proc/PID/smaps tells them: words of two letters.
 * Pure: how a tracked view of guest RAM differs from the plain mapping it stands for,
 * and which system calls make a new mapping like an old one.
 */
#define FERRY_VMFLAGS_MAX 48
#define FERRY_VMFLAGS_TEXT (FERRY_VMFLAGS_MAX * 3)

struct ferry_vmflags {
	unsigned int count;
	char words[FERRY_VMFLAGS_MAX][3]; /* sorted, each once */
};

/** struct ferry_vmflags_call - one system call with a mapping's address and length before @arg */
struct ferry_vmflags_call {
	long nr; /* madvise, mlock, mlock2 or munlock */
	int arg;
};

#define FERRY_VMFLAGS_CALLS 8

/** ferry_vmflags_parse() - Return: 0, or -EINVAL for what is no list of two-letter words. */
int ferry_vmflags_parse(const char *text, struct ferry_vmflags *flags);

/** ferry_vmflags_format() - the text of it, at most FERRY_VMFLAGS_TEXT with the NUL. */
void ferry_vmflags_format(const struct ferry_vmflags *flags, char *text, size_t room);

bool ferry_vmflags_has(const struct ferry_vmflags *flags, const char *word);

/** ferry_vmflags_same() - equal, but for what the kernel itself notes about writes (sd)? */
bool ferry_vmflags_same(const struct ferry_vmflags *a, const struct ferry_vmflags *b);

/**
 * ferry_vmflags_is_view() - can this mapping of a memory file only be a tracked view?
 *
 * Nothing else makes a mapping of a tmpfs file that cannot be expanded (de).
 */
bool ferry_vmflags_is_view(const struct ferry_vmflags *flags);

/** ferry_vmflags_exchangeable() - Return: NULL, or why a mapping of this kind must stay. */
const char *ferry_vmflags_exchangeable(const struct ferry_vmflags *flags);

/**
 * ferry_vmflags_view() - what a view in the place of @plain has
 *
 * A view is de and nh, and for that cannot be hg, lo or lf; all else is kept.
 */
void ferry_vmflags_view(const struct ferry_vmflags *plain, struct ferry_vmflags *view);

/** ferry_vmflags_plain() - what a mapping had before a view came, as far as the view tells. */
void ferry_vmflags_plain(const struct ferry_vmflags *view, struct ferry_vmflags *plain);

/**
 * ferry_vmflags_plan() - the calls that turn @now into @wanted
 *
 * Return: how many, 0 if it is the same already; -EOPNOTSUPP when no call does it.
 */
int ferry_vmflags_plan(const struct ferry_vmflags *now, const struct ferry_vmflags *wanted,
		       struct ferry_vmflags_call calls[FERRY_VMFLAGS_CALLS]);

#endif
