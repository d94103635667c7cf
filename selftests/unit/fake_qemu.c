// SPDX-License-Identifier: GPL-2.0-or-later
#include "fake_qemu.h"

#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
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

#include "base/io.h"
#include "guest/json.h"

static const struct answer healthy[] = {
	{ "qmp_capabilities", "{}" },
	{ "query-version", "{\"qemu\":{\"major\":7,\"minor\":2,\"micro\":22}}" },
	{ "query-status", "{\"status\":\"running\",\"running\":true}" },
	{ "\"query-migrate\"", "{}" },
	{ "query-memdev", "[{\"id\":\"m\",\"size\":1048576,\"share\":true}]" },
	{ "\"property\":\"type\"", "\"memory-backend-file\"" },
	{ "\"property\":\"mem-path\"", "\"$RAM\"" },
	{ "\"property\":\"discard-data\"", "false" },
	{ "qom-list", "[{\"name\":\"type\",\"type\":\"string\"},"
		      "{\"name\":\"net0\",\"type\":\"child<virtio-net-pci>\"}]" },
	{ "human-monitor-command", "\"net0: type=user\"" },
	{ "query-memory-devices", "[]" },
	{ "query-named-block-nodes",
	  "[{\"node-name\":\"d0\",\"drv\":\"file\",\"cache\":{\"direct\":false}}]" },
	{ "query-migrate-capabilities", "[{\"capability\":\"x-ignore-shared\",\"state\":false},"
					"{\"capability\":\"multifd\",\"state\":true}]" },
	{ "query-migrate-parameters", "{\"max-bandwidth\":1,\"tls-creds\":\"\"}" },
	{ "cont", "{}" },
	{ "stop", "{}" },
	{ "getfd", "{}" },
	{ "closefd", "!none" },
	{ "", "!unknown command" },
};

static const char *look_up(const struct answer *table, const char *line)
{
	for (; table && table->match; table++) {
		if (strstr(line, table->match))
			return table->reply;
		if (!table->match[0])
			return table->reply;
	}
	return NULL;
}

static void fake_answer(const struct fake *f, int fd, const char *line,
			const struct answer *overrides)
{
	struct json_object *command = json_tokener_parse(line);
	const char *reply = look_up(overrides, line), *id = ferry_json_string(command, "id");
	char *text;
	int n;

	if (!reply)
		reply = look_up(healthy, line);
	if (!strcmp(reply, "DIE"))
		raise(SIGKILL);
	if (!strcmp(reply, "MUTE")) {
		json_object_put(command);
		return;
	}
	if (!strcmp(reply, "\"$RAM\""))
		n = asprintf(&text, "{\"return\":\"%s\",\"id\":\"%s\"}\n", f->ram, id);
	else if (reply[0] == '!')
		n = asprintf(&text, "{\"error\":{\"desc\":\"%s\"},\"id\":\"%s\"}\n", reply + 1, id);
	else
		n = asprintf(&text, "{\"return\":%s,\"id\":\"%s\"}\n", reply, id);
	ferry_io_write(fd, text, (size_t)n, UINT64_MAX);
	free(text);
	json_object_put(command);
}

static void fake_main(const struct fake *f, int listener, const struct answer *overrides)
{
	static const char greeting[] = "{\"QMP\":{\"version\":{}}}\n";
	char line[4096];
	size_t n = 0;
	int fd;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	while ((fd = accept(listener, NULL, NULL)) >= 0) {
		ferry_io_write(fd, greeting, strlen(greeting), UINT64_MAX);
		while (n < sizeof(line) - 1 && read(fd, line + n, 1) == 1) {
			if (line[n++] != '\n')
				continue;
			line[n] = '\0';
			n = 0;
			if ((unsigned char)line[0] == 0xff)
				continue;
			fake_answer(f, fd, line, overrides);
		}
		close(fd);
	}
	_exit(0);
}

void map_ram(const char *path, int flags)
{
	int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);

	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, RAM_BYTES), 0);
	assert_ptr_not_equal(mmap(NULL, RAM_BYTES, PROT_READ | PROT_WRITE, flags, fd, 0),
			     MAP_FAILED);
	close(fd);
}

void fake_start_at(struct fake *f, const struct answer *overrides, const char *ram_dir,
			  int flags)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int listener, ready[2];
	char c;

	strcpy(f->dir, "/tmp/ferry-test-qemu-XXXXXX");
	assert_non_null(mkdtemp(f->dir));
	snprintf(f->path, sizeof(f->path), "%s/q", f->dir);
	snprintf(f->ram, sizeof(f->ram), "%s/ferry-test-qemu-%d", ram_dir, getpid());
	memcpy(addr.sun_path, f->path, sizeof(f->path));
	assert_int_equal(pipe2(ready, O_CLOEXEC), 0);
	f->pid = fork();
	assert_true(f->pid >= 0);
	if (!f->pid) {
		if (flags)
			map_ram(f->ram, flags);
		listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
		if (bind(listener, (struct sockaddr *)&addr, sizeof(addr)) || listen(listener, 1))
			_exit(1);
		close(ready[0]);
		if (write(ready[1], "x", 1) != 1)
			_exit(1);
		fake_main(f, listener, overrides);
	}
	close(ready[1]);
	assert_int_equal(read(ready[0], &c, 1), 1);
	close(ready[0]);
}

void fake_start(struct fake *f, const struct answer *overrides)
{
	fake_start_at(f, overrides, "/dev/shm", MAP_SHARED);
}

void fake_stop(struct fake *f)
{
	kill(f->pid, SIGKILL);
	waitpid(f->pid, NULL, 0);
	unlink(f->path);
	unlink(f->ram);
	rmdir(f->dir);
}

struct ferry_guest *fake_open_with(const struct fake *f, enum ferry_guest_role role,
				   const char *undo, const pid_t *peer)
{
	char spec[128];
	struct ferry_guest_open_params params = { .spec = spec, .role = role, .timeout_ms = 1000,
						  .held_fd = -1, .undo = undo, .peers = peer,
						  .n_peers = peer ? 1 : 0 };
	struct ferry_error err = { 0 };
	struct ferry_guest *guest;

	snprintf(spec, sizeof(spec), "qmp:%s", f->path);
	if (ferry_guest_open(&params, &guest, &err))
		fail_msg("open: %s", err.text);
	return guest;
}

struct ferry_guest *fake_open(const struct fake *f, enum ferry_guest_role role)
{
	return fake_open_with(f, role, NULL, NULL);
}
