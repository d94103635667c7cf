// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/converge.h"

#include <string.h>

#include "base/clock.h"

/* Shorter measurements mostly see socket buffers fill; they move the mean less. */
#define CONVERGE_SPAN_NS (100 * FERRY_NS_PER_MS)

/* A rate to go by before anything was measured: pessimistic, a gigabit link. */
#define CONVERGE_FIRST_GUESS (110ull << 20)

/* Hashing and comparing suspects in the downtime: well under what one core does. */
#define CONVERGE_SUSPECT_RATE (4ull << 30)

/* A round gains when it leaves at least this much less pending than the best one. */
#define CONVERGE_GAIN_PERCENT 10

/* So many rounds without gain are a stall: chance alone gains in fewer. */
#define CONVERGE_PATIENCE 6

void ferry_converge_init(struct ferry_converge *c)
{
	memset(c, 0, sizeof(*c));
	c->best_pending = UINT64_MAX;
}

void ferry_converge_sent(struct ferry_converge *c, uint64_t bytes, uint64_t ns)
{
	double rate, weight;

	if (!ns || !bytes)
		return;
	rate = (double)bytes * 1e9 / (double)ns;
	if (!c->bytes_per_s) {
		/* A few pages over an idle socket say nothing yet. */
		if (ns >= CONVERGE_SPAN_NS / 10)
			c->bytes_per_s = (uint64_t)rate + 1;
		return;
	}
	weight = ns >= CONVERGE_SPAN_NS ? 0.5 : 0.5 * (double)ns / (double)CONVERGE_SPAN_NS;
	c->bytes_per_s = (uint64_t)((1 - weight) * (double)c->bytes_per_s + weight * rate) + 1;
}

static uint64_t converge_ns(uint64_t bytes, uint64_t bytes_per_s)
{
	return (uint64_t)((double)bytes * 1e9 / (double)bytes_per_s);
}

struct ferry_converge_verdict ferry_converge_decide(struct ferry_converge *c,
						    const struct ferry_converge_input *in)
{
	struct ferry_converge_verdict v = { 0 };
	uint64_t rate = c->bytes_per_s ? c->bytes_per_s : CONVERGE_FIRST_GUESS;

	if (in->max_bytes_per_s && in->max_bytes_per_s < rate)
		rate = in->max_bytes_per_s;
	c->rounds++;
	v.expected_downtime_ns = converge_ns(in->pending_bytes, rate) +
				 converge_ns(in->suspect_bytes, CONVERGE_SUSPECT_RATE) +
				 in->overhead_ns;
	/* Nothing pending: waiting longer cannot make the downtime shorter. */
	v.switch_over = v.expected_downtime_ns <= in->downtime_limit_ns || !in->pending_bytes;

	if (c->best_pending == UINT64_MAX ||
	    in->pending_bytes < c->best_pending / 100 * (100 - CONVERGE_GAIN_PERCENT)) {
		c->best_pending = in->pending_bytes;
		c->without_gain = 0;
	} else {
		c->without_gain++;
	}
	v.stalled = !v.switch_over && c->without_gain >= CONVERGE_PATIENCE;
	return v;
}
