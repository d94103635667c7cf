/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef SELFTESTS_UNIT_QEMU_RIG_H
#define SELFTESTS_UNIT_QEMU_RIG_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "guest/guest.h"
#include "guest/qmp.h"

#define STATE_MAX (64u << 20)

/*
 * A real QEMU for the driver to work on (software CPU, no guest system: the firmware looking
 * for a disk is guest enough). It has two QMP sockets: the driver's, and one by which the
 * test looks at it independently.
 */
struct vm {
	char dir[64], spec[128], path[96], spy_path[96], ram[96], log[96];
	pid_t pid;
	struct ferry_qmp *spy;
	char *before; /* what the test saw of it at the start */
};

/* How a QEMU is started; zero is a running guest with good RAM. */
struct how {
	bool incoming, as_nobody;
	const char *memory;	/* instead of "share=on,mem-path=<ram>" */
	const char *extra[10];
};

/* @call fills the caller's err. */
#define OK(call) do { \
	int r_ = (call); \
	if (r_ < 0) \
		fail_msg("%s: %d %s", #call, r_, err.text); \
} while (0)

/** rig_have_qemu() - false: nothing can be tested, and it has printed so. */
bool rig_have_qemu(void);

void vm_start(struct vm *vm, const struct how *how);
void vm_stop(struct vm *vm);
/** vm_ended() - whether it ends by itself, soon. */
bool vm_ended(struct vm *vm);

struct json_object *vm_ask(struct vm *vm, const char *command);
void vm_assert_status(struct vm *vm, const char *expected);
/** vm_look() - all that undo() must put back, as one text. */
char *vm_look(struct vm *vm);
/** vm_assert_put_back() - it is as it was when it started. */
void vm_assert_put_back(struct vm *vm);
void vm_copy_ram(struct vm *from, struct vm *to);

struct ferry_guest *vm_open_guest(struct vm *vm, enum ferry_guest_role role,
				  struct ferry_guest_host *host, const char *undo, int held_fd);
/** vm_open() - without anybody who keeps records of it. */
struct ferry_guest *vm_open(struct vm *vm, enum ferry_guest_role role);
void vm_end_pair(struct ferry_guest *from, struct vm *a, struct ferry_guest *to, struct vm *b,
		 uint8_t *blob);

/* The record of a migration as the engine keeps it: the last undo text. */
struct record {
	char undo[4096];
	int writes;
};

int rig_record_write(void *ctx, const char *undo, struct ferry_error *err);

/**
 * rig_put_views() - another mapping of the same memory in the place of guest RAM
 *
 * Without the kernel module it is a plain one, and the file is opened once more for it.
 */
void rig_put_views(struct ferry_guest *guest);
/** rig_source_steps() - the first @steps of a source's migration. */
void rig_source_steps(struct ferry_guest *guest, int steps);

#endif
