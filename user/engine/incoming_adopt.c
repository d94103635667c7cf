// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What a worker needs that takes over a guest which waits for pages: the userfaultfd, the map of
 * placed pages, and the layout (the blocks, and what was agreed on) with the files of guest
 * RAM. The guardian keeps all of it; the VMM cannot be asked as long as a vCPU waits.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/io.h"
#include "base/log.h"
#include "engine/incoming.h"

#define LAYOUT_MAGIC 0x74756f79616c7966ull

/* Block files that a guardian can hold beside all else; guests with more cannot be adopted. */
#define HELD_BLOCKS 8

/* Written and read by the same program, for a worker that takes over. */
struct layout {
	uint64_t magic;
	struct ferry_wire_config config;
	pid_t vmm;
	unsigned int count;
	struct ferry_ram_block blocks[];
};

void ferry_incoming_let_go(struct ferry_incoming *in)
{
	char name[16];
	unsigned int i;

	if (!in->job->hooks->hold)
		return;
	in->job->hooks->hold(in->job->hooks->ctx, "userfaultfd", -1, NULL);
	in->job->hooks->hold(in->job->hooks->ctx, "placed", -1, NULL);
	in->job->hooks->hold(in->job->hooks->ctx, "layout", -1, NULL);
	for (i = 0; in->ram && i < in->ram->count && i < HELD_BLOCKS; i++) {
		snprintf(name, sizeof(name), "ram%u", i);
		in->job->hooks->hold(in->job->hooks->ctx, name, -1, NULL);
	}
}

static int hold(struct ferry_incoming *in, const char *name, int fd, struct ferry_error *err)
{
	const struct ferry_job_hooks *hooks = in->job->hooks;

	return hooks->hold ? hooks->hold(hooks->ctx, name, fd, err) : 0;
}

static int hold_layout(struct ferry_incoming *in, struct ferry_error *err)
{
	size_t blocks = in->ram->count * sizeof(in->ram->blocks[0]);
	struct layout *layout = calloc(1, sizeof(*layout) + blocks);
	int fd, r;

	if (!layout)
		return ferry_error_set(err, ENOMEM, "out of memory");
	layout->magic = LAYOUT_MAGIC;
	layout->config = in->config;
	layout->vmm = in->guest->pid;
	layout->count = in->ram->count;
	memcpy(layout->blocks, in->ram->blocks, blocks);
	fd = memfd_create("ferry-layout", MFD_CLOEXEC);
	r = fd < 0 ? -errno : ferry_io_pwrite(fd, layout, sizeof(*layout) + blocks, 0);
	r = r ? ferry_error_set(err, -r, "a memory file for the layout of guest RAM: %s",
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
	if (!r && in->ram->count > HELD_BLOCKS)
		ferry_log_warn("%u memory blocks are too many for the guardian: if this worker dies, "
			       "no other one can go on", in->ram->count);
	if (r || in->ram->count > HELD_BLOCKS)
		return r;
	for (i = 0; i < in->ram->count && !r; i++) {
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

	if (fd >= 0 && !fstat(fd, &st) && st.st_size >= (off_t)sizeof(*layout)) {
		layout = malloc((size_t)st.st_size);
		r = layout ? ferry_io_pread(fd, layout, (size_t)st.st_size, 0) : -ENOMEM;
		if (!r && (layout->magic != LAYOUT_MAGIC ||
			   (size_t)st.st_size != sizeof(*layout) + layout->count *
							   sizeof(layout->blocks[0])))
			r = -EINVAL;
	}
	ferry_io_close(&fd);
	if (r) {
		free(layout);
		return ferry_error_set(err, -r, "nobody has kept which pages of the guest are here: "
				       "its processes died together");
	}
	*out = layout;
	return 0;
}

static int adopt_ram(struct ferry_incoming *in, const struct layout *layout, struct ferry_ram *ram,
		     struct ferry_error *err)
{
	unsigned int i;
	char name[16];
	int r = 0;

	for (i = 0; i < layout->count && !r; i++) {
		struct ferry_ram_block block = layout->blocks[i];

		snprintf(name, sizeof(name), "ram%u", i);
		block.map = NULL;
		block.fd = held(in, name);
		if (block.fd < 0)
			return ferry_error_set(err, ENOENT, "nobody has kept the file of memory block "
					       "'%s'", block.name);
		r = ferry_ram_add(ram, &block, err);
		if (r)
			close(block.fd);
	}
	return r;
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
	in->uffd = held(in, "userfaultfd");
	in->placed_fd = held(in, "placed");
	if (in->uffd < 0 || in->placed_fd < 0) {
		r = ferry_error_set(err, ENOENT, "nobody has kept the userfaultfd of the guest");
		goto out;
	}
	r = ferry_fault_pages_init(&in->pages, ram, in->placed_fd, false, err);
	in->pages_ready = !r;
	if (!r)
		r = ferry_incoming_arm(in, true, layout->vmm, err);
	if (!r)
		__atomic_store_n(&in->step, FERRY_INCOMING_LISTENING, __ATOMIC_RELEASE);
out:
	free(layout);
	return r;
}
