/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_VMM_PAYLOAD_GUEST_H
#define FERRY_VMM_PAYLOAD_GUEST_H

/* The guest as the VMM deals with it: what it is to be, how it begins, what is told of it. */
#include <stdbool.h>
#include <stdint.h>

#include "vmm/payload/payload.h"

struct vmm;
struct vcpu;

struct options {
	const char *port, *ram_file, *save, *load;
	uint64_t ram[PAYLOAD_MAX_BLOCKS], blocks, vcpus;	/* bytes; how many */
	uint64_t working_set, fill;				/* bytes */
	uint64_t dirty_rate, zero_percent; /* pages a second, 0: all they can */
	uint64_t pattern, threads, incoming, adopt, json;
	uint64_t log;
};
enum { LOG_NONE, LOG_KVM, LOG_RING };

struct options options_parse(int argc, char **argv);	/* exits when they are wrong */

/* Where its parts are in RAM; what it finds there and in its vCPUs when it starts. */
int boot_lay_out(struct vmm *vmm);
int boot_fill(struct vmm *vmm);
int boot_kvm(struct vmm *vmm);
uint64_t boot_check_kvm(struct vmm *vmm);	/* how many hidden registers are not what they were */

struct payload_report {
	uint32_t tsc_khz;
	uint64_t start_ns, ns, work, errors;	/* when the last line was, and what it said */
	int signals;
	uint64_t bad;				/* pages and registers that checks found wrong */
};
int report_create(struct vmm *vmm);		/* before there are threads */
int report_load(struct vmm *vmm);		/* --load */
void report_loop(struct vmm *vmm);		/* a line a second, until a signal ends it */
int report_end(struct vmm *vmm);		/* return: the exit status */
#endif
