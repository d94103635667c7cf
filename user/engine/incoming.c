// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Postcopy at the destination.
 *
 * The guest runs here while pages are missing. Four kinds of threads take part, and none
 * of them waits for another:
 *
 *   fault thread      hears who touches a missing page and asks the source for it (want())
 *   channels          the multifd pool and the line (the fault channel, a pool of one): each
 *                     takes in pages, claims them, writes them to the memory file, shows them
 *   helper            tells the network, maps what precopy brought, so that it does not fault
 *   migration thread  frames of the main channel; never touches guest memory
 *
 * The VMM's monitor hangs while a vCPU waits for a page, so nothing here talks to it between
 * listen() and end(), but for loading and starting the guest (by the migration thread, while
 * the channels serve) and the helper.
 */
#include "engine/incoming.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/io.h"
#include "base/log.h"
#include "fault/uffd.h"
#include "ram/hugetlb.h"

static const char *const step_names[] = {
	[FERRY_INCOMING_NONE] = "none",		  [FERRY_INCOMING_ADVISE] = "advise",
	[FERRY_INCOMING_DISCARD] = "discard",	  [FERRY_INCOMING_LISTENING] = "listening",
	[FERRY_INCOMING_RUNNING] = "running",	  [FERRY_INCOMING_END] = "end",
};
_Static_assert(sizeof(step_names) / sizeof(step_names[0]) == FERRY_INCOMING_STEPS,
	       "every step has a name");

/* Loading device state, and what became of it. */
enum { LOAD_NONE, LOAD_RUNS, LOAD_VOID };

static enum ferry_incoming_step step_now(const struct ferry_incoming *in)
{
	return __atomic_load_n(&in->step, __ATOMIC_ACQUIRE);
}

static int step_error(const struct ferry_incoming *in, const char *frame, struct ferry_error *err)
{
	return ferry_error_set(err, EPROTO, "the source sent %s in incoming state %s", frame,
			       step_names[step_now(in)]);
}

/* From @from to @to, or an error that names @frame. */
static int step_to(struct ferry_incoming *in, enum ferry_incoming_step from,
		   enum ferry_incoming_step to, const char *frame, struct ferry_error *err)
{
	enum ferry_incoming_step expected = from;

	if (__atomic_compare_exchange_n(&in->step, &expected, to, false, __ATOMIC_ACQ_REL,
					__ATOMIC_ACQUIRE))
		return 0;
	return step_error(in, frame, err);
}

/* ---- the sink of all channels ---- */

static uint64_t sink_claim(void *ctx, unsigned int block, uint64_t first, uint64_t pages)
{
	struct ferry_incoming *in = ctx;

	return ferry_fault_pages_claim(&in->pages, block, first, pages);
}

static uint64_t sink_skip(void *ctx, unsigned int block, uint64_t first, uint64_t pages)
{
	struct ferry_incoming *in = ctx;

	return ferry_fault_pages_skip(&in->pages, block, first, pages);
}

static void sink_unclaim(void *ctx, unsigned int block, uint64_t first, uint64_t pages)
{
	struct ferry_incoming *in = ctx;

	ferry_fault_pages_unclaim(&in->pages, block, first, pages);
}

static void wake(struct ferry_incoming *in)
{
	uint64_t one = 1;

	if (write(in->wake_fd, &one, sizeof(one)) < 0)
		ferry_log_debug("nobody to wake");
}

static int sink_placed(void *ctx, unsigned int block, uint64_t first, uint64_t pages, bool zero)
{
	struct ferry_incoming *in = ctx;
	int r = ferry_fault_placed(in->fault, block, first, pages, zero);

	if (!ferry_fault_pages_missing(&in->pages)) {
		__atomic_store_n(&in->stop, 1, __ATOMIC_RELAXED);
		wake(in);
	}
	return r;
}

static void want_run(struct ferry_incoming *in, unsigned int block, uint64_t page, uint32_t pages)
{
	if (in->ask) {
		in->ask(in->ask_ctx, block, page, pages);
		return;
	}
	/* Without a connection it is asked for when there is one again. */
	if (ferry_page_asker_ask(&in->asker, block, page, pages))
		ferry_log_debug("page %llu of block %u cannot be asked for now",
				(unsigned long long)page, block);
}

static void want(void *ctx, unsigned int block, uint64_t page)
{
	struct ferry_incoming *in = ctx;
	uint64_t end = page + ferry_ram_unit_pages(&in->ram->blocks[block]);

	/* Of a huge page what is absent: all of it, but for one that was cut short. */
	while (page < end) {
		uint32_t n = 0;

		page += ferry_fault_pages_skip(&in->pages, block, page, end - page);
		while (page + n < end &&
		       ferry_fault_pages_state(&in->pages, block, page + n) == FERRY_PAGE_ABSENT)
			n++;
		if (n)
			want_run(in, block, page, n);
		page += n;
	}
}

/* ---- life ---- */

void ferry_incoming_init(struct ferry_incoming *in, struct ferry_job *job, int wake_fd)
{
	memset(in, 0, sizeof(*in));
	in->job = job;
	in->wake_fd = wake_fd;
	in->uffd = -1;
	in->placed_fd = -1;
	in->sink = (struct ferry_multifd_sink){
		.claim = sink_claim,
		.skip = sink_skip,
		.unclaim = sink_unclaim,
		.placed = sink_placed,
		.ctx = in,
	};
	ferry_page_asker_init(&in->asker);
	ferry_multifd_turns_init(&in->turns);
}

static void set_line(struct ferry_incoming *in, struct ferry_multifd_recv *line)
{
	struct ferry_multifd_recv *old;

	pthread_mutex_lock(&in->job->lock);
	old = in->line;
	in->line = line;
	pthread_mutex_unlock(&in->job->lock);
	if (old)
		in->line_pages += ferry_incoming_line_pages(old);
	ferry_multifd_recv_free(old);
}

void ferry_incoming_cut(struct ferry_incoming *in)
{
	ferry_page_asker_set(&in->asker, -1);
	set_line(in, NULL);
}

static void join_helper(struct ferry_incoming *in)
{
	if (!in->helping)
		return;
	__atomic_store_n(&in->stop, 1, __ATOMIC_RELAXED);
	pthread_join(in->helper, NULL);
	in->helping = false;
}

static void free_members(struct ferry_incoming *in)
{
	unsigned int i;

	for (i = 0; i < in->n_members; i++)
		ferry_io_close(&in->members[i].uffd);
	for (i = 0; i < FERRY_INCOMING_MAX_MEMBERS; i++) {
		free(in->members[i].addrs);
		in->members[i].addrs = NULL;
	}
	in->n_members = 0;
}

void ferry_incoming_end(struct ferry_incoming *in)
{
	if (!ferry_incoming_armed(in))
		return;
	__atomic_store_n(&in->step, FERRY_INCOMING_END, __ATOMIC_RELEASE);
	ferry_incoming_cut(in);
	join_helper(in);
	ferry_incoming_stats(in);
	ferry_fault_stop(in->fault, true);
	in->fault = NULL;
	ferry_io_close(&in->uffd);
	free_members(in);
	ferry_incoming_let_go(in);
}

void ferry_incoming_free(struct ferry_incoming *in)
{
	ferry_incoming_cut(in);
	join_helper(in);
	ferry_fault_stop(in->fault, false);
	if (in->pages_ready)
		ferry_fault_pages_free(&in->pages);
	if (in->lacks_ready)
		ferry_bitmap_free(&in->lacks);
	ferry_io_close(&in->uffd);
	free_members(in);
	ferry_io_close(&in->placed_fd);
	ferry_page_asker_free(&in->asker);
	ferry_multifd_turns_free(&in->turns);
	free(in->addrs);
}

bool ferry_incoming_armed(const struct ferry_incoming *in)
{
	enum ferry_incoming_step step = step_now(in);

	return step == FERRY_INCOMING_LISTENING || step == FERRY_INCOMING_RUNNING;
}

uint64_t ferry_incoming_missing(const struct ferry_incoming *in)
{
	return ferry_incoming_armed(in) ? ferry_fault_pages_missing(&in->pages) : 0;
}

/* ---- before the switch ---- */

int ferry_incoming_advise(struct ferry_incoming *in, struct ferry_guest *guest,
			  const struct ferry_ram *ram, const struct ferry_wire_config *config,
			  struct ferry_error *err)
{
	struct ferry_dirty_log log = { 0 };
	unsigned int i;
	int r;

	if (!guest->ops->userfaultfd)
		return ferry_error_set(err, EOPNOTSUPP, "guests of %s: cannot wait for pages",
				       guest->ops->scheme);
	if (guest->ops->log)
		guest->ops->log(guest, &log);
	if (log.members > (guest->ops->member ? FERRY_INCOMING_MAX_MEMBERS : 0))
		return ferry_error_set(err, EOPNOTSUPP, "%u further processes have registered with the "
				       "VMM, %u can be made to wait for pages", log.members,
				       guest->ops->member ? FERRY_INCOMING_MAX_MEMBERS : 0);
	for (i = 0; i < ram->count; i++)
		if (!ram->blocks[i].vmm_addr)
			return ferry_error_set(err, EOPNOTSUPP, "it is not known where the VMM maps "
					       "memory block '%s'", ram->blocks[i].name);
	r = ferry_fault_uffd_probe(ram, err);
	if (r)
		return r;
	in->guest = guest;
	in->ram = ram;
	in->config = *config;
	return step_to(in, FERRY_INCOMING_NONE, FERRY_INCOMING_ADVISE, "BLOCKS", err);
}

int ferry_incoming_ready(struct ferry_incoming *in, struct ferry_error *err)
{
	int r;

	if (in->uffd >= 0)
		return 0;
	r = in->guest->ops->userfaultfd(in->guest, &in->uffd, err);
	while (!r && in->guest->ops->member && in->n_members < FERRY_INCOMING_MAX_MEMBERS) {
		struct ferry_incoming_member *m = &in->members[in->n_members];

		free(m->addrs);
		m->addrs = calloc(in->ram->count, sizeof(*m->addrs));
		if (!m->addrs)
			return ferry_error_set(err, ENOMEM, "out of memory");
		r = in->guest->ops->member(in->guest, in->n_members, in->ram, m->addrs, &m->pid,
					   &m->uffd, err);
		if (r == -ENOENT)
			return 0;
		in->n_members += !r;
	}
	return r;
}

static int punch(struct ferry_incoming *in, const struct ferry_wire_run *run,
		 struct ferry_error *err)
{
	const struct ferry_ram_block *b = &in->ram->blocks[run->block];
	uint64_t unit = ferry_ram_unit_pages(b);

	if (run->first_page % unit || run->pages % unit)
		return ferry_error_set(err, EPROTO, "the source sent DISCARD of a part of a huge page "
				       "of memory block '%s'", b->name);
	if (!fallocate(b->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
		       (off_t)(b->fd_off_bytes + (run->first_page << FERRY_PAGE_SHIFT)),
		       (off_t)((uint64_t)run->pages << FERRY_PAGE_SHIFT)))
		return 0;
	return ferry_error_set(err, errno, "freeing pages of memory block '%s' that are to come "
			       "again: %s", b->name, strerror(errno));
}

static int lacks_begin(struct ferry_incoming *in, struct ferry_error *err)
{
	int r;

	if (in->lacks_ready)
		return 0;
	r = ferry_bitmap_init(&in->lacks, in->ram);
	if (r)
		return ferry_error_set(err, -r, "no memory for the map of missing pages");
	in->lacks_ready = true;
	return 0;
}

int ferry_incoming_discard(struct ferry_incoming *in, const uint8_t *body, uint32_t length,
			   struct ferry_error *err)
{
	uint64_t block_pages[FERRY_RAM_MAX_BLOCKS];
	unsigned int i;
	uint32_t at;
	int r;

	if (step_now(in) != FERRY_INCOMING_DISCARD) {
		r = step_to(in, FERRY_INCOMING_ADVISE, FERRY_INCOMING_DISCARD, "DISCARD", err);
		if (r)
			return r;
	}
	r = lacks_begin(in, err);
	for (i = 0; !r && i < in->ram->count; i++)
		block_pages[i] = ferry_ram_block_pages(&in->ram->blocks[i]);
	for (at = 0; !r && at < length; at += FERRY_WIRE_RUN_BYTES) {
		struct ferry_wire_run run;

		r = ferry_wire_run_decode(&run, body + at, FERRY_WIRE_RUN_BYTES, block_pages,
					  in->ram->count);
		if (r) {
			ferry_error_set(err, -r, "the source sent a bad run of pages in DISCARD");
			break;
		}
		r = punch(in, &run, err);
		if (!r)
			ferry_bitmap_set(&in->lacks, run.block, run.first_page, run.pages);
	}
	return r;
}

/* ---- the switch ---- */

static int zap(void *ctx, struct ferry_error *err)
{
	struct ferry_incoming *in = ctx;

	return in->guest->ops->zap ? in->guest->ops->zap(in->guest, in->ram, err) : 0;
}

int ferry_incoming_arm(struct ferry_incoming *in, bool adopted, pid_t vmm,
		       struct ferry_error *err)
{
	struct ferry_fault_mapper mappers[FERRY_FAULT_MAX_MAPPERS] = {
		{ .uffd = in->uffd, .pid = vmm },
	};
	struct ferry_fault_params params = {
		.ram = in->ram,
		.mappers = mappers,
		.n_mappers = 1 + in->n_members,
		.pages = &in->pages,
		.adopted = adopted,
		.want = want,
		.ctx = in,
	};
	unsigned int i;

	in->lacked = ferry_fault_pages_missing(&in->pages);
	in->addrs = calloc(in->ram->count, sizeof(*in->addrs));
	if (!in->addrs)
		return ferry_error_set(err, ENOMEM, "out of memory");
	for (i = 0; i < in->ram->count; i++)
		in->addrs[i] = in->ram->blocks[i].vmm_addr;
	mappers[0].addr = in->addrs;
	for (i = 0; i < in->n_members; i++)
		mappers[i + 1] = (struct ferry_fault_mapper){
			.uffd = in->members[i].uffd,
			.pid = in->members[i].pid,
			.addr = in->members[i].addrs,
		};
	return ferry_fault_start(&params, zap, &in->fault, err);
}

static int make_pages(struct ferry_incoming *in, struct ferry_error *err)
{
	struct ferry_bitmap_run run = { 0 };
	unsigned int i;
	int r = 0;

	/* What was freed to come again shall find its huge pages. */
	for (i = 0; i < in->ram->count && !r; i++)
		r = ferry_hugetlb_reserve(&in->ram->blocks[i], err);
	if (r)
		return r;
	in->placed_fd = ferry_incoming_keep(in, "placed", err);
	if (in->placed_fd < 0)
		return in->placed_fd;
	r = ferry_fault_pages_init(&in->pages, in->ram, in->placed_fd, true, err);
	if (r)
		return r;
	in->pages_ready = true;
	while (ferry_bitmap_next_run(&in->lacks, &run, 0))
		ferry_fault_pages_lack(&in->pages, run.block, run.first_page, run.pages);
	return 0;
}

/*
 * The line is lost. While device state is loaded the source still has the guest, and it will
 * not be ours: let the VMM have done, whatever it reads, so that it can be ended.
 */
void ferry_incoming_void(struct ferry_incoming *in)
{
	const struct ferry_fault_mapper mapper = { .uffd = in->uffd, .addr = in->addrs };
	int expected = LOAD_RUNS;

	if (__atomic_compare_exchange_n(&in->loading, &expected, LOAD_VOID, false,
					__ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
		ferry_fault_uffd_disarm(&mapper, in->ram);
}

static void line_ended(void *ctx)
{
	ferry_incoming_void(ctx);
}

void ferry_incoming_load_begins(struct ferry_incoming *in)
{
	struct ferry_error err;

	__atomic_store_n(&in->loading, LOAD_RUNS, __ATOMIC_RELEASE);
	/* It may have been lost before. */
	if (in->line && ferry_multifd_recv_why(in->line, &err))
		line_ended(in);
}

int ferry_incoming_load_ends(struct ferry_incoming *in, struct ferry_error *err)
{
	int expected = LOAD_RUNS;

	if (__atomic_compare_exchange_n(&in->loading, &expected, LOAD_NONE, false,
					__ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
		return 0;
	return ferry_error_set(err, ECONNRESET, "the link to the source was lost while device state "
			       "was loaded");
}

int ferry_incoming_line(struct ferry_incoming *in, int fault_fd, struct ferry_error *err)
{
	struct ferry_multifd_recv_params params = {
		.fds = &fault_fd,
		.channels = 1,
		.ram = in->ram,
		.codec = FERRY_WIRE_CODEC_RAW,
		.checksum = in->config.flags & FERRY_WIRE_CONFIG_CHECKSUM,
		.sink = &in->sink,
		.urgent = true,
		.turns = &in->turns,
		.name = "fault channel",
		.ended = line_ended,
		.ctx = in,
	};
	struct ferry_multifd_recv *line;
	int ask_fd, r;

	ask_fd = fcntl(fault_fd, F_DUPFD_CLOEXEC, 0);
	if (ask_fd < 0)
		return ferry_error_set(err, errno, "fault channel: %s", strerror(errno));
	r = ferry_multifd_recv_create(&params, &line, err);
	if (r) {
		close(ask_fd);
		return r;
	}
	set_line(in, line);
	ferry_page_asker_set(&in->asker, ask_fd);
	return 0;
}

/* Arm, with what in->lacks says; the guardian keeps what it takes to go on. */
static int listen_armed(struct ferry_incoming *in, struct ferry_error *err)
{
	int r;

	/* Durable: whoever finds the guest later must not take it for one that has all its memory. */
	in->job->record.postcopy = true;
	r = ferry_job_save(in->job, err);
	if (!r)
		r = lacks_begin(in, err);
	if (!r)
		r = make_pages(in, err);
	if (!r)
		r = ferry_incoming_ready(in, err);
	if (!r)
		r = ferry_incoming_arm(in, false, in->guest->pid, err);
	return r ? r : ferry_incoming_hold(in, err);
}

/* @r: whether it could be armed. */
static int listen_ends(struct ferry_incoming *in, enum ferry_incoming_step from, int r,
		       struct ferry_error *err)
{
	if (r) {
		ferry_fault_stop(in->fault, true);
		in->fault = NULL;
		return r;
	}
	ferry_bitmap_free(&in->lacks);
	in->lacks_ready = false;
	return step_to(in, from, FERRY_INCOMING_LISTENING, "POSTCOPY", err);
}

int ferry_incoming_listen(struct ferry_incoming *in, struct ferry_multifd_recv *pool, int fault_fd,
			  struct ferry_error *err)
{
	enum ferry_incoming_step step = step_now(in);
	int r;

	/* A guest that lacks nothing needs no DISCARD. */
	if (step != FERRY_INCOMING_ADVISE && step != FERRY_INCOMING_DISCARD)
		return step_error(in, "POSTCOPY", err);
	if (fault_fd < 0)
		return ferry_error_set(err, EPROTO, "the source sent POSTCOPY without a fault "
				       "channel");
	r = listen_armed(in, err);
	if (!r)
		r = ferry_incoming_line(in, fault_fd, err);
	if (!r)
		ferry_multifd_recv_sink(pool, &in->sink);
	return listen_ends(in, step, r, err);
}

int ferry_incoming_listen_file(struct ferry_incoming *in, const struct ferry_bitmap *lacks,
			       struct ferry_error *err)
{
	int r = lacks_begin(in, err);

	if (r)
		return r;
	ferry_bitmap_or(&in->lacks, lacks);
	return listen_ends(in, FERRY_INCOMING_ADVISE, listen_armed(in, err), err);
}

/* ---- the guest runs ---- */

static void *help(void *arg)
{
	struct ferry_incoming *in = arg;
	struct ferry_error err = { 0 };

	if (in->guest && in->announce)
		in->guest->ops->announce(in->guest);
	if (ferry_fault_sweep(in->fault, &in->stop, &err))
		ferry_log_warn("%s; they are mapped when they are touched", err.text);
	return NULL;
}

void ferry_incoming_started(struct ferry_incoming *in, bool announce)
{
	if (step_to(in, FERRY_INCOMING_LISTENING, FERRY_INCOMING_RUNNING, "RUN", NULL))
		return;
	in->announce = announce;
	in->helping = !pthread_create(&in->helper, NULL, help, in);
}

void ferry_incoming_ask_again(struct ferry_incoming *in)
{
	ferry_fault_ask_again(in->fault);
}
