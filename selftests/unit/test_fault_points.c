// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "engine/fault_points.h"

static int init(const char *spec, const char *side, pid_t guardian, struct ferry_error *err)
{
	unsetenv("FERRY_FAULT");
	unsetenv("FERRY_FAULT_SIDE");
	if (spec)
		setenv("FERRY_FAULT", spec, 1);
	if (side)
		setenv("FERRY_FAULT_SIDE", side, 1);
	return ferry_fault_point_init(guardian, err);
}

static void nothing_asked(void **state)
{
	struct ferry_error err;

	(void)state;
	assert_int_equal(init(NULL, NULL, 0, &err), 0);
	assert_int_equal(ferry_fault_point("bulk", &err), 0);
	assert_int_equal(init("", "nonsense", 0, &err), 0);
	assert_int_equal(ferry_fault_point("bulk", &err), 0);
}

static void refused(void **state)
{
	static const struct {
		const char *spec, *side, *text;
	} cases[] = {
		{ "bulk", NULL, "FERRY_FAULT=bulk names no stage; 'ferry doctor --fault-points' "
				"lists them" },
		{ "bulky:kill", NULL, "FERRY_FAULT=bulky:kill names no stage; 'ferry doctor "
				      "--fault-points' lists them" },
		{ ":kill", NULL, "FERRY_FAULT=:kill names no stage; 'ferry doctor --fault-points' "
				 "lists them" },
		{ "bulk:", NULL, "FERRY_FAULT=bulk:: the action must be stop, kill, fail or delay=MS" },
		{ "bulk:Kill", NULL,
		  "FERRY_FAULT=bulk:Kill: the action must be stop, kill, fail or delay=MS" },
		{ "bulk:delay=", NULL,
		  "FERRY_FAULT=bulk:delay=: the action must be stop, kill, fail or delay=MS" },
		{ "bulk:delay=5s", NULL,
		  "FERRY_FAULT=bulk:delay=5s: the action must be stop, kill, fail or delay=MS" },
		{ "bulk:kill", "peer", "FERRY_FAULT_SIDE=peer must be worker or guardian" },
	};
	struct ferry_error err;
	size_t i;

	(void)state;
	for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		assert_int_equal(init(cases[i].spec, cases[i].side, 0, &err), -EINVAL);
		assert_string_equal(err.text, cases[i].text);
	}
}

static void fails_once(void **state)
{
	struct ferry_error err;

	(void)state;
	assert_int_equal(init("bulk:fail", NULL, 0, &err), 0);
	assert_int_equal(ferry_fault_point("track", &err), 0);
	assert_int_equal(ferry_fault_point("bulk", &err), -ECANCELED);
	assert_string_equal(err.text, "FERRY_FAULT asked stage bulk to fail");
	assert_int_equal(ferry_fault_point("bulk", &err), 0);
}

static void delays(void **state)
{
	uint64_t before = ferry_clock_ns();

	(void)state;
	assert_int_equal(init("save:delay=30", "worker", 0, NULL), 0);
	assert_int_equal(ferry_fault_point("save", NULL), 0);
	assert_true(ferry_clock_ns() - before >= 30 * FERRY_NS_PER_MS);
}

/* stop and kill hit who passes the point, or the guardian that init() was told of. */
static int status_of_child(const char *spec)
{
	pid_t child = fork();
	int status;

	if (!child) {
		if (!init(spec, NULL, 0, NULL))
			ferry_fault_point("load", NULL);
		_exit(7);
	}
	assert_int_equal(waitpid(child, &status, WUNTRACED), child);
	if (WIFSTOPPED(status)) {
		int end;

		kill(child, SIGKILL);
		assert_int_equal(waitpid(child, &end, 0), child);
	}
	return status;
}

static void hits_itself(void **state)
{
	int status = status_of_child("load:kill");

	(void)state;
	assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
	status = status_of_child("load:stop");
	assert_true(WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP);
	status = status_of_child("package:kill");
	assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 7);
}

static void hits_the_guardian(void **state)
{
	pid_t guardian = fork();
	int status;

	(void)state;
	if (!guardian) {
		pause();
		_exit(0);
	}
	assert_int_equal(init("load:kill", "guardian", guardian, NULL), 0);
	assert_int_equal(ferry_fault_point("load", NULL), 0);
	/* It was waited for: dead already when the point has been passed. */
	assert_int_equal(waitpid(guardian, &status, WNOHANG), guardian);
	assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

/* Every stage the list names can be asked for. */
static void the_list(void **state)
{
	char *text = NULL, *line, *save = NULL;
	unsigned int lines = 0;
	size_t bytes;
	FILE *out = open_memstream(&text, &bytes);

	(void)state;
	ferry_fault_point_list(out);
	fclose(out);
	for (line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
		char stage[64], role[32], spec[80];
		struct ferry_error err;

		assert_int_equal(sscanf(line, "%63s %31s", stage, role), 2);
		assert_true(!strcmp(role, "source") || !strcmp(role, "destination") ||
			    !strcmp(role, "cpr"));
		snprintf(spec, sizeof(spec), "%s:fail", stage);
		assert_int_equal(init(spec, NULL, 0, &err), 0);
		assert_int_equal(ferry_fault_point(stage, &err), -ECANCELED);
		lines++;
	}
	assert_true(lines >= 28);
	free(text);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(nothing_asked), cmocka_unit_test(refused),
		cmocka_unit_test(fails_once),	 cmocka_unit_test(delays),
		cmocka_unit_test(hits_itself),	 cmocka_unit_test(hits_the_guardian),
		cmocka_unit_test(the_list),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
