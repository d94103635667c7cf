// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What a worker needs that takes over a guest which waits for pages: the userfaultfd, the map of
 * placed pages, and the layout (the blocks, and what was agreed on) with the files of guest
 * RAM. The VMM cannot be asked as long as a vCPU waits.
 *
 * The guardian keeps all of it. If it died too, the map and the layout are in files beside the
 * record, and the VMM has the rest: a copy of its userfaultfd, and the RAM, which it maps.
 */
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
#include "engine/incoming.h"
#include "guest/proc.h"
#include "inject/inject.h"

#define LAYOUT_MAGIC 0x74756f79616c7966ull

/* Block files that a guardian can hold beside all else; the others are got from the VMM. */
#define HELD_BLOCKS 8

#define UFFD_LINK "anon_inode:[userfaultfd]"
#define MAX_UFFDS 64

struct layout_block {
	struct ferry_ram_block block;
	dev_t dev;
	ino_t ino;
	uint64_t member[FERRY_INCOMING_MAX_MEMBERS]; /* where each has it mapped */
};

struct layout_process {
	pid_t pid;
	uint64_t start; /* with the pid: which process it is */
};

/* Written and read by the same program, for a worker that takes over. */
struct layout {
	uint64_t magic;
	uint8_t uuid[16];
	struct ferry_wire_config config;
	struct layout_process vmm;
	struct layout_process member[FERRY_INCOMING_MAX_MEMBERS];
	unsigned int members;
	unsigned int count;
	struct layout_block blocks[];
};

void ferry_incoming_let_go(struct ferry_incoming *in)
{
	const struct ferry_job_hooks *hooks = in->job->hooks;
	char name[16];
	unsigned int i;

	if (!hooks->hold)
		return;
	hooks->hold(hooks->ctx, "userfaultfd", -1, NULL);
	hooks->hold(hooks->ctx, "layout", -1, NULL);
	hooks->hold(hooks->ctx, "placed", -1, NULL);
	for (i = 0; in->ram && i < in->ram->count && i < HELD_BLOCKS; i++) {
		snprintf(name, sizeof(name), "ram%u", i);
		hooks->hold(hooks->ctx, name, -1, NULL);
	}
}

int ferry_incoming_keep(struct ferry_incoming *in, const char *name, struct ferry_error *err)
{
	const struct ferry_job_hooks *hooks = in->job->hooks;
	int fd;

	if (hooks->keep)
		return hooks->keep(hooks->ctx, name, err);
	fd = memfd_create(name, MFD_CLOEXEC);
	return fd < 0 ? ferry_error_set(err, errno, "a memory file: %s", strerror(errno)) : fd;
}

static int hold(struct ferry_incoming *in, const char *name, int fd, struct ferry_error *err)
{
	const struct ferry_job_hooks *hooks = in->job->hooks;

	return hooks->hold ? hooks->hold(hooks->ctx, name, fd, err) : 0;
}

static size_t layout_bytes(unsigned int count)
{
	return sizeof(struct layout) + count * sizeof(struct layout_block);
}

static void note_process(struct layout_process *p, pid_t pid)
{
	p->pid = pid;
	p->start = ferry_proc_start(pid);
}

static int hold_layout(struct ferry_incoming *in, struct ferry_error *err)
{
	struct layout *layout = calloc(1, layout_bytes(in->ram->count));
	unsigned int i, j;
	int fd = -1, r = 0;

	if (!layout)
		return ferry_error_set(err, ENOMEM, "out of memory");
	layout->magic = LAYOUT_MAGIC;
	memcpy(layout->uuid, in->job->record.uuid, sizeof(layout->uuid));
	layout->config = in->config;
	note_process(&layout->vmm, in->guest->pid);
	layout->members = in->n_members;
	for (j = 0; j < in->n_members; j++)
		note_process(&layout->member[j], in->members[j].pid);
	layout->count = in->ram->count;
	for (i = 0; i < in->ram->count && !r; i++) {
		struct stat st;

		layout->blocks[i].block = in->ram->blocks[i];
		r = fstat(in->ram->blocks[i].fd, &st) ? -errno : 0;
		layout->blocks[i].dev = st.st_dev;
		layout->blocks[i].ino = st.st_ino;
		for (j = 0; j < in->n_members; j++)
			layout->blocks[i].member[j] = in->members[j].addrs[i];
	}
	if (!r)
		r = fd = ferry_incoming_keep(in, "layout", err);
	if (r >= 0)
		r = ferry_io_pwrite(fd, layout, layout_bytes(in->ram->count), 0);
	r = r < 0 ? ferry_error_set(err, -r, "recording the layout of guest RAM: %s",
				    strerror(-r)) : hold(in, "layout", fd, err);
	ferry_io_close(&fd);
	free(layout);
	return r;
}

int ferry_incoming_hold(struct ferry_incoming *in, struct ferry_error *err)
{
	unsigned int i;
	char name[16];
	int r = hold(in, "userfaultfd", in->uffd, err);

	if (!r)
		r = hold(in, "placed", in->placed_fd, err);
	for (i = 0; i < in->ram->count && i < HELD_BLOCKS && !r; i++) {
		snprintf(name, sizeof(name), "ram%u", i);
		r = hold(in, name, in->ram->blocks[i].fd, err);
	}
	return r ? r : hold_layout(in, err);
}

static int held(struct ferry_incoming *in, const char *name)
{
	const struct ferry_job_hooks *hooks = in->job->hooks;

	return hooks->held ? hooks->held(hooks->ctx, name) : -1;
}

static int read_layout(struct ferry_incoming *in, struct layout **out, struct ferry_error *err)
{
	int fd = held(in, "layout");
	struct layout *layout = NULL;
	struct stat st;
	int r = -ENOENT;

	if (fd >= 0 && !fstat(fd, &st) && st.st_size >= (off_t)layout_bytes(0)) {
		layout = malloc((size_t)st.st_size);
		r = layout ? ferry_io_pread(fd, layout, (size_t)st.st_size, 0) : -ENOMEM;
		if (!r && (layout->magic != LAYOUT_MAGIC || layout->count > FERRY_RAM_MAX_BLOCKS ||
			   layout->members > FERRY_INCOMING_MAX_MEMBERS ||
			   (size_t)st.st_size != layout_bytes(layout->count) ||
			   memcmp(layout->uuid, in->job->record.uuid, sizeof(layout->uuid))))
			r = -EINVAL;
	}
	if (fd >= 0)
		close(fd);
	if (!r && ferry_proc_start(layout->vmm.pid) != layout->vmm.start)
		r = ferry_error_set(err, ESRCH, "the VMM (pid %d) has gone, and the guest with it",
				    (int)layout->vmm.pid);
	else if (r)
		ferry_error_set(err, -r, "it is not known any more which pages of the guest are "
				"here");
	if (r) {
		free(layout);
		return r;
	}
	*out = layout;
	return 0;
}

/* ---- what the VMM has ---- */

struct search {
	const struct layout_block *wanted;
	uint64_t start, end;
};

static int search_area(void *ctx, const struct ferry_proc_area *area)
{
	const struct ferry_ram_block *b = &((struct search *)ctx)->wanted->block;
	struct search *s = ctx;

	if (b->vmm_addr < area->start || b->vmm_addr >= area->end ||
	    area->ino != s->wanted->ino)
		return 0;
	s->start = area->start;
	s->end = area->end;
	return 1;
}

static int open_ram(pid_t vmm, const struct layout_block *wanted)
{
	struct search s = { .wanted = wanted };
	struct stat st;
	char path[96];
	int fd, r = ferry_proc_maps(vmm, search_area, &s);

	if (r <= 0)
		return r ? r : -ENOENT;
	snprintf(path, sizeof(path), "/proc/%d/map_files/%llx-%llx", (int)vmm,
		 (unsigned long long)s.start, (unsigned long long)s.end);
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	if (!fstat(fd, &st) && st.st_dev == wanted->dev && st.st_ino == wanted->ino)
		return fd;
	close(fd);
	return -ENOENT;
}

static int adopt_ram(struct ferry_incoming *in, const struct layout *layout, struct ferry_ram *ram,
		     struct ferry_error *err)
{
	unsigned int i;
	char name[16];
	int r = 0;

	for (i = 0; i < layout->count && !r; i++) {
		struct ferry_ram_block block = layout->blocks[i].block;

		snprintf(name, sizeof(name), "ram%u", i);
		block.map = NULL;
		block.fd = i < HELD_BLOCKS ? held(in, name) : -1;
		if (block.fd < 0)
			block.fd = open_ram(layout->vmm.pid, &layout->blocks[i]);
		if (block.fd < 0)
			return ferry_error_set(err, -block.fd, "the file of memory block '%s' cannot "
					       "be had from the VMM (pid %d): %s", block.name,
					       (int)layout->vmm.pid, strerror(-block.fd));
		r = ferry_ram_add(ram, &block, err);
		if (r)
			close(block.fd);
	}
	return r;
}

/* Of a process's userfaultfds that with which this RAM is registered. Return: it, or -errno. */
static int take_uffd(struct ferry_incoming *in, pid_t pid, const uint64_t *addrs,
		     struct ferry_error *err)
{
	struct ferry_fault_mapper mapper = { .pid = pid, .addr = addrs };
	int fds[MAX_UFFDS], i, n = ferry_inject_find_fds(pid, UFFD_LINK, fds, MAX_UFFDS);
	struct ferry_error why = { 0 };

	for (i = 0; i < n && i < MAX_UFFDS; i++) {
		mapper.uffd = ferry_inject_take_fd(pid, fds[i]);
		if (mapper.uffd < 0)
			continue;
		/* The kernel lets no other one register what is registered. */
		if (!ferry_fault_uffd_arm(&mapper, in->ram, true, &why))
			return mapper.uffd;
		close(mapper.uffd);
	}
	return ferry_error_set(err, ENOENT, "process %d has not kept the userfaultfd of guest "
			       "memory%s%s", (int)pid, why.text[0] ? ": " : "", why.text);
}

static int adopt_uffd(struct ferry_incoming *in, const struct layout *layout,
		      struct ferry_error *err)
{
	uint64_t addrs[FERRY_RAM_MAX_BLOCKS];
	unsigned int i;

	in->uffd = held(in, "userfaultfd");
	if (in->uffd >= 0)
		return 0;
	for (i = 0; i < in->ram->count; i++)
		addrs[i] = in->ram->blocks[i].vmm_addr;
	in->uffd = take_uffd(in, layout->vmm.pid, addrs, err);
	return in->uffd < 0 ? in->uffd : 0;
}

/* Further processes; one that has ended waits for nothing. */
static int adopt_members(struct ferry_incoming *in, const struct layout *layout,
			 struct ferry_error *err)
{
	unsigned int i, j;

	for (j = 0; j < layout->members; j++) {
		struct ferry_incoming_member *m = &in->members[in->n_members];

		if (ferry_proc_start(layout->member[j].pid) != layout->member[j].start)
			continue;
		m->pid = layout->member[j].pid;
		m->addrs = calloc(in->ram->count, sizeof(*m->addrs));
		if (!m->addrs)
			return ferry_error_set(err, ENOMEM, "out of memory");
		for (i = 0; i < in->ram->count; i++)
			m->addrs[i] = layout->blocks[i].member[j];
		m->uffd = take_uffd(in, m->pid, m->addrs, err);
		if (m->uffd < 0)
			return m->uffd;
		in->n_members++;
	}
	return 0;
}

int ferry_incoming_adopt(struct ferry_incoming *in, struct ferry_ram *ram, struct ferry_error *err)
{
	struct layout *layout = NULL;
	int r = read_layout(in, &layout, err);

	if (r)
		return r;
	r = adopt_ram(in, layout, ram, err);
	if (r)
		goto out;
	in->ram = ram;
	in->config = layout->config;
	r = adopt_uffd(in, layout, err);
	if (!r)
		r = adopt_members(in, layout, err);
	if (r)
		goto out;
	in->placed_fd = held(in, "placed");
	if (in->placed_fd < 0) {
		r = ferry_error_set(err, ENOENT, "it is not known any more which pages of the guest "
				    "are here");
		goto out;
	}
	r = ferry_ram_map(ram, true, err);
	if (!r)
		r = ferry_fault_pages_init(&in->pages, ram, in->placed_fd, false, err);
	in->pages_ready = !r;
	if (!r)
		r = ferry_incoming_arm(in, true, layout->vmm.pid, err);
	if (!r)
		__atomic_store_n(&in->step, FERRY_INCOMING_LISTENING, __ATOMIC_RELEASE);
out:
	free(layout);
	return r;
}
