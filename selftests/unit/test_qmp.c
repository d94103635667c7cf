// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The QMP client against a scripted peer: a thread that accepts one client and
 * answers each line with the next text of the script. "$ID" in it becomes the
 * id of the command, "!" closes, "" keeps silent.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/io.h"
#include "guest/json.h"
#include "guest/qmp.h"

#define GREETING "{\"QMP\":{\"version\":{},\"capabilities\":[]}}\r\n"
#define OK "{\"return\":{},\"id\":\"$ID\"}\r\n"

struct peer {
	char dir[64], path[96];
	int listener, client;
	const char *greeting;
	const char *const *script;
	pthread_t thread;
	char last[4096]; /* what the client sent last */
};

static void peer_say(struct peer *p, const char *text, const char *line)
{
	const char *at = strstr(line, "\"id\":\""), *mark;
	char id[64] = "";

	if (at)
		sscanf(at + 6, "%63[^\"]", id);
	while ((mark = strstr(text, "$ID"))) {
		ferry_io_write(p->client, text, (size_t)(mark - text), FERRY_CLOCK_NEVER);
		ferry_io_write(p->client, id, strlen(id), FERRY_CLOCK_NEVER);
		text = mark + 3;
	}
	ferry_io_write(p->client, text, strlen(text), FERRY_CLOCK_NEVER);
}

static void peer_serve(struct peer *p)
{
	const char *const *next = p->script;
	char line[4096];
	size_t n = 0;

	while (*next && n < sizeof(line) - 1 && read(p->client, line + n, 1) == 1) {
		if (line[n++] != '\n')
			continue;
		line[n] = '\0';
		n = 0;
		memcpy(p->last, line, sizeof(line));
		if (!strcmp(*next, "!"))
			break;
		peer_say(p, *next++, line);
	}
	if (*next)
		shutdown(p->client, SHUT_RDWR);
	/* Until the client closes. */
	while (read(p->client, line, sizeof(line)) > 0)
		;
}

static void *peer_main(void *arg)
{
	struct peer *p = arg;

	p->client = accept(p->listener, NULL, NULL);
	if (p->client < 0)
		return NULL;
	peer_say(p, p->greeting, "");
	peer_serve(p);
	close(p->client);
	return NULL;
}

static void peer_listen(struct peer *p)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };

	strcpy(p->dir, "/tmp/ferry-test-qmp-XXXXXX");
	assert_non_null(mkdtemp(p->dir));
	snprintf(p->path, sizeof(p->path), "%s/q", p->dir);
	memcpy(addr.sun_path, p->path, sizeof(p->path));
	p->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_int_equal(bind(p->listener, (struct sockaddr *)&addr, sizeof(addr)), 0);
	assert_int_equal(listen(p->listener, 1), 0);
}

static void peer_start(struct peer *p, const char *greeting, const char *const *script)
{
	memset(p, 0, sizeof(*p));
	p->greeting = greeting;
	p->script = script;
	peer_listen(p);
	assert_int_equal(pthread_create(&p->thread, NULL, peer_main, p), 0);
}

static void peer_remove(struct peer *p)
{
	close(p->listener);
	unlink(p->path);
	rmdir(p->dir);
}

static void peer_stop(struct peer *p, struct ferry_qmp *qmp)
{
	ferry_qmp_close(qmp);
	pthread_join(p->thread, NULL);
	peer_remove(p);
}

static struct ferry_qmp *connected(struct peer *p, unsigned int timeout_ms)
{
	struct ferry_error err = { 0 };
	struct ferry_qmp *qmp;
	int r = ferry_qmp_connect(p->path, timeout_ms, &qmp, &err);

	if (r)
		fail_msg("connect: %d %s", r, err.text);
	return qmp;
}

static void command_skips_events_and_others(void **state)
{
	static const char *const script[] = {
		OK,
		"{\"event\":\"STOP\"}\r\n{\"return\":1,\"id\":\"ferry-1-1\"}\r\n\r\n"
		"{\"return\":{\"status\":\"paused\"},\r\n  \"id\": \"$ID\"\r\n}\r\n",
		NULL,
	};
	struct json_object *ret, *args = json_object_new_object();
	struct ferry_error err = { 0 };
	struct ferry_qmp *qmp;
	struct peer p;

	(void)state;
	peer_start(&p, GREETING, script);
	qmp = connected(&p, 5000);
	assert_int_equal(ferry_qmp_peer(qmp), getpid());
	json_object_object_add(args, "k", json_object_new_int(5));
	assert_int_equal(ferry_qmp_command(qmp, "query-status", args, -1, &ret, &err), 0);
	assert_string_equal(ferry_json_string(ret, "status"), "paused");
	json_object_put(ret);
	assert_non_null(strstr(p.last, "\"execute\":\"query-status\""));
	assert_non_null(strstr(p.last, "\"arguments\":{\"k\":5}"));
	peer_stop(&p, qmp);
}

static void command_reports_qemus_words(void **state)
{
	static const char *const script[] = {
		OK, "{\"error\":{\"class\":\"GenericError\",\"desc\":\"no \\u001b[2J disk\\n\"},"
		"\"id\":\"$ID\"}\n", "{\"error\":{\"desc\":\"no parse\"}}\n", OK, NULL,
	};
	struct ferry_error err = { 0 };
	struct ferry_qmp *qmp;
	struct peer p;

	(void)state;
	peer_start(&p, GREETING, script);
	qmp = connected(&p, 5000);
	assert_int_equal(ferry_qmp_command(qmp, "cont", NULL, -1, NULL, &err), -EREMOTEIO);
	assert_string_equal(err.text, "QEMU refused 'cont': no  [2J disk");
	assert_int_equal(ferry_qmp_command(qmp, "cont", NULL, -1, NULL, &err), -EREMOTEIO);
	assert_int_equal(ferry_qmp_command(qmp, "cont", NULL, -1, NULL, &err), 0);
	peer_stop(&p, qmp);
}

/* A late answer is not taken for the next command's. */
static void command_times_out_and_goes_on(void **state)
{
	static const char *const script[] = {
		OK, "", "{\"return\":1,\"id\":\"ferry-0-0\"}\n{\"return\":2,\"id\":\"$ID\"}\n", NULL,
	};
	struct ferry_error err = { 0 };
	uint64_t start_ns;
	struct json_object *ret;
	struct ferry_qmp *qmp;
	struct peer p;

	(void)state;
	peer_start(&p, GREETING, script);
	qmp = connected(&p, 200);
	start_ns = ferry_clock_ns();
	assert_int_equal(ferry_qmp_command(qmp, "stop", NULL, -1, NULL, &err), -ETIMEDOUT);
	assert_in_range(ferry_clock_ns() - start_ns, 190 * FERRY_NS_PER_MS, 5 * FERRY_NS_PER_S);
	assert_non_null(strstr(err.text, "'stop'"));
	assert_int_equal(ferry_qmp_command(qmp, "cont", NULL, -1, &ret, &err), 0);
	assert_int_equal(json_object_get_int(ret), 2);
	json_object_put(ret);
	peer_stop(&p, qmp);
}

static void a_broken_connection_stays_broken(void **state)
{
	static const char *const script[] = { OK, "!", NULL };
	struct ferry_error err = { 0 };
	struct ferry_qmp *qmp;
	struct peer p;

	(void)state;
	peer_start(&p, GREETING, script);
	qmp = connected(&p, 5000);
	assert_int_equal(ferry_qmp_command(qmp, "stop", NULL, -1, NULL, &err), -EPIPE);
	assert_int_equal(ferry_qmp_command(qmp, "stop", NULL, -1, NULL, &err), -EPIPE);
	assert_non_null(strstr(err.text, p.path));
	peer_stop(&p, qmp);
}

static void nonsense_is_refused(void **state)
{
	static const char *const nonsense[] = {
		"hello\n", "[]\n", "7\n", "{\"return\":}\n", "{\"return\":1} x\n", "{\"a\":\"b\n",
		"{\"id\":\"$ID\"}\n",
	};
	struct ferry_error err = { 0 };
	struct ferry_qmp *qmp;
	struct peer p;
	size_t i;

	(void)state;
	for (i = 0; i < sizeof(nonsense) / sizeof(nonsense[0]); i++) {
		const char *const script[] = { OK, nonsense[i], NULL };

		peer_start(&p, GREETING, script);
		qmp = connected(&p, 5000);
		assert_int_equal(ferry_qmp_command(qmp, "stop", NULL, -1, NULL, &err), -EPROTO);
		peer_stop(&p, qmp);
	}
}

static void a_message_has_a_bound(void **state)
{
	size_t bytes = (16u << 20) + 4096;
	char *big = malloc(bytes + 1);
	const char *script[] = { OK, big, NULL };
	struct ferry_error err = { 0 };
	struct ferry_qmp *qmp;
	struct peer p;

	(void)state;
	memset(big, ' ', bytes);
	big[0] = '{';
	big[bytes] = '\0';
	peer_start(&p, GREETING, script);
	qmp = connected(&p, 20000);
	assert_int_equal(ferry_qmp_command(qmp, "stop", NULL, -1, NULL, &err), -EPROTO);
	assert_non_null(strstr(err.text, "16 MiB"));
	peer_stop(&p, qmp);
	free(big);
}

static void connect_tells_a_busy_socket(void **state)
{
	struct ferry_error err = { 0 };
	struct ferry_qmp *qmp;
	struct peer p = { 0 };

	(void)state;
	peer_listen(&p); /* nobody accepts */
	assert_int_equal(ferry_qmp_connect(p.path, 200, &qmp, &err), -EBUSY);
	assert_non_null(strstr(err.text, "socket busy: add a second -qmp socket"));
	assert_int_equal(ferry_qmp_connect(p.path, 200, &qmp, &err), -EBUSY);
	assert_int_equal(ferry_qmp_connect(p.path, 200, &qmp, &err), -EBUSY);
	close(p.listener);
	assert_int_equal(ferry_qmp_connect(p.path, 200, &qmp, &err), -ECONNREFUSED);
	unlink(p.path);
	assert_int_equal(ferry_qmp_connect(p.path, 200, &qmp, &err), -ENOENT);
	rmdir(p.dir);
}

static void connect_wants_qmp(void **state)
{
	static const char *const script[] = { OK, NULL };
	struct ferry_error err = { 0 };
	struct ferry_qmp *qmp;
	struct peer p;

	(void)state;
	peer_start(&p, "{\"hello\":1}\n", script);
	assert_int_equal(ferry_qmp_connect(p.path, 1000, &qmp, &err), -EPROTO);
	pthread_join(p.thread, NULL);
	peer_remove(&p);
}

/* The stream begins in the middle of another process's reply. */
static void adopt_finds_its_place(void **state)
{
	static const char *const left[] = {
		"", "\"}\r\n", "rn\": {}, \"id\": \"ferry-1-1\"}\r\n", "{}}\r\n", "d\": \"x\\\"y\"}\r\n",
		"{\"return\": {}, \"id\": \"ferry-1-2\"}\r\n", "}, 3]}\r\n{\"event\":\"STOP\"}\r\n",
	};
	struct ferry_error err = { 0 };
	char buf[512], reply[512];
	struct json_object *ret;
	struct ferry_qmp *qmp;
	int pair[2], i, n;

	(void)state;
	for (i = 0; i < (int)(sizeof(left) / sizeof(left[0])); i++) {
		assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
		n = snprintf(reply, sizeof(reply), "%s{\"error\":{\"desc\":\"bad 0xff\"}}\r\n"
			     "{\"return\":%d,\"id\":\"ferry-%d-1\"}\r\n", left[i], i, getpid());
		assert_int_equal(write(pair[1], reply, (size_t)n), n);
		assert_int_equal(ferry_qmp_adopt(pair[0], "q", 2000, &qmp, &err), 0);
		assert_int_equal(ferry_qmp_command(qmp, "stop", NULL, -1, &ret, &err), 0);
		assert_int_equal(json_object_get_int(ret), i);
		json_object_put(ret);
		n = (int)read(pair[1], buf, sizeof(buf) - 1);
		assert_true(n > 2);
		buf[n] = '\0';
		assert_int_equal((unsigned char)buf[0], 0xff);
		ferry_qmp_close(qmp);
		close(pair[1]);
	}
}

static void adopt_wants_a_descriptor(void **state)
{
	struct ferry_error err = { 0 };
	struct ferry_qmp *qmp;

	(void)state;
	assert_int_equal(ferry_qmp_adopt(-1, "q", 100, &qmp, &err), -EBADF);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(command_skips_events_and_others),
		cmocka_unit_test(command_reports_qemus_words),
		cmocka_unit_test(command_times_out_and_goes_on),
		cmocka_unit_test(a_broken_connection_stays_broken),
		cmocka_unit_test(nonsense_is_refused),
		cmocka_unit_test(a_message_has_a_bound),
		cmocka_unit_test(connect_tells_a_busy_socket),
		cmocka_unit_test(connect_wants_qmp),
		cmocka_unit_test(adopt_finds_its_place),
		cmocka_unit_test(adopt_wants_a_descriptor),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
