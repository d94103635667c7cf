// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Many migrations of one process: a source that stays, a destination made anew each time,
 * `ferry recv` and `ferry send --keep-source` between them. After the first few no
 * descriptor, thread, mapping or allocation may be there that was not there before.
 *
 *	leaks FERRY COUNT FOLDER
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "include/ferry.h"

#define PAGES 512ul
#define BYTES (PAGES * 4096)
/* The rest stays holes: dirty in every round, if the log is to be believed, and zero. */
#define WRITTEN_PAGES 384ul
/* Until caches of the C library and of the process are as they stay. */
#define WARM_UP 3
/* stdio's and the like; a leak of one pointer a migration is more in the long run. */
#define HEAP_SLACK 256l

extern char **environ;

struct vmm {
	struct ferry_port *port;
	char path[256];
	int fd;
	uint8_t *ram;
	uint64_t step;
	int running; /* atomic */
	bool arrived;
};

struct census {
	long fds, threads, maps, heap;
};

static struct vmm source, destination;
static pthread_mutex_t writing = PTHREAD_MUTEX_INITIALIZER;

static void die(const char *what)
{
	printf("Bail out! %s: %s\n", what, strerror(errno));
	exit(1);
}

static int do_pause(void *ctx)
{
	struct vmm *v = ctx;

	pthread_mutex_lock(&writing);
	v->running = 0;
	pthread_mutex_unlock(&writing);
	return 0;
}

static int do_resume(void *ctx)
{
	struct vmm *v = ctx;

	pthread_mutex_lock(&writing);
	v->running = 1;
	pthread_mutex_unlock(&writing);
	return 0;
}

static int do_running(void *ctx)
{
	struct vmm *v = ctx;
	int running;

	pthread_mutex_lock(&writing);
	running = v->running;
	pthread_mutex_unlock(&writing);
	return running;
}

static int do_save(void *ctx, int fd)
{
	struct vmm *v = ctx;

	return write(fd, &v->step, sizeof(v->step)) == sizeof(v->step) ? 0 : -EIO;
}

static int do_load(void *ctx, int fd)
{
	struct vmm *v = ctx;

	return read(fd, &v->step, sizeof(v->step)) == sizeof(v->step) ? 0 : -EPROTO;
}

static int do_run(void *ctx)
{
	struct vmm *v = ctx;

	const uint8_t *rest = v->ram + WRITTEN_PAGES * 4096;

	/* Both are here: compare. Looking at the source's holes would fill them. */
	if (v->step != source.step || memcmp(v->ram, source.ram, WRITTEN_PAGES * 4096) ||
	    rest[0] || memcmp(rest, rest + 1, (PAGES - WRITTEN_PAGES) * 4096 - 1)) {
		ferry_port_set_error(v->port, "memory differs from the source's");
		return -EILSEQ;
	}
	v->arrived = true;
	return 0;
}

static void do_quit(void *ctx)
{
	(void)ctx;
}

static int do_direct_io(void *ctx, char *why, size_t why_bytes)
{
	(void)ctx;
	(void)why;
	(void)why_bytes;
	return 0;
}

/* Not a cheap log: all pages, always. */
static int do_log(void *ctx)
{
	(void)ctx;
	return 0;
}

static void do_unlog(void *ctx)
{
	(void)ctx;
}

static int do_sync(void *ctx, const char *name, uint64_t *bitmap, uint64_t pages)
{
	(void)ctx;
	(void)name;
	memset(bitmap, 0xff, pages / 8);
	return 0;
}

static void create(struct vmm *v, const char *folder, const char *name, unsigned int flags)
{
	static const struct ferry_port_ops ops = {
		.struct_size = sizeof(ops), .kind = "leaks/1",
		.pause = do_pause, .resume = do_resume, .running = do_running, .save = do_save,
		.load = do_load, .run = do_run, .quit = do_quit, .direct_io = do_direct_io,
		.dirty_start = do_log, .dirty_stop = do_unlog, .dirty_sync = do_sync,
	};
	struct ferry_port_ram ram = { .struct_size = sizeof(ram), .name = "ram", .bytes = BYTES };
	int r;

	memset(v, 0, sizeof(*v));
	snprintf(v->path, sizeof(v->path), "%s/%s.port", folder, name);
	v->fd = memfd_create(name, MFD_CLOEXEC);
	if (v->fd < 0 || ftruncate(v->fd, (off_t)BYTES))
		die("memfd");
	v->ram = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, v->fd, 0);
	if (v->ram == MAP_FAILED)
		die("mmap");
	ram.fd = v->fd;
	ram.addr = v->ram;
	r = ferry_port_create(&ops, v, flags, &v->port);
	if (!r)
		r = ferry_port_add_ram(v->port, &ram);
	if (!r)
		r = ferry_port_listen(v->port, v->path);
	if (!r)
		r = ferry_port_start(v->port);
	errno = -r;
	if (r)
		die(v->path);
}

static void destroy(struct vmm *v)
{
	ferry_port_destroy(v->port);
	munmap(v->ram, BYTES);
	close(v->fd);
}

static void *guest(void *arg)
{
	struct vmm *v = arg;

	for (;;) {
		pthread_mutex_lock(&writing);
		if (v->running)
			++*(uint64_t *)(v->ram + v->step++ % WRITTEN_PAGES * 4096);
		pthread_mutex_unlock(&writing);
		usleep(50);
	}
	return NULL;
}

static pid_t spawn(const char *ferry, const char *verb, const struct vmm *v, const char *folder,
		   const char *tracker)
{
	char spec[300], uri[300], out[300];
	const char *argv[] = { ferry, verb, spec, uri, "--json", tracker ? "--tracker" : NULL,
			       tracker, "--keep-source", NULL };
	posix_spawn_file_actions_t actions;
	pid_t pid;
	int r;

	snprintf(spec, sizeof(spec), "port:%s", v->path);
	snprintf(uri, sizeof(uri), "unix:%s/link", folder);
	snprintf(out, sizeof(out), "%s/%s.json", folder, verb);
	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_addopen(&actions, 1, out, O_WRONLY | O_CREAT | O_TRUNC, 0600);
	r = posix_spawn(&pid, ferry, &actions, NULL, (char **)(uintptr_t)argv, environ);
	posix_spawn_file_actions_destroy(&actions);
	errno = r;
	if (r)
		die(ferry);
	return pid;
}

/* The number that the last line of @text has for @key; -1 none. */
static long number(const char *text, const char *key)
{
	const char *end = strstr(text, "\"event\":\"completed\"");
	const char *at = end ? strstr(end, key) : NULL;

	return at ? strtol(at + strlen(key), NULL, 10) : -1;
}

/* Within a round no order is kept, so a page may come once in each. */
static bool no_page_twice(const char *folder)
{
	char path[300], text[65536];
	long rounds, pages, data;
	struct stat st;
	size_t n;
	FILE *f;

	snprintf(path, sizeof(path), "%s/send.json", folder);
	f = fopen(path, "re");
	if (!f)
		die(path);
	n = fread(text, 1, sizeof(text) - 1, f);
	fclose(f);
	text[n] = 0;
	rounds = number(text, "\"rounds\":");
	pages = number(text, "\"normal_pages\":") + number(text, "\"zero_pages\":");
	/* The first round takes what holds data. */
	data = fstat(source.fd, &st) ? 0 : (long)(st.st_blocks * 512 / 4096);
	if (rounds > 0 && pages <= data + (rounds - 1) * (long)PAGES)
		return true;
	printf("# %ld pages in %ld rounds, %ld of %lu hold data\n", pages, rounds, data, PAGES);
	return false;
}

static bool succeeded(pid_t pid)
{
	int status;

	return waitpid(pid, &status, 0) == pid && WIFEXITED(status) && !WEXITSTATUS(status);
}

static bool migrate(const char *ferry, const char *folder, const char *tracker)
{
	pid_t recv, send;
	bool good;

	create(&destination, folder, "destination", FERRY_PORT_INCOMING);
	do_resume(&source);
	recv = spawn(ferry, "recv", &destination, folder, NULL);
	send = spawn(ferry, "send", &source, folder, tracker);
	good = succeeded(send);
	if (!good)
		kill(recv, SIGTERM); /* it would wait for another */
	good = succeeded(recv) && good && destination.arrived && no_page_twice(folder);
	destroy(&destination);
	return good;
}

static long count_entries(const char *path)
{
	DIR *dir = opendir(path);
	long n = 0;

	if (!dir)
		die(path);
	while (readdir(dir))
		n++;
	closedir(dir);
	return n;
}

static long count_lines(const char *path)
{
	FILE *f = fopen(path, "re");
	long n = 0;
	int c;

	if (!f)
		die(path);
	while ((c = getc(f)) != EOF)
		n += c == '\n';
	fclose(f);
	return n;
}

/* The library's last words to a connection that ended may still be under way. */
static struct census count(void)
{
	struct census c;
	int i;

	for (i = 0; i < 5000 && ferry_port_attached(source.port); i++)
		usleep(1000);
	c.fds = count_entries("/proc/self/fd");
	c.threads = count_entries("/proc/self/task");
	c.maps = count_lines("/proc/self/maps");
	c.heap = (long)mallinfo2().uordblks;
	return c;
}

static int verdict(int number, const char *what, long before, long after, long slack)
{
	bool good = after <= before + slack;

	printf("%s %d - no_%s_leak # %ld, then %ld\n", good ? "ok" : "not ok", number, what,
	       before, after);
	return !good;
}

int main(int argc, char **argv)
{
	static const char *const trackers[] = { "port", "pagemap", "none" };
	struct census before = { 0 }, after;
	int i, total, good = 0, failed;
	pthread_t thread;

	if (argc != 4)
		return 2;
	total = atoi(argv[2]) + WARM_UP;
	printf("1..5\n");
	create(&source, argv[3], "source", FERRY_PORT_LOG_PROCESS);
	pthread_create(&thread, NULL, guest, &source);
	for (i = 0; i < total; i++) {
		if (i == WARM_UP)
			before = count();
		/* pagemap may not work here; then this only asks for it. */
		good += migrate(argv[1], argv[3], i % 3 == 1 && getenv("NO_PAGEMAP") ?
				"none" : trackers[i % 3]);
	}
	after = count();
	printf("%s 1 - all_migrations_worked # %d of %d\n", good == total ? "ok" : "not ok", good,
	       total);
	failed = good != total;
	failed |= verdict(2, "descriptor", before.fds, after.fds, 0);
	failed |= verdict(3, "thread", before.threads, after.threads, 0);
	failed |= verdict(4, "mapping", before.maps, after.maps, 0);
	failed |= verdict(5, "heap", before.heap, after.heap, HEAP_SLACK);
	fflush(stdout);
	_exit(failed);
}
