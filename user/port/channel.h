/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef FERRY_PORT_CHANNEL_H
#define FERRY_PORT_CHANNEL_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "port/proto.h"

/*
 * One message of the port protocol on a SOCK_SEQPACKET socket, either side's end.
 */
struct ferry_channel_message {
	struct ferry_proto_head head;
	uint8_t body[FERRY_PROTO_MAX_BODY];
	int fd;	   /* received: the caller's, or -1 */
	pid_t pid; /* of the sender, where the socket has SO_PASSCRED; else 0 */
};

/**
 * ferry_channel_send() - send @m with the descriptor @m->fd unless it is -1
 *
 * Does not wait. Return: 0; -EAGAIN the peer does not read; -errno (-EPIPE: it has gone).
 */
int ferry_channel_send(int sock, const struct ferry_channel_message *m);

/**
 * ferry_channel_receive() - take one message, checked; does not wait
 *
 * Return: 0; -EAGAIN there is none; -EPIPE the peer has gone; -EPROTO, -EMSGSIZE it is none
 * of the protocol (descriptors included; closed); -EOPNOTSUPP its type is not known, but
 * it can be answered; -errno.
 */
int ferry_channel_receive(int sock, struct ferry_channel_message *m);

/**
 * ferry_channel_connect() - a socket connected to @path, close-on-exec and non-blocking
 *
 * Return: descriptor; -ENAMETOOLONG; -EPROTOTYPE another kind of socket listens there;
 * -EAGAIN too many wait there already; -errno of socket(2), connect(2).
 */
int ferry_channel_connect(const char *path);

/**
 * ferry_channel_call() - send a request and wait for its reply
 * @m: in: type, body, length, fd; out: the reply
 * @timeout_ms: for both
 *
 * Replies with another sequence (to someone who died meanwhile) are dropped. @m->fd stays
 * the caller's after a request and becomes his with a reply.
 *
 * Return: 0, then m->head.status tells; -ETIMEDOUT; as ferry_channel_receive().
 */
int ferry_channel_call(int sock, struct ferry_channel_message *m, unsigned int timeout_ms);

#endif
