// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The QEMU driver against real QEMUs (software CPU, no guest system: the
 * firmware looking for a disk is guest enough). Each QEMU has two QMP sockets:
 * the driver's, and one by which the test looks at it independently.
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
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/io.h"
#include "guest/guest.h"
#include "guest/json.h"
#include "guest/proc.h"
#include "guest/qmp.h"

#define QEMU "qemu-system-x86_64"
#define START_MS 20000
#define STATE_MAX (64u << 20)
#define NOBODY 65534

struct vm {
	char dir[64], spec[128], path[96], spy_path[96], ram[96], log[96];
	pid_t pid;
	struct ferry_qmp *spy;
	char *before; /* what the test saw of it at the start */
};

/* How a QEMU is started; zero is a running guest with good RAM. */
struct how {
	bool incoming, as_nobody;
	const char *memory;	/* instead of "share=on,mem-path=<ram>" */
	const char *extra[10];
};

static struct ferry_qmp *spy_connect(struct vm *vm)
{
	uint64_t deadline_ns = ferry_clock_in_ms(START_MS);
	struct ferry_error err = { 0 };
	struct ferry_qmp *qmp;

	while (ferry_qmp_connect(vm->spy_path, 5000, &qmp, &err)) {
		if (ferry_clock_ns() > deadline_ns || waitpid(vm->pid, NULL, WNOHANG))
			fail_msg("QEMU does not start: %s; see %s", err.text, vm->log);
		ferry_clock_sleep_ns(20 * FERRY_NS_PER_MS);
	}
	return qmp;
}

static void vm_exec(const struct vm *vm, const struct how *how)
{
	char object[256], qmp[128], spy[128];
	const char *argv[40] = {
		QEMU, "-machine", "pc,memory-backend=m", "-accel", "tcg", "-m", "16", "-display",
		"none", "-nodefaults", "-vga", "std", "-object", object, "-qmp", qmp, "-qmp", spy,
	};
	size_t n = 18, i;
	int log = open(vm->log, O_WRONLY | O_CREAT | O_TRUNC, 0600);

	if (how->memory)
		snprintf(object, sizeof(object), "%s", how->memory);
	else
		snprintf(object, sizeof(object),
			 "memory-backend-file,id=m,size=16M,share=on,mem-path=%s", vm->ram);
	snprintf(qmp, sizeof(qmp), "unix:%s,server=on,wait=off", vm->path);
	snprintf(spy, sizeof(spy), "unix:%s,server=on,wait=off", vm->spy_path);
	if (how->incoming) {
		argv[n++] = "-incoming";
		argv[n++] = "defer";
	}
	for (i = 0; i < 10 && how->extra[i]; i++)
		argv[n++] = how->extra[i];
	dup2(log, 1);
	dup2(log, 2);
	if (how->as_nobody && (setgid(NOBODY) || setuid(NOBODY)))
		_exit(126);
	prctl(PR_SET_PDEATHSIG, SIGKILL); /* another user id clears it */
	execvp(QEMU, (char *const *)argv);
	_exit(127);
}

static char *look(struct vm *vm);

static void vm_start(struct vm *vm, const struct how *how)
{
	static int sequence;

	memset(vm, 0, sizeof(*vm));
	strcpy(vm->dir, "/tmp/ferry-test-live-XXXXXX");
	assert_non_null(mkdtemp(vm->dir));
	snprintf(vm->path, sizeof(vm->path), "%s/q", vm->dir);
	snprintf(vm->spec, sizeof(vm->spec), "qmp:%s", vm->path);
	snprintf(vm->spy_path, sizeof(vm->spy_path), "%s/spy", vm->dir);
	snprintf(vm->log, sizeof(vm->log), "%s/log", vm->dir);
	snprintf(vm->ram, sizeof(vm->ram), "/dev/shm/ferry-test-%d-%d", getpid(), sequence++);
	if (how->as_nobody)
		assert_int_equal(chown(vm->dir, NOBODY, NOBODY), 0);
	vm->pid = fork();
	if (!vm->pid)
		vm_exec(vm, how);
	vm->spy = spy_connect(vm);
	vm->before = look(vm);
}

static void vm_stop(struct vm *vm)
{
	ferry_qmp_close(vm->spy);
	kill(vm->pid, SIGKILL);
	waitpid(vm->pid, NULL, 0);
	free(vm->before);
	unlink(vm->path);
	unlink(vm->spy_path);
	unlink(vm->log);
	unlink(vm->ram);
	rmdir(vm->dir);
}

static struct json_object *ask(struct vm *vm, const char *command)
{
	struct ferry_error err = { 0 };
	struct json_object *reply;

	if (ferry_qmp_command(vm->spy, command, NULL, -1, &reply, &err))
		fail_msg("%s: %s", command, err.text);
	return reply;
}

static void assert_status(struct vm *vm, const char *expected)
{
	struct json_object *reply = ask(vm, "query-status");

	assert_string_equal(ferry_json_string(reply, "status"), expected);
	json_object_put(reply);
}

static int see_fd(void *ctx, int fd, const char *link)
{
	(void)fd;
	if (strstr(link, "userfaultfd") || strstr(link, "ferry-test"))
		++*(int *)ctx;
	return 0;
}

/* How guest RAM is mapped; soft-dirty (sd) comes and goes by itself. */
static int see_ram(void *ctx, const struct ferry_proc_area *area)
{
	char **text = ctx, *more, *sd;

	if (!strstr(area->path, "ferry-test"))
		return 0;
	assert_true(asprintf(&more, "%s %llx-%llx+%llx %d [%s]", *text,
			     (unsigned long long)area->start, (unsigned long long)area->end,
			     (unsigned long long)area->off_bytes, area->prot, area->flags) > 0);
	sd = strstr(more, " sd");
	if (sd)
		memmove(sd, sd + 3, strlen(sd + 3) + 1);
	free(*text);
	*text = more;
	return 0;
}

/* All that undo() must put back, as one text. */
static char *look(struct vm *vm)
{
	struct json_object *caps = ask(vm, "query-migrate-capabilities");
	struct json_object *params = ask(vm, "query-migrate-parameters");
	char *text, *ram = strdup("");
	int fds = 0;

	assert_int_equal(ferry_proc_fds(vm->pid, see_fd, &fds), 0);
	assert_int_equal(ferry_proc_smaps(vm->pid, see_ram, &ram), 0);
	assert_true(asprintf(&text, "%s %s %d%s", json_object_to_json_string(caps),
			     json_object_to_json_string(params), fds, ram) > 0);
	free(ram);
	json_object_put(caps);
	json_object_put(params);
	return text;
}

static void assert_put_back(struct vm *vm)
{
	char *now = look(vm);

	assert_string_equal(now, vm->before);
	free(now);
}

static bool ended(pid_t pid)
{
	uint64_t deadline_ns = ferry_clock_in_ms(10000);

	while (ferry_clock_ns() < deadline_ns) {
		if (waitpid(pid, NULL, WNOHANG) == pid)
			return true;
		ferry_clock_sleep_ns(FERRY_NS_PER_MS);
	}
	return false;
}

/* The record of a migration as the engine keeps it: the last undo text. */
struct record {
	char undo[4096];
	int writes;
};

static int record_write(void *ctx, const char *undo, struct ferry_error *err)
{
	struct record *record = ctx;

	(void)err;
	snprintf(record->undo, sizeof(record->undo), "%s", undo);
	record->writes++;
	return 0;
}

static struct ferry_guest *open_guest(struct vm *vm, enum ferry_guest_role role,
				      struct ferry_guest_host *host, const char *undo, int held_fd)
{
	struct ferry_guest_open_params params = { .spec = vm->spec, .host = host, .role = role,
						  .timeout_ms = 10000, .undo = undo,
						  .held_fd = held_fd };
	struct ferry_error err = { 0 };
	struct ferry_guest *guest;

	if (ferry_guest_open(&params, &guest, &err))
		fail_msg("open %s: %s", vm->spec, err.text);
	return guest;
}

/* @call fills the caller's err. */
#define OK(call) do { \
	int r_ = (call); \
	if (r_ < 0) \
		fail_msg("%s: %d %s", #call, r_, err.text); \
} while (0)

static void copy_ram(struct vm *from, struct vm *to)
{
	static char buf[16 << 20];
	int a = open(from->ram, O_RDONLY), b = open(to->ram, O_WRONLY);

	assert_int_equal(ferry_io_pread(a, buf, sizeof(buf), 0), 0);
	assert_int_equal(ferry_io_pwrite(b, buf, sizeof(buf), 0), 0);
	close(a);
	close(b);
}

static void check_refuses(const struct how *how, enum ferry_guest_role role, int errnum,
			  const char *words)
{
	struct ferry_error err = { 0 };
	struct ferry_guest *guest;
	struct vm vm;
	int r;

	vm_start(&vm, how);
	guest = open_guest(&vm, role, NULL, NULL, -1);
	r = guest->ops->check(guest, &err);
	if (r != -errnum || !strstr(err.text, words))
		fail_msg("check gave %d \"%s\", expected %d \"%s\"", r, err.text, -errnum, words);
	guest->ops->close(guest);
	assert_put_back(&vm);
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
	guest = open_guest(&vm, FERRY_GUEST_SOURCE, NULL, NULL, -1);
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
	guest = open_guest(&vm, FERRY_GUEST_SOURCE, NULL, NULL, -1);
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

static void end_pair(struct ferry_guest *from, struct vm *a, struct ferry_guest *to, struct vm *b,
		     uint8_t *blob)
{
	free(blob);
	from->ops->close(from);
	to->ops->close(to);
	vm_stop(a);
	vm_stop(b);
}

static void state_moves_and_the_guest_runs(void **state)
{
	struct ferry_error err = { 0 };
	struct ferry_guest *from, *to;
	struct how how = { 0 };
	uint8_t *blob;
	struct vm a, b;
	uint64_t t[3];
	size_t bytes;

	(void)state;
	vm_start(&a, &how);
	how.incoming = true;
	vm_start(&b, &how);
	from = open_guest(&a, FERRY_GUEST_SOURCE, NULL, NULL, -1);
	to = open_guest(&b, FERRY_GUEST_DESTINATION, NULL, NULL, -1);
	OK(from->ops->check(from, &err));
	OK(to->ops->check(to, &err));
	OK(from->ops->prepare(from, &err));
	OK(to->ops->prepare(to, &err));
	assert_int_equal(from->ops->running(from, NULL), 1);
	OK(from->ops->pause(from, &err));
	t[0] = ferry_clock_ns();
	OK(from->ops->save(from, STATE_MAX, &blob, &bytes, &err));
	t[1] = ferry_clock_ns();
	copy_ram(&a, &b);
	t[2] = ferry_clock_ns();
	OK(to->ops->load(to, blob, bytes, &err));
	print_message("%s: %zu bytes of device state, save %.2f ms, load %.2f ms\n", from->version,
		      bytes, (double)(t[1] - t[0]) / 1e6,
		      (double)(ferry_clock_ns() - t[2]) / 1e6);
	assert_true(bytes > 10000 && bytes < 16 << 20);
	assert_status(&b, "paused");
	OK(to->ops->run(to, &err));
	OK(to->ops->run(to, &err));
	to->ops->announce(to);
	assert_status(&b, "running");
	assert_status(&a, "postmigrate");
	OK(to->ops->undo(to, true, &err));
	assert_put_back(&b);
	assert_status(&b, "running");
	OK(from->ops->undo(from, false, &err));
	assert_put_back(&a);
	OK(from->ops->quit(from, &err));
	assert_true(ended(a.pid));
	end_pair(from, &a, to, &b, blob);
}

/* With this option a stopped guest's stream says nothing of "stopped". */
static void a_stopped_guest_never_starts_by_itself(void **state)
{
	struct how how = { .extra = { "-global", "migration.store-global-state=off" } };
	struct ferry_error err = { 0 };
	struct ferry_guest *from, *to;
	uint8_t *blob;
	struct vm a, b;
	size_t bytes;

	(void)state;
	vm_start(&a, &how);
	how.incoming = true;
	vm_start(&b, &how);
	from = open_guest(&a, FERRY_GUEST_SOURCE, NULL, NULL, -1);
	to = open_guest(&b, FERRY_GUEST_DESTINATION, NULL, NULL, -1);
	OK(from->ops->prepare(from, &err));
	OK(to->ops->prepare(to, &err));
	OK(from->ops->pause(from, &err));
	OK(from->ops->save(from, STATE_MAX, &blob, &bytes, &err));
	copy_ram(&a, &b);
	OK(to->ops->load(to, blob, bytes, &err));
	assert_int_equal(to->ops->running(to, &err), 0);
	assert_status(&b, "paused");
	end_pair(from, &a, to, &b, blob);
}

/*
 * Another mapping of the same memory in the place of guest RAM. Without the kernel module
 * it is a plain one, and the file is opened once more for it.
 */
static void put_views(struct ferry_guest *guest)
{
	struct ferry_error err = { 0 };
	struct ferry_dirty_views views;
	struct ferry_ram ram;
	int fds[8];
	char path[64];
	unsigned int i;

	ferry_ram_init(&ram);
	OK(guest->ops->describe(guest, &ram, &err));
	for (i = 0; i < ram.count; i++) {
		snprintf(path, sizeof(path), "/proc/self/fd/%d", ram.blocks[i].fd);
		fds[i] = open(path, O_RDWR | O_CLOEXEC);
	}
	guest->ops->views(guest, &views);
	OK(views.map(views.ctx, &ram, fds, &err));
	assert_int_equal(views.count(views.ctx, &err), ram.count);
	while (i--)
		close(fds[i]);
	ferry_ram_free(&ram);
}

/* The first @steps of a source's migration. */
static void source_steps(struct ferry_guest *guest, int steps)
{
	struct ferry_error err = { 0 };
	uint8_t *blob = NULL;
	size_t bytes;
	int uffd = -1;

	if (steps > 0)
		OK(guest->ops->prepare(guest, &err));
	if (steps > 1)
		OK(guest->ops->userfaultfd(guest, &uffd, &err));
	if (steps > 2)
		OK(guest->ops->pause(guest, &err));
	if (steps > 3)
		OK(guest->ops->save(guest, STATE_MAX, &blob, &bytes, &err));
	if (steps > 4)
		put_views(guest);
	free(blob);
	ferry_io_close(&uffd);
}

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
		struct ferry_guest_host host = { record_write, NULL, &record };
		struct ferry_guest *guest = open_guest(&vm, FERRY_GUEST_SOURCE, &host, NULL, -1);

		source_steps(guest, steps % 6);
		if (steps >= 6 && record.writes) {
			/* From the text alone. */
			guest->ops->close(guest);
			guest = open_guest(&vm, FERRY_GUEST_SOURCE, &host, record.undo, -1);
		}
		OK(guest->ops->undo(guest, true, &err));
		assert_put_back(&vm);
		assert_status(&vm, "running");
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
	vm.before = look(&vm);
	guest = open_guest(&vm, FERRY_GUEST_SOURCE, NULL, NULL, -1);
	OK(guest->ops->prepare(guest, &err));
	now = look(&vm);
	assert_string_not_equal(now, vm.before);
	assert_null(strstr(now, "\"state\": true, \"capability\": \"multifd\""));
	assert_non_null(strstr(now, "\"state\": true, \"capability\": \"x-ignore-shared\""));
	free(now);
	OK(guest->ops->prepare(guest, &err)); /* again: the old values stay noted */
	OK(guest->ops->undo(guest, true, &err));
	assert_put_back(&vm);
	guest->ops->close(guest);
	vm_stop(&vm);
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
	json_object_put(ask(&vm, "stop"));
	guest = open_guest(&vm, FERRY_GUEST_SOURCE, NULL, NULL, -1);
	OK(guest->ops->check(guest, &err));
	OK(guest->ops->prepare(guest, &err));
	OK(guest->ops->pause(guest, &err));
	OK(guest->ops->save(guest, STATE_MAX, &blob, &bytes, &err));
	free(blob);
	OK(guest->ops->resume(guest, &err));
	assert_int_equal(guest->ops->running(guest, NULL), 0);
	OK(guest->ops->undo(guest, true, &err));
	assert_put_back(&vm);
	assert_status(&vm, "postmigrate");
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
	guest = open_guest(&vm, FERRY_GUEST_SOURCE, NULL, NULL, -1);
	/* Not prepared: x-ignore-shared is off, so RAM is in the stream. */
	OK(guest->ops->pause(guest, &err));
	assert_int_equal(guest->ops->save(guest, 100000, &blob, &bytes, &err), -EFBIG);
	assert_non_null(strstr(err.text, "guest RAM is in it"));
	assert_null(blob);
	OK(guest->ops->resume(guest, &err));
	assert_status(&vm, "running");
	OK(guest->ops->prepare(guest, &err));
	OK(guest->ops->pause(guest, &err));
	OK(guest->ops->save(guest, STATE_MAX, &blob, &bytes, &err));
	free(blob);
	OK(guest->ops->undo(guest, true, &err));
	assert_put_back(&vm);
	assert_status(&vm, "running");
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
	guest = open_guest(&vm, FERRY_GUEST_DESTINATION, NULL, NULL, -1);
	OK(guest->ops->prepare(guest, &err));
	r = guest->ops->load(guest, (const uint8_t *)"not a migration stream at all", 29, &err);
	assert_int_equal(r, -EREMOTEIO);
	assert_non_null(strstr(err.text, "loading device state"));
	OK(guest->ops->undo(guest, false, &err));
	assert_true(ended(vm.pid));
	guest->ops->close(guest);
	vm_stop(&vm);
}

/* Both are ready; @how is of both but for the waiting. */
static void start_coupled(struct vm *a, struct vm *b, struct how how, bool ready,
			  struct ferry_guest **from, struct ferry_guest **to)
{
	struct ferry_error err = { 0 };

	vm_start(a, &how);
	how.incoming = true;
	vm_start(b, &how);
	*from = open_guest(a, FERRY_GUEST_SOURCE, NULL, NULL, -1);
	*to = open_guest(b, FERRY_GUEST_DESTINATION, NULL, NULL, -1);
	if (ready)
		OK((*from)->ops->prepare(*from, &err));
	OK((*to)->ops->prepare(*to, &err));
	OK((*to)->ops->couple(*to, *from, &err));
	assert_status(a, "running");
	assert_status(b, "inmigrate");
	OK((*from)->ops->pause(*from, &err));
	copy_ram(a, b);
	assert_status(b, "inmigrate");
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
	start_coupled(&a, &b, how, true, &from, &to);
	OK(from->ops->save(from, STATE_MAX, &blob, &bytes, &err));
	/* What load() is given is not looked at: it has come already. */
	OK(to->ops->load(to, (const uint8_t *)"nothing", 7, &err));
	assert_true(bytes > 10000);
	assert_status(&b, "paused");
	OK(to->ops->run(to, &err));
	assert_status(&b, "running");
	assert_status(&a, "postmigrate");
	OK(to->ops->undo(to, true, &err));
	assert_put_back(&b);
	OK(from->ops->undo(from, false, &err));
	assert_put_back(&a);
	end_pair(from, &a, to, &b, blob);
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

		start_coupled(&a, &b, how, what != 1, &from, &to);
		if (what == 0) {
			/* Nothing was ever sent. */
		} else if (what == 1) {
			/* Not prepared: RAM is in the stream, and half of it in the other one. */
			assert_int_equal(from->ops->save(from, 100000, &blob, &bytes, &err), -EFBIG);
		} else {
			kill(b.pid, SIGKILL);
			OK(from->ops->save(from, STATE_MAX, &blob, &bytes, &err));
			assert_int_equal(to->ops->load(to, blob, bytes, &err), -EREMOTEIO);
			assert_non_null(strstr(err.text, "loading device state"));
		}
		OK(to->ops->undo(to, false, &err));
		assert_true(ended(b.pid));
		OK(from->ops->undo(from, true, &err));
		assert_status(&a, "running");
		assert_put_back(&a);
		end_pair(from, &a, to, &b, blob);
	}
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
	from = open_guest(&a, FERRY_GUEST_SOURCE, NULL, NULL, -1);
	source_steps(from, 3);
	OK(from->ops->save(from, STATE_MAX, &blob, &bytes, &err));
	to = open_guest(&b, FERRY_GUEST_DESTINATION, NULL, NULL, -1);
	OK(to->ops->prepare(to, &err));
	OK(to->ops->userfaultfd(to, &uffd, &err));
	close(uffd);
	OK(to->ops->undo(to, false, &err));
	assert_put_back(&b);
	assert_status(&b, "inmigrate");
	OK(to->ops->prepare(to, &err));
	copy_ram(&a, &b);
	OK(to->ops->load(to, blob, bytes, &err));
	OK(to->ops->undo(to, false, &err));
	assert_true(ended(b.pid));
	OK(from->ops->undo(from, true, &err));
	assert_status(&a, "running");
	end_pair(from, &a, to, &b, blob);
}

/* A shared disk: the source can go on although the destination has loaded. */
static void a_rollback_gets_its_disk_back(void **state)
{
	char disk[] = "/tmp/ferry-test-disk-XXXXXX", drive[128];
	struct ferry_guest *from, *to;
	struct how how = { .extra = { "-drive", drive } };
	struct ferry_error err = { 0 };
	char why[128];
	uint8_t *blob;
	struct vm a, b;
	size_t bytes;
	int fd = mkstemp(disk);

	(void)state;
	assert_int_equal(ftruncate(fd, 1 << 20), 0);
	snprintf(drive, sizeof(drive), "file=%s,format=raw,if=virtio,cache=none", disk);
	vm_start(&a, &how);
	how.incoming = true;
	vm_start(&b, &how);
	from = open_guest(&a, FERRY_GUEST_SOURCE, NULL, NULL, -1);
	to = open_guest(&b, FERRY_GUEST_DESTINATION, NULL, NULL, -1);
	assert_int_equal(from->ops->direct_io(from, why, sizeof(why), &err), 1);
	assert_non_null(strstr(why, "direct I/O"));
	OK(to->ops->prepare(to, &err));
	source_steps(from, 3);
	OK(from->ops->save(from, STATE_MAX, &blob, &bytes, &err));
	copy_ram(&a, &b);
	OK(to->ops->load(to, blob, bytes, &err));
	OK(from->ops->resume(from, &err));
	assert_status(&a, "running");
	/* The image lock is the second fence: now the destination cannot start. */
	assert_int_equal(to->ops->run(to, &err), -EREMOTEIO);
	assert_non_null(strstr(err.text, "lock"));
	assert_int_equal(to->ops->running(to, NULL), 0);
	OK(to->ops->undo(to, false, &err));
	assert_true(ended(b.pid));
	OK(from->ops->undo(from, true, &err));
	end_pair(from, &a, to, &b, blob);
	close(fd);
	unlink(disk);
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
	guest = open_guest(&vm, FERRY_GUEST_SOURCE, NULL, NULL, -1);
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
	return record_write(&((struct worker_host *)ctx)->shared->record, undo, err);
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
	struct ferry_guest *guest = open_guest(vm, FERRY_GUEST_SOURCE, &host, NULL, -1);
	struct ferry_dirty_views views;

	for (;;) {
		source_steps(guest, 3);
		put_views(guest);
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
		struct ferry_guest_host host = { record_write, NULL, &shared->record };
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
		guest = open_guest(&vm, FERRY_GUEST_SOURCE, &host, shared->record.undo, held);
		OK(guest->ops->undo(guest, true, &err));
		assert_put_back(&vm);
		assert_status(&vm, "running");
		guest->ops->close(guest);
		close(pair[0]);
		close(pair[1]);
	}
	vm_stop(&vm);
	munmap(shared, sizeof(*shared));
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
	guest = open_guest(&vm, FERRY_GUEST_SOURCE, NULL, NULL, -1);
	OK(guest->ops->check(guest, &err));
	OK(guest->ops->userfaultfd(guest, &uffd, &err));
	assert_true(uffd >= 0);
	close(uffd);
	assert_put_back(&vm); /* no copy stays, even without undo */
	OK(guest->ops->undo(guest, true, &err));
	guest->ops->close(guest);
	vm_stop(&vm);
}

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
		guest = open_guest(&vm, FERRY_GUEST_SOURCE, NULL, NULL, -1);
		OK(guest->ops->check(guest, &err));
		guest->ops->views(guest, &views);
		for (j = 0; j < 5; j++) {
			put_views(guest);
			assert_put_back(&vm); /* a plain one has no flags of its own */
			/* It can be described, and switched, with what is there now. */
			OK(guest->ops->check(guest, &err));
			OK(views.unmap(views.ctx, &err));
			assert_put_back(&vm);
			OK(views.unmap(views.ctx, &err));
		}
		assert_status(&vm, "running");
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
	guest = open_guest(&vm, FERRY_GUEST_SOURCE, NULL, NULL, -1);
	OK(guest->ops->describe(guest, &ram, &err));
	guest->ops->views(guest, &views);
	/* Of another file. */
	other = memfd_create("other", MFD_CLOEXEC);
	assert_int_equal(views.map(views.ctx, &ram, &other, &err), -ENXIO);
	assert_non_null(strstr(err.text, "putting tracked views of guest RAM into QEMU"));
	assert_put_back(&vm);
	/* RAM that is no longer where it was. */
	ram.blocks[0].vmm_addr += FERRY_PAGE_SIZE;
	assert_int_equal(views.map(views.ctx, &ram, &ram.blocks[0].fd, &err), -ENXIO);
	assert_put_back(&vm);
	OK(guest->ops->undo(guest, true, &err));
	assert_put_back(&vm);
	assert_status(&vm, "running");
	close(other);
	ferry_ram_free(&ram);
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
	guest = open_guest(&vm, FERRY_GUEST_SOURCE, NULL, NULL, -1);
	{
		struct ferry_guest_open_params params = { .spec = vm.spec, .held_fd = -1,
							  .timeout_ms = 300 };

		assert_int_equal(ferry_guest_open(&params, &second, &err), -EBUSY);
		assert_non_null(strstr(err.text, "add a second -qmp socket"));
	}
	guest->ops->close(guest);
	vm_stop(&vm);
}

static int have_qemu(void)
{
	return system("command -v " QEMU " >/dev/null 2>&1") == 0 &&
	       access("/dev/userfaultfd", R_OK | W_OK) == 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(refusals),
		cmocka_unit_test(all_kinds_of_files_are_found),
		cmocka_unit_test(a_memfd_backend_is_found),
		cmocka_unit_test(several_blocks_and_pieces_are_found),
		cmocka_unit_test(a_stopped_guest_never_starts_by_itself),
		cmocka_unit_test(state_moves_and_the_guest_runs),
		cmocka_unit_test(source_undo_at_every_step),
		cmocka_unit_test(strays_are_turned_off_and_come_back),
		cmocka_unit_test(a_paused_guest_stays_paused),
		cmocka_unit_test(a_state_beyond_the_bound_is_refused),
		cmocka_unit_test(a_bad_state_ends_the_destination),
		cmocka_unit_test(coupled),
		cmocka_unit_test(coupled_and_failing),
		cmocka_unit_test(destination_undo),
		cmocka_unit_test(a_rollback_gets_its_disk_back),
		cmocka_unit_test(a_killed_qemu_is_told_at_once),
		cmocka_unit_test(another_process_takes_over),
		cmocka_unit_test(a_confined_qemu_gives_a_userfaultfd),
		cmocka_unit_test(views_come_and_go),
		cmocka_unit_test(views_that_cannot_be_put_in),
		cmocka_unit_test(a_passed_socket_names_qemu),
		cmocka_unit_test(a_second_client_is_told),
	};

	if (!have_qemu()) {
		printf("1..0 # SKIP needs " QEMU " and the right to open /dev/userfaultfd\n");
		return 0;
	}
	return cmocka_run_group_tests(tests, NULL, NULL);
}
