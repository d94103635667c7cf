// SPDX-License-Identifier: GPL-2.0-or-later
/* A port without RAM of its own, which is passed that of another VMM. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "include/ferry.h"
#include "port/channel.h"

#define TIMEOUT_MS 10000u
#define BYTES 8192u

static struct ferry_port *port;
static struct ferry_channel_message reply;
static char path[64], calls[64];

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

static int adopt(void *ctx, struct ferry_port_ram *ram)
{
	(void)ctx;
	strcat(calls, ram->fd < 0 ? "ask " : "take ");
	if (ram->bytes != BYTES) {
		ferry_port_set_error(port, "no room for %s", ram->name);
		return -EINVAL;
	}
	if (ram->fd < 0)
		return 0;
	ram->addr = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, ram->fd, 0);
	return 0;
}

static const struct ferry_port_ops ops = {
	.struct_size = sizeof(ops), .kind = "x/1", .pause = no_int, .resume = no_int,
	.running = no_int, .save = no_state, .load = no_state, .run = no_int, .quit = no_void,
	.adopt = adopt,
};

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

static int ask_adopt(int sock, uint64_t bytes, int fd)
{
	struct ferry_proto_ram ram = { .bytes = bytes, .addr = 4096, .page_bytes = 4096,
				       .name = "ram" };
	uint8_t body[FERRY_PROTO_MAX_BODY];

	return ask(sock, FERRY_PROTO_ADOPT, body, ferry_proto_ram_encode(&ram, body), fd);
}

static struct ferry_proto_welcome hello(int sock)
{
	struct ferry_proto_hello h = { .version = 1, .min_version = 1,
				       .role = FERRY_PROTO_ROLE_AGENT };
	struct ferry_proto_welcome w;
	uint8_t body[FERRY_PROTO_MAX_BODY];

	assert_int_equal(ask(sock, FERRY_PROTO_HELLO, body, ferry_proto_hello_encode(&h, body), -1),
			 0);
	assert_int_equal(ferry_proto_welcome_decode(&w, reply.body, reply.head.length), 0);
	return w;
}

static int memory(int seals)
{
	int fd = memfd_create("adopt", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	assert_int_equal(ftruncate(fd, BYTES), 0);
	assert_int_equal(fcntl(fd, F_ADD_SEALS, seals), 0);
	return fd;
}

static int start(unsigned int flags)
{
	int r = ferry_port_create(&ops, NULL, flags, &port);

	calls[0] = '\0';
	snprintf(path, sizeof(path), "/tmp/ferry-adopt-%d", (int)getpid());
	if (!r)
		r = ferry_port_listen(port, path);
	return r ? r : ferry_port_start(port);
}

static void takes_ram_over(void **state)
{
	int fd = memory(0), sealed = memory(F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW), sock;
	struct ferry_proto_welcome w;
	struct ferry_proto_ram ram;
	uint8_t zero[4] = { 0 };

	(void)state;
	assert_int_equal(start(FERRY_PORT_INCOMING), 0);
	sock = ferry_channel_connect(path);
	w = hello(sock);
	assert_int_equal(w.blocks, 0);
	assert_int_equal(w.has, FERRY_PROTO_HAS_ADOPT);
	assert_int_equal(ask(sock, FERRY_PROTO_LOAD, NULL, 0, sealed), -EINVAL);
	assert_non_null(strstr((char *)reply.body, "has no RAM"));
	assert_int_equal(ask_adopt(sock, BYTES, -1), 0);
	assert_int_equal(ask_adopt(sock, 2 * BYTES, -1), -EINVAL);
	assert_string_equal((char *)reply.body, "no room for ram");
	assert_int_equal(ask(sock, FERRY_PROTO_RAM, zero, 4, -1), -ENOENT);
	assert_int_equal(ask_adopt(sock, BYTES, fd), 0);
	assert_int_equal(ask_adopt(sock, BYTES, fd), -EEXIST);
	assert_string_equal(calls, "ask ask take take ");
	/* From now on it is like any other destination. */
	w = hello(sock);
	assert_int_equal(w.blocks, 1);
	assert_int_equal(w.has, 0);
	assert_int_equal(ask(sock, FERRY_PROTO_RAM, zero, 4, -1), 0);
	assert_int_equal(ferry_proto_ram_decode(&ram, reply.body, reply.head.length), 0);
	assert_int_equal(ram.bytes, BYTES);
	assert_true(ram.addr != 4096);
	close(reply.fd);
	assert_int_equal(ask(sock, FERRY_PROTO_LOAD, NULL, 0, sealed), 0);
	assert_int_equal(ask_adopt(sock, BYTES, -1), -EINVAL);
	assert_non_null(strstr((char *)reply.body, "waits for no guest"));
	close(sock);
	close(fd);
	close(sealed);
	ferry_port_destroy(port);
}

/* A VMM that does not wait for a guest has RAM. */
static void only_who_waits(void **state)
{
	(void)state;
	assert_int_equal(start(0), -EINVAL);
	ferry_port_destroy(port);
}

static void not_offered(void **state)
{
	struct ferry_port_ops without = ops;
	struct ferry_port_ram ram = { .struct_size = sizeof(ram), .name = "ram", .bytes = BYTES };
	int sock;

	(void)state;
	without.adopt = NULL;
	ram.fd = memory(0);
	ram.addr = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, ram.fd, 0);
	assert_int_equal(ferry_port_create(&without, NULL, FERRY_PORT_INCOMING, &port), 0);
	assert_int_equal(ferry_port_listen(port, path), -EINVAL);
	assert_int_equal(ferry_port_add_ram(port, &ram), 0);
	assert_int_equal(ferry_port_listen(port, path), 0);
	assert_int_equal(ferry_port_start(port), 0);
	sock = ferry_channel_connect(path);
	assert_int_equal(hello(sock).has, 0);
	assert_int_equal(ask_adopt(sock, BYTES, -1), -EOPNOTSUPP);
	close(sock);
	close(ram.fd);
	ferry_port_destroy(port);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(takes_ram_over), cmocka_unit_test(only_who_waits),
		cmocka_unit_test(not_offered),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
