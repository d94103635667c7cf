// SPDX-License-Identifier: GPL-2.0-or-later
#include "qemu_rig.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/io.h"
#include "guest/json.h"
#include "guest/proc.h"

#define QEMU "qemu-system-x86_64"
#define START_MS 20000
#define NOBODY 65534
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

void vm_start(struct vm *vm, const struct how *how)
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
	vm->before = vm_look(vm);
}

void vm_stop(struct vm *vm)
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

struct json_object *vm_ask(struct vm *vm, const char *command)
{
	struct ferry_error err = { 0 };
	struct json_object *reply;

	if (ferry_qmp_command(vm->spy, command, NULL, -1, &reply, &err))
		fail_msg("%s: %s", command, err.text);
	return reply;
}

void vm_assert_status(struct vm *vm, const char *expected)
{
	struct json_object *reply = vm_ask(vm, "query-status");

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

char *vm_look(struct vm *vm)
{
	struct json_object *caps = vm_ask(vm, "query-migrate-capabilities");
	struct json_object *params = vm_ask(vm, "query-migrate-parameters");
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

void vm_assert_put_back(struct vm *vm)
{
	char *now = vm_look(vm);

	assert_string_equal(now, vm->before);
	free(now);
}

bool vm_ended(struct vm *vm)
{
	uint64_t deadline_ns = ferry_clock_in_ms(10000);

	while (ferry_clock_ns() < deadline_ns) {
		if (waitpid(vm->pid, NULL, WNOHANG) == vm->pid)
			return true;
		ferry_clock_sleep_ns(FERRY_NS_PER_MS);
	}
	return false;
}

void vm_copy_ram(struct vm *from, struct vm *to)
{
	static char buf[16 << 20];
	int a = open(from->ram, O_RDONLY), b = open(to->ram, O_WRONLY);

	assert_int_equal(ferry_io_pread(a, buf, sizeof(buf), 0), 0);
	assert_int_equal(ferry_io_pwrite(b, buf, sizeof(buf), 0), 0);
	close(a);
	close(b);
}

struct ferry_guest *vm_open_guest(struct vm *vm, enum ferry_guest_role role,
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

struct ferry_guest *vm_open(struct vm *vm, enum ferry_guest_role role)
{
	return vm_open_guest(vm, role, NULL, NULL, -1);
}

void vm_end_pair(struct ferry_guest *from, struct vm *a, struct ferry_guest *to, struct vm *b,
		 uint8_t *blob)
{
	free(blob);
	from->ops->close(from);
	to->ops->close(to);
	vm_stop(a);
	vm_stop(b);
}

int rig_record_write(void *ctx, const char *undo, struct ferry_error *err)
{
	struct record *record = ctx;

	(void)err;
	snprintf(record->undo, sizeof(record->undo), "%s", undo);
	record->writes++;
	return 0;
}

void rig_put_views(struct ferry_guest *guest)
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

void rig_source_steps(struct ferry_guest *guest, int steps)
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
		rig_put_views(guest);
	free(blob);
	ferry_io_close(&uffd);
}

bool rig_have_qemu(void)
{
	if (system("command -v " QEMU " >/dev/null 2>&1") == 0 &&
	    access("/dev/userfaultfd", R_OK | W_OK) == 0)
		return true;
	printf("1..0 # SKIP needs " QEMU " and the right to open /dev/userfaultfd\n");
	return false;
}
