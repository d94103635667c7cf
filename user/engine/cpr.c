// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * cpr: another VMM process takes over a guest of this host, its RAM included.
 *
 * Both VMMs map the same memory files; nothing is copied, and there is no link that could be
 * lost: one worker talks to both. What is dangerous instead is that the new VMM writes into
 * the RAM of a guest that may have to go on in the old one. So
 *
 *   the guest is stopped, and its devices are let go, before the RAM is passed on;
 *   each page that loading touches is kept first (fault/keep.c);
 *   the old VMM resumes from one place, cpr_settle.c, after the new one has ended for
 *   certain and the kept pages are back;
 *   the new one runs only after COMMIT is durable, and from then on the old one never does,
 *   unless the first attempt to start it failed for certain.
 *
 * Documentation/cpr.rst tells it to people, selftests/model/cpr.pml to a machine.
 */
#include "engine/cpr.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/io.h"
#include "base/log.h"
#include "engine/fault_points.h"
#include "engine/halt.h"
#include "engine/open.h"
#include "fault/uffd.h"
#include "wire/wire.h"

struct cpr_stage {
	const char *name;
	int (*run)(struct ferry_cpr *c, struct ferry_error *err);
};

/* ---- before anything is changed ---- */

static int claimed(struct ferry_job *job, pid_t vmm, struct ferry_error *err)
{
	return job->hooks->claimed ? job->hooks->claimed(job->hooks->ctx, vmm, err) : 0;
}

static int check_from(struct ferry_cpr *c, struct ferry_error *err)
{
	const struct ferry_guest_ops *ops = c->from->ops;
	int r = claimed(c->job, c->from->pid, err);

	if (!r)
		r = ops->check(c->from, err);
	if (!r)
		r = ops->describe(c->from, &c->ram, err);
	if (r)
		return r;
	pthread_mutex_lock(&c->job->lock);
	c->job->stats.ram_bytes = ferry_ram_bytes(&c->ram);
	pthread_mutex_unlock(&c->job->lock);
	r = ferry_cpr_check_kind(c, err);
	return r ? r : ferry_fault_uffd_probe(&c->ram, err);
}

static int open_to(struct ferry_cpr *c, struct ferry_error *err)
{
	int r = ferry_open_guest(c->job, FERRY_GUEST_DESTINATION, &c->to, err);

	/* It is the process of the command that is ended before the old VMM goes on. */
	if (r == -ESTALE && c->job->command)
		return ferry_error_set(err, EINVAL, "'%s' started the VMM as another process: give "
				       "the VMM's own command, or let a script 'exec' it",
				       c->job->command[0]);
	if (r) {
		ferry_error_prefix(err, "the new VMM");
		return r;
	}
	if (c->to->pid == c->from->pid)
		return ferry_error_set(err, EINVAL, "%s and %s are the same VMM (pid %d)",
				       c->job->record.guest, c->job->record.uri,
				       (int)c->to->pid);
	c->from->ops->allow(c->from, c->to->pid);
	c->to->ops->allow(c->to, c->from->pid);
	return claimed(c->job, c->to->pid, err);
}

static int cpr_attach(struct ferry_cpr *c, struct ferry_error *err)
{
	int r = ferry_open_guest(c->job, FERRY_GUEST_SOURCE, &c->from, err);

	if (r || c->job->command)
		return r ? r : check_from(c, err);
	/* Before the first check: it maps the RAM already. */
	r = open_to(c, err);
	return r ? r : check_from(c, err);
}

static int cpr_exec(struct ferry_cpr *c, struct ferry_error *err)
{
	int r;

	if (!c->job->command)
		return 0;
	r = ferry_cpr_exec(c, err);
	if (!r)
		r = open_to(c, err);
	return r;
}

static int cpr_check(struct ferry_cpr *c, struct ferry_error *err)
{
	const char *kind = ferry_guest_kind(c->to), *wanted = ferry_guest_kind(c->from);
	char here[128], there[128];
	int r;

	if (strcmp(kind, wanted)) {
		ferry_guest_kind_text(kind, here, sizeof(here));
		ferry_guest_kind_text(wanted, there, sizeof(there));
		return ferry_error_set(err, EINVAL, "the new VMM is %s, the guest's is %s: a guest "
				       "moves between equal kinds only", here, there);
	}
	r = c->to->ops->check(c->to, err);
	if (!r)
		r = c->to->ops->check_heir(c->to, c->from, err);
	if (r) {
		ferry_error_prefix(err, "the new VMM");
		return r;
	}
	r = c->to->ops->adopt ? c->to->ops->adopt(c->to, &c->ram, true, err) : 1;
	if (r <= 0)
		return r;
	r = c->to->ops->describe(c->to, &c->to_ram, err);
	return r ? r : ferry_cpr_check_ram(c, err);
}

/* ---- the guest runs ---- */

/* A page cannot be kept, so loading waits for ever: the new VMM is of no use any more. */
static void on_stuck(void *ctx)
{
	struct ferry_cpr *c = ctx;

	kill(c->to->pid, SIGKILL);
}

static int zap(struct ferry_cpr *c, struct ferry_error *err)
{
	return c->to->ops->zap ? c->to->ops->zap(c->to, &c->to_ram, err) : 0;
}

/* From now on the new VMM touches no page of the RAM that was not kept. */
static int arm(struct ferry_cpr *c, struct ferry_error *err)
{
	struct ferry_keep_params p = {
		.ram = &c->to_ram,
		.path = c->job->record.kept,
		.stuck = on_stuck,
		.ctx = c,
	};
	unsigned int i;
	int r;

	c->addr = calloc(c->to_ram.count, sizeof(*c->addr));
	if (!c->addr)
		return ferry_error_set(err, ENOMEM, "out of memory");
	for (i = 0; i < c->to_ram.count; i++)
		c->addr[i] = c->to_ram.blocks[i].vmm_addr;
	r = c->to->ops->userfaultfd(c->to, &c->uffd, err);
	if (r)
		return r;
	p.mapper = (struct ferry_fault_mapper){
		.uffd = c->uffd, .pid = c->to->pid, .addr = c->addr,
	};
	r = ferry_keep_start(&p, &c->keep, err);
	if (r || !ferry_fault_uffd_assert_empty(&p.mapper, &c->to_ram, NULL))
		return r;
	r = zap(c, err);
	return r ? r : ferry_fault_uffd_assert_empty(&p.mapper, &c->to_ram, err);
}

static int cpr_prepare(struct ferry_cpr *c, struct ferry_error *err)
{
	int r = c->from->ops->prepare(c->from, err);

	if (!r)
		r = c->to->ops->prepare(c->to, err);
	if (!r && c->to_ram.count)
		r = arm(c, err);
	if (!r && c->to->ops->couple)
		r = c->to->ops->couple(c->to, c->from, err);
	return r ? r : ferry_job_move(c->job, FERRY_STATE_ACTIVE, err);
}

/* ---- the guest is stopped ---- */

static int cpr_stop(struct ferry_cpr *c, struct ferry_error *err)
{
	int r = c->from->ops->running(c->from, err);

	if (r < 0)
		return r;
	/* As it is now: a person may have paused it since we came. */
	c->job->record.guest_paused = !r;
	/* Each record takes a while, so this one is made while the guest runs. */
	r = ferry_job_move(c->job, FERRY_STATE_DEVICE, err);
	return r ? r : c->from->ops->pause(c->from, err);
}

static int cpr_quiesce(struct ferry_cpr *c, struct ferry_error *err)
{
	return c->from->ops->quiesce ? c->from->ops->quiesce(c->from, err) : 0;
}

static int cpr_pass(struct ferry_cpr *c, struct ferry_error *err)
{
	int r;

	if (c->to_ram.count)
		return 0; /* it maps the same files */
	r = c->to->ops->adopt(c->to, &c->ram, false, err);
	if (!r)
		r = c->to->ops->describe(c->to, &c->to_ram, err);
	if (!r)
		r = ferry_cpr_check_ram(c, err);
	return r ? r : arm(c, err);
}

static int cpr_save(struct ferry_cpr *c, struct ferry_error *err)
{
	return ferry_halt_save(c->job, c->from, FERRY_WIRE_MAX_PACKAGE, &c->state, &c->state_bytes,
			       err);
}

static int cpr_load(struct ferry_cpr *c, struct ferry_error *err)
{
	int r = c->to->ops->load(c->to, c->state, c->state_bytes, err);

	pthread_mutex_lock(&c->job->lock);
	c->job->stats.faults = ferry_keep_pages(c->keep);
	pthread_mutex_unlock(&c->job->lock);
	/* Why it did not is better known here. */
	if (r)
		return ferry_keep_failed(c->keep, err) ?: r;
	return ferry_keep_failed(c->keep, err);
}

/* Point of no return. */
static int cpr_commit(struct ferry_cpr *c, struct ferry_error *err)
{
	int r = ferry_job_commit(c->job, err);

	return r ? r : ferry_job_phase(c->job, FERRY_PHASE_COMMIT, err);
}

static const struct cpr_stage cpr_stages[] = {
	{ "cpr-attach", cpr_attach },
	{ "cpr-exec", cpr_exec },
	{ "cpr-check", cpr_check },
	{ "cpr-prepare", cpr_prepare },
	{ "cpr-stop", cpr_stop },
	{ "cpr-quiesce", cpr_quiesce },
	{ "cpr-pass", cpr_pass },
	{ "cpr-save", cpr_save },
	{ "cpr-load", cpr_load },
	{ "cpr-commit", cpr_commit },
};

static int cpr_run_stages(struct ferry_cpr *c, struct ferry_error *err)
{
	size_t i;
	int r = 0;

	for (i = 0; i < sizeof(cpr_stages) / sizeof(cpr_stages[0]) && !r; i++) {
		uint64_t began_ns = ferry_clock_ns();

		r = cpr_stages[i].run(c, err);
		ferry_log_debug("%s: %llu us", cpr_stages[i].name,
				(unsigned long long)(ferry_clock_ns() - began_ns) / 1000);
		if (!r)
			r = ferry_fault_point(cpr_stages[i].name, err);
		/* COMMIT stands, whatever a test asks for. */
		if (c->job->record.phase == FERRY_PHASE_COMMIT)
			return 0;
		if (!r && ferry_job_cancelled(c->job))
			r = ferry_error_set(err, ECANCELED, "cancelled");
	}
	return r;
}

static void cpr_free(struct ferry_cpr *c)
{
	ferry_keep_stop(c->keep, false);
	ferry_io_close(&c->uffd);
	if (c->to)
		c->to->ops->close(c->to);
	if (c->from)
		c->from->ops->close(c->from);
	ferry_ram_free(&c->ram);
	ferry_ram_free(&c->to_ram);
	free(c->addr);
	free(c->state);
}

void ferry_cpr_run(struct ferry_job *job, struct ferry_outcome *out)
{
	struct ferry_cpr c = { .job = job, .uffd = -1 };
	struct ferry_error err = { 0 };
	int r;

	memset(out, 0, sizeof(*out));
	ferry_ram_init(&c.ram);
	ferry_ram_init(&c.to_ram);
	job->stats.mode = FERRY_MODE_CPR;
	r = ferry_job_move(job, FERRY_STATE_SETUP, &err);
	if (!r)
		r = cpr_run_stages(&c, &err);
	if (!r) {
		ferry_cpr_settle(&c, out);
	} else if (ferry_job_cancelled(job)) {
		ferry_job_move(job, FERRY_STATE_CANCELLING, NULL);
		ferry_error_set(&err, ECANCELED, "cancelled");
		ferry_cpr_back(&c, FERRY_STATE_CANCELLED, &err, out);
	} else {
		ferry_cpr_back(&c, FERRY_STATE_FAILED, &err, out);
	}
	ferry_job_took(job);
	cpr_free(&c);
}

/*
 * By another worker, or by a person's `ferry resume`. What was decided stands: after COMMIT
 * the guest is started in the new VMM, which is harmless if it runs there already.
 */
void ferry_cpr_recover(struct ferry_job *job, struct ferry_outcome *out)
{
	enum ferry_phase phase = job->record.phase;
	struct ferry_cpr c = { .job = job, .uffd = -1 };
	struct ferry_error err = { 0 };

	memset(out, 0, sizeof(*out));
	ferry_ram_init(&c.ram);
	ferry_ram_init(&c.to_ram);
	if (ferry_open_guest(job, FERRY_GUEST_SOURCE, &c.from, &err))
		ferry_log_warn("the old VMM cannot be reached: %s", err.text);
	if (phase == FERRY_PHASE_COMMIT || phase == FERRY_PHASE_RAN) {
		__atomic_store_n(&job->state, FERRY_STATE_COMMIT_UNKNOWN, __ATOMIC_RELEASE);
		pthread_mutex_lock(&job->lock);
		job->committed = true;
		pthread_mutex_unlock(&job->lock);
		job->record.state = job->state;
		if (ferry_open_guest(job, FERRY_GUEST_DESTINATION, &c.to, &err))
			ferry_log_warn("the new VMM cannot be reached: %s", err.text);
		ferry_cpr_settle(&c, out);
	} else {
		__atomic_store_n(&job->state, phase == FERRY_PHASE_FENCED ?
				 FERRY_STATE_COMMIT_UNKNOWN : FERRY_STATE_DEVICE, __ATOMIC_RELEASE);
		ferry_error_set(&err, ECANCELED, "%s", job->record.error[0] ? job->record.error :
				"given up before the switchover");
		ferry_cpr_back(&c, FERRY_STATE_FAILED, &err, out);
	}
	cpr_free(&c);
}
