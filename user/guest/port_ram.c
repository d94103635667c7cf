// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Guest RAM behind a port, who else maps it, and everything that forbids a migration. What
 * the VMM tells is compared with what /proc shows before anything is done: the process
 * that answers is the one that maps this memory at these addresses.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/io.h"
#include "guest/json.h"
#include "guest/port.h"
#include "guest/proc.h"
#include "ram/hugetlb.h"

/* One block of a peer; the descriptor is the caller's. */
static int ask_block(struct ferry_vmm *v, struct ferry_vmm_peer *peer, uint32_t index,
		     struct ferry_proto_ram *ram, int *fd, struct ferry_error *err)
{
	struct ferry_channel_message m = { .head.type = FERRY_PROTO_RAM, .fd = -1 };
	int r;

	m.head.length = (uint32_t)ferry_proto_u32_encode(index, m.body);
	r = ferry_vmm_call(v, peer, &m, "asking for guest RAM", err);
	if (r)
		return r;
	r = ferry_proto_ram_decode(ram, m.body, m.head.length);
	if (r) {
		close(m.fd);
		return ferry_error_set(err, -r, "pid %d tells nonsense of guest RAM block %u",
				       (int)peer->pid, index);
	}
	*fd = m.fd;
	return 0;
}

static int check_file(const struct ferry_proto_ram *ram, int fd, struct ferry_error *err)
{
	uint32_t page_size;
	struct stat st;

	if (fstat(fd, &st))
		return ferry_error_set(err, errno, "guest RAM '%s': %s", ram->name,
				       strerror(errno));
	if (ferry_hugetlb_page_size(fd, &page_size, err)) {
		ferry_error_prefix(err, "guest RAM '%s'", ram->name);
		return -err->errnum;
	}
	if (ram->page_bytes != page_size)
		return ferry_error_set(err, EINVAL, "guest RAM '%s' is of %u-byte pages, its VMM says "
				       "%llu: page_bytes of ferry_port_add_ram() is wrong", ram->name,
				       page_size, (unsigned long long)ram->page_bytes);
	if ((uint64_t)st.st_size < ram->fd_offset + ram->bytes)
		return ferry_error_set(err, EINVAL, "guest RAM '%s': its file has %lld bytes, less "
				       "than the block", ram->name, (long long)st.st_size);
	return 0;
}

/* Is all of a block mapped where the peer says? */
struct coverage {
	const struct ferry_proto_ram *ram;
	struct stat st;
	uint64_t at;
};

static int cover(void *ctx, const struct ferry_proc_area *area)
{
	struct coverage *c = ctx;

	if (area->end <= c->at)
		return 0;
	if (area->start > c->at || !area->shared || area->dev != c->st.st_dev ||
	    area->ino != c->st.st_ino ||
	    area->off_bytes + (c->at - area->start) !=
		    c->ram->fd_offset + (c->at - c->ram->addr))
		return -ENXIO;
	c->at = area->end;
	return c->at >= c->ram->addr + c->ram->bytes;
}

static int check_mapped(pid_t pid, const struct ferry_proto_ram *ram, int fd,
			struct ferry_error *err)
{
	struct coverage c = { .ram = ram, .at = ram->addr };
	int r;

	if (fstat(fd, &c.st))
		return ferry_error_set(err, errno, "guest RAM '%s': %s", ram->name,
				       strerror(errno));
	r = ferry_proc_maps(pid, cover, &c);
	if (r == 1)
		return 0;
	if (r && r != -ENXIO)
		return ferry_error_set(err, -r, "reading /proc/%d/maps: %s; run ferry as root",
				       (int)pid, strerror(-r));
	return ferry_error_set(err, ENXIO, "pid %d does not map guest RAM '%s' shared at %#llx as it "
			       "says; ferry_port_add_ram() needs the address of the whole mapping",
			       (int)pid, ram->name, (unsigned long long)ram->addr);
}

int ferry_vmm_describe(struct ferry_guest *guest, struct ferry_ram *ram, struct ferry_error *err)
{
	struct ferry_vmm *v = ferry_vmm_of(guest);
	uint32_t i;
	int r = 0;

	for (i = 0; i < v->vmm.welcome.blocks && !r; i++) {
		struct ferry_ram_block block = { 0 };
		struct ferry_proto_ram told;

		r = ask_block(v, &v->vmm, i, &told, &block.fd, err);
		if (r)
			return r;
		strcpy(block.name, told.name);
		block.size_bytes = told.bytes;
		block.page_size = told.page_bytes;
		block.fd_off_bytes = told.fd_offset;
		block.vmm_addr = told.addr;
		r = check_file(&told, block.fd, err);
		if (!r)
			r = ferry_ram_add(ram, &block, err);
		if (r)
			close(block.fd);
	}
	return r;
}

/* ---- members ---- */

static int open_member(struct ferry_vmm *v, uint32_t which, struct ferry_error *err)
{
	struct ferry_channel_message m = { .head.type = FERRY_PROTO_MEMBER, .fd = -1 };
	struct ferry_vmm_peer *peer = &v->members[v->n_members];
	uint32_t pid;
	int r;

	m.head.length = (uint32_t)ferry_proto_u32_encode(which, m.body);
	r = ferry_vmm_call(v, &v->vmm, &m, "reaching a registered process", err);
	if (r)
		return r;
	ferry_proto_u32_decode(&pid, m.body, m.head.length);
	*peer = (struct ferry_vmm_peer){ .sock = m.fd, .pid = (pid_t)pid };
	v->n_members++;
	peer->addrs = calloc(v->vmm.welcome.blocks, sizeof(*peer->addrs));
	peer->index = calloc(v->vmm.welcome.blocks, sizeof(*peer->index));
	if (!peer->addrs || !peer->index)
		return ferry_error_set(err, ENOMEM, "no memory for registered processes");
	r = ferry_vmm_hello(v, peer, err);
	if (!r && !(peer->welcome.has & FERRY_PROTO_IS_MEMBER))
		r = ferry_error_set(err, EPROTO, "pid %u registered, but is none", pid);
	v->peers.members[v->peers.n_members++] = peer->pid;
	return r;
}

static int match_member(struct ferry_vmm *v, struct ferry_vmm_peer *peer,
			const struct ferry_ram *ram, struct ferry_error *err)
{
	uint32_t i;
	int r = 0;

	for (i = 0; i < peer->welcome.blocks && !r; i++) {
		struct ferry_proto_ram told;
		int fd = -1, at;

		r = ask_block(v, peer, i, &told, &fd, err);
		if (r)
			return r;
		at = ferry_ram_find(ram, told.name);
		if (at < 0 || ram->blocks[at].size_bytes != told.bytes ||
		    ram->blocks[at].fd_off_bytes != told.fd_offset)
			r = ferry_error_set(err, EINVAL, "pid %d registered RAM '%s', which the VMM "
					    "has not so", (int)peer->pid, told.name);
		else
			r = check_mapped(peer->pid, &told, ram->blocks[at].fd, err);
		if (!r) {
			peer->addrs[at] = told.addr;
			peer->index[at] = i;
		}
		close(fd);
	}
	return r;
}

static int open_members(struct ferry_vmm *v, const struct ferry_ram *ram,
			struct ferry_error *err)
{
	uint32_t i;
	int r = 0;

	if (v->n_members)
		return 0; /* a second check() */
	for (i = 0; i < v->vmm.welcome.members && !r; i++) {
		r = open_member(v, i, err);
		if (!r)
			r = match_member(v, &v->members[i], ram, err);
	}
	return r;
}

/* ---- check ---- */

static int check_state(struct ferry_vmm *v, struct ferry_error *err)
{
	bool source = v->role == FERRY_GUEST_SOURCE;
	uint32_t state;
	int r = ferry_vmm_state(v, &state, err);

	if (r)
		return r;
	if (!source && !(state & FERRY_PROTO_STATE_INCOMING))
		return ferry_error_set(err, EINVAL, "the VMM (pid %d) at %s waits for no guest: it "
				       "%s; start one as a destination (FERRY_PORT_INCOMING)",
				       (int)v->guest.pid, v->guest.path,
				       state & FERRY_PROTO_STATE_BROKEN ?
				       "failed to load one" :
				       state & FERRY_PROTO_STATE_LOADED ?
				       "has loaded one" : "has one");
	if (source && (state & (FERRY_PROTO_STATE_INCOMING | FERRY_PROTO_STATE_LOADED |
				FERRY_PROTO_STATE_BROKEN)))
		return ferry_error_set(err, EBUSY, "the VMM (pid %d) at %s is a destination: its "
				       "guest has not run here", (int)v->guest.pid, v->guest.path);
	if (source && (state & FERRY_PROTO_STATE_QUIESCED))
		return ferry_error_set(err, EBUSY, "the VMM (pid %d) has let its devices go to "
				       "another one; resume its guest first", (int)v->guest.pid);
	return 0;
}

static int check_memory(struct ferry_vmm *v, const struct ferry_ram *ram, struct ferry_error *err)
{
	unsigned int i;
	int r = ferry_peers_ram(&v->peers, ram, err);

	for (i = 0; i < ram->count && !r; i++) {
		const struct ferry_ram_block *b = &ram->blocks[i];
		struct ferry_proto_ram told = { .bytes = b->size_bytes, .addr = b->vmm_addr,
						.fd_offset = b->fd_off_bytes };

		strcpy(told.name, b->name);
		r = check_mapped(v->guest.pid, &told, b->fd, err);
	}
	return r;
}

int ferry_vmm_check(struct ferry_guest *guest, struct ferry_error *err)
{
	struct ferry_vmm *v = ferry_vmm_of(guest);
	struct ferry_ram ram;
	int r = check_state(v, err);

	if (!r)
		r = ferry_vmm_ask(v, FERRY_PROTO_CHECK, "asking whether the guest can be migrated",
				  err);
	if (r)
		return r;
	ferry_ram_init(&ram);
	r = ferry_vmm_describe(guest, &ram, err);
	if (!r)
		r = check_memory(v, &ram, err);
	if (!r)
		r = open_members(v, &ram, err);
	if (!r)
		r = ferry_peers_check(&v->peers, err);
	ferry_ram_free(&ram);
	return r;
}

/* ---- cpr ---- */

int ferry_vmm_check_heir(struct ferry_guest *guest, struct ferry_guest *old,
			 struct ferry_error *err)
{
	struct ferry_vmm *v = ferry_vmm_of(guest), *from = ferry_vmm_of(old);
	struct ferry_vmm *with = v->vmm.welcome.members ? v : from;

	/* They would have to be handed over too, which nobody has told them. */
	if (with->vmm.welcome.members)
		return ferry_error_set(err, EOPNOTSUPP, "%u processes have registered with the VMM (pid "
				       "%d): a guest with such cannot be handed to another VMM yet",
				       with->vmm.welcome.members, (int)with->guest.pid);
	return 0;
}

int ferry_vmm_adopt(struct ferry_guest *guest, const struct ferry_ram *ram, bool ask,
		    struct ferry_error *err)
{
	struct ferry_vmm *v = ferry_vmm_of(guest);
	unsigned int i;
	int r = 0;

	if (!(v->vmm.welcome.has & FERRY_PROTO_HAS_ADOPT))
		return 1;
	for (i = 0; i < ram->count && !r; i++) {
		struct ferry_channel_message m = { .head.type = FERRY_PROTO_ADOPT };
		const struct ferry_ram_block *b = &ram->blocks[i];
		struct ferry_proto_ram told = { .bytes = b->size_bytes, .page_bytes = b->page_size,
						.fd_offset = b->fd_off_bytes,
						.addr = b->vmm_addr };

		strcpy(told.name, b->name);
		m.fd = ask ? -1 : b->fd;
		m.head.length = (uint32_t)ferry_proto_ram_encode(&told, m.body);
		r = ferry_vmm_call(v, &v->vmm, &m, ask ? "asking whether it takes the guest's RAM" :
				   "passing guest RAM", err);
	}
	if (!r && !ask)
		v->vmm.welcome.blocks = ram->count;
	return r;
}

int ferry_vmm_quiesce(struct ferry_guest *guest, struct ferry_error *err)
{
	struct ferry_vmm *v = ferry_vmm_of(guest);

	if (!(v->vmm.welcome.has & FERRY_PROTO_HAS_QUIESCE))
		return 0;
	return ferry_vmm_ask_u32(v, FERRY_PROTO_QUIESCE, 1, "letting the devices go", err);
}
