/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_GUEST_GUEST_H
#define FERRY_GUEST_GUEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"
#include "dirty/dirty.h"
#include "ram/ram.h"

/*
 * A guest as the engine sees it: RAM blocks, a run state, a blob of device
 * state. Drivers (qmp:, port:) are a const ops table plus an embedding struct.
 * One thread at a time uses a guest.
 *
 * Undo: before a driver disturbs the VMM it hands the engine a text that says
 * how to put everything back (host->journal, durable before it returns). With
 * that text alone another process can open the guest again and undo().
 */
enum ferry_guest_role { FERRY_GUEST_SOURCE, FERRY_GUEST_DESTINATION };

/* What a driver asks of the process that opened the guest. */
struct ferry_guest_host {
	/* Replace the undo text in the record. Durable on return. Return: 0 or -errno. */
	int (*journal)(void *ctx, const char *undo, struct ferry_error *err);
	/* Let the guardian keep a copy of a descriptor under a name ("guest"). */
	int (*hold)(void *ctx, const char *name, int fd, struct ferry_error *err);
	void *ctx;
};

struct ferry_guest_open_params {
	const char *spec; /* "qmp:PATH" */
	const struct ferry_guest_host *host; /* copied by open() */
	enum ferry_guest_role role;
	unsigned int timeout_ms; /* for every answer of the VMM */
	/* After a crash: the undo text of the record, and the held descriptor or -1. */
	const char *undo;
	int held_fd;
	/*
	 * Other processes that may map the RAM (the other VMM of a cpr, a second agent).
	 * The caller, its parent and the VMM always may; anybody else is refused by check().
	 */
	const pid_t *peers;
	unsigned int n_peers;
};

#define FERRY_GUEST_MAX_PEERS 8

struct ferry_guest;

struct ferry_guest_ops {
	const char *scheme; /* "qmp" */

	/* Connect, learn who the VMM is. Changes nothing there. May block up to the timeout. */
	int (*open)(const struct ferry_guest_open_params *params, struct ferry_guest **out,
		    struct ferry_error *err);

	/* Free our side; the VMM is left as it is (see undo). */
	void (*close)(struct ferry_guest *guest);

	/* Everything that forbids a migration of this guest, by name; changes nothing. */
	int (*check)(struct ferry_guest *guest, struct ferry_error *err);

	/* Fill @ram (initialised by the caller) with all shared blocks, opened, not mapped. */
	int (*describe)(struct ferry_guest *guest, struct ferry_ram *ram, struct ferry_error *err);

	/* Another process, the other VMM of a cpr, may map the RAM too. Before check(). */
	void (*allow)(struct ferry_guest *guest, pid_t pid);

	/*
	 * cpr: all that keeps @guest, a checked destination, from taking over the guest of
	 * @old, of the same driver; but for the RAM. Changes nothing.
	 */
	int (*check_heir)(struct ferry_guest *guest, struct ferry_guest *old,
			  struct ferry_error *err);

	/*
	 * cpr: guest RAM comes as the descriptors of @ram. @ask: only say whether it could.
	 * Return: 0; 1: it has RAM of its own, describe() tells which; -errno. NULL: 1.
	 */
	int (*adopt)(struct ferry_guest *guest, const struct ferry_ram *ram, bool ask,
		     struct ferry_error *err);

	/*
	 * cpr: of a paused source: let go of what two VMMs must not hold. resume() takes it
	 * back. NULL: pause() does that.
	 */
	int (*quiesce)(struct ferry_guest *guest, struct ferry_error *err);

	/* Set what the VMM needs for a migration in this role. Journaled; undone by undo(). */
	int (*prepare)(struct ferry_guest *guest, struct ferry_error *err);

	/* Is the guest running now? Return: 1, 0 or -errno. */
	int (*running)(struct ferry_guest *guest, struct ferry_error *err);

	/*
	 * Stop the vCPUs and drain all DMA. Journaled first: whether it had been running.
	 * A guest that is not running stays as it is.
	 */
	int (*pause)(struct ferry_guest *guest, struct ferry_error *err);

	/* Source: back to the run state it had before the first pause(). */
	int (*resume)(struct ferry_guest *guest, struct ferry_error *err);

	/*
	 * Device state of a paused guest: *@state is malloc'ed. More than @max bytes:
	 * -EFBIG, RAM is in it. After it only resume() or quit() make sense.
	 */
	int (*save)(struct ferry_guest *guest, size_t max, uint8_t **state, size_t *bytes,
		    struct ferry_error *err);

	/* Load it at the destination; the guest stays stopped, which is asserted. */
	int (*load)(struct ferry_guest *guest, const uint8_t *state, size_t bytes,
		    struct ferry_error *err);

	/*
	 * cpr: @guest, a prepared destination, gets ready to load what save() of @old, a
	 * prepared source, will give, and does so while it comes. While the guest runs: nothing
	 * is loaded before a save(). load() is asked all the same, and waits for the end of it.
	 * NULL: load() does it all.
	 */
	int (*couple)(struct ferry_guest *guest, struct ferry_guest *old, struct ferry_error *err);

	/*
	 * Start the guest at the destination. Harmless when it runs already.
	 * Return: 0; -EIO when it may or may not have run (the VMM died under way);
	 * any other errno: it certainly did not run and is stopped.
	 */
	int (*run)(struct ferry_guest *guest, struct ferry_error *err);

	/* Tell the network where the guest is now; best effort. */
	void (*announce)(struct ferry_guest *guest);

	/* End the VMM. Return: 0 when its process is gone or going. */
	int (*quit)(struct ferry_guest *guest, struct ferry_error *err);

	/*
	 * Take @percent (1..99) of their time from the vCPUs, instead of what was taken before;
	 * 0 gives all of it back. 0 while nothing is taken only asks whether it could be done:
	 * -EOPNOTSUPP with why not and what to do. Journaled; undone by undo(), also when the
	 * VMM has gone. NULL: this driver cannot do it.
	 */
	int (*throttle)(struct ferry_guest *guest, unsigned int percent, struct ferry_error *err);

	/*
	 * A userfaultfd for the VMM's memory (UFFDIO_API not done), owned by the caller.
	 * No copy stays in a source VMM. Journaled.
	 */
	int (*userfaultfd)(struct ferry_guest *guest, int *uffd, struct ferry_error *err);

	/*
	 * The same of a further process that has registered with the VMM and maps its RAM.
	 * @addrs: filled: where it maps each block of @ram, 0 not at all
	 * Return: 0; -ENOENT there are only @which; -errno. NULL: there are none.
	 */
	int (*member)(struct ferry_guest *guest, unsigned int which, const struct ferry_ram *ram,
		      uint64_t *addrs, pid_t *pid, int *uffd, struct ferry_error *err);

	/*
	 * Destination, with a userfaultfd registered: drop whatever page of @ram the VMM has
	 * mapped, so that each access faults. NULL: it maps none before its state is loaded.
	 */
	int (*zap)(struct ferry_guest *guest, const struct ferry_ram *ram, struct ferry_error *err);

	/* How to put tracked views into the VMM; belongs to @guest. NULL: it cannot be done. */
	void (*views)(struct ferry_guest *guest, struct ferry_dirty_views *views);

	/* The VMM's own dirty log; belongs to @guest. NULL: there is none in such guests. */
	void (*log)(struct ferry_guest *guest, struct ferry_dirty_log *log);

	/*
	 * Refuse other processes that map tracked views of the RAM, which check() lets pass
	 * at a source: for all trackers that do not see what they write.
	 */
	int (*check_views)(struct ferry_guest *guest, struct ferry_error *err);

	/*
	 * Can device DMA write guest RAM behind the page tables (direct I/O)? Checked
	 * afresh at each call. Return: 1 with @why naming what, 0 no, -errno.
	 */
	int (*direct_io)(struct ferry_guest *guest, char *why, size_t why_bytes,
			 struct ferry_error *err);

	/*
	 * Put back all the journal tells: capabilities, parameters, descriptors,
	 * registrations. Source with @resume: also the run state. Destination whose device
	 * state was loaded or began to be: ends the VMM (a second complete copy must not lie
	 * about) unless @resume, which there means it is the owner now and stays.
	 * Works on a guest opened again after a crash. Safe to repeat.
	 */
	int (*undo)(struct ferry_guest *guest, bool resume, struct ferry_error *err);
};

struct ferry_guest {
	const struct ferry_guest_ops *ops;
	pid_t pid; /* the VMM */
	char path[108];
	char version[64]; /* "QEMU 7.2.22" */
	uint64_t stopped_ns; /* when pause() last asked for the stop, all notes being made */
	char kind[72];	  /* equal on both sides: "port:my-vmm/1"; "" is the scheme alone */
};

extern const struct ferry_guest_ops ferry_guest_qemu;
extern const struct ferry_guest_ops ferry_guest_port;

/** ferry_guest_kind() - "qmp" or "port:my-vmm/1": guests move between equal kinds only. */
const char *ferry_guest_kind(const struct ferry_guest *guest);

/** ferry_guest_kind_text() - that in words: "a QEMU (qmp:)", "a VMM of kind 'x' (port:)". */
void ferry_guest_kind_text(const char *kind, char *text, size_t room);

/**
 * ferry_guest_parse() - driver and path of "qmp:PATH" or "port:PATH"
 *
 * Return: 0; -EINVAL with what to type.
 */
int ferry_guest_parse(const char *spec, const struct ferry_guest_ops **ops, const char **path,
		      struct ferry_error *err);

/** ferry_guest_open() - find the driver and open. The guest is closed by ops->close(). */
int ferry_guest_open(const struct ferry_guest_open_params *params, struct ferry_guest **out,
		     struct ferry_error *err);

#endif
