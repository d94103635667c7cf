// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The guardian: the process a person started. It knows no wire protocol. It
 * keeps copies of the descriptors that must not die with the worker, and when
 * the worker dies without a last word it reads the record and does what the
 * phase allows:
 *
 *   source, open            put the VMM back, resume the guest
 *   destination, open       put the VMM back; the guest never ran here
 *   cpr, open               end the new VMM, put RAM back, resume the guest in the old one
 *   anything later          start another worker, which asks the other side
 *
 * SIGHUP is ignored, SIGINT and SIGTERM are passed on as a cancel. The worker is
 * in a session of its own, so a Ctrl-C reaches the guardian only.
 */
#include "agent/guardian.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "agent/runtime.h"
#include "agent/store.h"
#include "base/clock.h"
#include "base/io.h"
#include "base/log.h"
#include "engine/file.h"
#include "store/aside.h"

/* A worker that keeps dying is not helped by one more. */
#define GUARDIAN_MAX_WORKERS 4

struct guardian {
	char id[FERRY_ID_MAX];
	struct ferry_report report;
	struct ferry_job_options options;
	int lock_fd;
	int sock;
	int signal_fd;
	pid_t worker;
	int worker_fd; /* pidfd */
	unsigned int workers;
	bool done; /* the worker has said its last word */
	char death[48]; /* how it ended otherwise */
	int exit_code;
	struct ferry_worker_held held[FERRY_WORKER_MAX_HELD];
	unsigned int held_count;
};

static int guardian_signals(void)
{
	sigset_t set;

	signal(SIGPIPE, SIG_IGN);
	signal(SIGHUP, SIG_IGN);
	signal(SIGTTOU, SIG_IGN);
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigprocmask(SIG_BLOCK, &set, NULL);
	return signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

static void guardian_hold(struct guardian *g, const char *name, int fd)
{
	unsigned int i;

	for (i = 0; i < g->held_count; i++) {
		if (strcmp(g->held[i].name, name))
			continue;
		ferry_io_close(&g->held[i].fd);
		g->held[i].fd = fd;
		return;
	}
	if (g->held_count == FERRY_WORKER_MAX_HELD) {
		close(fd);
		return;
	}
	snprintf(g->held[i].name, sizeof(g->held[i].name), "%s", name);
	g->held[i].fd = fd;
	g->held_count++;
}

static void guardian_drop(struct guardian *g, const char *name)
{
	unsigned int i;

	for (i = 0; i < g->held_count; i++) {
		if (strcmp(g->held[i].name, name))
			continue;
		ferry_io_close(&g->held[i].fd);
		g->held[i] = g->held[--g->held_count];
		return;
	}
}

/* What the worker says. Return: 0 when there is no more. */
static int guardian_listen(struct guardian *g)
{
	unsigned int n = 1;
	char text[64];
	int fd = -1;
	ssize_t got;

	got = ferry_io_recv_fds(g->sock, text, sizeof(text) - 1, &fd, &n, ferry_clock_in_ms(100));
	if (got <= 0)
		return 0;
	text[got] = 0;
	if (n && !strncmp(text, "hold ", 5))
		guardian_hold(g, text + 5, fd);
	else if (n)
		close(fd);
	if (!strncmp(text, "drop ", 5))
		guardian_drop(g, text + 5);
	if (!strncmp(text, "done ", 5)) {
		g->done = true;
		g->exit_code = atoi(text + 5);
	}
	return 1;
}

static int guardian_start(struct guardian *g, struct ferry_worker_params *params)
{
	pid_t self = getpid();
	int sv[2];

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sv)) {
		ferry_log_error("cannot make a socket pair: %s", strerror(errno));
		return -errno;
	}
	params->sock = sv[1];
	params->guardian = self;
	params->lock_fd = g->lock_fd;
	params->record.guardian = self;
	g->worker = fork();
	if (!g->worker) {
		close(sv[0]);
		close(g->signal_fd);
		_exit(ferry_worker_main(params));
	}
	close(sv[1]);
	if (g->worker < 0) {
		ferry_log_error("cannot start a worker: %s", strerror(errno));
		close(sv[0]);
		return -errno;
	}
	/* A test's fault is for the first worker, not for the one that repairs. */
	unsetenv("FERRY_FAULT");
	g->sock = sv[0];
	g->worker_fd = (int)syscall(SYS_pidfd_open, g->worker, 0);
	g->workers++;
	g->done = false;
	return 0;
}

/* Another worker goes on from the record. */
static int guardian_restart(struct guardian *g, struct ferry_record *record)
{
	struct ferry_worker_params params = {
		.record = *record,
		.options = g->options,
		.report = g->report,
		.recover = true,
		.held_count = g->held_count,
	};

	if (g->workers >= GUARDIAN_MAX_WORKERS) {
		ferry_log_error("%u workers of %s died one after the other; the record is kept: "
				"ferry recover %s", g->workers, g->id, g->id);
		return -EAGAIN;
	}
	memcpy(params.held, g->held, sizeof(params.held));
	return guardian_start(g, &params);
}

static int guardian_save(void *ctx, const struct ferry_record *record, struct ferry_error *err)
{
	(void)ctx;
	return ferry_store_save(record, err);
}

static int guardian_held(const struct guardian *g, const char *name)
{
	unsigned int i;

	for (i = 0; i < g->held_count; i++)
		if (!strcmp(g->held[i].name, name))
			return fcntl(g->held[i].fd, F_DUPFD_CLOEXEC, 0);
	return -1;
}

/* Before any decision: the source keeps the guest. Return: the exit code. */
static int guardian_clean_up(struct guardian *g, struct ferry_record *record)
{
	const struct ferry_job_hooks hooks = { .save = guardian_save };
	bool source = record->role != FERRY_ROLE_DESTINATION;
	struct ferry_outcome out = {
		.state = FERRY_STATE_FAILED,
		.where = ferry_file_where_before(record),
		.exit_code = 1,
	};
	struct ferry_error err = { 0 };
	struct ferry_job job;

	ferry_job_init(&job, &hooks);
	job.record = *record;
	job.stats = record->stats;
	job.held_guest_fd = guardian_held(g, "guest");
	ferry_error_set(&out.error, ECHILD, "the worker process %s",
			g->death[0] ? g->death : "died");
	job.record.phase = FERRY_PHASE_ABORTED;
	job.record.state = FERRY_STATE_FAILED;
	snprintf(job.record.error, sizeof(job.record.error), "%s", out.error.text);
	ferry_job_save(&job, NULL);
	if (ferry_job_undo(&job, source, &err)) {
		ferry_error_set(&out.error, err.errnum,
				"the worker process died, and the VMM could not be put back: %s",
				err.text);
		if (source) {
			out.where = FERRY_WHERE_STOPPED;
			out.exit_code = 3;
			snprintf(out.advice, sizeof(out.advice), "ferry resume %s", g->id);
		}
	}
	if (source && ferry_file_path(record))
		ferry_store_aside_remove(ferry_file_path(record), g->id);
	job.record.settled = out.exit_code != 3;
	ferry_job_save(&job, NULL);
	ferry_runtime_forget(g->id, NULL);
	ferry_report_outcome(&g->report, &job.record, &job.stats, &out);
	ferry_job_destroy(&job);
	return out.exit_code;
}

/* The worker died without a last word. Return: true when all is over. */
static bool guardian_take_over(struct guardian *g)
{
	struct ferry_error err = { 0 };
	struct ferry_record record;

	if (ferry_store_load(g->id, &record, &err)) {
		ferry_log_error("the worker of %s died: %s", g->id, err.text);
		g->exit_code = 3;
		return true;
	}
	ferry_log_warn("the worker of %s %s in phase %s", g->id, g->death[0] ? g->death : "died",
		       ferry_phase_name(record.phase));
	if (record.phase == FERRY_PHASE_OPEN) {
		bool tell = record.role == FERRY_ROLE_SOURCE && record.disturbed_peer;

		g->exit_code = guardian_clean_up(g, &record);
		if (!tell || g->exit_code == 3)
			return true;
		/* The destination may be waiting for RUN: a worker tells it that none comes. */
		if (ferry_store_load(g->id, &record, &err))
			return true;
		g->report.style = FERRY_REPORT_QUIET;
	}
	if (record.settled && record.phase != FERRY_PHASE_ABORTED) {
		g->exit_code = record.state == FERRY_STATE_COMPLETED ? 0 : 1;
		return true;
	}
	if (guardian_restart(g, &record)) {
		g->exit_code = 3;
		return true;
	}
	return false;
}

static void guardian_take_signal(struct guardian *g)
{
	struct signalfd_siginfo info;

	if (read(g->signal_fd, &info, sizeof(info)) == sizeof(info))
		kill(g->worker, SIGTERM);
}

/* How the worker ended; one that is not our child (adopted) leaves no status. */
static void guardian_reap(struct guardian *g)
{
	int status;

	snprintf(g->death, sizeof(g->death), "died");
	if (waitpid(g->worker, &status, WNOHANG) != g->worker)
		return;
	if (WIFSIGNALED(status))
		snprintf(g->death, sizeof(g->death), "was killed by signal %d (%s)",
			 WTERMSIG(status), sigabbrev_np(WTERMSIG(status)));
	else
		snprintf(g->death, sizeof(g->death), "ended with status %d",
			 WEXITSTATUS(status));
}

/* Until a worker has said its last word, or none can be started. */
static int guardian_loop(struct guardian *g)
{
	for (;;) {
		struct pollfd p[] = {
			{ .fd = g->worker_fd, .events = POLLIN },
			{ .fd = g->sock, .events = POLLIN },
			{ .fd = g->signal_fd, .events = POLLIN },
		};

		if (poll(p, 3, -1) < 0 && errno != EINTR)
			return 3;
		if (p[2].revents)
			guardian_take_signal(g);
		if (p[1].revents && guardian_listen(g))
			continue;
		if (!p[0].revents) {
			/* A closed socket of a live worker: only its death counts. */
			if (p[1].revents)
				ferry_io_close(&g->sock);
			continue;
		}
		while (g->sock >= 0 && guardian_listen(g))
			;
		guardian_reap(g);
		ferry_io_close(&g->sock);
		ferry_io_close(&g->worker_fd);
		if (g->done || guardian_take_over(g))
			return g->exit_code;
	}
}

int ferry_guardian_run(struct ferry_worker_params *params)
{
	struct guardian g = {
		.report = params->report,
		.options = params->options,
		.lock_fd = params->lock_fd,
		.sock = -1,
	};
	int code;

	snprintf(g.id, sizeof(g.id), "%s", params->record.id);
	g.signal_fd = guardian_signals();
	if (guardian_start(&g, params))
		return 1;
	code = guardian_loop(&g);
	/* The socket goes with the last process that served it. */
	ferry_runtime_hang_up(g.id);
	return code;
}

int ferry_guardian_adopt(int count, char **args)
{
	struct guardian g = { .workers = 1 };
	int i;

	if (count < 5)
		return 2;
	snprintf(g.id, sizeof(g.id), "%s", args[0]);
	g.report.style = (enum ferry_report_style)atoi(args[1]);
	g.sock = atoi(args[2]);
	g.lock_fd = atoi(args[3]);
	g.worker = (pid_t)atoi(args[4]);
	g.signal_fd = guardian_signals();
	unsetenv("FERRY_FAULT");
	fcntl(g.sock, F_SETFD, FD_CLOEXEC);
	fcntl(g.lock_fd, F_SETFD, FD_CLOEXEC);
	for (i = 5; i < count; i++) {
		char *eq = strchr(args[i], '=');

		if (!eq)
			return 2;
		*eq = 0;
		fcntl(atoi(eq + 1), F_SETFD, FD_CLOEXEC);
		guardian_hold(&g, args[i], atoi(eq + 1));
	}
	g.worker_fd = (int)syscall(SYS_pidfd_open, g.worker, 0);
	/* Our parent, unless it died in the meantime: then the pid may be anybody's. */
	if (g.worker_fd < 0 || getppid() != g.worker) {
		ferry_io_close(&g.worker_fd);
		while (guardian_listen(&g))
			;
		ferry_io_close(&g.sock);
		i = g.done || guardian_take_over(&g) ? g.exit_code : guardian_loop(&g);
	} else {
		i = guardian_loop(&g);
	}
	ferry_runtime_hang_up(g.id);
	return i;
}
