// SPDX-License-Identifier: GPL-2.0-or-later
/* Requests to the VMM's libferry, and what went wrong with them in words. */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/io.h"
#include "guest/port.h"

/* A dying process closes its sockets a little before it counts as ended. */
#define LAST_BREATH_MS 1000u

bool ferry_vmm_gone(const struct ferry_vmm *v, unsigned int wait_ms)
{
	if (v->pidfd < 0)
		return true;
	return ferry_io_wait(v->pidfd, POLLIN, ferry_clock_in_ms(wait_ms)) > 0;
}

static int transport_failed(const struct ferry_vmm *v, const struct ferry_vmm_peer *peer,
			    const char *what, int r, struct ferry_error *err)
{
	bool vmm = peer == &v->vmm;

	if (vmm && ferry_vmm_gone(v, r == -EPIPE ? LAST_BREATH_MS : 0))
		return ferry_error_set(err, ESRCH, "%s: the VMM (pid %d) has gone; start it again, "
				       "its messages are in its own log", what,
				       (int)v->guest.pid);
	if (r == -ETIMEDOUT)
		return ferry_error_set(err, ETIMEDOUT, "%s: %s (pid %d) does not answer; it does not "
				       "serve its port (ferry_port_process()), or a callback of "
				       "it hangs", what, vmm ? "the VMM" : "a registered process",
				       (int)peer->pid);
	if (r == -EPIPE)
		return ferry_error_set(err, EPIPE, "%s: %s (pid %d) closed the connection", what,
				       vmm ? "the VMM" : "a registered process", (int)peer->pid);
	return ferry_error_set(err, -r, "%s: pid %d at %s does not speak the port protocol: %s",
			       what, (int)peer->pid, v->guest.path, strerror(-r));
}

int ferry_vmm_call(struct ferry_vmm *v, struct ferry_vmm_peer *peer,
		   struct ferry_channel_message *m, const char *what, struct ferry_error *err)
{
	char text[FERRY_PROTO_MAX_TEXT + 1];
	int r;

	if (peer->sock < 0)
		return transport_failed(v, peer, what, -EPIPE, err);
	m->head.sequence = ++peer->sequence;
	r = ferry_channel_call(peer->sock, m, v->timeout_ms);
	if (r)
		return transport_failed(v, peer, what, r, err);
	if (!m->head.status)
		return 0;
	ferry_proto_text(text, sizeof(text), m->body, m->head.length);
	/* One that does not let us attach is not known yet. */
	return ferry_error_set(err, EREMOTEIO, "%s: %s (pid %d) says: %s", what,
			       peer == &v->vmm ? "the VMM" : "a registered process",
			       (int)(peer->pid ? peer->pid : m->pid), text);
}

int ferry_vmm_ask(struct ferry_vmm *v, enum ferry_proto_type type, const char *what,
		  struct ferry_error *err)
{
	struct ferry_channel_message m = { .head.type = (uint16_t)type, .fd = -1 };

	return ferry_vmm_call(v, &v->vmm, &m, what, err);
}

int ferry_vmm_ask_u32(struct ferry_vmm *v, enum ferry_proto_type type, uint32_t value,
		      const char *what, struct ferry_error *err)
{
	struct ferry_channel_message m = { .head.type = (uint16_t)type, .fd = -1 };

	m.head.length = (uint32_t)ferry_proto_u32_encode(value, m.body);
	return ferry_vmm_call(v, &v->vmm, &m, what, err);
}

int ferry_vmm_hello(struct ferry_vmm *v, struct ferry_vmm_peer *peer, struct ferry_error *err)
{
	const struct ferry_proto_hello hello = {
		.version = FERRY_PROTO_VERSION,
		.min_version = FERRY_PROTO_MIN_VERSION,
		.features = FERRY_PROTO_FEATURES,
		.role = FERRY_PROTO_ROLE_AGENT,
	};
	struct ferry_channel_message m = { .head.type = FERRY_PROTO_HELLO, .fd = -1 };
	int r;

	/* A process before us may have asked on this connection: no answer to it is ours. */
	peer->sequence = (uint32_t)ferry_clock_ns();
	m.head.length = (uint32_t)ferry_proto_hello_encode(&hello, m.body);
	r = ferry_vmm_call(v, peer, &m, "attaching", err);
	if (r == -EREMOTEIO && m.head.status == -EBUSY) {
		if (err)
			err->errnum = EBUSY;
		return -EBUSY;
	}
	if (r)
		return r;
	r = ferry_proto_welcome_decode(&peer->welcome, m.body, m.head.length);
	if (!r)
		r = ferry_proto_agree(peer->welcome.version, peer->welcome.min_version,
				      peer->welcome.features);
	if (r)
		return ferry_error_set(err, -r, "%s: pid %d answers HELLO wrongly or in a version "
				       "of the port protocol this ferry does not speak", v->guest.path,
				       (int)m.pid);
	if (m.pid > 0)
		peer->pid = m.pid;
	return 0;
}

int ferry_vmm_state(struct ferry_vmm *v, uint32_t *state, struct ferry_error *err)
{
	struct ferry_channel_message m = { .head.type = FERRY_PROTO_STATE, .fd = -1 };
	int r = ferry_vmm_call(v, &v->vmm, &m, "asking for the guest's state", err);

	if (!r)
		r = ferry_proto_u32_decode(state, m.body, m.head.length);
	return r;
}

int ferry_vmm_reset(struct ferry_vmm *v, struct ferry_error *err)
{
	int r = ferry_vmm_ask(v, FERRY_PROTO_RESET, "ending what was set up for tracking", err);
	struct ferry_error late;
	unsigned int i;

	for (i = 0; i < v->n_members; i++) {
		struct ferry_channel_message m = { .head.type = FERRY_PROTO_RESET, .fd = -1 };

		/* One that has ended has nothing left to undo. */
		ferry_vmm_call(v, &v->members[i], &m, "ending what was set up for tracking", &late);
	}
	return r;
}
