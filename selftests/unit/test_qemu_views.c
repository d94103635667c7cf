// SPDX-License-Identifier: GPL-2.0-or-later
/* Other mappings of guest RAM, such as the kernel module's, inside a real QEMU. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "qemu_rig.h"

/* QEMU locks its memory, and may not lock more: its sandbox and limits refuse nothing we need. */
static void views_come_and_go(void **state)
{
	static const char *const extra[][2] = {
		{ NULL, NULL }, { "-sandbox", "on" }, { "-overcommit", "mem-lock=on" },
	};
	struct ferry_error err = { 0 };
	struct ferry_dirty_views views;
	size_t i;
	int j;

	(void)state;
	for (i = 0; i < sizeof(extra) / sizeof(extra[0]); i++) {
		const struct how how = { .extra = { extra[i][0], extra[i][1] } };
		struct ferry_guest *guest;
		struct vm vm;

		vm_start(&vm, &how);
		guest = vm_open(&vm, FERRY_GUEST_SOURCE);
		OK(guest->ops->check(guest, &err));
		guest->ops->views(guest, &views);
		for (j = 0; j < 5; j++) {
			rig_put_views(guest);
			vm_assert_put_back(&vm); /* a plain one has no flags of its own */
			/* It can be described, and switched, with what is there now. */
			OK(guest->ops->check(guest, &err));
			OK(views.unmap(views.ctx, &err));
			vm_assert_put_back(&vm);
			OK(views.unmap(views.ctx, &err));
		}
		vm_assert_status(&vm, "running");
		guest->ops->close(guest);
		vm_stop(&vm);
	}
}

static void views_that_cannot_be_put_in(void **state)
{
	const struct how how = { 0 };
	struct ferry_error err = { 0 };
	struct ferry_dirty_views views;
	struct ferry_guest *guest;
	struct ferry_ram ram;
	struct vm vm;
	int other;

	(void)state;
	vm_start(&vm, &how);
	ferry_ram_init(&ram);
	guest = vm_open(&vm, FERRY_GUEST_SOURCE);
	OK(guest->ops->describe(guest, &ram, &err));
	guest->ops->views(guest, &views);
	/* Of another file. */
	other = memfd_create("other", MFD_CLOEXEC);
	assert_int_equal(views.map(views.ctx, &ram, &other, &err), -ENXIO);
	assert_non_null(strstr(err.text, "putting tracked views of guest RAM into QEMU"));
	vm_assert_put_back(&vm);
	/* RAM that is no longer where it was. */
	ram.blocks[0].vmm_addr += FERRY_PAGE_SIZE;
	assert_int_equal(views.map(views.ctx, &ram, &ram.blocks[0].fd, &err), -ENXIO);
	vm_assert_put_back(&vm);
	OK(guest->ops->undo(guest, true, &err));
	vm_assert_put_back(&vm);
	vm_assert_status(&vm, "running");
	close(other);
	ferry_ram_free(&ram);
	guest->ops->close(guest);
	vm_stop(&vm);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(views_come_and_go),
		cmocka_unit_test(views_that_cannot_be_put_in),
	};

	if (!rig_have_qemu())
		return 0;
	return cmocka_run_group_tests(tests, NULL, NULL);
}
