// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * When to switch over: a pure function, fed with made-up and with recorded traces.
 *
 * The recorded ones are rounds of real migrations of the guest of selftests/qemu
 * (96 MiB, TCG, two channels over loopback): a debug print in ferry_converge_sent()
 * and ferry_converge_decide() gave bytes sent, the time that took, and the pending
 * bytes found after it. The downtime limit was set too low to be met, so that
 * the guest's writing is seen over many rounds whatever the limit judged here.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/clock.h"
#include "engine/converge.h"
#include "engine/stall.h"

#define MIB (1ull << 20)
#define MS FERRY_NS_PER_MS
#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

struct round {
	uint64_t sent_bytes, sent_ns;
	uint64_t pending_bytes; /* after it */
};

/* Where a trace first switches over and first stalls; the number of rounds if never. */
struct judged {
	size_t switched, stalled;
	uint64_t expected_ns; /* at the switch */
};

static struct judged judge(const struct round *rounds, size_t count,
			   const struct ferry_converge_input *given)
{
	struct judged j = { count, count, 0 };
	struct ferry_converge c;
	size_t i;

	ferry_converge_init(&c);
	for (i = 0; i < count; i++) {
		struct ferry_converge_input in = *given;
		struct ferry_converge_verdict v;

		ferry_converge_sent(&c, rounds[i].sent_bytes, rounds[i].sent_ns);
		in.pending_bytes = rounds[i].pending_bytes;
		v = ferry_converge_decide(&c, &in);
		assert_false(v.switch_over && v.stalled);
		if (v.switch_over && j.switched == count) {
			j.switched = i;
			j.expected_ns = v.expected_downtime_ns;
		}
		if (v.stalled && j.stalled == count)
			j.stalled = i;
	}
	return j;
}

static struct ferry_converge_input limit(uint64_t ms)
{
	return (struct ferry_converge_input){ .downtime_limit_ns = ms * MS,
					      .overhead_ns = 20 * MS };
}

static void idle(void **state)
{
	static const struct round rounds[] = { { 64 * MIB, 100 * MS, 0 } };
	struct ferry_converge_input in = limit(300);
	struct judged j = judge(rounds, COUNT(rounds), &in);

	(void)state;
	assert_int_equal(j.switched, 0);
	assert_int_equal(j.expected_ns, 20 * MS);
	/* Nothing pending: no limit is so low that waiting would help. */
	in = limit(1);
	assert_int_equal(judge(rounds, COUNT(rounds), &in).switched, 0);
}

/* 100 MiB/s of writing, 400 MiB/s of sending: each round is a quarter of the one before. */
static void dirty_below_bandwidth(void **state)
{
	struct round rounds[12];
	uint64_t bytes = 1024 * MIB;
	struct ferry_converge_input in = limit(300);
	struct judged j;
	size_t i;

	(void)state;
	for (i = 0; i < COUNT(rounds); i++) {
		uint64_t ns = bytes * 1000 / (400 * MIB) * MS + 1;

		rounds[i] = (struct round){ bytes, ns, bytes / 4 };
		bytes /= 4;
	}
	j = judge(rounds, COUNT(rounds), &in);
	/* 256 MiB, 640 ms of sending: too much. 64 MiB, 160 ms: fits with its 20 ms. */
	assert_int_equal(j.switched, 1);
	assert_in_range(j.expected_ns, 170 * MS, 190 * MS);
	assert_int_equal(j.stalled, COUNT(rounds));
	/* Twice the limit: a round earlier, not more. */
	in = limit(700);
	assert_int_equal(judge(rounds, COUNT(rounds), &in).switched, 0);
}

static void dirty_above_bandwidth(void **state)
{
	struct round rounds[20];
	struct ferry_converge_input in = limit(300);
	struct judged j;
	size_t i;

	(void)state;
	for (i = 0; i < COUNT(rounds); i++)
		rounds[i] = (struct round){ 400 * MIB, 1000 * MS, 400 * MIB };
	j = judge(rounds, COUNT(rounds), &in);
	assert_int_equal(j.switched, COUNT(rounds));
	/* The first one is the best so far; six more without gain are a stall. */
	assert_int_equal(j.stalled, 6);
}

/* A burst raises pending for some rounds: no stall, and a switch after it. */
static void burst(void **state)
{
	static const uint64_t pending[] = { 200, 180, 300, 500, 400, 250, 150, 100, 60, 30 };
	struct round rounds[COUNT(pending)];
	struct ferry_converge_input in = limit(300);
	struct judged j;
	size_t i;

	(void)state;
	for (i = 0; i < COUNT(pending); i++)
		rounds[i] = (struct round){ 100 * MIB, 500 * MS, pending[i] * MIB };
	j = judge(rounds, COUNT(pending), &in);
	assert_int_equal(j.stalled, COUNT(pending));
	assert_int_equal(j.switched, 9); /* 30 MiB at 200 MiB/s and 20 ms: 170 ms */
	in = limit(330);
	assert_int_equal(judge(rounds, COUNT(pending), &in).switched, 8); /* 320 ms */
}

/* What fitted at the old speed does not at the new one: the mean follows in a few rounds. */
static void bandwidth_drops(void **state)
{
	struct ferry_converge c;
	struct ferry_converge_input in = limit(300);
	struct ferry_converge_verdict v;
	unsigned int i;

	(void)state;
	ferry_converge_init(&c);
	in.pending_bytes = 100 * MIB;
	for (i = 0; i < 4; i++)
		ferry_converge_sent(&c, 500 * MIB, 1000 * MS);
	v = ferry_converge_decide(&c, &in);
	assert_true(v.switch_over);
	for (i = 0; i < 6; i++)
		ferry_converge_sent(&c, 50 * MIB, 1000 * MS);
	v = ferry_converge_decide(&c, &in);
	assert_false(v.switch_over);
	assert_in_range(v.expected_downtime_ns, 1500 * MS, 2100 * MS);
}

/* Short spans mostly see a socket buffer: a thousandfold rate over 1 ms hardly counts. */
static void short_spans(void **state)
{
	struct ferry_converge c;

	(void)state;
	ferry_converge_init(&c);
	ferry_converge_sent(&c, 4096, 1000);
	assert_int_equal(c.bytes_per_s, 0);
	ferry_converge_sent(&c, 0, 1000 * MS);
	ferry_converge_sent(&c, 4096, 0);
	assert_int_equal(c.bytes_per_s, 0);
	ferry_converge_sent(&c, 100 * MIB, 1000 * MS);
	assert_in_range(c.bytes_per_s, 100 * MIB, 100 * MIB + 1);
	ferry_converge_sent(&c, 1 * MIB, MS);
	assert_in_range(c.bytes_per_s, 100 * MIB, 105 * MIB);
}

static void suspects_count(void **state)
{
	struct ferry_converge c;
	struct ferry_converge_input in = limit(100);
	struct ferry_converge_verdict v;

	(void)state;
	ferry_converge_init(&c);
	ferry_converge_sent(&c, 1000 * MIB, 1000 * MS);
	in.pending_bytes = MIB;
	assert_true(ferry_converge_decide(&c, &in).switch_over);
	in.suspect_bytes = 4096 * MIB; /* a second of hashing */
	v = ferry_converge_decide(&c, &in);
	assert_false(v.switch_over);
	assert_in_range(v.expected_downtime_ns, 1020 * MS, 1022 * MS);
}

static void a_limit_set_by_a_person(void **state)
{
	struct ferry_converge c;
	struct ferry_converge_input in = limit(300);

	(void)state;
	ferry_converge_init(&c);
	ferry_converge_sent(&c, 1000 * MIB, 1000 * MS);
	in.pending_bytes = 100 * MIB;
	assert_true(ferry_converge_decide(&c, &in).switch_over);
	/* Set a moment ago: it holds before any round has shown it. */
	in.max_bytes_per_s = 10 * MIB;
	assert_false(ferry_converge_decide(&c, &in).switch_over);
	/* One above what the line does changes nothing. */
	in.max_bytes_per_s = 5000 * MIB;
	assert_true(ferry_converge_decide(&c, &in).switch_over);
}

static void nothing_measured_yet(void **state)
{
	struct ferry_converge c;
	struct ferry_converge_input in = limit(300);

	(void)state;
	ferry_converge_init(&c);
	in.pending_bytes = 20 * MIB;
	assert_true(ferry_converge_decide(&c, &in).switch_over);
	in.pending_bytes = 200 * MIB;
	assert_false(ferry_converge_decide(&c, &in).switch_over);
}

/* ferry.dirty=16 ferry.pause_ms=10, --max-bandwidth 48M: settles at what a round dirties. */
static const struct round recorded_busy[] = {
	{ 85676088, 1772225316, 11309056 }, { 11334568, 377989030, 3702784 },
	{ 3720784, 84186914, 1024000 },	    { 1029792, 3589119, 196608 },
	{ 198688, 53207781, 778240 },	    { 782584, 27360220, 626688 },
	{ 631232, 4178839, 163840 },	    { 165336, 26125506, 532480 },
	{ 535376, 31390267, 770048 },	    { 774192, 1624355, 155648 },
	{ 157224, 23486546, 528384 },	    { 531320, 30608659, 532480 },
	{ 535392, 9234568, 323584 },	    { 325336, 14046321, 557056 },
	{ 559968, 12057282, 397312 },	    { 399400, 7420159, 299008 },
	{ 300640, 1744455, 282624 },	    { 284184, 18326031, 405504 },
	{ 407688, 4041915, 286720 },	    { 288280, 16245024, 643072 },
	{ 646488, 35784938, 1761280 },	    { 1770896, 145602790, 880640 },
	{ 885352, 5921271, 221184 },	    { 222352, 426687, 327680 },
};

static void recorded_busy_guest(void **state)
{
	struct ferry_converge_input in = limit(300);
	struct judged j;

	(void)state;
	in.max_bytes_per_s = 48 * MIB;
	j = judge(recorded_busy, COUNT(recorded_busy), &in);
	assert_int_equal(j.switched, 0); /* 11 MiB in 230 ms */
	in.downtime_limit_ns = 60 * MS;
	j = judge(recorded_busy, COUNT(recorded_busy), &in);
	assert_int_equal(j.switched, 2);
	assert_in_range(j.expected_ns, 40 * MS, 60 * MS);
	/* 21 ms leave 1 ms for pages, which it never gets down to: that is said. */
	in.downtime_limit_ns = 21 * MS;
	j = judge(recorded_busy, COUNT(recorded_busy), &in);
	assert_int_equal(j.switched, COUNT(recorded_busy));
	assert_in_range(j.stalled, 9, 14);
}

/* ferry.pause_ms=5, --max-bandwidth 200M and, from the fifth round on, 8M. */
static const struct round recorded_drop[] = {
	{ 85937624, 981033125, 8749056 },    { 8777184, 24881769, 720896 },
	{ 727240, 4853686, 458752 },	     { 461648, 31006654, 774144 },
	{ 778376, 101945708, 1773568 },	     { 1783680, 213482216, 3469312 },
	{ 3486400, 449939335, 4644864 },     { 4665400, 531850821, 6537216 },
	{ 6562800, 793239974, 8065024 },     { 8091504, 1079539659, 6561792 },
	{ 6587648, 988503039, 8802304 },     { 8830024, 1027685488, 8404992 },
	{ 8432504, 989589230, 9588736 },     { 9616592, 1138525407, 11038720 },
	{ 11065912, 1342338366, 11190272 },  { 11216728, 1430192496, 11763712 },
	{ 11789376, 1396495194, 12394496 },
};

static void recorded_drop_of_bandwidth(void **state)
{
	struct ferry_converge_input in = limit(22);
	struct ferry_converge c;
	struct judged j;
	size_t i;

	(void)state;
	/* At the first speed it was close, from the drop on it gets ever worse. */
	j = judge(recorded_drop, COUNT(recorded_drop), &in);
	assert_int_equal(j.switched, COUNT(recorded_drop));
	assert_int_equal(j.stalled, 8);
	in.downtime_limit_ns = 300 * MS;
	assert_int_equal(judge(recorded_drop, COUNT(recorded_drop), &in).switched, 0);
	/* The mean has found the new speed in the end, and so the truth about the downtime. */
	ferry_converge_init(&c);
	for (i = 0; i < COUNT(recorded_drop); i++)
		ferry_converge_sent(&c, recorded_drop[i].sent_bytes, recorded_drop[i].sent_ns);
	assert_in_range(c.bytes_per_s, 8 * MIB - 512 * 1024, 8 * MIB + 512 * 1024);
}

/* ferry.dirty=64 ferry.pause_ms=0, --max-bandwidth 32M: up and down, but down. */
static const struct round recorded_restless[] = {
	{ 85880528, 2574670729, 17182720 }, { 17187584, 559936955, 14348288 },
	{ 14364528, 461757029, 8085504 },   { 8107672, 292233234, 6918144 },
	{ 6943472, 200243621, 3399680 },    { 3416616, 85081770, 4268032 },
	{ 4287720, 192706538, 11026432 },   { 11051616, 311363646, 6348800 },
	{ 6373584, 189670955, 4587520 },    { 4608064, 120982211, 1634304 },
	{ 1643256, 44254103, 1208320 },	    { 1214968, 41386892, 1314816 },
};

static void recorded_restless_guest(void **state)
{
	struct ferry_converge_input in = limit(100);
	struct judged j;

	(void)state;
	in.max_bytes_per_s = 32 * MIB;
	j = judge(recorded_restless, COUNT(recorded_restless), &in);
	assert_int_equal(j.switched, 9);
	assert_in_range(j.expected_ns, 60 * MS, 100 * MS);
	assert_int_equal(j.stalled, COUNT(recorded_restless));
}

/*
 * A guest that dirties @dirty_bytes_per_s when left alone, over a line of @line_bytes_per_s: each
 * round sends what was written in the one before. The throttle takes its share of the writing.
 *
 * Return: the round that switches over; @most is the highest throttle until then.
 */
static unsigned int simulate(double dirty_bytes_per_s, double line_bytes_per_s,
			     uint64_t ram_bytes, unsigned int rounds, unsigned int *most)
{
	struct ferry_converge_input in = limit(300);
	uint64_t pending = ram_bytes, now_ns = 0;
	unsigned int i, throttle = 0;
	struct ferry_converge c;

	*most = 0;
	ferry_converge_init(&c);
	for (i = 0; i < rounds; i++) {
		uint64_t ns = (uint64_t)((double)pending * 1e9 / line_bytes_per_s) + 1;
		struct ferry_converge_verdict v;
		unsigned int before = throttle;

		ferry_converge_sent(&c, pending, ns);
		now_ns += ns;
		pending = (uint64_t)(dirty_bytes_per_s * (100 - throttle) / 100 * (double)ns / 1e9);
		if (pending > ram_bytes)
			pending = ram_bytes;
		in.pending_bytes = pending;
		v = ferry_converge_decide(&c, &in);
		if (v.switch_over)
			return i;
		throttle = ferry_converge_throttle(&c, &v, pending, now_ns);
		assert_true(throttle >= before && throttle <= 99);
		assert_true(throttle <= before + 20);
		if (throttle > *most)
			*most = throttle;
	}
	return rounds;
}

static void throttle_makes_it_converge(void **state)
{
	unsigned int most, rounds;

	(void)state;
	/* Twice what the line carries: half of it has to go, and a little more. */
	rounds = simulate(400.0 * MIB, 200.0 * MIB, 1024 * MIB, 200, &most);
	assert_in_range(rounds, 8, 60);
	assert_in_range(most, 50, 80);
	/* Ten times: the most there is, nearly. */
	rounds = simulate(2000.0 * MIB, 200.0 * MIB, 1024 * MIB, 400, &most);
	assert_in_range(rounds, 20, 100);
	assert_in_range(most, 90, 99);
	/* A guest that converges by itself is left alone. */
	rounds = simulate(100.0 * MIB, 200.0 * MIB, 1024 * MIB, 100, &most);
	assert_in_range(rounds, 1, 10);
	assert_int_equal(most, 0);
	/* One that not even 1 % of its time stops: the end of the scale, and no further. */
	rounds = simulate(90000.0 * MIB, 200.0 * MIB, 1024 * MIB, 100, &most);
	assert_int_equal(rounds, 100);
	assert_int_equal(most, 99);
}

/* Rounds of a few milliseconds say nothing about a step: the scheduler counts in tenths of a second. */
static void throttle_takes_its_time(void **state)
{
	struct ferry_converge_input in = limit(21);
	struct ferry_converge_verdict v;
	unsigned int i, percent = 0, seen = 0;
	struct ferry_converge c;

	(void)state;
	ferry_converge_init(&c);
	in.pending_bytes = 8 * MIB;
	for (i = 0; i < 100; i++) {
		ferry_converge_sent(&c, 8 * MIB, 10 * MS);
		v = ferry_converge_decide(&c, &in);
		percent = ferry_converge_throttle(&c, &v, in.pending_bytes, i * 10 * MS);
		seen += percent == 20;
	}
	/* 60 ms until the stall, then a step each half second of the second. */
	assert_int_equal(percent, 30);
	assert_int_equal(seen, 50);
	ferry_converge_unthrottle(&c);
	v = ferry_converge_decide(&c, &in);
	assert_false(v.stalled);
	assert_int_equal(ferry_converge_throttle(&c, &v, in.pending_bytes, 2000 * MS), 0);
}

/* As long as a step gains, there is no further one. */
static void throttle_waits_for_what_it_gains(void **state)
{
	struct ferry_converge_input in = limit(21);
	struct ferry_converge_verdict v;
	struct ferry_converge c;
	unsigned int i, percent = 0;

	(void)state;
	ferry_converge_init(&c);
	ferry_converge_sent(&c, 1024 * MIB, 1000 * MS);
	in.pending_bytes = 1000 * MIB;
	for (i = 0; i < 8; i++) {
		v = ferry_converge_decide(&c, &in);
		percent = ferry_converge_throttle(&c, &v, in.pending_bytes, i * 1000 * MS);
	}
	assert_int_equal(percent, 20);
	for (i = 8; i < 20; i++) {
		in.pending_bytes = in.pending_bytes * 8 / 10;
		v = ferry_converge_decide(&c, &in);
		assert_int_equal(ferry_converge_throttle(&c, &v, in.pending_bytes, i * 1000 * MS),
				 20);
	}
}

static void recorded_drop_is_throttled(void **state)
{
	struct ferry_converge_input in = limit(22);
	unsigned int percent = 0, steps = 0;
	struct ferry_converge c;
	uint64_t now_ns = 0;
	size_t i, first = 0;

	(void)state;
	ferry_converge_init(&c);
	for (i = 0; i < COUNT(recorded_drop); i++) {
		const struct round *r = &recorded_drop[i];
		struct ferry_converge_verdict v;
		unsigned int next;

		ferry_converge_sent(&c, r->sent_bytes, r->sent_ns);
		now_ns += r->sent_ns;
		in.pending_bytes = r->pending_bytes;
		v = ferry_converge_decide(&c, &in);
		next = ferry_converge_throttle(&c, &v, r->pending_bytes, now_ns);
		if (next && !first)
			first = i;
		steps += next != percent;
		percent = next;
	}
	/* Where the stall was found; the trace knows no throttle, so it only gets worse: a step
	 * each two rounds, but for the round that gained. */
	assert_int_equal(first, 8);
	assert_int_equal(steps, 4);
	assert_int_equal(percent, 50);
}

static void hopeless(void **state)
{
	struct ferry_converge_input in = limit(10); /* the overhead alone is 20 */
	struct ferry_converge_verdict v;
	struct ferry_converge c;

	(void)state;
	ferry_converge_init(&c);
	in.pending_bytes = MIB;
	assert_true(ferry_converge_decide(&c, &in).hopeless);
	in.downtime_limit_ns = 21 * MS;
	assert_false(ferry_converge_decide(&c, &in).hopeless);
	in.downtime_limit_ns = 10 * MS;
	in.pending_bytes = 0;
	v = ferry_converge_decide(&c, &in);
	assert_true(v.switch_over && !v.hopeless);
}

static void a_stall_in_words(void **state)
{
	struct ferry_converge_verdict v = { .stalled = true, .expected_downtime_ns = 900 * MS };
	char text[128];

	(void)state;
	ferry_stall_explain(&v, 300, 310 * MIB, 120 * MIB, text, sizeof(text));
	assert_string_equal(text, "dirtied 310 MiB/s, sent 120 MiB/s: will not converge");
	ferry_stall_explain(&v, 300, 100 * MIB, 120 * MIB, text, sizeof(text));
	assert_string_equal(text, "dirtied 100 MiB/s, sent 120 MiB/s, still 900 ms of downtime, "
				  "limit 300 ms: will not converge");
	v.hopeless = true;
	ferry_stall_explain(&v, 10, 100 * MIB, 120 * MIB, text, sizeof(text));
	assert_string_equal(text, "downtime limit 10 ms, stopping and starting alone takes longer: "
				  "will not converge");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(idle),
		cmocka_unit_test(dirty_below_bandwidth),
		cmocka_unit_test(dirty_above_bandwidth),
		cmocka_unit_test(burst),
		cmocka_unit_test(bandwidth_drops),
		cmocka_unit_test(short_spans),
		cmocka_unit_test(suspects_count),
		cmocka_unit_test(a_limit_set_by_a_person),
		cmocka_unit_test(nothing_measured_yet),
		cmocka_unit_test(recorded_busy_guest),
		cmocka_unit_test(recorded_drop_of_bandwidth),
		cmocka_unit_test(recorded_restless_guest),
		cmocka_unit_test(throttle_makes_it_converge),
		cmocka_unit_test(throttle_takes_its_time),
		cmocka_unit_test(throttle_waits_for_what_it_gains),
		cmocka_unit_test(recorded_drop_is_throttled),
		cmocka_unit_test(hopeless),
		cmocka_unit_test(a_stall_in_words),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
