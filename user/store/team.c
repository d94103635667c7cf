// SPDX-License-Identifier: GPL-2.0-or-later
#include "store/team.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>

struct team {
	const struct ferry_store_work *work;
	pthread_mutex_t lock; /* protects all below */
	unsigned int block;
	uint64_t extent;
	struct ferry_error err;
};

struct member {
	struct team *team;
	unsigned int lane;
	pthread_t thread;
};

/* The next extent. Return: 0 when there is none or somebody failed. */
static int take(struct team *t, unsigned int *block, uint64_t *extent)
{
	const struct ferry_store_work *w = t->work;
	int found = 0;

	pthread_mutex_lock(&t->lock);
	if (w->stop && __atomic_load_n(w->stop, __ATOMIC_RELAXED) && !t->err.errnum)
		ferry_error_set(&t->err, ECANCELED, "cancelled");
	while (t->block < w->blocks && t->extent >= w->extents[t->block]) {
		t->block++;
		t->extent = 0;
	}
	if (!t->err.errnum && t->block < w->blocks) {
		*block = t->block;
		*extent = t->extent++;
		found = 1;
	}
	pthread_mutex_unlock(&t->lock);
	return found;
}

static void *work(void *arg)
{
	struct member *m = arg;
	struct team *t = m->team;
	unsigned int block;
	uint64_t extent;

	while (take(t, &block, &extent)) {
		struct ferry_error err = { 0 };
		int r = t->work->run(t->work->ctx, m->lane, block, extent, &err);

		if (!r)
			continue;
		pthread_mutex_lock(&t->lock);
		if (!t->err.errnum) {
			t->err = err;
			t->err.errnum = -r;
		}
		pthread_mutex_unlock(&t->lock);
		break;
	}
	return NULL;
}

int ferry_store_team(const struct ferry_store_work *w, struct ferry_error *err)
{
	struct team team = { .work = w };
	struct member members[FERRY_STORE_MAX_LANES];
	unsigned int i, started = 1, threads = w->threads;

	pthread_mutex_init(&team.lock, NULL);
	if (threads > FERRY_STORE_MAX_LANES)
		threads = FERRY_STORE_MAX_LANES;
	members[0] = (struct member){ .team = &team };
	for (i = 1; i < threads; i++)
		members[i] = (struct member){ .team = &team, .lane = i };
	/* Fewer threads than wished for are slower, no more; this one is always there. */
	while (started < threads && !pthread_create(&members[started].thread, NULL, work,
						    &members[started]))
		started++;
	work(&members[0]);
	while (--started)
		pthread_join(members[started].thread, NULL);
	pthread_mutex_destroy(&team.lock);
	if (team.err.errnum && err)
		*err = team.err;
	return -team.err.errnum;
}
