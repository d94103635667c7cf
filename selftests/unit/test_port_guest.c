// SPDX-License-Identifier: GPL-2.0-or-later
/* The agent's port driver against a VMM with libferry in a process of its own. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "dirty/dirty.h"
#include "guest/guest.h"
#include "port_vmm.h"

static char journal[4096];
static int held = -1;
static struct ferry_error err;

static int take_journal(void *ctx, const char *undo, struct ferry_error *e)
{
	(void)ctx;
	(void)e;
	snprintf(journal, sizeof(journal), "%s", undo);
	return 0;
}

static int take_fd(void *ctx, const char *name, int fd, struct ferry_error *e)
{
	(void)ctx;
	(void)e;
	assert_string_equal(name, "guest");
	if (held >= 0)
		close(held);
	held = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	return 0;
}

static void drop_held(void)
{
	if (held >= 0)
		close(held);
	held = -1;
}

static int try_open(const struct port_vmm *v, enum ferry_guest_role role, const char *undo,
		    int held_fd, unsigned int timeout_ms, struct ferry_guest **g)
{
	static const struct ferry_guest_host host = { .journal = take_journal, .hold = take_fd };
	char spec[100];
	struct ferry_guest_open_params params = {
		.spec = spec, .host = &host, .role = role, .timeout_ms = timeout_ms, .undo = undo,
		.held_fd = held_fd,
	};

	snprintf(spec, sizeof(spec), "port:%s", v->path);
	memset(&err, 0, sizeof(err));
	return ferry_guest_open(&params, g, &err);
}

static struct ferry_guest *open_guest(const struct port_vmm *v, enum ferry_guest_role role)
{
	struct ferry_guest *g;
	int r;

	journal[0] = 0;
	r = try_open(v, role, NULL, -1, 20000, &g);
	if (r)
		fail_msg("open: %s", err.text);
	return g;
}

static void close_guest(struct ferry_guest *g)
{
	g->ops->close(g);
	drop_held();
}

static void says(const char *words)
{
	if (!strstr(err.text, words))
		fail_msg("\"%s\" is not in \"%s\"", words, err.text);
}

#define OK(call) do { int r_ = (call); if (r_) fail_msg(#call ": %d %s", r_, err.text); } while (0)

static void who_it_is(void **state)
{
	struct port_vmm *v = port_vmm_fork(0);
	struct ferry_guest *g = open_guest(v, FERRY_GUEST_SOURCE), *second;
	char text[128];

	(void)state;
	assert_int_equal(g->pid, v->pid);
	assert_string_equal(g->version, "test/1");
	assert_string_equal(ferry_guest_kind(g), "port:test/1");
	ferry_guest_kind_text(ferry_guest_kind(g), text, sizeof(text));
	assert_string_equal(text, "a VMM of kind 'test/1' (port:)");
	ferry_guest_kind_text("qmp", text, sizeof(text));
	assert_string_equal(text, "a QEMU (qmp:)");
	assert_int_equal(try_open(v, FERRY_GUEST_SOURCE, NULL, -1, 20000, &second), -EBUSY);
	says("another ferry (pid ");
	close_guest(g);
	port_vmm_reap(v);
}

static void what_it_is_not(void **state)
{
	int sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	struct port_vmm v = { .pid = 0 };
	struct ferry_guest *g;

	(void)state;
	snprintf(v.path, sizeof(v.path), "/tmp/ferry-port-not-%d", (int)getpid());
	assert_int_equal(try_open(&v, FERRY_GUEST_SOURCE, NULL, -1, 1000, &g), -ENOENT);
	says("no VMM listens there");
	/* A QMP socket, say. */
	strcpy(addr.sun_path, v.path);
	assert_int_equal(bind(sock, (struct sockaddr *)&addr, sizeof(addr)), 0);
	assert_int_equal(listen(sock, 1), 0);
	assert_int_equal(try_open(&v, FERRY_GUEST_SOURCE, NULL, -1, 1000, &g), -EPROTOTYPE);
	says("type qmp:/tmp/ferry-port-not-");
	close(sock);
	assert_int_equal(try_open(&v, FERRY_GUEST_SOURCE, NULL, -1, 1000, &g), -ECONNREFUSED);
	unlink(v.path);
}

static void describes_ram(void **state)
{
	struct port_vmm *v = port_vmm_fork(0);
	struct ferry_guest *g = open_guest(v, FERRY_GUEST_SOURCE);
	struct ferry_ram ram;

	(void)state;
	ferry_ram_init(&ram);
	OK(g->ops->check(g, &err));
	OK(g->ops->describe(g, &ram, &err));
	assert_int_equal(ram.count, 2);
	assert_string_equal(ram.blocks[1].name, "high");
	assert_int_equal(ram.blocks[1].size_bytes, PORT_VMM_BYTES / 2);
	assert_int_equal(ram.blocks[1].fd_off_bytes, PORT_VMM_BYTES / 2);
	OK(ferry_ram_map(&ram, true, &err));
	ferry_ram_free(&ram);
	strcpy(v->fail, "check");
	assert_int_equal(g->ops->check(g, &err), -EREMOTEIO);
	says("says: check was told to fail");
	close_guest(g);
	port_vmm_reap(v);
}

static void strangers_are_refused(void **state)
{
	struct port_vmm *v = port_vmm_fork(0);
	struct ferry_guest *g = open_guest(v, FERRY_GUEST_SOURCE);
	char name[32];
	pid_t pid;
	int up[2], status;

	(void)state;
	assert_int_equal(pipe(up), 0);
	pid = fork();
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (mmap(NULL, 4096, PROT_READ, MAP_SHARED, v->fd, 0) == MAP_FAILED ||
		    write(up[1], "x", 1) != 1)
			_exit(1);
		for (;;)
			pause();
	}
	assert_int_equal(read(up[0], name, 1), 1);
	assert_int_equal(g->ops->check(g, &err), -EBUSY);
	snprintf(name, sizeof(name), "pid %d ", (int)pid);
	says(name);
	says("ferry_port_join");
	kill(pid, SIGKILL);
	waitpid(pid, &status, 0);
	OK(g->ops->check(g, &err));
	close(up[0]);
	close(up[1]);
	close_guest(g);
	port_vmm_reap(v);
}

static void roles_are_checked(void **state)
{
	struct port_vmm *v = port_vmm_fork(0);
	struct ferry_guest *g = open_guest(v, FERRY_GUEST_DESTINATION);

	(void)state;
	assert_int_equal(g->ops->check(g, &err), -EINVAL);
	says("FERRY_PORT_INCOMING");
	/* It was never ours: undo does not end it. */
	OK(g->ops->undo(g, false, &err));
	assert_int_equal(kill(v->pid, 0), 0);
	assert_int_equal(g->ops->running(g, &err), 1);
	close_guest(g);
	port_vmm_reap(v);
	v = port_vmm_fork(FERRY_PORT_INCOMING);
	g = open_guest(v, FERRY_GUEST_SOURCE);
	assert_int_equal(g->ops->check(g, &err), -EBUSY);
	says("is a destination");
	close_guest(g);
	port_vmm_reap(v);
}

static void source_moves_and_comes_back(void **state)
{
	struct port_vmm *v = port_vmm_fork(0);
	struct ferry_guest *g = open_guest(v, FERRY_GUEST_SOURCE);
	uint8_t *saved;
	uint64_t device;
	size_t bytes;

	(void)state;
	assert_string_equal(journal, "");
	OK(g->ops->prepare(g, &err));
	assert_non_null(strstr(journal, "\"driver\":\"port\""));
	OK(g->ops->pause(g, &err));
	assert_non_null(strstr(journal, "\"was\":\"running\""));
	OK(g->ops->save(g, 1000, &saved, &bytes, &err));
	assert_int_equal(bytes, 8);
	memcpy(&device, saved, 8);
	assert_int_equal(device, 0x1234567);
	free(saved);
	v->state_extra = 1000;
	assert_int_equal(g->ops->save(g, 1000, &saved, &bytes, &err), -EFBIG);
	assert_null(saved);
	strcpy(v->fail, "save");
	assert_int_equal(g->ops->save(g, 1000, &saved, &bytes, &err), -EREMOTEIO);
	OK(g->ops->undo(g, true, &err));
	assert_int_equal(v->running, 1);
	assert_null(strstr(journal, "was"));
	/* A person pauses it: then it is not ours to resume. */
	v->running = 0;
	OK(g->ops->pause(g, &err));
	assert_non_null(strstr(journal, "\"was\":\"paused\""));
	OK(g->ops->undo(g, true, &err));
	assert_int_equal(v->running, 0);
	close_guest(g);
	port_vmm_reap(v);
}

static void undone_by_another_process(void **state)
{
	struct port_vmm *v = port_vmm_fork(0);
	struct ferry_guest *g = open_guest(v, FERRY_GUEST_SOURCE);
	char text[4096];
	int i;

	(void)state;
	for (i = 0; i < 2; i++) {
		OK(g->ops->prepare(g, &err));
		OK(g->ops->throttle(g, 30, &err));
		OK(g->ops->pause(g, &err));
		assert_int_equal(v->percent, 30);
		strcpy(text, journal);
		/* Once with the connection the guardian held, once with a new one. */
		g->ops->close(g);
		if (i)
			drop_held();
		OK(try_open(v, FERRY_GUEST_SOURCE, text, held, 20000, &g));
		OK(g->ops->undo(g, true, &err));
		assert_int_equal(v->running, 1);
		assert_int_equal(v->percent, 0);
	}
	g->ops->close(g);
	drop_held();
	/* Another role's text, and damage. */
	assert_int_equal(try_open(v, FERRY_GUEST_DESTINATION, text, -1, 20000, &g), -EPROTO);
	assert_int_equal(try_open(v, FERRY_GUEST_SOURCE, "{", -1, 20000, &g), -EPROTO);
	says("damaged");
	port_vmm_reap(v);
	/* It has ended: nothing to undo. */
	v = port_vmm_create(0);
	OK(try_open(v, FERRY_GUEST_SOURCE, text, -1, 20000, &g));
	OK(g->ops->undo(g, true, &err));
	assert_int_equal(g->ops->running(g, &err), -ESRCH);
	close_guest(g);
	port_vmm_destroy(v);
}

static void destination_loads_and_runs(void **state)
{
	struct port_vmm *v = port_vmm_fork(FERRY_PORT_INCOMING);
	struct ferry_guest *g = open_guest(v, FERRY_GUEST_DESTINATION);
	uint64_t device = 77;

	(void)state;
	OK(g->ops->check(g, &err));
	OK(g->ops->prepare(g, &err));
	assert_int_equal(g->ops->run(g, &err), -EREMOTEIO);
	OK(g->ops->load(g, (uint8_t *)&device, 8, &err));
	assert_int_equal(v->state, 77);
	strcpy(v->fail, "run");
	assert_int_equal(g->ops->run(g, &err), -EREMOTEIO);
	v->fail[0] = 0;
	OK(g->ops->run(g, &err));
	OK(g->ops->run(g, &err));
	assert_int_equal(g->ops->running(g, &err), 1);
	OK(g->ops->undo(g, true, &err));
	assert_int_equal(kill(v->pid, 0), 0);
	close_guest(g);
	port_vmm_reap(v);
}

static void an_unwanted_copy_is_ended(void **state)
{
	unsigned int flags[] = { 0, PORT_VMM_STAYS }, i;

	(void)state;
	for (i = 0; i < 2; i++) {
		struct port_vmm *v = port_vmm_fork(FERRY_PORT_INCOMING | flags[i]);
		struct ferry_guest *g;
		uint64_t device = 1;
		int status;

		journal[0] = 0;
		/* One that does not quit is given less time here. */
		OK(try_open(v, FERRY_GUEST_DESTINATION, NULL, -1, 2000, &g));
		OK(g->ops->check(g, &err));
		OK(g->ops->prepare(g, &err));
		OK(g->ops->undo(g, false, &err));
		assert_int_equal(kill(v->pid, 0), 0);
		OK(g->ops->load(g, (uint8_t *)&device, 8, &err));
		OK(g->ops->undo(g, false, &err));
		assert_non_null(strstr(v->calls, "quit"));
		status = port_vmm_reap(v);
		assert_true(i ? WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL :
				WIFEXITED(status) && !WEXITSTATUS(status));
		assert_int_equal(g->ops->run(g, &err), -ESRCH);
		close_guest(g);
	}
}

static void a_vmm_that_hangs_or_dies(void **state)
{
	struct port_vmm *v = port_vmm_fork(PORT_VMM_HANGS);
	struct ferry_guest *g;
	uint8_t *saved;
	size_t bytes;

	(void)state;
	OK(try_open(v, FERRY_GUEST_SOURCE, NULL, -1, 300, &g));
	OK(g->ops->pause(g, &err));
	assert_int_equal(g->ops->save(g, 1000, &saved, &bytes, &err), -ETIMEDOUT);
	says("does not answer");
	assert_int_equal(g->ops->running(g, &err), -ETIMEDOUT);
	kill(v->pid, SIGKILL);
	assert_int_equal(g->ops->resume(g, &err), -ESRCH);
	says("has gone");
	OK(g->ops->quit(g, &err));
	OK(g->ops->undo(g, true, &err));
	port_vmm_reap(v);
	close_guest(g);
}

/* A VMM without a way of its own to end. */
static void quit_is_a_signal(void **state)
{
	struct port_vmm *v = port_vmm_fork(PORT_VMM_BARE);
	struct ferry_guest *g = open_guest(v, FERRY_GUEST_SOURCE);
	siginfo_t info = { 0 };

	(void)state;
	OK(g->ops->quit(g, &err));
	assert_int_equal(waitid(P_PID, (id_t)v->pid, &info, WEXITED | WNOWAIT), 0);
	assert_int_equal(info.si_code, CLD_KILLED);
	assert_int_equal(info.si_status, SIGTERM);
	port_vmm_reap(v);
	close_guest(g);
}

static void direct_io_is_told(void **state)
{
	struct port_vmm *v = port_vmm_fork(0), *bare = port_vmm_fork(PORT_VMM_BARE);
	struct ferry_guest *g = open_guest(v, FERRY_GUEST_SOURCE);
	char why[64];

	(void)state;
	assert_int_equal(g->ops->direct_io(g, why, sizeof(why), &err), 0);
	v->direct = true;
	assert_int_equal(g->ops->direct_io(g, why, sizeof(why), &err), 1);
	assert_string_equal(why, "disk?0");
	close_guest(g);
	g = open_guest(bare, FERRY_GUEST_SOURCE);
	assert_int_equal(g->ops->direct_io(g, why, sizeof(why), &err), 1);
	assert_int_equal(g->ops->throttle(g, 0, &err), -EOPNOTSUPP);
	says("offers no throttle");
	close_guest(g);
	port_vmm_reap(v);
	port_vmm_reap(bare);
}

/* ---- trackers ---- */

static struct ferry_dirty_log log_of(struct ferry_guest *g)
{
	struct ferry_dirty_log log;

	g->ops->log(g, &log);
	return log;
}

static void the_log_is_a_tracker(void **state)
{
	struct port_vmm *v = port_vmm_fork(PORT_VMM_LOG | FERRY_PORT_LOG_PROCESS);
	struct ferry_guest *g = open_guest(v, FERRY_GUEST_SOURCE);
	struct ferry_dirty_log log = log_of(g);
	struct ferry_dirty_target target = { .uffd = -1, .log = &log };
	const struct ferry_dirty_ops *ops;
	struct ferry_bitmap pages;
	struct ferry_dirty *dirty;
	struct ferry_ram ram;

	(void)state;
	ferry_ram_init(&ram);
	OK(g->ops->check(g, &err));
	OK(g->ops->describe(g, &ram, &err));
	OK(g->ops->prepare(g, &err));
	target.ram = &ram;
	target.pid = g->pid;
	OK(ferry_dirty_choose("port", &target, &ops, &err));
	OK(ops->start(&target, &dirty, &err));
	assert_true(v->logging);
	assert_false(dirty->sees_pinned_dma);
	OK(ferry_bitmap_init(&pages, &ram));
	OK(ops->collect(dirty, &pages, &err));
	assert_int_equal(ferry_bitmap_count(&pages), 3);
	assert_true(ferry_bitmap_test(&pages, 0, 0) && ferry_bitmap_test(&pages, 0, 1) &&
		    ferry_bitmap_test(&pages, 0, 127));
	strcpy(v->fail, "sync");
	assert_int_equal(ops->collect(dirty, &pages, &err), -EREMOTEIO);
	ops->stop(dirty);
	assert_false(v->logging);
	ferry_bitmap_free(&pages);
	ferry_ram_free(&ram);
	close_guest(g);
	port_vmm_reap(v);
}

static void an_incomplete_log_is_refused(void **state)
{
	const struct ferry_ram none = { 0 };
	struct ferry_dirty_log log = { 0 };
	struct ferry_dirty_target target = { .ram = &none, .uffd = -1, .pid = getpid() };
	const struct ferry_dirty_ops *ops;

	(void)state;
	assert_int_equal(ferry_dirty_choose("port", &target, &ops, &err), -EOPNOTSUPP);
	says("libferry");
	target.log = &log;
	assert_int_equal(ferry_dirty_choose("port", &target, &ops, &err), -EOPNOTSUPP);
	says("offers no dirty log");
	log.offered = true;
	assert_int_equal(ferry_dirty_choose("port", &target, &ops, &err), -EOPNOTSUPP);
	says("FERRY_PORT_LOG_PROCESS");
	log.sees_process = true;
	OK(ferry_dirty_choose("port", &target, &ops, &err));
	log.members = 2;
	assert_int_equal(ferry_dirty_choose("port", &target, &ops, &err), -EOPNOTSUPP);
	says("FERRY_PORT_LOG_MEMBERS");
	assert_int_equal(ferry_dirty_choose("pagemap", &target, &ops, &err), -EOPNOTSUPP);
	says("2 further processes");
	log.sees_members = true;
	OK(ferry_dirty_choose("port", &target, &ops, &err));
}

static void a_userfaultfd_of_its_memory(void **state)
{
	struct port_vmm *v = port_vmm_fork(0);
	struct ferry_guest *g = open_guest(v, FERRY_GUEST_SOURCE);
	int uffd = -1, r = g->ops->userfaultfd(g, &uffd, &err);

	(void)state;
	if (r == -EREMOTEIO) {
		print_message("no userfaultfd here: %s\n", err.text);
		close_guest(g);
		port_vmm_reap(v);
		skip();
	}
	assert_int_equal(r, 0);
	assert_true(fcntl(uffd, F_GETFD) & FD_CLOEXEC);
	close(uffd);
	close_guest(g);
	port_vmm_reap(v);
}

/* A member: a process of its own that maps the lower half. Return: its pid once it joined. */
static pid_t fork_member(const struct port_vmm *v, int *up)
{
	pid_t pid = fork();
	char byte;

	if (pid) {
		assert_int_equal(read(up[0], &byte, 1), 1);
		return pid;
	}
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	struct ferry_port_ram ram = { .struct_size = sizeof(ram), .name = "low", .fd = v->fd,
				      .bytes = PORT_VMM_BYTES / 2 };
	struct ferry_port *port;

	ram.addr = mmap(NULL, ram.bytes, PROT_READ | PROT_WRITE, MAP_SHARED, v->fd, 0);
	if (ferry_port_create(NULL, NULL, 0, &port) || ferry_port_add_ram(port, &ram) ||
	    ferry_port_join(port, v->path) || ferry_port_start(port) || write(up[1], "x", 1) != 1)
		_exit(1);
	for (;;)
		pause();
}

static void members_are_part_of_it(void **state)
{
	struct port_vmm *v = port_vmm_fork(0);
	struct ferry_dirty_views views;
	struct ferry_guest *g;
	struct ferry_ram ram;
	char why[64], name[32];
	int up[2], fds[2], status;
	pid_t pid;

	(void)state;
	assert_int_equal(pipe(up), 0);
	pid = fork_member(v, up);
	g = open_guest(v, FERRY_GUEST_SOURCE);
	OK(g->ops->check(g, &err)); /* no stranger */
	OK(g->ops->prepare(g, &err));
	assert_int_equal(log_of(g).members, 1);
	assert_int_equal(g->ops->direct_io(g, why, sizeof(why), &err), 1);
	snprintf(name, sizeof(name), "pid %d ", (int)pid);
	assert_non_null(strstr(why, name));
	/* Views go into both processes; any descriptor of the file does for a tracker here. */
	ferry_ram_init(&ram);
	OK(g->ops->describe(g, &ram, &err));
	fds[0] = ram.blocks[0].fd;
	fds[1] = v->fd;
	g->ops->views(g, &views);
	OK(views.map(views.ctx, &ram, fds, &err));
	/* Plain as they are, to /proc they are what they were: of one process the sum counts. */
	assert_int_equal(views.count(views.ctx, &err), -EBUSY);
	says(name);
	OK(views.unmap(views.ctx, &err));
	/* A descriptor of something else: none is left in. */
	fds[1] = up[0];
	assert_int_equal(views.map(views.ctx, &ram, fds, &err), -EREMOTEIO);
	says("no tracker of block 'high'");
	fds[1] = v->fd;
	OK(views.map(views.ctx, &ram, fds, &err));
	kill(pid, SIGKILL);
	waitpid(pid, &status, 0);
	OK(views.unmap(views.ctx, &err));
	ferry_ram_free(&ram);
	close_guest(g);
	close(up[0]);
	close(up[1]);
	port_vmm_reap(v);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(who_it_is),
		cmocka_unit_test(what_it_is_not),
		cmocka_unit_test(describes_ram),
		cmocka_unit_test(strangers_are_refused),
		cmocka_unit_test(roles_are_checked),
		cmocka_unit_test(source_moves_and_comes_back),
		cmocka_unit_test(undone_by_another_process),
		cmocka_unit_test(destination_loads_and_runs),
		cmocka_unit_test(an_unwanted_copy_is_ended),
		cmocka_unit_test(a_vmm_that_hangs_or_dies),
		cmocka_unit_test(quit_is_a_signal),
		cmocka_unit_test(direct_io_is_told),
		cmocka_unit_test(the_log_is_a_tracker),
		cmocka_unit_test(an_incomplete_log_is_refused),
		cmocka_unit_test(a_userfaultfd_of_its_memory),
		cmocka_unit_test(members_are_part_of_it),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
