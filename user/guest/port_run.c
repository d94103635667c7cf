// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Run state and device state of the guest behind a port. Device state travels in a memory
 * file that we make and pass: neither side can hang on the other half-way, and one that is
 * loaded cannot change any more (seals).
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/io.h"
#include "base/log.h"
#include "guest/json.h"
#include "guest/port.h"

/* A VMM that was asked to quit gets this long to end in good order. */
#define QUIT_WAIT_MS 5000u

int ferry_vmm_running(struct ferry_guest *guest, struct ferry_error *err)
{
	uint32_t state;
	int r = ferry_vmm_state(ferry_vmm_of(guest), &state, err);

	return r ? r : !!(state & FERRY_PROTO_STATE_RUNNING);
}

/*
 * A person may pause the guest while it is being migrated: then it is not ours to resume.
 * So each pause asks, and the journal changes only when the answer does.
 */
int ferry_vmm_pause(struct ferry_guest *guest, struct ferry_error *err)
{
	struct ferry_vmm *v = ferry_vmm_of(guest);
	const char *was = ferry_json_string(v->journal.undo, "was"), *now;
	int r = ferry_vmm_running(guest, err);

	if (r < 0)
		return r;
	now = r ? "running" : "paused";
	if (!was || strcmp(was, now)) {
		json_object_object_add(v->journal.undo, "was", json_object_new_string(now));
		r = ferry_vmm_journal(v, err);
		if (r)
			return r;
	}
	guest->stopped_ns = ferry_clock_ns();
	/* Of a paused guest, too: it also ends what devices do. */
	return ferry_vmm_ask(v, FERRY_PROTO_PAUSE, "pausing the guest", err);
}

int ferry_vmm_resume(struct ferry_guest *guest, struct ferry_error *err)
{
	struct ferry_vmm *v = ferry_vmm_of(guest);
	const char *was = ferry_json_string(v->journal.undo, "was");

	if (!was || strcmp(was, "running"))
		return 0;
	return ferry_vmm_ask(v, FERRY_PROTO_RESUME, "resuming the guest", err);
}

static int state_file(int *fd, struct ferry_error *err)
{
	*fd = memfd_create("ferry-state", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (*fd < 0)
		return ferry_error_set(err, errno, "a memory file for the device state: %s",
				       strerror(errno));
	return 0;
}

static int read_state(int fd, uint64_t bytes, uint8_t **state, struct ferry_error *err)
{
	int r;

	*state = malloc(bytes ? bytes : 1);
	if (!*state)
		return ferry_error_set(err, ENOMEM, "no memory for %llu bytes of device state",
				       (unsigned long long)bytes);
	r = bytes ? ferry_io_pread(fd, *state, bytes, 0) : 0;
	if (!r)
		return 0;
	free(*state);
	*state = NULL;
	return ferry_error_set(err, -r, "reading the device state: %s", strerror(-r));
}

int ferry_vmm_save(struct ferry_guest *guest, size_t max, uint8_t **state, size_t *bytes,
		   struct ferry_error *err)
{
	struct ferry_channel_message m = { .head.type = FERRY_PROTO_SAVE };
	struct ferry_vmm *v = ferry_vmm_of(guest);
	uint64_t size = 0;
	int fd, r = state_file(&fd, err);

	*state = NULL;
	if (r)
		return r;
	m.head.length = (uint32_t)ferry_proto_u64_encode(max, m.body);
	m.fd = fd;
	r = ferry_vmm_call(v, &v->vmm, &m, "saving the device state", err);
	if (r == -EREMOTEIO && m.head.status == -EFBIG)
		r = -EFBIG;
	if (!r)
		ferry_proto_u64_decode(&size, m.body, m.head.length);
	if (!r && size > max)
		r = ferry_error_set(err, EFBIG, "the device state has %llu bytes: is RAM in it?",
				    (unsigned long long)size);
	if (!r)
		r = read_state(fd, size, state, err);
	*bytes = (size_t)size;
	close(fd);
	return r;
}

int ferry_vmm_load(struct ferry_guest *guest, const uint8_t *state, size_t bytes,
		   struct ferry_error *err)
{
	const int seals = F_SEAL_SEAL | F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW;
	struct ferry_channel_message m = { .head.type = FERRY_PROTO_LOAD };
	struct ferry_vmm *v = ferry_vmm_of(guest);
	uint32_t now;
	int fd, r = state_file(&fd, err);

	if (r)
		return r;
	r = ferry_io_pwrite(fd, state, bytes, 0);
	if (!r && fcntl(fd, F_ADD_SEALS, seals))
		r = -errno;
	if (r) {
		ferry_error_set(err, -r, "writing the device state: %s", strerror(-r));
	} else {
		m.fd = fd;
		r = ferry_vmm_call(v, &v->vmm, &m, "loading the device state", err);
	}
	close(fd);
	if (!r)
		r = ferry_vmm_state(v, &now, err);
	if (!r && ((now & FERRY_PROTO_STATE_RUNNING) || !(now & FERRY_PROTO_STATE_LOADED)))
		r = ferry_error_set(err, EPROTO, "the VMM (pid %d) started the guest by itself",
				    (int)guest->pid);
	return r;
}

int ferry_vmm_run(struct ferry_guest *guest, struct ferry_error *err)
{
	struct ferry_vmm *v = ferry_vmm_of(guest);
	int r;

	if (ferry_vmm_gone(v, 0))
		return ferry_error_set(err, ESRCH, "starting the guest: the VMM (pid %d) has gone",
				       (int)guest->pid);
	r = ferry_vmm_ask(v, FERRY_PROTO_RUN, "starting the guest", err);
	if (!r || r == -EREMOTEIO)
		return r;
	/* Sent, and no word since: a vCPU may have run. */
	ferry_error_prefix(err, "it may have run");
	if (err)
		err->errnum = EIO;
	return -EIO;
}

static int kill_vmm(struct ferry_vmm *v, struct ferry_error *err)
{
	if (syscall(SYS_pidfd_send_signal, v->pidfd, SIGKILL, NULL, 0) && errno != ESRCH)
		return ferry_error_set(err, errno, "killing the VMM (pid %d): %s; end it by hand",
				       (int)v->guest.pid, strerror(errno));
	if (!ferry_vmm_gone(v, v->timeout_ms))
		return ferry_error_set(err, ETIMEDOUT, "the VMM (pid %d) was killed but does not end "
				       "(stuck in the kernel?)", (int)v->guest.pid);
	return 0;
}

int ferry_vmm_quit(struct ferry_guest *guest, struct ferry_error *err)
{
	struct ferry_vmm *v = ferry_vmm_of(guest);
	struct ferry_error why = { 0 };

	if (ferry_vmm_gone(v, 0))
		return 0;
	if (ferry_vmm_ask(v, FERRY_PROTO_QUIT, "ending the VMM", &why))
		ferry_log_debug("quit: %s", why.text);
	else if (ferry_vmm_gone(v, v->timeout_ms < QUIT_WAIT_MS ? v->timeout_ms : QUIT_WAIT_MS))
		return 0;
	if (ferry_vmm_gone(v, 0))
		return 0;
	ferry_log_warn("the VMM (pid %d) does not quit; killing it", (int)v->guest.pid);
	return kill_vmm(v, err);
}

/*
 * Does the destination hold a guest of ours, or part of one? A VMM that does not answer may.
 * One that was never prepared is none of our business, whatever runs in it.
 */
static bool holds_state(struct ferry_vmm *v)
{
	uint32_t state;

	if (!ferry_json_bool(v->journal.undo, "prepared", false))
		return false;
	return ferry_vmm_state(v, &state, NULL) || !(state & FERRY_PROTO_STATE_INCOMING);
}

int ferry_vmm_undo(struct ferry_guest *guest, bool resume, struct ferry_error *err)
{
	struct ferry_vmm *v = ferry_vmm_of(guest);
	struct ferry_error why = { 0 };
	int r = 0, reset;

	if (ferry_vmm_gone(v, 0))
		return 0;
	if (v->role != FERRY_GUEST_SOURCE && !resume && holds_state(v))
		return ferry_vmm_quit(guest, err);
	/* The run state comes back first: it is what somebody waits for. */
	if (v->role == FERRY_GUEST_SOURCE && resume)
		r = ferry_vmm_resume(guest, err);
	reset = r == -ETIMEDOUT ? 0 : ferry_vmm_reset(v, r ? &why : err);
	if (ferry_vmm_gone(v, 0))
		return 0;
	if (r || reset)
		return r ? r : reset;
	if (resume && ferry_json_string(v->journal.undo, "was")) {
		json_object_object_del(v->journal.undo, "was");
		ferry_journal_less(&v->journal, &v->host);
	}
	return 0;
}
