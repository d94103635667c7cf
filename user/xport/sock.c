// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Stream sockets of a migration: listen, accept, connect.
 *
 * A connect is tried again while the other side may only be late: nobody
 * listens yet, its host or network is coming up. What time does not cure (no
 * such name, no permission) ends it at once. Every try walks all addresses of
 * the name; names are looked up anew each time, because they may change too.
 */
#include "xport/sock.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/io.h"
#include "base/log.h"

/* Main channel and up to 64 data channels may all connect before the first accept. */
#define BACKLOG 128

/* Between two tries: short beside everything a person would notice. */
#define RETRY_NS (20 * FERRY_NS_PER_MS)

/* A wait for a connection is cut in slices, so that *stop is seen. */
#define SLICE_NS (50 * FERRY_NS_PER_MS)

/* A silent peer is given up after about 30 s, with bytes under way or idle. */
#define USER_TIMEOUT_MS 30000
#define KEEP_IDLE_S 10
#define KEEP_INTERVAL_S 5
#define KEEP_COUNT 4

/* One place to go: what getaddrinfo() or a path came to. */
struct target {
	struct sockaddr_storage addr;
	socklen_t len;
};

#define MAX_TARGETS 16

static void set_option(int fd, int level, int option, int value)
{
	/* Best effort: each makes a connection better, none makes it correct. */
	(void)setsockopt(fd, level, option, &value, sizeof(value));
}

static void tune(int fd)
{
	int domain = 0;
	socklen_t len = sizeof(domain);

	if (getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &len) || domain == AF_UNIX)
		return;
	set_option(fd, IPPROTO_TCP, TCP_NODELAY, 1);
	set_option(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
	set_option(fd, IPPROTO_TCP, TCP_KEEPIDLE, KEEP_IDLE_S);
	set_option(fd, IPPROTO_TCP, TCP_KEEPINTVL, KEEP_INTERVAL_S);
	set_option(fd, IPPROTO_TCP, TCP_KEEPCNT, KEEP_COUNT);
	set_option(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, USER_TIMEOUT_MS);
}

static int lookup_errno(int gai)
{
	switch (gai) {
	case EAI_SYSTEM:
		return errno;
	case EAI_MEMORY:
		return ENOMEM;
	case EAI_AGAIN:
		return EAGAIN;
	default:
		return EHOSTUNREACH;
	}
}

/* The addresses of @uri. Return: how many (> 0), or a negative errno with a text. */
static int resolve(const struct ferry_uri *uri, int flags, struct target *targets,
		   struct ferry_error *err)
{
	struct addrinfo hints = { .ai_socktype = SOCK_STREAM, .ai_flags = flags | AI_NUMERICSERV };
	struct addrinfo *list, *one;
	int gai, n = 0;

	if (uri->kind == FERRY_URI_UNIX) {
		struct sockaddr_un un = { .sun_family = AF_UNIX };

		memcpy(un.sun_path, uri->path, strnlen(uri->path, sizeof(un.sun_path) - 1));
		memcpy(&targets[0].addr, &un, sizeof(un));
		targets[0].len = sizeof(un);
		return 1;
	}
	gai = getaddrinfo(uri->host, uri->port, &hints, &list);
	if (gai)
		return ferry_error_set(err, lookup_errno(gai),
				       "cannot look up the host '%s': %s; check its spelling and "
				       "the name service of this host", uri->host,
				       gai == EAI_SYSTEM ? strerror(errno) : gai_strerror(gai));
	for (one = list; one && n < MAX_TARGETS; one = one->ai_next) {
		if (one->ai_addrlen > sizeof(targets[n].addr))
			continue;
		memcpy(&targets[n].addr, one->ai_addr, one->ai_addrlen);
		targets[n].len = one->ai_addrlen;
		n++;
	}
	freeaddrinfo(list);
	return n ? n : ferry_error_set(err, EHOSTUNREACH, "the host '%s' has no address",
				       uri->host);
}

static bool is_loopback(const struct sockaddr_storage *addr)
{
	const struct sockaddr_in6 *v6 = (const void *)addr;
	const struct sockaddr_in *v4 = (const void *)addr;

	if (addr->ss_family == AF_INET)
		return ntohl(v4->sin_addr.s_addr) >> 24 == 127;
	if (IN6_IS_ADDR_V4MAPPED(&v6->sin6_addr))
		return v6->sin6_addr.s6_addr[12] == 127;
	return IN6_IS_ADDR_LOOPBACK(&v6->sin6_addr);
}

/* Is there a socket file at the address that nobody listens on any more? */
static bool is_stale(const struct target *t)
{
	const struct sockaddr_un *un = (const void *)&t->addr;
	struct stat st;
	bool stale;
	int fd;

	if (t->addr.ss_family != AF_UNIX || lstat(un->sun_path, &st) || !S_ISSOCK(st.st_mode))
		return false;
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return false;
	stale = connect(fd, (const void *)&t->addr, t->len) && errno == ECONNREFUSED;
	close(fd);
	return stale;
}

static int bind_to(int fd, const struct target *t)
{
	const struct sockaddr_un *un = (const void *)&t->addr;

	if (t->addr.ss_family == AF_UNIX)
		(void)fchmod(fd, 0600); /* before bind: the file never is more open than this */
	else
		set_option(fd, SOL_SOCKET, SO_REUSEADDR, 1);
	if (!bind(fd, (const void *)&t->addr, t->len))
		return 0;
	if (errno != EADDRINUSE || !is_stale(t))
		return -errno;
	if (unlink(un->sun_path) || bind(fd, (const void *)&t->addr, t->len))
		return -errno;
	return 0;
}

/* Return: a listening descriptor or a negative errno. */
static int listen_at(const struct target *t)
{
	int fd = socket(t->addr.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	int r;

	if (fd < 0)
		return -errno;
	r = bind_to(fd, t);
	if (!r && listen(fd, BACKLOG))
		r = -errno;
	if (r) {
		close(fd);
		return r;
	}
	return fd;
}

static void learn_port(int fd, struct ferry_uri *uri)
{
	struct sockaddr_storage addr;
	socklen_t len = sizeof(addr);

	if (getsockname(fd, (void *)&addr, &len))
		return;
	getnameinfo((void *)&addr, len, NULL, 0, uri->port, sizeof(uri->port), NI_NUMERICSERV);
}

int ferry_sock_listen(struct ferry_uri *uri, bool *open_to_all, struct ferry_error *err)
{
	struct target targets[MAX_TARGETS];
	char text[FERRY_URI_MAX];
	int i, n, fd = -EADDRNOTAVAIL;

	*open_to_all = false;
	n = resolve(uri, AI_PASSIVE, targets, err);
	if (n < 0)
		return n;
	for (i = 0; i < n; i++) {
		fd = listen_at(&targets[i]);
		if (fd >= 0)
			break;
	}
	if (fd < 0) {
		ferry_uri_format(uri, text);
		return ferry_error_set(err, -fd, "cannot listen at %s: %s%s", text, strerror(-fd),
				       fd == -EADDRINUSE ? "; something else uses it, "
							   "choose another one" : "");
	}
	if (uri->kind == FERRY_URI_TCP) {
		learn_port(fd, uri);
		*open_to_all = !is_loopback(&targets[i].addr);
	}
	return fd;
}

/* Failures of one connection that was about to come in, see accept(2). */
static bool is_passing(int errnum)
{
	switch (errnum) {
	case EAGAIN:
	case EINTR:
	case ECONNABORTED:
	case EPROTO:
	case ENETDOWN:
	case ENOPROTOOPT:
	case EHOSTDOWN:
	case ENONET:
	case EHOSTUNREACH:
	case ENETUNREACH:
		return true;
	default:
		return false;
	}
}

int ferry_sock_accept(int listen_fd, uint64_t deadline_ns)
{
	for (;;) {
		int r = ferry_io_wait(listen_fd, POLLIN, deadline_ns);
		int fd;

		if (r < 0)
			return r;
		fd = accept4(listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
		if (fd >= 0) {
			tune(fd);
			return fd;
		}
		if (!is_passing(errno))
			return -errno;
	}
}

/* May the same connect succeed later? */
static bool is_worth_retrying(int r)
{
	switch (-r) {
	case ECONNREFUSED:
	case ENOENT: /* the socket file is not there yet */
	case EAGAIN: /* unix: its backlog is full; name service: busy */
	case ECONNRESET:
	case ETIMEDOUT:
	case EHOSTUNREACH:
	case EHOSTDOWN:
	case ENETUNREACH:
	case ENETDOWN:
	case EADDRNOTAVAIL: /* out of local ports */
		return true;
	default:
		return false;
	}
}

static bool is_stopped(const int *stop)
{
	return stop && __atomic_load_n(stop, __ATOMIC_RELAXED);
}

/* Wait for a connect under way. Return: 0, -ECANCELED, -ETIMEDOUT or its errno. */
static int finish_connect(int fd, uint64_t deadline_ns, const int *stop)
{
	socklen_t len = sizeof(int);
	int r, failed = 0;

	do {
		uint64_t slice = ferry_clock_ns() + SLICE_NS;

		if (is_stopped(stop))
			return -ECANCELED;
		r = ferry_io_wait(fd, POLLOUT, slice < deadline_ns ? slice : deadline_ns);
	} while (r == -ETIMEDOUT && ferry_clock_ns() < deadline_ns);
	if (r < 0)
		return r;
	if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &failed, &len))
		return -errno;
	return -failed;
}

/* Return: a connection or a negative errno. */
static int connect_to(const struct target *t, uint64_t deadline_ns, const int *stop)
{
	int fd = socket(t->addr.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	int r = 0;

	if (fd < 0)
		return -errno;
	if (connect(fd, (const void *)&t->addr, t->len))
		r = errno == EINPROGRESS ? finish_connect(fd, deadline_ns, stop) : -errno;
	if (r) {
		close(fd);
		return r;
	}
	tune(fd);
	return fd;
}

/*
 * One walk over all addresses. Return: a connection, or the most hopeful
 * failure; @lasting is set when waiting does not cure it.
 */
static int connect_once(const struct ferry_uri *uri, uint64_t deadline_ns, const int *stop,
			bool *lasting, struct ferry_error *err)
{
	struct target targets[MAX_TARGETS];
	char text[FERRY_URI_MAX];
	int i, n, best = 0;

	n = resolve(uri, 0, targets, err);
	if (n < 0) {
		*lasting = n != -EAGAIN;
		return n;
	}
	for (i = 0; i < n; i++) {
		int fd = connect_to(&targets[i], deadline_ns, stop);

		if (fd >= 0 || fd == -ECANCELED)
			return fd;
		if (!best || is_worth_retrying(fd))
			best = fd;
	}
	*lasting = !is_worth_retrying(best);
	ferry_uri_format(uri, text);
	return ferry_error_set(err, -best, "cannot connect to %s: %s%s", text, strerror(-best),
			       *lasting ? "" : "; is 'ferry recv' running there, and is the way "
					       "to it open?");
}

int ferry_sock_connect(const struct ferry_uri *uri, uint64_t deadline_ns, const int *stop,
		       struct ferry_error *err)
{
	struct ferry_error last = { 0 };

	for (;;) {
		bool lasting = false;
		uint64_t now;
		int fd = -ECANCELED;

		if (!is_stopped(stop))
			fd = connect_once(uri, deadline_ns, stop, &lasting, &last);
		if (fd >= 0)
			return fd;
		if (fd == -ECANCELED)
			return ferry_error_set(err, ECANCELED, "cancelled while connecting");
		if (lasting)
			return ferry_error_set(err, -fd, "%s", last.text);
		now = ferry_clock_ns();
		if (now >= deadline_ns)
			return ferry_error_set(err, ETIMEDOUT, "%s", last.text);
		ferry_clock_sleep_ns(deadline_ns - now < RETRY_NS ? deadline_ns - now : RETRY_NS);
	}
}

/*
 * Enough for a full line of 10 Gb/s up to a round trip of 0.4 ms, and passed on in under 1 ms by
 * who takes pages in.
 */
#define SOCK_SHORT_BYTES (512 << 10)

void ferry_sock_shorten(int fd)
{
	const int bytes = SOCK_SHORT_BYTES;

	if (setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(bytes)) ||
	    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &bytes, sizeof(bytes)))
		ferry_log_debug("socket buffers: %s", strerror(errno));
}

bool ferry_sock_delivered(int fd, uint64_t deadline_ns)
{
	struct tcp_info info;
	socklen_t bytes = sizeof(info);
	int unsent;

	do {
		if (ioctl(fd, TIOCOUTQ, &unsent))
			return false;
		/* Not TCP: a local socket's peer that did not read it all closes with an error. */
		if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &bytes))
			return true;
		/* Reset: it stays in the queue for ever. */
		if (info.tcpi_state == TCP_CLOSE)
			return false;
		if (!unsent)
			return true;
		ferry_clock_sleep_ns(FERRY_NS_PER_MS);
	} while (ferry_clock_ns() < deadline_ns);
	return false;
}
