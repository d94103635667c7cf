/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_VMM_VMM_H
#define FERRY_VMM_VMM_H

#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "include/ferry.h"
#include "vmm/payload/payload.h"

#define MAX_VCPUS 64
#define MAX_CPUIDS 256

enum { LOG_NONE, LOG_KVM, LOG_RING };
struct options {
	const char *port, *ram_file, *save, *load;
	uint64_t ram[PAYLOAD_MAX_BLOCKS], blocks, vcpus;	/* bytes; how many */
	uint64_t working_set, fill;				/* bytes */
	uint64_t dirty_rate, zero_percent; /* pages a second, 0: all they can */
	uint64_t pattern, threads, incoming, adopt, json, log;
};

struct vcpu {
	struct vmm *vmm;
	unsigned int number;
	pthread_t thread;
	struct payload_lane *lane;
	uint64_t due_ns, slice_ns;		/* dirty rate; throttle: when it may go on */
	uint64_t told;				/* of its errors */
	int fd;					/* KVM's from here on */
	struct kvm_run *run;			/* NULL with --engine threads */
	struct kvm_dirty_gfn *ring;
	uint32_t ring_next;
};

struct vmm {
	struct options opt;
	struct ferry_port *port;
	struct vcpu vcpu[MAX_VCPUS];
	/* ram.c: blocks as they lie here and in the guest */
	struct payload_map host, guest;
	int ram_fd[PAYLOAD_MAX_BLOCKS];
	/* crew.c; written under lock */
	pthread_mutex_t lock;
	pthread_cond_t changed;
	unsigned int paused, busy, throttle, crashed; /* PAUSED_..., threads, percent, vCPUs */
	/* kvm.c, state.c */
	int kvm, fd;
	struct kvm_cpuid2 *cpuid;
	struct msrs *msrs;			/* those that are saved */
	pthread_mutex_t ring_lock;
	uint64_t *pending[PAYLOAD_MAX_BLOCKS];	/* bits from dirty rings, not yet asked for */
	/* main.c */
	bool placed, quitting; /* the guest is or was in this RAM; the port said quit */
	/* payload/boot.c: the first pages, which the guest may not use */
	uint64_t head_pages;
	/* report.c: when the last line was, and what it said; all that checks found wrong */
	sigset_t signals;
	uint32_t tsc_khz;
	uint64_t start_ns, said_ns, said_work, bad;
};

struct options options_parse(int argc, char **argv);	/* exits when they are wrong */

/* Say what went wrong to who is here and to who migrates. Return: -@errnum. */
int vmm_error(struct vmm *vmm, int errnum, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
uint64_t vmm_now_ns(int clock);

/* Those with a void *ctx are callbacks of the port; it is the struct vmm. */
extern const char *const ram_names[];
int ram_create(struct vmm *vmm);
unsigned int ram_number(const struct vmm *vmm, const char *name); /* opt.blocks: none is called so */
int ram_adopt(void *ctx, struct ferry_port_ram *ram);

/* One thread a vCPU. The guest runs while nobody wants it paused. */
enum { PAUSED_BY_PORT = 1, PAUSED_BY_CHECK = 2, PAUSED_TO_END = 4 };
int crew_create(struct vmm *vmm);		/* paused by the port */
void crew_pause(struct vmm *vmm, unsigned int by);	/* returns when all are idle */
void crew_resume(struct vmm *vmm, unsigned int by);
int crew_tick(struct vmm *vmm);	/* ends slices when throttled. Return: ms to the next one */

int kvm_create(struct vmm *vmm);		/* vCPUs that could be started or loaded */
int kvm_run(struct vcpu *vcpu);			/* 0 after a batch, -EINTR when kicked, -EFAULT */
void kvm_kick(struct vcpu *vcpu);		/* make it return soon; from any thread */
int kvm_dirty_start(void *ctx);
void kvm_dirty_stop(void *ctx);
int kvm_dirty_sync(void *ctx, const char *name, uint64_t *bitmap, uint64_t pages);

/* What there is of a guest besides its RAM, as a stream. */
int state_create(struct vmm *vmm);		/* once there are vCPUs: which MSRs they have */
int state_msr(struct vcpu *vcpu, unsigned long request, uint32_t index, uint64_t *value);
int state_save(void *ctx, int fd);
int state_load(void *ctx, int fd);

/* The guest: where its parts are in RAM; what it finds there and in its vCPUs when it starts. */
int boot_lay_out(struct vmm *vmm);
int boot_fill(struct vmm *vmm);
int boot_start(struct vmm *vmm);
uint64_t boot_check(struct vmm *vmm);	/* how many hidden registers are not what they were */

void report_create(struct vmm *vmm);	/* before there are threads */
void report_loop(struct vmm *vmm);	/* a line a second, until a signal ends it */
int report_end(struct vmm *vmm, bool check);	/* return: the exit status */
#endif
