// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * owner PORT DEVICE [incoming | careless] [NAME]: a VMM whose device can have one owner, as
 * vhost has. It is a file with a lock on it. Who takes over the RAM takes the device, and
 * answers EBUSY as long as somebody else has it; "careless" has no quiesce(). @NAME is added to
 * the device's path.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <unistd.h>

#include "include/ferry.h"

#define BYTES (1ul << 20)

static struct ferry_port *port;
static char device[4096];
static int held = -1, running;

static int take(void)
{
	held = open(device, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (held >= 0 && !flock(held, LOCK_EX | LOCK_NB))
		return 0;
	close(held);
	held = -1;
	ferry_port_set_error(port, "the device is held by another VMM");
	return -EBUSY;
}

static int on_pause(void *ctx)
{
	(void)ctx;
	running = 0;
	return 0;
}

static int on_resume(void *ctx)
{
	(void)ctx;
	running = 1;
	return held >= 0 ? 0 : -EBUSY;
}

static int on_running(void *ctx)
{
	(void)ctx;
	return running;
}

static int on_save(void *ctx, int fd)
{
	(void)ctx;
	return write(fd, "state", 5) == 5 ? 0 : -EIO;
}

static int on_load(void *ctx, int fd)
{
	char text[8];

	(void)ctx;
	return read(fd, text, sizeof(text)) == 5 ? 0 : -EPROTO;
}

static int on_run(void *ctx)
{
	int r = on_resume(ctx);

	printf("runs\n");
	fflush(stdout);
	return r;
}

static void on_quit(void *ctx)
{
	(void)ctx;
	exit(0);
}

static int on_quiesce(void *ctx, int on)
{
	(void)ctx;
	if (!on)
		return take();
	close(held);
	held = -1;
	return 0;
}

static int on_adopt(void *ctx, struct ferry_port_ram *ram)
{
	(void)ctx;
	if (ram->fd < 0)
		return 0;
	if (take())
		return -EBUSY;
	ram->addr = mmap(NULL, ram->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, ram->fd,
			 (off_t)ram->fd_offset);
	return ram->addr == MAP_FAILED ? -errno : 0;
}

int main(int argc, char **argv)
{
	const char *how = argc > 3 ? argv[3] : "";
	int incoming = !strcmp(how, "incoming"), r;
	struct ferry_port_ops ops = {
		.struct_size = sizeof(ops), .kind = "owner/1", .pause = on_pause,
		.resume = on_resume, .running = on_running, .save = on_save, .load = on_load,
		.run = on_run, .quit = on_quit, .adopt = on_adopt,
	};
	struct ferry_port_ram ram = { .struct_size = sizeof(ram), .name = "ram", .bytes = BYTES };

	if (argc < 3)
		return 2;
	snprintf(device, sizeof(device), "%s%s", argv[2], argc > 4 ? argv[4] : "");
	if (strcmp(how, "careless"))
		ops.quiesce = on_quiesce;
	r = ferry_port_create(&ops, NULL, incoming ? FERRY_PORT_INCOMING : 0, &port);
	if (!r && !incoming) {
		ram.fd = memfd_create("owner", MFD_CLOEXEC);
		if (ftruncate(ram.fd, BYTES) || take())
			return 1;
		ram.addr = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, ram.fd, 0);
		r = ferry_port_add_ram(port, &ram);
		running = 1;
	}
	if (!r)
		r = ferry_port_listen(port, argv[1]);
	if (!r)
		r = ferry_port_start(port);
	if (r) {
		fprintf(stderr, "%s: %s\n", argv[1], strerror(-r));
		return 1;
	}
	printf("ready\n");
	fflush(stdout);
	for (;;)
		pause();
}
