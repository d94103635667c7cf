// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * What a process does with its own memory for the agent: another mapping of the same pages
 * in the place of guest RAM, and a userfaultfd.
 *
 * The new mapping is made at a spare address, gets the old one's flags and then takes its
 * place by one mremap(2): threads that write there meanwhile see one or the other. mmap
 * with MAP_FIXED in place could leave a hole where the RAM was when it fails (Linux 6.1).
 */
#include "port/private.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif

static const struct {
	uint32_t flag;
	int advice;
	bool of_view; /* a view has it, too */
} advices[] = {
	{ FERRY_PROTO_MAP_DONTDUMP, MADV_DONTDUMP, true },
	{ FERRY_PROTO_MAP_DONTFORK, MADV_DONTFORK, true },
	{ FERRY_PROTO_MAP_SEQUENTIAL, MADV_SEQUENTIAL, true },
	{ FERRY_PROTO_MAP_RANDOM, MADV_RANDOM, true },
	{ FERRY_PROTO_MAP_HUGEPAGE, MADV_HUGEPAGE, false },
	{ FERRY_PROTO_MAP_NOHUGEPAGE, MADV_NOHUGEPAGE, false },
};

/* Make the new mapping as the old one was. */
static int dress(void *at, uint64_t bytes, uint32_t map, bool view)
{
	size_t i;

	for (i = 0; i < sizeof(advices) / sizeof(advices[0]); i++)
		if ((map & advices[i].flag) && (!view || advices[i].of_view) &&
		    madvise(at, bytes, advices[i].advice))
			return -errno;
	if (view)
		return 0;
	if ((map & FERRY_PROTO_MAP_LOCKED_ONFAULT) && mlock2(at, bytes, MLOCK_ONFAULT))
		return -errno;
	if ((map & FERRY_PROTO_MAP_LOCKED) && mlock(at, bytes))
		return -errno;
	return 0;
}

static int place(const struct port_block *b, void *spare)
{
	unsigned char page;
	int r;

	if (mremap(spare, b->bytes, b->bytes, MREMAP_MAYMOVE | MREMAP_FIXED, b->addr) == b->addr)
		return 0;
	r = -errno;
	/* It may have unmapped before it failed: never leave a hole where the guest's RAM was. */
	if (mincore(b->addr, 1, &page) && errno == ENOMEM &&
	    mmap(b->addr, b->bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, b->fd,
		 (off_t)b->fd_offset) == MAP_FAILED)
		return -EFAULT;
	return r;
}

static int exchange(const struct port_block *b, int fd, uint32_t map, bool view)
{
	int flags = MAP_SHARED | (map & FERRY_PROTO_MAP_NORESERVE ? MAP_NORESERVE : 0);
	void *spare = mmap(NULL, b->bytes, PROT_READ | PROT_WRITE, flags, fd,
			   (off_t)b->fd_offset);
	int r;

	if (spare == MAP_FAILED)
		return -errno;
	r = dress(spare, b->bytes, map, view);
	/* On the way back the plain pages matter more than a flag of theirs. */
	if (!r || !view)
		r = place(b, spare);
	if (r)
		munmap(spare, b->bytes);
	return r;
}

static bool is_same_file(int a, int b)
{
	struct stat sa, sb;

	return !fstat(a, &sa) && !fstat(b, &sb) && sa.st_dev == sb.st_dev &&
	       sa.st_ino == sb.st_ino;
}

int port_view(struct ferry_port *port, const struct ferry_channel_message *in,
	      struct ferry_channel_message *out)
{
	struct ferry_proto_view v;
	struct port_block *b;
	int r = ferry_proto_view_decode(&v, in->body, in->head.length);

	(void)out;
	if (r)
		return r;
	if (v.block >= port->n_blocks)
		return -ENOENT;
	b = &port->blocks[v.block];
	if (b->viewed)
		return port_say(port, EALREADY, "block '%s' is a tracked view already", b->name);
	if (!is_same_file(in->fd, b->fd))
		return port_say(port, EINVAL, "the descriptor passed is no tracker of block '%s'",
				b->name);
	r = exchange(b, in->fd, v.map, true);
	if (r)
		return r;
	b->viewed = true;
	b->map = v.map;
	return 0;
}

int port_views_drop(struct ferry_port *port)
{
	unsigned int i;
	int first = 0;

	for (i = 0; i < port->n_blocks; i++) {
		struct port_block *b = &port->blocks[i];
		int r;

		if (!b->viewed)
			continue;
		r = exchange(b, b->fd, b->map, false);
		if (!r)
			b->viewed = false;
		else if (!first)
			first = r;
	}
	return first;
}

/* The device the agent passes spares this process the right to make one by itself. */
int port_userfaultfd(struct ferry_port *port, const struct ferry_channel_message *in,
		     struct ferry_channel_message *out)
{
	int flags = O_CLOEXEC | O_NONBLOCK;
	uint32_t wanted;

	ferry_proto_u32_decode(&wanted, in->body, in->head.length);
	if (wanted & ~FERRY_PROTO_UFFD_KEEP)
		return port_say(port, EOPNOTSUPP, "userfaultfd flags %#x", wanted);
	if (in->fd >= 0)
		out->fd = ioctl(in->fd, USERFAULTFD_IOC_NEW, flags);
	else
		out->fd = (int)syscall(SYS_userfaultfd, flags);
	if (out->fd < 0)
		return -errno;
	if (!(wanted & FERRY_PROTO_UFFD_KEEP))
		return 0;
	port_userfaultfd_drop(port);
	port->uffd_fd = fcntl(out->fd, F_DUPFD_CLOEXEC, 0);
	return port->uffd_fd < 0 ? -errno : 0;
}

void port_userfaultfd_drop(struct ferry_port *port)
{
	if (port->uffd_fd >= 0)
		close(port->uffd_fd);
	port->uffd_fd = -1;
}
