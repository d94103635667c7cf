// SPDX-License-Identifier: GPL-2.0-or-later
#include "port_agent.h"

#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

struct ferry_channel_message agent_reply;

int agent_ask(int sock, unsigned int type, const void *body, size_t len, int fd)
{
	static uint32_t sequence;

	agent_reply.head = (struct ferry_proto_head){
		.type = (uint16_t)type, .length = (uint32_t)len, .sequence = ++sequence,
	};
	if (len)
		memcpy(agent_reply.body, body, len);
	agent_reply.fd = fd;
	assert_int_equal(ferry_channel_call(sock, &agent_reply, AGENT_TIMEOUT_MS), 0);
	if (agent_reply.head.status)
		agent_reply.body[agent_reply.head.length] = 0;
	return agent_reply.head.status;
}

int agent_ask_u32(int sock, unsigned int type, uint32_t v)
{
	uint8_t body[4];

	ferry_proto_u32_encode(v, body);
	return agent_ask(sock, type, body, sizeof(body), -1);
}

void agent_says(const char *words)
{
	if (!strstr((const char *)agent_reply.body, words))
		fail_msg("\"%s\" is not in \"%s\"", words, (const char *)agent_reply.body);
}

int agent_say_hello(int sock, const struct ferry_proto_hello *h)
{
	uint8_t body[FERRY_PROTO_MAX_BODY];

	return agent_ask(sock, FERRY_PROTO_HELLO, body, ferry_proto_hello_encode(h, body), -1);
}

int agent_hello(int sock, uint32_t role)
{
	const struct ferry_proto_hello h = { .version = 1, .min_version = 1, .role = role };

	return agent_say_hello(sock, &h);
}

void agent_welcome(struct ferry_proto_welcome *w)
{
	assert_int_equal(ferry_proto_welcome_decode(w, agent_reply.body, agent_reply.head.length),
			 0);
}

int agent_attach(const char *path)
{
	int sock = ferry_channel_connect(path);

	assert_true(sock >= 0);
	assert_int_equal(agent_hello(sock, FERRY_PROTO_ROLE_AGENT), 0);
	return sock;
}

uint32_t agent_state(int sock)
{
	uint32_t state = 0;

	assert_int_equal(agent_ask(sock, FERRY_PROTO_STATE, NULL, 0, -1), 0);
	ferry_proto_u32_decode(&state, agent_reply.body, agent_reply.head.length);
	return state;
}

int memory_file(size_t bytes, int seals)
{
	int fd = memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, (off_t)bytes), 0);
	if (seals)
		assert_int_equal(fcntl(fd, F_ADD_SEALS, seals), 0);
	return fd;
}

void agent_is_closed(int sock)
{
	struct pollfd p = { .fd = sock, .events = POLLIN };
	char byte;

	assert_int_equal(poll(&p, 1, AGENT_TIMEOUT_MS), 1);
	assert_int_equal(recv(sock, &byte, 1, 0), 0);
	close(sock);
}

void agent_hang_up(int sock)
{
	agent_state(sock);
	close(sock);
}
