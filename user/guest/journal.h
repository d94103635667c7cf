/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_GUEST_JOURNAL_H
#define FERRY_GUEST_JOURNAL_H

#include <json-c/json.h>

#include "guest/guest.h"

/*
 * The undo text of a guest: one JSON object. Which process it is about is told here, what
 * is to be put back by the drivers.
 */
struct ferry_journal {
	struct json_object *undo;
	char *durable; /* the text as last made durable, or NULL */
};

/** struct ferry_journal_rules - what a driver says about texts of its own */
struct ferry_journal_rules {
	const char *by_hand; /* what a person can do when the text is damaged */
	struct {
		const char *key;
		enum json_type type;
	} optional[8]; /* members that may be missing, but not of another type */
};

/** ferry_journal_new() - the text for a guest that was just opened; @start is of its process */
int ferry_journal_new(struct ferry_journal *journal, const struct ferry_guest *guest,
		      enum ferry_guest_role role, uint64_t start, struct ferry_error *err);

/**
 * ferry_journal_parse() - take over the text of a record
 *
 * Return: 0 and guest->pid is set; -EPROTO it is damaged, or not of this driver and role.
 */
int ferry_journal_parse(struct ferry_journal *journal, struct ferry_guest *guest,
			enum ferry_guest_role role, const char *text,
			const struct ferry_journal_rules *rules, struct ferry_error *err);

/** ferry_journal_write() - make the present text durable; nothing is done when it is already. */
int ferry_journal_write(struct ferry_journal *journal, const struct ferry_guest_host *host,
			struct ferry_error *err);

/**
 * ferry_journal_less() - the same after something was put back
 *
 * A text that says too much costs no more than putting it back once more: that it cannot be
 * written (a full disk) is a warning, and no failure of what was done.
 */
void ferry_journal_less(struct ferry_journal *journal, const struct ferry_guest_host *host);

/** ferry_journal_is_void() - has the process it is about ended? (A zombie has, too.) */
bool ferry_journal_is_void(const struct ferry_journal *journal);

/**
 * ferry_journal_text() - a text for a process that was just started, nothing done to it yet
 *
 * Return: malloc'ed, or NULL.
 */
char *ferry_journal_text(const char *spec, pid_t pid);

/**
 * ferry_journal_end() - kill the process a text is about, and be certain that it has ended
 *
 * Nothing is asked of it: it may be stuck in a fault. Return: 0, also when it had ended
 * before; -EPROTO; -ETIMEDOUT, -EPERM: it may live.
 */
int ferry_journal_end(const char *text, unsigned int timeout_ms, struct ferry_error *err);

void ferry_journal_free(struct ferry_journal *journal);

#endif
