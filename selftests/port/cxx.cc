// SPDX-License-Identifier: GPL-2.0-or-later
// The header from C++, linked and run: a port is made, reachable, and gone again.
#include <ferry.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <sys/mman.h>
#include <unistd.h>

namespace {

struct vm {
	int paused;
};

int call(void *ctx)
{
	static_cast<vm *>(ctx)->paused++;
	return 0;
}

int state(void *, int) { return 0; }
void quit(void *) {}

} // namespace

int main(int argc, char **argv)
{
	struct ferry_port *port = NULL;
	struct ferry_port_ops ops = ferry_port_ops();
	struct ferry_port_ram ram = ferry_port_ram();
	const size_t bytes = 1 << 20;
	vm v = { 0 };

	if (argc < 2)
		return 2;
	ops.struct_size = sizeof(ops);
	ops.kind = "cxx/1";
	ops.pause = ops.resume = ops.running = ops.run = call;
	ops.save = ops.load = state;
	ops.quit = quit;
	ram.struct_size = sizeof(ram);
	ram.name = "ram";
	ram.fd = memfd_create("cxx", MFD_CLOEXEC);
	ram.bytes = bytes;
	if (ram.fd < 0 || ftruncate(ram.fd, bytes))
		return 2;
	ram.addr = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, ram.fd, 0);
	int r = ferry_port_create(&ops, &v, 0, &port);
	if (!r)
		r = ferry_port_add_ram(port, &ram);
	if (!r)
		r = ferry_port_listen(port, argv[1]);
	if (!r)
		r = ferry_port_start(port);
	if (!r)
		r = ferry_port_stop(port);
	if (!r)
		r = ferry_port_process(port);
	if (!r && (ferry_port_attached(port) || access(argv[1], F_OK)))
		r = -EIO;
	ferry_port_destroy(port);
	if (!r && !access(argv[1], F_OK))
		r = -EEXIST;
	std::printf("%s %s\n", ferry_version(), r ? std::strerror(-r) : "works");
	return r != 0;
}
