// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Where the destination listens, who may connect to it, and when. The main channel comes first
 * and once; multifd channels after READY; the fault channel beside them, when the source is about
 * to switch to postcopy. A main channel with a higher epoch replaces the older one, and with it,
 * in postcopy, all other channels.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/io.h"
#include "base/log.h"
#include "engine/destination.h"
#include "engine/fault_points.h"
#include "xport/sock.h"

int ferry_destination_listen(struct ferry_destination *d, struct ferry_error *err)
{
	struct ferry_job *job = d->job;
	char text[FERRY_URI_MAX];
	bool open_to_all = false;
	int r;

	if (job->held_listen_fd >= 0) {
		d->listen_fd = job->held_listen_fd;
		job->held_listen_fd = -1;
	} else {
		d->listen_fd = ferry_sock_listen(&d->uri, &open_to_all, err);
		if (d->listen_fd < 0)
			return d->listen_fd;
	}
	if (open_to_all)
		ferry_log_warn("anybody who can reach %s port %s can connect and send a guest; "
			       "use a firewall, a private network or unix:PATH with a tunnel",
			       d->uri.host, d->uri.port);
	ferry_lobby_init(&d->lobby, d->listen_fd, d->wake_fd);
	ferry_uri_format(&d->uri, text);
	/* A port that was 0: whoever takes over must listen at the same one. */
	snprintf(job->record.uri, sizeof(job->record.uri), "%s", text);
	r = ferry_job_save(job, err);
	if (!r && job->hooks->hold)
		r = job->hooks->hold(job->hooks->ctx, "listen", d->listen_fd, err);
	if (!r && job->hooks->listening)
		job->hooks->listening(job->hooks->ctx, text);
	return r;
}

void ferry_destination_relisten(struct ferry_destination *d)
{
	struct ferry_uri before = d->uri, uri;
	struct ferry_job *job = d->job;
	char text[FERRY_SPEC_MAX];
	struct ferry_error err = { 0 };
	int old = d->listen_fd;

	pthread_mutex_lock(&job->lock);
	snprintf(text, sizeof(text), "%s", job->retry ? job->retry_uri : "");
	job->retry = false;
	pthread_mutex_unlock(&job->lock);
	if (!text[0] || ferry_uri_parse(text, &uri, &err))
		return;
	ferry_lobby_clear(&d->lobby);
	d->listen_fd = -1;
	d->uri = uri;
	if (ferry_destination_listen(d, &err)) {
		ferry_log_warn("still listening at the old address: %s", err.text);
		d->listen_fd = old;
		d->uri = before;
		ferry_lobby_init(&d->lobby, old, d->wake_fd);
		return;
	}
	ferry_io_close(&old);
	if (before.kind == FERRY_URI_UNIX && strcmp(before.path, d->uri.path))
		unlink(before.path);
}

void ferry_destination_drop_channels(struct ferry_destination *d)
{
	unsigned int i;

	for (i = 0; i < FERRY_WIRE_MAX_CHANNELS; i++)
		ferry_io_close(&d->channel_fds[i]);
	ferry_io_close(&d->fault_fd);
}

/* A new migration: take its uuid. Return: the status to answer. */
static enum ferry_wire_status take_main(struct ferry_destination *d,
					const struct ferry_wire_hello *hello, int fd,
					struct ferry_error *err)
{
	struct ferry_record *record = &d->job->record;

	if (d->main_fd >= 0 || record->epoch || record->phase != FERRY_PHASE_OPEN)
		return FERRY_WIRE_STATUS_BUSY;
	if (!hello->channels || hello->channels > FERRY_WIRE_MAX_CHANNELS || !hello->epoch)
		return FERRY_WIRE_STATUS_CHANNEL;
	memcpy(record->uuid, hello->uuid, sizeof(record->uuid));
	record->epoch = hello->epoch;
	if (ferry_job_save(d->job, err)) {
		record->epoch = 0;
		return FERRY_WIRE_STATUS_BUSY;
	}
	d->channels = hello->channels;
	pthread_mutex_lock(&d->job->lock);
	d->job->stats.channels = hello->channels;
	pthread_mutex_unlock(&d->job->lock);
	ferry_destination_set_main(d, fd);
	return FERRY_WIRE_STATUS_OK;
}

static enum ferry_wire_status take_channel(struct ferry_destination *d,
					   const struct ferry_wire_hello *hello, int fd)
{
	const struct ferry_record *record = &d->job->record;

	if (!record->epoch || memcmp(hello->uuid, record->uuid, sizeof(record->uuid)))
		return FERRY_WIRE_STATUS_UUID;
	if (hello->epoch != record->epoch)
		return FERRY_WIRE_STATUS_EPOCH;
	if (hello->kind == FERRY_WIRE_KIND_FAULT) {
		/* Before the switch beside the pool; later with all others, once it was told. */
		if (d->fault_fd >= 0 || d->incoming.line ||
		    !(d->incoming.step == FERRY_INCOMING_ADVISE ? d->pool != NULL : d->asked))
			return FERRY_WIRE_STATUS_CHANNEL;
		d->fault_fd = fd;
		return FERRY_WIRE_STATUS_OK;
	}
	if (!(d->bitmap_ready || d->asked) || d->pool || hello->channel >= d->channels ||
	    d->channel_fds[hello->channel] >= 0)
		return FERRY_WIRE_STATUS_CHANNEL;
	d->channel_fds[hello->channel] = fd;
	return FERRY_WIRE_STATUS_OK;
}

void ferry_destination_pause(struct ferry_destination *d)
{
	enum ferry_state state = ferry_job_state(d->job);

	ferry_destination_set_main(d, -1);
	ferry_incoming_cut(&d->incoming);
	ferry_destination_set_pool(d, NULL);
	ferry_destination_drop_channels(d);
	d->asked = false;
	if (state == FERRY_STATE_POSTCOPY_ACTIVE || state == FERRY_STATE_POSTCOPY_RECOVER ||
	    state == FERRY_STATE_POSTCOPY_RECOVER_SETUP) {
		ferry_job_move(d->job, FERRY_STATE_POSTCOPY_PAUSED, NULL);
		ferry_fault_point("cut", NULL);
	}
}

/* The source is back. The raised epoch is durable before it is answered. */
static enum ferry_wire_status take_recover(struct ferry_destination *d,
					   const struct ferry_wire_hello *hello, int fd,
					   struct ferry_error *err)
{
	struct ferry_record *record = &d->job->record;
	uint32_t before = record->epoch;

	if (!before || memcmp(hello->uuid, record->uuid, sizeof(record->uuid)))
		return FERRY_WIRE_STATUS_UUID;
	if (hello->epoch <= before)
		return FERRY_WIRE_STATUS_EPOCH;
	record->epoch = hello->epoch;
	if (ferry_job_save(d->job, err)) {
		record->epoch = before;
		return FERRY_WIRE_STATUS_BUSY;
	}
	if (ferry_incoming_armed(&d->incoming)) {
		if (!hello->channels)
			return FERRY_WIRE_STATUS_CHANNEL;
		ferry_destination_pause(d);
		d->channels = hello->channels;
	}
	ferry_destination_set_main(d, fd);
	d->start.asked = false;
	if (ferry_job_state(d->job) == FERRY_STATE_POSTCOPY_PAUSED) {
		ferry_job_move(d->job, FERRY_STATE_POSTCOPY_RECOVER_SETUP, NULL);
		ferry_fault_point("back", NULL);
	}
	return FERRY_WIRE_STATUS_OK;
}

static int all_channels_there(struct ferry_destination *d)
{
	unsigned int i;

	if (d->asked && d->fault_fd < 0)
		return 0;

	for (i = 0; i < d->channels; i++)
		if (d->channel_fds[i] < 0)
			return 0;
	return d->channels > 0;
}

/* All channels are there again. */
static int destination_go_on(struct ferry_destination *d, struct ferry_error *err)
{
	int r = ferry_incoming_line(&d->incoming, d->fault_fd, err);

	if (r)
		return r;
	d->fault_fd = -1;
	if (ferry_job_state(d->job) == FERRY_STATE_POSTCOPY_RECOVER_SETUP) {
		ferry_job_move(d->job, FERRY_STATE_POSTCOPY_RECOVER, NULL);
		ferry_fault_point("recover", NULL);
		ferry_job_move(d->job, FERRY_STATE_POSTCOPY_ACTIVE, NULL);
	}
	ferry_incoming_ask_again(&d->incoming);
	return 0;
}

/* A channel's thread has ended. */
static void pool_ended(void *ctx)
{
	struct ferry_destination *d = ctx;
	uint64_t one = 1;

	if (write(d->wake_fd, &one, sizeof(one)) < 0)
		return; /* it is awake already */
}

int ferry_destination_complains(struct ferry_destination *d, struct ferry_error *err)
{
	struct ferry_error why = { 0 };

	if (!d->pool || ferry_incoming_armed(&d->incoming) ||
	    !ferry_multifd_recv_why(d->pool, &why))
		return 0;
	/* A lost channel is the source's to tell about, on the main one. */
	if (why.errnum == EPIPE || why.errnum == ECONNRESET || why.errnum == ETIMEDOUT ||
	    why.errnum == ECANCELED)
		return 0;
	*err = why;
	return -why.errnum;
}

static int destination_start_pool(struct ferry_destination *d, struct ferry_error *err)
{
	struct ferry_multifd_recv_params params = {
		.fds = d->channel_fds,
		.channels = d->channels,
		.ram = &d->ram,
		.received = &d->received,
		.codec = d->config.codec,
		.checksum = d->config.flags & FERRY_WIRE_CONFIG_CHECKSUM,
		.turns = &d->incoming.turns,
		.sink = d->asked ? &d->incoming.sink : NULL,
		.ended = pool_ended,
		.ctx = d,
	};
	struct ferry_multifd_recv *pool;
	unsigned int i;
	int r = ferry_multifd_recv_create(&params, &pool, err);

	if (r)
		return r;
	ferry_destination_set_pool(d, pool);
	for (i = 0; i < d->channels; i++)
		d->channel_fds[i] = -1; /* the pool's now */
	return d->asked ? destination_go_on(d, err) :
			  ferry_job_move(d->job, FERRY_STATE_ACTIVE, err);
}

int ferry_destination_newcomer(struct ferry_destination *d, const struct ferry_wire_hello *hello,
			       int fd, struct ferry_error *err)
{
	enum ferry_wire_status status = FERRY_WIRE_STATUS_UUID;
	int r;

	switch (hello->kind) {
	case FERRY_WIRE_KIND_MAIN:
		status = take_main(d, hello, fd, err);
		break;
	case FERRY_WIRE_KIND_MULTIFD:
	case FERRY_WIRE_KIND_FAULT:
		status = take_channel(d, hello, fd);
		break;
	case FERRY_WIRE_KIND_RECOVER:
		status = take_recover(d, hello, fd, err);
		break;
	}
	/* A failed answer shows up as a lost connection. */
	r = ferry_lobby_answer(fd, hello, status);
	if (status != FERRY_WIRE_STATUS_OK) {
		ferry_log_debug("a connection was refused: %s", ferry_wire_status_text(status));
		close(fd);
		return 0;
	}
	if (r)
		return 0;
	if (hello->kind == FERRY_WIRE_KIND_MAIN)
		return ferry_fault_point("hello", err);
	if (hello->kind == FERRY_WIRE_KIND_FAULT && !d->asked)
		return ferry_incoming_ready(&d->incoming, err);
	if (hello->kind != FERRY_WIRE_KIND_RECOVER && !d->pool && all_channels_there(d))
		return destination_start_pool(d, err);
	return 0;
}
