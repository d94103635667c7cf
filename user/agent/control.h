/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_AGENT_CONTROL_H
#define FERRY_AGENT_CONTROL_H

#include "base/error.h"
#include "engine/job.h"

/*
 * The control socket ID.sock: one JSON request a line, one JSON reply a line.
 *   {"command":"status"}                            -> {"return":{…the object status --json prints…}}
 *   {"command":"cancel"} {"command":"continue"}     -> {"return":{}}
 *   {"command":"set","key":KEY,"value":VALUE}       -> {"return":{}}
 *   {"command":"spill","path":FILE}                 -> {"return":{}}, then "task" until it is done
 *   {"command":"fill","path":FILE}                  -> the same, at the destination
 *   {"command":"task"}                              -> {"return":{"state":…,"pages":N,"error":…}}
 *   whatever fails                                  -> {"error":TEXT,"errno":N}
 */
#define FERRY_CONTROL_MAX_LINE 4096

struct json_object;

/** ferry_control_listen() - serve at the id's socket. Return: a descriptor or -errno. */
int ferry_control_listen(const char *id, struct ferry_error *err);

/**
 * ferry_control_serve() - take one connection: requests until it closes or is silent
 *
 * It is served by a thread of its own; @job must live as long as the process.
 */
void ferry_control_serve(int listen_fd, struct ferry_job *job);

/** ferry_control_reply() - the reply to one request line; never NULL. For the server and fuzzing. */
struct json_object *ferry_control_reply(struct ferry_job *job, const char *line);

/** ferry_control_status() - what status --json prints of a record. */
struct json_object *ferry_control_status(const struct ferry_record *record, enum ferry_state state,
					 const struct ferry_stats *stats, bool alive);

/**
 * ferry_control_ask() - client: send one request, take the reply
 * @request: put by the callee
 * @timeout_ms: for the connection, and for the answer; 0: what one that is well never takes
 * @ret: the "return" member, to be put
 *
 * A process that hangs up without a word is asked again for a second: it may be dying, and another
 * one takes over.
 *
 * Return: 0; -ECONNREFUSED no process serves this id; the errno of the reply, with its text.
 */
int ferry_control_ask(const char *id, struct json_object *request, unsigned int timeout_ms,
		      struct json_object **ret, struct ferry_error *err);

#endif
