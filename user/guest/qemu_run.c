// SPDX-License-Identifier: GPL-2.0-or-later
/* Run state of the guest in QEMU: stop, cont, quit. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "guest/json.h"
#include "guest/qemu.h"

/*
 * A destination that is just ending may hold the image locks for a moment
 * longer; this long `cont` at the source is tried again.
 */
#define CONT_RETRY_MS 5000u
#define CONT_PAUSE_NS (50 * FERRY_NS_PER_MS)

int ferry_qemu_status(struct ferry_qemu *q, char status[FERRY_QEMU_STATUS_MAX], bool *running,
		      struct ferry_error *err)
{
	struct json_object *reply;
	const char *word;
	int r = ferry_qemu_command(q, "query-status", NULL, -1, &reply, err);

	if (r)
		return r;
	word = ferry_json_string(reply, "status");
	snprintf(status, FERRY_QEMU_STATUS_MAX, "%s", word ? word : "unknown");
	*running = ferry_json_bool(reply, "running", false);
	json_object_put(reply);
	return 0;
}

int ferry_qemu_running(struct ferry_guest *guest, struct ferry_error *err)
{
	char status[FERRY_QEMU_STATUS_MAX];
	bool running;
	int r = ferry_qemu_status(ferry_qemu_of(guest), status, &running, err);

	return r ? r : running;
}

/*
 * A person may pause the guest while it is being migrated: then it is not ours
 * to resume. So each pause asks, and the journal changes only when the answer does.
 */
int ferry_qemu_pause(struct ferry_guest *guest, struct ferry_error *err)
{
	struct ferry_qemu *q = ferry_qemu_of(guest);
	const char *was = ferry_json_string(q->journal.undo, "was");
	char status[FERRY_QEMU_STATUS_MAX];
	bool running;
	int r;

	r = ferry_qemu_status(q, status, &running, err);
	if (r)
		return r;
	if (!was || strcmp(was, status)) {
		json_object_object_add(q->journal.undo, "was", json_object_new_string(status));
		r = ferry_qemu_journal(q, err);
		if (r)
			return r;
	}
	guest->stopped_ns = ferry_clock_ns();
	return running ? ferry_qemu_command(q, "stop", NULL, -1, NULL, err) : 0;
}

int ferry_qemu_resume(struct ferry_guest *guest, struct ferry_error *err)
{
	struct ferry_qemu *q = ferry_qemu_of(guest);
	uint64_t deadline_ns = ferry_clock_in_ms(CONT_RETRY_MS);
	const char *was = ferry_json_string(q->journal.undo, "was");
	bool told = false;
	int r;

	r = ferry_qemu_settle(q, err);
	if (r)
		return r;
	if (!was || strcmp(was, "running"))
		return 0;
	for (;;) {
		r = ferry_qemu_command(q, "cont", NULL, -1, NULL, err);
		if (r != -EREMOTEIO || ferry_clock_ns() >= deadline_ns)
			break;
		if (!told && err)
			ferry_log_warn("resuming the guest: %s; trying again", err->text);
		told = true;
		ferry_clock_sleep_ns(CONT_PAUSE_NS);
	}
	if (r == -EREMOTEIO)
		ferry_error_prefix(err, "resuming the guest at the source (if another QEMU holds "
				   "its disks, end that one, then type `cont` here)");
	return r;
}

/* `cont` was refused. Return: 0 when the guest runs all the same, -EIO when nobody knows. */
static int refused_run(struct ferry_qemu *q, struct ferry_error *err)
{
	char status[FERRY_QEMU_STATUS_MAX];
	struct ferry_error second;
	bool running;

	if (ferry_qemu_status(q, status, &running, &second))
		return ferry_error_set(err, EIO, "starting the guest failed and its state is "
				       "unknown: %s", second.text);
	if (running)
		return 0;
	ferry_error_prefix(err, "starting the guest (QEMU is '%s')", status);
	return -EREMOTEIO;
}

int ferry_qemu_run(struct ferry_guest *guest, struct ferry_error *err)
{
	struct ferry_qemu *q = ferry_qemu_of(guest);
	char status[FERRY_QEMU_STATUS_MAX];
	bool running;
	int r;

	/* Before the state is loaded `cont` means "start by yourself when it comes". */
	if (!q->loaded) {
		r = ferry_qemu_status(q, status, &running, err);
		if (r)
			return r;
		if (running)
			return 0;
		if (!strcmp(status, "inmigrate"))
			return ferry_error_set(err, EINVAL, "starting the guest: QEMU (pid %d) has "
					       "no device state yet", (int)q->guest.pid);
	}
	if (ferry_qemu_gone(q, 0))
		return ferry_qemu_command(q, "cont", NULL, -1, NULL, err);
	r = ferry_qemu_command(q, "cont", NULL, -1, NULL, err);
	if (r == -EREMOTEIO)
		return refused_run(q, err);
	if (r) {
		/* Sent, and no word since: a vCPU may have run. */
		ferry_error_prefix(err, "starting the guest (it may have run)");
		if (err)
			err->errnum = EIO;
		return -EIO;
	}
	return 0;
}

int ferry_qemu_quit(struct ferry_guest *guest, struct ferry_error *err)
{
	struct ferry_qemu *q = ferry_qemu_of(guest);
	struct ferry_error why;

	if (ferry_qemu_gone(q, 0))
		return 0;
	if (ferry_qemu_command(q, "quit", NULL, -1, NULL, &why))
		ferry_log_debug("quit: %s", why.text);
	else if (ferry_qemu_gone(q, q->timeout_ms))
		return 0;
	if (ferry_qemu_gone(q, 0))
		return 0;
	ferry_log_warn("QEMU (pid %d) does not quit; killing it", (int)q->guest.pid);
	return ferry_qemu_kill(q, err);
}
