// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * One socket for requests and events: what the kernel answers and what happens meanwhile
 * arrive in the order in which they are true. Joining the group comes before the first
 * dump, so nothing is missed in between.
 */
#include "event/event.h"

#include <errno.h>
#include <libmnl/libmnl.h>
#include <linux/genetlink.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/io.h"

/* The kernel makes no larger part of a dump. */
#define EVENT_DATAGRAM_BYTES 32768
/* Some thousand events, until a slow reader loses any. */
#define EVENT_QUEUE_BYTES (1 << 20)

struct ferry_events {
	struct mnl_socket *socket;
	struct ferry_message_walk walk;
	uint32_t sequence;
	uint32_t timeout_ms;
	_Alignas(max_align_t) char datagram[EVENT_DATAGRAM_BYTES];
};

static int ignore(void *ctx, const struct ferry_event *event)
{
	(void)ctx;
	(void)event;
	return 0;
}

int ferry_event_fd(const struct ferry_events *events)
{
	return mnl_socket_get_fd(events->socket);
}

void ferry_event_close(struct ferry_events *events)
{
	if (!events)
		return;
	mnl_socket_close(events->socket);
	free(events);
}

/* One datagram, if there is one. Return: 0, -EAGAIN, as ferry_message_walk(). */
static int take_datagram(struct ferry_events *events, ferry_event_fn *fn, void *ctx,
			 struct ferry_error *err)
{
	struct sockaddr_nl from = { 0 };
	socklen_t from_len = sizeof(from);
	ssize_t n;
	int r;

	n = recvfrom(ferry_event_fd(events), events->datagram, sizeof(events->datagram),
		     MSG_DONTWAIT | MSG_TRUNC, (struct sockaddr *)&from, &from_len);
	if (n < 0 && errno == ENOBUFS) {
		events->walk.overrun = true;
		return 0;
	}
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return -EAGAIN;
	if (n < 0)
		return ferry_error_set(err, errno, "listening to the kernel module ferry: %s",
				       strerror(errno));
	/* Only the kernel's word counts; root may send to anybody. */
	if (from_len != sizeof(from) || from.nl_family != AF_NETLINK || from.nl_pid)
		return 0;
	if ((size_t)n > sizeof(events->datagram))
		return ferry_error_set(err, EBADMSG,
				       "listening to the kernel module ferry: a message of %zd bytes "
				       "came, which is too long", n);
	r = ferry_message_walk(&events->walk, events->datagram, (size_t)n, fn, ctx, err);
	if (!r && events->walk.gone)
		r = ferry_error_set(err, ENODEV,
				    "the kernel module ferry was unloaded: there are no more events");
	return r;
}

/* Send a request and take datagrams until it is answered. Errors of the kernel have no text. */
static int ask(struct ferry_events *events, const void *request, size_t len, ferry_event_fn *fn,
	       void *ctx, struct ferry_error *err)
{
	uint64_t deadline_ns = ferry_clock_in_ms(events->timeout_ms);
	int r = 0;

	if (mnl_socket_sendto(events->socket, request, len) < 0)
		return -errno;
	events->walk.sequence = events->sequence;
	events->walk.answered = false;
	while (!events->walk.answered && (!r || r == -EAGAIN)) {
		r = ferry_io_wait(ferry_event_fd(events), POLLIN, deadline_ns);
		if (r < 0)
			break;
		r = take_datagram(events, fn, ctx, err);
	}
	events->walk.sequence = 0;
	return r;
}

/* The words for an error of the kernel that has none. */
static int explain(int r, struct ferry_error *err)
{
	if (r >= 0 || (err && err->errnum))
		return r;
	if (r == -ENOENT && !access("/sys/module/ferry", F_OK))
		return ferry_error_set(err, ENOENT,
				       "looking for the kernel module ferry: it is loaded, but this "
				       "process is in another network namespace than the machine's "
				       "first, where its events are; as root on the host type: "
				       "nsenter --net=/proc/1/ns/net ferry monitor");
	if (r == -ENOENT)
		return ferry_error_set(err, ENOENT,
				       "looking for the kernel module ferry: it is not loaded; as root "
				       "type: modprobe ferry (or, from where it was built: insmod "
				       "ferry.ko)");
	if (r == -EPERM || r == -EACCES)
		return ferry_error_set(err, EPERM,
				       "listening to the kernel module ferry: that needs CAP_NET_ADMIN; "
				       "run it as root, outside of containers");
	if (r == -ETIMEDOUT)
		return ferry_error_set(err, ETIMEDOUT,
				       "listening to the kernel module ferry: the kernel did not answer");
	return ferry_error_set(err, -r, "listening to the kernel module ferry: %s", strerror(-r));
}

static int find_family(struct ferry_events *events, struct ferry_error *err)
{
	_Alignas(max_align_t) char request[FERRY_MESSAGE_REQUEST_BYTES];
	int r;

	r = ask(events, request, ferry_message_find(request, ++events->sequence), ignore, NULL, err);
	if (!r && !events->walk.family)
		r = -ENOENT;
	return r;
}

static int join(struct ferry_events *events)
{
	/* The controller's group, of its own number, says when our family goes away. */
	unsigned int groups[] = { events->walk.group, GENL_ID_CTRL };
	size_t i;

	for (i = 0; i < sizeof(groups) / sizeof(groups[0]); i++)
		if (mnl_socket_setsockopt(events->socket, NETLINK_ADD_MEMBERSHIP, &groups[i],
					  sizeof(groups[i])))
			return -errno;
	return 0;
}

int ferry_event_open(struct ferry_events **out, uint32_t timeout_ms, struct ferry_error *err)
{
	struct ferry_events *events = calloc(1, sizeof(*events));
	int queue = EVENT_QUEUE_BYTES;
	int r;

	*out = NULL;
	if (!events)
		return explain(-ENOMEM, err);
	events->timeout_ms = timeout_ms;
	events->socket = mnl_socket_open2(NETLINK_GENERIC, SOCK_CLOEXEC);
	if (!events->socket) {
		r = explain(-errno, err);
		free(events);
		return r;
	}
	/* As large as we may: losing events is no harm. */
	if (setsockopt(ferry_event_fd(events), SOL_SOCKET, SO_RCVBUFFORCE, &queue, sizeof(queue)))
		(void)setsockopt(ferry_event_fd(events), SOL_SOCKET, SO_RCVBUF, &queue, sizeof(queue));
	r = mnl_socket_bind(events->socket, 0, MNL_SOCKET_AUTOPID) ? -errno : 0;
	if (!r)
		r = find_family(events, err);
	if (!r)
		r = join(events);
	if (r) {
		ferry_event_close(events);
		return explain(r, err);
	}
	*out = events;
	return 0;
}

/*
 * Events were lost: say so, and take what had room. From a full queue until it was empty once the
 * kernel drops events and says nothing more; what it drops so must come before the dump.
 */
static int catch_up(struct ferry_events *events, ferry_event_fn *fn, void *ctx,
		    struct ferry_error *err)
{
	static const struct ferry_event lost = { .kind = FERRY_EVENT_LOST };
	int r = fn(ctx, &lost);

	events->walk.overrun = false;
	while (!r && !events->walk.overrun)
		r = take_datagram(events, fn, ctx, err);
	return r == -EAGAIN ? 0 : r;
}

int ferry_event_dump(struct ferry_events *events, ferry_event_fn *fn, void *ctx,
		     struct ferry_error *err)
{
	_Alignas(max_align_t) char request[FERRY_MESSAGE_REQUEST_BYTES];
	int r;

	do {
		while (events->walk.overrun) {
			r = catch_up(events, fn, ctx, err);
			if (r)
				return explain(r, err);
		}
		r = ask(events, request,
			ferry_message_dump(request, events->walk.family, ++events->sequence), fn, ctx,
			err);
	} while (!r && events->walk.overrun);
	return explain(r, err);
}

int ferry_event_receive(struct ferry_events *events, ferry_event_fn *fn, void *ctx,
			struct ferry_error *err)
{
	int r = take_datagram(events, fn, ctx, err);

	if (!r && events->walk.overrun)
		return ferry_event_dump(events, fn, ctx, err);
	return r == -EAGAIN ? 0 : r;
}
