/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_ENGINE_INCOMING_H
#define FERRY_ENGINE_INCOMING_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "engine/job.h"
#include "fault/pages.h"
#include "fault/serve.h"
#include "guest/guest.h"
#include "ram/bitmap.h"
#include "ram/ram.h"
#include "wire/wire.h"
#include "xport/fault_channel.h"
#include "xport/multifd_recv.h"

/*
 * Postcopy at the destination: pages that are not here, and a guest that may touch them. The
 * steps come in this order and none twice; a frame that asks for another one is an error.
 */
enum ferry_incoming_step {
	FERRY_INCOMING_NONE,
	FERRY_INCOMING_ADVISE,	  /* the host can do it */
	FERRY_INCOMING_DISCARD,	  /* pages are named that are not here */
	FERRY_INCOMING_LISTENING, /* armed: who touches one waits */
	FERRY_INCOMING_RUNNING,	  /* the guest runs */
	FERRY_INCOMING_END,	  /* all is here, disarmed */
	FERRY_INCOMING_STEPS,
};

/* A further process that maps guest RAM. */
struct ferry_incoming_member {
	pid_t pid;
	int uffd;
	uint64_t *addrs; /* of each block; 0 not mapped there */
};

#define FERRY_INCOMING_MAX_MEMBERS (FERRY_FAULT_MAX_MAPPERS - 1)

struct ferry_incoming {
	struct ferry_job *job;
	struct ferry_guest *guest; /* NULL in a worker that took over */
	const struct ferry_ram *ram;
	struct ferry_wire_config config;
	enum ferry_incoming_step step; /* atomic */
	struct ferry_multifd_sink sink;
	struct ferry_multifd_turns turns; /* of the channels and the line */
	struct ferry_page_asker asker;
	uint64_t line_pages; /* by lines that have ended */
	uint64_t lacked;     /* pages that were missing when this worker began to serve */
	struct ferry_multifd_recv *line; /* what comes on the fault channel; changed with job->lock */

	/* Where pages come from that no source sends: a file. Called by the fault thread. */
	void (*ask)(void *ctx, unsigned int block, uint64_t first, uint64_t pages);
	void *ask_ctx;

	struct ferry_bitmap lacks; /* until armed */
	bool lacks_ready;
	struct ferry_fault_pages pages;
	bool pages_ready;
	struct ferry_fault *fault;
	int uffd;
	int placed_fd;
	uint64_t *addrs;
	struct ferry_incoming_member members[FERRY_INCOMING_MAX_MEMBERS];
	unsigned int n_members;
	int loading; /* enum in incoming.c; atomic */

	pthread_t helper;
	bool helping;
	bool announce;
	int stop;	/* the helper's sweep; atomic */
	int wake_fd;	/* not owned: written when nothing is missing any more */
};

void ferry_incoming_init(struct ferry_incoming *in, struct ferry_job *job, int wake_fd);

/** ferry_incoming_free() - what is armed stays so as long as the userfaultfd is open elsewhere. */
void ferry_incoming_free(struct ferry_incoming *in);

/**
 * ferry_incoming_advise() - could the source switch to postcopy? Changes nothing
 *
 * Return: 0; -EPERM, -EOPNOTSUPP with the reason.
 */
int ferry_incoming_advise(struct ferry_incoming *in, struct ferry_guest *guest,
			  const struct ferry_ram *ram, const struct ferry_wire_config *config,
			  struct ferry_error *err);

/** ferry_incoming_ready() - the switch is near: do what can be done while the guest still runs. */
int ferry_incoming_ready(struct ferry_incoming *in, struct ferry_error *err);

/** ferry_incoming_discard() - the body of a DISCARD: these pages are freed and will be missing. */
int ferry_incoming_discard(struct ferry_incoming *in, const uint8_t *body, uint32_t length,
			   struct ferry_error *err);

/**
 * ferry_incoming_listen() - arm the guest's memory, and let @pool and @fault_fd bring pages
 * @fault_fd: taken over on success
 */
int ferry_incoming_listen(struct ferry_incoming *in, struct ferry_multifd_recv *pool, int fault_fd,
			  struct ferry_error *err);

/**
 * ferry_incoming_listen_file() - the same without a source: in->ask brings pages
 * @lacks: which pages are missing; guest memory is empty
 */
int ferry_incoming_listen_file(struct ferry_incoming *in, const struct ferry_bitmap *lacks,
			       struct ferry_error *err);

/** ferry_incoming_arm() - serve faults; part of listen() and adopt(). */
int ferry_incoming_arm(struct ferry_incoming *in, bool adopted, pid_t vmm,
		       struct ferry_error *err);

/** ferry_incoming_keep() - a new file that outlives all our processes. Return: it, or -errno. */
int ferry_incoming_keep(struct ferry_incoming *in, const char *name, struct ferry_error *err);
/** ferry_incoming_hold() - the guardian keeps all that adopt() needs. */
int ferry_incoming_hold(struct ferry_incoming *in, struct ferry_error *err);
/** ferry_incoming_let_go() - it need not any more. */
void ferry_incoming_let_go(struct ferry_incoming *in);

/** ferry_incoming_adopt() - go on with what an earlier worker armed. @ram is filled. */
int ferry_incoming_adopt(struct ferry_incoming *in, struct ferry_ram *ram,
			 struct ferry_error *err);

/**
 * ferry_incoming_load_begins() - device state is being loaded, which may wait for pages
 *
 * If the fault channel is lost meanwhile nothing waits any more: what is loaded then is void.
 */
void ferry_incoming_load_begins(struct ferry_incoming *in);
/** ferry_incoming_load_ends() - Return: 0, -ECONNRESET what was loaded is void. */
int ferry_incoming_load_ends(struct ferry_incoming *in, struct ferry_error *err);

/** ferry_incoming_void() - what is being loaded is void: let the VMM have done. Any thread. */
void ferry_incoming_void(struct ferry_incoming *in);

/** ferry_incoming_line() - a new fault channel, after a lost link; taken over on success. */
int ferry_incoming_line(struct ferry_incoming *in, int fault_fd, struct ferry_error *err);

/** ferry_incoming_ask_again() - the channels are there: ask for all that is waited for. */
void ferry_incoming_ask_again(struct ferry_incoming *in);

/** ferry_incoming_cut() - the link is lost: nothing can be asked for. Safe to repeat. */
void ferry_incoming_cut(struct ferry_incoming *in);

/** ferry_incoming_armed() - may pages be missing? */
bool ferry_incoming_armed(const struct ferry_incoming *in);
/** ferry_incoming_missing() - how many pages are; 0 when not armed. Any thread. */
uint64_t ferry_incoming_missing(const struct ferry_incoming *in);

/** ferry_incoming_started() - the guest runs: tell the network, map what is here already. */
void ferry_incoming_started(struct ferry_incoming *in, bool announce);

/** ferry_incoming_end() - nothing is missing, or nobody will run it: disarm. Safe to repeat. */
void ferry_incoming_end(struct ferry_incoming *in);

/** ferry_incoming_line_pages() - how many pages a fault channel has brought. */
uint64_t ferry_incoming_line_pages(struct ferry_multifd_recv *line);

/** ferry_incoming_stats() - into job->stats. */
void ferry_incoming_stats(struct ferry_incoming *in);

/**
 * ferry_incoming_tell() - which pages are here, in frames
 * @send: as ferry_destination_send()
 */
int ferry_incoming_tell(struct ferry_incoming *in,
			int (*send)(void *ctx, enum ferry_wire_type type, const void *body,
				    uint32_t length), void *ctx);

#endif
