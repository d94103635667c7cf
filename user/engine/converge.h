/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_ENGINE_CONVERGE_H
#define FERRY_ENGINE_CONVERGE_H

#include <stdbool.h>
#include <stdint.h>

/*
 * When to stop copying and switch over: pure functions of what was measured.
 * Fed once a round; keeps the little history that tells a stall from a slow day.
 */
struct ferry_converge {
	uint64_t bytes_per_s;	   /* smoothed sending rate of memory; 0 not known yet */
	uint64_t best_pending;	   /* least pending bytes of any round */
	unsigned int rounds;
	unsigned int without_gain; /* rounds since best_pending fell noticeably */
	unsigned int throttle_percent;
	uint64_t throttled_ns; /* when that was set */
};

struct ferry_converge_input {
	uint64_t pending_bytes;	    /* exact: dirty now and not sent */
	uint64_t suspect_bytes;	    /* to be looked at after the stop */
	uint64_t downtime_limit_ns;
	uint64_t overhead_ns;	    /* device save + load + round trips, measured or assumed */
	uint64_t max_bytes_per_s;   /* the limit set by a person, as memory; 0 none */
};

struct ferry_converge_verdict {
	bool switch_over;
	bool stalled; /* will not get there by going on like this */
	bool hopeless; /* the limit is below what a switchover takes with nothing left to send */
	uint64_t expected_downtime_ns;
};

void ferry_converge_init(struct ferry_converge *c);

/**
 * ferry_converge_sent() - some bytes went out
 * @bytes: of memory that is not zero; on the wire they may have been fewer
 * @ns: in this time; spans under 100 ms are too noisy to be believed fully
 */
void ferry_converge_sent(struct ferry_converge *c, uint64_t bytes, uint64_t ns);

/** ferry_converge_decide() - one round has ended and the dirty pages are counted. */
struct ferry_converge_verdict ferry_converge_decide(struct ferry_converge *c,
						    const struct ferry_converge_input *in);

/**
 * ferry_converge_throttle() - how much of its time to take from the guest, after a verdict
 * @pending_bytes: what the verdict was about
 *
 * A stall takes more, step by step; gain keeps what there is. Lifting it is the caller's.
 *
 * Return: percent, 0 for none
 */
unsigned int ferry_converge_throttle(struct ferry_converge *c,
				     const struct ferry_converge_verdict *v,
				     uint64_t pending_bytes, uint64_t now_ns);

/** ferry_converge_unthrottle() - the guest has all of its time again. */
void ferry_converge_unthrottle(struct ferry_converge *c);

#endif
