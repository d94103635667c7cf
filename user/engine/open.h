/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_ENGINE_OPEN_H
#define FERRY_ENGINE_OPEN_H

#include "base/error.h"
#include "engine/job.h"
#include "guest/guest.h"

/**
 * ferry_open_guest() - open the guest of a job, its journal being the job's record
 *
 * Return: 0 or -errno with a text.
 */
int ferry_open_guest(struct ferry_job *job, enum ferry_guest_role role, struct ferry_guest **out,
		     struct ferry_error *err);

/**
 * ferry_open_source() - open a guest whose memory is to be read: checked, described, mapped
 *
 * Changes nothing there. *@guest is set even when a later step fails; @ram is initialised.
 */
int ferry_open_source(struct ferry_job *job, struct ferry_guest **guest, struct ferry_ram *ram,
		      struct ferry_error *err);

#endif
