// SPDX-License-Identifier: GPL-2.0-or-later
/* The control socket: request lines and their replies, over the socket and without it. */
#include <errno.h>
#include <json-c/json.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
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

#include "agent/control.h"
#include "base/clock.h"
#include "base/io.h"

#define SOON_MS 10000

static char dir[] = "/tmp/ferry-control-XXXXXX";
static const struct ferry_job_hooks hooks;

/* Client threads of ferry_control_serve() use it until the process ends. */
static struct ferry_job job;

static int group_setup(void **state)
{
	(void)state;
	signal(SIGPIPE, SIG_IGN);
	return mkdtemp(dir) && !setenv("FERRY_RUNTIME_DIR", dir, 1) ? 0 : -1;
}

static int group_teardown(void **state)
{
	(void)state;
	return rmdir(dir);
}

static int setup(void **state)
{
	(void)state;
	pthread_mutex_lock(&job.lock);
	job.state = FERRY_STATE_ACTIVE;
	job.cancel = job.committed = job.go_on = false;
	pthread_mutex_unlock(&job.lock);
	return 0;
}

static void init_job(void)
{
	ferry_job_init(&job, &hooks);
	snprintf(job.record.id, sizeof(job.record.id), "vm1");
	snprintf(job.record.guest, sizeof(job.record.guest), "qmp:/run/vm1.qmp");
	snprintf(job.record.uri, sizeof(job.record.uri), "tcp:h:1");
	job.record.epoch = 2;
	job.shown = job.record;
	job.stats.rounds = 5;
}

static const char *reply(const char *line)
{
	static char text[8192];
	struct json_object *o = ferry_control_reply(&job, line);

	assert_non_null(o);
	snprintf(text, sizeof(text), "%s",
		 json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN |
						JSON_C_TO_STRING_NOSLASHESCAPE));
	json_object_put(o);
	return text;
}

static void success(void **state)
{
	(void)state;
	assert_string_equal(reply("{\"command\":\"set\",\"key\":\"max-bandwidth\",\"value\":\"10M\"}"),
			    "{\"return\":{}}");
	assert_int_equal(job.options.max_bandwidth, 10u << 20);
	job.state = FERRY_STATE_PRE_SWITCHOVER;
	assert_string_equal(reply("{\"command\":\"continue\"}"), "{\"return\":{}}");
	assert_true(job.go_on);
	assert_string_equal(reply("{\"command\":\"cancel\"}"), "{\"return\":{}}");
	assert_true(job.cancel);
	/* Members that nobody asks for do not matter. */
	assert_string_equal(reply(" {\"why\":[1,{}],\"command\":\"cancel\"} "), "{\"return\":{}}");
}

static void failure(void **state)
{
	static const struct {
		const char *line, *reply;
	} cases[] = {
#define NO_REQUEST "{\"error\":\"a request is one line like {\\\"command\\\":\\\"status\\\"}\",\"errno\":22}"
		{ "", NO_REQUEST },
		{ "status", NO_REQUEST },
		{ "null", NO_REQUEST },
		{ "[]", NO_REQUEST },
		{ "{}", NO_REQUEST },
		{ "{\"command\":7}", NO_REQUEST },
		{ "{\"command\":null}", NO_REQUEST },
		{ "{\"command\":\"status\"", NO_REQUEST },
		{ "\xff\xfe", NO_REQUEST },
		{ "{\"command\":\"explode\"}",
		  "{\"error\":\"unknown command 'explode'\",\"errno\":22}" },
		{ "{\"command\":\"set\"}",
		  "{\"error\":\"set takes a key and a value\",\"errno\":22}" },
		{ "{\"command\":\"set\",\"key\":\"max-bandwidth\",\"value\":7}",
		  "{\"error\":\"set takes a key and a value\",\"errno\":22}" },
		{ "{\"command\":\"set\",\"key\":\"x\",\"value\":\"1\"}",
		  "{\"error\":\"no setting 'x'; there are max-bandwidth=SIZE, "
		  "downtime-limit=MS and on-stall=POLICY\",\"errno\":22}" },
		{ "{\"command\":\"continue\"}",
		  "{\"error\":\"vm1 does not wait in pre-switchover, its state is active; 'continue' "
		  "goes with --pause-before-switchover\",\"errno\":22}" },
	};
	size_t i;

	(void)state;
	for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
		assert_string_equal(reply(cases[i].line), cases[i].reply);
	job.committed = true;
	assert_string_equal(reply("{\"command\":\"cancel\"}"),
			    "{\"error\":\"vm1 cannot be cancelled any more: the switchover is "
			    "committed (state active), the destination owns the guest or is about "
			    "to\",\"errno\":16}");
	assert_false(job.cancel);
	job.state = FERRY_STATE_COMPLETED;
	assert_string_equal(reply("{\"command\":\"cancel\"}"),
			    "{\"error\":\"vm1 has ended already: completed\",\"errno\":114}");
}

static const char *text_of(struct json_object *o, const char *key)
{
	struct json_object *v;

	assert_true(json_object_object_get_ex(o, key, &v));
	return v ? json_object_get_string(v) : "null";
}

/* Who has the guest, as the phase tells; the pairs a person must be able to rely on. */
static void status(void **state)
{
	static const struct {
		enum ferry_phase phase;
		const char *guest;
	} cases[] = {
		{ FERRY_PHASE_OPEN, "source" },		 { FERRY_PHASE_COMMIT, "unknown" },
		{ FERRY_PHASE_RAN, "destination" },	 { FERRY_PHASE_COMMIT_WAIT, "unknown" },
		{ FERRY_PHASE_RUN_ACCEPTED, "destination" }, { FERRY_PHASE_REFUSED, "source" },
		{ FERRY_PHASE_ABORTED, "source" },	 { FERRY_PHASE_FENCED, "source" },
	};
	struct json_object *o, *ret;
	size_t i;

	(void)state;
	for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		job.shown.phase = cases[i].phase;
		o = ferry_control_reply(&job, "{\"command\":\"status\"}");
		assert_true(json_object_object_get_ex(o, "return", &ret));
		assert_string_equal(text_of(ret, "guest"), cases[i].guest);
		assert_string_equal(text_of(ret, "phase"), ferry_phase_name(cases[i].phase));
		assert_string_equal(text_of(ret, "id"), "vm1");
		assert_string_equal(text_of(ret, "role"), "source");
		assert_string_equal(text_of(ret, "state"), "active");
		assert_string_equal(text_of(ret, "alive"), "true");
		assert_string_equal(text_of(ret, "rounds"), "5");
		assert_string_equal(text_of(ret, "epoch"), "2");
		assert_string_equal(text_of(ret, "error"), "null");
		assert_string_equal(text_of(ret, "uuid"), "00000000-0000-0000-0000-000000000000");
		json_object_put(o);
	}
	job.shown.phase = FERRY_PHASE_OPEN;
}

struct server {
	int listen_fd;
	int stop_fd[2];
	pthread_t thread;
};

static void *serve(void *arg)
{
	struct server *s = arg;

	for (;;) {
		struct pollfd p[] = { { .fd = s->listen_fd, .events = POLLIN },
				      { .fd = s->stop_fd[0], .events = POLLIN } };

		if (poll(p, 2, -1) < 0 || p[1].revents)
			return NULL;
		ferry_control_serve(s->listen_fd, &job);
	}
}

static void start(struct server *s)
{
	struct ferry_error err = { 0 };

	s->listen_fd = ferry_control_listen("vm1", &err);
	assert_true(s->listen_fd >= 0);
	assert_int_equal(pipe(s->stop_fd), 0);
	assert_int_equal(pthread_create(&s->thread, NULL, serve, s), 0);
}

static void stop(struct server *s)
{
	char path[200];

	close(s->stop_fd[1]);
	pthread_join(s->thread, NULL);
	close(s->stop_fd[0]);
	close(s->listen_fd);
	snprintf(path, sizeof(path), "%s/vm1.sock", dir);
	unlink(path);
}

static struct json_object *request(const char *command)
{
	struct json_object *o = json_object_new_object();

	json_object_object_add(o, "command", json_object_new_string(command));
	return o;
}

static int join(void)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	snprintf(addr.sun_path, sizeof(addr.sun_path), "%s/vm1.sock", dir);
	assert_int_equal(connect(fd, (void *)&addr, sizeof(addr)), 0);
	return fd;
}

static void read_line(int fd, char *line, size_t room)
{
	size_t n = 0;

	do {
		assert_true(n + 1 < room);
		assert_int_equal(ferry_io_read(fd, line + n, 1, ferry_clock_in_ms(SOON_MS)), 0);
	} while (line[n++] != '\n');
	line[n - 1] = 0;
}

static void over_the_socket(void **state)
{
	struct json_object *ret = NULL;
	struct ferry_error err;
	struct server s;

	(void)state;
	start(&s);
	assert_int_equal(ferry_control_ask("vm1", request("status"), 0, &ret, &err), 0);
	assert_string_equal(text_of(ret, "id"), "vm1");
	json_object_put(ret);
	ret = NULL;
	/* The errno and the text of the other process come through. */
	assert_int_equal(ferry_control_ask("vm1", request("continue"), 0, &ret, &err), -EINVAL);
	assert_memory_equal(err.text, "vm1 does not wait in pre-switchover", 35);
	assert_null(ret);
	stop(&s);
	assert_int_equal(ferry_control_ask("vm1", request("status"), 0, &ret, &err), -ECONNREFUSED);
	assert_string_equal(err.text, "no process serves vm1");
}

/* Clients that are silent, talk nonsense or hang up keep no other one waiting. */
static void others_do_not_wait(void **state)
{
	uint64_t before_ns = ferry_clock_ns();
	struct json_object *ret = NULL;
	char line[8192], *long_line;
	struct ferry_error err;
	int silent, many, rude;
	struct server s;

	(void)state;
	start(&s);
	silent = join();
	rude = join();
	assert_int_equal(write(rude, "{\"comm", 6), 6);
	close(rude);
	/* Two requests on one connection. */
	many = join();
	assert_int_equal(write(many, "{}\n{\"command\":\"x\"}\n", 19), 19);
	read_line(many, line, sizeof(line));
	assert_string_equal(line, NO_REQUEST);
	read_line(many, line, sizeof(line));
	assert_string_equal(line, "{\"error\":\"unknown command 'x'\",\"errno\":22}");
	/* A line without end: an answer, and the end of the connection. */
	long_line = malloc(FERRY_CONTROL_MAX_LINE);
	memset(long_line, ' ', FERRY_CONTROL_MAX_LINE);
	assert_int_equal(write(many, long_line, FERRY_CONTROL_MAX_LINE - 1),
			 FERRY_CONTROL_MAX_LINE - 1);
	free(long_line);
	read_line(many, line, sizeof(line));
	assert_string_equal(line, "{\"error\":\"the request is too long\",\"errno\":90}");
	assert_int_equal(ferry_io_read(many, line, 1, ferry_clock_in_ms(SOON_MS)), -ENODATA);
	close(many);
	assert_int_equal(ferry_control_ask("vm1", request("status"), 0, &ret, &err), 0);
	json_object_put(ret);
	/* All that long before the silent one was given up. */
	assert_true(ferry_clock_ns() - before_ns < 5 * FERRY_NS_PER_S);
	close(silent);
	stop(&s);
}

/* A server that follows no rules. */
static void *answer_nonsense(void *arg)
{
	static const char *const lines[] = {
		"nonsense\n", "[]\n", "{}\n", "{\"return\":null}\n", "{\"return\":7}\n",
		"{\"error\":null,\"errno\":5}\n", "{\"error\":\"broken\",\"errno\":-7}\n",
		/* One that dies, the one after it, and one that dies as the last. */
		"", "{\"return\":{}}\n", "",
	};
	struct server *s = arg;
	size_t i;

	for (i = 0; i < sizeof(lines) / sizeof(lines[0]); i++) {
		struct pollfd p = { .fd = s->listen_fd, .events = POLLIN };
		char line[4096];
		int fd;

		poll(&p, 1, -1);
		fd = accept(s->listen_fd, NULL, NULL);
		read_line(fd, line, sizeof(line));
		assert_int_equal(write(fd, lines[i], strlen(lines[i])), strlen(lines[i]));
		if (i + 1 == sizeof(lines) / sizeof(lines[0]))
			close(s->listen_fd);
		close(fd);
	}
	return NULL;
}

static void no_sane_answer(void **state)
{
	struct json_object *ret = NULL;
	struct ferry_error err;
	struct server s;
	char path[200];
	unsigned int i;

	(void)state;
	s.listen_fd = ferry_control_listen("vm1", &err);
	assert_true(s.listen_fd >= 0);
	pthread_create(&s.thread, NULL, answer_nonsense, &s);
	for (i = 0; i < 6; i++) {
		assert_int_equal(ferry_control_ask("vm1", request("status"), 0, &ret, &err), -EPROTO);
		assert_string_equal(err.text, "the process that serves vm1 gave no sane answer");
	}
	assert_int_equal(ferry_control_ask("vm1", request("status"), 0, &ret, &err), -EREMOTEIO);
	assert_string_equal(err.text, "broken");
	assert_null(ret);
	assert_int_equal(ferry_control_ask("vm1", request("status"), 0, &ret, &err), 0);
	json_object_put(ret);
	ret = NULL;
	assert_int_equal(ferry_control_ask("vm1", request("status"), 0, &ret, &err), -ECONNREFUSED);
	assert_string_equal(err.text, "no process serves vm1");
	assert_null(ret);
	pthread_join(s.thread, NULL);
	snprintf(path, sizeof(path), "%s/vm1.sock", dir);
	unlink(path);
}

static void a_path_too_long(void **state)
{
	char id[64];
	struct ferry_error err;

	(void)state;
	memset(id, 'x', sizeof(id) - 1);
	id[sizeof(id) - 1] = 0;
	{
		/* Folder and id: more than the 107 bytes of a socket's path. */
		char deep[120];

		snprintf(deep, sizeof(deep), "%s/%050d", dir, 0);
		setenv("FERRY_RUNTIME_DIR", deep, 1);
		assert_int_equal(ferry_control_listen(id, &err), -ENAMETOOLONG);
		assert_non_null(strstr(err.text, "is too long for a socket: set FERRY_RUNTIME_DIR "
						 "to a shorter one or use a shorter --id"));
		rmdir(deep);
		setenv("FERRY_RUNTIME_DIR", dir, 1);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup(success, setup),
		cmocka_unit_test_setup(failure, setup),
		cmocka_unit_test_setup(status, setup),
		cmocka_unit_test_setup(over_the_socket, setup),
		cmocka_unit_test_setup(others_do_not_wait, setup),
		cmocka_unit_test_setup(no_sane_answer, setup),
		cmocka_unit_test_setup(a_path_too_long, setup),
	};

	init_job();
	return cmocka_run_group_tests(tests, group_setup, group_teardown);
}
