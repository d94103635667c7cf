// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * QMP client.
 *
 * The stream is lines of JSON; a message is one line, or several when the
 * monitor is set to pretty=on. Lines are fed to one json-c tokener, so that a
 * message costs linear time however it is cut. A message is bounded by
 * MESSAGE_MAX_BYTES, a command by the timeout, whatever else arrives meanwhile.
 *
 * Every command carries an id that no other process of ours ever uses
 * ("ferry-PID-N"). Replies with another id are late answers to a command that
 * timed out, or to the process that had the connection before us; they are
 * thrown away. An adopted connection (@resync until our first own reply) may
 * begin in the middle of a line and hold errors without id: lines that are not
 * JSON are skipped then, later they are -EPROTO. Our half may have been cut in
 * mid-command as well: byte 0xff, never valid in JSON, resets QEMU's lexer.
 *
 * Example: > {"execute":"stop","id":"ferry-71-4"}
 *          < {"timestamp":{...},"event":"STOP"}          skipped
 *          < {"return":{},"id":"ferry-70-9"}             another's, skipped
 *          < {"return":{},"id":"ferry-71-4"}             ours
 */
#include "guest/qmp.h"

#include <ctype.h>
#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/io.h"
#include "guest/json.h"

#define MESSAGE_MAX_BYTES (16u << 20)
#define READ_BYTES 65536u
/* Deep enough for any reply of QEMU (they nest about 10), shallow enough for our stack. */
#define MESSAGE_MAX_DEPTH 64
/*
 * A monitor with a free place greets at once; a taken one never does. Waiting
 * longer than this only delays the message that helps.
 */
#define GREETING_MAX_MS 5000u
#define CONNECT_RETRY_NS (20 * FERRY_NS_PER_MS)

struct ferry_qmp {
	int fd;
	pid_t peer;
	unsigned int timeout_ms;
	unsigned int sequence;
	bool resync;
	int broken;		/* negative errno that ended the connection, or 0 */
	struct json_tokener *tokener;
	size_t message_bytes;	/* fed to the tokener for the message under way */
	char *buf;		/* bytes read and not yet fed: from fed_bytes to len_bytes */
	size_t room_bytes;
	size_t len_bytes;
	size_t fed_bytes;
	size_t searched_bytes;	/* no line end before here */
	char path[sizeof(((struct sockaddr_un *)0)->sun_path)];
};

static int qmp_new(int fd, const char *path, unsigned int timeout_ms, struct ferry_qmp **out)
{
	struct ferry_qmp *qmp = calloc(1, sizeof(*qmp));
	struct ucred cred;
	socklen_t len = sizeof(cred);

	if (!qmp)
		return -ENOMEM;
	qmp->tokener = json_tokener_new_ex(MESSAGE_MAX_DEPTH);
	if (!qmp->tokener) {
		free(qmp);
		return -ENOMEM;
	}
	qmp->fd = fd;
	qmp->timeout_ms = timeout_ms;
	snprintf(qmp->path, sizeof(qmp->path), "%s", path);
	if (!getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len))
		qmp->peer = cred.pid;
	*out = qmp;
	return 0;
}

void ferry_qmp_close(struct ferry_qmp *qmp)
{
	if (!qmp)
		return;
	json_tokener_free(qmp->tokener);
	ferry_io_close(&qmp->fd);
	free(qmp->buf);
	free(qmp);
}

int ferry_qmp_fd(const struct ferry_qmp *qmp)
{
	return qmp->fd;
}

pid_t ferry_qmp_peer(const struct ferry_qmp *qmp)
{
	return qmp->peer;
}

/* Read what there is, at most READ_BYTES. */
static int qmp_fill(struct ferry_qmp *qmp, uint64_t deadline_ns)
{
	ssize_t n;
	int r;

	if (qmp->fed_bytes) {
		qmp->len_bytes -= qmp->fed_bytes;
		qmp->searched_bytes -= qmp->fed_bytes;
		memmove(qmp->buf, qmp->buf + qmp->fed_bytes, qmp->len_bytes);
		qmp->fed_bytes = 0;
	}
	if (qmp->room_bytes - qmp->len_bytes < READ_BYTES) {
		size_t room = qmp->room_bytes ? qmp->room_bytes * 2 : 2 * READ_BYTES;
		char *buf = realloc(qmp->buf, room);

		if (!buf)
			return -ENOMEM;
		qmp->buf = buf;
		qmp->room_bytes = room;
	}
	/* A peer that never stops talking must not keep us past the deadline. */
	if (ferry_clock_ns() >= deadline_ns)
		return -ETIMEDOUT;
	r = ferry_io_wait(qmp->fd, POLLIN, deadline_ns);
	if (r < 0)
		return r;
	n = read(qmp->fd, qmp->buf + qmp->len_bytes, READ_BYTES);
	if (n == 0)
		return -EPIPE;
	if (n < 0) {
		if (errno == EINTR || errno == EAGAIN)
			return 0;
		return errno == ECONNRESET ? -EPIPE : -errno;
	}
	qmp->len_bytes += (size_t)n;
	return 0;
}

/* JSON strings hold no raw line end, so a line that ends inside one began inside one. */
static bool line_is_cut(const char *line, size_t len)
{
	bool inside = false;
	size_t i;

	for (i = 0; i < len; i++) {
		if (line[i] == '\0')
			return true;
		if (inside && line[i] == '\\')
			i++;
		else if (line[i] == '"')
			inside = !inside;
	}
	return inside;
}

static bool is_blank(const char *text, size_t len)
{
	while (len && isspace((unsigned char)text[len - 1]))
		len--;
	return len == 0;
}

/*
 * Feed one line, its end included. Return: 0 with *@message when one is
 * complete, -EAGAIN when it goes on, -EPROTO.
 */
static int qmp_feed(struct ferry_qmp *qmp, const char *line, size_t len,
		    struct json_object **message)
{
	struct json_object *obj = NULL;
	enum json_tokener_error state;
	size_t end;

	if (!qmp->message_bytes && is_blank(line, len))
		return -EAGAIN;
	qmp->message_bytes += len;
	if (qmp->message_bytes > MESSAGE_MAX_BYTES || line_is_cut(line, len))
		goto bad;
	obj = json_tokener_parse_ex(qmp->tokener, line, (int)len);
	state = json_tokener_get_error(qmp->tokener);
	if (state == json_tokener_continue)
		return -EAGAIN;
	end = json_tokener_get_parse_end(qmp->tokener);
	if (state != json_tokener_success || !is_blank(line + end, len - end) ||
	    !json_object_is_type(obj, json_type_object))
		goto bad;
	json_tokener_reset(qmp->tokener);
	qmp->message_bytes = 0;
	*message = obj;
	return 0;
bad:
	json_object_put(obj);
	json_tokener_reset(qmp->tokener);
	qmp->message_bytes = 0;
	return -EPROTO;
}

/* The next message of any kind. */
static int qmp_message(struct ferry_qmp *qmp, uint64_t deadline_ns, struct json_object **message)
{
	for (;;) {
		char *line, *end = NULL;
		size_t len;
		int r;

		if (qmp->len_bytes > qmp->searched_bytes)
			end = memchr(qmp->buf + qmp->searched_bytes, '\n',
				     qmp->len_bytes - qmp->searched_bytes);
		if (!end) {
			qmp->searched_bytes = qmp->len_bytes;
			if (qmp->len_bytes - qmp->fed_bytes > MESSAGE_MAX_BYTES)
				return -EPROTO;
			r = qmp_fill(qmp, deadline_ns);
			if (r)
				return r;
			continue;
		}
		line = qmp->buf + qmp->fed_bytes;
		len = (size_t)(end - line) + 1;
		r = qmp_feed(qmp, line, len, message);
		qmp->fed_bytes += len;
		qmp->searched_bytes = qmp->fed_bytes;
		if (r == -EAGAIN || (r == -EPROTO && qmp->resync))
			continue;
		return r;
	}
}

/* The reply to @id; events and other people's replies are thrown away. */
static int qmp_reply(struct ferry_qmp *qmp, const char *id, uint64_t deadline_ns,
		     struct json_object **reply)
{
	for (;;) {
		struct json_object *message;
		const char *got;
		int r = qmp_message(qmp, deadline_ns, &message);

		if (r)
			return r;
		got = ferry_json_string(message, "id");
		if (got && !strcmp(got, id)) {
			qmp->resync = false;
			*reply = message;
			return 0;
		}
		/* An error without id: QEMU could not parse what we sent. */
		if (!got && !qmp->resync && ferry_json_get(message, "error", json_type_object)) {
			*reply = message;
			return 0;
		}
		json_object_put(message);
	}
}

/* Words of QEMU for our own message: one line, nothing that moves a terminal's cursor. */
static void copy_words(char *to, size_t room, const char *words)
{
	size_t i;

	for (i = 0; words[i] && i + 1 < room; i++)
		to[i] = iscntrl((unsigned char)words[i]) ? ' ' : words[i];
	while (i && to[i - 1] == ' ')
		i--;
	to[i] = '\0';
}

/* Why a command brought no reply, in words. */
static int qmp_fail(struct ferry_qmp *qmp, const char *name, int r, struct ferry_error *err)
{
	switch (r) {
	case -ETIMEDOUT:
		return ferry_error_set(err, ETIMEDOUT,
				       "QEMU did not answer '%s' at %s within %u ms; it hangs, or "
				       "a guest CPU waits for memory", name, qmp->path,
				       qmp->timeout_ms);
	case -EPIPE:
	case -ECONNRESET:
		qmp->broken = -EPIPE;
		return ferry_error_set(err, EPIPE, "the QMP connection %s broke during '%s'",
				       qmp->path, name);
	case -EPROTO:
		qmp->broken = -EPROTO;
		return ferry_error_set(err, EPROTO,
				       "%s: the answer to '%s' is not QMP (no JSON object, or "
				       "beyond %u MiB); is this a QMP socket?", qmp->path, name,
				       MESSAGE_MAX_BYTES >> 20);
	default:
		return ferry_error_set(err, -r, "QMP command '%s' at %s: %s", name, qmp->path,
				       strerror(-r));
	}
}

static int qmp_result(struct ferry_qmp *qmp, const char *name, struct json_object *reply,
		      struct json_object **ret, struct ferry_error *err)
{
	struct json_object *error = ferry_json_get(reply, "error", json_type_object);
	struct json_object *value;

	if (error) {
		const char *words = ferry_json_string(error, "desc");
		char text[512];

		copy_words(text, sizeof(text), words ? words : "(no reason given)");
		return ferry_error_set(err, EREMOTEIO, "QEMU refused '%s': %s", name, text);
	}
	if (!json_object_object_get_ex(reply, "return", &value))
		return qmp_fail(qmp, name, -EPROTO, err);
	if (ret)
		*ret = json_object_get(value);
	return 0;
}

/* Put the whole command, newline included, in one send: it arrives whole or not at all. */
static int qmp_send(struct ferry_qmp *qmp, const char *name, struct json_object *arguments,
		    const char *id, int fd, uint64_t deadline_ns)
{
	struct json_object *command = json_object_new_object();
	const char *json;
	char *text;
	int len, r;

	if (!command) {
		json_object_put(arguments);
		return -ENOMEM;
	}
	json_object_object_add(command, "execute", json_object_new_string(name));
	if (arguments)
		json_object_object_add(command, "arguments", arguments);
	json_object_object_add(command, "id", json_object_new_string(id));
	json = json_object_to_json_string_ext(command, JSON_C_TO_STRING_PLAIN |
					       JSON_C_TO_STRING_NOSLASHESCAPE);
	len = json ? asprintf(&text, "%s\n", json) : -1;
	json_object_put(command);
	if (len < 0)
		return -ENOMEM;
	r = ferry_io_send_fds(qmp->fd, text, (size_t)len, &fd, fd >= 0, deadline_ns);
	free(text);
	return r;
}

int ferry_qmp_command(struct ferry_qmp *qmp, const char *name, struct json_object *arguments,
		      int fd, struct json_object **ret, struct ferry_error *err)
{
	uint64_t deadline_ns = ferry_clock_in_ms(qmp->timeout_ms);
	struct json_object *reply;
	char id[48];
	int r;

	if (ret)
		*ret = NULL;
	if (qmp->broken) {
		json_object_put(arguments);
		return qmp_fail(qmp, name, qmp->broken, err);
	}
	snprintf(id, sizeof(id), "ferry-%d-%u", (int)getpid(), ++qmp->sequence);
	r = qmp_send(qmp, name, arguments, id, fd, deadline_ns);
	if (!r)
		r = qmp_reply(qmp, id, deadline_ns, &reply);
	if (r)
		return qmp_fail(qmp, name, r, err);
	r = qmp_result(qmp, name, reply, ret, err);
	json_object_put(reply);
	return r;
}

static int busy(const char *path, struct ferry_error *err)
{
	return ferry_error_set(err, EBUSY,
			       "connecting to %s: socket busy: add a second -qmp socket (QMP "
			       "serves one client and another has this one; for instance "
			       "-qmp unix:%s.2,server=on,wait=off)", path, path);
}

/* A connected, non-blocking socket; a full backlog is waited for. */
static int qmp_dial(const char *path, uint64_t deadline_ns, struct ferry_error *err)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int fd;

	if (strlen(path) >= sizeof(addr.sun_path))
		return ferry_error_set(err, ENAMETOOLONG,
				       "connecting to %s: the path is longer than the %zu bytes of "
				       "a UNIX socket; use a shorter one", path,
				       sizeof(addr.sun_path) - 1);
	strcpy(addr.sun_path, path);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return ferry_error_set(err, errno, "socket: %s", strerror(errno));
	while (connect(fd, (struct sockaddr *)&addr, sizeof(addr))) {
		int errnum = errno;

		if (errnum == EINTR)
			continue;
		/* Backlog full: QEMU has a client and another already waits. */
		if (errnum == EAGAIN && ferry_clock_ns() < deadline_ns) {
			ferry_clock_sleep_ns(CONNECT_RETRY_NS);
			continue;
		}
		close(fd);
		if (errnum == EAGAIN)
			return busy(path, err);
		return ferry_error_set(err, errnum,
				       "connecting to %s: %s; is QEMU running, started with "
				       "-qmp unix:%s,server=on,wait=off?", path,
				       strerror(errnum), path);
	}
	return fd;
}

static int qmp_greeting(struct ferry_qmp *qmp, uint64_t deadline_ns, struct ferry_error *err)
{
	struct json_object *message;
	int r = qmp_message(qmp, deadline_ns, &message);

	if (r == -ETIMEDOUT)
		return busy(qmp->path, err);
	if (r)
		return qmp_fail(qmp, "greeting", r, err);
	if (!ferry_json_get(message, "QMP", json_type_object))
		r = qmp_fail(qmp, "greeting", -EPROTO, err);
	json_object_put(message);
	return r;
}

int ferry_qmp_connect(const char *path, unsigned int timeout_ms, struct ferry_qmp **out,
		      struct ferry_error *err)
{
	unsigned int wait_ms = timeout_ms < GREETING_MAX_MS ? timeout_ms : GREETING_MAX_MS;
	uint64_t deadline_ns = ferry_clock_in_ms(wait_ms);
	struct ferry_qmp *qmp;
	int r, fd = qmp_dial(path, deadline_ns, err);

	if (fd < 0)
		return fd;
	r = qmp_new(fd, path, timeout_ms, &qmp);
	if (r) {
		close(fd);
		return ferry_error_set(err, -r, "connecting to %s: %s", path, strerror(-r));
	}
	r = qmp_greeting(qmp, deadline_ns, err);
	if (!r)
		r = ferry_qmp_command(qmp, "qmp_capabilities", NULL, -1, NULL, err);
	if (r) {
		ferry_qmp_close(qmp);
		return r;
	}
	*out = qmp;
	return 0;
}

int ferry_qmp_adopt(int fd, const char *path, unsigned int timeout_ms, struct ferry_qmp **out,
		    struct ferry_error *err)
{
	static const char reset[] = "\xff\n";
	struct ferry_qmp *qmp;
	int r;

	r = ferry_io_nonblock(fd, 1);
	if (!r)
		r = ferry_io_write(fd, reset, 2, ferry_clock_in_ms(timeout_ms));
	if (!r)
		r = qmp_new(fd, path, timeout_ms, &qmp);
	if (r)
		return ferry_error_set(err, -r, "taking over the QMP connection %s: %s", path,
				       strerror(-r));
	qmp->resync = true;
	*out = qmp;
	return 0;
}
