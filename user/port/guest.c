// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Requests that are callbacks of the VMM. The library knows of the guest's life only what
 * keeps an agent's mistake from becoming the guest's: whether it has arrived, and whether
 * it has begun to run.
 *
 *	incoming --LOAD--> loaded --RUN--> (an ordinary guest)
 *	    `--LOAD fails--> broken
 */
#include "port/private.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define SEALS_STATE (F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW)
#define SEALS_LOG (F_SEAL_SHRINK | F_SEAL_GROW)

int port_say(struct ferry_port *port, int errnum, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(port->error, sizeof(port->error), fmt, ap);
	va_end(ap);
	return -errnum;
}

/* A callback's answer: anything above zero where none is due is a mistake. */
static int plain(int r)
{
	return r > 0 ? -EINVAL : r;
}

static int running(struct ferry_port *port)
{
	if (port->incoming || port->loaded || port->broken)
		return 0;
	return port->ops.running ? port->ops.running(port->ctx) : !port->paused;
}

/* Return: 0; -EBUSY with a text while it runs; what running() answers. */
static int must_be_paused(struct ferry_port *port)
{
	int r = running(port);

	return r > 0 ? port_say(port, EBUSY, "the guest runs") : r;
}

/* The guest must be one that has run here. */
static int must_be_here(struct ferry_port *port)
{
	if (port->incoming || port->broken)
		return port_say(port, EINVAL, "this VMM holds no guest: it waits for one");
	if (port->loaded)
		return port_say(port, EINVAL, "the guest was loaded here and has not run yet");
	return 0;
}

static int must_have(struct ferry_port *port, bool it, const char *what)
{
	return it ? 0 : port_say(port, EOPNOTSUPP, "this VMM has no %s", what);
}

int port_state(struct ferry_port *port, const struct ferry_channel_message *in,
	       struct ferry_channel_message *out)
{
	uint32_t state = 0;
	unsigned int i;
	int r = port->has_ops ? running(port) : 0;

	(void)in;
	if (r < 0)
		return r;
	state |= r ? FERRY_PROTO_STATE_RUNNING : 0;
	state |= port->incoming ? FERRY_PROTO_STATE_INCOMING : 0;
	state |= port->loaded ? FERRY_PROTO_STATE_LOADED : 0;
	state |= port->broken ? FERRY_PROTO_STATE_BROKEN : 0;
	state |= port->quiesced ? FERRY_PROTO_STATE_QUIESCED : 0;
	state |= port->logging ? FERRY_PROTO_STATE_LOG : 0;
	for (i = 0; i < port->n_blocks; i++)
		state |= port->blocks[i].viewed ? FERRY_PROTO_STATE_VIEW : 0;
	out->head.length = (uint32_t)ferry_proto_u32_encode(state, out->body);
	return 0;
}

int port_check(struct ferry_port *port, const struct ferry_channel_message *in,
	       struct ferry_channel_message *out)
{
	(void)in;
	(void)out;
	return port->ops.check ? plain(port->ops.check(port->ctx)) : 0;
}

int port_pause(struct ferry_port *port, const struct ferry_channel_message *in,
	       struct ferry_channel_message *out)
{
	int r = must_be_here(port);

	(void)in;
	(void)out;
	if (!r)
		r = plain(port->ops.pause(port->ctx));
	if (!r)
		port->paused = true;
	return r;
}

static int unquiesce(struct ferry_port *port)
{
	int r = 0;

	if (port->quiesced)
		r = plain(port->ops.quiesce(port->ctx, 0));
	if (!r)
		port->quiesced = false;
	return r;
}

int port_resume(struct ferry_port *port, const struct ferry_channel_message *in,
		struct ferry_channel_message *out)
{
	int r = must_be_here(port);

	(void)in;
	(void)out;
	if (!r)
		r = unquiesce(port);
	if (!r)
		r = plain(port->ops.resume(port->ctx));
	if (!r)
		port->paused = false;
	return r;
}

/* Only a file in memory never blocks, and stays as it is where it is sealed. */
static int check_file(struct ferry_port *port, int fd, int seals)
{
	int have = fcntl(fd, F_GET_SEALS);

	if (have < 0 || (have & seals) != seals || lseek(fd, 0, SEEK_SET))
		return port_say(port, EINVAL, "the descriptor passed is no memory file with the "
				"seals it must have");
	return 0;
}

int port_save(struct ferry_port *port, const struct ferry_channel_message *in,
	      struct ferry_channel_message *out)
{
	uint64_t limit;
	struct stat st;
	int r = must_be_here(port);

	ferry_proto_u64_decode(&limit, in->body, in->head.length);
	if (!r)
		r = must_be_paused(port);
	if (!r)
		r = check_file(port, in->fd, 0);
	if (!r)
		r = plain(port->ops.save(port->ctx, in->fd));
	if (!r && fstat(in->fd, &st))
		r = -errno;
	if (r)
		return r;
	if ((uint64_t)st.st_size > limit)
		return port_say(port, EFBIG, "the device state has %lld bytes: is RAM in it?",
				(long long)st.st_size);
	out->head.length = (uint32_t)ferry_proto_u64_encode((uint64_t)st.st_size, out->body);
	return 0;
}

int port_load(struct ferry_port *port, const struct ferry_channel_message *in,
	      struct ferry_channel_message *out)
{
	int r;

	(void)out;
	if (!port->incoming)
		return port_say(port, EINVAL, "this VMM waits for no guest (it was not created "
				"as incoming, or was loaded before)");
	if (!port->n_blocks)
		return port_say(port, EINVAL, "this VMM has no RAM: it waits for that of another "
				"one (ferry cpr)");
	r = check_file(port, in->fd, SEALS_STATE);
	if (r)
		return r;
	r = plain(port->ops.load(port->ctx, in->fd));
	port->incoming = false;
	port->loaded = !r;
	port->broken = r;
	return r;
}

int port_run(struct ferry_port *port, const struct ferry_channel_message *in,
	     struct ferry_channel_message *out)
{
	int r;

	(void)in;
	(void)out;
	if (port->incoming || port->broken)
		return port_say(port, EINVAL, "no device state was loaded here");
	/* It was started before; whether it runs now is its owner's business. */
	if (port->arrived)
		return 0;
	if (!port->loaded)
		return port_say(port, EINVAL, "this VMM was never a destination: resume its guest");
	r = unquiesce(port);
	if (!r)
		r = plain(port->ops.run(port->ctx));
	if (!r) {
		port->loaded = false;
		port->arrived = true;
	}
	return r;
}

int port_direct_io(struct ferry_port *port, const struct ferry_channel_message *in,
		   struct ferry_channel_message *out)
{
	char why[FERRY_PROTO_MAX_TEXT + 1] = "the VMM does not say whether its devices write guest "
					     "RAM by DMA";
	int r = !(port->flags & FERRY_PORT_NO_DIRECT_IO);
	size_t len;

	(void)in;
	if (port->ops.direct_io) {
		why[0] = '\0';
		r = port->ops.direct_io(port->ctx, why, sizeof(why));
	}
	if (r < 0)
		return r;
	ferry_proto_u32_encode(r > 0, out->body);
	len = r ? strnlen(why, FERRY_PROTO_MAX_TEXT) : 0;
	memcpy(out->body + 4, why, len);
	out->head.length = (uint32_t)(4 + len);
	return 0;
}

/* 64-bit words of a block's part of the bitmap. */
static size_t log_words(const struct port_block *b)
{
	return (size_t)(b->bytes / FERRY_PROTO_PAGE_BYTES + 63) / 64;
}

int port_log_start(struct ferry_port *port, const struct ferry_channel_message *in,
		   struct ferry_channel_message *out)
{
	size_t bytes = 0;
	struct stat st;
	unsigned int i;
	void *map;
	int r = must_have(port, port->ops.dirty_start, "dirty log");

	(void)out;
	if (!r && port->logging)
		r = port_say(port, EALREADY, "the dirty log is on already");
	if (!r)
		r = check_file(port, in->fd, SEALS_LOG);
	if (r)
		return r;
	for (i = 0; i < port->n_blocks; i++)
		bytes += log_words(&port->blocks[i]) * sizeof(uint64_t);
	if (fstat(in->fd, &st) || (uint64_t)st.st_size != bytes)
		return port_say(port, EINVAL, "the bitmap passed has %lld bytes, wanted %zu",
				(long long)st.st_size, bytes);
	map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, in->fd, 0);
	if (map == MAP_FAILED)
		return -errno;
	r = plain(port->ops.dirty_start(port->ctx));
	if (r) {
		munmap(map, bytes);
		return r;
	}
	port->log = map;
	port->log_bytes = bytes;
	port->logging = true;
	return 0;
}

int port_log_sync(struct ferry_port *port, const struct ferry_channel_message *in,
		  struct ferry_channel_message *out)
{
	uint64_t *bits = port->log;
	unsigned int i;

	(void)in;
	(void)out;
	if (!port->logging)
		return port_say(port, EINVAL, "the dirty log is off");
	memset(bits, 0, port->log_bytes);
	for (i = 0; i < port->n_blocks; i++) {
		const struct port_block *b = &port->blocks[i];
		uint64_t pages = b->bytes / FERRY_PROTO_PAGE_BYTES;
		int r = plain(port->ops.dirty_sync(port->ctx, b->name, bits, pages));

		if (r)
			return r;
		bits += log_words(b);
	}
	return 0;
}

void port_log_drop(struct ferry_port *port)
{
	if (!port->logging)
		return;
	port->ops.dirty_stop(port->ctx);
	port->logging = false;
	munmap(port->log, port->log_bytes);
	port->log = NULL;
}

int port_log_stop(struct ferry_port *port, const struct ferry_channel_message *in,
		  struct ferry_channel_message *out)
{
	(void)in;
	(void)out;
	port_log_drop(port);
	return 0;
}

int port_throttle(struct ferry_port *port, const struct ferry_channel_message *in,
		  struct ferry_channel_message *out)
{
	uint32_t percent;
	int r = must_have(port, port->ops.throttle, "throttle");

	(void)out;
	ferry_proto_u32_decode(&percent, in->body, in->head.length);
	if (!r && percent > 99)
		r = port_say(port, EINVAL, "throttle by %u %%", percent);
	if (!r)
		r = plain(port->ops.throttle(port->ctx, percent));
	if (!r)
		port->throttled = percent;
	return r;
}

int port_quiesce(struct ferry_port *port, const struct ferry_channel_message *in,
		 struct ferry_channel_message *out)
{
	uint32_t on;
	int r = must_have(port, port->ops.quiesce, "way to let its devices go");

	(void)out;
	ferry_proto_u32_decode(&on, in->body, in->head.length);
	if (!r && on > 1)
		r = -EINVAL;
	if (!r && !on)
		return unquiesce(port);
	if (!r)
		r = must_be_paused(port);
	if (!r && !port->quiesced)
		r = plain(port->ops.quiesce(port->ctx, 1));
	if (!r)
		port->quiesced = true;
	return r;
}

int port_adopt(struct ferry_port *port, const struct ferry_channel_message *in,
	       struct ferry_channel_message *out)
{
	struct ferry_port_ram ram = { .struct_size = sizeof(ram) };
	struct ferry_proto_ram told;
	int r = ferry_proto_ram_decode(&told, in->body, in->head.length);

	(void)out;
	if (!r)
		r = must_have(port, port->ops.adopt, "way to take over the RAM of another VMM");
	if (!r && !port->incoming)
		r = port_say(port, EINVAL, "this VMM waits for no guest");
	if (r)
		return r;
	ram.name = told.name;
	ram.fd = in->fd;
	ram.fd_offset = told.fd_offset;
	ram.bytes = told.bytes;
	ram.page_bytes = told.page_bytes;
	r = plain(port->ops.adopt(port->ctx, &ram));
	/* Without the memory it was only a question. */
	if (r || in->fd < 0)
		return r;
	pthread_mutex_lock(&port->lock);
	r = port_add_block(port, &ram);
	pthread_mutex_unlock(&port->lock);
	return r;
}
