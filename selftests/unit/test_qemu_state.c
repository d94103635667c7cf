// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Device state between two real QEMUs: saved, loaded, both at once, and what becomes of the
 * guest and its disk when either side fails.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "qemu_rig.h"

/* @how is of both but for the waiting. */
static void start_pair(struct vm *a, struct vm *b, const struct how *how,
		       struct ferry_guest **from, struct ferry_guest **to)
{
	struct how waiting = *how;

	vm_start(a, how);
	waiting.incoming = true;
	vm_start(b, &waiting);
	*from = vm_open(a, FERRY_GUEST_SOURCE);
	*to = vm_open(b, FERRY_GUEST_DESTINATION);
}

static void state_moves_and_the_guest_runs(void **state)
{
	struct ferry_error err = { 0 };
	struct ferry_guest *from, *to;
	const struct how how = { 0 };
	uint8_t *blob;
	struct vm a, b;
	uint64_t t[3];
	size_t bytes;

	(void)state;
	start_pair(&a, &b, &how, &from, &to);
	OK(from->ops->check(from, &err));
	OK(to->ops->check(to, &err));
	OK(from->ops->prepare(from, &err));
	OK(to->ops->prepare(to, &err));
	assert_int_equal(from->ops->running(from, NULL), 1);
	OK(from->ops->pause(from, &err));
	t[0] = ferry_clock_ns();
	OK(from->ops->save(from, STATE_MAX, &blob, &bytes, &err));
	t[1] = ferry_clock_ns();
	vm_copy_ram(&a, &b);
	t[2] = ferry_clock_ns();
	OK(to->ops->load(to, blob, bytes, &err));
	print_message("%s: %zu bytes of device state, save %.2f ms, load %.2f ms\n", from->version,
		      bytes, (double)(t[1] - t[0]) / 1e6,
		      (double)(ferry_clock_ns() - t[2]) / 1e6);
	assert_true(bytes > 10000 && bytes < 16 << 20);
	vm_assert_status(&b, "paused");
	OK(to->ops->run(to, &err));
	OK(to->ops->run(to, &err));
	to->ops->announce(to);
	vm_assert_status(&b, "running");
	vm_assert_status(&a, "postmigrate");
	OK(to->ops->undo(to, true, &err));
	vm_assert_put_back(&b);
	vm_assert_status(&b, "running");
	OK(from->ops->undo(from, false, &err));
	vm_assert_put_back(&a);
	OK(from->ops->quit(from, &err));
	assert_true(vm_ended(&a));
	vm_end_pair(from, &a, to, &b, blob);
}

/* With this option a stopped guest's stream says nothing of "stopped". */
static void a_stopped_guest_never_starts_by_itself(void **state)
{
	const struct how how = { .extra = { "-global", "migration.store-global-state=off" } };
	struct ferry_error err = { 0 };
	struct ferry_guest *from, *to;
	uint8_t *blob;
	struct vm a, b;
	size_t bytes;

	(void)state;
	start_pair(&a, &b, &how, &from, &to);
	OK(from->ops->prepare(from, &err));
	OK(to->ops->prepare(to, &err));
	OK(from->ops->pause(from, &err));
	OK(from->ops->save(from, STATE_MAX, &blob, &bytes, &err));
	vm_copy_ram(&a, &b);
	OK(to->ops->load(to, blob, bytes, &err));
	assert_int_equal(to->ops->running(to, &err), 0);
	vm_assert_status(&b, "paused");
	vm_end_pair(from, &a, to, &b, blob);
}

static void a_paused_guest_stays_paused(void **state)
{
	struct ferry_error err = { 0 };
	const struct how how = { 0 };
	struct ferry_guest *guest;
	uint8_t *blob;
	size_t bytes;
	struct vm vm;

	(void)state;
	vm_start(&vm, &how);
	json_object_put(vm_ask(&vm, "stop"));
	guest = vm_open(&vm, FERRY_GUEST_SOURCE);
	OK(guest->ops->check(guest, &err));
	OK(guest->ops->prepare(guest, &err));
	OK(guest->ops->pause(guest, &err));
	OK(guest->ops->save(guest, STATE_MAX, &blob, &bytes, &err));
	free(blob);
	OK(guest->ops->resume(guest, &err));
	assert_int_equal(guest->ops->running(guest, NULL), 0);
	OK(guest->ops->undo(guest, true, &err));
	vm_assert_put_back(&vm);
	vm_assert_status(&vm, "postmigrate");
	guest->ops->close(guest);
	vm_stop(&vm);
}

static void a_state_beyond_the_bound_is_refused(void **state)
{
	const struct how how = { 0 };
	struct ferry_error err = { 0 };
	struct ferry_guest *guest;
	uint8_t *blob = NULL;
	size_t bytes;
	struct vm vm;

	(void)state;
	vm_start(&vm, &how);
	guest = vm_open(&vm, FERRY_GUEST_SOURCE);
	/* Not prepared: x-ignore-shared is off, so RAM is in the stream. */
	OK(guest->ops->pause(guest, &err));
	assert_int_equal(guest->ops->save(guest, 100000, &blob, &bytes, &err), -EFBIG);
	assert_non_null(strstr(err.text, "guest RAM is in it"));
	assert_null(blob);
	OK(guest->ops->resume(guest, &err));
	vm_assert_status(&vm, "running");
	OK(guest->ops->prepare(guest, &err));
	OK(guest->ops->pause(guest, &err));
	OK(guest->ops->save(guest, STATE_MAX, &blob, &bytes, &err));
	free(blob);
	OK(guest->ops->undo(guest, true, &err));
	vm_assert_put_back(&vm);
	vm_assert_status(&vm, "running");
	guest->ops->close(guest);
	vm_stop(&vm);
}

static void a_bad_state_ends_the_destination(void **state)
{
	const struct how how = { .incoming = true };
	struct ferry_error err = { 0 };
	struct ferry_guest *guest;
	struct vm vm;
	int r;

	(void)state;
	vm_start(&vm, &how);
	guest = vm_open(&vm, FERRY_GUEST_DESTINATION);
	OK(guest->ops->prepare(guest, &err));
	r = guest->ops->load(guest, (const uint8_t *)"not a migration stream at all", 29, &err);
	assert_int_equal(r, -EREMOTEIO);
	assert_non_null(strstr(err.text, "loading device state"));
	OK(guest->ops->undo(guest, false, &err));
	assert_true(vm_ended(&vm));
	guest->ops->close(guest);
	vm_stop(&vm);
}

/* Both are ready for the state. */
static void start_coupled(struct vm *a, struct vm *b, const struct how *how, bool ready,
			  struct ferry_guest **from, struct ferry_guest **to)
{
	struct ferry_error err = { 0 };

	start_pair(a, b, how, from, to);
	if (ready)
		OK((*from)->ops->prepare(*from, &err));
	OK((*to)->ops->prepare(*to, &err));
	OK((*to)->ops->couple(*to, *from, &err));
	vm_assert_status(a, "running");
	vm_assert_status(b, "inmigrate");
	OK((*from)->ops->pause(*from, &err));
	vm_copy_ram(a, b);
	vm_assert_status(b, "inmigrate");
}

/* One loads while the other saves, and does not start by itself then either. */
static void coupled(void **state)
{
	const struct how how = { .extra = { "-global", "migration.store-global-state=off" } };
	struct ferry_error err = { 0 };
	struct ferry_guest *from, *to;
	uint8_t *blob;
	struct vm a, b;
	size_t bytes;

	(void)state;
	start_coupled(&a, &b, &how, true, &from, &to);
	OK(from->ops->save(from, STATE_MAX, &blob, &bytes, &err));
	/* What load() is given is not looked at: it has come already. */
	OK(to->ops->load(to, (const uint8_t *)"nothing", 7, &err));
	assert_true(bytes > 10000);
	vm_assert_status(&b, "paused");
	OK(to->ops->run(to, &err));
	vm_assert_status(&b, "running");
	vm_assert_status(&a, "postmigrate");
	OK(to->ops->undo(to, true, &err));
	vm_assert_put_back(&b);
	OK(from->ops->undo(from, false, &err));
	vm_assert_put_back(&a);
	vm_end_pair(from, &a, to, &b, blob);
}

/* Whatever becomes of one of two coupled ones, the source goes on. */
static void coupled_and_failing(void **state)
{
	const struct how how = { 0 };
	struct ferry_error err = { 0 };
	int what;

	(void)state;
	for (what = 0; what < 3; what++) {
		struct ferry_guest *from, *to;
		uint8_t *blob = NULL;
		struct vm a, b;
		size_t bytes;

		start_coupled(&a, &b, &how, what != 1, &from, &to);
		if (what == 0) {
			/* Nothing was ever sent. */
		} else if (what == 1) {
			/* Not prepared: RAM is in the stream, and half of it in the other one. */
			assert_int_equal(from->ops->save(from, 100000, &blob, &bytes, &err),
					 -EFBIG);
		} else {
			kill(b.pid, SIGKILL);
			OK(from->ops->save(from, STATE_MAX, &blob, &bytes, &err));
			assert_int_equal(to->ops->load(to, blob, bytes, &err), -EREMOTEIO);
			assert_non_null(strstr(err.text, "loading device state"));
		}
		OK(to->ops->undo(to, false, &err));
		assert_true(vm_ended(&b));
		OK(from->ops->undo(from, true, &err));
		vm_assert_status(&a, "running");
		vm_assert_put_back(&a);
		vm_end_pair(from, &a, to, &b, blob);
	}
}

/* A shared disk: the source can go on although the destination has loaded. */
static void a_rollback_gets_its_disk_back(void **state)
{
	char disk[] = "/tmp/ferry-test-disk-XXXXXX", drive[128];
	struct ferry_guest *from, *to;
	const struct how how = { .extra = { "-drive", drive } };
	struct ferry_error err = { 0 };
	char why[128];
	uint8_t *blob;
	struct vm a, b;
	size_t bytes;
	int fd = mkstemp(disk);

	(void)state;
	assert_int_equal(ftruncate(fd, 1 << 20), 0);
	snprintf(drive, sizeof(drive), "file=%s,format=raw,if=virtio,cache=none", disk);
	start_pair(&a, &b, &how, &from, &to);
	assert_int_equal(from->ops->direct_io(from, why, sizeof(why), &err), 1);
	assert_non_null(strstr(why, "direct I/O"));
	OK(to->ops->prepare(to, &err));
	rig_source_steps(from, 3);
	OK(from->ops->save(from, STATE_MAX, &blob, &bytes, &err));
	vm_copy_ram(&a, &b);
	OK(to->ops->load(to, blob, bytes, &err));
	OK(from->ops->resume(from, &err));
	vm_assert_status(&a, "running");
	/* The image lock is the second fence: now the destination cannot start. */
	assert_int_equal(to->ops->run(to, &err), -EREMOTEIO);
	assert_non_null(strstr(err.text, "lock"));
	assert_int_equal(to->ops->running(to, NULL), 0);
	OK(to->ops->undo(to, false, &err));
	assert_true(vm_ended(&b));
	OK(from->ops->undo(from, true, &err));
	vm_end_pair(from, &a, to, &b, blob);
	close(fd);
	unlink(disk);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_stopped_guest_never_starts_by_itself),
		cmocka_unit_test(state_moves_and_the_guest_runs),
		cmocka_unit_test(a_paused_guest_stays_paused),
		cmocka_unit_test(a_state_beyond_the_bound_is_refused),
		cmocka_unit_test(a_bad_state_ends_the_destination),
		cmocka_unit_test(coupled),
		cmocka_unit_test(coupled_and_failing),
		cmocka_unit_test(a_rollback_gets_its_disk_back),
	};

	if (!rig_have_qemu())
		return 0;
	return cmocka_run_group_tests(tests, NULL, NULL);
}
