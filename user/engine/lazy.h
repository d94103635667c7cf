/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_ENGINE_LAZY_H
#define FERRY_ENGINE_LAZY_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "engine/incoming.h"
#include "engine/job.h"
#include "store/plan.h"
#include "store/reader.h"

#define FERRY_LAZY_READERS 64

/*
 * A guest that runs while its memory is still in a file. Pages that it touches are read first,
 * a whole extent (1 MiB) at a time: that is the unit of checksums, so no page is shown that
 * was not verified, and what lies around a touched page comes with it.
 */
struct ferry_lazy {
	struct ferry_job *job;
	struct ferry_incoming incoming;
	struct ferry_store_file *file;
	const struct ferry_ram *ram;
	bool verify;
	int wake_fd; /* eventfd: nothing is missing, or a reader failed */

	pthread_mutex_t lock; /* protects all below; a leaf */
	pthread_cond_t changed;
	struct ferry_store_plan plan; /* what to read next */
	bool prefetch; /* read on when nothing is asked for */
	bool stop;
	bool loading; /* device state: the guest is not ours yet */
	struct ferry_error err; /* errnum != 0: a reader failed */

	pthread_t readers[FERRY_LAZY_READERS];
	unsigned int started;
};

void ferry_lazy_init(struct ferry_lazy *lazy, struct ferry_job *job,
		     struct ferry_store_file *file);

/** ferry_lazy_advise() - can this host and this guest do it? Changes nothing. */
int ferry_lazy_advise(struct ferry_lazy *lazy, struct ferry_guest *guest,
		      const struct ferry_ram *ram, struct ferry_error *err);

/** ferry_lazy_arm() - memory is empty: whoever touches a page the file holds waits from now on. */
int ferry_lazy_arm(struct ferry_lazy *lazy, struct ferry_error *err);

/** ferry_lazy_adopt() - go on with what an earlier worker armed. @ram is filled. */
int ferry_lazy_adopt(struct ferry_lazy *lazy, struct ferry_ram *ram, struct ferry_error *err);

/** ferry_lazy_load() - device state, which touches memory. Return: 0 or -errno: it is void. */
int ferry_lazy_load(struct ferry_lazy *lazy, struct ferry_guest *guest, struct ferry_error *err);

/** ferry_lazy_started() - the guest runs: read on ahead of it. */
void ferry_lazy_started(struct ferry_lazy *lazy);

/** ferry_lazy_wait() - until all is here. Return: 0; -errno a reader failed, others may go on. */
int ferry_lazy_wait(struct ferry_lazy *lazy, struct ferry_error *err);

/** ferry_lazy_end() - readers end; disarm if @disarm, otherwise who waits goes on waiting. */
void ferry_lazy_end(struct ferry_lazy *lazy, bool disarm);

#endif
