// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Who connects to libferry: one agent at a time, confused and hostile ones, those that only
 * connect, and other processes of the same guest.
 */
#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "port_agent.h"
#include "port_vmm.h"

static void a_second_agent_is_told_busy(void **state)
{
	struct port_vmm *v = port_vmm_serve(0);
	struct ferry_port_ram ram = { .struct_size = sizeof(ram), .name = "more", .fd = v->fd,
				      .bytes = 4096, .addr = v->ram };
	int first = agent_attach(v->path), second = ferry_channel_connect(v->path);
	char pid[32];

	(void)state;
	assert_int_equal(agent_hello(second, FERRY_PROTO_ROLE_AGENT), -EBUSY);
	snprintf(pid, sizeof(pid), "(pid %d)", (int)getpid());
	agent_says(pid);
	agent_is_closed(second);
	second = ferry_channel_connect(v->path);
	assert_int_equal(agent_hello(second, FERRY_PROTO_ROLE_MEMBER), -EBUSY);
	agent_is_closed(second);
	assert_int_equal(ferry_port_add_ram(v->port, &ram), -EBUSY);
	/* The first is not disturbed, may say HELLO again (a new process), and makes room. */
	assert_int_equal(agent_hello(first, FERRY_PROTO_ROLE_AGENT), 0);
	close(first);
	second = agent_attach(v->path);
	close(second);
	port_vmm_destroy(v);
}

static void raw(const struct port_vmm *v, bool attached, const void *bytes, size_t len)
{
	int sock = attached ? agent_attach(v->path) : ferry_channel_connect(v->path);

	assert_true(sock >= 0);
	assert_int_equal(send(sock, bytes, len, MSG_NOSIGNAL), len);
	agent_is_closed(sock);
}

static void nonsense_ends_the_connection(void **state)
{
	struct port_vmm *v = port_vmm_serve(0);
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
	assert_int_equal(agent_ask(sock, FERRY_PROTO_STATE, NULL, 0, -1), -EPROTO);
	agent_is_closed(sock);
	/* What an agent may not say, or nobody, is answered and goes on. */
	sock = agent_attach(v->path);
	assert_int_equal(agent_ask(sock, FERRY_PROTO_JOIN, NULL, 0, -1), -EOPNOTSUPP);
	assert_int_equal(agent_ask(sock, 500, NULL, 0, -1), -EOPNOTSUPP);
	assert_int_equal(agent_state(sock), FERRY_PROTO_STATE_RUNNING);
	close(sock);
	port_vmm_destroy(v);
}

static void descriptors_only_where_they_belong(void **state)
{
	struct port_vmm *v = port_vmm_serve(0);
	struct ferry_channel_message m = { .head.type = FERRY_PROTO_STATE, .fd = v->fd };
	int sock = agent_attach(v->path);

	(void)state;
	assert_int_equal(ferry_channel_send(sock, &m), 0);
	agent_is_closed(sock);
	sock = agent_attach(v->path);
	m.head.type = FERRY_PROTO_LOAD;
	m.fd = -1;
	assert_int_equal(ferry_channel_send(sock, &m), 0);
	agent_is_closed(sock);
	port_vmm_destroy(v);
}

static void versions_are_agreed_on(void **state)
{
	struct ferry_proto_hello h = { .version = 9, .min_version = 2,
				       .role = FERRY_PROTO_ROLE_AGENT };
	struct port_vmm *v = port_vmm_serve(0);
	int sock = ferry_channel_connect(v->path);

	(void)state;
	assert_int_equal(agent_say_hello(sock, &h), -EPROTONOSUPPORT);
	agent_says("version 1");
	agent_is_closed(sock);
	h.min_version = 1;
	h.features = 1ull << 63;
	sock = ferry_channel_connect(v->path);
	assert_int_equal(agent_say_hello(sock, &h), -EPROTONOSUPPORT);
	agent_is_closed(sock);
	h.features = 1;
	sock = ferry_channel_connect(v->path);
	assert_int_equal(agent_say_hello(sock, &h), 0);
	close(sock);
	port_vmm_destroy(v);
}

static void idle_connections_do_not_lock_it(void **state)
{
	struct port_vmm *v = port_vmm_serve(0);
	int idle[40], sock, i;

	(void)state;
	for (i = 0; i < 40; i++) {
		/* The kernel's queue may be full for a moment. */
		while ((idle[i] = ferry_channel_connect(v->path)) == -EAGAIN)
			usleep(1000);
		assert_true(idle[i] >= 0);
	}
	sock = agent_attach(v->path);
	agent_is_closed(idle[0]);
	for (i = 1; i < 40; i++)
		close(idle[i]);
	close(sock);
	port_vmm_destroy(v);
}

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
	struct port_vmm *v = port_vmm_serve(0);
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

	sock = agent_attach(v->path);
	assert_int_equal(ferry_port_join(member, v->path), -EBUSY);
	close(sock);
	assert_int_equal(ferry_port_join(member, v->path), 0);
	assert_int_equal(ferry_port_join(member, v->path), -EALREADY);
	assert_int_equal(ferry_port_start(member), 0);

	sock = agent_attach(v->path);
	agent_welcome(&w);
	assert_int_equal(w.members, 1);
	assert_int_equal(agent_ask_u32(sock, FERRY_PROTO_MEMBER, 1), -ENOENT);
	assert_int_equal(agent_ask_u32(sock, FERRY_PROTO_MEMBER, 0), 0);
	ferry_proto_u32_decode(&pid, agent_reply.body, agent_reply.head.length);
	assert_int_equal(pid, getpid());
	channel = agent_reply.fd;
	assert_int_equal(agent_hello(channel, FERRY_PROTO_ROLE_AGENT), 0);
	agent_welcome(&w);
	assert_int_equal(w.has, FERRY_PROTO_IS_MEMBER);
	assert_int_equal(ferry_port_attached(member), 1);
	assert_int_equal(agent_ask_u32(channel, FERRY_PROTO_RAM, 0), 0);
	close(agent_reply.fd);
	/* Its guest is the VMM's business. */
	assert_int_equal(agent_ask(channel, FERRY_PROTO_PAUSE, NULL, 0, -1), -EOPNOTSUPP);
	assert_int_equal(agent_ask(channel, FERRY_PROTO_QUIT, NULL, 0, -1), -EOPNOTSUPP);
	assert_int_equal(agent_ask_u32(channel, FERRY_PROTO_THROTTLE, 1), -EOPNOTSUPP);
	/* Gone: the VMM notices, and so does the agent. */
	ferry_port_destroy(member);
	agent_is_closed(channel);
	assert_int_equal(agent_hello(sock, FERRY_PROTO_ROLE_AGENT), 0);
	assert_int_equal(agent_ask_u32(sock, FERRY_PROTO_MEMBER, 0), -ENOENT);
	close(sock);
	port_vmm_destroy(v);
}

static void a_member_outlives_its_vmm(void **state)
{
	struct port_vmm *v = port_vmm_serve(0);
	struct ferry_port *member = member_create(v, "low", PORT_VMM_BYTES / 2);
	struct pollfd p = { .fd = ferry_port_fd(member), .events = POLLIN };

	(void)state;
	assert_int_equal(ferry_port_join(member, v->path), 0);
	assert_int_equal(ferry_port_process(member), 0);
	ferry_port_destroy(v->port);
	v->port = NULL;
	assert_int_equal(poll(&p, 1, AGENT_TIMEOUT_MS), 1);
	assert_int_equal(ferry_port_process(member), -ENOTCONN);
	ferry_port_destroy(member);
	port_vmm_destroy(v);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_second_agent_is_told_busy),
		cmocka_unit_test(nonsense_ends_the_connection),
		cmocka_unit_test(descriptors_only_where_they_belong),
		cmocka_unit_test(versions_are_agreed_on),
		cmocka_unit_test(idle_connections_do_not_lock_it),
		cmocka_unit_test(members_join_and_talk),
		cmocka_unit_test(a_member_outlives_its_vmm),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
