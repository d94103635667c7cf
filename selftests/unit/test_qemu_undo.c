// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What was done to a real QEMU is undone: after every step, from the text that is left of a
 * killed worker, and at a destination before and after the load.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>

#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/io.h"
#include "qemu_rig.h"

static void source_undo_at_every_step(void **state)
{
	struct ferry_error err = { 0 };
	const struct how how = { 0 };
	struct vm vm;
	int steps;

	(void)state;
	vm_start(&vm, &how);
	for (steps = 0; steps <= 11; steps++) {
		struct record record = { "", 0 };
		struct ferry_guest_host host = { rig_record_write, NULL, &record };
		struct ferry_guest *guest = vm_open_guest(&vm, FERRY_GUEST_SOURCE, &host, NULL, -1);

		rig_source_steps(guest, steps % 6);
		if (steps >= 6 && record.writes) {
			/* From the text alone. */
			guest->ops->close(guest);
			guest = vm_open_guest(&vm, FERRY_GUEST_SOURCE, &host, record.undo, -1);
		}
		OK(guest->ops->undo(guest, true, &err));
		vm_assert_put_back(&vm);
		vm_assert_status(&vm, "running");
		OK(guest->ops->undo(guest, true, &err));
		guest->ops->close(guest);
	}
	vm_stop(&vm);
}

static void strays_are_turned_off_and_come_back(void **state)
{
	struct ferry_error err = { 0 };
	const struct how how = { 0 };
	struct json_object *args = json_tokener_parse(
		"{\"capabilities\":[{\"capability\":\"multifd\",\"state\":true},"
		"{\"capability\":\"auto-converge\",\"state\":true}]}");
	struct ferry_guest *guest;
	struct vm vm;
	char *now;

	(void)state;
	vm_start(&vm, &how);
	OK(ferry_qmp_command(vm.spy, "migrate-set-capabilities", args, -1, NULL, &err));
	free(vm.before);
	vm.before = vm_look(&vm);
	guest = vm_open(&vm, FERRY_GUEST_SOURCE);
	OK(guest->ops->prepare(guest, &err));
	now = vm_look(&vm);
	assert_string_not_equal(now, vm.before);
	assert_null(strstr(now, "\"state\": true, \"capability\": \"multifd\""));
	assert_non_null(strstr(now, "\"state\": true, \"capability\": \"x-ignore-shared\""));
	free(now);
	OK(guest->ops->prepare(guest, &err)); /* again: the old values stay noted */
	OK(guest->ops->undo(guest, true, &err));
	vm_assert_put_back(&vm);
	guest->ops->close(guest);
	vm_stop(&vm);
}

/* Before the load an unwanted destination goes on waiting, after it it is ended. */
static void destination_undo(void **state)
{
	struct ferry_error err = { 0 };
	struct ferry_guest *from, *to;
	struct how how = { 0 };
	uint8_t *blob;
	struct vm a, b;
	size_t bytes;
	int uffd;

	(void)state;
	vm_start(&a, &how);
	how.incoming = true;
	vm_start(&b, &how);
	from = vm_open(&a, FERRY_GUEST_SOURCE);
	rig_source_steps(from, 3);
	OK(from->ops->save(from, STATE_MAX, &blob, &bytes, &err));
	to = vm_open(&b, FERRY_GUEST_DESTINATION);
	OK(to->ops->prepare(to, &err));
	OK(to->ops->userfaultfd(to, &uffd, &err));
	close(uffd);
	OK(to->ops->undo(to, false, &err));
	vm_assert_put_back(&b);
	vm_assert_status(&b, "inmigrate");
	OK(to->ops->prepare(to, &err));
	vm_copy_ram(&a, &b);
	OK(to->ops->load(to, blob, bytes, &err));
	OK(to->ops->undo(to, false, &err));
	assert_true(vm_ended(&b));
	OK(from->ops->undo(from, true, &err));
	vm_assert_status(&a, "running");
	vm_end_pair(from, &a, to, &b, blob);
}

/* What the holder (guardian) shares with the worker that will be killed. */
struct shared {
	struct record record;
	int rounds;
};

static int hold_send(void *ctx, const char *name, int fd, struct ferry_error *err)
{
	(void)err;
	assert_string_equal(name, "guest");
	return ferry_io_send_fds(*(int *)ctx, "h", 1, &fd, 1, UINT64_MAX);
}

struct worker_host {
	struct shared *shared;
	int sock;
};

static int worker_journal(void *ctx, const char *undo, struct ferry_error *err)
{
	return rig_record_write(&((struct worker_host *)ctx)->shared->record, undo, err);
}

static int worker_hold(void *ctx, const char *name, int fd, struct ferry_error *err)
{
	return hold_send(&((struct worker_host *)ctx)->sock, name, fd, err);
}

/* Migrate for ever, to be killed anywhere. */
static void worker_main(struct vm *vm, struct shared *shared, int sock)
{
	struct ferry_error err = { 0 };
	struct worker_host ctx = { shared, sock };
	struct ferry_guest_host host = { worker_journal, worker_hold, &ctx };
	struct ferry_guest *guest = vm_open_guest(vm, FERRY_GUEST_SOURCE, &host, NULL, -1);
	struct ferry_dirty_views views;

	for (;;) {
		rig_source_steps(guest, 3);
		rig_put_views(guest);
		shared->rounds++;
		guest->ops->views(guest, &views);
		OK(views.unmap(views.ctx, &err));
		OK(guest->ops->resume(guest, &err));
	}
}

static void another_process_takes_over(void **state)
{
	struct ferry_error err = { 0 };
	struct shared *shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE,
				     MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	const struct how how = { 0 };
	struct vm vm;
	int i;

	(void)state;
	vm_start(&vm, &how);
	for (i = 0; i < 12; i++) {
		struct ferry_guest_host host = { rig_record_write, NULL, &shared->record };
		struct ferry_guest *guest;
		int pair[2], held = -1;
		unsigned int n = 1;
		pid_t worker;
		char c;

		memset(shared, 0, sizeof(*shared));
		assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
		worker = fork();
		if (!worker) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			worker_main(&vm, shared, pair[1]);
		}
		assert_int_equal(ferry_io_recv_fds(pair[0], &c, 1, &held, &n,
						   ferry_clock_in_ms(10000)), 1);
		assert_int_equal(n, 1);
		while (!__atomic_load_n(&shared->record.writes, __ATOMIC_RELAXED))
			ferry_clock_sleep_ns(100000);
		ferry_clock_sleep_ns((uint64_t)i * 1300000);
		kill(worker, SIGKILL);
		waitpid(worker, NULL, 0);
		guest = vm_open_guest(&vm, FERRY_GUEST_SOURCE, &host, shared->record.undo, held);
		OK(guest->ops->undo(guest, true, &err));
		vm_assert_put_back(&vm);
		vm_assert_status(&vm, "running");
		guest->ops->close(guest);
		close(pair[0]);
		close(pair[1]);
	}
	vm_stop(&vm);
	munmap(shared, sizeof(*shared));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(source_undo_at_every_step),
		cmocka_unit_test(strays_are_turned_off_and_come_back),
		cmocka_unit_test(destination_undo),
		cmocka_unit_test(another_process_takes_over),
	};

	if (!rig_have_qemu())
		return 0;
	return cmocka_run_group_tests(tests, NULL, NULL);
}
