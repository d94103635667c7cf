/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_ENGINE_ROUNDS_H
#define FERRY_ENGINE_ROUNDS_H

#include "engine/copy.h"

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

#endif
