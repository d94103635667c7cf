/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef SELFTESTS_UNIT_FAKE_QEMU_H
#define SELFTESTS_UNIT_FAKE_QEMU_H

#include <stdint.h>
#include <sys/types.h>

#include "guest/guest.h"

/*
 * A child process that plays QEMU: it maps a shared memory file and answers QMP from a table,
 * where a test overrides the one answer it is about.
 */
#define RAM_BYTES (1u << 20)

/* A command (part of its JSON) and the "return" of its answer; "!text" is an error. */
struct answer {
	const char *match, *reply;
};

struct fake {
	char dir[64], path[96], ram[96];
	pid_t pid;
};

void fake_start(struct fake *f, const struct answer *overrides);
/** fake_start_at() - @ram_dir: where the RAM file goes; @flags of its mapping, 0 for none. */
void fake_start_at(struct fake *f, const struct answer *overrides, const char *ram_dir, int flags);
void fake_stop(struct fake *f);

struct ferry_guest *fake_open(const struct fake *f, enum ferry_guest_role role);
struct ferry_guest *fake_open_with(const struct fake *f, enum ferry_guest_role role,
				   const char *undo, const pid_t *peer);

/** map_ram() - a process maps it; for as long as that lives. */
void map_ram(const char *path, int flags);

#endif
