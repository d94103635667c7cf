/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_ENGINE_ROUNDS_H
#define FERRY_ENGINE_ROUNDS_H

#include <stddef.h>
#include <stdint.h>

#include "engine/copy.h"

/* What every way to copy a running guest does, whether it goes to a host or into a file. */

/**
 * ferry_rounds_run() - rounds, until what is left can go with the guest stopped
 * @enough: asked about each look at what changed. Return: above 0 it is enough, 0 another round,
 *	    or -errno.
 *
 * Without a tracker there are none: all is copied while the guest is stopped.
 * Return: 0; -ECANCELED; -errno.
 */
int ferry_rounds_run(struct ferry_copy *copy,
		     int (*enough)(void *ctx, const struct ferry_converge_verdict *v,
				   struct ferry_error *err),
		     void *ctx, struct ferry_error *err);

/**
 * ferry_rounds_stop() - stop the guest for the last of them
 * @stopped_ns: set to when that began
 *
 * A person may have paused or resumed it since ferry came: how it was goes into the record, for it
 * arrives like that.
 */
int ferry_rounds_stop(struct ferry_job *job, struct ferry_guest *guest, uint64_t *stopped_ns,
		      struct ferry_error *err);

/**
 * ferry_rounds_save() - the device state of a stopped guest, and its size into the job's numbers
 * @most: bytes that can be carried
 * @state: *@state is malloc'ed
 */
int ferry_rounds_save(struct ferry_job *job, struct ferry_guest *guest, size_t most,
		      uint8_t **state, size_t *state_bytes, struct ferry_error *err);

#endif
