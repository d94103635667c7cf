/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef SELFTESTS_UNIT_PORT_AGENT_H
#define SELFTESTS_UNIT_PORT_AGENT_H

#include <stddef.h>
#include <stdint.h>

#include "port/channel.h"

/*
 * An agent's end of a port, by hand. Each agent_ask() is one request; its reply stays in
 * agent_reply until the next one, with a NUL behind the text of a failure.
 */
#define AGENT_TIMEOUT_MS 20000
#define SEALS (F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW)

extern struct ferry_channel_message agent_reply;

/** agent_attach() - connect and say HELLO. Return: the socket. */
int agent_attach(const char *path);
/** agent_ask() - Return: the status of the reply. */
int agent_ask(int sock, unsigned int type, const void *body, size_t len, int fd);
int agent_ask_u32(int sock, unsigned int type, uint32_t v);
/** agent_says() - the failure that was replied has these words in it. */
void agent_says(const char *words);
int agent_hello(int sock, uint32_t role);
int agent_say_hello(int sock, const struct ferry_proto_hello *h);
/** agent_welcome() - what HELLO was answered with */
void agent_welcome(struct ferry_proto_welcome *w);
uint32_t agent_state(int sock);
/** agent_is_closed() - the other side must close, within the deadline. */
void agent_is_closed(int sock);
/** agent_hang_up() - what was read or written here happened before what the VMM does then. */
void agent_hang_up(int sock);

int memory_file(size_t bytes, int seals);

#endif
