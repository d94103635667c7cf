/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_ENGINE_JOB_H
#define FERRY_ENGINE_JOB_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "engine/record.h"
#include "engine/stats.h"
#include "engine/task.h"
#include "xport/rate.h"

struct ferry_guest;

/*
 * One side of one migration, between the migration thread, which runs it, and
 * the threads of the agent that watch and steer it. Everything under "lock" is
 * read and written with the lock held; the rest belongs to the migration thread.
 */

/* What to do about a guest that writes faster than its memory can be sent. */
enum ferry_on_stall {
	FERRY_ON_STALL_WAIT,
	FERRY_ON_STALL_CANCEL,
	FERRY_ON_STALL_THROTTLE,
	FERRY_ON_STALL_POSTCOPY,
	FERRY_ON_STALL_COUNT,
};

/* When the guest is to run at the destination before all of its memory is there. */
enum ferry_postcopy {
	FERRY_POSTCOPY_NEVER, /* unless a person says so */
	FERRY_POSTCOPY_NOW,
	FERRY_POSTCOPY_AFTER, /* so many rounds */
	FERRY_POSTCOPY_ON_STALL,
};

struct ferry_job_options {
	uint32_t channels;
	uint64_t max_bandwidth;	    /* bytes/s, 0 unlimited */
	uint32_t downtime_limit_ms;
	uint32_t timeout_ms;	    /* connect and answer deadlines */
	char tracker[16];
	bool dma_barrier;
	bool verify;
	uint8_t codec; /* enum ferry_wire_codec */
	bool checksum;
	bool pause_before_switchover;
	bool keep_source;
	enum ferry_on_stall on_stall; /* under lock */
	enum ferry_postcopy postcopy;
	uint64_t postcopy_rounds;
	/* save */
	bool live;   /* the guest runs meanwhile */
	bool direct; /* past the page cache */
	bool record; /* the order in which pages are touched */
	/* restore */
	bool lazy;	/* the guest runs before all is read */
	bool no_verify; /* do not compare checksums of pages */
	bool release_ram; /* postcopy: give memory back at the source as it is sent */
	char spill_dir[FERRY_TASK_PATH];  /* postcopy: where to spill when the link breaks; "" no */
	char fill_path[FERRY_TASK_PATH]; /* recover: take pages in from this file first; "" no */
};

/* Where the guest is after it all. */
enum ferry_where {
	FERRY_WHERE_SOURCE,
	FERRY_WHERE_DESTINATION,
	FERRY_WHERE_STOPPED,
	FERRY_WHERE_UNKNOWN,
	FERRY_WHERE_NONE,
};

const char *ferry_where_name(enum ferry_where where);

/* What the engine asks of the agent. Called by the migration thread, job->lock not held. */
struct ferry_job_hooks {
	/* Make job->record durable. Return: 0 or -errno: then nothing that relies on it is done. */
	int (*save)(void *ctx, const struct ferry_record *record, struct ferry_error *err);
	/* The guardian keeps a copy of a descriptor; -1: it lets that one go. */
	int (*hold)(void *ctx, const char *name, int fd, struct ferry_error *err);
	/* A copy of what the guardian keeps, or what was made by keep(). Return: the caller's, < 0. */
	int (*held)(void *ctx, const char *name);
	/*
	 * A new file "placed" or "layout" that outlives all processes of the migration, until
	 * hold(-1) of that name. Return: a descriptor, the caller's; -errno with a text.
	 */
	int (*keep)(void *ctx, const char *name, struct ferry_error *err);
	/* cpr: does another migration work on that VMM? Return: 0; -EBUSY with which. May be NULL. */
	int (*claimed)(void *ctx, pid_t vmm, struct ferry_error *err);
	/* A state was published. */
	void (*state)(void *ctx, enum ferry_state state);
	/* The destination listens; @uri says where really. */
	void (*listening)(void *ctx, const char *uri);
	void *ctx;
};

struct ferry_job {
	const struct ferry_job_hooks *hooks;
	struct ferry_job_options options; /* max_bandwidth, downtime_limit_ms, on_stall: under lock */
	struct ferry_record record;
	int held_guest_fd;  /* after a crash, or -1 */
	int held_listen_fd; /* after a crash, or -1 */
	int held_to_fd;	    /* cpr, after a crash: to the new VMM, or -1 */
	char **command;	    /* cpr: what starts the new VMM; NULL: it is there */
	uint64_t started_ns;

	enum ferry_state state; /* ferry_state_move(), atomic */
	struct ferry_rate rate; /* what the channels may send; has its own lock */

	pthread_mutex_t lock;
	pthread_cond_t changed; /* cancel, go_on or an option */
	bool cancel;
	bool committed; /* too late for cancel */
	bool go_on;	/* continue after pre-switchover */
	bool postcopy;	/* a person asked to switch to postcopy */
	bool can_postcopy; /* known since READY; if not, why: */
	char cannot_postcopy[512];
	bool retry;	/* postcopy-paused: a person says that the link is there again */
	char retry_uri[FERRY_SPEC_MAX]; /* and where to connect or listen; "" as before */
	bool leave;	/* postcopy-paused: end the process, leave all as it is */
	bool hold;	/* a person cut the link: it stays so until retry */
	struct ferry_task task;
	struct ferry_progress progress;
	struct ferry_stats stats;
	struct ferry_record shown; /* the record as last saved, without undo */
	bool unsaved; /* the last attempt to save it failed; the migration thread's */
	void (*interrupt)(void *ctx); /* breaks what the migration thread waits for */
	void *interrupt_ctx;
};

/* How it ended. */
struct ferry_outcome {
	enum ferry_state state;
	enum ferry_where where;
	int exit_code; /* 0, 1 or 3 */
	struct ferry_error error;
	char advice[2048]; /* exit 3: the commands to type */
};

void ferry_job_init(struct ferry_job *job, const struct ferry_job_hooks *hooks);
void ferry_job_destroy(struct ferry_job *job);

/** ferry_job_state() - the published state. Any thread. */
enum ferry_state ferry_job_state(struct ferry_job *job);

/** ferry_job_took() - note total_ns, if that has not been done: in the first final state, or at the end. */
void ferry_job_took(struct ferry_job *job);

/**
 * ferry_job_move() - publish the next state (compare-and-swap from the present one)
 *
 * The record's state follows and is saved; a failure to save is only told.
 * Return: 0; -EPERM with a text if the table forbids it.
 */
int ferry_job_move(struct ferry_job *job, enum ferry_state to, struct ferry_error *err);

/** ferry_job_phase() - set a phase and make it durable. Return: 0 or -errno. */
int ferry_job_phase(struct ferry_job *job, enum ferry_phase phase, struct ferry_error *err);

/** ferry_job_save() - make the record durable as it is. */
int ferry_job_save(struct ferry_job *job, struct ferry_error *err);

/** ferry_job_options_save() - make a changed option durable. Only the migration thread. */
void ferry_job_options_save(struct ferry_job *job);

/** ferry_job_options_restore() - the options of an earlier worker are in the record. */
void ferry_job_options_restore(struct ferry_job *job);

/**
 * ferry_job_cancel() - ask for the end of the migration. Any thread.
 *
 * Return: 0 asked; -EBUSY too late, with the reason; -EALREADY has ended.
 */
int ferry_job_cancel(struct ferry_job *job, struct ferry_error *err);
bool ferry_job_cancelled(struct ferry_job *job);

/** ferry_job_commit() - no cancel from here on. Return: 0, or -ECANCELED if one came first. */
int ferry_job_commit(struct ferry_job *job, struct ferry_error *err);

/** ferry_job_go_on() - continue from pre-switchover. Return: 0, -EINVAL not in that state. */
int ferry_job_go_on(struct ferry_job *job, struct ferry_error *err);

/**
 * ferry_job_postcopy() - switch to postcopy at the end of this round. Any thread.
 *
 * Return: 0; -EINVAL not at the source, or not in a state for it; -EOPNOTSUPP it cannot be,
 * with the reason.
 */
int ferry_job_postcopy(struct ferry_job *job, struct ferry_error *err);

/**
 * ferry_job_retry() - reconnect from postcopy-paused. Any thread.
 * @uri: where the destination is now, or is to listen now; NULL as before
 *
 * Return: 0; -EINVAL it is not paused.
 */
int ferry_job_retry(struct ferry_job *job, const char *uri, struct ferry_error *err);

/**
 * ferry_job_pause() - postcopy: cut the link, and wait for ferry_job_retry(). Any thread.
 *
 * Return: 0; -EINVAL not at the source, or not in postcopy.
 */
int ferry_job_pause(struct ferry_job *job, struct ferry_error *err);

/** ferry_job_held() - does the cut link wait for a person? */
bool ferry_job_held(struct ferry_job *job);

/** ferry_job_leave() - end a paused source's process. Return: 0, -EINVAL it is not one. */
int ferry_job_leave(struct ferry_job *job);

/** ferry_job_note() - what is waited for, for the progress line; "" nothing. */
void ferry_job_note(struct ferry_job *job, const char *note);

/** ferry_on_stall_parse() - Return: a policy by its name; -EINVAL with those there are. */
int ferry_on_stall_parse(const char *name, struct ferry_error *err);

/** ferry_job_set_check() - would ferry_job_set() take that, of a migration that can? */
int ferry_job_set_check(const char *key, const char *value, struct ferry_error *err);

/** ferry_job_set() - change max-bandwidth, downtime-limit or on-stall. Return: 0 or -EINVAL. */
int ferry_job_set(struct ferry_job *job, const char *key, const char *value,
		  struct ferry_error *err);

/** ferry_job_wait() - until a cancel, go_on or option change, or the deadline. */
void ferry_job_wait(struct ferry_job *job, uint64_t deadline_ns);

/** ferry_job_interrupt() - what cancel calls to break a wait; NULL removes it. */
void ferry_job_interrupt(struct ferry_job *job, void (*fn)(void *ctx), void *ctx);

/** ferry_size_parse() - "10M" to bytes; K, M, G are powers of 1024. Return: 0 or -EINVAL. */
int ferry_size_parse(const char *text, uint64_t *bytes);

/* The four ways to run a side; each returns only when all is settled or a person is needed. */
void ferry_source_run(struct ferry_job *job, struct ferry_outcome *out);
void ferry_source_recover(struct ferry_job *job, struct ferry_outcome *out);
void ferry_destination_run(struct ferry_job *job, struct ferry_outcome *out);
void ferry_destination_recover(struct ferry_job *job, struct ferry_outcome *out);

/* Both VMMs in one process. */
void ferry_cpr_run(struct ferry_job *job, struct ferry_outcome *out);
void ferry_cpr_recover(struct ferry_job *job, struct ferry_outcome *out);

/**
 * ferry_job_undo() - nothing runs this migration any more: put the VMM back by the record
 * @resume: see struct ferry_guest_ops.undo
 *
 * Return: 0, or -errno with a text.
 */
int ferry_job_undo(struct ferry_job *job, bool resume, struct ferry_error *err);

/**
 * ferry_job_given_back() - the end of a migration whose guest went back to its source
 * @guest: there, or NULL
 * @r: 0; -errno it could not be resumed, and @err says why
 * @out: state and error are filled by the caller; the rest here
 */
void ferry_job_given_back(struct ferry_job *job, struct ferry_guest *guest, int r,
			  const struct ferry_error *err, struct ferry_outcome *out);

#endif
