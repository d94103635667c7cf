// SPDX-License-Identifier: GPL-2.0-or-later
#include "agent/task.h"

#include <errno.h>
#include <json-c/json.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "agent/command.h"
#include "agent/control.h"
#include "agent/report.h"
#include "agent/store.h"
#include "base/clock.h"
#include "base/log.h"

#define TASK_LOOK_NS (50 * FERRY_NS_PER_MS)

/* The process that carries it out has another working directory, or may have. */
static int absolute(const char *path, char out[PATH_MAX], struct ferry_error *err)
{
	char here[PATH_MAX];

	if (*path == '/' || !getcwd(here, sizeof(here)))
		here[0] = '\0';
	if (snprintf(out, PATH_MAX, "%s%s%s", here, here[0] ? "/" : "", path) >= PATH_MAX)
		return ferry_error_set(err, ENAMETOOLONG, "%s: the path is too long", path);
	return 0;
}

/* Until it has ended. Return: 0; -EREMOTEIO it failed; as ferry_control_ask(). */
static int await(const struct ferry_args *args, uint64_t *pages, struct ferry_error *err)
{
	for (;;) {
		struct json_object *request = json_object_new_object(), *ret = NULL, *v;
		const char *state = "";
		int r;

		json_object_object_add(request, "command", json_object_new_string("task"));
		r = ferry_control_ask(args->operands[0], request, ferry_args_answer_ms(args), &ret, err);
		if (r)
			return r;
		if (json_object_object_get_ex(ret, "pages", &v))
			*pages = json_object_get_uint64(v);
		if (json_object_object_get_ex(ret, "state", &v))
			state = json_object_get_string(v);
		if (!strcmp(state, "failed") && json_object_object_get_ex(ret, "error", &v))
			r = ferry_error_set(err, EREMOTEIO, "%s", json_object_get_string(v));
		else if (strcmp(state, "asked") && strcmp(state, "runs"))
			r = 1;
		json_object_put(ret);
		if (r)
			return r < 0 ? r : 0;
		ferry_clock_sleep_ns(TASK_LOOK_NS);
	}
}

int ferry_task_request(const struct ferry_args *args, const char *command, const char *path,
		       uint64_t *pages, struct ferry_error *err)
{
	struct json_object *request, *ret = NULL;
	char full[PATH_MAX];
	int r = absolute(path, full, err);

	if (r)
		return r;
	request = json_object_new_object();
	json_object_object_add(request, "command", json_object_new_string(command));
	json_object_object_add(request, "path", json_object_new_string(full));
	r = ferry_control_ask(args->operands[0], request, ferry_args_answer_ms(args), &ret, err);
	json_object_put(ret);
	return r ? r : await(args, pages, err);
}

void ferry_task_print(const char *id, const char *event, const char *path, uint64_t pages)
{
	struct json_object *o = json_object_new_object();

	json_object_object_add(o, "event", json_object_new_string(event));
	json_object_object_add(o, "id", json_object_new_string(id));
	json_object_object_add(o, "file", json_object_new_string(path));
	json_object_object_add(o, "pages", json_object_new_uint64(pages));
	ferry_report_print(o);
}

int ferry_command_spill(const struct ferry_args *args)
{
	const char *id = args->operands[0], *path = args->operands[1];
	struct ferry_error err = { 0 };
	uint64_t pages = 0;
	int r = ferry_task_request(args, "spill", path, &pages, &err);

	if (r == -ECONNREFUSED)
		ferry_store_unserved(id, &err);
	if (r) {
		ferry_log_error("%s", err.text);
		return FERRY_EXIT_FAILED;
	}
	if (args->json)
		ferry_task_print(id, "spilled", path, pages);
	else if (!args->quiet)
		printf("%s: %llu pages that the destination may lack are in %s. At the destination:\n"
		       "  ferry recover ITS-ID file:FILE\n", id, (unsigned long long)pages, path);
	return FERRY_EXIT_DONE;
}
