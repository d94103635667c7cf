// SPDX-License-Identifier: GPL-2.0-or-later
#include "agent/report.h"

#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "agent/store.h"
#include "base/clock.h"
#include "base/io.h"
#include "base/log.h"
#include "engine/file.h"

enum ferry_report_style ferry_report_choose(bool json, bool quiet)
{
	if (json)
		return FERRY_REPORT_JSON;
	if (quiet)
		return FERRY_REPORT_QUIET;
	return isatty(STDOUT_FILENO) ? FERRY_REPORT_TERMINAL : FERRY_REPORT_LINES;
}

static bool report_lost;

static void report_write(const char *text)
{
	size_t n = strlen(text);

	/* A closed terminal or pipe is no reason to stop a migration. */
	if (write(STDOUT_FILENO, text, n) != (ssize_t)n)
		__atomic_store_n(&report_lost, true, __ATOMIC_RELAXED);
}

bool ferry_report_flush(void)
{
	return !fflush(stdout) && !ferror(stdout) && !__atomic_load_n(&report_lost, __ATOMIC_RELAXED);
}

/* How many bytes the character at @p has; 0 it is none of UTF-8 (RFC 3629). */
static size_t character_bytes(const unsigned char *p)
{
	size_t n = *p < 0x80 ? 1 : *p < 0xc2 ? 0 : *p < 0xe0 ? 2 : *p < 0xf0 ? 3 : *p < 0xf5 ? 4 : 0, i;

	for (i = 1; i < n; i++)
		if ((p[i] & 0xc0) != 0x80)
			return 0;
	if ((*p == 0xe0 && p[1] < 0xa0) || (*p == 0xed && p[1] > 0x9f) ||
	    (*p == 0xf0 && p[1] < 0x90) || (*p == 0xf4 && p[1] > 0x8f))
		return 0;
	return n;
}

/* JSON is UTF-8; names of files are any bytes, and a text may have been cut within a character. */
static void report_mend(char *line)
{
	size_t n;

	for (; *line; line += n ? n : 1) {
		n = character_bytes((const unsigned char *)line);
		if (!n)
			*line = '?';
	}
}

void ferry_report_print(struct json_object *o)
{
	const char *text = json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN |
							  JSON_C_TO_STRING_NOSLASHESCAPE);
	char *line;

	if (text && asprintf(&line, "%s\n", text) >= 0) {
		report_mend(line);
		report_write(line);
		free(line);
	}
	json_object_put(o);
}

static struct json_object *report_event(const char *event)
{
	struct json_object *o = json_object_new_object();

	json_object_object_add(o, "event", json_object_new_string(event));
	return o;
}

void ferry_report_state(const struct ferry_report *report, const struct ferry_record *record,
			enum ferry_state state)
{
	char line[256];

	if (report->style == FERRY_REPORT_JSON) {
		struct json_object *o = report_event("state");

		json_object_object_add(o, "id", json_object_new_string(record->id));
		json_object_object_add(o, "state",
				       json_object_new_string(ferry_state_name(state)));
		json_object_object_add(o, "t_ns", json_object_new_uint64(ferry_clock_ns()));
		ferry_report_print(o);
	} else if (report->style == FERRY_REPORT_LINES && !ferry_state_final(state)) {
		snprintf(line, sizeof(line), "%s: %s\n", record->id, ferry_state_name(state));
		report_write(line);
	}
}

void ferry_report_listening(const struct ferry_report *report, const char *uri)
{
	char line[512];

	if (report->style == FERRY_REPORT_JSON) {
		struct json_object *o = report_event("listening");

		json_object_object_add(o, "uri", json_object_new_string(uri));
		ferry_report_print(o);
	} else if (report->style != FERRY_REPORT_QUIET) {
		snprintf(line, sizeof(line), "listening at %s\n", uri);
		report_write(line);
	}
}

void ferry_report_bytes(uint64_t bytes, char text[16])
{
	static const char *const units[] = { "B", "KiB", "MiB", "GiB", "TiB" };
	double n = (double)bytes;
	unsigned int u = 0;

	while (n >= 1024 && u < 4) {
		n /= 1024;
		u++;
	}
	snprintf(text, 16, n < 10 && u ? "%.1f %s" : "%.0f %s", n, units[u]);
}

static void report_progress_json(struct ferry_job *job, const struct ferry_progress *p,
				 double percent, uint64_t eta_ns)
{
	struct json_object *o = report_event("progress");

	json_object_object_add(o, "id", json_object_new_string(job->record.id));
	json_object_object_add(o, "state",
			       json_object_new_string(ferry_state_name(ferry_job_state(job))));
	json_object_object_add(o, "round", json_object_new_uint64(p->round));
	json_object_object_add(o, "percent", json_object_new_double(percent));
	json_object_object_add(o, "sent_bytes", json_object_new_uint64(p->sent_bytes));
	json_object_object_add(o, "bytes_per_s", json_object_new_uint64(p->bytes_per_s));
	json_object_object_add(o, "dirty_bytes_per_s",
			       json_object_new_uint64(p->dirty_bytes_per_s));
	json_object_object_add(o, "expected_downtime_ns",
			       json_object_new_uint64(p->expected_downtime_ns));
	json_object_object_add(o, "eta_ns", json_object_new_uint64(eta_ns));
	json_object_object_add(o, "stalled", json_object_new_boolean(p->stalled));
	json_object_object_add(o, "throttle", json_object_new_uint64(p->throttle));
	json_object_object_add(o, "stall", p->stall[0] ? json_object_new_string(p->stall) : NULL);
	json_object_object_add(o, "t_ns", json_object_new_uint64(ferry_clock_ns()));
	ferry_report_print(o);
}

void ferry_report_progress(const struct ferry_report *report, struct ferry_job *job)
{
	char sent[16], rate[16], dirty[16], line[512];
	struct ferry_progress p;
	uint64_t eta_ns;
	double percent;

	if (report->style != FERRY_REPORT_TERMINAL && report->style != FERRY_REPORT_JSON)
		return;
	pthread_mutex_lock(&job->lock);
	p = job->progress;
	pthread_mutex_unlock(&job->lock);
	percent = p.round_pages ? 100.0 * (double)p.round_done_pages / (double)p.round_pages : 0;
	eta_ns = ferry_progress_eta_ns(&p);
	if (report->style == FERRY_REPORT_JSON) {
		report_progress_json(job, &p, percent, eta_ns);
		return;
	}
	ferry_report_bytes(p.sent_bytes, sent);
	ferry_report_bytes(p.bytes_per_s, rate);
	ferry_report_bytes(p.dirty_bytes_per_s, dirty);
	snprintf(line, sizeof(line),
		 "\r\033[K%s: %s  round %llu  %.0f %%  %s sent  %s/s  dirtying %s/s  downtime "
		 "~%llu ms  ETA %.0f s%s%s%s", job->record.id,
		 ferry_state_name(ferry_job_state(job)), (unsigned long long)p.round, percent, sent,
		 rate, dirty, (unsigned long long)(p.expected_downtime_ns / FERRY_NS_PER_MS),
		 (double)eta_ns / 1e9,
		 p.stall[0] ? "  " : "", p.stall, p.note);
	report_write(line);
}

static const char *report_event_name(const struct ferry_outcome *out)
{
	if (out->state == FERRY_STATE_COMPLETED && !out->error.text[0])
		return "completed";
	return out->state == FERRY_STATE_CANCELLED ? "cancelled" : "failed";
}

static void report_outcome_json(const struct ferry_record *record, const struct ferry_stats *stats,
				const struct ferry_outcome *out)
{
	struct json_object *o = report_event(report_event_name(out));

	json_object_object_add(o, "id", json_object_new_string(record->id));
	json_object_object_add(o, "state", json_object_new_string(ferry_state_name(out->state)));
	json_object_object_add(o, "guest", json_object_new_string(ferry_where_name(out->where)));
	json_object_object_add(o, "mode", json_object_new_string(ferry_mode_name(stats->mode)));
	ferry_store_stats(o, stats);
	json_object_object_add(o, "error", out->error.text[0] ?
			       json_object_new_string(out->error.text) : NULL);
	if (out->advice[0])
		json_object_object_add(o, "advice", json_object_new_string(out->advice));
	ferry_report_print(o);
}

static void report_cpr_completed(const struct ferry_record *record, const struct ferry_stats *st)
{
	char ram[16], line[256];

	ferry_report_bytes(st->ram_bytes, ram);
	snprintf(line, sizeof(line), "%s: completed; the guest %s in the new VMM (pid %d). %s of RAM "
		 "passed, stopped for %.1f ms\n", record->id,
		 record->guest_paused ? "is, still paused," : "runs", (int)record->to_vmm, ram,
		 (double)st->downtime_ns / 1e6);
	report_write(line);
}

/* What the guest had to wait for; only its side knows how long. */
static void report_postcopy(const struct ferry_record *record, const struct ferry_stats *st)
{
	char line[512];
	int n;

	n = snprintf(line, sizeof(line), "%s: %s: %llu pages came because they were asked for, %llu in "
		     "the background", record->id, ferry_mode_name(st->mode),
		     (unsigned long long)st->fault_pages, (unsigned long long)st->background_pages);
	if (st->blocktime_ns)
		n += snprintf(line + n, sizeof(line) - (size_t)n,
			      "; %llu waits of %.1f ms in all, half of them below %.0f us, 99 %% below "
			      "%.0f us, the longest %.0f us",
			      (unsigned long long)st->faults, (double)st->blocktime_ns / 1e6,
			      (double)st->fault_p50_ns / 1e3, (double)st->fault_p99_ns / 1e3,
			      (double)st->blocktime_max_ns / 1e3);
	snprintf(line + n, sizeof(line) - (size_t)n, "\n");
	report_write(line);
}

static void report_completed(const struct ferry_record *record, const struct ferry_stats *st)
{
	double s = (double)st->total_ns / 1e9;
	char sent[16], ram[16], line[512];

	if (record->role == FERRY_ROLE_CPR) {
		report_cpr_completed(record, st);
		return;
	}
	ferry_report_bytes(st->sent_bytes, sent);
	ferry_report_bytes(st->ram_bytes, ram);
	snprintf(line, sizeof(line),
		 "%s: completed; the guest runs at the destination. %s of RAM, %s sent in %.1f s and "
		 "%llu rounds over %u channels, stopped for %.1f ms, tracker %s%s\n", record->id, ram,
		 sent, s, (unsigned long long)st->rounds, st->channels,
		 (double)st->downtime_ns / 1e6, st->tracker[0] ? st->tracker : "at the source",
		 st->verified ? ", RAM verified equal" : "");
	report_write(line);
	if (st->mode == FERRY_MODE_POSTCOPY || st->mode == FERRY_MODE_HYBRID)
		report_postcopy(record, st);
}

static void report_file_completed(const struct ferry_record *record, const struct ferry_stats *st)
{
	bool saved = record->role == FERRY_ROLE_SOURCE;
	const char *runs = record->guest_paused ? "is paused, as it was" : "runs";
	char sent[16], ram[16], line[FERRY_SPEC_MAX + 512];

	ferry_report_bytes(st->sent_bytes, sent);
	ferry_report_bytes(st->ram_bytes, ram);
	if (saved)
		snprintf(line, sizeof(line),
			 "%s: saved to %s; the guest %s. %s of RAM, %s written in %.1f s, stopped for "
			 "%.1f ms\n", record->id, ferry_file_path(record), runs, ram, sent,
			 (double)st->total_ns / 1e9, (double)st->downtime_ns / 1e6);
	else
		snprintf(line, sizeof(line),
			 "%s: restored from %s; the guest %s. %s of RAM, %s read in %.1f s, started "
			 "after %.1f ms%s\n", record->id, ferry_file_path(record), runs, ram, sent,
			 (double)st->total_ns / 1e9, (double)st->downtime_ns / 1e6,
			 st->verified ? ", checksums verified" : "");
	report_write(line);
}

/* Where the guest is, in words: a saved one has not gone anywhere. */
static const char *report_where(const struct ferry_record *record, enum ferry_where where)
{
	static const char *const words[] = {
		[FERRY_WHERE_SOURCE] = "the guest is at the source, as before",
		[FERRY_WHERE_DESTINATION] = "the guest runs at the destination",
		[FERRY_WHERE_STOPPED] = "the guest is stopped",
		[FERRY_WHERE_UNKNOWN] = "it is not known where the guest runs",
		[FERRY_WHERE_NONE] = "the guest's VMM is gone",
	};

	if (ferry_file_path(record) && where == FERRY_WHERE_SOURCE)
		return "the guest is as it was, and no file was made";
	if (ferry_file_path(record) && where == FERRY_WHERE_NONE &&
	    record->role == FERRY_ROLE_DESTINATION)
		return "the guest was not started";
	return words[where];
}

void ferry_report_outcome(const struct ferry_report *report, const struct ferry_record *record,
			  const struct ferry_stats *stats, const struct ferry_outcome *out)
{
	if (report->style == FERRY_REPORT_TERMINAL)
		report_write("\r\033[K");
	if (report->style == FERRY_REPORT_JSON)
		report_outcome_json(record, stats, out);
	else if (out->state == FERRY_STATE_COMPLETED && !out->error.text[0] &&
		 report->style != FERRY_REPORT_QUIET)
		ferry_file_path(record) ? report_file_completed(record, stats) :
					  report_completed(record, stats);
	if (out->error.text[0])
		ferry_log_error("%s %s: %s; %s", record->id, ferry_state_name(out->state),
				out->error.text, report_where(record, out->where));
	if (out->advice[0])
		ferry_log(FERRY_LOG_ERROR, "%s", out->advice);
}
