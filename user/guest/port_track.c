// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What trackers need of a VMM with a port: a userfaultfd, tracked views in the place of
 * guest RAM (there and in registered further processes), its own dirty log. The processes
 * do each to themselves; what the plain mapping was like we read in /proc and tell them.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/io.h"
#include "base/log.h"
#include "guest/port.h"
#include "guest/proc.h"
#include "guest/view.h"

#define UFFD_DEVICE "/dev/userfaultfd"

static int make_userfaultfd(struct ferry_vmm *v, struct ferry_vmm_peer *peer, int *uffd,
			    struct ferry_error *err)
{
	struct ferry_channel_message m = { .head.type = FERRY_PROTO_USERFAULTFD };
	uint32_t flags;
	int dev, r;

	/* The process may have no right to open it; without it, it tries the system call. */
	dev = open(UFFD_DEVICE, O_RDWR | O_CLOEXEC);
	m.fd = dev;
	flags = v->role == FERRY_GUEST_SOURCE ? 0 : FERRY_PROTO_UFFD_KEEP;
	m.head.length = (uint32_t)ferry_proto_u32_encode(flags, m.body);
	r = ferry_vmm_call(v, peer, &m, "making a userfaultfd", err);
	ferry_io_close(&dev);
	*uffd = r ? -1 : m.fd;
	return r;
}

int ferry_vmm_userfaultfd(struct ferry_guest *guest, int *uffd, struct ferry_error *err)
{
	struct ferry_vmm *v = ferry_vmm_of(guest);

	return make_userfaultfd(v, &v->vmm, uffd, err);
}

int ferry_vmm_member(struct ferry_guest *guest, unsigned int which, const struct ferry_ram *ram,
		     uint64_t *addrs, pid_t *pid, int *uffd, struct ferry_error *err)
{
	struct ferry_vmm *v = ferry_vmm_of(guest);
	struct ferry_ram own; /* in the VMM's order, in which the members' addresses are */
	unsigned int i;
	int r;

	if (which >= v->n_members)
		return -ENOENT;
	ferry_ram_init(&own);
	r = ferry_vmm_describe(guest, &own, err);
	memset(addrs, 0, ram->count * sizeof(*addrs));
	for (i = 0; !r && i < own.count; i++) {
		int at = ferry_ram_find(ram, own.blocks[i].name);

		if (at >= 0)
			addrs[at] = v->members[which].addrs[i];
	}
	ferry_ram_free(&own);
	*pid = v->members[which].pid;
	return r ? r : make_userfaultfd(v, &v->members[which], uffd, err);
}

/* ---- tracked views ---- */

static uint32_t map_flags(const struct ferry_vmflags *flags)
{
	static const struct {
		const char *word;
		uint32_t flag;
	} known[] = {
		{ "dd", FERRY_PROTO_MAP_DONTDUMP },   { "dc", FERRY_PROTO_MAP_DONTFORK },
		{ "hg", FERRY_PROTO_MAP_HUGEPAGE },   { "nh", FERRY_PROTO_MAP_NOHUGEPAGE },
		{ "lo", FERRY_PROTO_MAP_LOCKED },     { "sr", FERRY_PROTO_MAP_SEQUENTIAL },
		{ "rr", FERRY_PROTO_MAP_RANDOM },     { "nr", FERRY_PROTO_MAP_NORESERVE },
		{ "lf", FERRY_PROTO_MAP_LOCKED_ONFAULT },
	};
	uint32_t map = 0;
	size_t i;

	for (i = 0; i < sizeof(known) / sizeof(known[0]); i++)
		if (ferry_vmflags_has(flags, known[i].word))
			map |= known[i].flag;
	if (map & FERRY_PROTO_MAP_LOCKED_ONFAULT)
		map &= ~FERRY_PROTO_MAP_LOCKED;
	return map;
}

/* A view cannot be locked: what was locked there is locked in our own mapping meanwhile. */
static void keep_locked(const struct ferry_ram_block *b, uint32_t map)
{
	if (b->map && (map & (FERRY_PROTO_MAP_LOCKED | FERRY_PROTO_MAP_LOCKED_ONFAULT)) &&
	    mlock2(b->map, b->size_bytes, MLOCK_ONFAULT))
		ferry_log_warn("guest RAM '%s' is locked in the VMM, but cannot be kept so while it "
			       "is tracked: %s", b->name, strerror(errno));
}

static int map_view(struct ferry_vmm *v, struct ferry_vmm_peer *peer,
		    const struct ferry_ram_block *b, uint32_t index, uint64_t addr, int tracker,
		    struct ferry_error *err)
{
	struct ferry_channel_message m = { .head.type = FERRY_PROTO_VIEW, .fd = tracker };
	struct ferry_proto_view view = { .block = index };
	struct ferry_view_area area;
	struct stat st;
	int n;

	if (fstat(b->fd, &st))
		return ferry_error_set(err, errno, "guest RAM '%s': %s", b->name, strerror(errno));
	n = ferry_view_areas(peer->pid, st.st_dev, st.st_ino, addr, b->size_bytes, &area, 1, err);
	if (n < 0)
		return n;
	if (area.prot != (PROT_READ | PROT_WRITE))
		return ferry_error_set(err, EOPNOTSUPP, "pid %d does not map guest RAM '%s' readable "
				       "and writable, as a VMM with a port must", (int)peer->pid,
				       b->name);
	view.map = map_flags(&area.flags);
	keep_locked(b, view.map);
	m.head.length = (uint32_t)ferry_proto_view_encode(&view, m.body);
	return ferry_vmm_call(v, peer, &m, "mapping a tracked view of guest RAM", err);
}

static int views_map(void *ctx, const struct ferry_ram *ram, const int *trackers,
		     struct ferry_error *err)
{
	struct ferry_vmm *v = ctx;
	unsigned int i, j;
	int r = ferry_vmm_journal(v, err);

	for (i = 0; i < ram->count && !r; i++) {
		const struct ferry_ram_block *b = &ram->blocks[i];

		r = map_view(v, &v->vmm, b, i, b->vmm_addr, trackers[i], err);
		for (j = 0; j < v->n_members && !r; j++)
			if (v->members[j].addrs[i])
				r = map_view(v, &v->members[j], b, v->members[j].index[i],
					     v->members[j].addrs[i], trackers[i], err);
	}
	if (r)
		ferry_vmm_reset(v, NULL);
	return r;
}

static int views_unmap(void *ctx, struct ferry_error *err)
{
	struct ferry_vmm *v = ctx;

	return ferry_vmm_gone(v, 0) ? 0 : ferry_vmm_reset(v, err);
}

static int views_count(void *ctx, struct ferry_error *err)
{
	struct ferry_vmm *v = ctx;

	return ferry_peers_count(&v->peers, err);
}

static int views_others(void *ctx, int (*fn)(void *fn_ctx, pid_t pid, int fd), void *fn_ctx,
			struct ferry_error *err)
{
	struct ferry_vmm *v = ctx;

	return ferry_peers_others(&v->peers, fn, fn_ctx, err);
}

void ferry_vmm_views(struct ferry_guest *guest, struct ferry_dirty_views *views)
{
	*views = (struct ferry_dirty_views){
		.map = views_map,
		.unmap = views_unmap,
		.count = views_count,
		.others = views_others,
		.ctx = ferry_vmm_of(guest),
	};
}

/* ---- the VMM's dirty log ---- */

static size_t log_words(const struct ferry_ram_block *b)
{
	return (size_t)(ferry_ram_block_pages(b) + 63) / 64;
}

void ferry_vmm_log_free(struct ferry_vmm *v)
{
	if (v->log)
		munmap(v->log, v->log_bytes);
	v->log = NULL;
	ferry_io_close(&v->log_fd);
}

static int log_create(struct ferry_vmm *v, const struct ferry_ram *ram, struct ferry_error *err)
{
	unsigned int i;
	void *map;

	v->log_bytes = 0;
	for (i = 0; i < ram->count; i++)
		v->log_bytes += log_words(&ram->blocks[i]) * sizeof(uint64_t);
	v->log_fd = memfd_create("ferry-log", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (v->log_fd < 0 || ftruncate(v->log_fd, (off_t)v->log_bytes) ||
	    fcntl(v->log_fd, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW))
		return ferry_error_set(err, errno, "a memory file for the dirty log: %s",
				       strerror(errno));
	map = mmap(NULL, v->log_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, v->log_fd, 0);
	if (map == MAP_FAILED)
		return ferry_error_set(err, errno, "mapping the dirty log: %s", strerror(errno));
	v->log = map;
	return 0;
}

static int log_start(void *ctx, const struct ferry_ram *ram, struct ferry_error *err)
{
	struct ferry_channel_message m = { .head.type = FERRY_PROTO_LOG_START };
	struct ferry_vmm *v = ctx;
	int r = ferry_vmm_journal(v, err);

	if (!r)
		r = log_create(v, ram, err);
	if (!r) {
		m.fd = v->log_fd;
		r = ferry_vmm_call(v, &v->vmm, &m, "starting the VMM's dirty log", err);
	}
	if (r)
		ferry_vmm_log_free(v);
	return r;
}

static void take_word(struct ferry_bitmap *pages, unsigned int block, uint64_t word, uint64_t bits)
{
	uint64_t first = word * 64;

	/* What lies past the end is nobody's page. */
	if (pages->pages[block] - first < 64)
		bits &= (1ull << (pages->pages[block] - first)) - 1;
	while (bits) {
		unsigned int at = (unsigned int)__builtin_ctzll(bits);
		unsigned int run = ~(bits >> at) ? (unsigned int)__builtin_ctzll(~(bits >> at)) :
						   64 - at;

		ferry_bitmap_set(pages, block, first + at, run);
		if (at + run == 64)
			break;
		bits &= ~(((1ull << run) - 1) << at);
	}
}

static int log_collect(void *ctx, struct ferry_bitmap *pages, struct ferry_error *err)
{
	struct ferry_vmm *v = ctx;
	const uint64_t *bits = v->log;
	unsigned int i;
	int r = ferry_vmm_ask(v, FERRY_PROTO_LOG_SYNC, "reading the VMM's dirty log", err);

	for (i = 0; i < pages->count && !r; i++) {
		uint64_t words = (pages->pages[i] + 63) / 64, w;

		for (w = 0; w < words; w++)
			if (bits[w])
				take_word(pages, i, w, bits[w]);
		bits += words;
	}
	return r;
}

static void log_stop(void *ctx)
{
	struct ferry_vmm *v = ctx;
	struct ferry_error err = { 0 };

	if (!ferry_vmm_gone(v, 0) &&
	    ferry_vmm_ask(v, FERRY_PROTO_LOG_STOP, "ending the VMM's dirty log", &err))
		ferry_log_warn("%s", err.text);
	ferry_vmm_log_free(v);
}

void ferry_vmm_log(struct ferry_guest *guest, struct ferry_dirty_log *log)
{
	struct ferry_vmm *v = ferry_vmm_of(guest);
	uint32_t has = v->vmm.welcome.has;

	*log = (struct ferry_dirty_log){
		.offered = has & FERRY_PROTO_HAS_LOG,
		.sees_process = has & FERRY_PROTO_HAS_LOG_PROCESS,
		.sees_members = has & FERRY_PROTO_HAS_LOG_MEMBERS,
		.members = v->n_members,
		.start = log_start,
		.collect = log_collect,
		.stop = log_stop,
		.ctx = v,
	};
}
