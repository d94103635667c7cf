/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_GUEST_PORT_PEERS_H
#define FERRY_GUEST_PORT_PEERS_H

#include <stdbool.h>
#include <sys/types.h>

#include "base/error.h"

/*
 * Which processes map guest RAM: the VMM, those that may (members, the other side of a
 * cpr, the agent), and strangers.
 */
#define FERRY_PEERS_MAX 32

struct ferry_peers_file {
	dev_t dev;
	ino_t ino;
};

struct ferry_peers {
	pid_t vmm;
	pid_t allowed[FERRY_PEERS_MAX];
	unsigned int n_allowed;
	struct ferry_peers_file *files; /* of guest RAM, owned */
	unsigned int n_files;
	bool source;
	pid_t viewer; /* a stranger that maps a tracked view, or 0 */
};

/**
 * ferry_peers_check() - refuse strangers that write the RAM unseen; notes a viewer
 *
 * Return: 0; -EBUSY with the pid; -errno: somebody could not be looked at.
 */
int ferry_peers_check(struct ferry_peers *p, struct ferry_error *err);

/** ferry_peers_count() - see count of struct ferry_dirty_views. */
int ferry_peers_count(struct ferry_peers *p, struct ferry_error *err);

/** ferry_peers_files() - see others of struct ferry_dirty_views. */
int ferry_peers_files(struct ferry_peers *p, int (*fn)(void *fn_ctx, pid_t pid, int fd),
		      void *fn_ctx, struct ferry_error *err);

#endif
