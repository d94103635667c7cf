/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef SELFTESTS_UNIT_INJECT_RIG_H
#define SELFTESTS_UNIT_INJECT_RIG_H

#include <stdint.h>
#include <sys/types.h>

#include "../inject/target.h"
#include "inject/inject.h"

/*
 * Remote system calls into processes that check themselves (../inject/target.h): registers,
 * flags, vector registers, red zone, interrupted waits, alternate stack.
 */
extern const uint64_t rig_no_args[6];

/* Both must succeed. */
struct ferry_inject *rig_open(pid_t pid);
int64_t rig_call(struct ferry_inject *inj, long nr, const uint64_t *args);

void rig_assert_alive(struct target *t);
void rig_assert_untraced(pid_t pid);

/** rig_start_child() - one that runs @body, and never returns. */
pid_t rig_start_child(void (*body)(void *), void *arg);
void rig_end_child(pid_t pid);
/** rig_wait_state() - until /proc says so, for a few seconds. */
void rig_wait_state(pid_t pid, char state);

/* A probe for the tracer, which goes away after so many steps. */
extern int rig_steps_left;
int rig_count_down(void);
/** rig_no_probe() - a test that fails half-way must not make the next ones fail. */
int rig_no_probe(void **state);

#endif
