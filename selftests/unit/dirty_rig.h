/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef SELFTESTS_UNIT_DIRTY_RIG_H
#define SELFTESTS_UNIT_DIRTY_RIG_H

#include <stdbool.h>
#include <stdint.h>

#include "dirty/dirty.h"

#define PAGES 4096ul /* 16 MiB */
#define SIZE (PAGES * FERRY_PAGE_SIZE)
#define WAIT_MS 60000 /* kernels under emulation are slow */

/*
 * A process to track: a child that maps the same memory file, makes a userfaultfd (fetched
 * with pidfd_getfd) and obeys a control page.
 */
enum command {
	CMD_NONE,
	CMD_WRITE,  /* pages arg[0] .. +arg[1] */
	CMD_READ,
	CMD_MADVISE, /* the same, advice arg[2] */
	CMD_REMAP, /* something else over the same */
	CMD_RACE,   /* start the writers; arg[0]: with MADV_DONTNEED among them */
	CMD_STOP,   /* stop them */
	CMD_UFFD,   /* make another userfaultfd */
};

struct control {
	int command; /* atomic; CMD_NONE: done */
	uint64_t arg[3];
	int uffd; /* the child's number for it */
	int ready;
	int racing;
	int chaos;
	uint64_t writes;
};

struct target {
	struct control *control;
	uint8_t *mem; /* the same address in parent and child */
	uint8_t *shadow;
	struct ferry_ram ram;
	struct ferry_bitmap dirty;
	struct ferry_dirty_target t;
	struct ferry_dirty *d; /* while it is tracked */
	struct ferry_error err;
};

/** target_start() - a process with SIZE bytes of memory */
void target_start(struct target *t);
void target_start_on(struct target *t, int fd, uint64_t size_bytes, uint32_t page_size);
/** target_end() - tracked or not */
void target_end(struct target *t);
void target_tell(struct target *t, enum command command, uint64_t a, uint64_t b, uint64_t c);
/** target_fetch_uffd() - the one it made last */
void target_fetch_uffd(struct target *t);

void target_track(struct target *t, const struct ferry_dirty_ops *ops);
void target_untrack(struct target *t);
void target_collect(struct target *t);
/** target_expect() - collects; the dirty pages must be exactly [first, first + pages) */
void target_expect(struct target *t, uint64_t first, uint64_t pages);

int rig_memory_file(unsigned int flags);
#define HUGE_DIR "/tmp/ferry-test-dirty-XXXXXX"
/** rig_huge_file() - on a tmpfs with huge=always; skips where that cannot be mounted */
int rig_huge_file(char *dir);
void rig_huge_unmount(const char *dir);

/* A test, by name and as what cmocka hands to it, of one tracker. */
#define TEST(tracker_name, test)                                                                   \
	{                                                                                          \
		.name = #tracker_name " " #test, .test_func = test,                                \
		.initial_state = (void *)(uintptr_t)&ferry_dirty_##tracker_name,                   \
	}

/*
 * All of @tests, named after their tracker; or in their place one that is skipped, and says why
 * the tracker cannot run here. Evaluates to how many failed.
 */
#define RIG_RUN(tests)                                                                             \
	(rig_runs_here(&ferry_dirty_##tests) ? cmocka_run_group_tests(tests, NULL, NULL) :         \
					       rig_skip(&ferry_dirty_##tests))

bool rig_runs_here(const struct ferry_dirty_ops *ops);
int rig_skip(const struct ferry_dirty_ops *ops);

#endif
