/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef SELFTESTS_INJECT_TARGET_H
#define SELFTESTS_INJECT_TARGET_H

#include <stdint.h>
#include <sys/types.h>

/*
 * A process that notices what is done to it: its main thread does one kind of
 * thing for ever and checks that nothing but its own doing ever shows.
 */
enum target_kind {
	TARGET_PPOLL,	  /* waits in ppoll without a timeout: never EINTR */
	TARGET_NANOSLEEP, /* sleeps 2 ms at a time: never EINTR, never too short */
	TARGET_FUTEX,	  /* futex waits of 2 ms, relative and absolute: always ETIMEDOUT */
	TARGET_POLL,	  /* poll with a timeout of 2 ms: always 0 */
	TARGET_PIPE,	  /* blocking read of a pipe: the bytes in order, never EINTR */
	TARGET_COMPUTE,	  /* registers, vector registers, flags and red zone stay */
	TARGET_SIGNALS,	  /* read with SA_RESTART handlers on an alternate stack, a timer firing */
	TARGET_SIGPPOLL,  /* each handler run inside ppoll makes it return EINTR: none is lost */
	TARGET_KINDS,
};

/* Shared with the parent. */
struct target_report {
	volatile uint64_t loops;    /* checks passed */
	volatile uint64_t signals;  /* handlers run */
	volatile uint64_t failures;
	volatile int fds[2];	    /* a pipe: [1] wakes ppoll, feeds read */
	char what[256];		    /* the first failure */
};

struct target {
	pid_t pid;
	enum target_kind kind;
	struct target_report *report;
	uint8_t next;
};

const char *target_name(enum target_kind kind);

/** target_start() - fork one; it dies with us. Return: 0 or -errno. */
int target_start(struct target *t, enum target_kind kind);

/** target_poke() - for kinds that wait for the parent: give it one thing to do */
void target_poke(struct target *t);

/**
 * target_alive() - does it still make progress, unharmed?
 * @ms: how long to wait for a loop to pass
 *
 * Return: 0, -ETIMEDOUT no progress, -ECHILD it has died, -EIO it reported a failure.
 */
int target_alive(struct target *t, unsigned int ms);

void target_stop(struct target *t);

#endif
