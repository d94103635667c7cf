// SPDX-License-Identifier: GPL-2.0-or-later
/* See snapshot.h. */
#include "snapshot.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tracker.h"

void snapshot_take(struct snapshot *s, struct tracker *t)
{
	struct ferry_query query;

	memset(s, 0, sizeof(*s));
	if (t->npages > SNAPSHOT_WORDS * 64 || tracker_get(t) < 0 ||
	    tracker_stats(t, &s->stats) || ferry_query(&query))
		abort();
	memcpy(s->words, t->bits, (t->npages + 63) / 64 * 8);
	s->trackers = query.out_trackers;
	s->next_fd = dup(0);
	close(s->next_fd);
}
