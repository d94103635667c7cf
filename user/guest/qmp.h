/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_GUEST_QMP_H
#define FERRY_GUEST_QMP_H

#include <json-c/json.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"

/* QEMU Machine Protocol over its UNIX socket: one command at a time, deadlines everywhere. */
struct ferry_qmp;

/**
 * ferry_qmp_connect() - connect, read the greeting, negotiate
 *
 * Return: 0; -ENOENT, -ECONNREFUSED (nobody there), -EBUSY (no greeting in time: another
 * client has the socket; says "socket busy: add a second -qmp socket"), -EPROTO (not QMP), …
 */
int ferry_qmp_connect(const char *path, unsigned int timeout_ms, struct ferry_qmp **out,
		      struct ferry_error *err);

/**
 * ferry_qmp_adopt() - go on with a connection another process of ours had
 * @fd: negotiated already; replies to its commands are thrown away. Owned on success.
 */
int ferry_qmp_adopt(int fd, const char *path, unsigned int timeout_ms, struct ferry_qmp **out,
		    struct ferry_error *err);

void ferry_qmp_close(struct ferry_qmp *qmp);
int ferry_qmp_fd(const struct ferry_qmp *qmp);

/** ferry_qmp_peer() - pid of the process that made the socket (SO_PEERCRED). */
pid_t ferry_qmp_peer(const struct ferry_qmp *qmp);

/**
 * ferry_qmp_command() - run one command
 * @arguments: used up; NULL for none
 * @fd: passed along (getfd), -1 for none
 * @ret: the "return" member, put by the caller; may be NULL
 *
 * Events that arrive meanwhile are thrown away: whoever needs a state asks for it.
 *
 * Return: 0; -EREMOTEIO QEMU answered with an error (its words in @err); -ETIMEDOUT; -EPIPE
 * the connection broke; -EPROTO the answer is no sane JSON or beyond 16 MiB.
 */
int ferry_qmp_command(struct ferry_qmp *qmp, const char *name, struct json_object *arguments,
		      int fd, struct json_object **ret, struct ferry_error *err);

#endif
