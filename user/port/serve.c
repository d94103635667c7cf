// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Requests: who may ask for what, and what is answered. A handler gets a message that is
 * well-formed (channel.c) and returns 0 or -errno, which becomes the reply's status; the
 * reply's body is then the text of port->error, or the errno's.
 */
#include "port/private.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static int port_ram(struct ferry_port *port, const struct ferry_channel_message *in,
		    struct ferry_channel_message *out)
{
	struct ferry_proto_ram ram = { 0 };
	const struct port_block *b;
	uint32_t i;

	ferry_proto_u32_decode(&i, in->body, in->head.length);
	if (i >= port->n_blocks)
		return -ENOENT;
	b = &port->blocks[i];
	ram.bytes = b->bytes;
	ram.fd_offset = b->fd_offset;
	ram.addr = (uintptr_t)b->addr;
	ram.page_bytes = b->page_bytes;
	strcpy(ram.name, b->name);
	out->head.length = (uint32_t)ferry_proto_ram_encode(&ram, out->body);
	out->fd = b->fd;
	return 0;
}

static int port_reset(struct ferry_port *port, const struct ferry_channel_message *in,
		      struct ferry_channel_message *out)
{
	int r = port_views_drop(port);

	(void)in;
	(void)out;
	port_userfaultfd_drop(port);
	port_log_drop(port);
	if (port->throttled && !port->ops.throttle(port->ctx, 0))
		port->throttled = false;
	return r;
}

static int port_quit(struct ferry_port *port, const struct ferry_channel_message *in,
		     struct ferry_channel_message *out)
{
	(void)in;
	(void)out;
	port->quitting = true; /* once the answer has left */
	return 0;
}

static struct port_connection *nth_member(struct ferry_port *port, uint32_t n)
{
	unsigned int i;

	for (i = 0; i < PORT_CONNECTIONS; i++)
		if (port->connections[i].kind == PORT_MEMBER && !n--)
			return &port->connections[i];
	return NULL;
}

/* A socket pair: one end for the member, one for the agent. */
static int port_member(struct ferry_port *port, const struct ferry_channel_message *in,
		       struct ferry_channel_message *out)
{
	struct ferry_channel_message m = { .head.type = FERRY_PROTO_CHANNEL };
	struct port_connection *member;
	uint32_t which;
	int sv[2], r;

	ferry_proto_u32_decode(&which, in->body, in->head.length);
	member = nth_member(port, which);
	if (!member)
		return -ENOENT;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, sv))
		return -errno;
	m.fd = sv[1];
	r = ferry_channel_send(member->fd, &m);
	close(sv[1]);
	if (r) {
		close(sv[0]);
		return port_say(port, ENOTCONN, "process %d, which had joined, does not take "
				"part any more", (int)member->pid);
	}
	out->head.length = (uint32_t)ferry_proto_u32_encode((uint32_t)member->pid, out->body);
	out->fd = sv[0];
	return 0;
}

/* What an agent may ask, of a VMM and of a member. */
static const struct {
	port_handler *handle;
	bool of_member;
} handlers[FERRY_PROTO_TYPE_COUNT] = {
	[FERRY_PROTO_RAM] = { port_ram, true },
	[FERRY_PROTO_STATE] = { port_state, true },
	[FERRY_PROTO_CHECK] = { port_check, false },
	[FERRY_PROTO_PAUSE] = { port_pause, false },
	[FERRY_PROTO_RESUME] = { port_resume, false },
	[FERRY_PROTO_SAVE] = { port_save, false },
	[FERRY_PROTO_LOAD] = { port_load, false },
	[FERRY_PROTO_RUN] = { port_run, false },
	[FERRY_PROTO_QUIT] = { port_quit, false },
	[FERRY_PROTO_DIRECT_IO] = { port_direct_io, false },
	[FERRY_PROTO_LOG_START] = { port_log_start, false },
	[FERRY_PROTO_LOG_SYNC] = { port_log_sync, false },
	[FERRY_PROTO_LOG_STOP] = { port_log_stop, false },
	[FERRY_PROTO_THROTTLE] = { port_throttle, false },
	[FERRY_PROTO_QUIESCE] = { port_quiesce, false },
	[FERRY_PROTO_USERFAULTFD] = { port_userfaultfd, true },
	[FERRY_PROTO_VIEW] = { port_view, true },
	[FERRY_PROTO_RESET] = { port_reset, true },
	[FERRY_PROTO_MEMBER] = { port_member, false },
	[FERRY_PROTO_ADOPT] = { port_adopt, false },
};

static struct port_connection *agent(struct ferry_port *port)
{
	unsigned int i;

	for (i = 0; i < PORT_CONNECTIONS; i++)
		if (port->connections[i].kind == PORT_AGENT)
			return &port->connections[i];
	return NULL;
}

/* Its end may lie in the socket behind the newcomer's HELLO. */
static bool has_hung_up(const struct port_connection *c)
{
	struct pollfd p = { .fd = c->fd, .events = POLLRDHUP };

	return poll(&p, 1, 0) > 0 && (p.revents & (POLLHUP | POLLRDHUP | POLLERR));
}

static int refuse_second(struct ferry_port *port, const struct port_connection *c)
{
	struct port_connection *first = agent(port);

	if (!first || first == c)
		return 0;
	if (has_hung_up(first)) {
		port_connection_close(port, first);
		return 0;
	}
	return port_say(port, EBUSY, "another ferry (pid %d) is attached to this VMM; let it end, "
			"or cancel it", (int)first->pid);
}

void port_attach(struct ferry_port *port, struct port_connection *c)
{
	c->kind = PORT_AGENT;
	pthread_mutex_lock(&port->lock);
	port->attached = true;
	pthread_mutex_unlock(&port->lock);
}

static void welcome(struct ferry_port *port, struct ferry_channel_message *out)
{
	struct ferry_proto_welcome w = {
		.version = FERRY_PROTO_VERSION,
		.min_version = FERRY_PROTO_MIN_VERSION,
		.features = FERRY_PROTO_FEATURES,
		.blocks = port->n_blocks,
		.members = port->members,
	};

	strcpy(w.kind, port->kind);
	if (!port->has_ops)
		w.has |= FERRY_PROTO_IS_MEMBER;
	if (port->ops.dirty_start)
		w.has |= FERRY_PROTO_HAS_LOG;
	if (port->flags & FERRY_PORT_LOG_PROCESS)
		w.has |= FERRY_PROTO_HAS_LOG_PROCESS;
	if (port->flags & FERRY_PORT_LOG_MEMBERS)
		w.has |= FERRY_PROTO_HAS_LOG_MEMBERS;
	if (port->ops.throttle)
		w.has |= FERRY_PROTO_HAS_THROTTLE;
	if (port->ops.quiesce)
		w.has |= FERRY_PROTO_HAS_QUIESCE;
	if (port->ops.adopt && port->incoming && !port->n_blocks)
		w.has |= FERRY_PROTO_HAS_ADOPT;
	out->head.length = (uint32_t)ferry_proto_welcome_encode(&w, out->body);
}

/* A newcomer, or the agent's next process on a connection it has inherited. */
static int on_hello(struct ferry_port *port, struct port_connection *c,
		    const struct ferry_channel_message *in, struct ferry_channel_message *out)
{
	struct ferry_proto_hello h;
	int r = ferry_proto_hello_decode(&h, in->body, in->head.length);

	if (r)
		return r;
	r = ferry_proto_agree(h.version, h.min_version, h.features);
	if (r)
		return port_say(port, -r, "this VMM's libferry %s speaks version %d of the port "
				"protocol, you %u to %u, or you need a feature it has not",
				ferry_version(), FERRY_PROTO_VERSION, h.min_version, h.version);
	if (c->kind == PORT_AGENT && h.role != FERRY_PROTO_ROLE_AGENT)
		return -EPROTO;
	r = refuse_second(port, c);
	if (r)
		return r;
	if (h.role == FERRY_PROTO_ROLE_MEMBER)
		c->kind = PORT_JOINING;
	else if (c->kind != PORT_AGENT)
		port_attach(port, c);
	welcome(port, out);
	return 0;
}

static int on_member_ram(struct ferry_port *port, struct port_connection *c,
			 const struct ferry_channel_message *in)
{
	struct ferry_proto_ram ram;
	unsigned int i;
	int r = ferry_proto_ram_decode(&ram, in->body, in->head.length);

	if (r)
		return r;
	for (i = 0; i < port->n_blocks; i++) {
		if (strcmp(port->blocks[i].name, ram.name))
			continue;
		if (port->blocks[i].bytes != ram.bytes ||
		    port->blocks[i].page_bytes != ram.page_bytes)
			break;
		c->declared[i / 8] |= (uint8_t)(1u << i % 8);
		return 0;
	}
	return port_say(port, EINVAL, "the VMM has no block '%s' of %llu bytes", ram.name,
			(unsigned long long)ram.bytes);
}

static int on_join(struct ferry_port *port, struct port_connection *c)
{
	int r = refuse_second(port, c);
	unsigned int i, declared = 0;

	for (i = 0; i < port->n_blocks; i++)
		declared += c->declared[i / 8] >> i % 8 & 1;
	if (!r && !declared)
		r = -EINVAL;
	if (!r && port->members == FERRY_PROTO_MAX_MEMBERS)
		r = -E2BIG;
	if (r)
		return r;
	c->kind = PORT_MEMBER;
	pthread_mutex_lock(&port->lock);
	port->members++;
	pthread_mutex_unlock(&port->lock);
	return 0;
}

/* @last is set where nothing more is said on this connection. */
static int dispatch(struct ferry_port *port, struct port_connection *c,
		    const struct ferry_channel_message *in, struct ferry_channel_message *out,
		    bool *last)
{
	unsigned int type = in->head.type;
	int r = -EPROTO;

	*last = false;
	if (c->kind == PORT_AGENT && type != FERRY_PROTO_HELLO) {
		if (!handlers[type].handle || (port->joined && !handlers[type].of_member))
			return -EOPNOTSUPP;
		return handlers[type].handle(port, in, out);
	}
	if (type == FERRY_PROTO_HELLO && (c->kind == PORT_AGENT || c->kind == PORT_NEWCOMER))
		r = on_hello(port, c, in, out);
	else if (type == FERRY_PROTO_MEMBER_RAM && c->kind == PORT_JOINING)
		r = on_member_ram(port, c, in);
	else if (type == FERRY_PROTO_JOIN && c->kind == PORT_JOINING)
		r = on_join(port, c);
	*last = r;
	return r;
}

static void put_error(struct ferry_port *port, int r, struct ferry_channel_message *out)
{
	const char *text = port->error[0] ? port->error : strerror(-r);

	out->fd = -1;
	out->head.status = r > -4096 ? r : -EIO;
	out->head.length = (uint32_t)strnlen(text, FERRY_PROTO_MAX_TEXT);
	memcpy(out->body, text, out->head.length);
}

static bool may_close(unsigned int type)
{
	return type != FERRY_PROTO_RAM; /* that is the block's own */
}

static void answer(struct ferry_port *port, struct port_connection *c,
		   struct ferry_channel_message *in, int r)
{
	struct ferry_channel_message out = {
		.head = { .type = in->head.type, .flags = FERRY_PROTO_REPLY,
			  .sequence = in->head.sequence },
		.fd = -1,
	};
	bool last = false;
	int sent;

	port->error[0] = '\0';
	if (!r)
		r = dispatch(port, c, in, &out, &last);
	if (r)
		put_error(port, r, &out);
	sent = ferry_channel_send(c->fd, &out);
	if (out.fd >= 0 && may_close(out.head.type))
		close(out.fd);
	/* Who does not read one answer before asking again is no agent. */
	if (sent || last)
		port_connection_close(port, c);
	if (port->quitting) {
		port->quitting = false;
		if (port->ops.quit)
			port->ops.quit(port->ctx);
		else
			kill(getpid(), SIGTERM);
	}
}

/* Of a member, from its VMM: an agent wants to talk. */
static int on_channel(struct ferry_port *port, struct ferry_channel_message *in)
{
	struct port_connection *old, *c;

	if (in->head.type != FERRY_PROTO_CHANNEL || in->head.flags)
		return -EPROTO;
	/* The VMM lets one in at a time: the old one has gone. */
	old = agent(port);
	if (old)
		port_connection_close(port, old);
	c = port_connection_add(port, in->fd, PORT_NEWCOMER);
	if (!c)
		return -ENOMEM;
	in->fd = -1;
	port_attach(port, c);
	return 0;
}

void port_request(struct ferry_port *port, struct port_connection *c)
{
	struct ferry_channel_message in = { .fd = -1 };
	int r = ferry_channel_receive(c->fd, &in);

	if (r == -EAGAIN)
		return;
	if (c->kind == PORT_VMM) {
		if (!r)
			r = on_channel(port, &in);
		if (r && r != -ENOMEM)
			port_connection_close(port, c);
	} else if (c->kind == PORT_MEMBER) {
		/* Nothing is due from it: it ended, or is none. */
		port_connection_close(port, c);
	} else if ((!r || r == -EOPNOTSUPP) && !(in.head.flags & FERRY_PROTO_REPLY)) {
		answer(port, c, &in, r);
	} else {
		port_connection_close(port, c);
	}
	if (in.fd >= 0)
		close(in.fd);
}
