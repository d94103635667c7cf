// SPDX-License-Identifier: LGPL-2.1-or-later
/* How a port is reached: its own socket, or the VMM's (a member). */
#include "port/private.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define PORT_BACKLOG 16
#define PORT_JOIN_MS 5000u

static int may_listen(const struct ferry_port *port)
{
	if (!port->has_ops || (!port->n_blocks && !(port->ops.adopt && port->incoming)))
		return -EINVAL;
	return port->listen_fd >= 0 || port->joined ? -EALREADY : 0;
}

/* From a process that has ended: nobody answers there. */
static bool is_stale(const char *path)
{
	struct stat st;
	int fd;

	if (lstat(path, &st) || !S_ISSOCK(st.st_mode))
		return false;
	fd = ferry_channel_connect(path);
	if (fd >= 0)
		close(fd);
	return fd == -ECONNREFUSED;
}

static int take_listener(struct ferry_port *port, int fd)
{
	struct epoll_event event = { .events = EPOLLIN, .data.ptr = &port->listen_fd };

	if (listen(fd, PORT_BACKLOG) || epoll_ctl(port->epoll_fd, EPOLL_CTL_ADD, fd, &event))
		return -errno;
	port->listen_fd = fd;
	return 0;
}

static int bind_path(int fd, const char *path)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };

	strcpy(addr.sun_path, path);
	/* The mode the socket's file will be made with. */
	if (fchmod(fd, 0600))
		return -errno;
	if (!bind(fd, (struct sockaddr *)&addr, sizeof(addr)))
		return 0;
	if (errno != EADDRINUSE || !is_stale(path))
		return -errno;
	unlink(path);
	return bind(fd, (struct sockaddr *)&addr, sizeof(addr)) ? -errno : 0;
}

int ferry_port_listen(struct ferry_port *port, const char *path)
{
	struct stat st;
	int fd, r = may_listen(port);

	if (r)
		return r;
	if (!*path || strlen(path) >= sizeof(((struct sockaddr_un *)NULL)->sun_path))
		return -ENAMETOOLONG;
	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return -errno;
	r = bind_path(fd, path);
	if (r)
		goto err_close;
	r = -ENOMEM;
	port->path = strdup(path);
	if (port->path)
		r = lstat(path, &st) ? -errno : take_listener(port, fd);
	if (r)
		goto err_unlink;
	port->path_dev = st.st_dev;
	port->path_ino = st.st_ino;
	return 0;

err_unlink:
	free(port->path);
	port->path = NULL;
	unlink(path);
err_close:
	close(fd);
	return r;
}

int ferry_port_listen_fd(struct ferry_port *port, int fd)
{
	int type = 0, domain = 0, r = may_listen(port);
	socklen_t len = sizeof(int);

	if (r)
		return r;
	if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &len) ||
	    getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &len))
		return -errno;
	if (type != SOCK_SEQPACKET || domain != AF_UNIX)
		return -EPROTOTYPE;
	return take_listener(port, fd);
}

void port_unlisten(struct ferry_port *port)
{
	struct stat st;

	if (port->listen_fd >= 0)
		close(port->listen_fd);
	port->listen_fd = -1;
	/* Another VMM may have put its own there. */
	if (port->path && !lstat(port->path, &st) && st.st_dev == port->path_dev &&
	    st.st_ino == port->path_ino)
		unlink(port->path);
	free(port->path);
	port->path = NULL;
}

static struct port_connection *oldest_newcomer(struct ferry_port *port, unsigned int *count)
{
	struct port_connection *oldest = NULL;
	unsigned int i;

	*count = 0;
	for (i = 0; i < PORT_CONNECTIONS; i++) {
		struct port_connection *c = &port->connections[i];

		if (c->kind != PORT_NEWCOMER && c->kind != PORT_JOINING)
			continue;
		++*count;
		if (!oldest || c->serial < oldest->serial)
			oldest = c;
	}
	return oldest;
}

int port_accept(struct ferry_port *port)
{
	struct port_connection *oldest;
	unsigned int count;
	int fd = accept4(port->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	if (fd < 0)
		return errno == EINTR || errno == ECONNABORTED ? -EAGAIN : -errno;
	oldest = oldest_newcomer(port, &count);
	if (count == PORT_NEWCOMERS)
		port_connection_close(port, oldest);
	if (port_connection_add(port, fd, PORT_NEWCOMER))
		return 0;
	close(fd);
	return -ENOMEM;
}

static int ask(int fd, struct ferry_channel_message *m, enum ferry_proto_type type, size_t bytes,
	       uint32_t sequence)
{
	int r;

	m->head = (struct ferry_proto_head){ .type = (uint16_t)type, .length = (uint32_t)bytes,
					     .sequence = sequence };
	m->fd = -1;
	r = ferry_channel_call(fd, m, PORT_JOIN_MS);
	if (r == -EPIPE || r == -EMSGSIZE)
		return -EPROTO;
	if (!r && m->fd >= 0)
		close(m->fd);
	if (r || !m->head.status)
		return r;
	return m->head.status == -EPROTONOSUPPORT ? -EPROTO : m->head.status;
}

static int say_hello(int fd, struct ferry_channel_message *m)
{
	const struct ferry_proto_hello hello = {
		.version = FERRY_PROTO_VERSION,
		.min_version = FERRY_PROTO_MIN_VERSION,
		.features = FERRY_PROTO_FEATURES,
		.role = FERRY_PROTO_ROLE_MEMBER,
	};
	struct ferry_proto_welcome welcome;
	int r = ask(fd, m, FERRY_PROTO_HELLO, ferry_proto_hello_encode(&hello, m->body), 1);

	if (r)
		return r;
	if (ferry_proto_welcome_decode(&welcome, m->body, m->head.length) ||
	    ferry_proto_agree(welcome.version, welcome.min_version, welcome.features))
		return -EPROTO;
	return 0;
}

static int declare(struct ferry_port *port, int fd, struct ferry_channel_message *m)
{
	unsigned int i;
	int r = 0;

	for (i = 0; i < port->n_blocks && !r; i++) {
		const struct port_block *b = &port->blocks[i];
		struct ferry_proto_ram ram = {
			.bytes = b->bytes,
			.fd_offset = b->fd_offset,
			.addr = (uintptr_t)b->addr,
			.page_bytes = b->page_bytes,
		};

		strcpy(ram.name, b->name);
		r = ask(fd, m, FERRY_PROTO_MEMBER_RAM, ferry_proto_ram_encode(&ram, m->body),
			2 + i);
	}
	return r ? r : ask(fd, m, FERRY_PROTO_JOIN, 0, 2 + i);
}

int ferry_port_join(struct ferry_port *port, const char *path)
{
	struct ferry_channel_message m;
	int fd, r;

	if (port->has_ops || !port->n_blocks)
		return -EINVAL;
	if (port->joined)
		return -EALREADY;
	fd = ferry_channel_connect(path);
	if (fd < 0)
		return fd == -EPROTOTYPE ? -EPROTO : fd;
	r = say_hello(fd, &m);
	if (!r)
		r = declare(port, fd, &m);
	if (!r && !port_connection_add(port, fd, PORT_VMM))
		r = -ENOMEM;
	if (r) {
		close(fd);
		return r;
	}
	port->joined = true;
	return 0;
}
