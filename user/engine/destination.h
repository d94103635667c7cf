/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_ENGINE_DESTINATION_H
#define FERRY_ENGINE_DESTINATION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "engine/incoming.h"
#include "engine/job.h"
#include "engine/lobby.h"
#include "guest/guest.h"
#include "ram/bitmap.h"
#include "ram/ram.h"
#include "xport/multifd_recv.h"
#include "xport/uri.h"

/* The VMM has been told to start a guest that lacks pages. */
struct ferry_destination_start {
	pthread_t thread;
	uint64_t began_ns;
	struct ferry_error why; /* the thread's own until it has ended, as the next one */
	int result;
	bool ended; /* it is about to: atomic */
	bool busy;  /* it is not joined yet */
	bool asked; /* there was a RUN on the present main channel */
	bool again; /* not the first start: it cannot be refused any more */
};

/* The destination's side; shared by destination.c and its frame handlers. */
struct ferry_destination {
	struct ferry_job *job;
	struct ferry_guest *guest; /* NULL when it cannot be reached (recover only) */
	struct ferry_ram ram;
	struct ferry_uri uri;
	int listen_fd;
	int wake_fd; /* eventfd: a cancel came */
	struct ferry_lobby lobby;
	int main_fd;	      /* -1 lost; changed with job->lock held */
	uint64_t heard_ns;    /* when the main channel last said something, or was lost */
	uint16_t channels;
	int channel_fds[FERRY_WIRE_MAX_CHANNELS]; /* -1 not there yet */
	int fault_fd; /* -1 not there yet, or taken over */
	struct ferry_incoming incoming;
	struct ferry_destination_start start;
	struct ferry_bitmap received;
	bool bitmap_ready;
	struct ferry_multifd_recv *pool; /* changed with job->lock held */
	struct ferry_wire_config config;
	bool configured;
	char kind[FERRY_WIRE_MAX_GUEST + 1]; /* of the guest at the source; "" is "qmp" */
	uint8_t *state; /* device state, between PACKAGE and PING */
	size_t state_bytes;
	bool adopted; /* armed by an earlier worker */
	bool asked; /* recovery: the source was told which pages are here */
	bool done; /* ACK came, or nothing more will */
};

/**
 * ferry_destination_frame() - read one frame from the main channel and act on it
 *
 * Return: 0; -ECONNRESET the main channel is lost; another -errno ends the migration (before
 * RUN-ACCEPTED), with a text.
 */
int ferry_destination_frame(struct ferry_destination *d, struct ferry_error *err);

/** ferry_destination_send() - a frame to the source. Return: 0 or -ECONNRESET. */
int ferry_destination_send(struct ferry_destination *d, enum ferry_wire_type type,
			   const void *body, uint32_t length);

/** ferry_destination_newcomer() - somebody said HELLO. Return: 0; -errno ends the migration. */
int ferry_destination_newcomer(struct ferry_destination *d, const struct ferry_wire_hello *hello,
			       int fd, struct ferry_error *err);

/**
 * ferry_destination_complains() - did a channel find something wrong in what it received?
 *
 * Return: 0; -errno with the text. A connection that was only lost is no complaint.
 */
int ferry_destination_complains(struct ferry_destination *d, struct ferry_error *err);
/** ferry_destination_listen() - at its uri, which says where really afterwards. */
int ferry_destination_listen(struct ferry_destination *d, struct ferry_error *err);

/** ferry_destination_relisten() - if a person says where to listen from now on. */
void ferry_destination_relisten(struct ferry_destination *d);

/** ferry_destination_drop_channels() - those that wait for others. */
void ferry_destination_drop_channels(struct ferry_destination *d);

/** ferry_destination_pause() - pages are missing and the link is lost; the guest goes on. */
void ferry_destination_pause(struct ferry_destination *d);

/** ferry_destination_set_main() - another main channel, or none (-1); the old one is closed. */
void ferry_destination_set_main(struct ferry_destination *d, int fd);

/** ferry_destination_set_pool() - another pool, or none; the old one is freed. */
void ferry_destination_set_pool(struct ferry_destination *d, struct ferry_multifd_recv *pool);

/**
 * ferry_destination_accept_run() - RUN is valid: record it, start the guest, record and tell what came
 *
 * Return: 0 the guest is owned here, or being started (start.busy); -ECANCELED a cancel came first;
 * -ECONNREFUSED it could not be started, which is recorded; -EIO it may or may not have run; other
 * -errno: nothing could be recorded.
 */
int ferry_destination_accept_run(struct ferry_destination *d, struct ferry_error *err);

/** ferry_destination_run_again() - RUN of an accepted guest. Return: as ferry_destination_start(). */
int ferry_destination_run_again(struct ferry_destination *d, struct ferry_error *err);

/** ferry_destination_open() - the VMM, in a worker that took over: it could not ask one that waited. */
int ferry_destination_open(struct ferry_destination *d, struct ferry_error *err);

/**
 * ferry_destination_start() - start an accepted guest, and record that before anybody is told
 *
 * Return: as ferry_guest_ops.run().
 */
int ferry_destination_start(struct ferry_destination *d, struct ferry_error *why);

/** ferry_destination_start_ended() - what start.busy was for. Return: as ..._accept_run(). */
int ferry_destination_start_ended(struct ferry_destination *d, struct ferry_error *err);

/** ferry_destination_start_join() - wait for the thread of a start, if there is one. */
void ferry_destination_start_join(struct ferry_destination *d);

/** ferry_destination_refuse() - tell the source that the guest never runs here, and why. */
int ferry_destination_refuse(struct ferry_destination *d);

/** ferry_destination_give_up() - record that the guest never runs here and end its VMM. */
int ferry_destination_give_up(struct ferry_destination *d, enum ferry_phase phase,
			      const char *why, struct ferry_error *err);

#endif
