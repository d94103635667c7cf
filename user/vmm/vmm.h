/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_VMM_VMM_H
#define FERRY_VMM_VMM_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "vmm/payload/payload.h"

#define MAX_VCPUS 64
#define MAX_CPUIDS 256
/* Pages of the first block that the VMM prepares; see ram.c. */
#define CODE_PAGE 1
#define MAP_PAGE 5
#define PAGE_TABLE_PAGE 6

struct options {
	const char *port, *ram_file, *save, *load;
	uint64_t ram[PAYLOAD_MAX_BLOCKS], blocks, vcpus;	/* bytes; how many */
	uint64_t working_set, fill;				/* bytes */
	uint64_t dirty_rate, zero_percent; /* pages a second, 0: all they can */
	uint64_t pattern, threads, incoming, adopt, json;
	uint64_t log;
};
enum { LOG_NONE, LOG_KVM, LOG_RING };

struct vmm;
struct vcpu {
	struct vmm *vmm;
	unsigned int number;
	pthread_t thread;
	struct payload_lane *lane;
	uint64_t due_ns, slice_ns;		/* dirty rate; throttle */
	int fd;					/* KVM's from here on */
	struct kvm_run *run;
	struct kvm_dirty_gfn *ring;
	uint32_t ring_next;
};

/* What runs the payload. */
struct engine {
	const char *kind;
	int (*create)(struct vmm *vmm);		/* vCPUs that could be started or loaded */
	int (*start)(struct vmm *vmm);		/* with the state of a guest that never ran */
	int (*run)(struct vcpu *vcpu);		/* 0 after a batch, -EINTR when kicked, -EFAULT */
	void (*kick)(struct vcpu *vcpu);	/* make run() return soon; from any thread */
	int (*save)(struct vmm *vmm, int fd);	/* vCPUs are idle in these three */
	int (*load)(struct vmm *vmm, int fd);
	uint64_t (*check)(struct vmm *vmm);	/* how many registers are not what they were */
	int (*dirty_log)(struct vmm *vmm, bool on);
	int (*dirty_sync)(struct vmm *vmm, unsigned int block, uint64_t *bitmap);
};
extern const struct engine engine_kvm, engine_threads;

struct vmm {
	struct options opt;
	const struct engine *engine;
	struct ferry_port *port;
	struct vcpu vcpu[MAX_VCPUS];
	/* ram.c: blocks as they lie here and in the guest, and how much the VMM prepares */
	struct payload_map host, guest;
	int ram_fd[PAYLOAD_MAX_BLOCKS];
	uint64_t pages, head_pages;
	/* crew.c; written under lock */
	pthread_mutex_t lock;
	pthread_cond_t changed;
	unsigned int paused, busy, throttle, crashed; /* PAUSED_..., threads, percent, vCPUs */
	/* kvm.c, state.c */
	int kvm, fd;
	struct kvm_cpuid2 *cpuid;
	struct kvm_msrs *msrs;			/* those that are saved */
	pthread_mutex_t ring_lock;
	uint64_t *pending[PAYLOAD_MAX_BLOCKS];	/* bits from dirty rings, not yet asked for */
	/* main.c, payload/report.c */
	bool placed, quitting; /* the guest is in this RAM; the port said quit */
	int timer;
	uint32_t tsc_khz;
	struct { uint64_t start_ns, ns, work, errors; } last;
};

/* Say what went wrong to who is here and to who migrates. Return: -@errnum. */
int vmm_error(struct vmm *vmm, int errnum, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
uint64_t vmm_now_ns(int clock);

/* payload/: the guest, and what is told to it and of it */
struct options options_parse(int argc, char **argv);	/* exits when they are wrong */
uint32_t report_tsc_khz(void);
void report_start(struct vmm *vmm);
void report_work(struct vmm *vmm, bool print);	/* since the last time */
uint64_t report_check(struct vmm *vmm);		/* all of RAM; how much of it is wrong */
uint64_t report_end(struct vmm *vmm, uint64_t bad);	/* all that ever was wrong */

int ram_create(struct vmm *vmm);
int ram_adopt(struct vmm *vmm, const char *name, int fd, uint64_t offset, uint64_t bytes,
	      void **addr);
int ram_fill(struct vmm *vmm);			/* with what a guest finds when it starts */

/* One thread a vCPU. The guest runs while nobody wants it paused. */
enum { PAUSED_BY_PORT = 1, PAUSED_BY_CHECK = 2, PAUSED_TO_END = 4 };
int crew_create(struct vmm *vmm);		/* paused by the port */
void crew_pause(struct vmm *vmm, unsigned int by);	/* returns when all are idle */
void crew_resume(struct vmm *vmm, unsigned int by);
void crew_kick(struct vmm *vmm);

/* What KVM knows of a guest, as a stream. */
int state_create(struct vmm *vmm);		/* once there are vCPUs: which MSRs they have */
int state_start(struct vcpu *vcpu);		/* values for MSRs that the payload cannot see */
uint64_t state_check(struct vmm *vmm);		/* how many of them are not what they were */
int state_save(struct vmm *vmm, int fd);
int state_load(struct vmm *vmm, int fd);
#endif
