/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_XPORT_FAULT_CHANNEL_H
#define FERRY_XPORT_FAULT_CHANNEL_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "ram/ram.h"

/*
 * The channel on which a running guest's faults are answered: requests one way, multifd
 * packets with just those pages the other way. What comes is taken in by a ferry_multifd_recv
 * of one channel; here is the rest: who asks, and who answers.
 */

/* The source's end: a thread that sends what it is asked for. */
struct ferry_page_server;

struct ferry_page_server_params {
	int fd; /* the server's to close once create succeeded */
	const struct ferry_ram *ram; /* read by pread(2); outlives the server */
	bool checksum;
	/* Pages are asked for. Return: how many from @first on the server shall send; 0: not @first. */
	uint64_t (*take)(void *ctx, unsigned int block, uint64_t first, uint64_t pages);
	/* Called once, by the thread, when no more good can come. */
	void (*ended)(void *ctx);
	void *ctx;
};

struct ferry_page_server_stats {
	uint64_t requests;
	uint64_t pages; /* sent for them */
	uint64_t zero_pages; /* of these */
	uint64_t sent_bytes;
};

int ferry_page_server_create(const struct ferry_page_server_params *params,
			     struct ferry_page_server **out, struct ferry_error *err);

/**
 * ferry_page_server_why() - Return: 0 while it serves, or why it does not, with the text
 *
 * -ERANGE, -EPROTO, -EMSGSIZE: what it was asked for made no sense. -ECANCELED after abort.
 */
int ferry_page_server_why(struct ferry_page_server *server, struct ferry_error *err);
void ferry_page_server_stats(struct ferry_page_server *server,
			     struct ferry_page_server_stats *stats);

/** ferry_page_server_abort() - shut the socket down; the thread ends. Any thread. */
void ferry_page_server_abort(struct ferry_page_server *server);

/** ferry_page_server_free() - abort, join, close; NULL is fine. */
void ferry_page_server_free(struct ferry_page_server *server);

/* The destination's end: who asks. */
struct ferry_page_asker {
	pthread_mutex_t lock;
	int fd; /* -1: the link is lost, nothing is asked; owned */
	int block; /* named last, -1 none */
};

void ferry_page_asker_init(struct ferry_page_asker *asker);

/** ferry_page_asker_set() - another connection, or none (-1); the old one is closed. */
void ferry_page_asker_set(struct ferry_page_asker *asker, int fd);

/**
 * ferry_page_asker_ask() - ask for pages; never blocks. Any thread.
 *
 * Return: 0; -ENOTCONN there is no connection; -EPIPE it is broken, or as good as that: the
 * peer reads nothing.
 */
int ferry_page_asker_ask(struct ferry_page_asker *asker, unsigned int block, uint64_t first,
			 uint32_t pages);
void ferry_page_asker_free(struct ferry_page_asker *asker);

#endif
