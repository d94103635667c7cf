// SPDX-License-Identifier: GPL-2.0-or-later
#include "agent/control.h"

#include <errno.h>
#include <json-c/json.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "agent/runtime.h"
#include "agent/store.h"
#include "base/clock.h"
#include "base/io.h"
#include "engine/file.h"

/* A client that says nothing for so long has gone, for all we know. */
#define CONTROL_CLIENT_MS 10000

/* Each has a thread, so that none keeps another one, or a signal, waiting. */
#define CONTROL_MAX_CLIENTS 16
#define CONTROL_ANSWER_MS 10000
#define CONTROL_RETRY_NS (5 * FERRY_NS_PER_MS)

/* So long a process that was killed may still be there, and hang up on whoever asks. */
#define CONTROL_DYING_MS 1000
#define CONTROL_REPLY_MAX 65536

static int control_address(const char *id, struct sockaddr_un *addr, struct ferry_error *err)
{
	char path[FERRY_RUNTIME_PATH];
	int r = ferry_runtime_path(id, "sock", path, err);

	if (r)
		return r;
	memset(addr, 0, sizeof(*addr));
	addr->sun_family = AF_UNIX;
	if (strlen(path) >= sizeof(addr->sun_path))
		return ferry_error_set(err, ENAMETOOLONG,
				       "the path %s is too long for a socket: set FERRY_RUNTIME_DIR "
				       "to a shorter one or use a shorter --id", path);
	memcpy(addr->sun_path, path, strlen(path) + 1);
	return 0;
}

int ferry_control_listen(const char *id, struct ferry_error *err)
{
	struct sockaddr_un addr;
	int fd, r;

	r = control_address(id, &addr, err);
	if (r)
		return r;
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return ferry_error_set(err, errno, "cannot make a socket: %s", strerror(errno));
	/* Whoever holds the id's lock owns this name. */
	unlink(addr.sun_path);
	if (bind(fd, (struct sockaddr *)&addr, sizeof(addr)) || listen(fd, 8)) {
		r = ferry_error_set(err, errno, "cannot listen at %s: %s", addr.sun_path,
				    strerror(errno));
		close(fd);
		return r;
	}
	return fd;
}

struct json_object *ferry_control_status(const struct ferry_record *record, enum ferry_state state,
					 const struct ferry_stats *stats, bool alive)
{
	struct json_object *o = json_object_new_object();
	char uuid[FERRY_UUID_TEXT];
	const char *guest = ferry_where_name(ferry_file_where_before(record));

	ferry_uuid_format(record->uuid, uuid);
	if (record->phase == FERRY_PHASE_RAN || record->phase == FERRY_PHASE_RUN_ACCEPTED ||
	    record->phase == FERRY_PHASE_RAN_LACKS)
		guest = "destination";
	else if (record->phase == FERRY_PHASE_COMMIT || record->phase == FERRY_PHASE_COMMIT_WAIT)
		guest = "unknown";
	json_object_object_add(o, "id", json_object_new_string(record->id));
	json_object_object_add(o, "role", json_object_new_string(ferry_role_name(record->role)));
	json_object_object_add(o, "state", json_object_new_string(ferry_state_name(state)));
	json_object_object_add(o, "phase", json_object_new_string(ferry_phase_name(record->phase)));
	json_object_object_add(o, "guest", json_object_new_string(guest));
	json_object_object_add(o, "mode", json_object_new_string(ferry_mode_name(stats->mode)));
	json_object_object_add(o, "alive", json_object_new_boolean(alive));
	json_object_object_add(o, "settled", json_object_new_boolean(record->settled));
	json_object_object_add(o, "uuid", json_object_new_string(uuid));
	json_object_object_add(o, "epoch", json_object_new_uint64(record->epoch));
	json_object_object_add(o, "spec", json_object_new_string(record->guest));
	json_object_object_add(o, "uri", json_object_new_string(record->uri));
	json_object_object_add(o, "guardian", json_object_new_int(record->guardian));
	json_object_object_add(o, "worker", json_object_new_int(record->worker));
	ferry_store_stats(o, stats);
	json_object_object_add(o, "error", record->error[0] ?
			       json_object_new_string(record->error) : NULL);
	return o;
}

static struct json_object *control_error(int errnum, const char *text)
{
	struct json_object *o = json_object_new_object();

	json_object_object_add(o, "error", json_object_new_string(text));
	json_object_object_add(o, "errno", json_object_new_int(errnum));
	return o;
}

static struct json_object *control_return(struct json_object *value)
{
	struct json_object *o = json_object_new_object();

	json_object_object_add(o, "return", value);
	return o;
}

static const char *control_text(struct json_object *o, const char *key)
{
	struct json_object *v;

	if (!json_object_object_get_ex(o, key, &v) || !json_object_is_type(v, json_type_string))
		return NULL;
	return json_object_get_string(v);
}

static struct json_object *control_job_status(struct ferry_job *job)
{
	struct ferry_record record;
	struct ferry_stats stats;

	pthread_mutex_lock(&job->lock);
	record = job->shown; /* the record itself is the migration thread's */
	stats = job->stats;
	pthread_mutex_unlock(&job->lock);
	return control_return(ferry_control_status(&record, ferry_job_state(job), &stats, true));
}

/* How what was asked for by "spill" or "fill" is getting on. */
static struct json_object *control_task(struct ferry_job *job)
{
	struct json_object *o = json_object_new_object();
	struct ferry_task task;

	ferry_task_now(job, &task);
	json_object_object_add(o, "state", json_object_new_string(ferry_task_state_name(task.state)));
	json_object_object_add(o, "pages", json_object_new_uint64(task.pages));
	json_object_object_add(o, "error", task.err.text[0] ?
			       json_object_new_string(task.err.text) : NULL);
	return control_return(o);
}

static int control_ask_task(struct ferry_job *job, const char *command, const char *path,
			    struct ferry_error *err)
{
	bool source = job->record.role == FERRY_ROLE_SOURCE;

	if (!path)
		return ferry_error_set(err, EINVAL, "%s takes a path", command);
	if (source != !strcmp(command, "spill"))
		return ferry_error_set(err, EINVAL, source ? "%s is the source: the destination takes "
				       "pages in from a file" : "%s is the destination: the source "
				       "spills pages, type it there", job->record.id);
	return ferry_task_ask(job, path, err);
}

struct json_object *ferry_control_reply(struct ferry_job *job, const char *line)
{
	struct json_object *request = json_tokener_parse(line), *reply;
	struct ferry_error err = { .text = "unknown command" };
	const char *command = NULL, *key, *value;
	int r = -EINVAL;

	if (request && json_object_is_type(request, json_type_object))
		command = control_text(request, "command");
	if (!command) {
		ferry_error_set(&err, EINVAL, "a request is one line like {\"command\":\"status\"}");
	} else if (!strcmp(command, "status")) {
		json_object_put(request);
		return control_job_status(job);
	} else if (!strcmp(command, "cancel")) {
		r = ferry_job_cancel(job, &err);
	} else if (!strcmp(command, "continue")) {
		r = ferry_job_go_on(job, &err);
	} else if (!strcmp(command, "postcopy")) {
		r = ferry_job_postcopy(job, &err);
	} else if (!strcmp(command, "task")) {
		json_object_put(request);
		return control_task(job);
	} else if (!strcmp(command, "spill") || !strcmp(command, "fill")) {
		r = control_ask_task(job, command, control_text(request, "path"), &err);
	} else if (!strcmp(command, "pause")) {
		r = ferry_job_pause(job, &err);
	} else if (!strcmp(command, "recover")) {
		r = ferry_job_retry(job, control_text(request, "uri"), &err);
	} else if (!strcmp(command, "set")) {
		key = control_text(request, "key");
		value = control_text(request, "value");
		r = key && value ? ferry_job_set(job, key, value, &err) :
				   ferry_error_set(&err, EINVAL, "set takes a key and a value");
	} else {
		ferry_error_set(&err, EINVAL, "unknown command '%.64s'", command);
	}
	reply = r ? control_error(-r, err.text) : control_return(json_object_new_object());
	json_object_put(request);
	return reply;
}

/* One line without its newline. Return: its length, or -errno. */
static int control_line(int fd, char *line, size_t room, uint64_t deadline_ns)
{
	size_t n = 0;

	while (n + 1 < room) {
		int r = ferry_io_read(fd, line + n, 1, deadline_ns);

		if (r)
			return r;
		if (line[n] == '\n') {
			line[n] = 0;
			return (int)n;
		}
		n++;
	}
	return -EMSGSIZE;
}

static int control_send(int fd, struct json_object *o, uint64_t deadline_ns)
{
	const char *text = json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN |
							  JSON_C_TO_STRING_NOSLASHESCAPE);
	struct iovec iov[2] = {
		{ .iov_base = (void *)(uintptr_t)text, .iov_len = text ? strlen(text) : 0 },
		{ .iov_base = (void *)(uintptr_t) "\n", .iov_len = 1 },
	};

	return text ? ferry_io_writev(fd, iov, 2, 0, deadline_ns) : -ENOMEM;
}

struct control_client {
	struct ferry_job *job;
	int fd;
};

static unsigned int control_clients;

static void *control_client(void *arg)
{
	struct control_client *client = arg;
	struct ferry_job *job = client->job;
	char line[FERRY_CONTROL_MAX_LINE];
	int fd = client->fd;

	free(client);
	for (;;) {
		uint64_t deadline_ns = ferry_clock_in_ms(CONTROL_CLIENT_MS);
		struct json_object *reply;
		int r = control_line(fd, line, sizeof(line), deadline_ns);

		if (r == -EMSGSIZE)
			reply = control_error(EMSGSIZE, "the request is too long");
		else if (r < 0)
			break;
		else
			reply = ferry_control_reply(job, line);
		if (control_send(fd, reply, deadline_ns))
			r = -EPIPE;
		json_object_put(reply);
		if (r < 0)
			break;
	}
	close(fd);
	__atomic_sub_fetch(&control_clients, 1, __ATOMIC_RELAXED);
	return NULL;
}

void ferry_control_serve(int listen_fd, struct ferry_job *job)
{
	int fd = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	struct control_client *client;
	pthread_t thread;

	if (fd < 0)
		return;
	client = malloc(sizeof(*client));
	if (!client ||
	    __atomic_load_n(&control_clients, __ATOMIC_RELAXED) == CONTROL_MAX_CLIENTS)
		goto err_close;
	*client = (struct control_client){ .job = job, .fd = fd };
	__atomic_add_fetch(&control_clients, 1, __ATOMIC_RELAXED);
	if (!pthread_create(&thread, NULL, control_client, client)) {
		pthread_detach(thread);
		return;
	}
	__atomic_sub_fetch(&control_clients, 1, __ATOMIC_RELAXED);

err_close:
	free(client);
	close(fd);
}

static int control_take_reply(const char *id, const char *line, struct json_object **ret,
			      struct ferry_error *err)
{
	struct json_object *reply = json_tokener_parse(line), *value;
	int r;

	if (reply && json_object_object_get_ex(reply, "return", &value) &&
	    json_object_is_type(value, json_type_object)) {
		*ret = json_object_get(value);
		r = 0;
	} else if (reply && json_object_object_get_ex(reply, "error", &value) &&
		   json_object_is_type(value, json_type_string) &&
		   *json_object_get_string(value)) {
		const char *text = json_object_get_string(value);
		struct json_object *number = NULL;
		int errnum = EREMOTEIO;

		if (json_object_object_get_ex(reply, "errno", &number) &&
		    json_object_get_int(number) > 0)
			errnum = json_object_get_int(number);
		r = ferry_error_set(err, errnum, "%s", text);
	} else {
		r = ferry_error_set(err, EPROTO, "the process that serves %s gave no sane answer",
				    id);
	}
	json_object_put(reply);
	return r;
}

/* Return: a descriptor, -ECONNREFUSED nobody listens, -errno. */
static int control_connect(const char *id, const struct sockaddr_un *addr, uint64_t deadline_ns,
			   struct ferry_error *err)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	int r;

	if (fd < 0)
		return ferry_error_set(err, errno, "cannot make a socket: %s", strerror(errno));
	/* EAGAIN: so many wait already that it must be stuck. */
	while ((r = connect(fd, (const struct sockaddr *)addr, sizeof(*addr)) ? errno : 0) ==
		       EAGAIN &&
	       ferry_clock_ns() < deadline_ns)
		ferry_clock_sleep_ns(CONTROL_RETRY_NS);
	if (!r)
		return fd;
	close(fd);
	if (r == ENOENT || r == ECONNREFUSED)
		return ferry_error_set(err, ECONNREFUSED, "no process serves %s", id);
	return ferry_error_set(err, r, "cannot talk to the process that serves %s: %s", id,
			       strerror(r));
}

/* One connection, one request. Return: the length of the answer, or -errno. */
static int control_ask_once(const char *id, const struct sockaddr_un *addr,
			    struct json_object *request, unsigned int timeout_ms, char *line,
			    struct ferry_error *err)
{
	uint64_t deadline_ns = ferry_clock_in_ms(timeout_ms ? timeout_ms : CONTROL_ANSWER_MS);
	int fd = control_connect(id, addr, deadline_ns, err);
	int r;

	if (fd < 0)
		return fd;
	r = control_send(fd, request, deadline_ns);
	if (!r)
		r = control_line(fd, line, CONTROL_REPLY_MAX, deadline_ns);
	close(fd);
	return r < 0 ? ferry_error_set(err, -r, "the process that serves %s does not answer: %s", id,
				       strerror(-r)) : r;
}

static bool control_hung_up(int r)
{
	return r == -ENODATA || r == -EPIPE || r == -ECONNRESET;
}

int ferry_control_ask(const char *id, struct json_object *request, unsigned int timeout_ms,
		      struct json_object **ret, struct ferry_error *err)
{
	uint64_t dying_ns = ferry_clock_in_ms(CONTROL_DYING_MS);
	char *line = malloc(CONTROL_REPLY_MAX);
	struct sockaddr_un addr;
	int r;

	r = line ? control_address(id, &addr, err) : ferry_error_set(err, ENOMEM, "out of memory");
	if (r)
		goto out;
	while (control_hung_up(r = control_ask_once(id, &addr, request, timeout_ms, line, err)) &&
	       ferry_clock_ns() < dying_ns)
		ferry_clock_sleep_ns(CONTROL_RETRY_NS);
	if (r >= 0)
		r = control_take_reply(id, line, ret, err);
out:
	json_object_put(request);
	free(line);
	return r;
}
