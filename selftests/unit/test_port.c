// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * libferry in a conversation with a well-behaved agent: each call does what it says, failures
 * are told, and all is taken back when the agent goes.
 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "port_agent.h"
#include "port_vmm.h"

static void describes_itself(void **state)
{
	struct port_vmm *v = port_vmm_serve(PORT_VMM_LOG | FERRY_PORT_LOG_PROCESS);
	struct ferry_proto_welcome w;
	struct ferry_proto_ram ram;
	struct stat a, b;
	int sock = agent_attach(v->path);

	(void)state;
	agent_welcome(&w);
	assert_string_equal(w.kind, "test/1");
	assert_int_equal(w.blocks, 2);
	assert_int_equal(w.members, 0);
	assert_int_equal(w.has, FERRY_PROTO_HAS_LOG | FERRY_PROTO_HAS_LOG_PROCESS |
				FERRY_PROTO_HAS_THROTTLE | FERRY_PROTO_HAS_QUIESCE);
	assert_int_equal(agent_ask_u32(sock, FERRY_PROTO_RAM, 1), 0);
	assert_int_equal(ferry_proto_ram_decode(&ram, agent_reply.body,
						agent_reply.head.length), 0);
	assert_string_equal(ram.name, "high");
	assert_int_equal(ram.bytes, PORT_VMM_BYTES / 2);
	assert_int_equal(ram.fd_offset, PORT_VMM_BYTES / 2);
	assert_true(ram.addr == (uintptr_t)v->ram + PORT_VMM_BYTES / 2);
	assert_int_equal(fstat(agent_reply.fd, &a), 0);
	assert_int_equal(fstat(v->fd, &b), 0);
	assert_int_equal(a.st_ino, b.st_ino);
	close(agent_reply.fd);
	assert_int_equal(agent_ask_u32(sock, FERRY_PROTO_RAM, 2), -ENOENT);
	assert_int_equal(agent_state(sock), FERRY_PROTO_STATE_RUNNING);
	close(sock);
	port_vmm_destroy(v);
}

static void a_source_is_saved_and_resumed(void **state)
{
	struct port_vmm *v = port_vmm_serve(0);
	int sock = agent_attach(v->path), fd = memory_file(0, 0);
	int sealed = memory_file(0, SEALS), pipes[2];
	uint8_t limit[8];
	uint64_t got = 0;

	(void)state;
	ferry_proto_u64_encode(100, limit);
	assert_int_equal(agent_ask(sock, FERRY_PROTO_CHECK, NULL, 0, -1), 0);
	assert_int_equal(agent_ask(sock, FERRY_PROTO_SAVE, limit, 8, fd), -EBUSY);
	agent_says("the guest runs");
	assert_int_equal(agent_ask_u32(sock, FERRY_PROTO_QUIESCE, 1), -EBUSY);
	assert_int_equal(agent_ask(sock, FERRY_PROTO_PAUSE, NULL, 0, -1), 0);
	assert_int_equal(agent_state(sock), 0);
	assert_int_equal(agent_ask(sock, FERRY_PROTO_SAVE, limit, 8, fd), 0);
	assert_int_equal(ferry_proto_u64_decode(&got, agent_reply.body,
						agent_reply.head.length), 0);
	assert_int_equal(got, 8);
	assert_int_equal(pread(fd, &got, 8, 0), 8);
	assert_int_equal(got, 0x1234567);
	v->state_extra = 93;
	assert_int_equal(agent_ask(sock, FERRY_PROTO_SAVE, limit, 8, fd), -EFBIG);
	v->state_extra = 0;
	/* Nothing that could block the VMM. */
	assert_int_equal(pipe(pipes), 0);
	assert_int_equal(agent_ask(sock, FERRY_PROTO_SAVE, limit, 8, pipes[1]), -EINVAL);
	/* No destination. */
	assert_int_equal(agent_ask(sock, FERRY_PROTO_LOAD, NULL, 0, sealed), -EINVAL);
	assert_int_equal(agent_ask(sock, FERRY_PROTO_RUN, NULL, 0, -1), -EINVAL);
	/* Devices come back before the guest does. */
	assert_int_equal(agent_ask_u32(sock, FERRY_PROTO_QUIESCE, 1), 0);
	assert_int_equal(agent_ask_u32(sock, FERRY_PROTO_QUIESCE, 1), 0);
	assert_int_equal(agent_state(sock), FERRY_PROTO_STATE_QUIESCED);
	assert_int_equal(agent_ask_u32(sock, FERRY_PROTO_QUIESCE, 2), -EINVAL);
	v->calls[0] = 0;
	assert_int_equal(agent_ask(sock, FERRY_PROTO_RESUME, NULL, 0, -1), 0);
	assert_string_equal(v->calls, "unquiesce resume ");
	assert_int_equal(agent_state(sock), FERRY_PROTO_STATE_RUNNING);
	assert_int_equal(agent_ask_u32(sock, FERRY_PROTO_THROTTLE, 100), -EINVAL);
	assert_int_equal(agent_ask_u32(sock, FERRY_PROTO_THROTTLE, 99), 0);
	assert_int_equal(v->percent, 99);
	close(pipes[0]);
	close(pipes[1]);
	close(fd);
	close(sealed);
	agent_hang_up(sock);
	port_vmm_destroy(v);
}

static void a_destination_is_loaded_and_run(void **state)
{
	struct port_vmm *v = port_vmm_serve(FERRY_PORT_INCOMING);
	int sock = agent_attach(v->path), loose = memory_file(8, 0), fd = memory_file(8, 0);
	uint64_t device = 99;
	uint8_t limit[8] = { 100 };

	(void)state;
	assert_int_equal(pwrite(fd, &device, 8, 0), 8);
	assert_int_equal(fcntl(fd, F_ADD_SEALS, SEALS), 0);
	assert_int_equal(agent_state(sock), FERRY_PROTO_STATE_INCOMING);
	assert_int_equal(agent_ask(sock, FERRY_PROTO_PAUSE, NULL, 0, -1), -EINVAL);
	assert_int_equal(agent_ask(sock, FERRY_PROTO_RESUME, NULL, 0, -1), -EINVAL);
	assert_int_equal(agent_ask(sock, FERRY_PROTO_SAVE, limit, 8, loose), -EINVAL);
	assert_int_equal(agent_ask(sock, FERRY_PROTO_RUN, NULL, 0, -1), -EINVAL);
	/* It could change while it is read. */
	assert_int_equal(agent_ask(sock, FERRY_PROTO_LOAD, NULL, 0, loose), -EINVAL);
	assert_int_equal(agent_state(sock), FERRY_PROTO_STATE_INCOMING);
	assert_int_equal(agent_ask(sock, FERRY_PROTO_LOAD, NULL, 0, fd), 0);
	assert_int_equal(v->state, 99);
	assert_int_equal(agent_state(sock), FERRY_PROTO_STATE_LOADED);
	assert_int_equal(agent_ask(sock, FERRY_PROTO_LOAD, NULL, 0, fd), -EINVAL);
	assert_int_equal(agent_ask(sock, FERRY_PROTO_RESUME, NULL, 0, -1), -EINVAL);
	/* A start that failed may be tried again. */
	strcpy(v->fail, "run");
	assert_int_equal(agent_ask(sock, FERRY_PROTO_RUN, NULL, 0, -1), -EIO);
	agent_says("run was told to fail");
	v->fail[0] = 0;
	assert_int_equal(agent_state(sock), FERRY_PROTO_STATE_LOADED);
	assert_int_equal(agent_ask(sock, FERRY_PROTO_RUN, NULL, 0, -1), 0);
	assert_int_equal(agent_state(sock), FERRY_PROTO_STATE_RUNNING);
	/* Once is enough, and from now on it is a guest like any other. */
	v->calls[0] = 0;
	assert_int_equal(agent_ask(sock, FERRY_PROTO_PAUSE, NULL, 0, -1), 0);
	assert_int_equal(agent_ask(sock, FERRY_PROTO_RUN, NULL, 0, -1), 0);
	assert_string_equal(v->calls, "pause ");
	assert_int_equal(agent_ask(sock, FERRY_PROTO_RESUME, NULL, 0, -1), 0);
	close(loose);
	close(fd);
	close(sock);
	port_vmm_destroy(v);
}

static void a_failed_load_leaves_only_quit(void **state)
{
	struct port_vmm *v = port_vmm_serve(FERRY_PORT_INCOMING);
	int sock = agent_attach(v->path), fd = memory_file(7, SEALS);

	(void)state;
	assert_int_equal(agent_ask(sock, FERRY_PROTO_LOAD, NULL, 0, fd), -EPROTO);
	assert_int_equal(agent_state(sock), FERRY_PROTO_STATE_BROKEN);
	assert_int_equal(agent_ask(sock, FERRY_PROTO_LOAD, NULL, 0, fd), -EINVAL);
	assert_int_equal(agent_ask(sock, FERRY_PROTO_RUN, NULL, 0, -1), -EINVAL);
	assert_int_equal(agent_ask(sock, FERRY_PROTO_RESUME, NULL, 0, -1), -EINVAL);
	v->calls[0] = 0;
	assert_int_equal(agent_ask(sock, FERRY_PROTO_QUIT, NULL, 0, -1), 0);
	agent_state(sock);
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
	struct port_vmm *v = port_vmm_serve(PORT_VMM_LOG);
	int sock = agent_attach(v->path), log = memory_file(32, F_SEAL_SHRINK | F_SEAL_GROW);
	size_t i;

	(void)state;
	strcpy(v->fail, "log");
	assert_int_equal(agent_ask(sock, FERRY_PROTO_LOG_START, NULL, 0, log), -EIO);
	v->fail[0] = 0;
	assert_int_equal(agent_ask(sock, FERRY_PROTO_LOG_SYNC, NULL, 0, -1), -EINVAL);
	assert_int_equal(agent_ask(sock, FERRY_PROTO_LOG_START, NULL, 0, log), 0);
	for (i = 0; i < sizeof(calls) / sizeof(calls[0]); i++) {
		strcpy(v->fail, calls[i].name);
		assert_int_equal(agent_ask(sock, calls[i].type, NULL, 0, -1), -EIO);
		agent_says(calls[i].name);
		agent_says("was told to fail");
	}
	/* Without a text the errno speaks. */
	strcpy(v->fail, "running");
	assert_int_equal(agent_ask(sock, FERRY_PROTO_STATE, NULL, 0, -1), -EIO);
	agent_says("Input/output error");
	close(log);
	close(sock);
	port_vmm_destroy(v);
}

static void what_is_not_offered_is_refused(void **state)
{
	struct port_vmm *v = port_vmm_serve(PORT_VMM_BARE);
	int sock = agent_attach(v->path), log = memory_file(32, F_SEAL_SHRINK | F_SEAL_GROW);
	uint32_t direct = 0;

	(void)state;
	assert_int_equal(agent_ask(sock, FERRY_PROTO_LOG_START, NULL, 0, log), -EOPNOTSUPP);
	assert_int_equal(agent_ask_u32(sock, FERRY_PROTO_THROTTLE, 1), -EOPNOTSUPP);
	assert_int_equal(agent_ask_u32(sock, FERRY_PROTO_QUIESCE, 1), -EOPNOTSUPP);
	assert_int_equal(agent_ask(sock, FERRY_PROTO_CHECK, NULL, 0, -1), 0);
	/* Who does not say is taken to have some. */
	assert_int_equal(agent_ask(sock, FERRY_PROTO_DIRECT_IO, NULL, 0, -1), 0);
	ferry_proto_u32_decode(&direct, agent_reply.body, 4);
	assert_int_equal(direct, 1);
	close(log);
	close(sock);
	port_vmm_destroy(v);
}

static uint32_t direct_io(int sock)
{
	uint32_t direct = 2;

	assert_int_equal(agent_ask(sock, FERRY_PROTO_DIRECT_IO, NULL, 0, -1), 0);
	ferry_proto_u32_decode(&direct, agent_reply.body, 4);
	return direct;
}

/* A VMM that says neither whether its guest runs nor that it has direct I/O. */
static void the_library_knows_who_runs(void **state)
{
	struct port_vmm *v = port_vmm_serve(PORT_VMM_BARE | FERRY_PORT_NO_DIRECT_IO);
	int sock = agent_attach(v->path), loadable = memory_file(8, SEALS);

	(void)state;
	assert_int_equal(direct_io(sock), 0);
	assert_int_equal(agent_state(sock), FERRY_PROTO_STATE_RUNNING);
	strcpy(v->fail, "pause");
	assert_int_equal(agent_ask(sock, FERRY_PROTO_PAUSE, NULL, 0, -1), -EIO);
	assert_int_equal(agent_state(sock), FERRY_PROTO_STATE_RUNNING);
	strcpy(v->fail, "resume");
	assert_int_equal(agent_ask(sock, FERRY_PROTO_PAUSE, NULL, 0, -1), 0);
	assert_int_equal(agent_state(sock), 0);
	assert_int_equal(agent_ask(sock, FERRY_PROTO_RESUME, NULL, 0, -1), -EIO);
	assert_int_equal(agent_state(sock), 0);
	v->fail[0] = '\0';
	assert_int_equal(agent_ask(sock, FERRY_PROTO_RESUME, NULL, 0, -1), 0);
	assert_int_equal(agent_state(sock), FERRY_PROTO_STATE_RUNNING);
	close(sock);
	port_vmm_destroy(v);

	v = port_vmm_serve(PORT_VMM_BARE | FERRY_PORT_INCOMING);
	sock = agent_attach(v->path);
	assert_int_equal(direct_io(sock), 1);
	assert_int_equal(agent_state(sock), FERRY_PROTO_STATE_INCOMING);
	assert_int_equal(agent_ask(sock, FERRY_PROTO_LOAD, NULL, 0, loadable), 0);
	assert_int_equal(agent_state(sock), FERRY_PROTO_STATE_LOADED);
	assert_int_equal(agent_ask(sock, FERRY_PROTO_RUN, NULL, 0, -1), 0);
	assert_int_equal(agent_state(sock), FERRY_PROTO_STATE_RUNNING);
	close(loadable);
	close(sock);
	port_vmm_destroy(v);
}

static void the_log_is_synced(void **state)
{
	struct port_vmm *v = port_vmm_serve(PORT_VMM_LOG);
	int sock = agent_attach(v->path), log = memory_file(32, F_SEAL_SHRINK | F_SEAL_GROW), bad;
	uint64_t words[4];

	(void)state;
	bad = memory_file(32, 0); /* could shrink under the VMM */
	assert_int_equal(agent_ask(sock, FERRY_PROTO_LOG_START, NULL, 0, bad), -EINVAL);
	close(bad);
	bad = memory_file(40, F_SEAL_SHRINK | F_SEAL_GROW);
	assert_int_equal(agent_ask(sock, FERRY_PROTO_LOG_START, NULL, 0, bad), -EINVAL);
	agent_says("40 bytes, wanted 32");
	close(bad);
	assert_int_equal(agent_ask(sock, FERRY_PROTO_LOG_START, NULL, 0, log), 0);
	assert_int_equal(agent_ask(sock, FERRY_PROTO_LOG_START, NULL, 0, log), -EALREADY);
	assert_int_equal(agent_state(sock), FERRY_PROTO_STATE_RUNNING | FERRY_PROTO_STATE_LOG);
	assert_int_equal(agent_ask(sock, FERRY_PROTO_LOG_SYNC, NULL, 0, -1), 0);
	assert_int_equal(agent_ask(sock, FERRY_PROTO_LOG_SYNC, NULL, 0, -1), 0);
	assert_int_equal(pread(log, words, sizeof(words), 0), sizeof(words));
	assert_true(words[0] == 3 && words[1] == 1ull << 63 && !words[2] && !words[3]);
	assert_int_equal(agent_ask(sock, FERRY_PROTO_LOG_STOP, NULL, 0, -1), 0);
	assert_false(v->logging);
	assert_int_equal(agent_ask(sock, FERRY_PROTO_LOG_STOP, NULL, 0, -1), 0);
	close(log);
	close(sock);
	port_vmm_destroy(v);
}

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
			here = start >= (uintptr_t)v->ram &&
			       end <= (uintptr_t)v->ram + PORT_VMM_BYTES;
		else if (here && !strncmp(line, "VmFlags:", 8))
			found += !!strstr(line, what);
	}
	fclose(f);
	return found;
}

/* Any descriptor of the same file will do to see the exchange. */
static void views_come_and_go(void **state)
{
	struct port_vmm *v = port_vmm_serve(0);
	struct ferry_proto_view view = { .block = 1, .map = FERRY_PROTO_MAP_DONTDUMP |
					 FERRY_PROTO_MAP_HUGEPAGE };
	int sock = agent_attach(v->path), other = memory_file(PORT_VMM_BYTES, 0), i;
	uint8_t body[FERRY_PROTO_MAX_BODY];
	size_t len = ferry_proto_view_encode(&view, body);

	(void)state;
	memset(v->ram, 0x5a, PORT_VMM_BYTES);
	assert_int_equal(agent_ask(sock, FERRY_PROTO_VIEW, body, len, other), -EINVAL);
	agent_says("no tracker of block 'high'");
	assert_int_equal(agent_ask(sock, FERRY_PROTO_VIEW, body, len, v->fd), 0);
	assert_int_equal(agent_ask(sock, FERRY_PROTO_VIEW, body, len, v->fd), -EALREADY);
	assert_true(agent_state(sock) & FERRY_PROTO_STATE_VIEW);
	assert_int_equal(plain_file_maps(v, " dd"), 1);
	assert_int_equal(plain_file_maps(v, " hg"), 0);
	for (i = 0; i < (int)PORT_VMM_BYTES; i += 4096)
		assert_int_equal(v->ram[i], 0x5a);
	v->ram[PORT_VMM_BYTES - 1] = 1;
	assert_int_equal(agent_ask(sock, FERRY_PROTO_RESET, NULL, 0, -1), 0);
	assert_false(agent_state(sock) & FERRY_PROTO_STATE_VIEW);
	assert_int_equal(plain_file_maps(v, " hg"), 1);
	assert_int_equal(v->ram[PORT_VMM_BYTES - 1], 1);
	view.block = 2;
	ferry_proto_view_encode(&view, body);
	assert_int_equal(agent_ask(sock, FERRY_PROTO_VIEW, body, len, v->fd), -ENOENT);
	close(other);
	close(sock);
	port_vmm_destroy(v);
}

static void all_is_taken_back_at_the_end(void **state)
{
	struct port_vmm *v = port_vmm_serve(PORT_VMM_LOG);
	int sock = agent_attach(v->path), log = memory_file(32, F_SEAL_SHRINK | F_SEAL_GROW);
	struct ferry_proto_view view = { .block = 0 };
	uint8_t body[FERRY_PROTO_MAX_BODY];
	size_t len = ferry_proto_view_encode(&view, body);

	(void)state;
	assert_int_equal(agent_ask(sock, FERRY_PROTO_LOG_START, NULL, 0, log), 0);
	assert_int_equal(agent_ask(sock, FERRY_PROTO_VIEW, body, len, v->fd), 0);
	assert_int_equal(agent_ask_u32(sock, FERRY_PROTO_THROTTLE, 40), 0);
	assert_int_equal(agent_ask(sock, FERRY_PROTO_PAUSE, NULL, 0, -1), 0);
	assert_int_equal(agent_ask_u32(sock, FERRY_PROTO_QUIESCE, 1), 0);
	v->calls[0] = 0;
	agent_hang_up(sock);
	sock = agent_attach(v->path);
	assert_false(v->logging);
	assert_string_equal(v->calls, "unlog unthrottle ");
	/* Not the run state, and not what another VMM may own by now. */
	assert_int_equal(agent_state(sock), FERRY_PROTO_STATE_QUIESCED);
	close(log);
	close(sock);
	port_vmm_destroy(v);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(describes_itself),
		cmocka_unit_test(a_source_is_saved_and_resumed),
		cmocka_unit_test(a_destination_is_loaded_and_run),
		cmocka_unit_test(a_failed_load_leaves_only_quit),
		cmocka_unit_test(failures_are_told),
		cmocka_unit_test(what_is_not_offered_is_refused),
		cmocka_unit_test(the_library_knows_who_runs),
		cmocka_unit_test(the_log_is_synced),
		cmocka_unit_test(views_come_and_go),
		cmocka_unit_test(all_is_taken_back_at_the_end),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
