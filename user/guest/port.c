// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Driver for a VMM that links libferry (Documentation/port.rst).
 *
 * All talk is requests and replies on one socket (port_call.c). The library does what it is
 * asked and knows when the connection ends: then it takes tracked views, the dirty log and
 * the throttle back by itself. The run state it leaves alone, that is for our records.
 *
 * Who is the VMM? The process that answered HELLO (SCM_CREDENTIALS), fixed by a pidfd.
 * check() makes sure that it maps the RAM it told of.
 *
 * Undo text (host->journal), one JSON object, durable before what it undoes:
 *   {"driver":"port","version":1,"path":"/run/vm.port","role":"source",
 *    "pid":71,"start":8123,     which process; another one owes us nothing
 *    "prepared":true,           else it is none of our business what it holds
 *    "was":"running"}           or "paused": run state before the first pause()
 * Whether device state was loaded the VMM tells (STATE). Views, log and throttle need no
 * note either: undo() says RESET, and without undo() the end of the connection does it.
 *
 * The guardian holds a copy of the connection, so a worker's death does not end it; the
 * next process says HELLO on it again and drops answers to questions it did not ask.
 *
 * A VMM that has ended took all we did with it: undo() is then done, every other operation
 * fails at once with -ESRCH "the VMM (pid N) has gone".
 */
#include "guest/port.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/io.h"
#include "base/log.h"
#include "guest/json.h"
#include "guest/proc.h"

static void close_peer(struct ferry_vmm_peer *peer)
{
	ferry_io_close(&peer->sock);
	free(peer->addrs);
	free(peer->index);
}

static void vmm_close(struct ferry_guest *guest)
{
	struct ferry_vmm *v = ferry_vmm_of(guest);
	unsigned int i;

	ferry_vmm_log_free(v);
	for (i = 0; i < v->n_members; i++)
		close_peer(&v->members[i]);
	close_peer(&v->vmm);
	ferry_io_close(&v->pidfd);
	ferry_journal_free(&v->journal);
	free(v->peers.files);
	free(v);
}

/* Every packet received from now on says who sent it. */
static int take_socket(struct ferry_vmm *v, int sock, struct ferry_error *err)
{
	int on = 1;

	v->vmm.sock = sock;
	if (setsockopt(sock, SOL_SOCKET, SO_PASSCRED, &on, sizeof(on)))
		return ferry_error_set(err, errno, "%s: %s", v->guest.path, strerror(errno));
	return 0;
}

static int connect_failed(const struct ferry_vmm *v, int r, struct ferry_error *err)
{
	const char *path = v->guest.path;

	switch (r) {
	case -EPROTOTYPE:
		return ferry_error_set(err, EPROTOTYPE, "%s is not the port of a VMM with libferry; "
				       "if it is the QMP socket of a QEMU, type qmp:%s", path, path);
	case -ENOENT:
	case -ECONNREFUSED:
		return ferry_error_set(err, -r, "%s: no VMM listens there (%s); start it, or look "
				       "which path it gives to ferry_port_listen()", path,
				       strerror(-r));
	case -EAGAIN:
		return ferry_error_set(err, EAGAIN, "%s: the VMM does not take connections; does it "
				       "serve its port (ferry_port_process())?", path);
	default:
		return ferry_error_set(err, -r, "connecting to %s: %s", path, strerror(-r));
	}
}

/* Say HELLO and pin down which process answered. */
static int open_process(struct ferry_vmm *v, struct ferry_error *err)
{
	int r;

	v->vmm.pid = 0;
	/* Until it has answered nobody can be gone. */
	v->pidfd = -1;
	r = ferry_vmm_hello(v, &v->vmm, err);
	if (r)
		return r == -ESRCH ? ferry_error_set(err, EPIPE, "%s: closed at once",
						     v->guest.path) : r;
	if (v->vmm.pid <= 0)
		return ferry_error_set(err, ESRCH, "%s: the VMM's process is not visible here; run "
				       "ferry in its pid namespace", v->guest.path);
	v->guest.pid = v->vmm.pid;
	v->pidfd = (int)syscall(SYS_pidfd_open, v->guest.pid, 0);
	if (v->pidfd < 0)
		return ferry_error_set(err, errno, "the VMM (pid %d) %s: %s", (int)v->guest.pid,
				       errno == ESRCH ? "has gone" : "cannot be watched",
				       strerror(errno));
	fcntl(v->pidfd, F_SETFD, FD_CLOEXEC);
	v->start = ferry_proc_start(v->guest.pid);
	v->peers.vmm = v->guest.pid;
	snprintf(v->guest.version, sizeof(v->guest.version), "%s", v->vmm.welcome.kind);
	snprintf(v->guest.kind, sizeof(v->guest.kind), "port:%s", v->vmm.welcome.kind);
	return 0;
}

static int open_connection(struct ferry_vmm *v, const struct ferry_guest_open_params *params,
			   struct ferry_error *err)
{
	int fd, r;

	if (params->held_fd >= 0) {
		fd = fcntl(params->held_fd, F_DUPFD_CLOEXEC, 3);
		if (fd < 0)
			return ferry_error_set(err, errno, "held connection to the VMM: %s",
					       strerror(errno));
		r = take_socket(v, fd, err);
		if (!r)
			r = open_process(v, err);
		if (r != -EPIPE)
			return r;
		/* The VMM dropped it: its place is free again. */
		ferry_io_close(&v->vmm.sock);
	}
	fd = ferry_channel_connect(v->guest.path);
	if (fd < 0)
		return connect_failed(v, fd, err);
	r = take_socket(v, fd, err);
	return r ? r : open_process(v, err);
}

static const struct ferry_journal_rules rules = {
	.by_hand = "resume the guest, or end its VMM, by hand",
};

static int open_filled(struct ferry_vmm *v, const struct ferry_guest_open_params *params,
		       struct ferry_error *err)
{
	int r;

	if (params->undo) {
		r = ferry_journal_parse(&v->journal, &v->guest, v->role, params->undo, &rules, err);
		if (r)
			return r;
		if (ferry_journal_is_void(&v->journal)) {
			ferry_log_debug("the VMM (pid %d) has gone: nothing to undo",
					(int)v->guest.pid);
			return 0;
		}
	}
	r = open_connection(v, params, err);
	if (r && params->undo && ferry_journal_is_void(&v->journal))
		return 0; /* it ended just now */
	if (r)
		return r;
	if (!params->undo)
		r = ferry_journal_new(&v->journal, &v->guest, v->role, v->start, err);
	else if (v->guest.pid != (pid_t)ferry_json_uint(v->journal.undo, "pid", 0))
		r = ferry_error_set(err, ESTALE, "%s belongs to pid %d now, but pid %d is the VMM to "
				    "put back and still runs; end one of them", v->guest.path,
				    (int)v->guest.pid, (int)ferry_json_uint(v->journal.undo, "pid", 0));
	if (!r && v->host.hold)
		r = v->host.hold(v->host.ctx, "guest", v->vmm.sock, err);
	return r;
}

static int vmm_open(const struct ferry_guest_open_params *params, struct ferry_guest **out,
		    struct ferry_error *err)
{
	const struct ferry_guest_ops *ops;
	struct ferry_vmm *v;
	const char *path;
	unsigned int i;
	int r = ferry_guest_parse(params->spec, &ops, &path, err);

	if (r)
		return r;
	if (strlen(path) >= sizeof(v->guest.path))
		return ferry_error_set(err, ENAMETOOLONG, "%s: longer than the path of a UNIX socket "
				       "may be; use a shorter one", path);
	v = calloc(1, sizeof(*v));
	if (!v)
		return ferry_error_set(err, ENOMEM, "opening %s: no memory", params->spec);
	v->guest.ops = &ferry_guest_port;
	strcpy(v->guest.path, path);
	if (params->host)
		v->host = *params->host;
	v->role = params->role;
	v->peers.source = v->role == FERRY_GUEST_SOURCE;
	v->peers.advice = "end it, or let it register with the VMM's port (ferry_port_join())";
	v->timeout_ms = params->timeout_ms;
	v->pidfd = -1;
	v->vmm.sock = -1;
	v->log_fd = -1;
	for (i = 0; i < params->n_peers; i++)
		ferry_peers_allow(&v->peers, params->peers[i]);
	r = open_filled(v, params, err);
	if (r) {
		vmm_close(&v->guest);
		return r;
	}
	if (params->held_fd >= 0)
		close(params->held_fd);
	*out = &v->guest;
	return 0;
}

/* Nothing to be set up; but from now on there is something to undo. */
static int vmm_prepare(struct ferry_guest *guest, struct ferry_error *err)
{
	struct ferry_vmm *v = ferry_vmm_of(guest);

	json_object_object_add(v->journal.undo, "prepared", json_object_new_boolean(true));
	return ferry_vmm_journal(v, err);
}

/* The VMM has the network: it announces the guest in its run(). */
static void vmm_announce(struct ferry_guest *guest)
{
	(void)guest;
}

static int vmm_throttle(struct ferry_guest *guest, unsigned int percent, struct ferry_error *err)
{
	struct ferry_vmm *v = ferry_vmm_of(guest);
	int r;

	if (ferry_vmm_gone(v, 0) && !percent)
		return 0;
	if (!(v->vmm.welcome.has & FERRY_PROTO_HAS_THROTTLE))
		return ferry_error_set(err, EOPNOTSUPP, "this VMM (pid %d) offers no throttle; use "
				       "--on-stall wait or cancel", (int)guest->pid);
	r = ferry_vmm_journal(v, err);
	return r ? r : ferry_vmm_ask_u32(v, FERRY_PROTO_THROTTLE, percent, "throttling the vCPUs",
					 err);
}

static int vmm_direct_io(struct ferry_guest *guest, char *why, size_t why_bytes,
			 struct ferry_error *err)
{
	struct ferry_channel_message m = { .head.type = FERRY_PROTO_DIRECT_IO, .fd = -1 };
	struct ferry_vmm *v = ferry_vmm_of(guest);
	uint32_t direct = 0;
	int r = ferry_vmm_call(v, &v->vmm, &m, "asking for direct I/O", err);

	if (r)
		return r;
	ferry_proto_u32_decode(&direct, m.body, m.head.length);
	if (direct)
		ferry_proto_text(why, why_bytes, m.body + 4, m.head.length - 4);
	/* What it does with its disks nobody tells us. */
	else if (v->n_members)
		snprintf(why, why_bytes, "pid %d has registered and may use direct I/O",
			 (int)v->members[0].pid);
	return direct || v->n_members;
}

static void vmm_allow(struct ferry_guest *guest, pid_t pid)
{
	ferry_peers_allow(&ferry_vmm_of(guest)->peers, pid);
}

static int vmm_check_views(struct ferry_guest *guest, struct ferry_error *err)
{
	return ferry_peers_check_views(&ferry_vmm_of(guest)->peers, err);
}

const struct ferry_guest_ops ferry_guest_port = {
	.scheme = "port",
	.open = vmm_open,
	.close = vmm_close,
	.check = ferry_vmm_check,
	.describe = ferry_vmm_describe,
	.allow = vmm_allow,
	.check_heir = ferry_vmm_check_heir,
	.adopt = ferry_vmm_adopt,
	.quiesce = ferry_vmm_quiesce,
	.prepare = vmm_prepare,
	.running = ferry_vmm_running,
	.pause = ferry_vmm_pause,
	.resume = ferry_vmm_resume,
	.save = ferry_vmm_save,
	.load = ferry_vmm_load,
	.run = ferry_vmm_run,
	.announce = vmm_announce,
	.quit = ferry_vmm_quit,
	.throttle = vmm_throttle,
	.userfaultfd = ferry_vmm_userfaultfd,
	.member = ferry_vmm_member,
	.views = ferry_vmm_views,
	.check_views = vmm_check_views,
	.log = ferry_vmm_log,
	.direct_io = vmm_direct_io,
	.undo = ferry_vmm_undo,
};
