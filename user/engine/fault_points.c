// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/fault_points.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/io.h"
#include "base/log.h"

struct fault_stage {
	const char *name;
	enum ferry_role role;
	const char *when;
};

static const struct fault_stage fault_stages[] = {
	{ "attach", FERRY_ROLE_SOURCE, "the guest is checked, nothing has been changed" },
	{ "connect", FERRY_ROLE_SOURCE, "the destination answered HELLO" },
	{ "prepare", FERRY_ROLE_SOURCE, "capabilities are set, channels are up" },
	{ "track", FERRY_ROLE_SOURCE, "dirty tracking is on" },
	{ "bulk", FERRY_ROLE_SOURCE, "all RAM has been sent once" },
	{ "round", FERRY_ROLE_SOURCE, "one more round of dirty pages has been sent" },
	{ "pre-switchover", FERRY_ROLE_SOURCE, "switchover is decided, the guest runs" },
	{ "switch", FERRY_ROLE_SOURCE, "postcopy: the fault channel is up, the guest runs" },
	{ "stop", FERRY_ROLE_SOURCE, "the guest is stopped" },
	{ "save", FERRY_ROLE_SOURCE, "device state is saved" },
	{ "final", FERRY_ROLE_SOURCE, "the last dirty pages are queued" },
	{ "flush", FERRY_ROLE_SOURCE, "every channel is at the barrier" },
	{ "discard", FERRY_ROLE_SOURCE, "postcopy: POSTCOPY is sent, PACKAGE is not" },
	{ "package", FERRY_ROLE_SOURCE, "PACKAGE and PING are sent" },
	{ "loaded", FERRY_ROLE_SOURCE, "PONG came, COMMIT is not written" },
	{ "commit", FERRY_ROLE_SOURCE, "COMMIT is written, RUN is not sent" },
	{ "run", FERRY_ROLE_SOURCE, "RUN is sent, no answer yet" },
	{ "lacks", FERRY_ROLE_SOURCE, "postcopy: RUNNING_LACKS came, pages are being sent" },
	{ "paused", FERRY_ROLE_SOURCE, "postcopy: the link is lost, postcopy-paused is recorded" },
	{ "answered", FERRY_ROLE_SOURCE, "recovery: the destination told which pages it has" },
	{ "again", FERRY_ROLE_SOURCE, "recovery: all channels are connected again" },
	{ "running", FERRY_ROLE_SOURCE, "RUNNING came, the source VMM is still there" },
	{ "quit", FERRY_ROLE_SOURCE, "the source VMM has quit, ACK is not sent" },
	{ "file", FERRY_ROLE_SOURCE, "save: the file is made, under no name yet" },
	{ "file-write", FERRY_ROLE_SOURCE, "save: pages are about to be written; fail: the disk does" },
	{ "resumed", FERRY_ROLE_SOURCE, "save: the guest runs again, the file has no tables" },
	{ "file-written", FERRY_ROLE_SOURCE, "save: all but the commit record is written" },
	{ "file-synced", FERRY_ROLE_SOURCE, "save: and synced" },
	{ "file-commit", FERRY_ROLE_SOURCE, "save: the commit record too; the file has no name" },
	{ "file-named", FERRY_ROLE_SOURCE, "save: the file has its name, the folder is not synced" },
	{ "listen", FERRY_ROLE_DESTINATION, "the listener is up" },
	{ "hello", FERRY_ROLE_DESTINATION, "the source said HELLO" },
	{ "blocks", FERRY_ROLE_DESTINATION, "RAM is punched, capabilities are set" },
	{ "receive", FERRY_ROLE_DESTINATION, "the first barrier was passed: bulk RAM is here" },
	{ "listening", FERRY_ROLE_DESTINATION, "postcopy: RAM is armed" },
	{ "package-received", FERRY_ROLE_DESTINATION, "device state is here, not loaded" },
	{ "load", FERRY_ROLE_DESTINATION, "device state is loaded, not recorded" },
	{ "commit-wait", FERRY_ROLE_DESTINATION, "commit-wait is recorded, PONG is not sent" },
	{ "pong", FERRY_ROLE_DESTINATION, "PONG is sent" },
	{ "run-received", FERRY_ROLE_DESTINATION, "RUN came, RUN-ACCEPTED is not written" },
	{ "run-accepted", FERRY_ROLE_DESTINATION, "RUN-ACCEPTED is written, the guest is stopped" },
	{ "start", FERRY_ROLE_DESTINATION, "the guest runs, RUNNING is not sent" },
	{ "lacks-sent", FERRY_ROLE_DESTINATION, "postcopy: RUNNING_LACKS is sent" },
	{ "cut", FERRY_ROLE_DESTINATION, "postcopy: the link is lost, postcopy-paused is recorded" },
	{ "back", FERRY_ROLE_DESTINATION, "recovery: the raised epoch is recorded, not answered" },
	{ "told", FERRY_ROLE_DESTINATION, "recovery: RECEIVED is sent, ANSWER is not" },
	{ "recover", FERRY_ROLE_DESTINATION, "recovery: all channels are there again" },
	{ "placed", FERRY_ROLE_DESTINATION, "postcopy: every page is placed, PLACED is not sent" },
	{ "running-sent", FERRY_ROLE_DESTINATION, "RUNNING is sent, no ACK yet" },
	{ "opened", FERRY_ROLE_DESTINATION, "restore: the file is checked, the guest is untouched" },
	{ "pages", FERRY_ROLE_DESTINATION, "restore: all pages are read (lazy: RAM is armed)" },
	{ "file-read", FERRY_ROLE_DESTINATION, "restore: pages were read; fail: the disk did" },
	{ "lazy-read", FERRY_ROLE_DESTINATION, "restore --lazy: the same, while the guest runs" },
	{ "cpr-attach", FERRY_ROLE_CPR, "the guest is checked, nothing has been changed" },
	{ "cpr-exec", FERRY_ROLE_CPR, "--exec: the new VMM was started" },
	{ "cpr-check", FERRY_ROLE_CPR, "both VMMs are checked, neither has been changed" },
	{ "cpr-prepare", FERRY_ROLE_CPR, "capabilities are set, RAM is armed if it is mapped" },
	{ "cpr-stop", FERRY_ROLE_CPR, "the guest is stopped" },
	{ "cpr-quiesce", FERRY_ROLE_CPR, "its devices are let go" },
	{ "cpr-pass", FERRY_ROLE_CPR, "the new VMM maps the RAM, which is armed" },
	{ "cpr-save", FERRY_ROLE_CPR, "device state is saved" },
	{ "cpr-load", FERRY_ROLE_CPR, "device state is loaded, COMMIT is not written" },
	{ "cpr-commit", FERRY_ROLE_CPR, "COMMIT is written, the guest is stopped" },
	{ "cpr-run", FERRY_ROLE_CPR, "the guest runs in the new VMM, which is not recorded" },
	{ "cpr-ran", FERRY_ROLE_CPR, "that is recorded, the old VMM is still there" },
	{ "cpr-quit", FERRY_ROLE_CPR, "the old VMM has quit" },
};

enum fault_action {
	FAULT_NONE,
	FAULT_STOP,
	FAULT_KILL,
	FAULT_FAIL,
	FAULT_DELAY,
};

static struct {
	const struct fault_stage *stage;
	enum fault_action action;
	unsigned long delay_ms;
	pid_t victim; /* 0: this process */
	bool fired;
} fault;

static const struct fault_stage *fault_stage_find(const char *name, size_t len)
{
	size_t i;

	for (i = 0; i < sizeof(fault_stages) / sizeof(fault_stages[0]); i++)
		if (strlen(fault_stages[i].name) == len && !memcmp(fault_stages[i].name, name, len))
			return &fault_stages[i];
	return NULL;
}

static int fault_action_parse(const char *text)
{
	char *end;

	if (!strcmp(text, "stop"))
		return FAULT_STOP;
	if (!strcmp(text, "kill"))
		return FAULT_KILL;
	if (!strcmp(text, "fail"))
		return FAULT_FAIL;
	if (strncmp(text, "delay=", 6))
		return -EINVAL;
	fault.delay_ms = strtoul(text + 6, &end, 10);
	return *end || end == text + 6 ? -EINVAL : FAULT_DELAY;
}

int ferry_fault_point_init(pid_t guardian, struct ferry_error *err)
{
	const char *spec = getenv("FERRY_FAULT"), *side = getenv("FERRY_FAULT_SIDE");
	const char *colon;
	int action;

	memset(&fault, 0, sizeof(fault));
	if (!spec || !*spec)
		return 0;
	colon = strchr(spec, ':');
	fault.stage = colon ? fault_stage_find(spec, (size_t)(colon - spec)) : NULL;
	if (!fault.stage)
		return ferry_error_set(err, EINVAL,
				       "FERRY_FAULT=%s names no stage; 'ferry doctor "
				       "--fault-points' lists them", spec);
	action = fault_action_parse(colon + 1);
	if (action < 0)
		return ferry_error_set(err, EINVAL,
				       "FERRY_FAULT=%s: the action must be stop, kill, fail or "
				       "delay=MS", spec);
	fault.action = (enum fault_action)action;
	if (side && !strcmp(side, "guardian"))
		fault.victim = guardian;
	else if (side && strcmp(side, "worker"))
		return ferry_error_set(err, EINVAL,
				       "FERRY_FAULT_SIDE=%s must be worker or guardian", side);
	return 0;
}

/* Wait until a killed process is really gone, so that what follows has a fixed order. */
static void fault_await_death(pid_t pid)
{
	int fd = (int)syscall(SYS_pidfd_open, pid, 0);

	if (fd < 0)
		return;
	ferry_io_wait(fd, POLLIN, ferry_clock_in_ms(5000));
	close(fd);
}

int ferry_fault_point(const char *stage, struct ferry_error *err)
{
	pid_t victim;

	if (!fault.stage || strcmp(fault.stage->name, stage) ||
	    __atomic_exchange_n(&fault.fired, true, __ATOMIC_RELAXED)) /* several threads come by */
		return 0;
	victim = fault.victim ? fault.victim : getpid();
	ferry_log_debug("fault point %s fires", stage);
	switch (fault.action) {
	case FAULT_STOP:
		kill(victim, SIGSTOP);
		break;
	case FAULT_KILL:
		kill(victim, SIGKILL);
		fault_await_death(victim);
		break;
	case FAULT_DELAY:
		ferry_clock_sleep_ns(fault.delay_ms * FERRY_NS_PER_MS);
		break;
	case FAULT_FAIL:
		return ferry_error_set(err, ECANCELED, "FERRY_FAULT asked stage %s to fail", stage);
	case FAULT_NONE:
		break;
	}
	return 0;
}

void ferry_fault_point_list(FILE *out)
{
	size_t i;

	for (i = 0; i < sizeof(fault_stages) / sizeof(fault_stages[0]); i++)
		fprintf(out, "%-17s %-12s %s\n", fault_stages[i].name,
			ferry_role_name(fault_stages[i].role), fault_stages[i].when);
}
