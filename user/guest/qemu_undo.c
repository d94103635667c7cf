// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Put QEMU back. Every step is tried, also when an earlier one failed, and the
 * first failure is reported; but when QEMU stopped answering, the other
 * questions would only wait again.
 */
#include <errno.h>
#include <string.h>

#include "base/log.h"
#include "guest/json.h"
#include "guest/qemu.h"

/* A blocked guest CPU keeps QEMU from ending by itself; this long it may try. */
#define QUIT_WAIT_MS 3000u

struct undo_step {
	const char *what;
	int (*run)(struct ferry_qemu *q, struct ferry_error *err);
	bool asks_qemu;
};

static int close_names(struct ferry_qemu *q, struct ferry_error *err)
{
	static const char *const names[] = { FERRY_QEMU_STATE_FD, FERRY_QEMU_UFFD_DEVICE,
					     FERRY_QEMU_VIEW_FD };
	size_t i;
	int r = 0;

	for (i = 0; !r && i < sizeof(names) / sizeof(names[0]); i++)
		r = ferry_qemu_drop_fd(q, names[i], err);
	return r;
}

static int undo_resume(struct ferry_qemu *q, struct ferry_error *err)
{
	return ferry_qemu_resume(&q->guest, err);
}

/* The run state comes back first: it is what somebody waits for. */
static const struct undo_step step_settle = { "ending QEMU's migration", ferry_qemu_settle, true };
static const struct undo_step step_unthrottle = {
	"giving the guest its time back", ferry_qemu_throttle_undo, false
};
static const struct undo_step step_resume = { "resuming the guest", undo_resume, true };
static const struct undo_step steps_always[] = {
	{ "closing passed descriptors", close_names, true },
	{ "restoring migration capabilities", ferry_qemu_caps_restore, true },
	{ "restoring migration parameters", ferry_qemu_params_restore, true },
	{ "closing userfaultfds", ferry_qemu_userfaultfd_undo, false },
	{ "putting back the plain mapping of guest RAM", ferry_qemu_views_undo, true },
};

static void run_step(struct ferry_qemu *q, const struct undo_step *step, int *first,
		     struct ferry_error *err)
{
	struct ferry_error why = { 0 };
	int r;

	if (step->asks_qemu && *first == -ETIMEDOUT)
		return;
	r = step->run(q, &why);
	if (!r || ferry_qemu_gone(q, 0))
		return;
	if (*first) {
		ferry_log_warn("%s of QEMU (pid %d): %s", step->what, (int)q->guest.pid, why.text);
		return;
	}
	*first = ferry_error_set(err, -r, "%s of QEMU (pid %d): %s", step->what,
				 (int)q->guest.pid, why.text);
}

/*
 * Does the destination hold device state, or began to load it? A QEMU that was
 * never prepared is none of our business, whatever runs in it.
 *
 * Return: 1, 0, or why it does not answer.
 */
static int holds_state(struct ferry_qemu *q)
{
	char status[FERRY_QEMU_STATUS_MAX];
	bool running;
	int r;

	if (!ferry_json_get(q->journal.undo, "capabilities", json_type_object))
		return 0;
	/* It waits for the first byte of one. */
	if (q->loading >= 0)
		return 1;
	r = ferry_qemu_status(q, status, &running, NULL);
	if (r)
		return r;
	if (strcmp(status, "inmigrate"))
		return 1;
	r = ferry_qemu_migration(q, status, NULL, NULL);
	if (r)
		return r;
	return strcmp(status, "none") && strcmp(status, "failed");
}

/*
 * End a destination whose guest must never run. One that does not answer is
 * loaded: only a guest that waits for memory can block QEMU so. It has nothing to
 * flush, so it is not asked twice.
 */
static int end_destination(struct ferry_qemu *q, int holds, struct ferry_error *err)
{
	if (holds < 0)
		ferry_log_warn("QEMU (pid %d) does not answer; killing it", (int)q->guest.pid);
	else if (!ferry_qemu_command(q, "quit", NULL, -1, NULL, NULL) &&
		 ferry_qemu_gone(q, QUIT_WAIT_MS))
		return 0;
	return ferry_qemu_kill(q, err);
}

/* All is back: another undo() has nothing left to do, except to resume if that was not asked. */
static void undo_clear(struct ferry_qemu *q, bool resumed)
{
	json_object_object_del(q->journal.undo, "capabilities");
	json_object_object_del(q->journal.undo, "parameters");
	json_object_object_del(q->journal.undo, "userfaultfds");
	json_object_object_del(q->journal.undo, "views");
	json_object_object_del(q->journal.undo, "spare");
	if (resumed)
		json_object_object_del(q->journal.undo, "was");
	ferry_journal_less(&q->journal, &q->host);
}

int ferry_qemu_undo(struct ferry_guest *guest, bool resume, struct ferry_error *err)
{
	struct ferry_qemu *q = ferry_qemu_of(guest);
	bool source = q->role == FERRY_GUEST_SOURCE;
	int first = 0;
	size_t i;

	/* A control group may outlive its QEMU; and what comes now needs QEMU awake. */
	run_step(q, &step_unthrottle, &first, err);
	if (ferry_qemu_gone(q, 0))
		return first;
	if (!source && !resume) {
		int holds = holds_state(q);

		if (holds)
			return end_destination(q, holds, err);
	}
	if (source)
		run_step(q, &step_settle, &first, err);
	if (source && resume)
		run_step(q, &step_resume, &first, err);
	for (i = 0; i < sizeof(steps_always) / sizeof(steps_always[0]); i++)
		run_step(q, &steps_always[i], &first, err);
	if (ferry_qemu_gone(q, 0))
		return 0;
	if (!first)
		undo_clear(q, resume);
	return first;
}
