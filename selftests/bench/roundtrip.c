// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What a page fault over a line cannot be faster than: one small request, one page back, and
 * UFFDIO_CONTINUE, all by threads that have nothing else to do and, as ferry's, ask for short
 * turns of the processor.
 *
 *	roundtrip serve PORT		answer until the first connection ends
 *	roundtrip ask PORT COUNT	prints p50 and p99 in ns of round trip, of CONTINUE, and of
 *					both with what is between, and how many there were
 *	roundtrip beside PORT COUNT	the same, one each millisecond, until its input ends or
 *					there were COUNT: beside something else
 *	roundtrip delay PORT TO US	a relay that keeps everything back for so long, each way
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define REQUEST_BYTES 20
#define ANSWER_BYTES (56 + 4096)
#define PAGE 4096ul

/* As ferry_sched_prompt() does. */
static void prompt(void)
{
	struct {
		uint32_t size, policy;
		uint64_t flags;
		int32_t nice;
		uint32_t priority;
		uint64_t runtime_ns, deadline_ns, period_ns;
	} attr = { .size = 48, .runtime_ns = 100000 };

	if (syscall(SYS_sched_setattr, 0, &attr, 0))
		perror("sched_setattr");
}

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static void __attribute__((noreturn)) die(const char *what)
{
	perror(what);
	exit(1);
}

static int all(int fd, char *buf, size_t len, int sends)
{
	while (len) {
		ssize_t n = sends ? send(fd, buf, len, MSG_NOSIGNAL) : recv(fd, buf, len, 0);

		if (n <= 0)
			return -1;
		buf += n;
		len -= (size_t)n;
	}
	return 0;
}

static struct sockaddr_in address(const char *port)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port)) };

	a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	return a;
}

static int listen_at(const char *port)
{
	struct sockaddr_in a = address(port);
	int on = 1, fd = socket(AF_INET, SOCK_STREAM, 0);

	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (bind(fd, (struct sockaddr *)&a, sizeof(a)) || listen(fd, 64))
		die("listen");
	printf("ready\n");
	fflush(stdout);
	return fd;
}

static int plain(int fd)
{
	int on = 1;

	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	return fd;
}

static int connect_to(const char *port)
{
	struct sockaddr_in a = address(port);
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	if (connect(fd, (struct sockaddr *)&a, sizeof(a)))
		die("connect");
	return plain(fd);
}

static int serve(const char *port)
{
	static char request[REQUEST_BYTES], answer[ANSWER_BYTES];
	int fd = plain(accept(listen_at(port), NULL, NULL));

	prompt();
	while (!all(fd, request, sizeof(request), 0) && !all(fd, answer, sizeof(answer), 1))
		;
	return 0;
}

/* ---- the asking side ---- */

struct shown {
	int uffd, memfd;
	char *map;
};

static void show_begin(struct shown *s, size_t pages)
{
	struct uffdio_api api = { .api = UFFD_API,
				  .features = UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM };
	struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_MISSING |
					       UFFDIO_REGISTER_MODE_MINOR };

	s->memfd = memfd_create("roundtrip", MFD_CLOEXEC);
	if (s->memfd < 0 || ftruncate(s->memfd, (off_t)(pages * PAGE)))
		die("memfd");
	s->map = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, s->memfd, 0);
	s->uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
	reg.range.start = (uintptr_t)s->map;
	reg.range.len = pages * PAGE;
	if (s->uffd < 0 || ioctl(s->uffd, UFFDIO_API, &api) ||
	    ioctl(s->uffd, UFFDIO_REGISTER, &reg))
		die("userfaultfd");
}

static int by_size(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

enum { TRIP, SHOW, WHOLE, TIMES };

/* Page @i is asked for, comes and is shown. */
static void one(int fd, const struct shown *s, size_t i, uint64_t *times[TIMES])
{
	struct uffdio_continue c = { .range = { (uintptr_t)s->map + i * PAGE, PAGE } };
	static char request[REQUEST_BYTES], answer[ANSWER_BYTES];
	uint64_t begin = now_ns(), came, written;

	if (all(fd, request, sizeof(request), 1) || all(fd, answer, sizeof(answer), 0))
		die("line");
	came = now_ns();
	if (pwrite(s->memfd, answer, PAGE, (off_t)(i * PAGE)) != (ssize_t)PAGE)
		die("pwrite");
	written = now_ns();
	if (ioctl(s->uffd, UFFDIO_CONTINUE, &c))
		die("UFFDIO_CONTINUE");
	times[WHOLE][i] = now_ns() - begin;
	times[TRIP][i] = came - begin;
	times[SHOW][i] = now_ns() - written;
}

/* Return: false when the input has ended. */
static int pause_ms(int ms)
{
	struct pollfd input = { .fd = 0, .events = POLLIN };

	return poll(&input, 1, ms) == 0;
}

static int ask(const char *port, size_t count, int beside)
{
	uint64_t *times[TIMES];
	int fd = connect_to(port);
	struct shown s;
	size_t i;

	for (i = 0; i < TIMES; i++)
		times[i] = calloc(count, sizeof(*times[i]));
	show_begin(&s, count);
	prompt();
	for (i = 0; i < count && (!beside || pause_ms(1)); i++)
		one(fd, &s, i, times);
	count = i;
	for (i = 0; i < TIMES; i++) {
		qsort(times[i], count, sizeof(*times[i]), by_size);
		printf("%llu %llu ", count ? (unsigned long long)times[i][count / 2] : 0,
		       count ? (unsigned long long)times[i][count * 99 / 100] : 0);
	}
	printf("%zu\n", count);
	return 0;
}

/* ---- the relay ---- */

/* One way of a connection: a reader notes when bytes came, a writer sends them when it is time. */
#define PIECES 16u /* what waits in the relay is part of the delay: a megabyte, as in a switch */
#define PIECE_BYTES 65536u

struct way {
	int from, to;
	uint64_t delay_ns;
	pthread_mutex_t lock;
	pthread_cond_t changed;
	struct { uint64_t due_ns; uint32_t bytes; char *data; } ring[PIECES];
	unsigned int head, count;
	int ended;
};

static void *relay_read(void *arg)
{
	struct way *w = arg;

	for (;;) {
		char *data = malloc(PIECE_BYTES);
		ssize_t n = recv(w->from, data, PIECE_BYTES, 0);
		unsigned int at;

		pthread_mutex_lock(&w->lock);
		while (w->count == PIECES)
			pthread_cond_wait(&w->changed, &w->lock);
		if (n <= 0) {
			free(data);
			w->ended = 1;
		} else {
			at = (w->head + w->count++) % PIECES;
			w->ring[at].data = data;
			w->ring[at].bytes = (uint32_t)n;
			w->ring[at].due_ns = now_ns() + w->delay_ns;
		}
		pthread_cond_broadcast(&w->changed);
		pthread_mutex_unlock(&w->lock);
		if (n <= 0)
			return NULL;
	}
}

static void *relay_write(void *arg)
{
	struct way *w = arg;

	prctl(PR_SET_TIMERSLACK, 1);
	for (;;) {
		struct timespec due;
		uint32_t bytes;
		char *data;
		int r;

		pthread_mutex_lock(&w->lock);
		while (!w->count && !w->ended)
			pthread_cond_wait(&w->changed, &w->lock);
		if (!w->count) {
			pthread_mutex_unlock(&w->lock);
			shutdown(w->to, SHUT_WR);
			return NULL;
		}
		data = w->ring[w->head].data;
		bytes = w->ring[w->head].bytes;
		due.tv_sec = (time_t)(w->ring[w->head].due_ns / 1000000000);
		due.tv_nsec = (long)(w->ring[w->head].due_ns % 1000000000);
		pthread_mutex_unlock(&w->lock);
		clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &due, NULL);
		r = all(w->to, data, bytes, 1);
		free(data);
		if (r)
			shutdown(w->from, SHUT_RD);
		pthread_mutex_lock(&w->lock);
		w->head = (w->head + 1) % PIECES;
		w->count--;
		pthread_cond_broadcast(&w->changed);
		pthread_mutex_unlock(&w->lock);
	}
}

static void start_way(int from, int to, uint64_t delay_ns)
{
	struct way *w = calloc(1, sizeof(*w));
	pthread_t thread;

	w->from = from;
	w->to = to;
	w->delay_ns = delay_ns;
	pthread_mutex_init(&w->lock, NULL);
	pthread_cond_init(&w->changed, NULL);
	if (pthread_create(&thread, NULL, relay_read, w) ||
	    pthread_create(&thread, NULL, relay_write, w))
		die("threads");
}

static int delay(const char *port, const char *to, uint64_t delay_ns)
{
	int listener = listen_at(port), fd, other;

	while ((fd = accept(listener, NULL, NULL)) >= 0) {
		other = connect_to(to);
		start_way(plain(fd), other, delay_ns);
		start_way(other, fd, delay_ns);
	}
	return 1;
}

int main(int argc, char **argv)
{
	if (argc == 3 && !strcmp(argv[1], "serve"))
		return serve(argv[2]);
	if (argc == 4 && !strcmp(argv[1], "ask") && atoi(argv[3]) > 0)
		return ask(argv[2], (size_t)atoi(argv[3]), 0);
	if (argc == 4 && !strcmp(argv[1], "beside") && atoi(argv[3]) > 0)
		return ask(argv[2], (size_t)atoi(argv[3]), 1);
	if (argc == 5 && !strcmp(argv[1], "delay"))
		return delay(argv[2], argv[3], strtoull(argv[4], NULL, 10) * 1000);
	fprintf(stderr, "usage: roundtrip serve PORT | (ask|beside) PORT COUNT | delay PORT TO US\n");
	return 2;
}
