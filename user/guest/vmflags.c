// SPDX-License-Identifier: GPL-2.0-or-later
#include "guest/vmflags.h"

#include <ctype.h>
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>

static unsigned int place(const struct ferry_vmflags *flags, const char *word)
{
	unsigned int i;

	for (i = 0; i < flags->count && strcmp(flags->words[i], word) < 0; i++)
		;
	return i;
}

bool ferry_vmflags_has(const struct ferry_vmflags *flags, const char *word)
{
	unsigned int i = place(flags, word);

	return i < flags->count && !strcmp(flags->words[i], word);
}

static int add(struct ferry_vmflags *flags, const char *word)
{
	unsigned int i = place(flags, word);

	if (i < flags->count && !strcmp(flags->words[i], word))
		return 0;
	if (flags->count == FERRY_VMFLAGS_MAX)
		return -EINVAL;
	memmove(flags->words[i + 1], flags->words[i],
		(flags->count - i) * sizeof(flags->words[0]));
	memcpy(flags->words[i], word, sizeof(flags->words[0]));
	flags->count++;
	return 0;
}

static void take(struct ferry_vmflags *flags, const char *word)
{
	unsigned int i = place(flags, word);

	if (i == flags->count || strcmp(flags->words[i], word))
		return;
	flags->count--;
	memmove(flags->words[i], flags->words[i + 1],
		(flags->count - i) * sizeof(flags->words[0]));
}

int ferry_vmflags_parse(const char *text, struct ferry_vmflags *flags)
{
	flags->count = 0;
	while (*(text += strspn(text, " \t\n"))) {
		char word[3] = { text[0], text[1], '\0' };

		if (!isgraph((unsigned char)word[0]) || !isgraph((unsigned char)word[1]) ||
		    (text[2] && !isspace((unsigned char)text[2])) || add(flags, word))
			return -EINVAL;
		text += 2;
	}
	return 0;
}

void ferry_vmflags_format(const struct ferry_vmflags *flags, char *text, size_t room)
{
	size_t len = 0;
	unsigned int i;

	if (!room)
		return;
	for (i = 0; i < flags->count && len + 4 <= room; i++) {
		if (i)
			text[len++] = ' ';
		memcpy(text + len, flags->words[i], 2);
		len += 2;
	}
	text[len] = '\0';
}

bool ferry_vmflags_same(const struct ferry_vmflags *a, const struct ferry_vmflags *b)
{
	struct ferry_vmflags x = *a, y = *b;

	take(&x, "sd");
	take(&y, "sd");
	return x.count == y.count && !memcmp(x.words, y.words, x.count * sizeof(x.words[0]));
}

bool ferry_vmflags_is_view(const struct ferry_vmflags *flags)
{
	return ferry_vmflags_has(flags, "de");
}

const char *ferry_vmflags_exchangeable(const struct ferry_vmflags *flags)
{
	static const struct {
		const char *word, *why;
	} never[] = {
		{ "um", "a userfaultfd watches it (postcopy or a snapshot under way?)" },
		{ "uw", "a userfaultfd watches it (a snapshot under way?)" },
		{ "ui", "a userfaultfd watches it" },
		{ "ht", "it is hugetlb memory" },
		{ "pf", "it is device memory" },
		{ "io", "it is device memory" },
		{ "mm", "it is device memory" },
		{ "gd", "it is a stack" },
		{ "sl", "it is sealed (mseal)" },
	};
	size_t i;

	if (!ferry_vmflags_has(flags, "sh"))
		return "it is not shared";
	for (i = 0; i < sizeof(never) / sizeof(never[0]); i++)
		if (ferry_vmflags_has(flags, never[i].word))
			return never[i].why;
	return NULL;
}

void ferry_vmflags_view(const struct ferry_vmflags *plain, struct ferry_vmflags *view)
{
	*view = *plain;
	add(view, "de");
	add(view, "nh");
	take(view, "hg");
	take(view, "lo");
	take(view, "lf");
}

void ferry_vmflags_plain(const struct ferry_vmflags *view, struct ferry_vmflags *plain)
{
	*plain = *view;
	take(plain, "de");
	take(plain, "nh");
}

/* There is no way back from these but to the other one. */
#define NO_WAY (-1)

/* Switched by one madvise(2) each way. */
static const struct {
	const char *word;
	int on, off;
} advice[] = {
	{ "sr", MADV_SEQUENTIAL, MADV_NORMAL },
	{ "rr", MADV_RANDOM, MADV_NORMAL },
	{ "dc", MADV_DONTFORK, MADV_DOFORK },
	{ "dd", MADV_DONTDUMP, MADV_DODUMP },
	{ "hg", MADV_HUGEPAGE, NO_WAY },
	{ "nh", MADV_NOHUGEPAGE, NO_WAY },
};

#define ADVICES (sizeof(advice) / sizeof(advice[0]))

static void plan_lock(struct ferry_vmflags *now, const struct ferry_vmflags *wanted,
		      struct ferry_vmflags_call *calls, int *n)
{
	bool lock = ferry_vmflags_has(wanted, "lo"), on_fault = ferry_vmflags_has(wanted, "lf");

	if (ferry_vmflags_has(now, "lo") == lock && ferry_vmflags_has(now, "lf") == on_fault)
		return;
	calls[(*n)++] = !lock ? (struct ferry_vmflags_call){ SYS_munlock, 0 } :
			on_fault ? (struct ferry_vmflags_call){ SYS_mlock2, MLOCK_ONFAULT } :
				   (struct ferry_vmflags_call){ SYS_mlock, 0 };
	take(now, "lo");
	take(now, "lf");
	if (lock)
		add(now, "lo");
	if (on_fault)
		add(now, "lf");
}

int ferry_vmflags_plan(const struct ferry_vmflags *now, const struct ferry_vmflags *wanted,
		       struct ferry_vmflags_call calls[FERRY_VMFLAGS_CALLS])
{
	struct ferry_vmflags then = *now;
	int n = 0;
	size_t i;

	/* First what is too much: MADV_NORMAL takes both of its flags away. */
	for (i = 0; i < ADVICES; i++) {
		if (!ferry_vmflags_has(&then, advice[i].word) ||
		    ferry_vmflags_has(wanted, advice[i].word) || advice[i].off == NO_WAY)
			continue;
		calls[n++] = (struct ferry_vmflags_call){ SYS_madvise, advice[i].off };
		take(&then, advice[i].word);
	}
	for (i = 0; i < ADVICES; i++) {
		if (ferry_vmflags_has(&then, advice[i].word) ||
		    !ferry_vmflags_has(wanted, advice[i].word))
			continue;
		calls[n++] = (struct ferry_vmflags_call){ SYS_madvise, advice[i].on };
		add(&then, advice[i].word);
		/* Either of these replaces the other. */
		if (!strcmp(advice[i].word, "hg"))
			take(&then, "nh");
		if (!strcmp(advice[i].word, "nh"))
			take(&then, "hg");
	}
	plan_lock(&then, wanted, calls, &n);
	return ferry_vmflags_same(&then, wanted) ? n : -EOPNOTSUPP;
}
