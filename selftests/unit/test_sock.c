// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/io.h"
#include "xport/sock.h"

#define SOON_MS 5000

static char dir[] = "/tmp/ferry-sock.XXXXXX";

static int setup(void **state)
{
	(void)state;
	return mkdtemp(dir) ? 0 : -1;
}

static int teardown(void **state)
{
	(void)state;
	return rmdir(dir); /* fails when a test left a file behind */
}

static struct ferry_uri parse(const char *fmt, const char *arg)
{
	struct ferry_uri uri;
	char text[FERRY_URI_MAX];

	snprintf(text, sizeof(text), fmt, arg);
	assert_int_equal(ferry_uri_parse(text, &uri, NULL), 0);
	return uri;
}

static bool has_v6(void)
{
	struct ferry_uri uri = parse("tcp:[::1]:0", "");
	bool all;
	int fd = ferry_sock_listen(&uri, &all, NULL);

	if (fd >= 0)
		close(fd);
	return fd >= 0;
}

static void check_pair(struct ferry_uri *uri, bool want_all)
{
	struct ferry_error err = { 0 };
	int lfd, a, b, one;
	bool all = !want_all;
	socklen_t len = sizeof(one);
	char c = 0;

	lfd = ferry_sock_listen(uri, &all, &err);
	if (lfd < 0)
		fail_msg("%s", err.text);
	assert_int_equal(all, want_all);
	assert_string_not_equal(uri->port, "0");
	a = ferry_sock_connect(uri, ferry_clock_in_ms(SOON_MS), NULL, &err);
	assert_true(a >= 0);
	b = ferry_sock_accept(lfd, ferry_clock_in_ms(SOON_MS));
	assert_true(b >= 0);
	assert_int_equal(ferry_io_write(a, "x", 1, ferry_clock_in_ms(SOON_MS)), 0);
	assert_int_equal(ferry_io_read(b, &c, 1, ferry_clock_in_ms(SOON_MS)), 0);
	assert_int_equal(c, 'x');
	assert_true(fcntl(a, F_GETFL) & O_NONBLOCK);
	assert_true(fcntl(b, F_GETFL) & O_NONBLOCK);
	assert_true(fcntl(lfd, F_GETFD) & FD_CLOEXEC);
	assert_true(fcntl(a, F_GETFD) & FD_CLOEXEC);
	assert_true(fcntl(b, F_GETFD) & FD_CLOEXEC);
	if (uri->kind == FERRY_URI_TCP) {
		assert_int_equal(getsockopt(b, SOL_SOCKET, SO_KEEPALIVE, &one, &len), 0);
		assert_int_equal(one, 1);
	}
	close(a);
	close(b);
	assert_int_equal(ferry_sock_accept(lfd, ferry_clock_in_ms(20)), -ETIMEDOUT);
	close(lfd);
}

static void tcp4(void **state)
{
	struct ferry_uri uri = parse("tcp:127.0.0.1:0", "");

	(void)state;
	check_pair(&uri, false);
	uri = parse("tcp:0.0.0.0:0", "");
	check_pair(&uri, true);
	uri = parse("tcp:localhost:0", "");
	check_pair(&uri, false);
}

static void tcp6(void **state)
{
	struct ferry_uri uri = parse("tcp:[::1]:0", "");

	(void)state;
	if (!has_v6()) {
		print_message("SKIP: tcp6 needs IPv6 on the loopback interface\n");
		skip();
	}
	check_pair(&uri, false);
	uri = parse("tcp:[::]:0", "");
	check_pair(&uri, true);
}

static void unix_path(void **state)
{
	struct ferry_uri uri = parse("unix:%s/s", dir);
	struct stat st;

	(void)state;
	check_pair(&uri, false);
	assert_int_equal(stat(uri.path, &st), 0);
	assert_int_equal(st.st_mode & 07777, 0600);
	/* The file was left behind: the next listener replaces it. */
	check_pair(&uri, false);
	assert_int_equal(unlink(uri.path), 0);
}

static void in_use(void **state)
{
	struct ferry_uri uri = parse("unix:%s/s", dir), tcp = parse("tcp:127.0.0.1:0", "");
	struct ferry_error err;
	bool all;
	int lfd, fd;

	(void)state;
	lfd = ferry_sock_listen(&uri, &all, &err);
	assert_true(lfd >= 0);
	assert_int_equal(ferry_sock_listen(&uri, &all, &err), -EADDRINUSE);
	assert_non_null(strstr(err.text, uri.path));
	close(lfd);
	assert_int_equal(unlink(uri.path), 0);

	/* A file that is no socket is not ours to replace. */
	fd = open(uri.path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
	assert_true(fd >= 0);
	close(fd);
	assert_int_equal(ferry_sock_listen(&uri, &all, &err), -EADDRINUSE);
	assert_int_equal(unlink(uri.path), 0);

	lfd = ferry_sock_listen(&tcp, &all, &err);
	assert_true(lfd >= 0);
	assert_int_equal(ferry_sock_listen(&tcp, &all, &err), -EADDRINUSE);
	assert_non_null(strstr(err.text, tcp.port));
	close(lfd);

	uri = parse("unix:%s/nowhere/s", dir);
	assert_int_equal(ferry_sock_listen(&uri, &all, &err), -ENOENT);
}

struct late {
	struct ferry_uri uri;
	int fd;
};

static void *listen_late(void *arg)
{
	struct late *late = arg;
	bool all;

	ferry_clock_sleep_ns(100 * FERRY_NS_PER_MS);
	late->fd = ferry_sock_listen(&late->uri, &all, NULL);
	return NULL;
}

static void check_late(const struct ferry_uri *uri)
{
	struct late late = { .uri = *uri, .fd = -1 };
	uint64_t start = ferry_clock_ns();
	struct ferry_error err = { 0 };
	pthread_t thread;
	int fd;

	assert_int_equal(pthread_create(&thread, NULL, listen_late, &late), 0);
	fd = ferry_sock_connect(uri, ferry_clock_in_ms(SOON_MS), NULL, &err);
	pthread_join(thread, NULL);
	if (fd < 0)
		fail_msg("%s", err.text);
	assert_true(ferry_clock_ns() - start >= 100 * FERRY_NS_PER_MS);
	close(fd);
	close(late.fd);
}

static void waits_for_listener(void **state)
{
	struct ferry_uri uri = parse("unix:%s/late", dir), tcp = parse("tcp:127.0.0.1:0", "");
	bool all;
	int fd;

	(void)state;
	check_late(&uri);
	check_late(&uri); /* with a stale file in the way */
	assert_int_equal(unlink(uri.path), 0);
	fd = ferry_sock_listen(&tcp, &all, NULL); /* a port that is free */
	assert_true(fd >= 0);
	close(fd);
	check_late(&tcp);
}

static void gives_up(void **state)
{
	struct ferry_uri uri = parse("unix:%s/never", dir);
	uint64_t start = ferry_clock_ns();
	struct ferry_error err;
	int stop = 1;

	(void)state;
	assert_int_equal(ferry_sock_connect(&uri, ferry_clock_in_ms(100), NULL, &err), -ETIMEDOUT);
	assert_in_range(ferry_clock_ns() - start, 100 * FERRY_NS_PER_MS, 2 * FERRY_NS_PER_S);
	assert_int_equal(err.errnum, ETIMEDOUT);
	assert_non_null(strstr(err.text, uri.path));
	assert_non_null(strstr(err.text, "No such file"));
	assert_non_null(strstr(err.text, "ferry recv"));
	assert_int_equal(ferry_sock_connect(&uri, ferry_clock_in_ms(SOON_MS), &stop, &err),
			 -ECANCELED);
}

static void *stop_soon(void *arg)
{
	ferry_clock_sleep_ns(50 * FERRY_NS_PER_MS);
	__atomic_store_n((int *)arg, 1, __ATOMIC_RELAXED);
	return NULL;
}

static void is_stopped(void **state)
{
	struct ferry_uri uri = parse("unix:%s/never", dir);
	uint64_t start = ferry_clock_ns();
	struct ferry_error err;
	pthread_t thread;
	int stop = 0;

	(void)state;
	assert_int_equal(pthread_create(&thread, NULL, stop_soon, &stop), 0);
	assert_int_equal(ferry_sock_connect(&uri, FERRY_CLOCK_NEVER, &stop, &err), -ECANCELED);
	pthread_join(thread, NULL);
	assert_true(ferry_clock_ns() - start < 2 * FERRY_NS_PER_S);
}

/* What waiting does not cure is told at once. */
static void hopeless(void **state)
{
	struct ferry_uri uri = parse("tcp:300.300.300.300:1", "");
	uint64_t start = ferry_clock_ns();
	struct ferry_error err;
	int fd;

	(void)state;
	assert_int_equal(ferry_sock_connect(&uri, ferry_clock_in_ms(60000), NULL, &err),
			 -EHOSTUNREACH);
	assert_non_null(strstr(err.text, "300.300.300.300"));
	uri = parse("unix:%s/file/s", dir);
	*strrchr(uri.path, '/') = 0;
	fd = open(uri.path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
	assert_true(fd >= 0);
	close(fd);
	uri = parse("unix:%s/file/s", dir);
	assert_int_equal(ferry_sock_connect(&uri, ferry_clock_in_ms(60000), NULL, &err), -ENOTDIR);
	*strrchr(uri.path, '/') = 0;
	assert_int_equal(unlink(uri.path), 0);
	assert_true(ferry_clock_ns() - start < 30 * FERRY_NS_PER_S);
}

/* All channels of a migration may come before the first accept. */
static void backlog(void **state)
{
	struct ferry_uri uri = parse("unix:%s/b", dir);
	int lfd, fds[65];
	unsigned int i;
	bool all;

	(void)state;
	lfd = ferry_sock_listen(&uri, &all, NULL);
	assert_true(lfd >= 0);
	for (i = 0; i < 65; i++) {
		fds[i] = ferry_sock_connect(&uri, ferry_clock_in_ms(SOON_MS), NULL, NULL);
		assert_true(fds[i] >= 0);
	}
	for (i = 0; i < 65; i++)
		close(fds[i]);
	close(lfd);
	assert_int_equal(unlink(uri.path), 0);
}

static void connected(struct ferry_uri *uri, int *here, int *there)
{
	struct ferry_error err = { 0 };
	bool all;
	int lfd = ferry_sock_listen(uri, &all, &err);

	assert_true(lfd >= 0);
	*here = ferry_sock_connect(uri, ferry_clock_in_ms(SOON_MS), NULL, &err);
	assert_true(*here >= 0);
	*there = ferry_sock_accept(lfd, ferry_clock_in_ms(SOON_MS));
	assert_true(*there >= 0);
	close(lfd);
}

/* Both look like a closed line to whoever reads: only one has got the last word. */
static void delivered(void **state)
{
	struct ferry_uri uris[] = { parse("tcp:127.0.0.1:0", ""), parse("unix:%s/s", dir) };
	uint64_t deadline_ns;
	int here, there;
	unsigned int i;
	char c;

	(void)state;
	for (i = 0; i < 2; i++) {
		connected(&uris[i], &here, &there);
		assert_int_equal(ferry_io_write(here, "x", 1, ferry_clock_in_ms(SOON_MS)), 0);
		assert_int_equal(ferry_io_read(there, &c, 1, ferry_clock_in_ms(SOON_MS)), 0);
		close(there);
		assert_int_equal(ferry_io_read(here, &c, 1, ferry_clock_in_ms(SOON_MS)), -ENODATA);
		assert_true(ferry_sock_delivered(here, ferry_clock_in_ms(SOON_MS)));
		close(here);
	}
	/* It had closed before it was said, and TCP takes it. */
	connected(&uris[0], &here, &there);
	close(there);
	assert_int_equal(ferry_io_write(here, "x", 1, ferry_clock_in_ms(SOON_MS)), 0);
	assert_int_equal(ferry_io_read(here, &c, 1, ferry_clock_in_ms(SOON_MS)), -ENODATA);
	deadline_ns = ferry_clock_in_ms(SOON_MS);
	assert_false(ferry_sock_delivered(here, deadline_ns));
	assert_true(ferry_clock_ns() < deadline_ns); /* a reset is seen as one */
	close(here);
	connected(&uris[1], &here, &there);
	close(there);
	assert_int_equal(ferry_io_write(here, "x", 1, ferry_clock_in_ms(SOON_MS)), -EPIPE);
	close(here);
	/* It died with it unread. */
	for (i = 0; i < 2; i++) {
		connected(&uris[i], &here, &there);
		assert_int_equal(ferry_io_write(here, "x", 1, ferry_clock_in_ms(SOON_MS)), 0);
		close(there);
		assert_int_equal(ferry_io_read(here, &c, 1, ferry_clock_in_ms(SOON_MS)),
				 -ECONNRESET);
		close(here);
	}
	assert_int_equal(unlink(uris[1].path), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(tcp4),
		cmocka_unit_test(tcp6),
		cmocka_unit_test(unix_path),
		cmocka_unit_test(in_use),
		cmocka_unit_test(waits_for_listener),
		cmocka_unit_test(gives_up),
		cmocka_unit_test(is_stopped),
		cmocka_unit_test(hopeless),
		cmocka_unit_test(backlog),
		cmocka_unit_test(delivered),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
