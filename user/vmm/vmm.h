/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_VMM_VMM_H
#define FERRY_VMM_VMM_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "include/ferry.h"
#include "vmm/payload/guest.h"
#include "vmm/payload/payload.h"

#define MAX_VCPUS 64
#define MAX_CPUIDS 256

struct vmm;
struct vcpu {
	struct vmm *vmm;
	unsigned int number;
	pthread_t thread;
	struct payload_lane *lane;
	uint64_t due_ns, slice_ns;		/* dirty rate; throttle: when it may go on */
	int fd;					/* KVM's from here on */
	struct kvm_run *run;
	struct kvm_dirty_gfn *ring;
	uint32_t ring_next;
};

/* What runs the payload. */
struct engine {
	int (*create)(struct vmm *vmm);		/* vCPUs that could be started or loaded */
	int (*start)(struct vmm *vmm);		/* with the state of a guest that never ran */
	int (*run)(struct vcpu *vcpu);		/* 0 after a batch, -EINTR when kicked, -EFAULT */
	void (*kick)(struct vcpu *vcpu);	/* make run() return soon; from any thread */
	uint64_t (*check)(struct vmm *vmm);	/* how many registers are not what they were */
	struct ferry_port_ops port;		/* its kind, its state, its dirty log */
};
extern const struct engine engine_kvm, engine_threads;

struct vmm {
	struct options opt;
	const struct engine *engine;
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
	bool placed, quitting; /* the guest is in this RAM; the port said quit */
	/* payload/ */
	uint64_t head_pages;			/* the first that the guest may use */
	struct payload_report report;
};

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

/* What KVM knows of a guest, as a stream. */
int state_create(struct vmm *vmm);		/* once there are vCPUs: which MSRs they have */
int state_msr(struct vcpu *vcpu, unsigned long request, uint32_t index, uint64_t *value);
int state_save(void *ctx, int fd);
int state_load(void *ctx, int fd);
#endif
