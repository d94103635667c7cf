// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * No write is lost: three writers in two processes, each through a view of its own, against
 * a loop of syncs, while something else happens to the pages (the variant).
 *
 * The tracker's word is believed: after each sync exactly the dirty pages are copied to a
 * shadow (shadow.h). A page that is written often hides a lost write behind the next one,
 * so everybody is stopped several times a second, one last sync is made, and then shadow
 * and file must be equal. Writers count their stores, each adds 1 to a word; where the
 * chaos does not destroy contents, the sum over the file is the number of stores.
 *
 * A store that faults because the chaos took the page away (SIGSEGV, SIGBUS) is retried by
 * returning from the handler: chaos always gives back what it took before it rests.
 */
#include "harness.h"
#include "direct.h"
#include "shadow.h"
#include "tracker.h"

#include <fcntl.h>
#include <linux/falloc.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

enum { WRITERS = 3, HOT = 32, DMA = 16, QUEUE = 8 };
/* Who looks for dirty pages shall not wait for three who write without end. */
enum { SYNC_NICE = -15, CHAOS_NICE = -5 };
#define DEADLINE_NS 60000000000ULL

/* Shared by the two processes. */
struct control {
	_Atomic int stop;
	_Atomic int pause;
	_Atomic int paused;
	_Atomic uint64_t stores[WRITERS];
	_Atomic uint64_t deeds;
	_Atomic int trouble;
};

struct scene {
	struct control *control;
	struct tracker t;
	struct shadow shadow;
	char *view[WRITERS];
	char *plain;
	uint64_t written;	/* pages that writers choose from */
	const struct chaos *chaos;
	struct direct direct;
	char *io;		/* mapping that a disk writes to */
	unsigned int refused;
};

struct chaos {
	uint64_t npages;
	int writers;		/* if not all */
	bool destroys;		/* contents: the sum is not that of the stores */
	bool dma;		/* the last DMA pages are for a disk */
	int (*start)(struct scene *s);
	int (*act)(struct scene *s, uint32_t *random);	/* 1: did something */
	int (*rest)(struct scene *s);			/* before each pause */
	void (*end)(struct scene *s);
};

static void on_fault(int sig)
{
	sched_yield();
}

static void rest_if_asked(struct control *c)
{
	if (!c->pause)
		return;
	c->paused++;
	while (c->pause && !c->stop)
		usleep(200);
	c->paused--;
}

static void write_for_ever(struct scene *s, int who)
{
	struct control *c = s->control;
	uint32_t random = (uint32_t)who * 77777 + 5;

	while (!c->stop) {
		rest_if_asked(c);
		for (int i = 0; i < 32; i++) {
			uint32_t r = random_next(&random);
			uint64_t page = r & 1 ? (r >> 1) % HOT % s->written : (r >> 1) % s->written;

			atomic_fetch_add((_Atomic uint64_t *)(s->view[who] + page * PAGE) +
					 random_next(&random) % 64, 1);
		}
		c->stores[who] += 32;
	}
}

static struct scene *scene;

static void *writer_main(void *arg)
{
	write_for_ever(scene, (int)(intptr_t)arg);
	return NULL;
}

static void *chaos_main(void *arg)
{
	struct scene *s = scene;
	uint32_t random = 99;
	int ret = 0;

	setpriority(PRIO_PROCESS, 0, CHAOS_NICE);
	while (!s->control->stop && ret >= 0) {
		if (s->control->pause && s->chaos->rest)
			ret = s->chaos->rest(s);
		rest_if_asked(s->control);
		if (ret >= 0)
			ret = s->chaos->act(s, &random);
		if (ret > 0)
			s->control->deeds++;
	}
	if (s->chaos->rest && ret >= 0)
		ret = s->chaos->rest(s);
	if (ret < 0)
		s->control->trouble = ret;
	/* Whoever waits for everybody to pause must not wait for this thread. */
	while (!s->control->stop)
		rest_if_asked(s->control);
	return NULL;
}

/* --- what can happen to pages ------------------------------------------------ */

static char *somewhere(struct scene *s, uint32_t *random, uint64_t npages)
{
	return s->view[0] + random_next(random) % (s->written - npages + 1) * PAGE;
}

static int rest_us(unsigned int us)
{
	usleep(us);
	return 1;
}

static int do_nothing(struct scene *s, uint32_t *random)
{
	return rest_us(1000);
}

static int do_swap(struct scene *s, uint32_t *random)
{
	/* Refused for a moment while the page is busy: nothing to worry about. */
	madvise(somewhere(s, random, 64), 64 * PAGE, MADV_PAGEOUT);
	return rest_us(500);
}

static int do_zap(struct scene *s, uint32_t *random)
{
	char *at = somewhere(s, random, 64);

	if (madvise(at, 64 * PAGE, MADV_DONTNEED))
		return -errno;
	if (random_next(random) % 4 == 0)
		madvise(at, 64 * PAGE, 23 /* MADV_POPULATE_WRITE */);
	return rest_us(300);
}

static int do_mprotect(struct scene *s, uint32_t *random)
{
	size_t bytes = s->t.npages * PAGE;
	int through = random_next(random) % 2 ? PROT_READ : PROT_READ | PROT_WRITE | PROT_EXEC;

	if (mprotect(s->view[0], bytes, through) ||
	    mprotect(s->view[0], bytes, PROT_READ | PROT_WRITE))
		return -errno;
	return rest_us(300);
}

static int do_migrate(struct scene *s, uint32_t *random)
{
	void *pages[128];
	int nodes[128], status[128], moved = 0;
	int node = (int)(random_next(random) % 2);
	uint64_t n = s->written < 128 ? s->written : 128;
	char *from = random_next(random) % 2 ? s->view[0] : somewhere(s, random, n);

	for (uint64_t i = 0; i < n; i++) {
		pages[i] = from + i * PAGE;
		nodes[i] = node;
	}
	if (syscall(SYS_move_pages, 0, n, pages, nodes, status, 4 /* MPOL_MF_MOVE_ALL */) < 0)
		return -errno;
	for (uint64_t i = 0; i < n; i++)
		moved += status[i] == node;
	return moved > 0;
}

static int do_punch(struct scene *s, uint32_t *random)
{
	off_t at = (off_t)(random_next(random) % (s->written - 8) * PAGE);

	if (random_next(random) % 2) {
		if (fallocate(s->t.memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at,
			      8 * (off_t)PAGE))
			return -errno;
	} else if (madvise(s->view[1] + at, 8 * PAGE, MADV_REMOVE)) {
		return -errno;
	}
	return rest_us(200);
}

static int do_truncate(struct scene *s, uint32_t *random)
{
	off_t whole = (off_t)(s->t.npages * PAGE);

	if (ftruncate(s->t.memfd, (off_t)(random_next(random) % s->t.npages * PAGE)))
		return -errno;
	usleep(100);
	if (ftruncate(s->t.memfd, whole))
		return -errno;
	return rest_us(1000);
}

/* Its stores are through the writers' own views, inherited. They cancel each other. */
static int do_fork(struct scene *s, uint32_t *random)
{
	uint32_t r = random_next(random);
	pid_t child = fork();
	int status;

	if (child < 0)
		return -errno;
	if (!child) {
		for (int i = 0; i < 64; i++) {
			char *at = s->view[i % 2] + random_next(&r) % s->written * PAGE + 8 * 100;

			atomic_fetch_add((_Atomic uint64_t *)at, 1);
			atomic_fetch_sub((_Atomic uint64_t *)at + 1, 1);
		}
		_exit(0);
	}
	return waitpid(child, &status, 0) == child && !status ? 1 : -ECHILD;
}

static int do_mremap(struct scene *s, uint32_t *random)
{
	size_t bytes = s->t.npages * PAGE;
	char *spare = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (spare == MAP_FAILED ||
	    mremap(s->view[0], bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, spare) != spare)
		return -errno;
	store(spare + random_next(random) % s->written * PAGE + PAGE - 1, 0);
	if (mremap(spare, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, s->view[0]) != s->view[0])
		return -errno;
	return rest_us(500);
}

/* Parts of a view are replaced by new views of the same part. */
static int do_split(struct scene *s, uint32_t *random)
{
	uint64_t page = random_next(random) % (s->written - 16);
	char *at = s->view[1] + page * PAGE;

	if (mmap(at, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, s->t.fd,
		 (off_t)(page * PAGE)) != at)
		return -errno;
	return rest_us(200);
}

static int do_collapse(struct scene *s, uint32_t *random)
{
	/* EAGAIN, EBUSY: while others hold pages; that it ever works is not promised. */
	if (!madvise(s->plain, s->written * PAGE, MADV_COLLAPSE))
		return rest_us(2000);
	if (s->refused++ % 64 == 0)
		printf("#   collapse: %s\n", strerror(errno));
	usleep(500);
	return 0;
}

static int start_collapse(struct scene *s)
{
	return text_write("/sys/kernel/mm/transparent_hugepage/shmem_enabled", "advise");
}

static int start_direct(struct scene *s)
{
	int ret = direct_fill(DISK_FAST);

	return ret ? ret : direct_make(&s->direct, DIRECT_AIO, DISK_FAST, NULL, 0);
}

static int start_uring(struct scene *s)
{
	int ret = direct_fill(DISK_FAST);

	return ret ? ret : direct_make(&s->direct, DIRECT_URING, DISK_FAST, NULL, 0);
}

static int start_fixed(struct scene *s)
{
	int ret = direct_fill(DISK_FAST);

	/* The kernel refuses to register a view; a VMM has done so before it was switched. */
	s->io = s->plain;
	if (!ret)
		ret = tracker_stop(&s->t);
	if (!ret)
		ret = direct_make(&s->direct, DIRECT_URING_FIXED, DISK_FAST,
				  s->io + s->written * PAGE, DMA * PAGE);
	return ret ? ret : tracker_start(&s->t);
}

static int start_read(struct scene *s)
{
	int ret = direct_fill(DISK_FAST);

	return ret ? ret : direct_make(&s->direct, DIRECT_READ, DISK_FAST, NULL, 0);
}

/* A few requests at once, one for a page; so each page has a new block soon again. */
static int do_direct(struct scene *s, uint32_t *random)
{
	int left = QUEUE, ret;

	for (int i = 0; i < QUEUE; i++) {
		uint64_t page = s->written + (uint64_t)(i * DMA / QUEUE) + random_next(random) % 2;

		ret = direct_submit(&s->direct, s->io + page * PAGE,
				    random_next(random) % DIRECT_BLOCKS);
		if (ret)
			return ret;
	}
	while (s->direct.way != DIRECT_READ && left > 0) {
		ret = direct_reap(&s->direct, true);
		if (ret < 0)
			return ret;
		left -= ret;
	}
	return 1;
}

static void end_direct(struct scene *s)
{
	direct_end(&s->direct);
}

FIXTURE(lost)
{
	struct scene s;
	struct ferry_query query;
};

FIXTURE_VARIANT(lost)
{
	struct chaos chaos;
};

#define VARIANT(name_, ...) \
	FIXTURE_VARIANT_ADD(lost, name_) { .chaos = { __VA_ARGS__ } }

VARIANT(quiet, .npages = 160, .act = do_nothing);
VARIANT(few, .npages = 40, .act = do_nothing);
VARIANT(swap, .npages = 256, .act = do_swap);
VARIANT(one, .npages = 8, .writers = 1, .act = do_nothing);
VARIANT(zap, .npages = 160, .act = do_zap);
VARIANT(mprotect, .npages = 160, .act = do_mprotect);
VARIANT(migrate, .npages = 128, .act = do_migrate);
VARIANT(migrate_one, .npages = 128, .writers = 1, .act = do_migrate);
VARIANT(punch, .npages = 160, .act = do_punch, .destroys = true);
VARIANT(truncate, .npages = 160, .act = do_truncate, .destroys = true);
VARIANT(fork, .npages = 160, .act = do_fork);
VARIANT(mremap, .npages = 160, .act = do_mremap);
VARIANT(split, .npages = 160, .act = do_split);
VARIANT(collapse, .npages = 1024, .start = start_collapse, .act = do_collapse);
VARIANT(read, .npages = 128, .dma = true, .destroys = true, .start = start_read,
	.act = do_direct, .end = end_direct);
VARIANT(aio, .npages = 128, .dma = true, .destroys = true, .start = start_direct,
	.act = do_direct, .end = end_direct);
VARIANT(aio_only, .npages = 32, .writers = 1, .dma = true, .destroys = true,
	.start = start_direct, .act = do_direct, .end = end_direct);
VARIANT(uring, .npages = 128, .dma = true, .destroys = true, .start = start_uring,
	.act = do_direct, .end = end_direct);
VARIANT(fixed, .npages = 128, .dma = true, .destroys = true, .start = start_fixed,
	.act = do_direct, .end = end_direct);

FIXTURE_SETUP(lost)
{
	struct scene *s = &self->s;
	struct sigaction action = { .sa_handler = on_fault, .sa_flags = SA_NODEFER };

	sigaction(SIGSEGV, &action, NULL);
	sigaction(SIGBUS, &action, NULL);
	scene = s;
	s->chaos = &variant->chaos;
	s->control = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, s->control);
	ASSERT_EQ(0, ferry_query(&self->query));
	ASSERT_EQ(0, tracker_make(&s->t, variant->chaos.npages));
	for (int i = 0; i < WRITERS; i++) {
		s->view[i] = tracker_view(&s->t);
		ASSERT_NE(NULL, s->view[i]);
	}
	s->plain = file_map_huge(s->t.memfd, s->t.npages);
	ASSERT_NE(NULL, s->plain);
	s->io = s->view[0];
	s->written = s->t.npages - (variant->chaos.dma ? DMA : 0);
	ASSERT_EQ(0, shadow_make(&s->shadow, s->t.memfd, s->t.npages));
	if (variant->chaos.start)
		ASSERT_EQ(0, variant->chaos.start(s));
}

FIXTURE_TEARDOWN(lost)
{
	if (self->s.chaos->end)
		self->s.chaos->end(&self->s);
	shadow_end(&self->s.shadow);
	tracker_end(&self->s.t);
}

static int wait_for_paused(struct control *c, int n)
{
	uint64_t end = clock_ns() + DEADLINE_NS;

	while (c->paused != n) {
		if (clock_ns() > end)
			return -ETIMEDOUT;
		usleep(100);
	}
	return 0;
}

/* Writers 0 and 1 are threads of this process, 2 is a process. */
static int writers_start(struct scene *s, pthread_t *threads, pid_t *child)
{
	int n = s->chaos->writers ?: WRITERS;

	*child = -1;
	if (n == WRITERS) {
		*child = fork();
		if (*child < 0)
			return -errno;
		if (!*child) {
			write_for_ever(s, 2);
			_exit(0);
		}
	}
	for (intptr_t i = 0; i < n && i < 2; i++)
		if (pthread_create(&threads[i], NULL, writer_main, (void *)i))
			return -EAGAIN;
	return n;
}

TEST_F(lost, no_write_is_lost)
{
	struct scene *s = &self->s;
	struct control *c = s->control;
	pthread_t threads[WRITERS];
	uint64_t end = clock_ns() + harness_seconds(2) * 1000000000ULL, stores = 0, where = 0;
	unsigned int rounds = 0, stops = 0;
	int writers, status = 0;
	long stale = 0;
	pid_t child;

	writers = writers_start(s, threads, &child);
	ASSERT_LT(0, writers);
	ASSERT_EQ(0, pthread_create(&threads[2], NULL, chaos_main, NULL));
	setpriority(PRIO_PROCESS, 0, SYNC_NICE);
	while ((clock_ns() < end || !c->deeds || stops < 2) && !stale && !c->trouble) {
		uint64_t next = clock_ns() + 120000000ULL;

		do {
			ASSERT_EQ(0, shadow_follow(&s->shadow, &s->t, rounds++));
		} while (clock_ns() < next);
		c->pause = 1;
		ASSERT_EQ(0, wait_for_paused(c, writers + 1));
		ASSERT_EQ(0, shadow_follow(&s->shadow, &s->t, rounds++));
		stale = shadow_stale(&s->shadow, &where);
		stops++;
		c->pause = 0;
		ASSERT_EQ(0, wait_for_paused(c, 0));
	}
	c->stop = 1;
	for (int i = 0; i < WRITERS; i++)
		if (i == 2 || i < writers)
			pthread_join(threads[i], NULL);
	if (child > 0) {
		ASSERT_EQ(child, waitpid(child, &status, 0));
	}
	EXPECT_EQ(0, status);
	for (int i = 0; i < writers; i++) {
		EXPECT_LT(0, c->stores[i]);
		stores += c->stores[i];
	}
	printf("#   %u syncs, %u stops, %llu stores, %llu deeds\n", rounds, stops,
	       (unsigned long long)stores, (unsigned long long)c->deeds);
	EXPECT_EQ(0, stale) {
		TH_LOG("stale pages, the first is %llu", (unsigned long long)where);
	}
	EXPECT_EQ(0, c->trouble);
	if (!s->chaos->destroys)
		EXPECT_EQ(stores, shadow_sum(&s->shadow));
}

HARNESS_MAIN
