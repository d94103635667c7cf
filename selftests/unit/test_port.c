// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * libferry by its own socket: what a well-behaved agent gets, what a confused or hostile one
 * gets, and that all is taken back when it goes.
 */
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
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#include "port/channel.h"
#include "port_vmm.h"

#define TIMEOUT_MS 20000
#define SEALS (F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW)

static struct port_vmm *start(unsigned int flags)
{
	struct port_vmm *v = port_vmm_create(flags);

	assert_int_equal(ferry_port_start(v->port), 0);
	return v;
}

static struct ferry_channel_message reply;

/* One request; the reply is in reply. Return: its status. */
static int ask(int sock, unsigned int type, const void *body, size_t len, int fd)
{
	static uint32_t sequence;

	reply.head = (struct ferry_proto_head){ .type = (uint16_t)type, .length = (uint32_t)len,
						.sequence = ++sequence };
	if (len)
		memcpy(reply.body, body, len);
	reply.fd = fd;
	assert_int_equal(ferry_channel_call(sock, &reply, TIMEOUT_MS), 0);
	if (reply.head.status)
		reply.body[reply.head.length] = 0;
	return reply.head.status;
}

static int ask_u32(int sock, unsigned int type, uint32_t v)
{
	uint8_t body[4];

	ferry_proto_u32_encode(v, body);
	return ask(sock, type, body, sizeof(body), -1);
}

static void says(const char *words)
{
	if (!strstr((const char *)reply.body, words))
		fail_msg("\"%s\" is not in \"%s\"", words, (const char *)reply.body);
}

static int hello(int sock, uint32_t role)
{
	struct ferry_proto_hello h = { .version = 1, .min_version = 1, .role = role };
	uint8_t body[FERRY_PROTO_MAX_BODY];

	return ask(sock, FERRY_PROTO_HELLO, body, ferry_proto_hello_encode(&h, body), -1);
}

static int attach(const struct port_vmm *v)
{
	int sock = ferry_channel_connect(v->path);

	assert_true(sock >= 0);
	assert_int_equal(hello(sock, FERRY_PROTO_ROLE_AGENT), 0);
	return sock;
}

static uint32_t port_state(int sock)
{
	uint32_t state = 0;

	assert_int_equal(ask(sock, FERRY_PROTO_STATE, NULL, 0, -1), 0);
	ferry_proto_u32_decode(&state, reply.body, reply.head.length);
	return state;
}

static int memory_file(size_t bytes, int seals)
{
	int fd = memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, (off_t)bytes), 0);
	if (seals)
		assert_int_equal(fcntl(fd, F_ADD_SEALS, seals), 0);
	return fd;
}

/* The other side must close, within the deadline. */
static void is_closed(int sock)
{
	struct pollfd p = { .fd = sock, .events = POLLIN };
	char byte;

	assert_int_equal(poll(&p, 1, TIMEOUT_MS), 1);
	assert_int_equal(recv(sock, &byte, 1, 0), 0);
	close(sock);
}

/* What was read or written here happened before what the VMM does about the end. */
static void hang_up(int sock)
{
	port_state(sock);
	close(sock);
}

/* ---- creating ---- */

static int no_int(void *ctx)
{
	(void)ctx;
	return 0;
}

static int no_state(void *ctx, int fd)
{
	(void)ctx;
	(void)fd;
	return 0;
}

static void no_void(void *ctx)
{
	(void)ctx;
}

static int no_sync(void *ctx, const char *name, uint64_t *bitmap, uint64_t pages)
{
	(void)ctx;
	(void)name;
	(void)bitmap;
	(void)pages;
	return 0;
}

static const struct ferry_port_ops good_ops = {
	.struct_size = sizeof(good_ops), .kind = "x/1", .pause = no_int, .resume = no_int,
	.running = no_int, .save = no_state, .load = no_state, .run = no_int, .quit = no_void,
};

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
	} big = { .ops = good_ops };
	struct ferry_port_ops ops;
	char kind[80];

	(void)state;
	assert_int_equal(create(&good_ops, 0), 0);
	assert_int_equal(create(&good_ops, FERRY_PORT_INCOMING), 0);
	assert_int_equal(create(&good_ops, 1u << 3), -EINVAL);
	assert_int_equal(create(NULL, 0), 0);
	assert_int_equal(create(NULL, FERRY_PORT_INCOMING), -EINVAL);
#define BAD(field, value) do { ops = good_ops; ops.field = value; \
		assert_int_equal(create(&ops, 0), -EINVAL); } while (0)
	BAD(pause, NULL);
	BAD(resume, NULL);
	BAD(running, NULL);
	BAD(save, NULL);
	BAD(load, NULL);
	BAD(run, NULL);
	BAD(quit, NULL);
	BAD(kind, NULL);
	BAD(kind, "");
	BAD(kind, "a\tb");
	BAD(dirty_start, no_int);
	BAD(dirty_stop, no_void);
	BAD(dirty_sync, no_sync);
	BAD(struct_size, offsetof(struct ferry_port_ops, adopt) - 1);
#undef BAD
	/* Of a program compiled against the first version. */
	ops = good_ops;
	ops.struct_size = offsetof(struct ferry_port_ops, adopt);
	assert_int_equal(create(&ops, 0), 0);
	memset(kind, 'k', sizeof(kind));
	kind[63] = 0;
	ops = good_ops;
	ops.kind = kind;
	assert_int_equal(create(&ops, 0), 0);
	kind[63] = 'k';
	kind[64] = 0;
	assert_int_equal(create(&ops, 0), -EINVAL);
	/* A promise about a log that is not there. */
	assert_int_equal(create(&good_ops, FERRY_PORT_LOG_PROCESS), -EINVAL);
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
	assert_int_equal(ferry_port_create(&good_ops, NULL, 0, &port), 0);
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

/* ---- reaching it ---- */

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
	assert_int_equal(ferry_port_create(&good_ops, NULL, 0, &w->port), 0);
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
	assert_int_equal(ferry_port_create(&good_ops, NULL, 0, &port), 0);
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
	assert_int_equal(hello(sock, FERRY_PROTO_ROLE_AGENT), 0);
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
	assert_int_equal(poll(&p, 1, TIMEOUT_MS), 1);
	assert_int_equal(ferry_port_process(v->port), 0);
	assert_int_equal(ferry_port_attached(v->port), 1);
	assert_int_equal(ferry_channel_receive(sock, &m), 0);
	assert_int_equal(m.head.status, 0);
	assert_int_equal(poll(&p, 1, 0), 0);
	close(sock);
	assert_int_equal(poll(&p, 1, TIMEOUT_MS), 1);
	assert_int_equal(ferry_port_process(v->port), 0);
	assert_int_equal(ferry_port_attached(v->port), 0);
	port_vmm_destroy(v);
}

/* ---- a conversation ---- */

static void describes_itself(void **state)
{
	struct port_vmm *v = start(PORT_VMM_LOG | FERRY_PORT_LOG_PROCESS);
	struct ferry_proto_welcome w;
	struct ferry_proto_ram ram;
	struct stat a, b;
	int sock = attach(v);

	(void)state;
	assert_int_equal(ferry_proto_welcome_decode(&w, reply.body, reply.head.length), 0);
	assert_string_equal(w.kind, "test/1");
	assert_int_equal(w.blocks, 2);
	assert_int_equal(w.members, 0);
	assert_int_equal(w.has, FERRY_PROTO_HAS_LOG | FERRY_PROTO_HAS_LOG_PROCESS |
				FERRY_PROTO_HAS_THROTTLE | FERRY_PROTO_HAS_QUIESCE);
	assert_int_equal(ask_u32(sock, FERRY_PROTO_RAM, 1), 0);
	assert_int_equal(ferry_proto_ram_decode(&ram, reply.body, reply.head.length), 0);
	assert_string_equal(ram.name, "high");
	assert_int_equal(ram.bytes, PORT_VMM_BYTES / 2);
	assert_int_equal(ram.fd_offset, PORT_VMM_BYTES / 2);
	assert_true(ram.addr == (uintptr_t)v->ram + PORT_VMM_BYTES / 2);
	assert_int_equal(fstat(reply.fd, &a), 0);
	assert_int_equal(fstat(v->fd, &b), 0);
	assert_int_equal(a.st_ino, b.st_ino);
	close(reply.fd);
	assert_int_equal(ask_u32(sock, FERRY_PROTO_RAM, 2), -ENOENT);
	assert_int_equal(port_state(sock), FERRY_PROTO_STATE_RUNNING);
	close(sock);
	port_vmm_destroy(v);
}

static void a_source_is_saved_and_resumed(void **state)
{
	struct port_vmm *v = start(0);
	int sock = attach(v), fd = memory_file(0, 0), sealed = memory_file(0, SEALS), pipes[2];
	uint8_t limit[8];
	uint64_t got = 0;

	(void)state;
	ferry_proto_u64_encode(100, limit);
	assert_int_equal(ask(sock, FERRY_PROTO_CHECK, NULL, 0, -1), 0);
	assert_int_equal(ask(sock, FERRY_PROTO_SAVE, limit, 8, fd), -EBUSY);
	says("the guest runs");
	assert_int_equal(ask_u32(sock, FERRY_PROTO_QUIESCE, 1), -EBUSY);
	assert_int_equal(ask(sock, FERRY_PROTO_PAUSE, NULL, 0, -1), 0);
	assert_int_equal(port_state(sock), 0);
	assert_int_equal(ask(sock, FERRY_PROTO_SAVE, limit, 8, fd), 0);
	assert_int_equal(ferry_proto_u64_decode(&got, reply.body, reply.head.length), 0);
	assert_int_equal(got, 8);
	assert_int_equal(pread(fd, &got, 8, 0), 8);
	assert_int_equal(got, 0x1234567);
	v->state_extra = 93;
	assert_int_equal(ask(sock, FERRY_PROTO_SAVE, limit, 8, fd), -EFBIG);
	v->state_extra = 0;
	/* Nothing that could block the VMM. */
	assert_int_equal(pipe(pipes), 0);
	assert_int_equal(ask(sock, FERRY_PROTO_SAVE, limit, 8, pipes[1]), -EINVAL);
	/* No destination. */
	assert_int_equal(ask(sock, FERRY_PROTO_LOAD, NULL, 0, sealed), -EINVAL);
	assert_int_equal(ask(sock, FERRY_PROTO_RUN, NULL, 0, -1), -EINVAL);
	/* Devices come back before the guest does. */
	assert_int_equal(ask_u32(sock, FERRY_PROTO_QUIESCE, 1), 0);
	assert_int_equal(ask_u32(sock, FERRY_PROTO_QUIESCE, 1), 0);
	assert_int_equal(port_state(sock), FERRY_PROTO_STATE_QUIESCED);
	assert_int_equal(ask_u32(sock, FERRY_PROTO_QUIESCE, 2), -EINVAL);
	v->calls[0] = 0;
	assert_int_equal(ask(sock, FERRY_PROTO_RESUME, NULL, 0, -1), 0);
	assert_string_equal(v->calls, "unquiesce resume ");
	assert_int_equal(port_state(sock), FERRY_PROTO_STATE_RUNNING);
	assert_int_equal(ask_u32(sock, FERRY_PROTO_THROTTLE, 100), -EINVAL);
	assert_int_equal(ask_u32(sock, FERRY_PROTO_THROTTLE, 99), 0);
	assert_int_equal(v->percent, 99);
	close(pipes[0]);
	close(pipes[1]);
	close(fd);
	close(sealed);
	hang_up(sock);
	port_vmm_destroy(v);
}

static void a_destination_is_loaded_and_run(void **state)
{
	struct port_vmm *v = start(FERRY_PORT_INCOMING);
	int sock = attach(v), loose = memory_file(8, 0), fd = memory_file(8, 0);
	uint64_t device = 99;
	uint8_t limit[8] = { 100 };

	(void)state;
	assert_int_equal(pwrite(fd, &device, 8, 0), 8);
	assert_int_equal(fcntl(fd, F_ADD_SEALS, SEALS), 0);
	assert_int_equal(port_state(sock), FERRY_PROTO_STATE_INCOMING);
	assert_int_equal(ask(sock, FERRY_PROTO_PAUSE, NULL, 0, -1), -EINVAL);
	assert_int_equal(ask(sock, FERRY_PROTO_RESUME, NULL, 0, -1), -EINVAL);
	assert_int_equal(ask(sock, FERRY_PROTO_SAVE, limit, 8, loose), -EINVAL);
	assert_int_equal(ask(sock, FERRY_PROTO_RUN, NULL, 0, -1), -EINVAL);
	/* It could change while it is read. */
	assert_int_equal(ask(sock, FERRY_PROTO_LOAD, NULL, 0, loose), -EINVAL);
	assert_int_equal(port_state(sock), FERRY_PROTO_STATE_INCOMING);
	assert_int_equal(ask(sock, FERRY_PROTO_LOAD, NULL, 0, fd), 0);
	assert_int_equal(v->state, 99);
	assert_int_equal(port_state(sock), FERRY_PROTO_STATE_LOADED);
	assert_int_equal(ask(sock, FERRY_PROTO_LOAD, NULL, 0, fd), -EINVAL);
	assert_int_equal(ask(sock, FERRY_PROTO_RESUME, NULL, 0, -1), -EINVAL);
	/* A start that failed may be tried again. */
	strcpy(v->fail, "run");
	assert_int_equal(ask(sock, FERRY_PROTO_RUN, NULL, 0, -1), -EIO);
	says("run was told to fail");
	v->fail[0] = 0;
	assert_int_equal(port_state(sock), FERRY_PROTO_STATE_LOADED);
	assert_int_equal(ask(sock, FERRY_PROTO_RUN, NULL, 0, -1), 0);
	assert_int_equal(port_state(sock), FERRY_PROTO_STATE_RUNNING);
	/* Once is enough, and from now on it is a guest like any other. */
	v->calls[0] = 0;
	assert_int_equal(ask(sock, FERRY_PROTO_PAUSE, NULL, 0, -1), 0);
	assert_int_equal(ask(sock, FERRY_PROTO_RUN, NULL, 0, -1), 0);
	assert_string_equal(v->calls, "pause ");
	assert_int_equal(ask(sock, FERRY_PROTO_RESUME, NULL, 0, -1), 0);
	close(loose);
	close(fd);
	close(sock);
	port_vmm_destroy(v);
}

static void a_failed_load_leaves_only_quit(void **state)
{
	struct port_vmm *v = start(FERRY_PORT_INCOMING);
	int sock = attach(v), fd = memory_file(7, SEALS);

	(void)state;
	assert_int_equal(ask(sock, FERRY_PROTO_LOAD, NULL, 0, fd), -EPROTO);
	assert_int_equal(port_state(sock), FERRY_PROTO_STATE_BROKEN);
	assert_int_equal(ask(sock, FERRY_PROTO_LOAD, NULL, 0, fd), -EINVAL);
	assert_int_equal(ask(sock, FERRY_PROTO_RUN, NULL, 0, -1), -EINVAL);
	assert_int_equal(ask(sock, FERRY_PROTO_RESUME, NULL, 0, -1), -EINVAL);
	v->calls[0] = 0;
	assert_int_equal(ask(sock, FERRY_PROTO_QUIT, NULL, 0, -1), 0);
	port_state(sock);
	assert_string_equal(v->calls, "quit ");
	close(fd);
	close(sock);
	port_vmm_destroy(v);
}

static void failures_are_told(void **state)
{
	static const struct {
		unsigned int type;
		const char *name;
	} calls[] = {
		{ FERRY_PROTO_CHECK, "check" }, { FERRY_PROTO_PAUSE, "pause" },
		{ FERRY_PROTO_RESUME, "resume" }, { FERRY_PROTO_LOG_SYNC, "sync" },
	};
	struct port_vmm *v = start(PORT_VMM_LOG);
	int sock = attach(v), log = memory_file(32, F_SEAL_SHRINK | F_SEAL_GROW);
	size_t i;

	(void)state;
	strcpy(v->fail, "log");
	assert_int_equal(ask(sock, FERRY_PROTO_LOG_START, NULL, 0, log), -EIO);
	v->fail[0] = 0;
	assert_int_equal(ask(sock, FERRY_PROTO_LOG_SYNC, NULL, 0, -1), -EINVAL);
	assert_int_equal(ask(sock, FERRY_PROTO_LOG_START, NULL, 0, log), 0);
	for (i = 0; i < sizeof(calls) / sizeof(calls[0]); i++) {
		strcpy(v->fail, calls[i].name);
		assert_int_equal(ask(sock, calls[i].type, NULL, 0, -1), -EIO);
		says(calls[i].name);
		says("was told to fail");
	}
	/* Without a text the errno speaks. */
	strcpy(v->fail, "running");
	assert_int_equal(ask(sock, FERRY_PROTO_STATE, NULL, 0, -1), -EIO);
	says("Input/output error");
	close(log);
	close(sock);
	port_vmm_destroy(v);
}

static void what_is_not_offered_is_refused(void **state)
{
	struct port_vmm *v = start(PORT_VMM_BARE);
	int sock = attach(v), log = memory_file(32, F_SEAL_SHRINK | F_SEAL_GROW);
	uint32_t direct = 0;

	(void)state;
	assert_int_equal(ask(sock, FERRY_PROTO_LOG_START, NULL, 0, log), -EOPNOTSUPP);
	assert_int_equal(ask_u32(sock, FERRY_PROTO_THROTTLE, 1), -EOPNOTSUPP);
	assert_int_equal(ask_u32(sock, FERRY_PROTO_QUIESCE, 1), -EOPNOTSUPP);
	assert_int_equal(ask(sock, FERRY_PROTO_CHECK, NULL, 0, -1), 0);
	/* Who does not say is taken to have some. */
	assert_int_equal(ask(sock, FERRY_PROTO_DIRECT_IO, NULL, 0, -1), 0);
	ferry_proto_u32_decode(&direct, reply.body, 4);
	assert_int_equal(direct, 1);
	close(log);
	close(sock);
	port_vmm_destroy(v);
}

static void the_log_is_synced(void **state)
{
	struct port_vmm *v = start(PORT_VMM_LOG);
	int sock = attach(v), log = memory_file(32, F_SEAL_SHRINK | F_SEAL_GROW), bad;
	uint64_t words[4];

	(void)state;
	bad = memory_file(32, 0); /* could shrink under the VMM */
	assert_int_equal(ask(sock, FERRY_PROTO_LOG_START, NULL, 0, bad), -EINVAL);
	close(bad);
	bad = memory_file(40, F_SEAL_SHRINK | F_SEAL_GROW);
	assert_int_equal(ask(sock, FERRY_PROTO_LOG_START, NULL, 0, bad), -EINVAL);
	says("40 bytes, wanted 32");
	close(bad);
	assert_int_equal(ask(sock, FERRY_PROTO_LOG_START, NULL, 0, log), 0);
	assert_int_equal(ask(sock, FERRY_PROTO_LOG_START, NULL, 0, log), -EALREADY);
	assert_int_equal(port_state(sock), FERRY_PROTO_STATE_RUNNING | FERRY_PROTO_STATE_LOG);
	assert_int_equal(ask(sock, FERRY_PROTO_LOG_SYNC, NULL, 0, -1), 0);
	assert_int_equal(ask(sock, FERRY_PROTO_LOG_SYNC, NULL, 0, -1), 0);
	assert_int_equal(pread(log, words, sizeof(words), 0), sizeof(words));
	assert_true(words[0] == 3 && words[1] == 1ull << 63 && !words[2] && !words[3]);
	assert_int_equal(ask(sock, FERRY_PROTO_LOG_STOP, NULL, 0, -1), 0);
	assert_false(v->logging);
	assert_int_equal(ask(sock, FERRY_PROTO_LOG_STOP, NULL, 0, -1), 0);
	close(log);
	close(sock);
	port_vmm_destroy(v);
}

/* ---- views: any descriptor of the same file will do to see the exchange ---- */

static unsigned int plain_file_maps(const struct port_vmm *v, const char *what)
{
	unsigned long start, end, off;
	unsigned int found = 0;
	char line[512];
	FILE *f = fopen("/proc/self/smaps", "re");
	bool here = false;

	assert_non_null(f);
	while (fgets(line, sizeof(line), f)) {
		if (sscanf(line, "%lx-%lx %*4s %lx", &start, &end, &off) == 3)
			here = start >= (uintptr_t)v->ram && end <= (uintptr_t)v->ram + PORT_VMM_BYTES;
		else if (here && !strncmp(line, "VmFlags:", 8))
			found += !!strstr(line, what);
	}
	fclose(f);
	return found;
}

static void views_come_and_go(void **state)
{
	struct port_vmm *v = start(0);
	struct ferry_proto_view view = { .block = 1, .map = FERRY_PROTO_MAP_DONTDUMP |
					 FERRY_PROTO_MAP_HUGEPAGE };
	int sock = attach(v), other = memory_file(PORT_VMM_BYTES, 0), i;
	uint8_t body[FERRY_PROTO_MAX_BODY];
	size_t len = ferry_proto_view_encode(&view, body);

	(void)state;
	memset(v->ram, 0x5a, PORT_VMM_BYTES);
	assert_int_equal(ask(sock, FERRY_PROTO_VIEW, body, len, other), -EINVAL);
	says("no tracker of block 'high'");
	assert_int_equal(ask(sock, FERRY_PROTO_VIEW, body, len, v->fd), 0);
	assert_int_equal(ask(sock, FERRY_PROTO_VIEW, body, len, v->fd), -EALREADY);
	assert_true(port_state(sock) & FERRY_PROTO_STATE_VIEW);
	assert_int_equal(plain_file_maps(v, " dd"), 1);
	assert_int_equal(plain_file_maps(v, " hg"), 0);
	for (i = 0; i < (int)PORT_VMM_BYTES; i += 4096)
		assert_int_equal(v->ram[i], 0x5a);
	v->ram[PORT_VMM_BYTES - 1] = 1;
	assert_int_equal(ask(sock, FERRY_PROTO_RESET, NULL, 0, -1), 0);
	assert_false(port_state(sock) & FERRY_PROTO_STATE_VIEW);
	assert_int_equal(plain_file_maps(v, " hg"), 1);
	assert_int_equal(v->ram[PORT_VMM_BYTES - 1], 1);
	view.block = 2;
	ferry_proto_view_encode(&view, body);
	assert_int_equal(ask(sock, FERRY_PROTO_VIEW, body, len, v->fd), -ENOENT);
	close(other);
	close(sock);
	port_vmm_destroy(v);
}

/* ---- one agent at a time, and its end ---- */

static void a_second_agent_is_told_busy(void **state)
{
	struct port_vmm *v = start(0);
	struct ferry_port_ram ram = { .struct_size = sizeof(ram), .name = "more", .fd = v->fd,
				      .bytes = 4096, .addr = v->ram };
	int first = attach(v), second = ferry_channel_connect(v->path);
	char pid[32];

	(void)state;
	assert_int_equal(hello(second, FERRY_PROTO_ROLE_AGENT), -EBUSY);
	snprintf(pid, sizeof(pid), "(pid %d)", (int)getpid());
	says(pid);
	is_closed(second);
	second = ferry_channel_connect(v->path);
	assert_int_equal(hello(second, FERRY_PROTO_ROLE_MEMBER), -EBUSY);
	is_closed(second);
	assert_int_equal(ferry_port_add_ram(v->port, &ram), -EBUSY);
	/* The first is not disturbed, may say HELLO again (a new process), and makes room. */
	assert_int_equal(hello(first, FERRY_PROTO_ROLE_AGENT), 0);
	close(first);
	second = attach(v);
	close(second);
	port_vmm_destroy(v);
}

static void all_is_taken_back_at_the_end(void **state)
{
	struct port_vmm *v = start(PORT_VMM_LOG);
	int sock = attach(v), log = memory_file(32, F_SEAL_SHRINK | F_SEAL_GROW);
	struct ferry_proto_view view = { .block = 0 };
	uint8_t body[FERRY_PROTO_MAX_BODY];
	size_t len = ferry_proto_view_encode(&view, body);

	(void)state;
	assert_int_equal(ask(sock, FERRY_PROTO_LOG_START, NULL, 0, log), 0);
	assert_int_equal(ask(sock, FERRY_PROTO_VIEW, body, len, v->fd), 0);
	assert_int_equal(ask_u32(sock, FERRY_PROTO_THROTTLE, 40), 0);
	assert_int_equal(ask(sock, FERRY_PROTO_PAUSE, NULL, 0, -1), 0);
	assert_int_equal(ask_u32(sock, FERRY_PROTO_QUIESCE, 1), 0);
	v->calls[0] = 0;
	hang_up(sock);
	sock = attach(v);
	assert_false(v->logging);
	assert_string_equal(v->calls, "unlog unthrottle ");
	/* Not the run state, and not what another VMM may own by now. */
	assert_int_equal(port_state(sock), FERRY_PROTO_STATE_QUIESCED);
	close(log);
	close(sock);
	port_vmm_destroy(v);
}

/* ---- nonsense ---- */

static void raw(const struct port_vmm *v, bool attached, const void *bytes, size_t len)
{
	int sock = attached ? attach(v) : ferry_channel_connect(v->path);

	assert_true(sock >= 0);
	assert_int_equal(send(sock, bytes, len, MSG_NOSIGNAL), len);
	is_closed(sock);
}

static void nonsense_ends_the_connection(void **state)
{
	struct port_vmm *v = start(0);
	uint8_t big[4096] = { 0 }, head[FERRY_PROTO_HEAD_BYTES];
	struct ferry_proto_head h = { .type = FERRY_PROTO_STATE };
	int i, sock;

	(void)state;
	for (i = 0; i < 2; i++) {
		raw(v, i, "x", 1);
		raw(v, i, big, sizeof(big));
		h.length = 1;
		ferry_proto_head_encode(&h, head);
		raw(v, i, head, sizeof(head));
		h.length = 0;
		h.flags = 0x80;
		ferry_proto_head_encode(&h, head);
		raw(v, i, head, sizeof(head));
		/* A reply that nobody asked for. */
		h = (struct ferry_proto_head){ .type = FERRY_PROTO_PAUSE,
					       .flags = FERRY_PROTO_REPLY };
		ferry_proto_head_encode(&h, head);
		raw(v, i, head, sizeof(head));
		h = (struct ferry_proto_head){ .type = FERRY_PROTO_STATE };
	}
	/* Before HELLO nothing else is due, and it is told so. */
	sock = ferry_channel_connect(v->path);
	assert_int_equal(ask(sock, FERRY_PROTO_STATE, NULL, 0, -1), -EPROTO);
	is_closed(sock);
	/* What an agent may not say, or nobody, is answered and goes on. */
	sock = attach(v);
	assert_int_equal(ask(sock, FERRY_PROTO_JOIN, NULL, 0, -1), -EOPNOTSUPP);
	assert_int_equal(ask(sock, 500, NULL, 0, -1), -EOPNOTSUPP);
	assert_int_equal(port_state(sock), FERRY_PROTO_STATE_RUNNING);
	close(sock);
	port_vmm_destroy(v);
}

static void descriptors_only_where_they_belong(void **state)
{
	struct port_vmm *v = start(0);
	struct ferry_channel_message m = { .head.type = FERRY_PROTO_STATE, .fd = v->fd };
	int sock = attach(v);

	(void)state;
	assert_int_equal(ferry_channel_send(sock, &m), 0);
	is_closed(sock);
	sock = attach(v);
	m.head.type = FERRY_PROTO_LOAD;
	m.fd = -1;
	assert_int_equal(ferry_channel_send(sock, &m), 0);
	is_closed(sock);
	port_vmm_destroy(v);
}

static void versions_are_agreed_on(void **state)
{
	struct ferry_proto_hello h = { .version = 9, .min_version = 2,
				       .role = FERRY_PROTO_ROLE_AGENT };
	struct port_vmm *v = start(0);
	uint8_t body[FERRY_PROTO_MAX_BODY];
	int sock = ferry_channel_connect(v->path);

	(void)state;
	assert_int_equal(ask(sock, FERRY_PROTO_HELLO, body, ferry_proto_hello_encode(&h, body),
			     -1), -EPROTONOSUPPORT);
	says("version 1");
	is_closed(sock);
	h.min_version = 1;
	h.features = 1ull << 63;
	sock = ferry_channel_connect(v->path);
	assert_int_equal(ask(sock, FERRY_PROTO_HELLO, body, ferry_proto_hello_encode(&h, body),
			     -1), -EPROTONOSUPPORT);
	is_closed(sock);
	h.features = 1;
	sock = ferry_channel_connect(v->path);
	assert_int_equal(ask(sock, FERRY_PROTO_HELLO, body, ferry_proto_hello_encode(&h, body),
			     -1), 0);
	close(sock);
	port_vmm_destroy(v);
}

static void idle_connections_do_not_lock_it(void **state)
{
	struct port_vmm *v = start(0);
	int idle[40], sock, i;

	(void)state;
	for (i = 0; i < 40; i++) {
		/* The kernel's queue may be full for a moment. */
		while ((idle[i] = ferry_channel_connect(v->path)) == -EAGAIN)
			usleep(1000);
		assert_true(idle[i] >= 0);
	}
	sock = attach(v);
	is_closed(idle[0]);
	for (i = 1; i < 40; i++)
		close(idle[i]);
	close(sock);
	port_vmm_destroy(v);
}

/* ---- members ---- */

static struct ferry_port *member_create(const struct port_vmm *v, const char *name,
					uint64_t bytes)
{
	struct ferry_port_ram ram = { .struct_size = sizeof(ram), .name = name, .fd = v->fd,
				      .bytes = bytes, .addr = v->ram };
	struct ferry_port *port;

	assert_int_equal(ferry_port_create(NULL, NULL, 0, &port), 0);
	assert_int_equal(ferry_port_join(port, v->path), -EINVAL); /* no RAM */
	assert_int_equal(ferry_port_add_ram(port, &ram), 0);
	return port;
}

static void members_join_and_talk(void **state)
{
	struct port_vmm *v = start(0);
	struct ferry_port *member = member_create(v, "low", PORT_VMM_BYTES / 2), *bad;
	struct ferry_proto_welcome w;
	uint32_t pid = 0;
	int sock, channel;

	(void)state;
	assert_int_equal(ferry_port_join(member, "/nonexistent"), -ENOENT);
	assert_int_equal(ferry_port_listen(member, "/tmp/x"), -EINVAL);
	assert_int_equal(ferry_port_join(v->port, v->path), -EINVAL);
	bad = member_create(v, "low", 4096);
	assert_int_equal(ferry_port_join(bad, v->path), -EINVAL);
	ferry_port_destroy(bad);
	bad = member_create(v, "what", 4096);
	assert_int_equal(ferry_port_join(bad, v->path), -EINVAL);
	ferry_port_destroy(bad);

	sock = attach(v);
	assert_int_equal(ferry_port_join(member, v->path), -EBUSY);
	close(sock);
	assert_int_equal(ferry_port_join(member, v->path), 0);
	assert_int_equal(ferry_port_join(member, v->path), -EALREADY);
	assert_int_equal(ferry_port_start(member), 0);

	sock = attach(v);
	assert_int_equal(ferry_proto_welcome_decode(&w, reply.body, reply.head.length), 0);
	assert_int_equal(w.members, 1);
	assert_int_equal(ask_u32(sock, FERRY_PROTO_MEMBER, 1), -ENOENT);
	assert_int_equal(ask_u32(sock, FERRY_PROTO_MEMBER, 0), 0);
	ferry_proto_u32_decode(&pid, reply.body, reply.head.length);
	assert_int_equal(pid, getpid());
	channel = reply.fd;
	assert_int_equal(hello(channel, FERRY_PROTO_ROLE_AGENT), 0);
	assert_int_equal(ferry_proto_welcome_decode(&w, reply.body, reply.head.length), 0);
	assert_int_equal(w.has, FERRY_PROTO_IS_MEMBER);
	assert_int_equal(ferry_port_attached(member), 1);
	assert_int_equal(ask_u32(channel, FERRY_PROTO_RAM, 0), 0);
	close(reply.fd);
	/* Its guest is the VMM's business. */
	assert_int_equal(ask(channel, FERRY_PROTO_PAUSE, NULL, 0, -1), -EOPNOTSUPP);
	assert_int_equal(ask(channel, FERRY_PROTO_QUIT, NULL, 0, -1), -EOPNOTSUPP);
	assert_int_equal(ask_u32(channel, FERRY_PROTO_THROTTLE, 1), -EOPNOTSUPP);
	/* Gone: the VMM notices, and so does the agent. */
	ferry_port_destroy(member);
	is_closed(channel);
	assert_int_equal(hello(sock, FERRY_PROTO_ROLE_AGENT), 0);
	assert_int_equal(ask_u32(sock, FERRY_PROTO_MEMBER, 0), -ENOENT);
	close(sock);
	port_vmm_destroy(v);
}

static void a_member_outlives_its_vmm(void **state)
{
	struct port_vmm *v = start(0);
	struct ferry_port *member = member_create(v, "low", PORT_VMM_BYTES / 2);
	struct pollfd p = { .fd = ferry_port_fd(member), .events = POLLIN };

	(void)state;
	assert_int_equal(ferry_port_join(member, v->path), 0);
	assert_int_equal(ferry_port_process(member), 0);
	ferry_port_destroy(v->port);
	v->port = NULL;
	assert_int_equal(poll(&p, 1, TIMEOUT_MS), 1);
	assert_int_equal(ferry_port_process(member), -ENOTCONN);
	ferry_port_destroy(member);
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
		cmocka_unit_test(describes_itself),
		cmocka_unit_test(a_source_is_saved_and_resumed),
		cmocka_unit_test(a_destination_is_loaded_and_run),
		cmocka_unit_test(a_failed_load_leaves_only_quit),
		cmocka_unit_test(failures_are_told),
		cmocka_unit_test(what_is_not_offered_is_refused),
		cmocka_unit_test(the_log_is_synced),
		cmocka_unit_test(views_come_and_go),
		cmocka_unit_test(a_second_agent_is_told_busy),
		cmocka_unit_test(all_is_taken_back_at_the_end),
		cmocka_unit_test(nonsense_ends_the_connection),
		cmocka_unit_test(descriptors_only_where_they_belong),
		cmocka_unit_test(versions_are_agreed_on),
		cmocka_unit_test(idle_connections_do_not_lock_it),
		cmocka_unit_test(members_join_and_talk),
		cmocka_unit_test(a_member_outlives_its_vmm),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
