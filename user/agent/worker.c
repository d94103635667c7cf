// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The worker has two threads of its own beside those of the engine: the
 * migration thread (main) and the watch thread, which serves the control
 * socket, takes signals, reports progress and watches over the guardian: when
 * that dies it starts a new one, which gets copies of all held descriptors.
 */
#include "agent/worker.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "agent/control.h"
#include "agent/runtime.h"
#include "agent/store.h"
#include "base/clock.h"
#include "base/io.h"
#include "base/log.h"
#include "engine/fault_points.h"
#include "engine/file.h"

struct worker {
	struct ferry_job job;
	struct ferry_report report;
	int control_fd;
	int signal_fd;
	int quit_fd; /* eventfd: the watch thread ends */
	int lock_fd;
	pthread_t watch;

	pthread_mutex_t lock; /* protects all below */
	int sock;	      /* to the guardian */
	pid_t guardian;
	int guardian_fd; /* pidfd */
	unsigned int guardians; /* how many were started here */
	struct ferry_worker_held held[FERRY_WORKER_MAX_HELD];
	unsigned int held_count;
};

static int worker_save(void *ctx, const struct ferry_record *record, struct ferry_error *err)
{
	struct worker *w = ctx;
	struct ferry_record now = *record;

	pthread_mutex_lock(&w->lock);
	now.guardian = w->guardian;
	pthread_mutex_unlock(&w->lock);
	now.worker = getpid();
	return ferry_store_save(&now, err);
}

static int worker_send_held(struct worker *w, const struct ferry_worker_held *held)
{
	char text[FERRY_WORKER_NAME + 8];
	int n = snprintf(text, sizeof(text), "hold %s", held->name);

	return ferry_io_send_fds(w->sock, text, (size_t)n + 1, &held->fd, 1,
				 ferry_clock_in_ms(2000));
}

/* w->lock is held. */
static void worker_drop(struct worker *w, const char *name)
{
	char text[FERRY_WORKER_NAME + 8];
	unsigned int i;
	int n;

	for (i = 0; i < w->held_count; i++)
		if (!strcmp(w->held[i].name, name))
			break;
	if (i == w->held_count)
		return;
	ferry_io_close(&w->held[i].fd);
	w->held[i] = w->held[--w->held_count];
	n = snprintf(text, sizeof(text), "drop %s", name);
	if (send(w->sock, text, (size_t)n + 1, MSG_NOSIGNAL) < 0)
		ferry_log_debug("the guardian is gone");
}

static int worker_hold(void *ctx, const char *name, int fd, struct ferry_error *err)
{
	struct worker *w = ctx;
	struct ferry_worker_held *held = NULL;
	unsigned int i;

	pthread_mutex_lock(&w->lock);
	if (fd < 0) {
		worker_drop(w, name);
		pthread_mutex_unlock(&w->lock);
		ferry_runtime_forget(w->job.record.id, name);
		return 0;
	}
	for (i = 0; i < w->held_count; i++)
		if (!strcmp(w->held[i].name, name))
			held = &w->held[i];
	if (!held && w->held_count < FERRY_WORKER_MAX_HELD) {
		held = &w->held[w->held_count++];
		held->fd = -1;
	}
	if (held) {
		ferry_io_close(&held->fd);
		snprintf(held->name, sizeof(held->name), "%s", name);
		held->fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
		/* A guardian that is just dying gets a successor, and that one gets it too. */
		if (held->fd >= 0)
			worker_send_held(w, held);
	}
	pthread_mutex_unlock(&w->lock);
	if (!held || held->fd < 0)
		return ferry_error_set(err, EMFILE, "no room to keep the descriptor %s", name);
	return 0;
}

static int worker_held(void *ctx, const char *name)
{
	struct worker *w = ctx;
	unsigned int i;
	int fd = -1;

	pthread_mutex_lock(&w->lock);
	for (i = 0; i < w->held_count; i++)
		if (!strcmp(w->held[i].name, name))
			fd = fcntl(w->held[i].fd, F_DUPFD_CLOEXEC, 0);
	pthread_mutex_unlock(&w->lock);
	/* All processes may have died since. */
	return fd < 0 ? ferry_runtime_kept(w->job.record.id, name, false) : fd;
}

static int worker_keep(void *ctx, const char *name, struct ferry_error *err)
{
	struct worker *w = ctx;
	int fd = ferry_runtime_kept(w->job.record.id, name, true);

	return fd < 0 ? ferry_error_set(err, -fd, "cannot make the file %s.%s beside the record: "
					"%s", w->job.record.id, name, strerror(-fd)) : fd;
}

static void worker_state(void *ctx, enum ferry_state state)
{
	struct worker *w = ctx;

	ferry_report_state(&w->report, &w->job.record, state);
}

static int worker_claimed(void *ctx, pid_t vmm, struct ferry_error *err)
{
	struct worker *w = ctx;

	return ferry_store_claimed(w->job.record.id, vmm, err);
}

static void worker_listening(void *ctx, const char *uri)
{
	struct worker *w = ctx;

	ferry_report_listening(&w->report, uri);
}

static int worker_pidfd(pid_t pid)
{
	return (int)syscall(SYS_pidfd_open, pid, 0);
}

/* The argument list of a new guardian; w->lock is held. */
struct worker_exec {
	char number[4][16];
	char held[FERRY_WORKER_MAX_HELD][FERRY_WORKER_NAME + 16];
	char *argv[8 + FERRY_WORKER_MAX_HELD];
};

static void worker_exec_args(struct worker *w, struct worker_exec *e, int sock)
{
	unsigned int i, n = 0;

	snprintf(e->number[0], sizeof(e->number[0]), "%d", (int)w->report.style);
	snprintf(e->number[1], sizeof(e->number[1]), "%d", sock);
	snprintf(e->number[2], sizeof(e->number[2]), "%d", w->lock_fd);
	snprintf(e->number[3], sizeof(e->number[3]), "%d", (int)getpid());
	e->argv[n++] = (char *)(uintptr_t) "ferry";
	e->argv[n++] = (char *)(uintptr_t) "guardian";
	e->argv[n++] = w->job.record.id;
	for (i = 0; i < 4; i++)
		e->argv[n++] = e->number[i];
	for (i = 0; i < w->held_count; i++) {
		snprintf(e->held[i], sizeof(e->held[i]), "%s=%d", w->held[i].name, w->held[i].fd);
		e->argv[n++] = e->held[i];
	}
	e->argv[n] = NULL;
}

/*
 * Guardians that keep dying at once (a program that cannot be started any more) are not helped
 * by one more; the migration goes on without.
 */
#define WORKER_MAX_GUARDIANS 16

/* The guardian is dead. Only async-signal-safe calls between fork and exec. */
static void worker_new_guardian(struct worker *w)
{
	struct worker_exec e;
	sigset_t none;
	int sv[2];
	pid_t pid;

	pthread_mutex_lock(&w->lock);
	ferry_io_close(&w->guardian_fd);
	ferry_io_close(&w->sock);
	waitpid(w->guardian, NULL, WNOHANG); /* a child of ours unless it was the first one */
	if (w->guardians++ == WORKER_MAX_GUARDIANS) {
		ferry_log_error("%u guardians of %s died one after the other; going on without one",
				w->guardians, w->job.record.id);
		goto out;
	}
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sv)) {
		ferry_log_error("no new guardian: %s", strerror(errno));
		goto out;
	}
	w->sock = sv[0];
	worker_exec_args(w, &e, sv[1]);
	pid = fork();
	if (!pid) {
		unsigned int i;

		sigemptyset(&none);
		sigprocmask(SIG_SETMASK, &none, NULL);
		setsid();
		fcntl(sv[1], F_SETFD, 0);
		fcntl(w->lock_fd, F_SETFD, 0);
		for (i = 0; i < w->held_count; i++)
			fcntl(w->held[i].fd, F_SETFD, 0);
		execv("/proc/self/exe", e.argv);
		_exit(127);
	}
	close(sv[1]);
	if (pid < 0) {
		ferry_log_error("no new guardian: %s", strerror(errno));
		goto out;
	}
	w->guardian = pid;
	w->guardian_fd = worker_pidfd(pid);
	ferry_log_debug("the guardian died; %d is the new one", (int)pid);
out:
	pthread_mutex_unlock(&w->lock);
}

static void worker_take_signal(struct worker *w)
{
	struct signalfd_siginfo info;
	struct ferry_error err = { 0 };

	if (read(w->signal_fd, &info, sizeof(info)) != sizeof(info))
		return;
	if (ferry_job_cancel(&w->job, &err) == -EBUSY && ferry_job_leave(&w->job))
		ferry_log_warn("%s", err.text);
}

static void *worker_watch(void *arg)
{
	struct worker *w = arg;
	uint64_t tick_ns = ferry_clock_ns() + FERRY_NS_PER_S;

	for (;;) {
		struct pollfd p[] = {
			{ .fd = w->quit_fd, .events = POLLIN },
			{ .fd = w->control_fd, .events = POLLIN },
			{ .fd = w->signal_fd, .events = POLLIN },
			{ .fd = w->guardian_fd, .events = POLLIN },
		};

		if (poll(p, 4, ferry_clock_poll_ms(tick_ns)) < 0 && errno != EINTR)
			return NULL;
		if (p[0].revents)
			return NULL;
		if (p[1].revents)
			ferry_control_serve(w->control_fd, &w->job);
		if (p[2].revents)
			worker_take_signal(w);
		if (p[3].revents)
			worker_new_guardian(w);
		if (ferry_clock_ns() >= tick_ns) {
			tick_ns = ferry_clock_ns() + FERRY_NS_PER_S;
			ferry_report_progress(&w->report, &w->job);
		}
	}
}

static int worker_signals(void)
{
	sigset_t set;

	signal(SIGPIPE, SIG_IGN);
	signal(SIGHUP, SIG_IGN);
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	/* Inherited by all threads, so that signals come by the descriptor alone. */
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	return signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

static int worker_start(struct worker *w, struct ferry_worker_params *params,
			const struct ferry_job_hooks *hooks, struct ferry_error *err)
{
	unsigned int i;

	memset(w, 0, sizeof(*w));
	pthread_mutex_init(&w->lock, NULL);
	w->report = params->report;
	w->sock = params->sock;
	w->lock_fd = params->lock_fd;
	w->guardian = params->guardian;
	w->guardian_fd = worker_pidfd(params->guardian);
	w->quit_fd = eventfd(0, EFD_CLOEXEC);
	w->signal_fd = worker_signals();
	ferry_job_init(&w->job, hooks);
	w->job.record = params->record;
	/* A new one's are all zero; one that takes over goes on with what was counted. */
	w->job.stats = params->record.stats;
	w->job.options = params->options;
	w->job.command = params->command;
	if (params->recover)
		ferry_job_options_restore(&w->job);
	for (i = 0; i < params->held_count; i++) {
		w->held[i] = params->held[i];
		if (!strcmp(params->held[i].name, "guest"))
			w->job.held_guest_fd = fcntl(params->held[i].fd, F_DUPFD_CLOEXEC, 0);
		if (!strcmp(params->held[i].name, "listen"))
			w->job.held_listen_fd = fcntl(params->held[i].fd, F_DUPFD_CLOEXEC, 0);
		if (!strcmp(params->held[i].name, "to-guest"))
			w->job.held_to_fd = fcntl(params->held[i].fd, F_DUPFD_CLOEXEC, 0);
	}
	w->held_count = params->held_count;
	/* Of an earlier migration with this id. */
	if (!params->recover)
		ferry_runtime_forget(w->job.record.id, NULL);
	w->control_fd = ferry_control_listen(w->job.record.id, err);
	if (w->control_fd < 0)
		return w->control_fd;
	return ferry_job_save(&w->job, err);
}

static void worker_run(struct worker *w, bool recover, struct ferry_outcome *out)
{
	bool source = w->job.record.role == FERRY_ROLE_SOURCE;
	bool file = ferry_file_path(&w->job.record);

	if (w->job.record.role == FERRY_ROLE_CPR)
		recover ? ferry_cpr_recover(&w->job, out) : ferry_cpr_run(&w->job, out);
	else if (file && source)
		recover ? ferry_save_recover(&w->job, out) : ferry_save_run(&w->job, out);
	else if (file)
		recover ? ferry_restore_recover(&w->job, out) : ferry_restore_run(&w->job, out);
	else if (recover && source)
		ferry_source_recover(&w->job, out);
	else if (recover)
		ferry_destination_recover(&w->job, out);
	else if (source)
		ferry_source_run(&w->job, out);
	else
		ferry_destination_run(&w->job, out);
}

/* What stood in the way may have been ours: a file that took the last room, descriptors. */
static void worker_save_again(struct worker *w)
{
	struct ferry_error err = { 0 };

	if (w->job.unsaved && ferry_job_save(&w->job, &err))
		ferry_log_error("%s; it is not up to date, and the id %s is in use until 'ferry resume "
				"%s' can write it", err.text, w->job.record.id, w->job.record.id);
}

int ferry_worker_main(struct ferry_worker_params *params)
{
	static struct worker w; /* large, and one a process */
	const struct ferry_job_hooks hooks = {
		.save = worker_save,
		.hold = worker_hold,
		.held = worker_held,
		.keep = worker_keep,
		.claimed = worker_claimed,
		.state = worker_state,
		.listening = worker_listening,
		.ctx = &w,
	};
	struct ferry_outcome out = { .exit_code = 1, .state = FERRY_STATE_FAILED };
	uint64_t one = 1;
	char done[16];
	int r, n;

	setsid();
	out.where = ferry_file_where_before(&params->record);
	r = worker_start(&w, params, &hooks, &out.error);
	if (!r)
		r = ferry_fault_point_init(params->guardian, &out.error);
	if (!r) {
		r = -pthread_create(&w.watch, NULL, worker_watch, &w);
		if (r)
			ferry_error_set(&out.error, -r, "cannot start a thread: %s", strerror(-r));
	}
	/* What the record says of the guest stays true, and undone. */
	if (r && params->recover) {
		out.state = params->record.state;
		out.where = FERRY_WHERE_UNKNOWN;
		out.exit_code = 3;
		snprintf(out.advice, sizeof(out.advice), "ferry recover %s", params->record.id);
	}
	if (!r) {
		worker_run(&w, params->recover, &out);
		worker_save_again(&w);
		if (write(w.quit_fd, &one, sizeof(one)) == sizeof(one))
			pthread_join(w.watch, NULL);
	}
	ferry_report_outcome(&w.report, &w.job.record, &w.job.stats, &out);
	/* After it nobody takes over: the record is as the outcome says. */
	n = snprintf(done, sizeof(done), "done %d", out.exit_code);
	if (send(w.sock, done, (size_t)n + 1, MSG_NOSIGNAL) < 0)
		ferry_log_debug("the guardian is gone");
	return out.exit_code;
}
