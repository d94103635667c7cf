// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A live port of libferry and a peer that says anything, descriptors included. Whatever it
 * said: the port answers the next agent, and all the peer had set up is gone.
 *
 * Input: a byte of flags (1 HELLO was said, 2 incoming, 4 without RAM), then packets, each two bytes
 * (length, descriptor) and the body; the header's type is the body's first byte, so that
 * most packets are nearly right.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "include/ferry.h"
#include "port/channel.h"

#define BYTES (64 * 4096ul)
#define MAX_PACKETS 32

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct {
	struct ferry_port *port;
	char path[64];
	uint8_t *ram;
	int fd, sealed, log, null;
	int running, logging, quiesced, adopts;
	unsigned int percent;
} vmm;

static void must(int good)
{
	if (!good)
		abort();
}

static int do_pause(void *ctx)
{
	(void)ctx;
	vmm.running = 0;
	return 0;
}

static int do_resume(void *ctx)
{
	(void)ctx;
	must(!vmm.quiesced);
	vmm.running = 1;
	return 0;
}

static int do_running(void *ctx)
{
	(void)ctx;
	return vmm.running;
}

static int do_save(void *ctx, int fd)
{
	(void)ctx;
	must(!vmm.running);
	return write(fd, "state", 5) == 5 ? 0 : -EIO;
}

static int do_load(void *ctx, int fd)
{
	char buf[16];

	(void)ctx;
	must(!vmm.running);
	return read(fd, buf, sizeof(buf)) < 0 ? -EIO : 0;
}

static int do_run(void *ctx)
{
	return do_resume(ctx);
}

static void do_quit(void *ctx)
{
	(void)ctx;
}

static int do_log(void *ctx)
{
	(void)ctx;
	must(!vmm.logging);
	vmm.logging = 1;
	return 0;
}

static void do_unlog(void *ctx)
{
	(void)ctx;
	must(vmm.logging);
	vmm.logging = 0;
}

static int do_sync(void *ctx, const char *name, uint64_t *bitmap, uint64_t pages)
{
	(void)ctx;
	(void)name;
	must(vmm.logging && pages == BYTES / 4096 && !bitmap[0]);
	bitmap[0] = 5;
	return 0;
}

static int do_throttle(void *ctx, unsigned int percent)
{
	(void)ctx;
	must(percent < 100);
	vmm.percent = percent;
	return 0;
}

static int do_quiesce(void *ctx, int on)
{
	(void)ctx;
	must(vmm.quiesced == !on && !(on && vmm.running));
	vmm.quiesced = on;
	return 0;
}

/* It may be of any size; what does not fit the descriptor the library refuses afterwards. */
static int do_adopt(void *ctx, struct ferry_port_ram *ram)
{
	(void)ctx;
	must(vmm.adopts && ram->name[0] && strlen(ram->name) <= FERRY_PROTO_MAX_NAME && ram->bytes);
	if (ram->fd >= 0)
		ram->addr = vmm.ram;
	return 0;
}

static int memory(size_t bytes, int seals)
{
	int fd = memfd_create("fuzz", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	must(fd >= 0 && !ftruncate(fd, (off_t)bytes) && !fcntl(fd, F_ADD_SEALS, seals));
	return fd;
}

static void start(int incoming, int adopts)
{
	const struct ferry_port_ops ops = {
		.struct_size = sizeof(ops), .kind = "fuzz/1",
		.pause = do_pause, .resume = do_resume, .running = do_running, .save = do_save,
		.load = do_load, .run = do_run, .quit = do_quit, .dirty_start = do_log,
		.dirty_stop = do_unlog, .dirty_sync = do_sync, .throttle = do_throttle,
		.quiesce = do_quiesce, .adopt = adopts ? do_adopt : NULL,
	};
	struct ferry_port_ram ram = { .struct_size = sizeof(ram), .name = "ram", .bytes = BYTES };

	if (!vmm.path[0]) {
		snprintf(vmm.path, sizeof(vmm.path), "/tmp/ferry-fuzz-port-%d", (int)getpid());
		vmm.fd = memory(BYTES, F_SEAL_SHRINK | F_SEAL_GROW);
		vmm.sealed = memory(8, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW);
		vmm.log = memory(8, F_SEAL_SHRINK | F_SEAL_GROW);
		vmm.null = open("/dev/null", O_RDWR | O_CLOEXEC);
		vmm.ram = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, vmm.fd, 0);
		must(vmm.ram != MAP_FAILED && vmm.null >= 0);
	}
	ram.fd = vmm.fd;
	ram.addr = vmm.ram;
	must(!ferry_port_create(&ops, NULL, incoming ? FERRY_PORT_INCOMING : 0, &vmm.port));
	must(adopts || !ferry_port_add_ram(vmm.port, &ram));
	must(!ferry_port_listen(vmm.port, vmm.path));
	vmm.running = !incoming;
	vmm.quiesced = 0;
	vmm.adopts = adopts;
}

static void drain(int sock)
{
	struct ferry_channel_message m;
	int r;

	do {
		must(!ferry_port_process(vmm.port));
		r = ferry_channel_receive(sock, &m);
		if (!r)
			must(m.head.flags & FERRY_PROTO_REPLY);
		if (m.fd >= 0)
			close(m.fd);
	} while (!r);
	/* What it says is well-formed, always. */
	must(r == -EAGAIN || r == -EPIPE);
}

static void say_hello(int sock)
{
	struct ferry_proto_hello h = { .version = 1, .min_version = 1,
				       .role = FERRY_PROTO_ROLE_AGENT };
	struct ferry_channel_message m = { .head.type = FERRY_PROTO_HELLO, .fd = -1 };

	m.head.length = (uint32_t)ferry_proto_hello_encode(&h, m.body);
	must(!ferry_channel_send(sock, &m));
	must(!ferry_port_process(vmm.port));
	must(!ferry_channel_receive(sock, &m) && !m.head.status);
}

static void say(int sock, const uint8_t **data, size_t *size)
{
	const int fds[] = { -1, vmm.sealed, vmm.log, vmm.null, vmm.fd };
	struct ferry_channel_message m = { .fd = fds[(*data)[1] % 5] };
	size_t len = (*data)[0];

	*data += 2;
	*size -= 2;
	if (len > *size)
		len = *size;
	m.head.type = len ? (*data)[0] : 0;
	m.head.length = len ? (uint32_t)len - 1 : 0;
	if (len)
		memcpy(m.body, *data + 1, len - 1);
	*data += len;
	*size -= len;
	/* After a nonsense packet it may have gone. */
	must(!ferry_channel_send(sock, &m) || errno == EPIPE);
	drain(sock);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	int sock, i;

	start(size && data[0] & 2, size && (data[0] & 6) == 6);
	sock = ferry_channel_connect(vmm.path);
	must(sock >= 0);
	if (size && data[0] & 1)
		say_hello(sock);
	data += !!size;
	size -= !!size;
	for (i = 0; i < MAX_PACKETS && size >= 2; i++)
		say(sock, &data, &size);
	close(sock);
	must(!ferry_port_process(vmm.port));
	must(!ferry_port_attached(vmm.port) && !vmm.logging && !vmm.percent);
	vmm.ram[0] = 1; /* RAM is there, whatever was mapped over it */
	sock = ferry_channel_connect(vmm.path);
	must(sock >= 0);
	say_hello(sock);
	close(sock);
	ferry_port_destroy(vmm.port);
	return 0;
}
