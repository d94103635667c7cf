/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_GUEST_QEMU_H
#define FERRY_GUEST_QEMU_H

#include <json-c/json.h>

#include "guest/guest.h"
#include "guest/journal.h"
#include "guest/peers.h"
#include "guest/qmp.h"

/* Private to the QEMU driver: what its files share. The design note is in qemu.c. */
struct ferry_qemu {
	struct ferry_guest guest;
	struct ferry_guest_host host; /* all zero: nobody keeps a journal */
	enum ferry_guest_role role;
	unsigned int timeout_ms;
	struct ferry_qmp *qmp;	/* NULL when the VMM of the undo text is gone */
	int pidfd;
	uint64_t start;		/* with the pid: which process it is */
	unsigned int major, minor;
	struct ferry_peers peers;
	struct ferry_qemu_memory *checked; /* what check() saw, for describe(), which comes next */
	unsigned int n_checked;
	bool migrating;		/* a migrate command may be under way */
	bool loaded;		/* load() succeeded in this process */
	int saving, loading;	/* our ends of channels that QEMU has for its state, or -1 */
	struct ferry_qemu *heir; /* loads what save() gives, or NULL */
	int written;		/* into `loading`: 0 or -errno */
	bool pid_checked;	/* the pid was seen mapping the RAM */
	bool viewed;		/* this process has put tracked views in */
	struct ferry_journal journal;
};

static inline struct ferry_qemu *ferry_qemu_of(struct ferry_guest *guest)
{
	return (struct ferry_qemu *)guest; /* the first member */
}

/** ferry_qemu_journal() - make the present undo text durable */
static inline int ferry_qemu_journal(struct ferry_qemu *q, struct ferry_error *err)
{
	return ferry_journal_write(&q->journal, &q->host, err);
}

/* qemu.c */

/** ferry_qemu_gone() - has the process ended? Waits for it up to @wait_ms. */
bool ferry_qemu_gone(const struct ferry_qemu *q, unsigned int wait_ms);

/** ferry_qemu_command() - ferry_qmp_command(), with -ESRCH "has gone" when the process ended. */
int ferry_qemu_command(struct ferry_qemu *q, const char *name, struct json_object *arguments,
		       int fd, struct json_object **ret, struct ferry_error *err);

/** ferry_qemu_kill() - SIGKILL, and wait for the end. Return: 0 or -ETIMEDOUT. */
int ferry_qemu_kill(struct ferry_qemu *q, struct ferry_error *err);

/* qemu_run.c: the run state */
#define FERRY_QEMU_STATUS_MAX 32
int ferry_qemu_status(struct ferry_qemu *q, char status[FERRY_QEMU_STATUS_MAX], bool *running,
		      struct ferry_error *err);
int ferry_qemu_running(struct ferry_guest *guest, struct ferry_error *err);
int ferry_qemu_pause(struct ferry_guest *guest, struct ferry_error *err);
int ferry_qemu_resume(struct ferry_guest *guest, struct ferry_error *err);
int ferry_qemu_run(struct ferry_guest *guest, struct ferry_error *err);
int ferry_qemu_quit(struct ferry_guest *guest, struct ferry_error *err);

/* qemu_state.c: the device state */
/**
 * ferry_qemu_migration() - status word of query-migrate
 * @status: "none" when QEMU knows of none
 * @reply: the whole answer, put by the caller; may be NULL
 */
int ferry_qemu_migration(struct ferry_qemu *q, char status[FERRY_QEMU_STATUS_MAX],
			 struct json_object **reply, struct ferry_error *err);
/** ferry_qemu_migration_active() - is that status one of a migration under way? */
bool ferry_qemu_migration_active(const char *status);
/** ferry_qemu_settle() - cancel a migration under way and wait for its end. */
int ferry_qemu_settle(struct ferry_qemu *q, struct ferry_error *err);
int ferry_qemu_save(struct ferry_guest *guest, size_t max, uint8_t **state, size_t *bytes,
		    struct ferry_error *err);
int ferry_qemu_load(struct ferry_guest *guest, const uint8_t *state, size_t bytes,
		    struct ferry_error *err);
int ferry_qemu_couple(struct ferry_guest *guest, struct ferry_guest *old, struct ferry_error *err);
#define FERRY_QEMU_STATE_FD "ferry-state"

/* qemu_caps.c: migration capabilities and parameters */
int ferry_qemu_prepare(struct ferry_guest *guest, struct ferry_error *err);
int ferry_qemu_caps_restore(struct ferry_qemu *q, struct ferry_error *err);
int ferry_qemu_params_restore(struct ferry_qemu *q, struct ferry_error *err);

/* qemu_memory.c: guest RAM */
struct ferry_qemu_memory {
	char id[FERRY_RAM_NAME_MAX];
	uint64_t size_bytes, fd_off_bytes, vmm_addr;
	uint64_t area_start, area_end; /* the first mapping, for /proc/PID/map_files */
	dev_t dev;
	ino_t ino;
	char path[512];
};
/** ferry_qemu_memory() - all RAM backends, each fit for migration. @list is freed by free(). */
int ferry_qemu_memory(struct ferry_qemu *q, struct ferry_qemu_memory **list, unsigned int *count,
		      struct ferry_error *err);
/** ferry_qemu_memory_bool() - a property of a backend; off when it has none of that name. */
int ferry_qemu_memory_bool(struct ferry_qemu *q, const char *id, const char *property, bool *on,
			   struct ferry_error *err);
/** ferry_qemu_verify() - be sure that our pid is QEMU's before anything is done to the process. */
int ferry_qemu_verify(struct ferry_qemu *q, struct ferry_error *err);
int ferry_qemu_describe(struct ferry_guest *guest, struct ferry_ram *ram,
			struct ferry_error *err);

/**
 * ferry_qemu_memory_open() - the file mapped at [@start, @end) in QEMU, plain also where a
 * tracked view of it is
 *
 * Return: descriptor, or -errno.
 */
int ferry_qemu_memory_open(const struct ferry_qemu *q, const struct ferry_peers_file *file,
			   uint64_t start, uint64_t end);

/* qemu_device.c: the devices people attached */
/** ferry_qemu_devices() - call @fn with id and QOM type of each until it returns non-zero. */
int ferry_qemu_devices(struct ferry_qemu *q,
		       int (*fn)(void *ctx, const char *id, const char *type), void *ctx,
		       struct ferry_error *err);
/** ferry_qemu_devices_check() - refuse what pins guest memory or is being plugged. */
int ferry_qemu_devices_check(struct ferry_qemu *q, struct ferry_error *err);

/* qemu_block.c: disks */
int ferry_qemu_blocks_check(struct ferry_qemu *q, struct ferry_error *err);
int ferry_qemu_direct_io(struct ferry_guest *guest, char *why, size_t why_bytes,
			 struct ferry_error *err);

/* qemu_check.c: refusals */
/** ferry_qemu_inmigrate() - Return: 0 when it waits for a migration; -EINVAL with what to do. */
int ferry_qemu_inmigrate(struct ferry_qemu *q, struct ferry_error *err);
int ferry_qemu_check(struct ferry_guest *guest, struct ferry_error *err);

int ferry_qemu_check_heir(struct ferry_guest *guest, struct ferry_guest *old,
			  struct ferry_error *err);

/* qemu_fd.c: descriptors passed in */
/** ferry_qemu_pass_fd() - Return: the number of @fd in QEMU, or -errno. */
int ferry_qemu_pass_fd(struct ferry_qemu *q, const char *name, int fd, struct ferry_error *err);
/** ferry_qemu_drop_fd() - close it there; fine when there is none. */
int ferry_qemu_drop_fd(struct ferry_qemu *q, const char *name, struct ferry_error *err);

/* qemu_view.c: tracked views in the place of guest RAM */
void ferry_qemu_views(struct ferry_guest *guest, struct ferry_dirty_views *views);
/** ferry_qemu_views_undo() - the plain mappings again that the journal tells of. */
int ferry_qemu_views_undo(struct ferry_qemu *q, struct ferry_error *err);
#define FERRY_QEMU_VIEW_FD "ferry-view"

/* qemu_throttle.c: less time for the vCPUs */
int ferry_qemu_throttle(struct ferry_guest *guest, unsigned int percent, struct ferry_error *err);
/** ferry_qemu_throttle_undo() - the limits that the journal tells of; also without a QEMU. */
int ferry_qemu_throttle_undo(struct ferry_qemu *q, struct ferry_error *err);

/* qemu_uffd.c: a userfaultfd of the VMM's memory */
int ferry_qemu_userfaultfd(struct ferry_guest *guest, int *uffd, struct ferry_error *err);
int ferry_qemu_zap(struct ferry_guest *guest, const struct ferry_ram *ram, struct ferry_error *err);
/** ferry_qemu_userfaultfd_undo() - close what the journal tells and QEMU did not have before. */
int ferry_qemu_userfaultfd_undo(struct ferry_qemu *q, struct ferry_error *err);
#define FERRY_QEMU_UFFD_DEVICE "ferry-userfaultfd"

/* qemu_undo.c */
int ferry_qemu_undo(struct ferry_guest *guest, bool resume, struct ferry_error *err);

#endif
