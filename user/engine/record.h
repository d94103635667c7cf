/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_ENGINE_RECORD_H
#define FERRY_ENGINE_RECORD_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "engine/state.h"
#include "engine/stats.h"
#include "engine/task.h"

/*
 * What one side of a migration must know after a crash. Who owns the guest is
 * decided by the phase alone, and a phase is durable before anything is done
 * that relies on it. The order of the phases of a role is the order they are
 * written in; selftests/model checks what may follow what.
 */
enum ferry_phase {
	FERRY_PHASE_OPEN,	  /* both: nothing is decided, the source owns the guest */
	FERRY_PHASE_COMMIT,	  /* source: never resumes by itself from here on */
	FERRY_PHASE_RAN,	  /* both: the destination owns the guest, and said so */
	FERRY_PHASE_COMMIT_WAIT,  /* destination: loaded, stopped, waits for RUN */
	FERRY_PHASE_RUN_ACCEPTED, /* destination: owns the guest, may have started it */
	FERRY_PHASE_REFUSED,	  /* destination: could not start it, never will */
	FERRY_PHASE_ABORTED,	  /* gave up before COMMIT (source), before RUN (destination) */
	FERRY_PHASE_FENCED,	  /* source: resumed by force, no answer counts any more */
	FERRY_PHASE_RAN_LACKS,	  /* both: as RAN, but pages are missing there that only we have */
	FERRY_PHASE_COUNT,
};

const char *ferry_phase_name(enum ferry_phase phase);
int ferry_phase_parse(const char *name);

#define FERRY_ID_MAX 64
#define FERRY_SPEC_MAX 512
#define FERRY_UUID_TEXT 37

struct ferry_record {
	char id[FERRY_ID_MAX];
	enum ferry_role role;
	enum ferry_state state; /* last published */
	enum ferry_phase phase;
	bool settled; /* cleaned up, nothing left to do: the id may be used again */
	uint8_t uuid[16];
	uint32_t epoch;
	char guest[FERRY_SPEC_MAX]; /* qmp:PATH */
	char uri[FERRY_SPEC_MAX];   /* where to connect or listen again */
	/* uri, role cpr: the guest's new VMM, qmp:PATH; the next four are of that role only. */
	char *to_undo;		    /* as undo, of the new VMM; NULL: not touched */
	pid_t to_vmm;
	char kept[FERRY_SPEC_MAX];  /* file of pages that loading touched; there: put them back */
	bool takes_name;	    /* in the end the new VMM's socket takes the place of the old's */
	char *undo;		    /* the guest driver's, malloc'ed; NULL: nothing disturbed */
	bool disturbed_peer;	    /* source: PACKAGE was sent, the destination may wait for RUN */
	bool guest_paused;	    /* it was paused before, and stays so */
	bool keep_source;
	bool postcopy;		    /* it has switched or is about to; destination: RAM is armed */
	bool release_ram;	    /* source: pages that were sent are gone here */
	uint8_t codec;		    /* source: as agreed at the start */
	bool checksum;
	uint32_t timeout_ms;
	/* Options that are needed after COMMIT, as they were last set. */
	uint64_t max_bandwidth;		 /* source: bytes/s, 0 unlimited */
	char spill_dir[FERRY_TASK_PATH]; /* source: "" no --spill */
	pid_t guardian;
	pid_t worker;
	pid_t vmm;
	struct ferry_stats stats;
	char error[1024];
};

void ferry_record_free(struct ferry_record *record);

/** ferry_uuid_make() - a random (version 4) uuid. */
int ferry_uuid_make(uint8_t uuid[16]);
void ferry_uuid_format(const uint8_t uuid[16], char text[FERRY_UUID_TEXT]);
int ferry_uuid_parse(const char *text, uint8_t uuid[16]);

#endif
