// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Exchanging a mapping under writers, without the kernel module: the new mapping is a
 * plain one of the same memory file. The target is a copy of this process whose
 * threads count in every page, each checking that the page holds what it wrote last;
 * the test looks at the memory file itself. (With tracked views: selftests/hosted.)
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "guest/proc.h"
#include "guest/view.h"
#include "inject/inject.h"
#include "inject/tracer.h"

#define PAGE 4096ul
#define PAGES 512ul
#define BYTES (PAGES * PAGE)
/* The file begins with this much that is not mapped there. */
#define OFF_BYTES (16 * PAGE)
#define THREADS 2
#define NOBODY 65534
#define ROUNDS 40
#define WAIT_MS 20000

/* Shared with the target. */
struct report {
	volatile int ready, stop;
	volatile uint64_t loops[THREADS];
	volatile uint64_t bad;
	uint64_t written[PAGES];
	uint64_t addr;
};

struct target {
	pid_t pid;
	int memfd, again; /* two open files of the same memory; the numbers hold in the target */
	int other;	  /* of another memory */
	uint8_t *ours;
	struct report *report;
	dev_t dev;
	ino_t ino;
};

struct writer {
	struct report *report;
	uint8_t *ram;
	unsigned long first;
};

static void *writer(void *arg)
{
	struct writer *w = arg;
	struct report *report = w->report;
	unsigned long i;

	while (!report->stop) {
		for (i = w->first; i < PAGES; i += THREADS) {
			volatile uint64_t *word = (uint64_t *)(w->ram + i * PAGE);

			if (*word != report->written[i])
				__atomic_add_fetch(&report->bad, 1, __ATOMIC_RELAXED);
			report->written[i]++;
			*word = report->written[i];
		}
		report->loops[w->first]++;
	}
	return NULL;
}

static void target_main(struct target *t, void (*dress)(uint8_t *ram))
{
	struct writer writers[THREADS];
	pthread_t threads[THREADS];
	uint8_t *ram;
	int i;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	ram = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, t->memfd, OFF_BYTES);
	if (ram == MAP_FAILED)
		_exit(1);
	for (i = 0; i < THREADS; i++) {
		writers[i] = (struct writer){ t->report, ram, (unsigned long)i };
		if (pthread_create(&threads[i], NULL, writer, &writers[i]))
			_exit(1);
	}
	t->report->addr = (uintptr_t)ram;
	if (dress)
		dress(ram);
	t->report->ready = 1;
	for (i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
	_exit(0);
}

static int reopen(int fd)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	return open(path, O_RDWR);
}

static void target_start(struct target *t, void (*dress)(uint8_t *ram))
{
	uint64_t deadline_ns = ferry_clock_in_ms(WAIT_MS);
	struct stat st;

	t->memfd = memfd_create("view-ram", 0);
	t->other = memfd_create("view-other", 0);
	assert_int_equal(ftruncate(t->memfd, OFF_BYTES + BYTES), 0);
	assert_int_equal(ftruncate(t->other, OFF_BYTES + BYTES), 0);
	t->again = reopen(t->memfd);
	assert_true(t->again >= 0);
	assert_int_equal(fstat(t->memfd, &st), 0);
	t->dev = st.st_dev;
	t->ino = st.st_ino;
	t->ours = mmap(NULL, BYTES, PROT_READ, MAP_SHARED, t->memfd, OFF_BYTES);
	t->report = mmap(NULL, sizeof(*t->report), PROT_READ | PROT_WRITE,
			 MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	t->pid = fork();
	if (!t->pid)
		target_main(t, dress);
	while (!t->report->ready) {
		assert_int_equal(waitpid(t->pid, NULL, WNOHANG), 0);
		assert_true(ferry_clock_ns() < deadline_ns);
		ferry_clock_sleep_ns(FERRY_NS_PER_MS);
	}
}

/* The writers go on: each gets once more through all of its pages. */
static void assert_writes(struct target *t)
{
	uint64_t deadline_ns = ferry_clock_in_ms(WAIT_MS), before[THREADS];
	int i;

	for (i = 0; i < THREADS; i++)
		before[i] = t->report->loops[i];
	for (i = 0; i < THREADS; i++)
		while (t->report->loops[i] < before[i] + 2) {
			assert_int_equal(waitpid(t->pid, NULL, WNOHANG), 0);
			assert_true(ferry_clock_ns() < deadline_ns);
			ferry_clock_sleep_ns(FERRY_NS_PER_MS / 10);
		}
	assert_int_equal(t->report->bad, 0);
}

/* No write was lost: what the threads wrote last is in the file. */
static void target_stop(struct target *t)
{
	unsigned long i;
	int status;

	assert_writes(t);
	t->report->stop = 1;
	assert_int_equal(waitpid(t->pid, &status, 0), t->pid);
	assert_int_equal(status, 0);
	for (i = 0; i < PAGES; i++)
		assert_int_equal(*(uint64_t *)(t->ours + i * PAGE), t->report->written[i]);
	munmap(t->ours, BYTES);
	munmap(t->report, sizeof(*t->report));
	close(t->memfd);
	close(t->again);
	close(t->other);
}

static int add_line(void *ctx, const struct ferry_proc_area *area)
{
	char *text = ctx, flags[FERRY_VMFLAGS_TEXT];
	struct ferry_vmflags f;
	size_t len = strlen(text);

	if (!strstr(area->path, "view-"))
		return 0;
	assert_int_equal(ferry_vmflags_parse(area->flags, &f), 0);
	ferry_vmflags_format(&f, flags, sizeof(flags));
	/* Soft-dirty comes and goes by itself. */
	if (strstr(flags, "sd "))
		memmove(strstr(flags, "sd "), strstr(flags, "sd ") + 3,
			strlen(strstr(flags, "sd ") + 3) + 1);
	snprintf(text + len, 4096 - len, "%llx-%llx %d %llx %s [%s]\n",
		 (unsigned long long)area->start, (unsigned long long)area->end, area->prot,
		 (unsigned long long)area->off_bytes, area->path, flags);
	return 0;
}

/* All mappings of the memory files in the target. */
static char *layout(struct target *t)
{
	char *text = calloc(1, 4096);

	assert_int_equal(ferry_proc_smaps(t->pid, add_line, text), 0);
	return text;
}

static struct ferry_view open_view(struct target *t)
{
	struct ferry_view v = { .pid = t->pid, .spare_bytes = BYTES };
	struct ferry_error err = { 0 };

	if (ferry_view_find_spare(t->pid, BYTES, &v.spare, &err) ||
	    ferry_inject_open(t->pid, &v.inj, &err))
		fail_msg("%s", err.text);
	return v;
}

static int find_areas(struct target *t, struct ferry_view_area *areas, unsigned int max)
{
	struct ferry_error err = { 0 };
	int n = ferry_view_areas(t->pid, t->dev, t->ino, t->report->addr, BYTES, areas, max, &err);

	if (n <= 0)
		fail_msg("%s", err.text);
	return n;
}

/* Sanitizers make mlock(3) do nothing. */
static int lock(uint8_t *ram, size_t bytes)
{
	return (int)syscall(SYS_mlock, ram, bytes);
}

/* The file's own flags of all kinds, in three pieces. */
static void dress_up(uint8_t *ram)
{
	madvise(ram, BYTES, MADV_HUGEPAGE);
	madvise(ram, BYTES, MADV_DONTFORK);
	madvise(ram, BYTES / 4, MADV_DONTDUMP);
	madvise(ram + BYTES / 2, BYTES / 2, MADV_RANDOM);
	lock(ram + BYTES / 2, BYTES / 2);
}

static void exchange_under_writers(void (*dress)(uint8_t *ram), int pieces)
{
	struct ferry_view_area areas[8];
	struct ferry_error err = { 0 };
	char *before, *after;
	struct ferry_view v;
	struct target t;
	int i, j, n;

	target_start(&t, dress);
	v = open_view(&t);
	before = layout(&t);
	n = find_areas(&t, areas, 8);
	assert_int_equal(n, pieces);
	for (i = 0; i < ROUNDS; i++) {
		for (j = 0; j < n; j++)
			if (ferry_view_exchange(&v, &areas[j], i % 2 ? t.memfd : t.again, &err))
				fail_msg("round %d: %s", i, err.text);
		for (j = 0; j < n; j++)
			assert_int_equal(ferry_view_look(t.pid, &areas[j]), FERRY_VIEW_PLAIN);
	}
	after = layout(&t);
	assert_string_equal(after, before);
	free(before);
	free(after);
	ferry_inject_close(v.inj);
	target_stop(&t);
}

static void no_write_is_lost(void **state)
{
	(void)state;
	exchange_under_writers(NULL, 1);
}

static void flags_are_equal_before_and_after(void **state)
{
	(void)state;
	exchange_under_writers(dress_up, 3);
}

static void not_dumped(uint8_t *ram)
{
	madvise(ram, BYTES, MADV_DONTDUMP);
}

/*
 * A filter that makes one system call fail in all threads; of mmap only shared mappings, since
 * a sanitizer needs others.
 */
static void deny(int nr)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned int)nr, 0, 4),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_mmap, 0, 2),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[3])),
		BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, MAP_SHARED, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog prog = { sizeof(code) / sizeof(code[0]), code };

	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &prog))
		_exit(2);
}

static void deny_mmap(uint8_t *ram)
{
	(void)ram;
	deny(SYS_mmap);
}

static void deny_mremap(uint8_t *ram)
{
	(void)ram;
	deny(SYS_mremap);
}

static void deny_madvise(uint8_t *ram)
{
	not_dumped(ram);
	deny(SYS_madvise);
}

/* What is locked uses up all that may be: a second locked mapping cannot be. */
static void lock_to_the_limit(uint8_t *ram)
{
	const struct rlimit limit = { BYTES + PAGE, BYTES + PAGE };

	if (lock(ram, BYTES) || setrlimit(RLIMIT_MEMLOCK, &limit) || setuid(NOBODY) ||
	    prctl(PR_SET_DUMPABLE, 1) || prctl(PR_SET_PDEATHSIG, SIGKILL))
		_exit(2);
}

static void a_failure_leaves_it_as_it_was(void **state)
{
	static const struct {
		void (*dress)(uint8_t *ram);
		int bad_fd; /* 1 none such, 2 of another file */
		int expected;
		const char *words;
	} rows[] = {
		{ NULL, 1, -EBADF, "mapping guest RAM anew" },
		{ NULL, 2, -ENXIO, "looking at the new mapping" },
		{ deny_mmap, 0, -EPERM, "mapping guest RAM anew" },
		{ deny_madvise, 0, -EPERM, "giving the new mapping" },
		{ lock_to_the_limit, 0, -ENOMEM, "giving the new mapping" },
		{ deny_mremap, 0, -EPERM, "putting the new mapping" },
	};
	struct ferry_view_area area;
	char *before, *after;
	struct ferry_view v;
	struct target t;
	size_t i;

	(void)state;
	for (i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		struct ferry_error err = { 0 };
		int fd, r;

		if (rows[i].dress == lock_to_the_limit && getuid()) {
			print_message("not root: the limit of locked memory was not tried\n");
			continue;
		}
		target_start(&t, rows[i].dress);
		v = open_view(&t);
		before = layout(&t);
		assert_int_equal(find_areas(&t, &area, 1), 1);
		fd = rows[i].bad_fd == 1 ? 999 : rows[i].bad_fd == 2 ? t.other : t.again;
		r = ferry_view_exchange(&v, &area, fd, &err);
		if (r != rows[i].expected || !strstr(err.text, rows[i].words))
			fail_msg("row %zu: %d %s", i, r, err.text);
		after = layout(&t);
		assert_string_equal(after, before);
		free(before);
		free(after);
		ferry_inject_close(v.inj);
		target_stop(&t);
	}
}

/* These tests can fail: a mapping of other memory in that place is noticed. */
static void a_lost_write_is_seen(void **state)
{
	uint64_t deadline_ns = ferry_clock_in_ms(WAIT_MS);
	struct ferry_error err = { 0 };
	struct ferry_view v;
	struct target t;
	int64_t result;

	(void)state;
	target_start(&t, NULL);
	v = open_view(&t);
	assert_int_equal(ferry_inject_syscall(v.inj, SYS_mmap,
					      (const uint64_t[6]){ t.report->addr, PAGE,
								   PROT_READ | PROT_WRITE,
								   MAP_SHARED | MAP_FIXED,
								   (uint64_t)t.other, 0 },
					      &result, &err), 0);
	assert_int_equal(result, (int64_t)t.report->addr);
	while (!t.report->bad) {
		assert_true(ferry_clock_ns() < deadline_ns);
		ferry_clock_sleep_ns(FERRY_NS_PER_MS);
	}
	t.report->stop = 1;
	assert_int_equal(waitpid(t.pid, NULL, 0), t.pid);
	assert_int_not_equal(*(uint64_t *)t.ours, t.report->written[0]);
	ferry_inject_close(v.inj);
}

static void areas_are_refused(void **state)
{
	struct ferry_view_area areas[8];
	struct ferry_error err = { 0 };
	struct target t;

	(void)state;
	target_start(&t, dress_up);
	assert_int_equal(ferry_view_areas(t.pid, t.dev, t.ino, t.report->addr, BYTES, areas, 2,
					  &err), -E2BIG);
	assert_int_equal(ferry_view_areas(t.pid, t.dev, t.ino, t.report->addr, BYTES + PAGE, areas,
					  8, &err), -ENXIO);
	assert_int_equal(ferry_view_areas(t.pid, t.dev, t.ino + 1, t.report->addr, BYTES, areas, 8,
					  &err), -ENXIO);
	/* A part of a mapping is an area too. */
	assert_int_equal(ferry_view_areas(t.pid, t.dev, t.ino, t.report->addr + PAGE, PAGE, areas,
					  8, &err), 1);
	assert_int_equal(areas[0].off_bytes, OFF_BYTES + PAGE);
	assert_int_equal(areas[0].end - areas[0].start, PAGE);
	target_stop(&t);
}

/* ---- a tracer that dies ---- */

static int steps_left;

static int die_at_step(void)
{
	if (!steps_left--)
		kill(getpid(), SIGKILL);
	return 0;
}

/* Return: whether it was killed before it had done all. */
static bool exchange_and_die(struct target *t, const struct ferry_view *v,
			     const struct ferry_view_area *area, int step)
{
	struct ferry_error err = { 0 };
	pid_t pid = fork();
	int status;

	if (!pid) {
		steps_left = step;
		ferry_tracer_probe = die_at_step;
		_exit(ferry_view_exchange(v, area, t->again, &err) ? 1 : 0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	if (WIFSIGNALED(status))
		return true;
	assert_int_equal(WEXITSTATUS(status), 0);
	return false;
}

static void wait_untraced(pid_t pid)
{
	uint64_t deadline_ns = ferry_clock_in_ms(WAIT_MS);
	char value[32];

	do {
		assert_true(ferry_clock_ns() < deadline_ns);
		assert_int_equal(ferry_tracer_task_field(pid, pid, "TracerPid:", value,
							 sizeof(value)), 0);
	} while (atoi(value));
	ferry_inject_settle(pid);
}

/* Another process, which knows only where to look, finds what is left and clears it. */
static void what_a_killed_one_leaves_is_found(void **state)
{
	struct ferry_view_area area;
	char *before, *after;
	struct ferry_view v;
	struct target t;
	int step, kills = 0, leftovers = 0;

	(void)state;
	target_start(&t, not_dumped);
	v = open_view(&t);
	before = layout(&t);
	assert_int_equal(find_areas(&t, &area, 1), 1);
	for (step = 0; exchange_and_die(&t, &v, &area, step); step++) {
		struct ferry_error err = { 0 };

		kills++;
		wait_untraced(t.pid);
		after = layout(&t);
		leftovers += strcmp(before, after) != 0;
		free(after);
		if (ferry_view_clear_spare(&v, t.dev, t.ino, &err))
			fail_msg("step %d: %s", step, err.text);
		assert_true(ferry_view_look(t.pid, &area) == FERRY_VIEW_PLAIN);
		after = layout(&t);
		assert_string_equal(after, before);
		free(after);
		assert_writes(&t);
	}
	print_message("killed at %d steps, something was left after %d\n", kills, leftovers);
	assert_true(kills > 20);
	assert_true(leftovers > 0);
	free(before);
	ferry_inject_close(v.inj);
	target_stop(&t);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(no_write_is_lost),
		cmocka_unit_test(flags_are_equal_before_and_after),
		cmocka_unit_test(a_failure_leaves_it_as_it_was),
		cmocka_unit_test(a_lost_write_is_seen),
		cmocka_unit_test(areas_are_refused),
		cmocka_unit_test(what_a_killed_one_leaves_is_found),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
