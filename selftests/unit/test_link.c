// SPDX-License-Identifier: GPL-2.0-or-later
/* The source's end of the main channel against a destination that follows a script. */
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/io.h"
#include "engine/link.h"
#include "xport/frame.h"

#define SOON_MS 10000
#define SHORT_MS 60

struct peer {
	struct ferry_uri uri;
	uint8_t uuid[16];
	int listen_fd;
	int fd; /* the accepted main channel */
	struct ferry_wire_hello hello; /* what it said */
	struct ferry_wire_hello answer; /* what is different in the answer */
	uint64_t needs; /* features the source cannot do without */
	uint64_t lacks; /* features the destination has not */
	bool silent;
	uint8_t raw[FERRY_WIRE_HELLO_BYTES]; /* instead of an answer, if not empty */
	int stop;
	unsigned int ended;
};

static int setup(void **state)
{
	struct peer *p = calloc(1, sizeof(*p));
	struct sockaddr_un addr = { .sun_family = AF_UNIX };

	if (!p)
		return -1;
	p->fd = -1;
	p->uri.kind = FERRY_URI_UNIX;
	snprintf(p->uri.path, sizeof(p->uri.path), "/tmp/ferry-link-%d", (int)getpid());
	memset(p->uuid, 7, sizeof(p->uuid));
	unlink(p->uri.path);
	strcpy(addr.sun_path, p->uri.path);
	p->listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (p->listen_fd < 0 || bind(p->listen_fd, (void *)&addr, sizeof(addr)) ||
	    listen(p->listen_fd, 8))
		return -1;
	*state = p;
	return 0;
}

static int teardown(void **state)
{
	struct peer *p = *state;

	ferry_io_close(&p->fd);
	ferry_io_close(&p->listen_fd);
	unlink(p->uri.path);
	free(p);
	return 0;
}

static void *answer_hello(void *arg)
{
	struct peer *p = arg;
	struct ferry_wire_hello answer;

	p->fd = accept4(p->listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
	if (p->fd < 0 || ferry_frame_recv_hello(p->fd, &p->hello, ferry_clock_in_ms(SOON_MS)))
		return NULL;
	if (p->silent)
		return NULL;
	if (p->raw[0]) {
		ferry_io_write(p->fd, p->raw, sizeof(p->raw), ferry_clock_in_ms(SOON_MS));
		return NULL;
	}
	answer = p->hello;
	answer.role = p->answer.role ? p->answer.role : FERRY_WIRE_ROLE_DESTINATION;
	answer.status = p->answer.status;
	answer.features &= ~p->lacks;
	if (p->answer.version) {
		answer.version = p->answer.version;
		answer.min_version = p->answer.version;
	}
	ferry_frame_send_hello(p->fd, &answer, ferry_clock_in_ms(SOON_MS));
	return NULL;
}

static void ended(void *ctx)
{
	__atomic_add_fetch(&((struct peer *)ctx)->ended, 1, __ATOMIC_RELAXED);
}

static int link_up(struct peer *p, uint32_t timeout_ms, struct ferry_link **link,
		   struct ferry_error *err)
{
	struct ferry_link_params params = {
		.uri = &p->uri,
		.uuid = p->uuid,
		.epoch = 3,
		.kind = FERRY_WIRE_KIND_MAIN,
		.channels = 5,
		.features = p->needs,
		.timeout_ms = timeout_ms,
		.deadline_ns = ferry_clock_in_ms(timeout_ms),
		.stop = &p->stop,
		.ended = ended,
		.ctx = p,
	};
	pthread_t thread;
	int r;

	pthread_create(&thread, NULL, answer_hello, p);
	r = ferry_link_open(&params, link, err);
	pthread_join(thread, NULL);
	return r;
}

static struct ferry_link *up(struct peer *p)
{
	struct ferry_error err = { 0 };
	struct ferry_link *link = NULL;

	if (link_up(p, SOON_MS, &link, &err))
		fail_msg("%s", err.text);
	return link;
}

static void say(struct peer *p, enum ferry_wire_type type, const void *body, uint32_t length)
{
	assert_int_equal(ferry_frame_send(p->fd, type, body, length, ferry_clock_in_ms(SOON_MS)),
			 0);
}

static void say_u32(struct peer *p, enum ferry_wire_type type, uint32_t v)
{
	uint8_t body[4];

	ferry_wire_u32_encode(v, body);
	say(p, type, body, sizeof(body));
}

static uint32_t hear(struct peer *p, enum ferry_wire_type type)
{
	struct ferry_wire_frame frame;
	struct ferry_error err = { 0 };
	uint32_t v = 0;
	uint8_t *body;

	if (ferry_frame_recv(p->fd, &frame, &body, ferry_clock_in_ms(SOON_MS), &err))
		fail_msg("%s", err.text);
	assert_int_equal(frame.type, type);
	if (frame.length == 4)
		ferry_wire_u32_decode(&v, body, 4);
	free(body);
	return v;
}

static int wait_for(struct ferry_link *link, unsigned int facts, unsigned int ms,
		    struct ferry_error *err)
{
	return ferry_link_wait(link, facts, ferry_clock_in_ms(ms), err);
}

static void what_hello_says(void **state)
{
	struct peer *p = *state;
	struct ferry_link *link = up(p);

	assert_int_equal(p->hello.role, FERRY_WIRE_ROLE_SOURCE);
	assert_int_equal(p->hello.kind, FERRY_WIRE_KIND_MAIN);
	assert_int_equal(p->hello.epoch, 3);
	assert_int_equal(p->hello.channels, 5);
	assert_memory_equal(p->hello.uuid, p->uuid, 16);
	assert_int_equal(ferry_link_facts(link), 0);
	ferry_link_close(link);
}

static void hello_refused(void **state)
{
	static const struct {
		uint16_t status, version;
		uint8_t role;
		int r;
		const char *text; /* after the uri */
	} cases[] = {
		{ FERRY_WIRE_STATUS_BUSY, 0, 0, -ECONNREFUSED, ": " },
		{ FERRY_WIRE_STATUS_CHANNEL, 0, 0, -ECONNREFUSED, ": " },
		{ FERRY_WIRE_STATUS_VERSION, 0, 0, -ECONNREFUSED, ": " },
		{ FERRY_WIRE_STATUS_UUID, 0, 0, -ENOENT, ": " },
		{ FERRY_WIRE_STATUS_EPOCH, 0, 0, -ESTALE, ": " },
		{ FERRY_WIRE_STATUS_OK, 9, 0, -EPROTONOSUPPORT,
		  " speaks protocol 9 to 9, this ferry 1 to 1" },
		{ FERRY_WIRE_STATUS_OK, 0, FERRY_WIRE_ROLE_SOURCE, -EPROTO,
		  " is no destination" },
	};
	struct peer *p = *state;
	size_t i;

	for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct ferry_error err = { 0 };
		struct ferry_link *link = NULL;
		char text[1024], uri[FERRY_URI_MAX];

		p->answer = (struct ferry_wire_hello){ .status = cases[i].status,
						       .version = cases[i].version,
						       .role = cases[i].role };
		assert_int_equal(link_up(p, SOON_MS, &link, &err), cases[i].r);
		ferry_uri_format(&p->uri, uri);
		snprintf(text, sizeof(text), "%s%s%s", uri, cases[i].text,
			 strcmp(cases[i].text, ": ") ? "" : ferry_wire_status_text(cases[i].status));
		assert_string_equal(err.text, text);
		ferry_io_close(&p->fd);
	}
}

static void hello_garbage(void **state)
{
	struct peer *p = *state;
	struct ferry_error err = { 0 };
	struct ferry_link *link = NULL;
	char text[600];

	memset(p->raw, 'H', sizeof(p->raw));
	assert_int_equal(link_up(p, SOON_MS, &link, &err), -EPROTO);
	snprintf(text, sizeof(text), "what listens at unix:%s is no ferry of a version this one can "
				     "talk to", p->uri.path);
	assert_string_equal(err.text, text);
}

static void hello_never(void **state)
{
	struct peer *p = *state;
	struct ferry_error err = { 0 };
	struct ferry_link *link = NULL;
	char text[600];

	p->silent = true;
	assert_int_equal(link_up(p, 1000, &link, &err), -ETIMEDOUT);
	snprintf(text, sizeof(text), "unix:%s does not answer HELLO within 1 s: is a ferry recv "
				     "there, and free?", p->uri.path);
	assert_string_equal(err.text, text);
}

static void *stop_later(void *arg)
{
	struct peer *p = arg;

	ferry_clock_sleep_ns(SHORT_MS * FERRY_NS_PER_MS);
	__atomic_store_n(&p->stop, 1, __ATOMIC_RELAXED);
	return NULL;
}

/* A cancel is seen while HELLO is waited for, long before the deadline. */
static void hello_cancelled(void **state)
{
	struct peer *p = *state;
	uint64_t before_ns = ferry_clock_ns();
	struct ferry_error err = { 0 };
	struct ferry_link *link = NULL;
	pthread_t thread;

	p->silent = true;
	pthread_create(&thread, NULL, stop_later, p);
	assert_int_equal(link_up(p, 60000, &link, &err), -ECANCELED);
	pthread_join(thread, NULL);
	assert_true(ferry_clock_ns() - before_ns < 30 * FERRY_NS_PER_S);
}

static void facts(void **state)
{
	struct peer *p = *state;
	struct ferry_link *link = up(p);
	struct ferry_error err;
	uint8_t ns[8];

	assert_int_equal(wait_for(link, FERRY_LINK_READY, SHORT_MS, &err), -ETIMEDOUT);
	assert_string_equal(err.text, "the destination did not answer within 10 s");
	say(p, FERRY_WIRE_READY, NULL, 0);
	assert_int_equal(wait_for(link, FERRY_LINK_READY, SOON_MS, &err), 0);
	say(p, FERRY_WIRE_VERIFIED, NULL, 0);
	assert_int_equal(wait_for(link, FERRY_LINK_VERIFIED, SOON_MS, &err), 0);
	say_u32(p, FERRY_WIRE_PONG, FERRY_LINK_PING_LOADED);
	assert_int_equal(wait_for(link, FERRY_LINK_LOADED, SOON_MS, &err), 0);
	ferry_wire_u64_encode(1234567, ns);
	say(p, FERRY_WIRE_RUNNING, ns, sizeof(ns));
	assert_int_equal(wait_for(link, FERRY_LINK_RUNNING, SOON_MS, &err), 0);
	assert_int_equal(ferry_link_start_ns(link), 1234567);
	say_u32(p, FERRY_WIRE_ANSWER, FERRY_WIRE_ANSWER_WAITING);
	assert_int_equal(wait_for(link, FERRY_LINK_ANSWER, SOON_MS, &err), 0);
	assert_int_equal(ferry_link_answer(link), FERRY_WIRE_ANSWER_WAITING);
	assert_int_equal(ferry_link_why(link, &err), 0);
	ferry_link_close(link);
}

/* Only the round that was asked for last counts. */
static void flushed(void **state)
{
	struct peer *p = *state;
	struct ferry_link *link = up(p);
	struct ferry_error err;

	assert_int_equal(ferry_link_flush(link, 4, &err), 0);
	assert_int_equal(hear(p, FERRY_WIRE_FLUSH), 4);
	say_u32(p, FERRY_WIRE_FLUSHED, 3);
	say_u32(p, FERRY_WIRE_FLUSHED, 5);
	assert_int_equal(wait_for(link, FERRY_LINK_FLUSHED, SHORT_MS, &err), -ETIMEDOUT);
	say_u32(p, FERRY_WIRE_FLUSHED, 4);
	assert_int_equal(wait_for(link, FERRY_LINK_FLUSHED, SOON_MS, &err), 0);
	/* The next one starts anew. */
	assert_int_equal(ferry_link_flush(link, 5, &err), 0);
	assert_int_equal(wait_for(link, FERRY_LINK_FLUSHED, SHORT_MS, &err), -ETIMEDOUT);
	ferry_link_close(link);
}

/* The shortest counts; an answer nobody waits for measures nothing and is not LOADED. */
static void round_trips(void **state)
{
	struct peer *p = *state;
	struct ferry_link *link = up(p);
	struct ferry_error err;
	uint64_t first_ns;

	say_u32(p, FERRY_WIRE_PONG, FERRY_LINK_PING_ALIVE);
	say(p, FERRY_WIRE_READY, NULL, 0);
	assert_int_equal(wait_for(link, FERRY_LINK_READY, SOON_MS, &err), 0);
	assert_int_equal(ferry_link_rtt_ns(link), 0);
	assert_int_equal(ferry_link_ping(link), 0);
	assert_int_equal(hear(p, FERRY_WIRE_PING), FERRY_LINK_PING_ALIVE);
	ferry_clock_sleep_ns(30 * FERRY_NS_PER_MS);
	say_u32(p, FERRY_WIRE_PONG, FERRY_LINK_PING_ALIVE);
	say(p, FERRY_WIRE_VERIFIED, NULL, 0);
	assert_int_equal(wait_for(link, FERRY_LINK_VERIFIED, SOON_MS, &err), 0);
	first_ns = ferry_link_rtt_ns(link);
	assert_true(first_ns >= 30 * FERRY_NS_PER_MS);
	/* A slower one later does not raise it. */
	assert_int_equal(ferry_link_ping(link), 0);
	ferry_clock_sleep_ns(first_ns + 20 * FERRY_NS_PER_MS);
	say_u32(p, FERRY_WIRE_PONG, FERRY_LINK_PING_ALIVE);
	say_u32(p, FERRY_WIRE_ANSWER, FERRY_WIRE_ANSWER_RAN);
	assert_int_equal(wait_for(link, FERRY_LINK_ANSWER, SOON_MS, &err), 0);
	assert_int_equal(ferry_link_rtt_ns(link), first_ns);
	assert_false(ferry_link_facts(link) & FERRY_LINK_LOADED);
	ferry_link_close(link);
}

static void refused(void **state)
{
	struct peer *p = *state;
	struct ferry_link *link = up(p);
	struct ferry_error err;

	say(p, FERRY_WIRE_REFUSED, "no \033[1mdisk", 11);
	ferry_io_close(&p->fd);
	assert_int_equal(wait_for(link, FERRY_LINK_RUNNING, SOON_MS, &err), -ECONNREFUSED);
	assert_string_equal(err.text, "the destination refused: no ?[1mdisk");
	/* Its end is a fact of its own, and the first words stay. */
	assert_int_equal(wait_for(link, FERRY_LINK_LOST, SOON_MS, &err), 0);
	assert_true(ferry_link_closed(link, ferry_clock_in_ms(SOON_MS)));
	assert_int_equal(ferry_link_why(link, &err), -ECONNREFUSED);
	assert_string_equal(err.text, "the destination refused: no ?[1mdisk");
	ferry_link_close(link);
	assert_int_equal(p->ended, 1);
}

static void gave_up(void **state)
{
	struct peer *p = *state;
	struct ferry_link *link = up(p);
	struct ferry_error err;

	say(p, FERRY_WIRE_ABORT, "out of room", 11);
	assert_int_equal(wait_for(link, FERRY_LINK_READY, SOON_MS, &err), -ECONNABORTED);
	assert_string_equal(err.text, "the destination gave up: out of room");
	ferry_link_close(link);
	assert_int_equal(p->ended, 1);
}

static void lost(void **state)
{
	struct peer *p = *state;
	struct ferry_link *link = up(p);
	struct ferry_error err;

	say(p, FERRY_WIRE_READY, NULL, 0);
	ferry_io_close(&p->fd);
	assert_int_equal(wait_for(link, FERRY_LINK_LOST, SOON_MS, &err), 0);
	/* What came before the end still counts. */
	assert_int_equal(wait_for(link, FERRY_LINK_READY, SOON_MS, &err), 0);
	assert_int_equal(wait_for(link, FERRY_LINK_LOADED, SOON_MS, &err), -ECONNRESET);
	assert_string_equal(err.text, "the link to the destination is lost: it closed the "
				      "connection");
	/* What cannot be sent is said to be lost too, so that nothing waits to send more. */
	assert_true(ferry_link_send(link, FERRY_WIRE_ASK, NULL, 0, &err) < 0);
	assert_memory_equal(err.text, "cannot send ASK to the destination: ", 36);
	assert_true(ferry_link_facts(link) & FERRY_LINK_LOST);
	ferry_link_close(link);
}

static void nonsense(void **state)
{
	static const struct {
		uint16_t type;
		uint32_t length;
		const char *text;
	} cases[] = {
		{ FERRY_WIRE_RUN, 4, "it sent a bad or unexpected RUN frame" },
		{ FERRY_WIRE_FLUSH, 4, "it sent a bad or unexpected FLUSH frame" },
		{ FERRY_WIRE_ANSWER, 4, "it sent a bad or unexpected ANSWER frame" },
		{ 99, 0, "the other side sent a frame of unknown type 99; install the same release "
			 "of ferry on both hosts" },
		{ FERRY_WIRE_RUNNING, 7, "the other side sent a frame RUNNING (type 12) of 7 bytes, "
					 "which is not a length it can have" },
	};
	static const uint8_t zeros[16];
	struct peer *p = *state;
	size_t i;

	for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct ferry_wire_frame f = { .type = cases[i].type, .length = cases[i].length };
		struct ferry_link *link = up(p);
		uint8_t head[FERRY_WIRE_FRAME_BYTES];
		struct ferry_error err;
		char text[300];

		ferry_wire_frame_encode(&f, head);
		assert_int_equal(ferry_io_write(p->fd, head, sizeof(head), FERRY_CLOCK_NEVER), 0);
		assert_int_equal(ferry_io_write(p->fd, zeros, f.length, FERRY_CLOCK_NEVER), 0);
		assert_int_equal(wait_for(link, FERRY_LINK_READY, SOON_MS, &err), -ECONNRESET);
		snprintf(text, sizeof(text), "the link to the destination is lost: %s",
			 cases[i].text);
		assert_string_equal(err.text, text);
		assert_false(ferry_link_closed(link, ferry_clock_in_ms(SOON_MS)));
		ferry_link_close(link);
		ferry_io_close(&p->fd);
	}
}

/* A quiet line is pinged, a silent one is lost after the timeout. */
static void silence(void **state)
{
	struct peer *p = *state;
	struct ferry_error err = { 0 };
	struct ferry_link *link = NULL;

	assert_int_equal(link_up(p, 1000, &link, &err), 0);
	assert_int_equal(wait_for(link, FERRY_LINK_READY, SOON_MS, &err), -ECONNRESET);
	assert_string_equal(err.text,
			    "the link to the destination is lost: no word from it for 1 s");
	assert_int_equal(hear(p, FERRY_WIRE_PING), FERRY_LINK_PING_ALIVE);
	ferry_link_close(link);
}

static void *cancel_later(void *arg)
{
	ferry_clock_sleep_ns(30 * FERRY_NS_PER_MS);
	ferry_link_cancel(arg);
	return NULL;
}

static void cancelled(void **state)
{
	struct peer *p = *state;
	struct ferry_link *link = up(p);
	struct ferry_error err;
	pthread_t thread;

	pthread_create(&thread, NULL, cancel_later, link);
	assert_int_equal(wait_for(link, FERRY_LINK_READY, SOON_MS, &err), -ECANCELED);
	assert_string_equal(err.text, "cancelled");
	pthread_join(thread, NULL);
	/* Not a reason why the link should have ended, and over when it is taken back. */
	assert_int_equal(ferry_link_why(link, &err), 0);
	ferry_link_uncancel(link);
	say(p, FERRY_WIRE_READY, NULL, 0);
	assert_int_equal(wait_for(link, FERRY_LINK_READY, SOON_MS, &err), 0);
	ferry_link_close(link);
}

static void closing_nothing(void **state)
{
	(void)state;
	ferry_link_close(NULL);
}

#define WITH_PEER(test) cmocka_unit_test_setup_teardown(test, setup, teardown)

/* What the destination cannot do is refused by its name, before anything else is said. */
static void features(void **state)
{
	static const struct {
		uint64_t needs, lacks;
		const char *says;
	} cases[] = {
		{ FERRY_WIRE_FEATURE_ZSTD, FERRY_WIRE_FEATURE_ZSTD,
		  "cannot do zstd compression (--compress zstd): install this release there, or "
		  "leave the option out" },
		{ FERRY_WIRE_FEATURE_LZ4 | FERRY_WIRE_FEATURE_CHECKSUM, FERRY_WIRE_FEATURE_LZ4,
		  "cannot do LZ4 compression (--compress lz4)" },
		{ FERRY_WIRE_FEATURE_LZ4 | FERRY_WIRE_FEATURE_CHECKSUM, ~0ull & ~FERRY_WIRE_FEATURE_LZ4,
		  "cannot do checksums (--checksum)" },
		{ FERRY_WIRE_FEATURE_ZSTD, FERRY_WIRE_FEATURE_LZ4, NULL },
		{ 0, ~0ull, NULL },
	};
	struct peer *p = *state;
	struct ferry_error err;
	size_t i;

	for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct ferry_link *link = NULL;
		int r;

		p->needs = cases[i].needs;
		p->lacks = cases[i].lacks;
		r = link_up(p, SOON_MS, &link, &err);
		assert_int_equal(r, cases[i].says ? -EOPNOTSUPP : 0);
		if (cases[i].says && !strstr(err.text, cases[i].says))
			fail_msg("'%s' is not in '%s'", cases[i].says, err.text);
		ferry_link_close(link);
		ferry_io_close(&p->fd);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		WITH_PEER(what_hello_says), WITH_PEER(hello_refused), WITH_PEER(hello_garbage),
		WITH_PEER(features), WITH_PEER(hello_never), WITH_PEER(hello_cancelled), WITH_PEER(facts),
		WITH_PEER(flushed),	    WITH_PEER(round_trips),   WITH_PEER(refused),
		WITH_PEER(gave_up),	    WITH_PEER(lost),	      WITH_PEER(nonsense),
		WITH_PEER(silence),	    WITH_PEER(cancelled),     cmocka_unit_test(closing_nothing),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
