// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * libferry: the port of a VMM, and the loop that serves it.
 *
 * One epoll descriptor has everything: the listening socket, the connections, and an
 * eventfd that ends the thread. Whoever serves, the thread or ferry_port_process(), takes
 * one event at a time from it, so no connection can vanish under an event in hand.
 *
 * Connections are slots of a fixed array. A newcomer says HELLO and becomes the agent, of
 * which there is one, or a member that declares its blocks and joins. When a member's
 * process is asked for (MEMBER), the VMM makes a socket pair and gives one end to each:
 * the agent then talks to the member without the VMM between them, and when the agent
 * ends, each of its peers sees the end of its own connection and cleans up.
 *
 * What is undone then (port_detach()) is what serves nobody else: tracked views, the
 * dirty log, the throttle. Not the run state: a crash of the agent after its COMMIT must
 * not bring a guest back to life here that runs elsewhere by now. Not quiesce: another
 * VMM may own the devices; resume and run undo it. All that the agent holds only to be
 * there again after a crash, its guardian holds too, so that a worker's death alone does
 * not end the connection.
 */
#include "port/private.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

/* Events taken by one ferry_port_process(): nobody can keep it for ever. */
#define PORT_EVENTS 64
/* When there are no descriptors left, look again after this long. */
#define PORT_RETRY_MS 100

const char *ferry_version(void)
{
	return "1.0";
}

static bool is_printable(const char *text, size_t max)
{
	size_t i, len = strnlen(text, max + 1);

	for (i = 0; i < len; i++)
		if (text[i] < 0x20 || text[i] > 0x7e)
			return false;
	return len && len <= max;
}

/* A struct of a caller compiled against another version. */
static int copy_struct(void *to, size_t known, const void *from, size_t given, size_t least)
{
	size_t i;

	if (given < least)
		return -EINVAL;
	for (i = known; i < given; i++)
		if (((const uint8_t *)from)[i])
			return -E2BIG;
	memset(to, 0, known);
	memcpy(to, from, given < known ? given : known);
	return 0;
}

static int take_ops(struct ferry_port *port, const struct ferry_port_ops *ops)
{
	struct ferry_port_ops *o = &port->ops;
	/* Of library 1.0: what came later may be missing. */
	int r = copy_struct(o, sizeof(*o), ops, ops->struct_size,
			    offsetof(struct ferry_port_ops, adopt));

	if (r)
		return r;
	if (!o->kind || !is_printable(o->kind, FERRY_PROTO_MAX_KIND) || !o->pause || !o->resume ||
	    !o->save || !o->load || !o->run)
		return -EINVAL;
	if (!o->dirty_start != !o->dirty_stop || !o->dirty_start != !o->dirty_sync)
		return -EINVAL;
	if (o->direct_io && (port->flags & FERRY_PORT_NO_DIRECT_IO))
		return -EINVAL;
	if (!o->dirty_start && (port->flags & (FERRY_PORT_LOG_PROCESS | FERRY_PORT_LOG_MEMBERS)))
		return -EINVAL;
	strcpy(port->kind, o->kind);
	o->kind = port->kind;
	port->has_ops = true;
	return 0;
}

static int watch(struct ferry_port *port, int fd, void *what)
{
	struct epoll_event event = { .events = EPOLLIN, .data.ptr = what };

	return epoll_ctl(port->epoll_fd, EPOLL_CTL_ADD, fd, &event) ? -errno : 0;
}

int ferry_port_create(const struct ferry_port_ops *ops, void *ctx, unsigned int flags,
		      struct ferry_port **out)
{
	struct ferry_port *port;
	int r = 0;

	*out = NULL;
	if (flags & ~(FERRY_PORT_INCOMING | FERRY_PORT_LOG_PROCESS | FERRY_PORT_LOG_MEMBERS |
		      FERRY_PORT_NO_DIRECT_IO))
		return -EINVAL;
	if (!ops && flags)
		return -EINVAL;
	port = calloc(1, sizeof(*port));
	if (!port)
		return -ENOMEM;
	port->flags = flags;
	port->ctx = ctx;
	port->incoming = flags & FERRY_PORT_INCOMING;
	port->listen_fd = -1;
	port->wake_fd = -1;
	port->uffd_fd = -1;
	pthread_mutex_init(&port->lock, NULL);
	port->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (port->epoll_fd >= 0)
		port->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (port->wake_fd < 0)
		r = -errno;
	if (!r)
		r = watch(port, port->wake_fd, &port->wake_fd);
	if (!r && ops)
		r = take_ops(port, ops);
	if (r) {
		ferry_port_destroy(port);
		return r;
	}
	*out = port;
	return 0;
}

void ferry_port_destroy(struct ferry_port *port)
{
	unsigned int i;

	if (!port)
		return;
	if (port->threaded)
		ferry_port_stop(port);
	for (i = 0; i < PORT_CONNECTIONS; i++)
		if (port->connections[i].kind != PORT_FREE)
			port_connection_close(port, &port->connections[i]);
	port_unlisten(port);
	for (i = 0; i < port->n_blocks; i++)
		close(port->blocks[i].fd);
	free(port->blocks);
	if (port->wake_fd >= 0)
		close(port->wake_fd);
	port_userfaultfd_drop(port);
	if (port->epoll_fd >= 0)
		close(port->epoll_fd);
	pthread_mutex_destroy(&port->lock);
	free(port);
}

static int check_ram(const struct ferry_port_ram *ram, uint64_t page)
{
	struct stat st;

	if (!ram->name || !is_printable(ram->name, FERRY_PROTO_MAX_NAME) || ram->flags)
		return -EINVAL;
	if (page < FERRY_PROTO_PAGE_BYTES || page > FERRY_PROTO_MAX_PAGE_BYTES ||
	    (page & (page - 1)))
		return -EINVAL;
	if (!ram->bytes || ram->bytes > FERRY_PROTO_MAX_BLOCK_BYTES ||
	    ram->fd_offset > FERRY_PROTO_MAX_BLOCK_BYTES || !ram->addr)
		return -EINVAL;
	if ((ram->bytes | ram->fd_offset | (uintptr_t)ram->addr) & (page - 1))
		return -EINVAL;
	/* Only files in memory know seals. */
	if (fcntl(ram->fd, F_GET_SEALS) < 0 || fstat(ram->fd, &st))
		return -EINVAL;
	return (uint64_t)st.st_size < ram->fd_offset + ram->bytes ? -EINVAL : 0;
}

/* What hugetlb files have is told by their file system. */
static uint64_t page_bytes_of(const struct ferry_port_ram *ram)
{
	struct statfs fs;

	if (ram->page_bytes)
		return ram->page_bytes;
	if (!fstatfs(ram->fd, &fs) && fs.f_type == HUGETLBFS_MAGIC)
		return (uint64_t)fs.f_bsize;
	return FERRY_PROTO_PAGE_BYTES;
}

int port_add_block(struct ferry_port *port, const struct ferry_port_ram *ram)
{
	uint64_t page = page_bytes_of(ram);
	struct port_block *grown, *b;
	int fd = check_ram(ram, page);
	unsigned int i;

	if (fd)
		return fd;
	for (i = 0; i < port->n_blocks; i++)
		if (!strcmp(port->blocks[i].name, ram->name))
			return -EEXIST;
	if (port->n_blocks == FERRY_PROTO_MAX_BLOCKS)
		return -E2BIG;
	grown = realloc(port->blocks, (port->n_blocks + 1) * sizeof(*grown));
	if (!grown)
		return -ENOMEM;
	port->blocks = grown;
	fd = fcntl(ram->fd, F_DUPFD_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	b = &grown[port->n_blocks++];
	memset(b, 0, sizeof(*b));
	strcpy(b->name, ram->name);
	b->fd = fd;
	b->fd_offset = ram->fd_offset;
	b->bytes = ram->bytes;
	b->addr = ram->addr;
	b->page_bytes = (uint32_t)page;
	return 0;
}

int ferry_port_add_ram(struct ferry_port *port, const struct ferry_port_ram *ram)
{
	struct ferry_port_ram r;
	int ret = copy_struct(&r, sizeof(r), ram, ram->struct_size, sizeof(*ram));

	if (ret)
		return ret;
	pthread_mutex_lock(&port->lock);
	ret = port->attached || port->members ? -EBUSY : port_add_block(port, &r);
	pthread_mutex_unlock(&port->lock);
	return ret;
}

struct port_connection *port_connection_add(struct ferry_port *port, int fd,
					    enum port_connection_kind kind)
{
	struct port_connection *c = NULL;
	struct ucred cred = { 0 };
	socklen_t len = sizeof(cred);
	unsigned int i;

	for (i = 0; i < PORT_CONNECTIONS && !c; i++)
		if (port->connections[i].kind == PORT_FREE)
			c = &port->connections[i];
	if (!c || watch(port, fd, c))
		return NULL;
	memset(c, 0, sizeof(*c));
	c->kind = kind;
	c->fd = fd;
	c->serial = ++port->serial;
	if (!getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len))
		c->pid = cred.pid;
	return c;
}

static void port_detach(struct ferry_port *port)
{
	port_views_drop(port);
	port_log_drop(port);
	if (port->throttled)
		port->ops.throttle(port->ctx, 0);
	port->throttled = false;
	pthread_mutex_lock(&port->lock);
	port->attached = false;
	pthread_mutex_unlock(&port->lock);
}

void port_connection_close(struct ferry_port *port, struct port_connection *c)
{
	enum port_connection_kind kind = c->kind;

	if (kind == PORT_AGENT)
		port_detach(port);
	close(c->fd);
	c->kind = PORT_FREE;
	if (kind == PORT_MEMBER) {
		pthread_mutex_lock(&port->lock);
		port->members--;
		pthread_mutex_unlock(&port->lock);
	}
	if (kind == PORT_VMM)
		port->vmm_gone = true;
}

/* Everything that is due. Return: 0; -ENOTCONN; -errno of accept. */
static int port_serve(struct ferry_port *port)
{
	struct epoll_event event;
	unsigned int i;
	uint64_t times;
	int r;

	for (i = 0; i < PORT_EVENTS && !port->vmm_gone; i++) {
		if (epoll_wait(port->epoll_fd, &event, 1, 0) <= 0)
			return 0;
		if (event.data.ptr == &port->wake_fd) {
			if (read(port->wake_fd, &times, sizeof(times)) == sizeof(times))
				return 0;
		} else if (event.data.ptr == &port->listen_fd) {
			r = port_accept(port);
			if (r && r != -EAGAIN)
				return r;
		} else {
			port_request(port, event.data.ptr);
		}
	}
	return port->vmm_gone ? -ENOTCONN : 0;
}

int ferry_port_process(struct ferry_port *port)
{
	int r;

	pthread_mutex_lock(&port->lock);
	if (port->threaded || port->serving) {
		pthread_mutex_unlock(&port->lock);
		return -EBUSY;
	}
	port->serving = true;
	pthread_mutex_unlock(&port->lock);
	r = port_serve(port);
	pthread_mutex_lock(&port->lock);
	port->serving = false;
	pthread_mutex_unlock(&port->lock);
	return r;
}

static bool told_to_stop(struct ferry_port *port)
{
	bool stop;

	pthread_mutex_lock(&port->lock);
	stop = port->stop;
	pthread_mutex_unlock(&port->lock);
	return stop;
}

static void *port_thread(void *arg)
{
	struct ferry_port *port = arg;
	struct pollfd all = { .fd = port->epoll_fd, .events = POLLIN };
	struct pollfd wake = { .fd = port->wake_fd, .events = POLLIN };

	while (!told_to_stop(port)) {
		int r;

		if (poll(&all, 1, -1) < 0)
			continue;
		r = port_serve(port);
		if (r == -ENOTCONN)
			break;
		if (r)
			poll(&wake, 1, PORT_RETRY_MS);
	}
	return NULL;
}

int ferry_port_start(struct ferry_port *port)
{
	sigset_t all, old;
	int r = 0;

	sigfillset(&all);
	pthread_mutex_lock(&port->lock);
	if (port->listen_fd < 0 && !port->joined)
		r = -EINVAL;
	else if (port->threaded || port->serving)
		r = -EALREADY;
	if (!r) {
		port->stop = false;
		pthread_sigmask(SIG_SETMASK, &all, &old);
		r = -pthread_create(&port->thread, NULL, port_thread, port);
		pthread_sigmask(SIG_SETMASK, &old, NULL);
		port->threaded = !r;
	}
	pthread_mutex_unlock(&port->lock);
	return r;
}

int ferry_port_stop(struct ferry_port *port)
{
	uint64_t one = 1;
	pthread_t thread;
	int r = 0;

	pthread_mutex_lock(&port->lock);
	thread = port->thread;
	if (!port->threaded)
		r = -EINVAL;
	else if (pthread_equal(thread, pthread_self()))
		r = -EDEADLK;
	else
		port->stop = true;
	pthread_mutex_unlock(&port->lock);
	if (r)
		return r;
	if (write(port->wake_fd, &one, sizeof(one)) < 0)
		return -errno;
	pthread_join(thread, NULL);
	pthread_mutex_lock(&port->lock);
	port->threaded = false;
	pthread_mutex_unlock(&port->lock);
	return 0;
}

int ferry_port_fd(struct ferry_port *port)
{
	return port->epoll_fd;
}

int ferry_port_attached(struct ferry_port *port)
{
	int attached;

	pthread_mutex_lock(&port->lock);
	attached = port->attached;
	pthread_mutex_unlock(&port->lock);
	return attached;
}

void ferry_port_set_error(struct ferry_port *port, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(port->error, sizeof(port->error), fmt, ap);
	va_end(ap);
}
