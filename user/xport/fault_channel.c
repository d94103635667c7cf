// SPDX-License-Identifier: GPL-2.0-or-later
#include "xport/fault_channel.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "base/clock.h"
#include "base/io.h"
#include "base/sched.h"
#include "ram/zero.h"
#include "wire/wire.h"
#include "xport/crew.h"
#include "xport/frame.h"
#include "xport/packet.h"

/* Some requests: a guest has a few threads, and each waits for one page. */
#define AHEAD_BYTES 512u

struct ferry_page_server {
	struct ferry_crew crew; /* of one thread */
	struct ferry_page_server_params params;
	uint64_t block_pages[FERRY_RAM_MAX_BLOCKS];
	struct ferry_page_server_stats stats; /* under the crew's lock */

	/* The thread's own. */
	struct ferry_ahead ahead;
	uint8_t requests[AHEAD_BYTES];
	uint16_t block;
	struct ferry_packet packet;
	uint8_t *buffer;
};

static int end(struct ferry_page_server *s, int errnum, const char *what)
{
	struct ferry_error why;

	ferry_error_set(&why, errnum, "fault channel: %s", what);
	ferry_crew_stop(&s->crew, &why);
	return -errnum;
}

/* One packet with @n pages that are ours to send. */
static int send_pages(struct ferry_page_server *s, const struct ferry_wire_run *run, uint64_t n)
{
	const struct ferry_ram_block *block = &s->params.ram->blocks[run->block];
	struct ferry_packet *p = &s->packet;
	uint64_t i;
	int r;

	r = ferry_io_pread(block->fd, s->buffer, n << FERRY_PAGE_SHIFT,
			   (off_t)(block->fd_off_bytes + (run->first_page << FERRY_PAGE_SHIFT)));
	if (r)
		return end(s, -r, "the guest's memory file cannot be read");
	ferry_packet_begin(p, 0, 1);
	for (i = 0; i < n; i++) {
		const uint8_t *page = s->buffer + (i << FERRY_PAGE_SHIFT);

		ferry_packet_add(p, run->block, run->first_page + i, 1,
				 ferry_zero_is(page, FERRY_PAGE_SIZE) ? NULL : page);
	}
	ferry_packet_finish(p);
	r = ferry_io_writev(s->params.fd, p->iov, (int)p->iov_count, 0, FERRY_CLOCK_NEVER);
	if (r)
		return end(s, -r, "connection lost");
	pthread_mutex_lock(&s->crew.lock);
	s->stats.pages += n;
	s->stats.zero_pages += p->zero_pages;
	s->stats.sent_bytes += p->bytes;
	pthread_mutex_unlock(&s->crew.lock);
	return 0;
}

static void skip_pages(struct ferry_wire_run *run, uint64_t pages)
{
	run->first_page += pages;
	run->pages -= (uint32_t)pages;
}

/* How many pages may be asked for at once: a packet's, or a huge page. */
static uint64_t most_pages(const struct ferry_page_server *s, unsigned int block)
{
	uint64_t unit = ferry_ram_unit_pages(&s->params.ram->blocks[block]);

	return unit > FERRY_WIRE_MAX_PACKET_PAGES ? unit : FERRY_WIRE_MAX_PACKET_PAGES;
}

static int answer(struct ferry_page_server *s, struct ferry_wire_run run)
{
	int r = 0;

	pthread_mutex_lock(&s->crew.lock);
	s->stats.requests++;
	pthread_mutex_unlock(&s->crew.lock);
	while (run.pages && !r) {
		uint64_t n = s->params.take(s->params.ctx, run.block, run.first_page, run.pages);
		uint64_t taken = n;

		if (!n)
			skip_pages(&run, 1); /* on its way already */
		for (; taken && !r; taken -= n) {
			n = taken < FERRY_WIRE_MAX_PACKET_PAGES ? taken : FERRY_WIRE_MAX_PACKET_PAGES;
			r = send_pages(s, &run, n);
			skip_pages(&run, n);
		}
	}
	return r;
}

static int serve_one(struct ferry_page_server *s)
{
	struct ferry_wire_frame frame;
	struct ferry_wire_run run = { .block = s->block };
	struct ferry_error why = { 0 };
	uint8_t *body = NULL;
	int r = ferry_frame_recv_ahead(&s->ahead, &frame, &body, FERRY_CLOCK_NEVER, &why);

	if (r)
		return end(s, r == -ENODATA ? EPIPE : -r, why.text);
	if (frame.type == FERRY_WIRE_REQUEST)
		r = ferry_wire_request_decode(&run, body, frame.length, s->block_pages,
					      s->params.ram->count);
	else if (frame.type == FERRY_WIRE_REQUEST_BLOCK)
		r = ferry_wire_run_decode(&run, body, frame.length, s->block_pages,
					  s->params.ram->count);
	else
		r = -ENOMSG;
	free(body);
	if (!r && run.pages > most_pages(s, run.block))
		r = -EMSGSIZE;
	if (r == -ENOMSG)
		return end(s, EPROTO, "the destination sent a frame that does not belong there");
	if (r == -ERANGE)
		return end(s, ERANGE, "the destination asked for pages outside of guest memory");
	if (r)
		return end(s, -r, "the destination sent a bad request");
	s->block = run.block;
	return answer(s, run);
}

static void *serve(void *arg)
{
	struct ferry_page_server *s = arg;

	ferry_sched_prompt();
	while (!serve_one(s))
		;
	if (s->params.ended)
		s->params.ended(s->params.ctx);
	return NULL;
}

static void free_server(struct ferry_page_server *s)
{
	ferry_packet_free(&s->packet);
	free(s->buffer);
	free(s);
}

int ferry_page_server_create(const struct ferry_page_server_params *params,
			     struct ferry_page_server **out, struct ferry_error *err)
{
	struct ferry_page_server *s = calloc(1, sizeof(*s));
	unsigned int i;
	int r;

	*out = NULL;
	if (!s)
		return ferry_error_set(err, ENOMEM, "no memory to serve page requests");
	s->params = *params;
	s->ahead = (struct ferry_ahead){
		.fd = params->fd, .buf = s->requests, .room = sizeof(s->requests),
	};
	for (i = 0; i < params->ram->count; i++)
		s->block_pages[i] = ferry_ram_block_pages(&params->ram->blocks[i]);
	/* Who waits for these pages waits for every microsecond: they go as they are. */
	r = ferry_packet_init(&s->packet, FERRY_WIRE_CODEC_RAW, params->checksum);
	s->buffer = aligned_alloc(FERRY_PAGE_SIZE, FERRY_WIRE_MAX_PACKET_PAGES * FERRY_PAGE_SIZE);
	if (r || !s->buffer) {
		r = ferry_error_set(err, ENOMEM, "no memory to serve page requests");
		goto err_free;
	}
	r = ferry_crew_init(&s->crew, &params->fd, 1, err);
	if (r)
		goto err_free;
	r = ferry_crew_start(&s->crew, serve, s, err);
	if (r)
		goto err_crew;
	*out = s;
	return 0;

err_crew:
	ferry_crew_end(&s->crew, false);
err_free:
	free_server(s);
	return r;
}

int ferry_page_server_why(struct ferry_page_server *s, struct ferry_error *err)
{
	return ferry_crew_why(&s->crew, err);
}

void ferry_page_server_stats(struct ferry_page_server *s, struct ferry_page_server_stats *stats)
{
	pthread_mutex_lock(&s->crew.lock);
	*stats = s->stats;
	pthread_mutex_unlock(&s->crew.lock);
}

void ferry_page_server_abort(struct ferry_page_server *s)
{
	ferry_crew_abort(&s->crew);
}

void ferry_page_server_free(struct ferry_page_server *s)
{
	if (!s)
		return;
	ferry_crew_end(&s->crew, true);
	free_server(s);
}

void ferry_page_asker_init(struct ferry_page_asker *asker)
{
	pthread_mutex_init(&asker->lock, NULL);
	asker->fd = -1;
	asker->block = -1;
}

void ferry_page_asker_set(struct ferry_page_asker *asker, int fd)
{
	pthread_mutex_lock(&asker->lock);
	ferry_io_close(&asker->fd);
	asker->fd = fd;
	asker->block = -1;
	pthread_mutex_unlock(&asker->lock);
}

/* A frame in one piece or not at all: half of one would spoil all that follow. */
static int send_whole(int fd, const void *buf, size_t bytes)
{
	ssize_t n;

	do
		n = send(fd, buf, bytes, MSG_DONTWAIT | MSG_NOSIGNAL);
	while (n < 0 && errno == EINTR);
	if (n == (ssize_t)bytes)
		return 0;
	/* A few bytes a fault do not fill a socket whose peer reads. */
	shutdown(fd, SHUT_RDWR);
	return -EPIPE;
}

int ferry_page_asker_ask(struct ferry_page_asker *asker, unsigned int block, uint64_t first,
			 uint32_t pages)
{
	const struct ferry_wire_run run = {
		.first_page = first, .pages = pages, .block = (uint16_t)block,
	};
	struct ferry_wire_frame frame = {
		.type = FERRY_WIRE_REQUEST, .length = FERRY_WIRE_REQUEST_BYTES,
	};
	uint8_t buf[FERRY_WIRE_FRAME_BYTES + FERRY_WIRE_RUN_BYTES];
	int r = -ENOTCONN;

	pthread_mutex_lock(&asker->lock);
	if (asker->block == (int)block) {
		ferry_wire_request_encode(&run, buf + FERRY_WIRE_FRAME_BYTES);
	} else {
		frame.type = FERRY_WIRE_REQUEST_BLOCK;
		frame.length = FERRY_WIRE_RUN_BYTES;
		ferry_wire_run_encode(&run, buf + FERRY_WIRE_FRAME_BYTES);
	}
	ferry_wire_frame_encode(&frame, buf);
	if (asker->fd >= 0)
		r = send_whole(asker->fd, buf, FERRY_WIRE_FRAME_BYTES + frame.length);
	if (!r)
		asker->block = (int)block;
	pthread_mutex_unlock(&asker->lock);
	return r;
}

void ferry_page_asker_free(struct ferry_page_asker *asker)
{
	ferry_io_close(&asker->fd);
	pthread_mutex_destroy(&asker->lock);
}
