/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef MODULE_MACHINE_H
#define MODULE_MACHINE_H

#include <stddef.h>
#include <stdint.h>

struct kvm_run;

/*
 * A KVM guest that is one loop in protected mode: add 1 to a word of each page it is sent
 * over, then halt. Its code lies in the first page of its memory.
 */
struct machine {
	int kvm;
	int vm;
	int vcpu;
	struct kvm_run *run;
};

/* Everything here returns 0 or a negative errno. */
/* memory becomes slot 0, with these KVM_MEM_* flags. */
int machine_make(struct machine *machine, char *memory, size_t bytes, uint32_t flags);
/* Add 1 to n words from base on, stride bytes apart. */
int machine_pass(struct machine *machine, uint64_t base, uint64_t n, uint64_t stride);
void machine_end(struct machine *machine);

#endif
