// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Bytes from a hostile "QEMU" into the QMP client. The first byte chooses:
 *   0 a new connection: the bytes are greeting and replies
 *   1 an adopted connection: anything before our first reply
 *   2 an adopted connection after its first own reply (strict)
 * "@" in the input becomes the id of the command, so that replies can match.
 * The peer closes after its bytes, so nothing waits for the timeout.
 */
#include <poll.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/io.h"
#include "guest/json.h"
#include "guest/qmp.h"

#define TIMEOUT_MS 2000u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct peer {
	int fd;
	const uint8_t *data;
	size_t size;
	unsigned int sequence;
	const char *first;
};

static void peer_write(struct peer *p)
{
	uint64_t deadline_ns = ferry_clock_in_ms(TIMEOUT_MS);
	char id[48];
	size_t i, done = 0;

	ferry_io_nonblock(p->fd, 1);
	snprintf(id, sizeof(id), "ferry-%d-%u", (int)getpid(), p->sequence);
	ferry_io_write(p->fd, p->first, strlen(p->first), deadline_ns);
	for (i = 0; i <= p->size; i++) {
		if (i < p->size && p->data[i] != '@')
			continue;
		ferry_io_write(p->fd, p->data + done, i - done, deadline_ns);
		if (i < p->size)
			ferry_io_write(p->fd, id, strlen(id), deadline_ns);
		done = i + 1;
	}
	shutdown(p->fd, SHUT_WR);
}

static void *peer_main(void *arg)
{
	struct peer *p = arg;
	int listener = p->fd;
	char sink[512];

	p->fd = accept(listener, NULL, NULL);
	if (p->fd < 0)
		return NULL;
	peer_write(p);
	/* Stay until the client has gone: it must not see a reset before the bytes. */
	while (ferry_io_wait(p->fd, POLLIN, ferry_clock_in_ms(TIMEOUT_MS)) > 0 &&
	       read(p->fd, sink, sizeof(sink)) > 0)
		;
	close(p->fd);
	return NULL;
}

static void use(struct ferry_qmp *qmp, const char *command)
{
	struct json_object *reply = NULL;
	struct ferry_error err = { 0 };

	if (ferry_qmp_command(qmp, command, NULL, -1, &reply, &err)) {
		if (!err.text[0])
			abort(); /* every failure has words */
		return;
	}
	ferry_json_string(reply, "status");
	ferry_json_uint(reply, "size", 0);
	ferry_json_length(reply);
	json_object_put(reply);
}

static char socket_path[64], socket_dir[48];

static void remove_socket(void)
{
	unlink(socket_path);
	rmdir(socket_dir);
}

static int listener_once(void)
{
	static int fd = -1;
	struct sockaddr_un addr = { .sun_family = AF_UNIX };

	if (fd >= 0)
		return fd;
	strcpy(socket_dir, "/tmp/ferry-fuzz-qmp-XXXXXX");
	if (!mkdtemp(socket_dir))
		abort();
	snprintf(socket_path, sizeof(socket_path), "%s/q", socket_dir);
	memcpy(addr.sun_path, socket_path, sizeof(socket_path));
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (bind(fd, (struct sockaddr *)&addr, sizeof(addr)) || listen(fd, 4))
		abort();
	atexit(remove_socket);
	return fd;
}

static void fuzz_connect(const uint8_t *data, size_t size)
{
	struct peer p = { listener_once(), data, size, 1, "" };
	struct ferry_error err = { 0 };
	struct ferry_qmp *qmp;
	pthread_t thread;

	if (pthread_create(&thread, NULL, peer_main, &p))
		abort();
	if (!ferry_qmp_connect(socket_path, TIMEOUT_MS, &qmp, &err)) {
		use(qmp, "query-status");
		ferry_qmp_close(qmp);
	} else if (!err.text[0]) {
		abort();
	}
	pthread_join(thread, NULL);
}

static void fuzz_adopt(const uint8_t *data, size_t size, int strict)
{
	struct peer p = { -1, data, size, strict ? 2 : 1, "" };
	struct ferry_error err = { 0 };
	struct ferry_qmp *qmp;
	char first[96];
	int pair[2];

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair))
		abort();
	snprintf(first, sizeof(first), "{\"return\":{},\"id\":\"ferry-%d-1\"}\n", (int)getpid());
	if (strict)
		p.first = first;
	p.fd = pair[1];
	peer_write(&p);
	if (ferry_qmp_adopt(pair[0], "q", TIMEOUT_MS, &qmp, &err))
		abort();
	if (strict)
		use(qmp, "stop");
	use(qmp, "query-migrate");
	use(qmp, "cont");
	ferry_qmp_close(qmp);
	close(pair[1]);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	/* More than a socket buffer would only wait: nobody reads while we write. */
	if (!size || size > 65536)
		return 0;
	if (data[0] % 3 == 0)
		fuzz_connect(data + 1, size - 1);
	else
		fuzz_adopt(data + 1, size - 1, data[0] % 3 == 2);
	return 0;
}
