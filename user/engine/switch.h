/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_ENGINE_SWITCH_H
#define FERRY_ENGINE_SWITCH_H

#include <stdbool.h>
#include <stdint.h>

#include "engine/copy.h"
#include "engine/job.h"
#include "engine/link.h"

/* When the source switches from precopy to postcopy: what was asked for, and what is possible. */

/** ferry_switch_needed() - was postcopy asked for, now or in some event? */
bool ferry_switch_needed(struct ferry_job *job);

/** ferry_switch_flags() - FERRY_WIRE_CONFIG_... for the destination that answered HELLO. */
uint32_t ferry_switch_flags(struct ferry_job *job, const struct ferry_link *link);

/** ferry_switch_note() - READY came after CONFIG with @flags: will `ferry postcopy` work? */
void ferry_switch_note(struct ferry_job *job, struct ferry_link *link, uint32_t flags);

/**
 * ferry_switch_due() - is it time?
 * @stalled: what the last verdict said
 */
bool ferry_switch_due(struct ferry_job *job, const struct ferry_copy *copy, bool stalled);

#endif
