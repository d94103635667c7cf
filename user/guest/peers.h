/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_GUEST_PEERS_H
#define FERRY_GUEST_PEERS_H

#include <stdbool.h>
#include <sys/types.h>

#include "base/error.h"
#include "guest/guest.h"
#include "ram/ram.h"

/*
 * Which processes map guest RAM: the VMM, those that may (the agent, the other side of a
 * cpr, members, which register with the VMM's port), and strangers.
 */
#define FERRY_PEERS_MAX_MEMBERS 16

struct ferry_peers_file {
	dev_t dev;
	ino_t ino;
	char name[FERRY_RAM_NAME_MAX]; /* of the RAM block */
};

struct ferry_peers {
	pid_t vmm;
	pid_t allowed[FERRY_GUEST_MAX_PEERS];
	unsigned int n_allowed;
	pid_t members[FERRY_PEERS_MAX_MEMBERS]; /* where views are, they map nothing else */
	unsigned int n_members;
	struct ferry_peers_file *files; /* of guest RAM, owned */
	unsigned int n_files;
	bool source;
	const char *advice; /* how to get rid of a stranger */
	pid_t viewer; /* a stranger that maps a tracked view, or 0 */
};

/** ferry_peers_allow() - @pid may map the RAM plainly; what does not fit stays a stranger. */
void ferry_peers_allow(struct ferry_peers *p, pid_t pid);

/** ferry_peers_ram() - these blocks are the RAM. Return: 0, -ENOMEM, -errno of fstat(2). */
int ferry_peers_ram(struct ferry_peers *p, const struct ferry_ram *ram, struct ferry_error *err);

/**
 * ferry_peers_check() - refuse strangers that write the RAM unseen; notes a viewer
 *
 * Return: 0; -EBUSY with the pid; -errno: somebody could not be looked at.
 */
int ferry_peers_check(struct ferry_peers *p, struct ferry_error *err);

/** ferry_peers_check_views() - see check_views of struct ferry_guest_ops. */
int ferry_peers_check_views(const struct ferry_peers *p, struct ferry_error *err);

/** ferry_peers_count() - see count of struct ferry_dirty_views. */
int ferry_peers_count(struct ferry_peers *p, struct ferry_error *err);

/** ferry_peers_others() - see others of struct ferry_dirty_views. */
int ferry_peers_others(struct ferry_peers *p, int (*fn)(void *fn_ctx, pid_t pid, int fd),
		       void *fn_ctx, struct ferry_error *err);

#endif
