// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The fault thread and the placing of pages.
 *
 * The fault thread reads what every userfaultfd says and looks at the page's state:
 *
 *   placed      map it, which wakes. A page that is a hole now (never written, sent as
 *               zeros, or given back by the balloon) gets a page of zeros. WAKE alone would
 *               make the thread fault again, for ever.
 *   receiving   nothing: whoever brings it maps it when it is complete, and that wakes.
 *   absent      ask for it, once.
 *
 * Who brings a page claims it, writes it, and calls ferry_fault_placed(): first the state,
 * then the mapping. In this order, for a fault that finds "receiving" may have been read
 * before the mapping, which wakes it, but none that is read after the mapping finds it. (A page
 * table entry can be dropped again by reclaim at any time.)
 *
 * A page of zeros is not mapped when it arrives, or sparse RAM would be allocated. Who
 * waits for it is only woken, faults again and finds "placed". Between the fault thread,
 * which notes the wait and then looks at the state once more, and the placer, which sets the state
 * and then looks for a wait, one sees the other: both do it under the lock.
 *
 * A huge page is all of this as one: it is absent while any of its 4 KiB pages is, and is
 * shown when the last of them was placed, by whoever brought that. Until then nothing of it is mapped.
 */
#include "fault/serve.h"

#include <errno.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/io.h"
#include "base/log.h"
#include "base/sched.h"
#include "fault/waits.h"
#include "ram/sparse.h"

/* One step of the sweep; the VMM may wait for its page tables that long. */
#define SWEEP_PAGES 512u

/* Faults read in one go. */
#define MESSAGES 16

struct ferry_fault {
	const struct ferry_ram *ram;
	struct ferry_fault_pages *pages;
	struct ferry_fault_mapper mappers[FERRY_FAULT_MAX_MAPPERS];
	unsigned int n_mappers;
	void (*want)(void *ctx, unsigned int block, uint64_t page);
	void *ctx;
	pthread_t thread;
	int quit_fd;

	pthread_mutex_t lock;
	struct ferry_fault_waits waits; /* under lock */
};

static uint64_t unit_pages(const struct ferry_fault *f, unsigned int block)
{
	return ferry_ram_unit_pages(&f->ram->blocks[block]);
}

static enum ferry_page_state unit_state(const struct ferry_fault *f, unsigned int block,
					uint64_t page)
{
	return ferry_fault_pages_unit(f->pages, block, page, unit_pages(f, block));
}

/* Return: 0 and where @addr of @m is in the RAM (a huge page's begin), or -EFAULT. */
static int find_page(const struct ferry_fault *f, const struct ferry_fault_mapper *m,
		     uint64_t addr, unsigned int *block, uint64_t *page)
{
	unsigned int i;

	for (i = 0; i < f->ram->count; i++) {
		if (!m->addr[i] || addr < m->addr[i] ||
		    addr - m->addr[i] >= f->ram->blocks[i].size_bytes)
			continue;
		*block = i;
		*page = (addr - m->addr[i]) >> FERRY_PAGE_SHIFT;
		*page -= *page % unit_pages(f, i);
		return 0;
	}
	return -EFAULT;
}

/* The page is here: show it to the one who faulted. */
static void show(struct ferry_fault *f, const struct ferry_fault_mapper *m, unsigned int block,
		 uint64_t page)
{
	int r = ferry_fault_uffd_map(m, block, page, unit_pages(f, block), true);

	/* A process that has ended, or unmapped the page, waits for nothing. */
	if (r && r != -ESRCH && r != -ENOENT)
		ferry_log_warn("page %llu of memory block '%s' cannot be shown to process %d: %s",
			       (unsigned long long)page, f->ram->blocks[block].name, (int)m->pid,
			       strerror(-r));
}

static void on_fault(struct ferry_fault *f, const struct ferry_fault_mapper *m,
		     const struct uffd_msg *msg)
{
	enum ferry_page_state state;
	unsigned int block = 0;
	uint64_t page = 0;
	bool first = false;

	if (msg->event != UFFD_EVENT_PAGEFAULT ||
	    find_page(f, m, msg->arg.pagefault.address, &block, &page)) {
		ferry_log_warn("userfaultfd of process %d: unexpected event 0x%x", (int)m->pid,
			       msg->event);
		return;
	}
	pthread_mutex_lock(&f->lock);
	f->waits.stats.faults++;
	state = unit_state(f, block, page);
	if (state != FERRY_PAGE_PLACED) {
		first = ferry_fault_waits_add(&f->waits, block, page,
					      (pid_t)msg->arg.pagefault.feat.ptid,
					      ferry_clock_ns());
		f->waits.stats.wanted += state == FERRY_PAGE_ABSENT;
	}
	pthread_mutex_unlock(&f->lock);
	if (state == FERRY_PAGE_PLACED)
		show(f, m, block, page);
	else if (state == FERRY_PAGE_ABSENT && first)
		f->want(f->ctx, block, page);
}

/* Return: false when this one will say nothing any more. */
static bool hear(struct ferry_fault *f, const struct ferry_fault_mapper *m)
{
	struct uffd_msg messages[MESSAGES];
	ssize_t i, n = read(m->uffd, messages, sizeof(messages));

	if (n < 0)
		return errno == EAGAIN || errno == EINTR;
	for (i = 0; i < n / (ssize_t)sizeof(messages[0]); i++)
		on_fault(f, m, &messages[i]);
	return n > 0;
}

static void *serve(void *arg)
{
	struct ferry_fault *f = arg;
	struct pollfd fds[FERRY_FAULT_MAX_MAPPERS + 1];
	unsigned int i;

	ferry_sched_prompt();
	for (i = 0; i < f->n_mappers; i++)
		fds[i] = (struct pollfd){ .fd = f->mappers[i].uffd, .events = POLLIN };
	fds[f->n_mappers] = (struct pollfd){ .fd = f->quit_fd, .events = POLLIN };
	while (!fds[f->n_mappers].revents) {
		if (poll(fds, f->n_mappers + 1, -1) < 0)
			continue;
		for (i = 0; i < f->n_mappers; i++) {
			/* POLLHUP or POLLERR: its process has ended. */
			if ((fds[i].revents & POLLIN) ? !hear(f, &f->mappers[i]) : fds[i].revents)
				fds[i].fd = -1;
		}
	}
	return NULL;
}

static void disarm(struct ferry_fault *f, unsigned int n)
{
	while (n--)
		ferry_fault_uffd_disarm(&f->mappers[n], f->ram);
}

/* Arm all, empty what is mapped, assert that it is. On failure nothing stays armed. */
static int arm(struct ferry_fault *f, bool adopted,
	       int (*zap)(void *ctx, struct ferry_error *err), struct ferry_error *err)
{
	unsigned int i;
	int r = 0;

	for (i = 0; i < f->n_mappers; i++) {
		r = ferry_fault_uffd_arm(&f->mappers[i], f->ram, adopted, err);
		if (r)
			break;
		ferry_io_nonblock(f->mappers[i].uffd, 1);
	}
	if (adopted)
		return r;
	if (!r && zap)
		r = zap(f->ctx, err);
	if (r) {
		disarm(f, i);
		return r;
	}
	for (i = 0; i < f->n_mappers && !r; i++)
		r = ferry_fault_uffd_assert_empty(&f->mappers[i], f->ram, err);
	if (r)
		disarm(f, f->n_mappers);
	return r;
}

/* Faults that an earlier worker heard are not told again: wake all, who then fault again. */
static void wake_all(struct ferry_fault *f)
{
	unsigned int i, b;

	for (i = 0; i < f->n_mappers; i++)
		for (b = 0; b < f->ram->count; b++)
			ferry_fault_uffd_wake(&f->mappers[i], b, 0,
					      ferry_ram_block_pages(&f->ram->blocks[b]));
}

int ferry_fault_start(const struct ferry_fault_params *params,
		      int (*zap)(void *ctx, struct ferry_error *err), struct ferry_fault **out,
		      struct ferry_error *err)
{
	struct ferry_fault *f = calloc(1, sizeof(*f));
	unsigned int i;
	int r;

	*out = NULL;
	if (!f)
		return ferry_error_set(err, ENOMEM, "no memory to serve page faults");
	if (params->n_mappers > FERRY_FAULT_MAX_MAPPERS) {
		r = ferry_error_set(err, E2BIG, "%u processes map the guest's memory, %u can be "
				    "served", params->n_mappers, FERRY_FAULT_MAX_MAPPERS);
		goto err_free;
	}
	f->ram = params->ram;
	f->pages = params->pages;
	f->n_mappers = params->n_mappers;
	memcpy(f->mappers, params->mappers, params->n_mappers * sizeof(f->mappers[0]));
	for (i = 0; i < f->n_mappers; i++)
		f->mappers[i].ram = f->ram;
	f->want = params->want;
	f->ctx = params->ctx;
	pthread_mutex_init(&f->lock, NULL);
	f->quit_fd = eventfd(0, EFD_CLOEXEC);
	if (f->quit_fd < 0) {
		r = ferry_error_set(err, errno, "eventfd: %s", strerror(errno));
		goto err_lock;
	}
	r = arm(f, params->adopted, zap, err);
	if (r)
		goto err_quit;
	r = -pthread_create(&f->thread, NULL, serve, f);
	if (r) {
		ferry_error_set(err, -r, "cannot start the fault thread: %s", strerror(-r));
		goto err_disarm;
	}
	if (params->adopted)
		wake_all(f);
	*out = f;
	return 0;

err_disarm:
	if (!params->adopted)
		disarm(f, f->n_mappers);
err_quit:
	close(f->quit_fd);
err_lock:
	pthread_mutex_destroy(&f->lock);
err_free:
	free(f);
	return r;
}

/*
 * (locked) Of pages that have just been placed, those that can be shown: huge pages of which
 * none lacks. One begins or ends in a part that another brings perhaps.
 */
static void whole_units(const struct ferry_fault *f, unsigned int block, uint64_t *first,
			uint64_t *pages)
{
	uint64_t unit = unit_pages(f, block);
	uint64_t begin = *first - *first % unit;
	uint64_t end = (*first + *pages + unit - 1) / unit * unit;

	if (unit_state(f, block, begin) != FERRY_PAGE_PLACED)
		begin += unit;
	if (begin < end && unit_state(f, block, end - unit) != FERRY_PAGE_PLACED)
		end -= unit;
	*first = begin;
	*pages = begin < end ? end - begin : 0;
}

int ferry_fault_placed(struct ferry_fault *f, unsigned int block, uint64_t first, uint64_t pages,
		       bool zero)
{
	/* What else is in a huge page, zeros or not, others have brought. */
	bool huge = ferry_ram_is_huge(&f->ram->blocks[block]);
	bool waited;
	unsigned int i;
	int r = 0;

	pthread_mutex_lock(&f->lock);
	ferry_fault_pages_place(f->pages, block, first, pages);
	if (huge)
		whole_units(f, block, &first, &pages);
	waited = ferry_fault_waits_any(&f->waits, block, first, pages);
	pthread_mutex_unlock(&f->lock);
	for (i = 0; i < f->n_mappers && !r && pages; i++) {
		if (huge || !zero)
			r = ferry_fault_uffd_map(&f->mappers[i], block, first, pages, false);
		else if (waited)
			r = ferry_fault_uffd_wake(&f->mappers[i], block, first, pages);
		/* One process of several may end; the VMM's end is noticed by who talks to it. */
		if (r == -ESRCH && i)
			r = 0;
	}
	/* Not before: we may have lost the processor in between. */
	if (waited) {
		pthread_mutex_lock(&f->lock);
		ferry_fault_waits_end(&f->waits, block, first, pages, ferry_clock_ns());
		pthread_mutex_unlock(&f->lock);
	}
	return r;
}

void ferry_fault_ask_again(struct ferry_fault *f)
{
	struct ferry_fault_wait *list;
	unsigned int i, count;

	pthread_mutex_lock(&f->lock);
	count = f->waits.count;
	list = malloc((count ? count : 1) * sizeof(*list));
	if (list)
		memcpy(list, f->waits.list, count * sizeof(*list));
	pthread_mutex_unlock(&f->lock);
	for (i = 0; list && i < count; i++)
		if (unit_state(f, list[i].block, list[i].page) == FERRY_PAGE_ABSENT)
			f->want(f->ctx, list[i].block, list[i].page);
	free(list);
}

/* Map the placed pages of a stretch that holds data. */
static int sweep_stretch(struct ferry_fault *f, unsigned int block, uint64_t page, uint64_t end,
			 const int *stop)
{
	uint64_t unit = unit_pages(f, block);
	unsigned int i;
	int r = 0;

	while (page < end && !r && !(stop && __atomic_load_n(stop, __ATOMIC_RELAXED))) {
		uint64_t n = 0;

		while (page < end && unit_state(f, block, page) != FERRY_PAGE_PLACED)
			page += unit;
		while (page + n < end && n < SWEEP_PAGES &&
		       unit_state(f, block, page + n) == FERRY_PAGE_PLACED)
			n += unit;
		for (i = 0; n && i < f->n_mappers && !r; i++)
			r = ferry_fault_uffd_map(&f->mappers[i], block, page, n, false);
		page += n;
	}
	return r == -ESRCH ? 0 : r;
}

int ferry_fault_sweep(struct ferry_fault *f, const int *stop, struct ferry_error *err)
{
	unsigned int b;
	int r = 0;

	for (b = 0; b < f->ram->count && r >= 0; b++) {
		const struct ferry_ram_block *block = &f->ram->blocks[b];
		uint64_t page = 0, pages, end = ferry_ram_block_pages(block);

		while ((r = ferry_sparse_next(block, &page, &pages, end)) > 0) {
			r = sweep_stretch(f, b, page, page + pages, stop);
			if (r < 0)
				break;
			page += pages;
		}
		if (r < 0)
			ferry_error_set(err, -r, "mapping the pages of memory block '%s' that are "
					"here: %s", block->name, strerror(-r));
	}
	return r < 0 ? r : 0;
}

void ferry_fault_stats(struct ferry_fault *f, struct ferry_fault_stats *stats)
{
	pthread_mutex_lock(&f->lock);
	*stats = f->waits.stats;
	stats->waiting = f->waits.count;
	stats->p50_ns = ferry_fault_waits_percentile(&f->waits, 50);
	stats->p99_ns = ferry_fault_waits_percentile(&f->waits, 99);
	pthread_mutex_unlock(&f->lock);
}

static int longest_first(const void *a, const void *b)
{
	uint64_t x = ((const struct ferry_fault_thread *)a)->wait_ns;
	uint64_t y = ((const struct ferry_fault_thread *)b)->wait_ns;

	return x < y ? 1 : x > y ? -1 : 0;
}

unsigned int ferry_fault_threads(struct ferry_fault *f, struct ferry_fault_thread *threads,
				 unsigned int max)
{
	unsigned int n;

	pthread_mutex_lock(&f->lock);
	n = f->waits.n_threads;
	if (n)
		qsort(f->waits.threads, n, sizeof(*threads), longest_first);
	memcpy(threads, f->waits.threads, (n < max ? n : max) * sizeof(*threads));
	pthread_mutex_unlock(&f->lock);
	return n;
}

void ferry_fault_stop(struct ferry_fault *f, bool all_placed)
{
	uint64_t one = 1;

	if (!f)
		return;
	if (write(f->quit_fd, &one, sizeof(one)) < 0)
		ferry_log_warn("cannot tell the fault thread to end: %s", strerror(errno));
	pthread_join(f->thread, NULL);
	if (all_placed)
		disarm(f, f->n_mappers);
	close(f->quit_fd);
	pthread_mutex_destroy(&f->lock);
	ferry_fault_waits_free(&f->waits);
	free(f);
}
