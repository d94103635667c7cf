/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_GUEST_PORT_H
#define FERRY_GUEST_PORT_H

#include <assert.h>
#include <json-c/json.h>

#include "guest/guest.h"
#include "guest/journal.h"
#include "guest/peers.h"
#include "port/channel.h"

/* Private to the port driver: what its files share. The design note is in port.c. */

static_assert(FERRY_PROTO_MAX_MEMBERS <= FERRY_PEERS_MAX_MEMBERS, "all have their place");

/* A connection to the VMM, or a channel to a member. */
struct ferry_vmm_peer {
	int sock; /* -1: the process has ended */
	pid_t pid;
	uint32_t sequence;
	struct ferry_proto_welcome welcome;
	uint64_t *addrs; /* of a member: where it maps each of the VMM's blocks, 0 not at all */
	uint32_t *index; /* and its own number of that block */
};

struct ferry_vmm {
	struct ferry_guest guest;
	struct ferry_guest_host host; /* all zero: nobody keeps a journal */
	enum ferry_guest_role role;
	unsigned int timeout_ms;
	struct ferry_vmm_peer vmm;
	struct ferry_vmm_peer members[FERRY_PROTO_MAX_MEMBERS];
	unsigned int n_members; /* those we have a channel to */
	int pidfd;		/* -1: the VMM of the undo text has gone */
	uint64_t start;		/* with the pid: which process it is */
	struct ferry_peers peers;
	struct ferry_journal journal;
	int log_fd;		/* the dirty log's bitmap */
	uint64_t *log;
	size_t log_bytes;
};

static inline struct ferry_vmm *ferry_vmm_of(struct ferry_guest *guest)
{
	return (struct ferry_vmm *)guest; /* the first member */
}

/** ferry_vmm_journal() - make the present undo text durable */
static inline int ferry_vmm_journal(struct ferry_vmm *v, struct ferry_error *err)
{
	return ferry_journal_write(&v->journal, &v->host, err);
}

/* port_call.c: one request and its reply */

/** ferry_vmm_gone() - has the VMM's process ended? Waits for it up to @wait_ms. */
bool ferry_vmm_gone(const struct ferry_vmm *v, unsigned int wait_ms);

/**
 * ferry_vmm_call() - a request of @m (type, body, length, fd), answered in it
 * @what: "pausing the guest", for the text
 *
 * Return: 0; -EREMOTEIO the VMM answered with an error (m->head.status); -ESRCH it has
 * gone; -ETIMEDOUT; -EPIPE, -EPROTO.
 */
int ferry_vmm_call(struct ferry_vmm *v, struct ferry_vmm_peer *peer,
		   struct ferry_channel_message *m, const char *what, struct ferry_error *err);

/** ferry_vmm_ask() - the same without a body or descriptor either way. */
int ferry_vmm_ask(struct ferry_vmm *v, enum ferry_proto_type type, const char *what,
		  struct ferry_error *err);
/** ferry_vmm_ask_u32() - with a number. */
int ferry_vmm_ask_u32(struct ferry_vmm *v, enum ferry_proto_type type, uint32_t value,
		      const char *what, struct ferry_error *err);

/** ferry_vmm_hello() - HELLO on a new or inherited connection; @peer->welcome is filled. */
int ferry_vmm_hello(struct ferry_vmm *v, struct ferry_vmm_peer *peer, struct ferry_error *err);

/** ferry_vmm_state() - FERRY_PROTO_STATE_... */
int ferry_vmm_state(struct ferry_vmm *v, uint32_t *state, struct ferry_error *err);

/** ferry_vmm_reset() - tracked views, log and throttle off, also of members. */
int ferry_vmm_reset(struct ferry_vmm *v, struct ferry_error *err);

/* port_run.c */
int ferry_vmm_running(struct ferry_guest *guest, struct ferry_error *err);
int ferry_vmm_pause(struct ferry_guest *guest, struct ferry_error *err);
int ferry_vmm_resume(struct ferry_guest *guest, struct ferry_error *err);
int ferry_vmm_save(struct ferry_guest *guest, size_t max, uint8_t **state, size_t *bytes,
		   struct ferry_error *err);
int ferry_vmm_load(struct ferry_guest *guest, const uint8_t *state, size_t bytes,
		   struct ferry_error *err);
int ferry_vmm_run(struct ferry_guest *guest, struct ferry_error *err);
int ferry_vmm_quit(struct ferry_guest *guest, struct ferry_error *err);
int ferry_vmm_undo(struct ferry_guest *guest, bool resume, struct ferry_error *err);

/* port_ram.c */
int ferry_vmm_check(struct ferry_guest *guest, struct ferry_error *err);
int ferry_vmm_describe(struct ferry_guest *guest, struct ferry_ram *ram, struct ferry_error *err);

int ferry_vmm_check_heir(struct ferry_guest *guest, struct ferry_guest *old,
			 struct ferry_error *err);
int ferry_vmm_adopt(struct ferry_guest *guest, const struct ferry_ram *ram, bool ask,
		    struct ferry_error *err);
int ferry_vmm_quiesce(struct ferry_guest *guest, struct ferry_error *err);

/* port_track.c */
int ferry_vmm_userfaultfd(struct ferry_guest *guest, int *uffd, struct ferry_error *err);
int ferry_vmm_member(struct ferry_guest *guest, unsigned int which, const struct ferry_ram *ram,
		     uint64_t *addrs, pid_t *pid, int *uffd, struct ferry_error *err);
void ferry_vmm_views(struct ferry_guest *guest, struct ferry_dirty_views *views);
void ferry_vmm_log(struct ferry_guest *guest, struct ferry_dirty_log *log);
void ferry_vmm_log_free(struct ferry_vmm *v);

#endif
