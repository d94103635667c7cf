/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_XPORT_SOCK_H
#define FERRY_XPORT_SOCK_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "xport/uri.h"

/* Stream sockets of a migration. All are non-blocking and close-on-exec. */

/**
 * ferry_sock_listen() - listen at @uri
 * @uri: port 0 is replaced by the one that was given
 * @open_to_all: set when anybody on the network can connect (tcp, not loopback)
 *
 * A stale unix socket file nobody listens on is replaced; any other file is not.
 *
 * Return: a descriptor, -EADDRINUSE and the like with a text.
 */
int ferry_sock_listen(struct ferry_uri *uri, bool *open_to_all, struct ferry_error *err);

/** ferry_sock_accept() - Return: a connection, -ETIMEDOUT, -errno. */
int ferry_sock_accept(int listen_fd, uint64_t deadline_ns);

/**
 * ferry_sock_connect() - connect, trying again until the deadline while nobody listens
 * @stop: looked at between tries; non-zero ends them with -ECANCELED. May be NULL.
 *
 * Return: a descriptor; -ETIMEDOUT with the last reason; -ECANCELED; -errno for
 * what will not pass by waiting (no such host name: -EHOSTUNREACH).
 */
int ferry_sock_connect(const struct ferry_uri *uri, uint64_t deadline_ns, const int *stop,
		       struct ferry_error *err);

/**
 * ferry_sock_delivered() - did all that was sent reach a peer that has closed its side since?
 *
 * A peer that died before may look the same at first: its end of the stream was under way when we
 * sent. Then what we sent is answered by a reset, never acknowledged. Waits for either.
 * Return: true if it was acknowledged (and so read: a socket with unread data is reset, too).
 */
bool ferry_sock_delivered(int fd, uint64_t deadline_ns);

/** ferry_sock_shorten() - what stands in its buffers keeps a page that is waited for from coming. */
void ferry_sock_shorten(int fd);

#endif
