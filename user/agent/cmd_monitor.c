// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <json-c/json.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/signalfd.h>
#include <time.h>

#include "agent/command.h"
#include "agent/report.h"
#include "base/clock.h"
#include "base/io.h"
#include "base/log.h"
#include "event/event.h"

static void monitor_json(const struct ferry_event *e)
{
	struct json_object *o = json_object_new_object();

	json_object_object_add(o, "event", json_object_new_string(ferry_event_name(e->kind)));
	if (e->kind == FERRY_EVENT_LOST) {
		ferry_report_print(o);
		return;
	}
	json_object_object_add(o, "id", json_object_new_uint64(e->id));
	json_object_object_add(o, "pid", json_object_new_uint64(e->pid));
	json_object_object_add(o, "uid", json_object_new_uint64(e->uid));
	json_object_object_add(o, "inode", json_object_new_uint64(e->inode));
	json_object_object_add(o, "pages", json_object_new_uint64(e->pages));
	json_object_object_add(o, "started", json_object_new_boolean(e->started));
	json_object_object_add(o, "views", json_object_new_uint64(e->views));
	json_object_object_add(o, "dirty_pages", json_object_new_uint64(e->dirty_pages));
	json_object_object_add(o, "watermark_pages", json_object_new_uint64(e->watermark_pages));
	json_object_object_add(o, "marked_pages", json_object_new_uint64(e->marked_pages));
	json_object_object_add(o, "cleaned_pages", json_object_new_uint64(e->cleaned_pages));
	json_object_object_add(o, "pinned_pages", json_object_new_uint64(e->pinned_pages));
	json_object_object_add(o, "time_ns", e->kind == FERRY_EVENT_EXISTS ?
			       NULL : json_object_new_uint64(e->time_ns));
	ferry_report_print(o);
}

/* The time of day of an event, which the kernel gives by the clock that never jumps. */
static void monitor_time(const struct ferry_event *e, char text[16])
{
	uint64_t now_ns = ferry_clock_ns(), ago_ns = 0;
	struct tm tm;
	time_t when;

	if (e->time_ns && e->time_ns < now_ns)
		ago_ns = now_ns - e->time_ns;
	when = (time_t)((ferry_clock_wall_ns() - ago_ns) / FERRY_NS_PER_S);
	if (!localtime_r(&when, &tm) || !strftime(text, 16, "%H:%M:%S", &tm))
		strcpy(text, "--:--:--");
}

static void monitor_line(const struct ferry_event *e)
{
	char when[16];

	monitor_time(e, when);
	if (e->kind == FERRY_EVENT_LOST) {
		printf("%s lost      some events, which came faster than they were read; what exists follows\n", when);
		return;
	}
	printf("%s %-9s tracker %llu: pid %u, uid %u, inode %llu, %llu pages, %s, %u view%s, "
	       "%llu dirty", when, ferry_event_name(e->kind), (unsigned long long)e->id, e->pid,
	       e->uid, (unsigned long long)e->inode, (unsigned long long)e->pages,
	       e->started ? "started" : "stopped", e->views, e->views == 1 ? "" : "s",
	       (unsigned long long)e->dirty_pages);
	if (e->watermark_pages)
		printf(", watermark %llu", (unsigned long long)e->watermark_pages);
	printf("\n");
}

static int monitor_print(void *ctx, const struct ferry_event *event)
{
	const struct ferry_args *args = ctx;

	if (args->json)
		monitor_json(event);
	else if (!args->quiet)
		monitor_line(event);
	/* Somebody may read this through a pipe, line by line. */
	return fflush(stdout) ? -errno : 0;
}

/* Until a signal. Return: 0 or a negative errno with a text. */
static int monitor_follow(struct ferry_events *events, int signals, const struct ferry_args *args,
			  struct ferry_error *err)
{
	struct pollfd fds[] = {
		{ .fd = ferry_event_fd(events), .events = POLLIN },
		{ .fd = signals, .events = POLLIN },
	};
	int r = ferry_event_dump(events, monitor_print, (void *)args, err);

	while (!r) {
		if (poll(fds, 2, -1) < 0 && errno != EINTR)
			return ferry_error_set(err, errno, "waiting for events: %s", strerror(errno));
		if (fds[1].revents)
			return 0;
		if (fds[0].revents)
			r = ferry_event_receive(events, monitor_print, (void *)args, err);
	}
	if (r < 0 && !err->errnum)
		ferry_error_set(err, -r, "writing an event to standard output: %s", strerror(-r));
	return r;
}

int ferry_command_monitor(const struct ferry_args *args)
{
	struct ferry_events *events = NULL;
	struct ferry_error err = { 0 };
	sigset_t ends;
	int signals, r;

	/* From the start, so that a signal ends it in order at any time. */
	sigemptyset(&ends);
	sigaddset(&ends, SIGINT);
	sigaddset(&ends, SIGTERM);
	sigprocmask(SIG_BLOCK, &ends, NULL);
	signals = signalfd(-1, &ends, SFD_CLOEXEC | SFD_NONBLOCK);
	if (signals < 0)
		r = ferry_error_set(&err, errno, "waiting for signals: %s", strerror(errno));
	else
		r = ferry_event_open(&events, args->job.timeout_ms, &err);
	if (!r)
		r = monitor_follow(events, signals, args, &err);
	ferry_event_close(events);
	ferry_io_close(&signals);
	if (r)
		ferry_log_error("%s", err.text);
	return r ? FERRY_EXIT_FAILED : FERRY_EXIT_DONE;
}
