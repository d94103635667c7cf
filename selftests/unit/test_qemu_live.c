// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Getting hold of a real QEMU: what is refused before anything is touched, what RAM is
 * found, who holds a socket, and a userfaultfd out of a confined one.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/clock.h"
#include "qemu_rig.h"

static void check_refuses(const struct how *how, enum ferry_guest_role role, int errnum,
			  const char *words)
{
	struct ferry_error err = { 0 };
	struct ferry_guest *guest;
	struct vm vm;
	int r;

	vm_start(&vm, how);
	guest = vm_open(&vm, role);
	r = guest->ops->check(guest, &err);
	if (r != -errnum || !strstr(err.text, words))
		fail_msg("check gave %d \"%s\", expected %d \"%s\"", r, err.text, -errnum, words);
	guest->ops->close(guest);
	vm_assert_put_back(&vm);
	vm_stop(&vm);
}

static void refusals(void **state)
{
	struct how how = { 0 };

	(void)state;
	how.memory = "memory-backend-ram,id=m,size=16M";
	check_refuses(&how, FERRY_GUEST_SOURCE, EOPNOTSUPP, "share=on,mem-path=/dev/shm/NAME");
	how.memory = "memory-backend-file,id=m,size=16M,share=on,discard-data=on,mem-path=/dev/shm";
	check_refuses(&how, FERRY_GUEST_SOURCE, EOPNOTSUPP, "discard-data=on");
	how.memory = NULL;
	how.extra[0] = "-S";
	check_refuses(&how, FERRY_GUEST_DESTINATION, EINVAL, "-incoming defer");
	how.extra[0] = NULL;
	how.incoming = true;
	check_refuses(&how, FERRY_GUEST_SOURCE, EBUSY, "it is a destination");
}

/* One block "m" of 16 MiB; on a QEMU that keeps memfds in its stream @memfd is a skip. */
static void memory_is_found(const char *object, bool memfd)
{
	const struct how how = { .memory = object };
	struct ferry_error err = { 0 };
	struct ferry_guest *guest;
	struct ferry_ram ram;
	struct vm vm;
	bool fine;

	vm_start(&vm, &how);
	ferry_ram_init(&ram);
	guest = vm_open(&vm, FERRY_GUEST_SOURCE);
	fine = !memfd || !strncmp(guest->version, "QEMU 7.", 7);
	if (!fine) {
		print_message("SKIP: %s keeps memfds in its stream\n", guest->version);
	} else {
		OK(guest->ops->check(guest, &err));
		OK(guest->ops->describe(guest, &ram, &err));
		assert_int_equal(ram.count, 1);
		assert_string_equal(ram.blocks[0].name, "m");
		assert_int_equal(ram.blocks[0].size_bytes, 16 << 20);
		assert_int_equal(ram.blocks[0].page_size, 4096);
		assert_true(ram.blocks[0].vmm_addr > 0);
		OK(ferry_ram_map(&ram, true, &err));
	}
	ferry_ram_free(&ram);
	guest->ops->close(guest);
	vm_stop(&vm);
	if (!fine)
		skip();
}

static void a_memfd_backend_is_found(void **state)
{
	(void)state;
	memory_is_found("memory-backend-memfd,id=m,size=16M,share=on", true);
}

static void all_kinds_of_files_are_found(void **state)
{
	static const char *const kinds[] = {
		NULL,
		"memory-backend-file,id=m,size=16M,share=on,mem-path=/dev/shm",
		"memory-backend-file,id=m,size=16M,share=on,mem-path=/proc/self/fd/9",
	};
	int memfd = memfd_create("guest", 0);
	size_t i;

	(void)state;
	assert_int_equal(ftruncate(memfd, 16 << 20), 0);
	assert_int_equal(dup2(memfd, 9), 9);
	for (i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++)
		memory_is_found(kinds[i], false);
	close(9);
	close(memfd);
}

/* Pieces of one mapping (here: a half registered with userfaultfd) are one block. */
static void several_blocks_and_pieces_are_found(void **state)
{
	char dimm[192];
	const struct how how = { .extra = { "-m", "16,slots=2,maxmem=1G", "-object", dimm, "-device",
					    "pc-dimm,memdev=a1" } };
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	struct ferry_error err = { 0 };
	struct ferry_guest *guest;
	struct ferry_ram ram, again;
	struct vm vm;
	int uffd;

	(void)state;
	snprintf(dimm, sizeof(dimm), "memory-backend-file,id=a1,size=128M,share=on,mem-path="
		 "/dev/shm/ferry-test-dimm-%d", getpid());
	vm_start(&vm, &how);
	ferry_ram_init(&ram);
	ferry_ram_init(&again);
	guest = vm_open(&vm, FERRY_GUEST_SOURCE);
	OK(guest->ops->check(guest, &err));
	OK(guest->ops->describe(guest, &ram, &err));
	assert_int_equal(ram.count, 2);
	assert_string_equal(ram.blocks[0].name, "a1");
	assert_string_equal(ram.blocks[1].name, "m");
	OK(guest->ops->userfaultfd(guest, &uffd, &err));
	assert_int_equal(ioctl(uffd, UFFDIO_API, &api), 0);
	reg.range.start = ram.blocks[0].vmm_addr + (32 << 20);
	reg.range.len = 64 << 20;
	assert_int_equal(ioctl(uffd, UFFDIO_REGISTER, &reg), 0);
	OK(guest->ops->check(guest, &err));
	OK(guest->ops->describe(guest, &again, &err));
	assert_int_equal(again.count, 2);
	assert_int_equal(again.blocks[0].vmm_addr, ram.blocks[0].vmm_addr);
	assert_int_equal(again.blocks[0].size_bytes, 128 << 20);
	close(uffd);
	ferry_ram_free(&ram);
	ferry_ram_free(&again);
	guest->ops->close(guest);
	vm_stop(&vm);
	unlink(strstr(dimm, "/dev/shm/"));
}

static void a_confined_qemu_gives_a_userfaultfd(void **state)
{
	struct ferry_error err = { 0 };
	const struct how how = { .as_nobody = true, .extra = { "-sandbox", "on" } };
	struct ferry_guest *guest;
	struct vm vm;
	int uffd = -1;

	(void)state;
	if (getuid()) {
		print_message("SKIP: must be root to start a QEMU as nobody\n");
		skip();
	}
	vm_start(&vm, &how);
	guest = vm_open(&vm, FERRY_GUEST_SOURCE);
	OK(guest->ops->check(guest, &err));
	OK(guest->ops->userfaultfd(guest, &uffd, &err));
	assert_true(uffd >= 0);
	close(uffd);
	vm_assert_put_back(&vm); /* no copy stays, even without undo */
	OK(guest->ops->undo(guest, true, &err));
	guest->ops->close(guest);
	vm_stop(&vm);
}

static void a_killed_qemu_is_told_at_once(void **state)
{
	const struct how how = { 0 };
	struct ferry_error err = { 0 };
	struct ferry_guest *guest;
	uint64_t start_ns;
	uint8_t *blob;
	size_t bytes;
	char why[64];
	struct vm vm;
	int uffd;

	(void)state;
	vm_start(&vm, &how);
	guest = vm_open(&vm, FERRY_GUEST_SOURCE);
	OK(guest->ops->prepare(guest, &err));
	kill(vm.pid, SIGKILL);
	start_ns = ferry_clock_ns();
	assert_int_equal(guest->ops->pause(guest, &err), -ESRCH);
	assert_non_null(strstr(err.text, "has gone"));
	assert_int_equal(guest->ops->save(guest, 100, &blob, &bytes, &err), -ESRCH);
	assert_int_equal(guest->ops->running(guest, &err), -ESRCH);
	assert_int_equal(guest->ops->userfaultfd(guest, &uffd, &err), -ESRCH);
	assert_int_equal(guest->ops->direct_io(guest, why, sizeof(why), &err), -ESRCH);
	assert_int_equal(guest->ops->run(guest, &err), -ESRCH);
	assert_int_equal(guest->ops->undo(guest, true, &err), 0);
	assert_int_equal(guest->ops->quit(guest, &err), 0);
	assert_true(ferry_clock_ns() - start_ns < 3 * FERRY_NS_PER_S);
	guest->ops->close(guest);
	vm_stop(&vm);
}

/* A socket made by a manager and passed to QEMU: QEMU listens again, so it counts as its maker. */
static void a_passed_socket_names_qemu(void **state)
{
	const struct how how = { .extra = { "-chardev", "socket,id=c,fd=8,server=on,wait=off",
					    "-mon", "chardev=c,mode=control" } };
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	char dir[] = "/tmp/ferry-test-live-XXXXXX", spec[128];
	struct ferry_guest_open_params params = { .spec = spec, .held_fd = -1,
						  .timeout_ms = 5000 };
	struct ferry_error err = { 0 };
	struct ferry_guest *guest;
	struct vm vm;
	int fd;

	(void)state;
	assert_non_null(mkdtemp(dir));
	snprintf(addr.sun_path, sizeof(addr.sun_path), "%s/passed", dir);
	snprintf(spec, sizeof(spec), "qmp:%s", addr.sun_path);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_int_equal(bind(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
	assert_int_equal(listen(fd, 1), 0);
	assert_int_equal(dup2(fd, 8), 8);
	vm_start(&vm, &how);
	OK(ferry_guest_open(&params, &guest, &err));
	assert_int_equal(guest->pid, vm.pid);
	OK(guest->ops->check(guest, &err));
	guest->ops->close(guest);
	vm_stop(&vm);
	close(8);
	close(fd);
	unlink(addr.sun_path);
	rmdir(dir);
}

static void a_second_client_is_told(void **state)
{
	const struct how how = { 0 };
	struct ferry_guest *guest, *second;
	struct ferry_error err = { 0 };
	struct vm vm;

	(void)state;
	vm_start(&vm, &how);
	guest = vm_open(&vm, FERRY_GUEST_SOURCE);
	{
		struct ferry_guest_open_params params = { .spec = vm.spec, .held_fd = -1,
							  .timeout_ms = 300 };

		assert_int_equal(ferry_guest_open(&params, &second, &err), -EBUSY);
		assert_non_null(strstr(err.text, "add a second -qmp socket"));
	}
	guest->ops->close(guest);
	vm_stop(&vm);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(refusals),
		cmocka_unit_test(all_kinds_of_files_are_found),
		cmocka_unit_test(a_memfd_backend_is_found),
		cmocka_unit_test(several_blocks_and_pieces_are_found),
		cmocka_unit_test(a_killed_qemu_is_told_at_once),
		cmocka_unit_test(a_confined_qemu_gives_a_userfaultfd),
		cmocka_unit_test(a_passed_socket_names_qemu),
		cmocka_unit_test(a_second_client_is_told),
	};

	if (!rig_have_qemu())
		return 0;
	return cmocka_run_group_tests(tests, NULL, NULL);
}
