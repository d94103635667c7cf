// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/rounds.h"

#include <errno.h>

#include "engine/fault_points.h"

int ferry_rounds_run(struct ferry_copy *copy,
		     int (*enough)(void *ctx, const struct ferry_converge_verdict *v,
				   struct ferry_error *err),
		     void *ctx, struct ferry_error *err)
{
	int r = 0;

	while (!r && copy->tracker) {
		struct ferry_converge_verdict v;

		if (ferry_job_cancelled(copy->job))
			return ferry_error_set(err, ECANCELED, "cancelled");
		r = ferry_copy_collect(copy, err);
		if (r)
			return r;
		v = ferry_copy_decide(copy);
		r = enough(ctx, &v, err);
		if (r)
			return r < 0 ? r : 0;
		r = ferry_copy_round(copy, err);
		if (!r)
			r = ferry_fault_point("round", err);
	}
	return r;
}
