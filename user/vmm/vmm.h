/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_VMM_VMM_H
#define FERRY_VMM_VMM_H

#include <linux/kvm.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>

#include "include/ferry.h"
#include "vmm/payload/payload.h"

#define MAX_VCPUS 64
#define MAX_CPUIDS 256
#define MAX_MSRS 512
#define SECOND 1000000000ULL	/* ns */
#define KICK SIGRTMIN		/* it ends a KVM_RUN */

enum { LOG_NONE, LOG_KVM, LOG_RING };
struct options {
	const char *port, *ram_file;
	uint64_t ram[PAYLOAD_MAX_BLOCKS], blocks, vcpus; /* bytes; how many */
	uint64_t threads, incoming, adopt, log;
	struct payload_work work;
};

struct vcpu {
	struct vmm *vmm;
	unsigned int number;
	pthread_t thread;
	struct payload_lane *lane;
	uint64_t due_ns, slice_ns;		/* dirty rate; throttle: when it may go on */
	uint64_t told_errors;			/* how many, in the last line */
	int fd;
	struct kvm_run *run;			/* NULL with --engine threads */
	struct kvm_dirty_gfn *ring;
	uint32_t ring_next;
};

struct cpuid { struct kvm_cpuid2 head; struct kvm_cpuid_entry2 entry[MAX_CPUIDS]; };
struct msrs { struct kvm_msrs head; struct kvm_msr_entry entry[MAX_MSRS]; };

struct vmm {
	struct options opt;
	struct ferry_port *port;
	struct vcpu vcpu[MAX_VCPUS];
	bool placed; /* the guest is or was in this RAM */
	/* Blocks of RAM as they lie here and in the guest; the first pages, which it may not use */
	struct payload_map host, guest;
	int ram_fd[PAYLOAD_MAX_BLOCKS];
	uint64_t head_pages;
	/* crew.c; written under lock */
	pthread_mutex_t lock;
	pthread_cond_t changed;
	unsigned int paused, busy, throttle, crashed; /* PAUSED_..., threads, percent, vCPUs */
	/* kvm.c, state.c */
	int kvm, fd;
	struct cpuid cpuid;			/* of every vCPU */
	struct msrs msrs;			/* those that are saved */
	pthread_mutex_t ring_lock;
	uint64_t *pending[PAYLOAD_MAX_BLOCKS];	/* bits from dirty rings, not yet asked for */
	/* payload/report.c: when the last line was and what it told; all that checks found wrong */
	uint64_t start_ns, told_ns, told_work, bad;
};

struct options options_parse(int argc, char **argv);	/* exits when they are wrong */

/* Say what went wrong to who is here and to who migrates. Return: -@errnum. */
int vmm_error(struct vmm *vmm, int errnum, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
#define vcpu_error(vcpu, errnum, fmt, ...) \
	vmm_error((vcpu)->vmm, errnum, "vCPU %u: " fmt, (vcpu)->number, ##__VA_ARGS__)
uint64_t vmm_now_ns(int clock);

/* A void *ctx is the struct vmm, of the port's callbacks. */
int port_create_ram(struct vmm *vmm);
unsigned int port_block(const struct vmm *vmm, const char *name); /* opt.blocks: none */
int port_create(struct vmm *vmm);

/* One thread a vCPU. The guest runs while nobody wants it paused. */
enum { PAUSED_BY_PORT = 1, PAUSED_BY_CHECK = 2, PAUSED_TO_END = 4 };
int crew_create(struct vmm *vmm);		/* paused by the port */
void crew_pause(struct vmm *vmm, unsigned int by);	/* returns when all are idle */
void crew_resume(struct vmm *vmm, unsigned int by);
int crew_tick(struct vmm *vmm);	/* ends slices when throttled. Return: ms to the next one */

int kvm_create(struct vmm *vmm);		/* vCPUs that could be started or loaded */
/* An ioctl that does @what. Return: what it returned, or -errno once that was said. */
int kvm_do(struct vmm *vmm, int fd, unsigned long request, void *arg, const char *what);
int kvm_run(struct vcpu *vcpu);			/* 0 after a batch, -EINTR when kicked, -errno */
int kvm_dirty_start(void *ctx);
void kvm_dirty_stop(void *ctx);
int kvm_dirty_sync(void *ctx, const char *name, uint64_t *bitmap, uint64_t pages);

int state_create(struct vmm *vmm);		/* once there are vCPUs: which MSRs they have */
int state_msr(struct vcpu *vcpu, unsigned long request, uint32_t index, uint64_t *value);
int state_save(void *ctx, int fd);
int state_load(void *ctx, int fd);

/* payload/: where the guest's parts are in RAM; what it finds there and in its vCPUs at first. */
int boot_lay_out(struct vmm *vmm);
int boot_cpuid(struct vmm *vmm);
int boot_start(struct vmm *vmm);
uint64_t boot_check(struct vmm *vmm);	/* how many hidden registers are not what they were */
void report_start(struct vmm *vmm);
void report_work(struct vmm *vmm);
void report_check(struct vmm *vmm);	/* all of RAM */
int report_end(struct vmm *vmm);	/* return: the exit status */
#endif
