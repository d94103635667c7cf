/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef FERRY_H
#define FERRY_H

#include <stddef.h>
#include <stdint.h>

/*
 * libferry: let a VMM be migrated by the `ferry` agent.
 *
 * A VMM describes its guest RAM (shared file memory: a memfd) and hands over a few
 * callbacks; the agent, another process, connects to a socket of the VMM and does the
 * rest. The library carries out single requests and decides nothing: when to pause, what
 * to copy and who owns the guest is the agent's business.
 *
 *	static const struct ferry_port_ops ops = {
 *		.struct_size = sizeof(ops), .kind = "my-vmm/1",
 *		.pause = my_pause, .resume = my_resume, .running = my_running,
 *		.save = my_save, .load = my_load, .run = my_run, .quit = my_quit,
 *	};
 *	struct ferry_port_ram ram = {
 *		.struct_size = sizeof(ram), .name = "ram", .fd = memfd,
 *		.bytes = bytes, .addr = mapping,
 *	};
 *
 *	ferry_port_create(&ops, vm, 0, &port);
 *	ferry_port_add_ram(port, &ram);
 *	ferry_port_listen(port, "/run/vm1.port");
 *	ferry_port_start(port);		(or ferry_port_fd() and ferry_port_process())
 *
 * and then `ferry send port:/run/vm1.port tcp:HOST:PORT`. A complete VMM of a page is in
 * Documentation/port.rst; user/vmm is one with KVM.
 *
 * Errors: 0 or a positive count on success, a negative errno otherwise.
 *
 * Threads: callbacks are called one at a time, from the thread that the library started
 * (ferry_port_start()) or from within ferry_port_process(). They may block; while one
 * does, the agent waits, by default up to 30 seconds, and no other request is served. A
 * postcopy destination must not call ferry_port_process() from a thread that touches
 * guest RAM otherwise (a vCPU's, a device's): it would wait there for pages whose arrival
 * it has to help with. No lock of the library is held in a callback; it may call
 * ferry_port_set_error() and ferry_port_attached(), and nothing else here. All other
 * functions may be called from any thread.
 *
 * When the agent's connection ends, the library takes back by itself what serves nobody
 * else: tracked views, the dirty log, the throttle. It never changes the run state then:
 * who owns the guest is written in the agent's records, and `ferry resume` acts on them.
 */

#ifdef __cplusplus
extern "C" {
#endif

#define FERRY_PORT_API_VERSION 1

/* Unit of the dirty log's bitmaps, whatever backs the RAM. */
#define FERRY_PORT_PAGE_BYTES 4096

struct ferry_port;
struct ferry_port_ram;

/**
 * struct ferry_port_ops - what the VMM does when the agent asks
 * @struct_size: sizeof(struct ferry_port_ops), so that it can grow
 * @kind: which VMM and which format of device state, such as "my-vmm/1": 1 to 63 printable
 *	ASCII characters. Guests only move between VMMs of equal kind
 * @pause: stop all vCPUs, then finish or stop everything else that writes guest RAM: after
 *	it returns 0 no byte of guest RAM changes until @resume or @run. Nothing to do for a
 *	guest that is paused already. On failure the guest runs as before
 * @resume: go on after @pause, at the side where the guest ran; also long after, and after
 *	a @save. Nothing to do for a guest that runs
 * @running: 1 when vCPUs may execute, 0 when the guest is paused or was never started. NULL where
 *	nothing but these callbacks ever pauses the guest
 * @save: write the device state of a paused guest to @fd, a memory file positioned at 0,
 *	open for reading and writing; it has the format that @kind names and holds no guest
 *	RAM. The guest stays paused and must be able to @resume. Does not close @fd
 * @load: read such a state from @fd, sealed against changes, up to its end. The guest stays
 *	paused. Bytes come from another host: check them. On failure nothing but @quit
 *	follows. May write guest RAM. Does not close @fd
 * @run: start the guest at the destination, after @load. 0: it runs. A negative errno
 *	promises that no vCPU executed anything and none will: the source then goes on
 * @quit: end the VMM soon: the guest is elsewhere, or must never run here. May exit(3),
 *	or return and let the VMM end itself within seconds (else it is killed). NULL: the
 *	library sends SIGTERM to this process
 * @check: optional: 0, or -errno when something forbids a migration just now (a device that
 *	cannot be saved); say what with ferry_port_set_error(). Changes nothing
 * @direct_io: optional: can a device or the kernel write guest RAM past the page tables
 *	now (VFIO, O_DIRECT disks, registered buffers)? 1 with @why naming what, else 0.
 *	NULL counts as 1, and the agent then compares pages again after the final pause, unless
 *	FERRY_PORT_NO_DIRECT_IO says that there never is any
 * @dirty_start: optional, with @dirty_stop and @dirty_sync all or none: start the VMM's own
 *	dirty log (KVM's, plus what the flags FERRY_PORT_LOG_... promise). Every write after
 *	it returns is reported once by @dirty_sync; pages written before may be
 * @dirty_stop: end that log. Also called when the agent has gone
 * @dirty_sync: set the bit of each page of the block @name written since the last call:
 *	bit n%64 of @bitmap[n/64] for the bytes from n * FERRY_PORT_PAGE_BYTES on. @bitmap is
 *	zero and holds @pages rounded up to a multiple of 64 bits: KVM_GET_DIRTY_LOG may
 *	write there. Bits at and past @pages are ignored. Called while the guest runs, too
 * @throttle: optional: let the vCPUs run only (100 - @percent) % of the time; 0 ends it.
 *	0 to 99. Also called with 0 when the agent has gone
 * @quiesce: optional: with @on 1, of a paused guest: let go of all that must not be held by
 *	two VMMs or that pins guest RAM (vhost ownership, DMA mappings), because another VMM
 *	takes over the same RAM; with @on 0: take it back. The library calls it with 0 before
 *	@resume and @run if need be
 * @adopt: optional, of a port made with FERRY_PORT_INCOMING and without RAM: take over a block
 *	of the guest's RAM from another VMM of this host, whose guest has been paused and its
 *	devices let go: map @ram->fd shared as the other members of @ram say, readable and
 *	writable, and set @ram->addr. Before @load, once for each block. Touch no byte of it
 *	here, nor populate the mapping (MAP_POPULATE, mlock): what @load touches can be undone,
 *	this could not. With @ram->fd -1: only say whether such a block would do, change nothing.
 *	The descriptor is the library's; duplicate it to keep it
 *
 * Called in the thread that serves the port, one at a time; each may block (see above).
 * @ctx is what ferry_port_create() was given. Of a member (ferry_port_join()) none is
 * called.
 */
struct ferry_port_ops {
	size_t struct_size;
	const char *kind;

	int (*pause)(void *ctx);
	int (*resume)(void *ctx);
	int (*running)(void *ctx);
	int (*save)(void *ctx, int fd);
	int (*load)(void *ctx, int fd);
	int (*run)(void *ctx);
	void (*quit)(void *ctx);

	int (*check)(void *ctx);
	int (*direct_io)(void *ctx, char *why, size_t why_bytes);
	int (*dirty_start)(void *ctx);
	void (*dirty_stop)(void *ctx);
	int (*dirty_sync)(void *ctx, const char *name, uint64_t *bitmap, uint64_t pages);
	int (*throttle)(void *ctx, unsigned int percent);
	int (*quiesce)(void *ctx, int on);

	int (*adopt)(void *ctx, struct ferry_port_ram *ram);
};

/* Flags of ferry_port_create(). */

/* The guest has not run here: it waits to be loaded. Once it ran, it can be sent on. */
#define FERRY_PORT_INCOMING (1u << 0)
/*
 * The dirty log has not only what vCPUs write but all that this process writes into guest
 * RAM: emulated devices, virtio back ends, loaders. Without this flag the agent does not
 * rely on the log alone. (Direct I/O need not be in it; see direct_io.)
 */
#define FERRY_PORT_LOG_PROCESS (1u << 1)
/* The dirty log also has what registered further processes write (vhost-user's log). */
#define FERRY_PORT_LOG_MEMBERS (1u << 2)
/* This VMM has no direct I/O, now or ever; in the place of a direct_io that always returns 0. */
#define FERRY_PORT_NO_DIRECT_IO (1u << 3)

/**
 * ferry_port_create() - a port, not yet reachable
 * @ops: copied; NULL for a member only (see ferry_port_join())
 * @ctx: given to every callback
 * @flags: FERRY_PORT_...
 * @out: the port, ended by ferry_port_destroy()
 *
 * Return: 0; -EINVAL (a callback that must be there is not, @kind, flags, struct_size);
 * -E2BIG (@ops is larger than this library knows and not zero there); -ENOMEM, -EMFILE.
 */
int ferry_port_create(const struct ferry_port_ops *ops, void *ctx, unsigned int flags,
		      struct ferry_port **out);

/**
 * ferry_port_destroy() - stop serving, close all descriptors, remove the socket, free
 * @port: or NULL
 *
 * The guest is left as it is, tracked views are taken off. Not from a callback.
 */
void ferry_port_destroy(struct ferry_port *port);

/**
 * struct ferry_port_ram - one block of guest RAM
 * @struct_size: sizeof(struct ferry_port_ram), so that it can grow
 * @name: unique; equal on both sides of a migration; 1 to 127 printable ASCII characters
 * @fd: a memfd or a file on tmpfs or hugetlbfs; duplicated
 * @fd_offset: where the block begins in it, a multiple of @page_bytes
 * @bytes: size, a multiple of @page_bytes, at least one page
 * @addr: where this process has it mapped, shared: the mapping that vCPUs use, of the whole
 *	block, readable and writable. It must stay there until ferry_port_destroy(), and must
 *	be made of pages of @fd only; the library may map a tracked view of the same pages
 *	over it and back
 * @page_bytes: size of the pages behind it; 0: what @fd has. hugetlb only of 2 MiB
 * @flags: 0
 */
struct ferry_port_ram {
	size_t struct_size;
	const char *name;
	int fd;
	uint32_t flags;
	uint64_t fd_offset;
	uint64_t bytes;
	void *addr;
	uint64_t page_bytes;
};

/**
 * ferry_port_add_ram() - a further block of guest RAM
 *
 * Return: 0; -EINVAL (a field above; @fd is no memory file or too short); -EEXIST (name);
 * -E2BIG (too many blocks: 256); -EBUSY (an agent is attached, or a member has joined);
 * -ENOMEM, -EMFILE.
 */
int ferry_port_add_ram(struct ferry_port *port, const struct ferry_port_ram *ram);

/**
 * ferry_port_listen() - make the socket, reachable by processes of the same user
 * @path: at most 107 bytes; a socket left there by a process that has ended is replaced
 *
 * The mode is 0600; chmod(2) or chown(2) it afterwards to let others in. Whoever can connect
 * can read and write the guest's memory.
 *
 * Return: 0; -EINVAL (no ops or no RAM); -EALREADY; -EADDRINUSE (somebody listens there, or
 * it is no socket); -ENAMETOOLONG; the errno of socket(2), bind(2).
 */
int ferry_port_listen(struct ferry_port *port, const char *path);

/**
 * ferry_port_listen_fd() - listen on a socket that was made before (by a supervisor)
 * @fd: AF_UNIX, SOCK_SEQPACKET, bound, listening or not; owned by the port on success, and
 *	its path is not removed in the end
 *
 * Return: as ferry_port_listen(); -EPROTOTYPE for another kind of socket.
 */
int ferry_port_listen_fd(struct ferry_port *port, int fd);

/**
 * ferry_port_join() - register this process as one more that maps the guest's RAM
 * @port: made with NULL ops, and with the blocks it maps added: same names and sizes as the
 *	VMM has, at addresses of its own
 * @path: the VMM's port
 *
 * For vhost-user back ends and the like. Serve it like any port. The agent then tracks this
 * process's writes too; a process that maps guest RAM and did not join forbids a migration.
 * Pausing and saving it is the VMM's business, which has its control socket. Waits until the
 * VMM has answered, up to 5 seconds.
 *
 * Return: 0; -EBUSY (an agent is attached to the VMM: touch no guest RAM, try again later);
 * -ENOENT, -ECONNREFUSED (nobody serves there); -EINVAL (no such block there, ops, no RAM);
 * -EALREADY; -EPROTO (not a port, or no common version); -E2BIG (too many members: 16);
 * -ETIMEDOUT.
 */
int ferry_port_join(struct ferry_port *port, const char *path);

/**
 * ferry_port_start() - serve in a thread of the library's own
 *
 * All signals are blocked in it. Return: 0; -EINVAL (neither listening nor joined); -EALREADY;
 * -EAGAIN.
 */
int ferry_port_start(struct ferry_port *port);

/**
 * ferry_port_stop() - end that thread, after the request it is in
 *
 * Connections stay and wait for ferry_port_start() or ferry_port_process(). Return: 0;
 * -EINVAL (it was not started); -EDEADLK (called from a callback).
 */
int ferry_port_stop(struct ferry_port *port);

/**
 * ferry_port_fd() - a descriptor for poll(2), readable when ferry_port_process() is due
 *
 * One descriptor for the whole life of the port; not for read(2) or close(2).
 */
int ferry_port_fd(struct ferry_port *port);

/**
 * ferry_port_process() - carry out all requests that have come, then return
 *
 * Never waits for a request; callbacks are called from here. One thread at a time, and not
 * while ferry_port_start()'s serves.
 *
 * Return: 0; -EBUSY (the other thread serves); -ENOTCONN (a member: the VMM has gone);
 * -ENOMEM, -EMFILE: try again.
 */
int ferry_port_process(struct ferry_port *port);

/**
 * ferry_port_attached() - is an agent connected now?
 *
 * While it is, do not plug RAM or devices. Return: 1 or 0.
 */
int ferry_port_attached(struct ferry_port *port);

/**
 * ferry_port_set_error() - say why, from a callback that returns a negative errno
 * @fmt: printf format of what went wrong and what to do; cut after 511 bytes
 *
 * Shown to the person who migrates. Without it the errno's text is.
 */
void ferry_port_set_error(struct ferry_port *port, const char *fmt, ...)
#if defined(__GNUC__)
	__attribute__((format(printf, 2, 3)))
#endif
	;

/** ferry_version() - of the library that runs, such as "1.0". */
const char *ferry_version(void);

#ifdef __cplusplus
}
#endif

#endif
