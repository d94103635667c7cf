// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Power loss while a snapshot file is written, as a model: whatever the writer does to the
 * file and its name is logged, and then played back as far as any moment, with what was not
 * synced by then kept, lost or kept in part, in any order. The name stands for nothing, for
 * the old file or for a complete one; and bytes that were never finished are never taken for
 * a complete file. Without the syncs the same model finds the damage, or it would prove nothing.
 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/io.h"
#include "store/reader.h"
#include "store/writer.h"

#define MIB (1ull << 20)
#define MAX_EVENTS 256
#define CHOICES 24 /* of what survives, at each moment */

enum kind { WRITE, CUT, PUNCH, SYNC, NAME, SYNC_FOLDER };

struct event {
	enum kind kind;
	off_t off;
	size_t len;
	uint8_t *bytes;
};

static struct event log_events[MAX_EVENTS];
static unsigned int events;
static bool logging;
static unsigned int fails; /* which sync fails; 0 none */
static char folder[] = "/dev/shm/ferry-power-XXXXXX";
static char path[64], replay[64];

static void note(enum kind kind, off_t off, size_t len, const void *bytes)
{
	struct event *e = &log_events[events++];

	assert_true(events < MAX_EVENTS);
	*e = (struct event){ .kind = kind, .off = off, .len = len };
	if (bytes) {
		e->bytes = malloc(len);
		memcpy(e->bytes, bytes, len);
	}
}

/* ---- what the writer calls; one channel, so one thread at a time ---- */

ssize_t pwrite(int fd, const void *buf, size_t n, off_t off)
{
	if (logging)
		note(WRITE, off, n, buf);
	return syscall(SYS_pwrite64, fd, buf, n, off);
}

int ftruncate(int fd, off_t len)
{
	if (logging)
		note(CUT, len, 0, NULL);
	return (int)syscall(SYS_ftruncate, fd, len);
}

int fallocate(int fd, int mode, off_t off, off_t len)
{
	if (logging)
		note(PUNCH, off, (size_t)len, NULL);
	return (int)syscall(SYS_fallocate, fd, mode, off, len);
}

int fsync(int fd)
{
	struct stat st;

	if (fails && !--fails) {
		errno = EIO;
		return -1;
	}
	if (logging && !fstat(fd, &st))
		note(S_ISDIR(st.st_mode) ? SYNC_FOLDER : SYNC, 0, 0, NULL);
	return (int)syscall(SYS_fsync, fd);
}

int rename(const char *from, const char *to)
{
	if (logging)
		note(NAME, 0, 0, NULL);
	return (int)syscall(SYS_rename, from, to);
}

/* ---- one save, logged ---- */

static struct ferry_ram ram;

static void fill(uint64_t page, uint64_t pages, int with)
{
	uint8_t bytes[4096];

	memset(bytes, with, sizeof(bytes));
	for (; pages--; page++)
		assert_int_equal(ferry_io_pwrite(ram.blocks[0].fd, bytes, sizeof(bytes),
						 (off_t)(page * 4096)), 0);
}

static void queue(struct ferry_store_writer *w, uint64_t page, uint64_t pages)
{
	assert_int_equal(ferry_store_writer_queue(w, 0, page, pages, false, NULL), 0);
}

/* Two rounds, in the second of which a page becomes zeros. */
static void save(void)
{
	const struct ferry_store_tail tail = { .device = (const uint8_t *)"state", .device_bytes = 5 };
	struct ferry_store_writer_params params = {
		.path = path, .id = "t", .ram = &ram, .channels = 1, .kind = "qmp", .vmm = "",
		.uuid = { 1 },
	};
	struct ferry_ram_block b = { .name = "ram", .size_bytes = 3 * MIB, .page_size = 4096 };
	struct ferry_store_writer *w;

	ferry_ram_init(&ram);
	b.fd = memfd_create("ram", MFD_CLOEXEC);
	assert_int_equal(ftruncate(b.fd, (off_t)b.size_bytes), 0);
	assert_int_equal(ferry_ram_add(&ram, &b, NULL), 0);
	fill(0, 6, 1);
	fill(300, 3, 2);
	fill(600, 1, 3);
	logging = true;
	assert_int_equal(ferry_store_writer_create(&params, &w, NULL), 0);
	queue(w, 0, 768);
	assert_int_equal(ferry_store_writer_drain(w, FERRY_CLOCK_NEVER, NULL), 0);
	logging = false;
	fill(1, 1, 9);
	fill(301, 1, 0);
	logging = true;
	queue(w, 1, 1);
	queue(w, 301, 1);
	assert_int_equal(ferry_store_writer_finish(w, &tail, NULL), 0);
	ferry_store_writer_free(w);
	logging = false;
}

/* ---- the model ---- */

static void apply(int fd, const struct event *e)
{
	if (e->kind == WRITE)
		assert_int_equal(ferry_io_pwrite(fd, e->bytes, e->len, e->off), 0);
	else if (e->kind == CUT)
		assert_int_equal(ftruncate(fd, e->off), 0);
	else if (e->kind == PUNCH)
		assert_int_equal(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, e->off,
					   (off_t)e->len), 0);
}

/* Does an event that was not synced survive? All, none, the first ones, or any. */
static bool survives(unsigned int choice, unsigned int number, unsigned int unsynced)
{
	if (choice < 2)
		return choice;
	if (choice < CHOICES / 2)
		return number < unsynced * (choice - 1) / (CHOICES / 2 - 1);
	return random() & 1;
}

static int take(void *ctx, unsigned int block, uint64_t extent, const struct ferry_store_set *set,
		const uint8_t *buf, struct ferry_error *err)
{
	static uint8_t mine[MIB];
	unsigned int first = 0, pages;

	(void)ctx;
	(void)err;
	assert_int_equal(ferry_io_pread(ram.blocks[block].fd, mine, MIB, (off_t)(extent * MIB)), 0);
	for (; (pages = ferry_store_set_run(set, &first)); first += pages)
		if (memcmp(buf + first * 4096ul, mine + first * 4096ul, pages * 4096ul))
			return -EBADMSG;
	return 0;
}

/* Return: 0 complete and right, -EBADMSG taken for complete and wrong, else refused. */
static int look(void)
{
	struct ferry_store_read_params params = { .threads = 1, .verify = true, .take = take };
	static struct ferry_store_file f;
	int r = ferry_store_open(&f, replay, NULL);

	if (r)
		return r;
	r = ferry_store_read_all(&f, &params, NULL);
	if (!r && f.commit.pages != 9)
		r = -EBADMSG;
	ferry_store_close(&f);
	return r;
}

/* The power goes after @upto events. Return: what the bytes are; *@named: may the name be there? */
static int lose_power(unsigned int upto, unsigned int choice, bool syncs, bool *named)
{
	int fd = open(replay, O_RDWR | O_CREAT | O_TRUNC, 0600);
	unsigned int i, synced = 0, number = 0;

	*named = false;
	for (i = 0; i < upto; i++) {
		if (log_events[i].kind == SYNC && syncs)
			synced = i + 1;
		if (log_events[i].kind == NAME)
			*named = true;
	}
	for (i = 0; i < upto; i++)
		if (i < synced || survives(choice, number++, upto - synced))
			apply(fd, &log_events[i]);
	close(fd);
	return look();
}

static unsigned int violations(bool syncs)
{
	unsigned int upto, choice, bad = 0;

	srandom(1);
	for (upto = 0; upto <= events; upto++) {
		for (choice = 0; choice < CHOICES; choice++) {
			bool named;
			int r = lose_power(upto, choice, syncs, &named);

			/* Wrong bytes that look complete; a name for something that is not. */
			if (r == -EBADMSG || (named && r))
				bad++;
		}
	}
	return bad;
}

static void power_loss(void **state)
{
	unsigned int i, kinds[SYNC_FOLDER + 1] = { 0 };

	(void)state;
	save();
	for (i = 0; i < events; i++)
		kinds[log_events[i].kind]++;
	assert_true(kinds[WRITE] > 6 && kinds[PUNCH] == 1 && kinds[SYNC] == 2 && kinds[NAME] == 1);
	/* The folder is synced last: from then on the name is there for certain. */
	assert_int_equal(log_events[events - 1].kind, SYNC_FOLDER);
	assert_int_equal(violations(true), 0);
	assert_true(violations(false) > 0);
}

/* A sync that fails is never taken for one that did not: the name stays as it was. */
static void sync_fails(void **state)
{
	const struct ferry_store_tail tail = { .device = (const uint8_t *)"state", .device_bytes = 5 };
	struct ferry_store_writer_params params = {
		.path = path, .id = "t", .ram = &ram, .channels = 1, .kind = "qmp", .vmm = "",
	};
	unsigned int which;

	(void)state;
	unlink(path);
	for (which = 1; which <= 3; which++) {
		struct ferry_error err = { 0 };
		struct ferry_store_writer *w;

		assert_int_equal(ferry_store_writer_create(&params, &w, NULL), 0);
		queue(w, 0, 768);
		fails = which;
		assert_int_equal(ferry_store_writer_finish(w, &tail, &err), -EIO);
		assert_int_equal(fails, 0);
		ferry_store_writer_free(w);
		assert_non_null(strstr(err.text, path));
		/* The last one is the folder's: the file has its name, and that is said. */
		assert_int_equal(access(path, F_OK), which == 3 ? 0 : -1);
		assert_true(!strstr(err.text, "cannot be synced") == (which != 3));
	}
}

static int setup(void **state)
{
	(void)state;
	if (!mkdtemp(folder))
		return -1;
	snprintf(path, sizeof(path), "%s/snap", folder);
	snprintf(replay, sizeof(replay), "%s/replay", folder);
	return 0;
}

static int teardown(void **state)
{
	unsigned int i;

	(void)state;
	for (i = 0; i < events; i++)
		free(log_events[i].bytes);
	ferry_ram_free(&ram);
	unlink(path);
	unlink(replay);
	return rmdir(folder);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(power_loss),
		cmocka_unit_test(sync_fails),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
