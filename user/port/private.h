/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef FERRY_PORT_PRIVATE_H
#define FERRY_PORT_PRIVATE_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/* The library is compiled with hidden visibility; what the public header has is not. */
#pragma GCC visibility push(default)
#include "include/ferry.h"
#pragma GCC visibility pop
#include "port/channel.h"

/* Private to libferry: what its files share. The design note is in port.c. */

/* Connections that have not said HELLO; one more drops the oldest. */
#define PORT_NEWCOMERS 8
#define PORT_CONNECTIONS (PORT_NEWCOMERS + FERRY_PROTO_MAX_MEMBERS + 2)

enum port_connection_kind {
	PORT_FREE,
	PORT_NEWCOMER,
	PORT_JOINING, /* a member that declares its blocks */
	PORT_MEMBER,
	PORT_AGENT,
	PORT_VMM, /* of a member: the connection it joined by */
};

struct port_connection {
	enum port_connection_kind kind;
	int fd;
	pid_t pid;
	uint64_t serial; /* of newcomers: which came first */
	uint8_t declared[FERRY_PROTO_MAX_BLOCKS / 8]; /* blocks a joining member named */
};

struct port_block {
	char name[FERRY_PROTO_MAX_NAME + 1];
	int fd;
	uint64_t fd_offset;
	uint64_t bytes;
	void *addr;
	uint32_t page_bytes;
	bool viewed;  /* a tracked view is mapped there */
	uint32_t map; /* FERRY_PROTO_MAP_... of its plain mapping, then */
};

struct ferry_port {
	/* Guards ram, attached, members, serving and thread state; never held in a callback. */
	pthread_mutex_t lock;
	struct port_block *blocks; /* does not change while somebody is attached */
	unsigned int n_blocks;
	unsigned int members;
	bool attached; /* an agent said HELLO */
	bool serving;  /* a thread is in port_serve() */
	bool threaded; /* by ferry_port_start() */
	bool stop;
	pthread_t thread;

	bool has_ops;
	struct ferry_port_ops ops;
	char kind[FERRY_PROTO_MAX_KIND + 1];
	void *ctx;
	unsigned int flags;

	int epoll_fd, wake_fd, listen_fd;
	char *path; /* of a socket we made */
	dev_t path_dev;
	ino_t path_ino;
	bool joined; /* it is a member */

	/* The rest belongs to the thread that serves. */
	struct port_connection connections[PORT_CONNECTIONS];
	uint64_t serial;
	bool incoming, loaded, broken; /* incoming: until a LOAD; loaded: until a RUN */
	bool arrived; /* a RUN started the guest */
	bool paused;  /* by a PAUSE, where there is no ops.running to ask */
	bool quiesced, logging, throttled, quitting;
	bool vmm_gone;
	int uffd_fd; /* kept for the agent, or -1 */
	uint64_t *log; /* the agent's bitmap, while logging */
	size_t log_bytes;
	char error[FERRY_PROTO_MAX_TEXT + 1]; /* by ferry_port_set_error() */
};

/* port.c */

/** port_connection_add() - watch @fd, owned from then on. Return: NULL when there is no room. */
struct port_connection *port_connection_add(struct ferry_port *port, int fd,
					    enum port_connection_kind kind);
void port_connection_close(struct ferry_port *port, struct port_connection *c);

/** port_add_block() - the block @ram, checked, its descriptor duplicated; lock is held. */
int port_add_block(struct ferry_port *port, const struct ferry_port_ram *ram);

/* listen.c */

/** port_accept() - take a newcomer. Return: 0, -EAGAIN there is none, -errno. */
int port_accept(struct ferry_port *port);
void port_unlisten(struct ferry_port *port);

/* serve.c: single requests */

/** port_request() - something came on a connection; closes it if there is nothing more to say. */
void port_request(struct ferry_port *port, struct port_connection *c);

/** port_attach() - the agent's connection is there: @c takes its place. */
void port_attach(struct ferry_port *port, struct port_connection *c);

/* guest.c: requests that are callbacks */
typedef int port_handler(struct ferry_port *port, const struct ferry_channel_message *in,
			 struct ferry_channel_message *out);
port_handler port_state, port_check, port_pause, port_resume, port_save, port_load, port_run,
	port_adopt, port_direct_io, port_log_start, port_log_sync, port_log_stop, port_throttle, port_quiesce;

/** port_say() - ferry_port_set_error() and the errno. Return: -@errnum. */
int port_say(struct ferry_port *port, int errnum, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

/** port_log_drop() - end the dirty log, if it is on. */
void port_log_drop(struct ferry_port *port);

/* view.c */
port_handler port_view, port_userfaultfd;
/** port_userfaultfd_drop() - close the copy that was kept. */
void port_userfaultfd_drop(struct ferry_port *port);

/** port_views_drop() - the plain mappings again. Return: 0, or the first -errno. */
int port_views_drop(struct ferry_port *port);

#endif
