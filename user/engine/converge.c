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

/*
 * QEMU's auto-converge has the same three numbers: the first step is felt, further ones are
 * small enough to stop at what suffices, and 1 % keeps the guest from being taken for dead.
 */
#define CONVERGE_THROTTLE_FIRST 20
#define CONVERGE_THROTTLE_STEP 10
#define CONVERGE_THROTTLE_MOST 99

/* A step has shown what it does after two rounds without gain ... */
#define CONVERGE_THROTTLE_PATIENCE 2
/* ... that saw several periods of the scheduler (100 ms each, as control groups have them). */
#define CONVERGE_THROTTLE_SPAN_NS (500 * FERRY_NS_PER_MS)

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
	unsigned int patience = CONVERGE_PATIENCE;

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
	if (c->throttle_percent)
		patience = CONVERGE_THROTTLE_PATIENCE;
	v.stalled = !v.switch_over && c->without_gain >= patience;
	v.hopeless = !v.switch_over && in->overhead_ns >= in->downtime_limit_ns;
	return v;
}

unsigned int ferry_converge_throttle(struct ferry_converge *c,
				     const struct ferry_converge_verdict *v,
				     uint64_t pending_bytes, uint64_t now_ns)
{
	if (!v->stalled || c->throttle_percent == CONVERGE_THROTTLE_MOST)
		return c->throttle_percent;
	if (c->throttle_percent && now_ns - c->throttled_ns < CONVERGE_THROTTLE_SPAN_NS)
		return c->throttle_percent;
	if (!c->throttle_percent)
		c->throttle_percent = CONVERGE_THROTTLE_FIRST;
	else
		c->throttle_percent += CONVERGE_THROTTLE_STEP;
	if (c->throttle_percent > CONVERGE_THROTTLE_MOST)
		c->throttle_percent = CONVERGE_THROTTLE_MOST;
	c->throttled_ns = now_ns;
	/* A lucky round of the unthrottled guest is no measure for what this step gains. */
	c->best_pending = pending_bytes;
	c->without_gain = 0;
	return c->throttle_percent;
}

void ferry_converge_unthrottle(struct ferry_converge *c)
{
	c->throttle_percent = 0;
	c->best_pending = UINT64_MAX;
	c->without_gain = 0;
}
