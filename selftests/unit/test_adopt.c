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
#include "port_agent.h"
#include "port_vmm.h"

#define BYTES 8192u

static struct ferry_port *port;
static char path[64], calls[64];

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

static int ask_adopt(int sock, uint64_t bytes, int fd)
{
	struct ferry_proto_ram ram = { .bytes = bytes, .addr = 4096, .page_bytes = 4096,
				       .name = "ram" };
	uint8_t body[FERRY_PROTO_MAX_BODY];

	return agent_ask(sock, FERRY_PROTO_ADOPT, body, ferry_proto_ram_encode(&ram, body), fd);
}

static struct ferry_proto_welcome hello(int sock)
{
	struct ferry_proto_welcome w;

	assert_int_equal(agent_hello(sock, FERRY_PROTO_ROLE_AGENT), 0);
	agent_welcome(&w);
	return w;
}

static int start(unsigned int flags)
{
	struct ferry_port_ops ops = port_idle_ops;
	int r;

	ops.adopt = adopt;
	r = ferry_port_create(&ops, NULL, flags, &port);
	calls[0] = '\0';
	snprintf(path, sizeof(path), "/tmp/ferry-adopt-%d", (int)getpid());
	if (!r)
		r = ferry_port_listen(port, path);
	return r ? r : ferry_port_start(port);
}

static void takes_ram_over(void **state)
{
	int fd = memory_file(BYTES, 0), sealed = memory_file(BYTES, SEALS), sock;
	struct ferry_proto_welcome w;
	struct ferry_proto_ram ram;
	uint8_t zero[4] = { 0 };

	(void)state;
	assert_int_equal(start(FERRY_PORT_INCOMING), 0);
	sock = ferry_channel_connect(path);
	w = hello(sock);
	assert_int_equal(w.blocks, 0);
	assert_int_equal(w.has, FERRY_PROTO_HAS_ADOPT);
	assert_int_equal(agent_ask(sock, FERRY_PROTO_LOAD, NULL, 0, sealed), -EINVAL);
	agent_says("has no RAM");
	assert_int_equal(ask_adopt(sock, BYTES, -1), 0);
	assert_int_equal(ask_adopt(sock, 2 * BYTES, -1), -EINVAL);
	assert_string_equal((char *)agent_reply.body, "no room for ram");
	assert_int_equal(agent_ask(sock, FERRY_PROTO_RAM, zero, 4, -1), -ENOENT);
	assert_int_equal(ask_adopt(sock, BYTES, fd), 0);
	assert_int_equal(ask_adopt(sock, BYTES, fd), -EEXIST);
	assert_string_equal(calls, "ask ask take take ");
	/* From now on it is like any other destination. */
	w = hello(sock);
	assert_int_equal(w.blocks, 1);
	assert_int_equal(w.has, 0);
	assert_int_equal(agent_ask(sock, FERRY_PROTO_RAM, zero, 4, -1), 0);
	assert_int_equal(ferry_proto_ram_decode(&ram, agent_reply.body, agent_reply.head.length),
			 0);
	assert_int_equal(ram.bytes, BYTES);
	assert_true(ram.addr != 4096);
	close(agent_reply.fd);
	assert_int_equal(agent_ask(sock, FERRY_PROTO_LOAD, NULL, 0, sealed), 0);
	assert_int_equal(ask_adopt(sock, BYTES, -1), -EINVAL);
	agent_says("waits for no guest");
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
	struct ferry_port_ram ram = { .struct_size = sizeof(ram), .name = "ram", .bytes = BYTES };
	int sock;

	(void)state;
	ram.fd = memory_file(BYTES, 0);
	ram.addr = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, ram.fd, 0);
	assert_int_equal(ferry_port_create(&port_idle_ops, NULL, FERRY_PORT_INCOMING, &port), 0);
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
