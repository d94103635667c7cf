/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_ENGINE_HALT_H
#define FERRY_ENGINE_HALT_H

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "engine/job.h"
#include "guest/guest.h"

/* The guest stands still: the same whether it goes to a host, into a file or to another VMM. */

/**
 * ferry_halt_guest() - stop the guest
 * @stopped_ns: set to when that began
 *
 * A person may have paused or resumed it since ferry came: how it was goes into the record, for it
 * arrives like that.
 */
int ferry_halt_guest(struct ferry_job *job, struct ferry_guest *guest, uint64_t *stopped_ns,
		     struct ferry_error *err);

/**
 * ferry_halt_save() - the device state of a stopped guest, and its size into the job's numbers
 * @most: bytes that can be carried
 * @state: *@state is malloc'ed
 */
int ferry_halt_save(struct ferry_job *job, struct ferry_guest *guest, size_t most, uint8_t **state,
		    size_t *state_bytes, struct ferry_error *err);

#endif
