// SPDX-License-Identifier: GPL-2.0-or-later
/* libferry before anybody talks to it: what it refuses of a VMM, and how it is reached. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#include "port_agent.h"
#include "port_vmm.h"

static int no_sync(void *ctx, const char *name, uint64_t *bitmap, uint64_t pages)
{
	(void)ctx;
	(void)name;
	(void)bitmap;
	(void)pages;
	return 0;
}

static int no_direct_io(void *ctx, char *why, size_t why_bytes)
{
	(void)ctx;
	(void)why;
	(void)why_bytes;
	return 0;
}

static int create(const struct ferry_port_ops *ops, unsigned int flags)
{
	struct ferry_port *port = NULL;
	int r = ferry_port_create(ops, NULL, flags, &port);

	assert_true(!r == !!port);
	ferry_port_destroy(port);
	return r;
}

static void create_checks_ops(void **state)
{
	struct {
		struct ferry_port_ops ops;
		void *later;
	} big = { .ops = port_idle_ops };
	struct ferry_port_ops ops;
	char kind[80];

	(void)state;
	assert_int_equal(create(&port_idle_ops, 0), 0);
	assert_int_equal(create(&port_idle_ops, FERRY_PORT_INCOMING), 0);
	assert_int_equal(create(&port_idle_ops, 1u << 4), -EINVAL);
	assert_int_equal(create(NULL, 0), 0);
	assert_int_equal(create(NULL, FERRY_PORT_INCOMING), -EINVAL);
#define BAD(field, value) do { ops = port_idle_ops; ops.field = value; \
		assert_int_equal(create(&ops, 0), -EINVAL); } while (0)
	BAD(pause, NULL);
	BAD(resume, NULL);
	BAD(save, NULL);
	BAD(load, NULL);
	BAD(run, NULL);
	BAD(kind, NULL);
	BAD(kind, "");
	BAD(kind, "a\tb");
	BAD(dirty_start, port_idle_ops.pause);
	BAD(dirty_stop, port_idle_ops.quit);
	BAD(dirty_sync, no_sync);
	BAD(struct_size, offsetof(struct ferry_port_ops, adopt) - 1);
#undef BAD
	/* Without what the library does by itself, and with what was said already. */
	ops = port_idle_ops;
	ops.running = NULL;
	ops.quit = NULL;
	assert_int_equal(create(&ops, FERRY_PORT_NO_DIRECT_IO), 0);
	ops.direct_io = no_direct_io;
	assert_int_equal(create(&ops, 0), 0);
	assert_int_equal(create(&ops, FERRY_PORT_NO_DIRECT_IO), -EINVAL);
	/* Of a program compiled against the first version. */
	ops = port_idle_ops;
	ops.struct_size = offsetof(struct ferry_port_ops, adopt);
	assert_int_equal(create(&ops, 0), 0);
	memset(kind, 'k', sizeof(kind));
	kind[63] = 0;
	ops = port_idle_ops;
	ops.kind = kind;
	assert_int_equal(create(&ops, 0), 0);
	kind[63] = 'k';
	kind[64] = 0;
	assert_int_equal(create(&ops, 0), -EINVAL);
	/* A promise about a log that is not there. */
	assert_int_equal(create(&port_idle_ops, FERRY_PORT_LOG_PROCESS), -EINVAL);
	/* Of a later version: fine as long as nothing new is used. */
	big.ops.struct_size = sizeof(big);
	assert_int_equal(create(&big.ops, 0), 0);
	big.later = &big;
	assert_int_equal(create(&big.ops, 0), -E2BIG);
	assert_string_equal(ferry_version(), "1.0");
}

static void add_ram_checks_blocks(void **state)
{
	int fd = memory_file(8192, 0), disk, pipes[2];
	struct ferry_port_ram good = { .struct_size = sizeof(good), .name = "a", .fd = fd,
				       .bytes = 8192, .addr = (void *)0x10000 }, ram;
	struct ferry_port *port;
	char path[] = "/tmp/ferry-port-disk-XXXXXX", name[200];

	(void)state;
	assert_int_equal(ferry_port_create(&port_idle_ops, NULL, 0, &port), 0);
	assert_int_equal(ferry_port_listen(port, "/tmp/ferry-port-none"), -EINVAL);
	assert_int_equal(ferry_port_start(port), -EINVAL);
	assert_int_equal(ferry_port_stop(port), -EINVAL);
#define BAD(field, value) do { ram = good; ram.field = value; \
		assert_int_equal(ferry_port_add_ram(port, &ram), -EINVAL); } while (0)
	BAD(struct_size, 8);
	BAD(name, NULL);
	BAD(name, "");
	BAD(name, "\xff");
	BAD(bytes, 0);
	BAD(bytes, 4096 + 1);
	BAD(bytes, 12288); /* more than the file has */
	BAD(fd_offset, 4096);
	BAD(fd_offset, 1);
	BAD(addr, NULL);
	BAD(addr, (void *)0x10001);
	BAD(page_bytes, 4095);
	BAD(page_bytes, 2048);
	BAD(flags, 1);
	BAD(fd, -1);
	assert_int_equal(pipe(pipes), 0);
	BAD(fd, pipes[0]);
	close(pipes[0]);
	close(pipes[1]);
	memset(name, 'n', sizeof(name));
	name[128] = 0;
	BAD(name, name);
	disk = open("/", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	if (disk < 0)
		disk = mkstemp(path);
	if (disk >= 0 && fcntl(disk, F_GET_SEALS) < 0)
		BAD(fd, disk);
	close(disk);
	unlink(path);
#undef BAD
	assert_int_equal(ferry_port_add_ram(port, &good), 0);
	assert_int_equal(ferry_port_add_ram(port, &good), -EEXIST);
	name[127] = 0;
	good.name = name;
	assert_int_equal(ferry_port_add_ram(port, &good), 0);
	close(fd);
	ferry_port_destroy(port);
}

static void the_socket_comes_and_goes(void **state)
{
	struct port_vmm *v = port_vmm_create(0), *w;
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	struct stat st;
	int fd;

	(void)state;
	assert_int_equal(stat(v->path, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0600);
	assert_int_equal(ferry_port_listen(v->port, "/tmp/x"), -EALREADY);
	w = port_vmm_create(0);
	ferry_port_destroy(w->port);
	assert_int_equal(stat(w->path, &st), -1);
	assert_int_equal(ferry_port_create(&port_idle_ops, NULL, 0, &w->port), 0);
	struct ferry_port_ram ram = { .struct_size = sizeof(ram), .name = "a", .fd = w->fd,
				      .bytes = 4096, .addr = w->ram };
	assert_int_equal(ferry_port_add_ram(w->port, &ram), 0);
	/* Somebody is there. */
	assert_int_equal(ferry_port_listen(w->port, v->path), -EADDRINUSE);
	/* No socket at all. */
	fd = open(w->path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
	close(fd);
	assert_int_equal(ferry_port_listen(w->port, w->path), -EADDRINUSE);
	unlink(w->path);
	assert_int_equal(ferry_port_listen(w->port, "/nonexistent/x"), -ENOENT);
	assert_int_equal(ferry_port_listen(w->port, ""), -ENAMETOOLONG);
	/* One left by a process that died is replaced. */
	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	strcpy(addr.sun_path, w->path);
	assert_int_equal(bind(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
	close(fd);
	assert_int_equal(ferry_port_listen(w->port, w->path), 0);
	/* Another's at that path is not removed. */
	unlink(w->path);
	fd = open(w->path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
	close(fd);
	port_vmm_destroy(v);
	strcpy(addr.sun_path, w->path);
	port_vmm_destroy(w);
	assert_int_equal(unlink(addr.sun_path), 0);
}

static void a_socket_made_before(void **state)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	struct port_vmm *v = port_vmm_create(0);
	struct ferry_port_ram ram = { .struct_size = sizeof(ram), .name = "a", .fd = v->fd,
				      .bytes = 4096, .addr = v->ram };
	struct ferry_port *port;
	int fd, sock;

	(void)state;
	assert_int_equal(ferry_port_create(&port_idle_ops, NULL, 0, &port), 0);
	assert_int_equal(ferry_port_add_ram(port, &ram), 0);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_int_equal(ferry_port_listen_fd(port, fd), -EPROTOTYPE);
	close(fd);
	assert_int_equal(ferry_port_listen_fd(port, v->fd), -ENOTSOCK);
	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	snprintf(addr.sun_path, sizeof(addr.sun_path), "%s.fd", v->path);
	assert_int_equal(bind(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
	assert_int_equal(ferry_port_listen_fd(port, fd), 0);
	assert_int_equal(ferry_port_start(port), 0);
	assert_int_equal(ferry_port_start(port), -EALREADY);
	assert_int_equal(ferry_port_process(port), -EBUSY);
	sock = ferry_channel_connect(addr.sun_path);
	assert_int_equal(agent_hello(sock, FERRY_PROTO_ROLE_AGENT), 0);
	close(sock);
	assert_int_equal(ferry_port_stop(port), 0);
	ferry_port_destroy(port);
	assert_int_equal(unlink(addr.sun_path), 0);
	port_vmm_destroy(v);
}

static void served_from_an_event_loop(void **state)
{
	struct port_vmm *v = port_vmm_create(0);
	struct pollfd p = { .fd = ferry_port_fd(v->port), .events = POLLIN };
	struct ferry_proto_hello h = { .version = 1, .min_version = 1,
				       .role = FERRY_PROTO_ROLE_AGENT };
	struct ferry_channel_message m = { .head = { .type = FERRY_PROTO_HELLO }, .fd = -1 };
	int sock;

	(void)state;
	assert_int_equal(poll(&p, 1, 0), 0);
	assert_int_equal(ferry_port_process(v->port), 0);
	sock = ferry_channel_connect(v->path);
	m.head.length = (uint32_t)ferry_proto_hello_encode(&h, m.body);
	assert_int_equal(ferry_channel_send(sock, &m), 0);
	assert_int_equal(ferry_port_attached(v->port), 0);
	assert_int_equal(poll(&p, 1, AGENT_TIMEOUT_MS), 1);
	assert_int_equal(ferry_port_process(v->port), 0);
	assert_int_equal(ferry_port_attached(v->port), 1);
	assert_int_equal(ferry_channel_receive(sock, &m), 0);
	assert_int_equal(m.head.status, 0);
	assert_int_equal(poll(&p, 1, 0), 0);
	close(sock);
	assert_int_equal(poll(&p, 1, AGENT_TIMEOUT_MS), 1);
	assert_int_equal(ferry_port_process(v->port), 0);
	assert_int_equal(ferry_port_attached(v->port), 0);
	port_vmm_destroy(v);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(create_checks_ops),
		cmocka_unit_test(add_ram_checks_blocks),
		cmocka_unit_test(the_socket_comes_and_goes),
		cmocka_unit_test(a_socket_made_before),
		cmocka_unit_test(served_from_an_event_loop),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
