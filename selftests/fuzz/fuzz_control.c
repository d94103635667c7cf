// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What comes from other processes and from disk as JSON. The first byte says as what:
 *   r  the rest is the record of id "fuzz"; one that loads can be saved and loads again,
 *      with the same phase, role and epoch
 *   a  the rest is what a process behind ID.sock answers to a client
 *   else  all of it is request lines to the control socket: each gets one reply object
 *      with either "return" or "error" and an errno
 */
#include <errno.h>
#include <fcntl.h>
#include <json-c/json.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "agent/control.h"
#include "agent/store.h"

#define MAX_INPUT 65536

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char dir[64];
static const struct ferry_job_hooks hooks;

static void must(int good)
{
	if (!good)
		abort();
}

static void clean(void)
{
	char path[100];

	snprintf(path, sizeof(path), "%s/fuzz.json", dir);
	unlink(path);
	snprintf(path, sizeof(path), "%s/fuzz.sock", dir);
	unlink(path);
	rmdir(dir);
}

/* Memory, not a disk: every input is written and saved again. */
static void make_dir(void)
{
	snprintf(dir, sizeof(dir), "%s/ferry-fuzz-%d", access("/dev/shm", W_OK) ? "/tmp" : "/dev/shm",
		 (int)getpid());
	must(!mkdir(dir, 0700) || errno == EEXIST);
	must(!setenv("FERRY_RUNTIME_DIR", dir, 1));
	atexit(clean);
}

static void fuzz_record(const uint8_t *data, size_t size)
{
	struct ferry_record record, again;
	struct ferry_error err = { 0 };
	char path[100];
	int fd, r;

	snprintf(path, sizeof(path), "%s/fuzz.json", dir);
	fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	must(fd >= 0 && write(fd, data, size) == (ssize_t)size);
	close(fd);
	r = ferry_store_load("fuzz", &record, &err);
	if (r) {
		must(err.errnum == -r && err.text[0]);
		return;
	}
	must(!strcmp(record.id, "fuzz") && record.phase < FERRY_PHASE_COUNT &&
	     record.state < FERRY_STATE_COUNT && record.role < FERRY_ROLE_COUNT);
	must(!ferry_store_save(&record, &err));
	must(!ferry_store_load("fuzz", &again, &err));
	must(again.phase == record.phase && again.role == record.role &&
	     again.epoch == record.epoch && again.settled == record.settled &&
	     !strcmp(again.guest, record.guest) && !strcmp(again.uri, record.uri) &&
	     !memcmp(again.uuid, record.uuid, 16));
	ferry_record_free(&record);
	ferry_record_free(&again);
}

static void fuzz_line(struct ferry_job *job, const char *line)
{
	struct json_object *reply = ferry_control_reply(job, line), *value, *number;

	must(reply && json_object_is_type(reply, json_type_object));
	if (json_object_object_get_ex(reply, "error", &value)) {
		must(json_object_is_type(value, json_type_string) &&
		     json_object_get_string_len(value) > 0 &&
		     json_object_object_get_ex(reply, "errno", &number) &&
		     json_object_get_int(number) > 0);
	} else {
		must(json_object_object_get_ex(reply, "return", &value) &&
		     json_object_is_type(value, json_type_object));
	}
	must(!strchr(json_object_to_json_string_ext(reply, JSON_C_TO_STRING_PLAIN), '\n'));
	json_object_put(reply);
}

static void fuzz_requests(char *text)
{
	struct ferry_job job;
	char *line, *save = NULL;

	ferry_job_init(&job, &hooks);
	snprintf(job.record.id, sizeof(job.record.id), "fuzz");
	job.state = FERRY_STATE_PRE_SWITCHOVER;
	fuzz_line(&job, text); /* with its newlines too */
	for (line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save))
		fuzz_line(&job, line);
	ferry_job_destroy(&job);
}

struct answer {
	int listen_fd;
	const uint8_t *data;
	size_t size;
};

static void *answer(void *arg)
{
	struct answer *a = arg;
	char request[256];
	int fd = accept(a->listen_fd, NULL, NULL);

	must(fd >= 0 && read(fd, request, sizeof(request)) > 0);
	/* It ends with this answer, whole or not: whoever asks again finds nobody. */
	close(a->listen_fd);
	/* The client may have heard enough before the end. */
	if (send(fd, a->data, a->size, MSG_NOSIGNAL) < 0)
		must(errno == EPIPE || errno == ECONNRESET);
	close(fd);
	return NULL;
}

static void fuzz_answer(const uint8_t *data, size_t size)
{
	struct answer a = { .data = data, .size = size };
	struct json_object *request = json_object_new_object(), *ret = NULL;
	struct ferry_error err = { 0 };
	pthread_t thread;
	int r;

	a.listen_fd = ferry_control_listen("fuzz", &err);
	must(a.listen_fd >= 0);
	/* The server of ferry does not block in accept(); this one has nothing else to do. */
	must(!fcntl(a.listen_fd, F_SETFL, fcntl(a.listen_fd, F_GETFL) & ~O_NONBLOCK));
	must(!pthread_create(&thread, NULL, answer, &a));
	r = ferry_control_ask("fuzz", request, 0, &ret, &err);
	must(!pthread_join(thread, NULL));
	if (r)
		must(!ret && err.errnum == -r && err.text[0]);
	else
		must(json_object_is_type(ret, json_type_object));
	json_object_put(ret);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char *text;

	if (!size || size > MAX_INPUT)
		return 0;
	if (!dir[0])
		make_dir();
	if (data[0] == 'r') {
		fuzz_record(data + 1, size - 1);
	} else if (data[0] == 'a') {
		fuzz_answer(data + 1, size - 1);
	} else {
		text = calloc(1, size + 1);
		must(text != NULL);
		memcpy(text, data, size);
		fuzz_requests(text);
		free(text);
	}
	return 0;
}
