// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Driver for an unmodified QEMU.
 *
 * QEMU moves its device state itself (`migrate fd:` with x-ignore-shared); its
 * guest RAM is shared memory that ferry moves. All talk is QMP on one socket;
 * /proc/PID tells what QMP does not (which file is the RAM, who else maps it).
 *
 * Who is QEMU? The process that made the socket (SO_PEERCRED), fixed by a pidfd.
 * That it really maps the RAM is verified by check(), describe() and before
 * anything is done to the process: behind a proxy it is the wrong one. (A socket
 * passed to QEMU is fine: QEMU calls listen(2) again, which counts.)
 *
 * Undo text (host->journal), one JSON object, durable before what it undoes:
 *   {"driver":"qmp","version":1,"path":"/run/vm.qmp","role":"source",
 *    "pid":71,"start":8123,            which process; another one owes us nothing
 *    "capabilities":{"multifd":true},  what prepare() changed, with the old value
 *    "parameters":{"max-bandwidth":134217728},
 *    "was":"running",                  run state before the first pause()
 *    "userfaultfds":[31],              those of QEMU itself, before ours came
 *    "views":[{"start":…}],            mappings of RAM as they were before tracked views came
 *    "spare":[23622320128,1073741824], where a new mapping of RAM is made, before it moves
 *    "throttled":[{"path":"/sys/fs/cgroup/vm.scope/cpu.max","was":"max 100000", ...}]}
 * What is missing was not touched. Whether device state was loaded is no part
 * of it: QEMU tells (it is no longer `inmigrate`), and asking the disk would
 * cost downtime. getfd names are fixed words, so closing them needs no note.
 *
 * A QEMU that has ended took all we did with it: undo() is then done, every
 * other operation fails at once with -ESRCH "QEMU (pid N) has gone".
 */
#include "guest/qemu.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/io.h"
#include "base/log.h"
#include "guest/json.h"
#include "guest/proc.h"

/*
 * A dying process closes its sockets a little before it counts as ended; this
 * long we wait for the better message.
 */
#define LAST_BREATH_MS 1000u

bool ferry_qemu_gone(const struct ferry_qemu *q, unsigned int wait_ms)
{
	if (!q->qmp || q->pidfd < 0)
		return true;
	return ferry_io_wait(q->pidfd, POLLIN, ferry_clock_in_ms(wait_ms)) > 0;
}

static int gone(const struct ferry_qemu *q, struct ferry_error *err)
{
	return ferry_error_set(err, ESRCH, "QEMU (pid %d) has gone; start it again, its messages "
			       "are in its own log", (int)q->guest.pid);
}

int ferry_qemu_command(struct ferry_qemu *q, const char *name, struct json_object *arguments,
		       int fd, struct json_object **ret, struct ferry_error *err)
{
	int r;

	if (ret)
		*ret = NULL;
	if (ferry_qemu_gone(q, 0)) {
		json_object_put(arguments);
		return gone(q, err);
	}
	r = ferry_qmp_command(q->qmp, name, arguments, fd, ret, err);
	if (r == -EPIPE && ferry_qemu_gone(q, LAST_BREATH_MS))
		return gone(q, err);
	return r;
}

int ferry_qemu_kill(struct ferry_qemu *q, struct ferry_error *err)
{
	if (ferry_qemu_gone(q, 0))
		return 0;
	/* prepare() verifies the pid, so an undo text that tells of it will do. */
	if (!q->pid_checked && !ferry_json_get(q->journal.undo, "capabilities", json_type_object))
		return ferry_error_set(err, EPERM, "pid %d was not seen mapping guest RAM; it may "
				       "not be QEMU, so it is not killed; end QEMU by hand",
				       (int)q->guest.pid);
	if (syscall(SYS_pidfd_send_signal, q->pidfd, SIGKILL, NULL, 0) && errno != ESRCH)
		return ferry_error_set(err, errno, "killing QEMU (pid %d): %s; end it by hand",
				       (int)q->guest.pid, strerror(errno));
	if (!ferry_qemu_gone(q, q->timeout_ms))
		return ferry_error_set(err, ETIMEDOUT, "QEMU (pid %d) was killed but does not end "
				       "(stuck in the kernel?)", (int)q->guest.pid);
	return 0;
}

/* Pin down which process this is. */
static int open_process(struct ferry_qemu *q, struct ferry_error *err)
{
	pid_t pid = ferry_qmp_peer(q->qmp);

	if (pid <= 0)
		return ferry_error_set(err, ESRCH, "%s: the process behind the QMP socket is not "
				       "visible here; run ferry in QEMU's pid namespace",
				       q->guest.path);
	q->guest.pid = q->peers.vmm = pid;
	q->pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	if (q->pidfd < 0)
		return ferry_error_set(err, errno, "QEMU (pid %d, from the socket %s) %s: %s; "
				       "if another program made the socket for it, give ferry one "
				       "QEMU makes itself: -qmp unix:PATH,server=on,wait=off",
				       (int)pid, q->guest.path, errno == ESRCH ? "has gone" :
				       "cannot be watched", strerror(errno));
	fcntl(q->pidfd, F_SETFD, FD_CLOEXEC);
	q->start = ferry_proc_start(pid);
	return 0;
}

static int open_version(struct ferry_qemu *q, struct ferry_error *err)
{
	struct json_object *reply, *qemu;
	int r = ferry_qemu_command(q, "query-version", NULL, -1, &reply, err);

	if (r)
		return r;
	qemu = ferry_json_get(reply, "qemu", json_type_object);
	q->major = (unsigned int)ferry_json_uint(qemu, "major", 0);
	q->minor = (unsigned int)ferry_json_uint(qemu, "minor", 0);
	snprintf(q->guest.version, sizeof(q->guest.version), "QEMU %u.%u.%u", q->major, q->minor,
		 (unsigned int)ferry_json_uint(qemu, "micro", 0));
	json_object_put(reply);
	return 0;
}

/* Take over the held connection, or make a new one. */
static int open_connection(struct ferry_qemu *q, const struct ferry_guest_open_params *params,
			   struct ferry_error *err)
{
	int fd, r;

	if (params->held_fd >= 0) {
		fd = fcntl(params->held_fd, F_DUPFD_CLOEXEC, 3);
		if (fd < 0)
			return ferry_error_set(err, errno, "held QMP connection: %s",
					       strerror(errno));
		r = ferry_qmp_adopt(fd, q->guest.path, q->timeout_ms, &q->qmp, err);
		if (r)
			close(fd);
		else
			r = open_process(q, err);
		if (!r)
			r = open_version(q, err);
		if (r != -EPIPE)
			return r;
		/* QEMU lives but dropped this connection: its place is free again. */
		ferry_qmp_close(q->qmp);
		q->qmp = NULL;
		ferry_io_close(&q->pidfd);
	}
	r = ferry_qmp_connect(q->guest.path, q->timeout_ms, &q->qmp, err);
	if (!r)
		r = open_process(q, err);
	return r ? r : open_version(q, err);
}

static void qemu_close(struct ferry_guest *guest)
{
	struct ferry_qemu *q = ferry_qemu_of(guest);

	ferry_qmp_close(q->qmp);
	ferry_io_close(&q->saving);
	ferry_io_close(&q->loading);
	ferry_io_close(&q->pidfd);
	ferry_journal_free(&q->journal);
	free(q->peers.files);
	free(q->checked);
	free(q);
}

static const struct ferry_journal_rules rules = {
	.by_hand = "put QEMU back by hand: QMP query-migrate-capabilities, x-ignore-shared must be "
		   "off",
	.optional = {
		{ "capabilities", json_type_object }, { "parameters", json_type_object },
		{ "was", json_type_string }, { "userfaultfds", json_type_array },
		{ "throttled", json_type_array }, { "views", json_type_array },
		{ "spare", json_type_array },
	},
};

static int open_filled(struct ferry_qemu *q, const struct ferry_guest_open_params *params,
		       struct ferry_error *err)
{
	int r;

	if (params->undo) {
		r = ferry_journal_parse(&q->journal, &q->guest, q->role, params->undo, &rules, err);
		if (r)
			return r;
		q->migrating = true;
		if (ferry_journal_is_void(&q->journal)) {
			ferry_log_debug("QEMU (pid %d) has gone: nothing to undo",
					(int)q->guest.pid);
			return 0;
		}
	}
	r = open_connection(q, params, err);
	if (r == -ESRCH && params->undo)
		return 0; /* it ended just now */
	if (r)
		return r;
	if (!params->undo)
		r = ferry_journal_new(&q->journal, &q->guest, q->role, q->start, err);
	else if (q->guest.pid != (pid_t)ferry_json_uint(q->journal.undo, "pid", 0))
		r = ferry_error_set(err, ESTALE, "%s belongs to pid %d now, but pid %d is the QEMU "
				    "to put back and still runs; end one of them",
				    q->guest.path, (int)q->guest.pid,
				    (int)ferry_json_uint(q->journal.undo, "pid", 0));
	if (!r && q->host.hold)
		r = q->host.hold(q->host.ctx, "guest", ferry_qmp_fd(q->qmp), err);
	return r;
}

static int qemu_open(const struct ferry_guest_open_params *params, struct ferry_guest **out,
		     struct ferry_error *err)
{
	const struct ferry_guest_ops *ops;
	struct ferry_qemu *q;
	const char *path;
	unsigned int i;
	int r = ferry_guest_parse(params->spec, &ops, &path, err);

	if (r)
		return r;
	if (strlen(path) >= sizeof(q->guest.path))
		return ferry_error_set(err, ENAMETOOLONG, "%s: longer than the path of a UNIX "
				       "socket may be; use a shorter one", path);
	q = calloc(1, sizeof(*q));
	if (!q)
		return ferry_error_set(err, ENOMEM, "opening %s: no memory", params->spec);
	q->guest.ops = &ferry_guest_qemu;
	strcpy(q->guest.path, path);
	if (params->host)
		q->host = *params->host;
	q->role = params->role;
	q->peers.source = q->role == FERRY_GUEST_SOURCE;
	q->peers.advice = "end it or detach that device first (vhost-user backend, virtiofsd, "
			  "ivshmem peer?)";
	q->timeout_ms = params->timeout_ms;
	q->pidfd = q->saving = q->loading = -1;
	for (i = 0; i < params->n_peers; i++)
		ferry_peers_allow(&q->peers, params->peers[i]);
	r = open_filled(q, params, err);
	if (r) {
		qemu_close(&q->guest);
		return r;
	}
	if (params->held_fd >= 0)
		close(params->held_fd);
	*out = &q->guest;
	return 0;
}

static void qemu_announce(struct ferry_guest *guest)
{
	struct json_object *args = json_object_new_object();
	struct ferry_error err;

	/* QEMU's own defaults for a migration: 5 rounds, 50 ms and then 100 ms more each. */
	json_object_object_add(args, "initial", json_object_new_int(50));
	json_object_object_add(args, "max", json_object_new_int(550));
	json_object_object_add(args, "rounds", json_object_new_int(5));
	json_object_object_add(args, "step", json_object_new_int(100));
	if (ferry_qemu_command(ferry_qemu_of(guest), "announce-self", args, -1, NULL, &err))
		ferry_log_debug("announcing the guest: %s", err.text);
}

static void qemu_allow(struct ferry_guest *guest, pid_t pid)
{
	ferry_peers_allow(&ferry_qemu_of(guest)->peers, pid);
}

static int qemu_check_views(struct ferry_guest *guest, struct ferry_error *err)
{
	return ferry_peers_check_views(&ferry_qemu_of(guest)->peers, err);
}

const struct ferry_guest_ops ferry_guest_qemu = {
	.scheme = "qmp",
	.open = qemu_open,
	.close = qemu_close,
	.check = ferry_qemu_check,
	.describe = ferry_qemu_describe,
	.allow = qemu_allow,
	.check_heir = ferry_qemu_check_heir,
	.prepare = ferry_qemu_prepare,
	.running = ferry_qemu_running,
	.pause = ferry_qemu_pause,
	.resume = ferry_qemu_resume,
	.save = ferry_qemu_save,
	.load = ferry_qemu_load,
	.couple = ferry_qemu_couple,
	.run = ferry_qemu_run,
	.announce = qemu_announce,
	.quit = ferry_qemu_quit,
	.throttle = ferry_qemu_throttle,
	.userfaultfd = ferry_qemu_userfaultfd,
	.zap = ferry_qemu_zap,
	.views = ferry_qemu_views,
	.check_views = qemu_check_views,
	.direct_io = ferry_qemu_direct_io,
	.undo = ferry_qemu_undo,
};
