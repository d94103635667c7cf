// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Device state: QEMU's own migration stream without the shared RAM.
 *
 * Save and load are in the downtime, so each is as few QMP round trips as can
 * be. Save: getfd, migrate, (a thread drains the socket to its end), one
 * query-migrate. QEMU closes its end after it has set the final status, so the
 * end of the stream is the news and nothing is polled meanwhile. The thread is
 * needed because QEMU may write more than a socket buffer before it answers
 * `migrate`. Load: stop (never start by yourself), getfd, migrate-incoming,
 * write, poll query-migrate, query-status.
 *
 * Two QEMUs of a cpr are coupled: all of load() up to the write is done while the guest
 * runs, and the draining thread passes on what comes, so that one loads while the other
 * saves. What the new one makes of it counts when the old one has told that it was all.
 *
 * A socket pair, not a file: QEMU 11 refuses fd: with a regular file.
 */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/io.h"
#include "guest/json.h"
#include "guest/qemu.h"

#define DRAIN_BYTES (256u << 10)
#define POLL_FIRST_NS (200 * 1000ull)
#define POLL_MAX_NS (1 * FERRY_NS_PER_MS)

bool ferry_qemu_migration_active(const char *status)
{
	static const char *const over[] = { "none", "completed", "failed", "cancelled" };
	size_t i;

	for (i = 0; i < sizeof(over) / sizeof(over[0]); i++)
		if (!strcmp(status, over[i]))
			return false;
	return true;
}

int ferry_qemu_migration(struct ferry_qemu *q, char status[FERRY_QEMU_STATUS_MAX],
			 struct json_object **reply, struct ferry_error *err)
{
	struct json_object *answer;
	const char *word;
	int r = ferry_qemu_command(q, "query-migrate", NULL, -1, &answer, err);

	if (r)
		return r;
	word = ferry_json_string(answer, "status");
	snprintf(status, FERRY_QEMU_STATUS_MAX, "%s", word ? word : "none");
	if (reply)
		*reply = answer;
	else
		json_object_put(answer);
	return 0;
}

/*
 * Poll until the migration is over: "none" counts as over too. @reply as above.
 * Return: 0, -ETIMEDOUT, or what the query failed with.
 */
static int wait_over(struct ferry_qemu *q, char status[FERRY_QEMU_STATUS_MAX],
		     struct json_object **reply, struct ferry_error *err)
{
	uint64_t deadline_ns = ferry_clock_in_ms(q->timeout_ms), pause_ns = POLL_FIRST_NS;

	for (;;) {
		int r = ferry_qemu_migration(q, status, reply, err);

		if (r || !ferry_qemu_migration_active(status))
			return r;
		if (reply)
			json_object_put(*reply);
		if (ferry_clock_ns() >= deadline_ns)
			return ferry_error_set(err, ETIMEDOUT, "QEMU's migration is still '%s' "
					       "after %u ms", status, q->timeout_ms);
		ferry_clock_sleep_ns(pause_ns);
		pause_ns = pause_ns * 2 < POLL_MAX_NS ? pause_ns * 2 : POLL_MAX_NS;
	}
}

int ferry_qemu_settle(struct ferry_qemu *q, struct ferry_error *err)
{
	char status[FERRY_QEMU_STATUS_MAX];
	int r;

	if (!q->migrating)
		return 0;
	r = ferry_qemu_migration(q, status, NULL, err);
	if (!r && ferry_qemu_migration_active(status)) {
		r = ferry_qemu_command(q, "migrate_cancel", NULL, -1, NULL, err);
		if (!r)
			r = wait_over(q, status, NULL, err);
	}
	if (r)
		ferry_error_prefix(err, "cancelling QEMU's own migration");
	else
		q->migrating = false;
	return r;
}

struct drain {
	int fd;
	size_t max, bytes, room;
	uint8_t *buf;
	uint64_t deadline_ns;
	int result;
	struct ferry_qemu *heir; /* gets it too, or NULL */
};

static int drain_some(struct drain *d)
{
	ssize_t n;
	int r;

	if (d->bytes > d->max)
		return -EFBIG;
	if (d->room - d->bytes < DRAIN_BYTES) {
		size_t room = d->room ? d->room * 2 : 4 * DRAIN_BYTES;
		uint8_t *buf = realloc(d->buf, room);

		if (!buf)
			return -ENOMEM;
		d->buf = buf;
		d->room = room;
	}
	r = ferry_io_wait(d->fd, POLLIN, d->deadline_ns);
	if (r < 0)
		return r;
	n = read(d->fd, d->buf + d->bytes, DRAIN_BYTES);
	if (n == 0)
		return 1;
	if (n < 0)
		return errno == EINTR || errno == EAGAIN ? 0 : -errno;
	/* One that stopped reading is asked why later; the other must be heard out. */
	if (d->heir && !d->heir->written)
		d->heir->written = ferry_io_write(d->heir->loading, d->buf + d->bytes, (size_t)n,
						  d->deadline_ns);
	d->bytes += (size_t)n;
	return 0;
}

static void *drain_main(void *arg)
{
	struct drain *d = arg;
	int r;

	do
		r = drain_some(d);
	while (!r);
	d->result = r < 0 ? r : 0;
	/* On failure QEMU must not block in a write nobody reads. */
	shutdown(d->fd, SHUT_RDWR);
	return NULL;
}

/* Give QEMU one end of a socket pair under the fixed name; *@ours is the other. */
static int give_channel(struct ferry_qemu *q, int *ours, struct ferry_error *err)
{
	struct json_object *args = json_object_new_object();
	int pair[2], r;

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair)) {
		r = errno;
		json_object_put(args);
		return ferry_error_set(err, r, "socket pair for the device state: %s",
				       strerror(r));
	}
	ferry_io_nonblock(pair[0], 1);
	json_object_object_add(args, "fdname", json_object_new_string(FERRY_QEMU_STATE_FD));
	r = ferry_qemu_command(q, "getfd", args, pair[1], NULL, err);
	close(pair[1]);
	if (r)
		close(pair[0]);
	else
		*ours = pair[0];
	return r;
}

static int start_migration(struct ferry_qemu *q, const char *command, struct ferry_error *err)
{
	struct json_object *args = json_object_new_object();

	json_object_object_add(args, "uri", json_object_new_string("fd:" FERRY_QEMU_STATE_FD));
	return ferry_qemu_command(q, command, args, -1, NULL, err);
}

/* The stream has ended: what does QEMU say? */
static int save_verdict(struct ferry_qemu *q, const struct drain *d, struct ferry_error *err)
{
	char status[FERRY_QEMU_STATUS_MAX];
	struct json_object *reply;
	const char *why;
	int r;

	if (d->result == -EFBIG) {
		ferry_qemu_settle(q, NULL);
		return ferry_error_set(err, EFBIG, "saving device state: it is beyond %zu bytes, so "
				       "guest RAM is in it: not all RAM is shared memory that "
				       "x-ignore-shared skips", d->max);
	}
	if (d->result) {
		ferry_qemu_settle(q, NULL);
		return ferry_error_set(err, -d->result, "saving device state: reading it from QEMU "
				       "(pid %d): %s", (int)q->guest.pid, strerror(-d->result));
	}
	r = wait_over(q, status, &reply, err);
	if (r)
		return r;
	why = ferry_json_string(reply, "error-desc");
	if (strcmp(status, "completed"))
		r = ferry_error_set(err, EREMOTEIO, "saving device state: QEMU's migration is '%s': "
				    "%.400s", status, why ? why : "it gives no reason");
	else
		q->migrating = false;
	json_object_put(reply);
	return r;
}

int ferry_qemu_save(struct ferry_guest *guest, size_t max, uint8_t **state, size_t *bytes,
		    struct ferry_error *err)
{
	struct ferry_qemu *q = ferry_qemu_of(guest);
	struct drain d = { .max = max, .fd = q->saving, .heir = q->heir };
	pthread_t thread;
	int r;

	q->saving = -1;
	q->heir = NULL;
	if (d.fd < 0) {
		r = give_channel(q, &d.fd, err);
		if (r)
			return r;
	}
	d.deadline_ns = ferry_clock_in_ms(q->timeout_ms);
	q->migrating = true;
	r = pthread_create(&thread, NULL, drain_main, &d);
	if (r) {
		close(d.fd);
		return ferry_error_set(err, r, "saving device state: thread: %s", strerror(r));
	}
	r = start_migration(q, "migrate", err);
	if (r)
		shutdown(d.fd, SHUT_RDWR);
	pthread_join(thread, NULL);
	close(d.fd);
	if (!r)
		r = save_verdict(q, &d, err);
	if (r) {
		free(d.buf);
		return r;
	}
	*state = d.buf;
	*bytes = d.bytes;
	return 0;
}

/* The stream is in QEMU's hands: did it take it? A QEMU that did not may have ended. */
static int load_verdict(struct ferry_qemu *q, int written, struct ferry_error *err)
{
	char status[FERRY_QEMU_STATUS_MAX] = "none";
	struct json_object *reply;
	struct ferry_error why;
	const char *words;
	int r = wait_over(q, status, &reply, &why);

	if (r == -ESRCH)
		return ferry_error_set(err, EREMOTEIO, "loading device state: QEMU (pid %d) did "
				       "not accept it and ended; its own log says why (both "
				       "sides need the same machine type and devices)",
				       (int)q->guest.pid);
	if (r)
		return ferry_error_set(err, -r, "loading device state: %s", why.text);
	words = ferry_json_string(reply, "error-desc");
	if (strcmp(status, "completed"))
		r = ferry_error_set(err, EREMOTEIO, "loading device state: QEMU's migration is "
				    "'%s': %.400s", status, words ? words : "it gives no reason");
	else if (written)
		r = ferry_error_set(err, -written, "loading device state: QEMU stopped reading: "
				    "%s", strerror(-written));
	json_object_put(reply);
	return r;
}

/* Loaded, and stopped? A guest that runs before its time is a second owner: end it. */
static int assert_stopped(struct ferry_qemu *q, struct ferry_error *err)
{
	char status[FERRY_QEMU_STATUS_MAX];
	bool running;
	int r = ferry_qemu_status(q, status, &running, err);

	if (r || !running)
		return r;
	r = ferry_qemu_kill(q, err);
	if (r)
		return r;
	return ferry_error_set(err, EBUSY, "loading device state: the guest was '%s' when it must "
			       "be stopped; QEMU (pid %d) was killed", status,
			       (int)q->guest.pid);
}

/* All of a load up to its first byte. */
static int load_begin(struct ferry_qemu *q, struct ferry_error *err)
{
	/* While it waits for a migration this only clears "start when it has arrived". */
	int r = ferry_qemu_command(q, "stop", NULL, -1, NULL, err);

	if (!r)
		r = give_channel(q, &q->loading, err);
	if (!r)
		r = start_migration(q, "migrate-incoming", err);
	if (r)
		ferry_io_close(&q->loading);
	return r;
}

int ferry_qemu_couple(struct ferry_guest *guest, struct ferry_guest *old, struct ferry_error *err)
{
	struct ferry_qemu *q = ferry_qemu_of(guest), *source = ferry_qemu_of(old);
	int r = load_begin(q, err);

	q->written = 0;
	if (!r)
		r = give_channel(source, &source->saving, err);
	if (!r)
		source->heir = q;
	return r;
}

int ferry_qemu_load(struct ferry_guest *guest, const uint8_t *state, size_t bytes,
		    struct ferry_error *err)
{
	struct ferry_qemu *q = ferry_qemu_of(guest);
	int stopped, r;

	if (q->loading < 0) {
		r = load_begin(q, err);
		if (r)
			return r;
		q->written = ferry_io_write(q->loading, state, bytes,
					    ferry_clock_in_ms(q->timeout_ms));
	}
	shutdown(q->loading, SHUT_WR);
	r = load_verdict(q, q->written, err);
	ferry_io_close(&q->loading);
	/* Also after a failed load nobody may run; a QEMU that has gone does not. */
	stopped = assert_stopped(q, r ? NULL : err);
	q->loaded = !r && !stopped;
	return r ? r : stopped;
}
