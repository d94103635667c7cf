// SPDX-License-Identifier: GPL-2.0-or-later
/* Records on disk: there and back, replaced whole, and what is not one is refused. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "agent/store.h"

static char dir[] = "/tmp/ferry-store-XXXXXX";

static const char *path_of(const char *name)
{
	static char path[300];

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	return path;
}

static void clear(void)
{
	DIR *d = opendir(dir);
	struct dirent *e;

	assert_non_null(d);
	while ((e = readdir(d)))
		if (strcmp(e->d_name, ".") && strcmp(e->d_name, ".."))
			unlink(path_of(e->d_name));
	closedir(d);
}

static unsigned int files(void)
{
	DIR *d = opendir(dir);
	unsigned int n = 0;
	struct dirent *e;

	assert_non_null(d);
	while ((e = readdir(d)))
		n += e->d_name[0] != '.';
	closedir(d);
	return n;
}

static int group_setup(void **state)
{
	(void)state;
	return mkdtemp(dir) && !setenv("FERRY_RUNTIME_DIR", dir, 1) ? 0 : -1;
}

static int group_teardown(void **state)
{
	(void)state;
	clear();
	return rmdir(dir);
}

static int setup(void **state)
{
	(void)state;
	clear();
	return 0;
}

static void fill(struct ferry_record *r)
{
	*r = (struct ferry_record){
		.id = "vm1",
		.role = FERRY_ROLE_DESTINATION,
		.state = FERRY_STATE_COMMIT_WAIT,
		.phase = FERRY_PHASE_RUN_ACCEPTED,
		.settled = false,
		.uuid = { 1, 2, 3, 0xff },
		.epoch = UINT32_MAX,
		.guest = "qmp:/run/vm \"1\".qmp",
		.uri = "tcp:[::1]:4444",
		.undo = strdup("{\"was\":\"running\"}"),
		.disturbed_peer = true,
		.guest_paused = true,
		.keep_source = true,
		.timeout_ms = 30000,
		.max_bandwidth = UINT64_MAX - 1,
		.spill_dir = "/var/spill",
		.guardian = 10,
		.worker = 11,
		.vmm = 12,
		.stats = {
			.total_ns = UINT64_MAX,
			.downtime_ns = 2,
			.rounds = 3,
			.ram_bytes = 4,
			.sent_bytes = 5,
			.normal_pages = 6,
			.zero_pages = 7,
			.device_bytes = 8,
			.faults = 9,
			.suspect_pages = 10,
			.suspect_copied = 11,
			.channels = 12,
			.tracker = "pagemap",
			.verified = true,
		},
		.error = "a \\ \"text\"\nof two lines",
	};
}

static void there_and_back(void **state)
{
	struct ferry_record r, got;
	struct ferry_error err;
	struct stat st;

	(void)state;
	fill(&r);
	assert_int_equal(ferry_store_save(&r, &err), 0);
	assert_int_equal(stat(path_of("vm1.json"), &st), 0);
	assert_int_equal(st.st_mode & 0777, 0600);
	memset(&got, 0xaa, sizeof(got));
	assert_int_equal(ferry_store_load("vm1", &got, &err), 0);
	assert_string_equal(got.undo, r.undo);
	assert_string_equal(got.id, r.id);
	assert_string_equal(got.guest, r.guest);
	assert_string_equal(got.uri, r.uri);
	assert_string_equal(got.error, r.error);
	assert_memory_equal(got.uuid, r.uuid, 16);
	assert_int_equal(got.role, r.role);
	assert_int_equal(got.state, r.state);
	assert_int_equal(got.phase, r.phase);
	assert_int_equal(got.epoch, r.epoch);
	assert_false(got.settled);
	assert_true(got.disturbed_peer && got.guest_paused && got.keep_source);
	assert_int_equal(got.timeout_ms, r.timeout_ms);
	assert_true(got.max_bandwidth == r.max_bandwidth);
	assert_string_equal(got.spill_dir, r.spill_dir);
	assert_true(got.guardian == 10 && got.worker == 11 && got.vmm == 12);
	assert_true(got.stats.total_ns == UINT64_MAX && got.stats.downtime_ns == 2 &&
		    got.stats.rounds == 3 && got.stats.ram_bytes == 4 &&
		    got.stats.sent_bytes == 5 && got.stats.normal_pages == 6 &&
		    got.stats.zero_pages == 7 && got.stats.device_bytes == 8 &&
		    got.stats.faults == 9 && got.stats.suspect_pages == 10 &&
		    got.stats.suspect_copied == 11 && got.stats.channels == 12 &&
		    got.stats.verified);
	assert_string_equal(got.stats.tracker, "pagemap");
	ferry_record_free(&r);
	ferry_record_free(&got);
}

static void every_phase_and_state(void **state)
{
	struct ferry_record r, got;
	unsigned int i;

	(void)state;
	fill(&r);
	for (i = 0; i < FERRY_PHASE_COUNT; i++) {
		r.phase = (enum ferry_phase)i;
		assert_int_equal(ferry_store_save(&r, NULL), 0);
		assert_int_equal(ferry_store_load("vm1", &got, NULL), 0);
		assert_int_equal(got.phase, i);
		ferry_record_free(&got);
	}
	for (i = 0; i < FERRY_STATE_COUNT; i++) {
		r.state = (enum ferry_state)i;
		assert_int_equal(ferry_store_save(&r, NULL), 0);
		assert_int_equal(ferry_store_load("vm1", &got, NULL), 0);
		assert_int_equal(got.state, i);
		ferry_record_free(&got);
	}
	ferry_record_free(&r);
	/* Only the record is left of so many replacements. */
	assert_int_equal(files(), 1);
}

/* A reader that opened the old one goes on reading it; the next one gets the new one. */
static void replaced_whole(void **state)
{
	struct ferry_record r, got;
	char before[8192] = "", after[8192] = "";
	int fd;

	(void)state;
	fill(&r);
	assert_int_equal(ferry_store_save(&r, NULL), 0);
	fd = open(path_of("vm1.json"), O_RDONLY);
	assert_true(read(fd, before, sizeof(before) - 1) > 0);
	r.phase = FERRY_PHASE_RAN;
	assert_int_equal(ferry_store_save(&r, NULL), 0);
	assert_true(pread(fd, after, sizeof(after) - 1, 0) > 0);
	close(fd);
	assert_string_equal(before, after);
	assert_int_equal(ferry_store_load("vm1", &got, NULL), 0);
	assert_int_equal(got.phase, FERRY_PHASE_RAN);
	ferry_record_free(&got);
	ferry_record_free(&r);
}

static void cannot_be_written(void **state)
{
	struct ferry_record r;
	struct ferry_error err;
	char aside[64], text[400];

	(void)state;
	fill(&r);
	/* In the way of the new copy, whoever we are (root passes by permissions). */
	snprintf(aside, sizeof(aside), "vm1.json.new");
	assert_int_equal(mkdir(path_of(aside), 0700), 0);
	assert_int_equal(ferry_store_save(&r, &err), -EISDIR);
	snprintf(text, sizeof(text), "cannot write the record %s/vm1.json: Is a directory", dir);
	assert_string_equal(err.text, text);
	rmdir(path_of(aside));
	/* In the way of the record itself: nothing is left beside it. */
	assert_int_equal(mkdir(path_of("vm1.json"), 0700), 0);
	assert_int_equal(ferry_store_save(&r, &err), -EISDIR);
	assert_int_equal(files(), 1);
	rmdir(path_of("vm1.json"));
	ferry_record_free(&r);
}

static void nobody_of_that_name(void **state)
{
	struct ferry_record got;
	struct ferry_error err;

	(void)state;
	assert_int_equal(ferry_store_load("nobody", &got, &err), -ENOENT);
	assert_string_equal(err.text, "no migration 'nobody' is known here; 'ferry list' shows "
				      "those that are");
	assert_int_equal(ferry_store_load("../etc/passwd", &got, &err), -EINVAL);
}

static char *saved_text(void)
{
	struct ferry_record r;
	char *text = calloc(1, 16384);
	int fd;

	fill(&r);
	assert_int_equal(ferry_store_save(&r, NULL), 0);
	ferry_record_free(&r);
	fd = open(path_of("vm1.json"), O_RDONLY);
	assert_true(text && fd >= 0 && read(fd, text, 16383) > 0);
	close(fd);
	return text;
}

static void put(const char *text, size_t bytes)
{
	int fd = open(path_of("vm1.json"), O_WRONLY | O_CREAT | O_TRUNC, 0600);

	assert_true(fd >= 0);
	assert_int_equal(write(fd, text, bytes), bytes);
	close(fd);
}

static void refused(void)
{
	struct ferry_record got;
	struct ferry_error err;
	char text[400];

	assert_int_equal(ferry_store_load("vm1", &got, &err), -EPROTO);
	snprintf(text, sizeof(text),
		 "the record %s/vm1.json cannot be used: it is damaged, or of another version of "
		 "ferry; once you know where its guest is, remove it", dir);
	assert_string_equal(err.text, text);
}

/* Cut off anywhere it is no record, and nothing worse. */
static void truncated(void **state)
{
	char *text = saved_text();
	size_t end, whole = strlen(text);

	(void)state;
	while (whole && text[whole - 1] != '}')
		whole--;
	for (end = 0; end < whole; end += end < 40 || end > whole - 40 ? 1 : 17) {
		put(text, end);
		refused();
	}
	free(text);
}

/* @from replaced by @to in a good record. */
static void broken(const char *from, const char *to)
{
	char *text = saved_text(), *at = strstr(text, from), *all;

	if (!at)
		fail_msg("no %s in: %s", from, text);
	all = calloc(1, strlen(text) + strlen(to) + 1);
	assert_non_null(all);
	sprintf(all, "%.*s%s%s", (int)(at - text), text, to, at + strlen(from));
	put(all, strlen(all));
	refused();
	free(all);
	free(text);
}

static void garbage(void **state)
{
	static const char *const texts[] = {
		"\n", "null", "[]", "{}", "7", "\"vm1\"", "{\"version\":1}", "{\"version\":\"1\"}",
		"\xff\xfe", "{{{{{{{{", "{\"version\":1,\"id\":null}",
	};
	char long_text[2000];
	size_t i;

	(void)state;
	for (i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
		put(texts[i], strlen(texts[i]));
		refused();
	}
	broken("\"version\":1", "\"version\":2");
	broken("\"role\":\"destination\"", "\"role\":\"spectator\"");
	broken("\"state\":\"commit-wait\"", "\"state\":\"waiting\"");
	broken("\"phase\":\"run-accepted\"", "\"phase\":\"run\"");
	broken("\"phase\":\"run-accepted\"", "\"phase\":3");
	broken("\"uuid\":\"010203ff", "\"uuid\":\"010203f");
	broken("\"id\":\"vm1\"", "\"id\":\"vm2\"");
	broken("\"id\":\"vm1\"", "\"name\":\"vm1\"");
	/* A text longer than its field is not cut to another meaning. */
	memset(long_text, 'x', sizeof(long_text) - 1);
	long_text[sizeof(long_text) - 1] = 0;
	broken("tcp:[::1]", long_text);
	long_text[0] = '/';
	broken("\\/var\\/spill", long_text);
	broken("\\/var\\/spill", "var");
	broken("\"channels\":12", "\"channels\":4097");
}

/* A record of before these options were in it. */
static void without_options(void **state)
{
	struct ferry_record got;
	struct ferry_error err;
	char *text, *at;

	(void)state;
	text = saved_text();
	at = strstr(text, "\"max_bandwidth\"");
	assert_non_null(at);
	at[1] = 'n';
	at = strstr(text, "\"spill_dir\"");
	assert_non_null(at);
	at[1] = 'n';
	put(text, strlen(text));
	free(text);
	assert_int_equal(ferry_store_load("vm1", &got, &err), 0);
	assert_true(got.max_bandwidth == 0);
	assert_string_equal(got.spill_dir, "");
	ferry_record_free(&got);
}

static void oversized(void **state)
{
	int fd;

	(void)state;
	free(saved_text());
	fd = open(path_of("vm1.json"), O_WRONLY);
	assert_int_equal(ftruncate(fd, (1 << 20) + 1), 0);
	close(fd);
	refused();
	assert_int_equal(unlink(path_of("vm1.json")), 0);
	assert_int_equal(mkdir(path_of("vm1.json"), 0700), 0);
	{
		struct ferry_record got;
		struct ferry_error err;

		/* Reading a folder: some errno, a text, no crash. */
		assert_true(ferry_store_load("vm1", &got, &err) < 0);
		assert_non_null(strstr(err.text, "cannot be used"));
	}
	rmdir(path_of("vm1.json"));
}

static void collect(void *ctx, const char *id)
{
	strcat(ctx, id);
	strcat(ctx, " ");
}

static void listing(void **state)
{
	char all[200] = "";
	struct ferry_record r;
	struct ferry_error err;
	static const char *const others[] = { "c.lock", "c.sock", "c.json.new", ".json", "json" };
	size_t i;

	(void)state;
	assert_int_equal(ferry_store_list(collect, all, &err), 0);
	assert_string_equal(all, "");
	fill(&r);
	snprintf(r.id, sizeof(r.id), "b");
	assert_int_equal(ferry_store_save(&r, NULL), 0);
	snprintf(r.id, sizeof(r.id), "a.json");
	assert_int_equal(ferry_store_save(&r, NULL), 0);
	ferry_record_free(&r);
	for (i = 0; i < sizeof(others) / sizeof(others[0]); i++)
		close(open(path_of(others[i]), O_CREAT | O_WRONLY, 0600));
	assert_int_equal(ferry_store_list(collect, all, &err), 0);
	assert_string_equal(all, "a.json b ");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup(there_and_back, setup),
		cmocka_unit_test_setup(every_phase_and_state, setup),
		cmocka_unit_test_setup(replaced_whole, setup),
		cmocka_unit_test_setup(cannot_be_written, setup),
		cmocka_unit_test_setup(nobody_of_that_name, setup),
		cmocka_unit_test_setup(truncated, setup),
		cmocka_unit_test_setup(garbage, setup),
		cmocka_unit_test_setup(oversized, setup),
		cmocka_unit_test_setup(without_options, setup),
		cmocka_unit_test_setup(listing, setup),
	};

	return cmocka_run_group_tests(tests, group_setup, group_teardown);
}
