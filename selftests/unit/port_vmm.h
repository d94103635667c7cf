/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef SELFTESTS_UNIT_PORT_VMM_H
#define SELFTESTS_UNIT_PORT_VMM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "include/ferry.h"

/*
 * A VMM without a guest, for tests of the port: it notes which callbacks were called and
 * fails in the one it is told to.
 */
#define PORT_VMM_PAGES 256ul
#define PORT_VMM_BYTES (PORT_VMM_PAGES * 4096)

struct port_vmm {
	struct ferry_port *port;
	char path[64];
	int fd;		   /* RAM: blocks "low" (first half) and "high" */
	uint8_t *ram;
	uint64_t state;	   /* device state */
	size_t state_extra; /* bytes saved on top of it */
	int running;
	int percent;	   /* throttle */
	bool logging, quiesced, direct;
	char calls[1024];  /* "pause save resume " */
	char fail[32];	   /* the callback that fails, with -EIO and a text */
	pid_t pid;	   /* of a VMM in a process of its own */
};

enum {
	PORT_VMM_LOG = 1 << 8,	   /* with a dirty log */
	PORT_VMM_BARE = 1 << 9,    /* without any optional callback, nor running() and quit() */
	PORT_VMM_HANGS = 1 << 10,  /* save() never returns */
	PORT_VMM_STAYS = 1 << 11,  /* quit() does nothing */
};

/* What must be there, and does nothing. */
extern const struct ferry_port_ops port_idle_ops;

/** port_vmm_create() - listening at a path of its own; in memory that a fork shares. */
struct port_vmm *port_vmm_create(unsigned int flags);
/** port_vmm_serve() - the same with a thread that serves it. */
struct port_vmm *port_vmm_serve(unsigned int flags);
void port_vmm_destroy(struct port_vmm *v);

/** port_vmm_fork() - one that serves in a process of its own until it is told to quit. */
struct port_vmm *port_vmm_fork(unsigned int flags);
/** port_vmm_reap() - kill it if it lives. Return: its wait status. */
int port_vmm_reap(struct port_vmm *v);

#endif
