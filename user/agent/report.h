/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_AGENT_REPORT_H
#define FERRY_AGENT_REPORT_H

#include <stdbool.h>

#include "engine/job.h"

/*
 * What a person or a program sees of a migration: a live line on a terminal,
 * a line a state elsewhere, or one JSON object a line. Any thread may call;
 * each line goes out in one write.
 */
enum ferry_report_style {
	FERRY_REPORT_TERMINAL,
	FERRY_REPORT_LINES,
	FERRY_REPORT_JSON,
	FERRY_REPORT_QUIET,
};

struct ferry_report {
	enum ferry_report_style style;
};

/** ferry_report_choose() - the style for --json, --quiet and where stdout goes. */
enum ferry_report_style ferry_report_choose(bool json, bool quiet);

void ferry_report_state(const struct ferry_report *report, const struct ferry_record *record,
			enum ferry_state state);
void ferry_report_listening(const struct ferry_report *report, const char *uri);

/** ferry_report_progress() - now and then while it runs; about once a second. */
void ferry_report_progress(const struct ferry_report *report, struct ferry_job *job);

/** ferry_report_outcome() - the last word. Texts for a person go to standard error. */
void ferry_report_outcome(const struct ferry_report *report, const struct ferry_record *record,
			  const struct ferry_stats *stats, const struct ferry_outcome *out);

struct json_object;

/** ferry_report_print() - one object, one line, on standard output; the object is put. */
void ferry_report_print(struct json_object *o);

/** ferry_report_flush() - Return: has all that was printed been written? */
bool ferry_report_flush(void);

/** ferry_report_bytes() - "1.4 GiB". */
void ferry_report_bytes(uint64_t bytes, char text[16]);

#endif
