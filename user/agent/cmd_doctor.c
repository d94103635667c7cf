// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <json-c/json.h>
#include <linux/capability.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#include "agent/command.h"
#include "agent/report.h"
#include "agent/runtime.h"
#include "base/log.h"
#include "dirty/dirty.h"
#include "engine/fault_points.h"
#include "fault/uffd.h"
#include "inject/inject.h"

/* One feature: 0 it works here, otherwise why not and what to do. */
struct doctor_check {
	const char *name;
	const char *what; /* it is needed for */
	bool needed;	  /* nothing works without it */
	int (*run)(struct ferry_error *err);
};

static int doctor_runtime(struct ferry_error *err)
{
	char dir[FERRY_RUNTIME_PATH];

	return ferry_runtime_dir(dir, err);
}

static int doctor_memfd(struct ferry_error *err)
{
	int fd = memfd_create("ferry-doctor", MFD_CLOEXEC), r = 0;

	if (fd < 0)
		return ferry_error_set(err, errno, "memfd_create: %s", strerror(errno));
	if (ftruncate(fd, 1 << 20) || pwrite(fd, "x", 1, 4096) != 1 ||
	    fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 1 << 20) ||
	    lseek(fd, 0, SEEK_DATA) >= 0)
		r = ferry_error_set(err, EOPNOTSUPP,
				    "memory files of this kernel do not do punch hole and SEEK_DATA");
	close(fd);
	return r;
}

/* A child of ours is what QEMU would be. */
static int doctor_ptrace(struct ferry_error *err)
{
	struct ferry_inject *inj = NULL;
	const uint64_t none[6] = { 0 };
	int64_t result = 0;
	pid_t pid = fork();
	int r;

	if (pid < 0)
		return ferry_error_set(err, errno, "cannot fork: %s", strerror(errno));
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (;;)
			pause();
	}
	r = ferry_inject_open(pid, &inj, err);
	if (!r)
		r = ferry_inject_syscall(inj, 39 /* getpid */, none, &result, err);
	if (!r && result != pid)
		r = ferry_error_set(err, EIO, "an injected getpid gave %lld", (long long)result);
	ferry_inject_close(inj);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	return r;
}

/* Whoever else maps guest RAM would write to it unseen; for that all processes are looked at. */
static int doctor_others(struct ferry_error *err)
{
	struct __user_cap_header_struct head = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3] = { 0 };

	if (syscall(SYS_capget, &head, data))
		return ferry_error_set(err, errno, "cannot tell its rights: %s", strerror(errno));
	if (data[CAP_TO_INDEX(CAP_SYS_PTRACE)].effective & CAP_TO_MASK(CAP_SYS_PTRACE))
		return 0;
	return ferry_error_set(err, EPERM, "no right to look into other processes: run ferry as root "
			       "(CAP_SYS_PTRACE)");
}

static int doctor_userfaultfd(struct ferry_error *err)
{
	int fd = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);

	if (fd < 0)
		return ferry_error_set(err, errno,
				       "/dev/userfaultfd: %s; run ferry as root, or give your user "
				       "access to it (kernel 6.1 or newer has it)", strerror(errno));
	close(fd);
	return 0;
}

static int doctor_tracker(const struct ferry_dirty_ops *ops, struct ferry_error *err)
{
	struct ferry_dirty_target target = { .pid = getpid(), .uffd = -1 };
	struct ferry_ram ram;

	ferry_ram_init(&ram);
	target.ram = &ram;
	return ops->supported(&target, err);
}

static int doctor_pagemap(struct ferry_error *err)
{
	return doctor_tracker(&ferry_dirty_pagemap, err);
}

static int doctor_softdirty(struct ferry_error *err)
{
	return doctor_tracker(&ferry_dirty_softdirty, err);
}

static int doctor_kmod(struct ferry_error *err)
{
	return doctor_tracker(&ferry_dirty_kmod, err);
}

/* Whoever touches memory is stopped: what it takes to bring, or to keep, a page first. */
static int doctor_faults(struct ferry_error *err)
{
	struct ferry_ram_block block = { .name = "doctor", .size_bytes = FERRY_PAGE_SIZE,
					 .page_size = FERRY_PAGE_SIZE };
	struct ferry_ram ram;
	int r;

	ferry_ram_init(&ram);
	block.fd = memfd_create("ferry-doctor", MFD_CLOEXEC);
	if (block.fd < 0 || ftruncate(block.fd, FERRY_PAGE_SIZE))
		return ferry_error_set(err, errno, "no memory files: %s", strerror(errno));
	r = ferry_ram_add(&ram, &block, err);
	if (!r)
		r = ferry_fault_uffd_probe(&ram, err);
	ferry_ram_free(&ram);
	return r;
}

static const struct doctor_check doctor_checks[] = {
	{ "runtime-dir", "records and control sockets", true, doctor_runtime },
	{ "memory-files", "guest RAM as shared memory", true, doctor_memfd },
	{ "other-processes", "who else maps guest RAM", true, doctor_others },
	{ "ptrace", "the kmod and pagemap trackers with QEMU", false, doctor_ptrace },
	{ "userfaultfd", "the pagemap tracker with QEMU", false, doctor_userfaultfd },
	{ "tracker-pagemap", "migrating while the guest runs", false, doctor_pagemap },
	{ "tracker-softdirty", "the same on kernels before 6.7", false, doctor_softdirty },
	{ "tracker-kmod", "tracking every writer", false, doctor_kmod },
	{ "postcopy", "running first, moving the rest after", false, doctor_faults },
	{ "snapshot-files", "save and restore", false, doctor_memfd },
	{ "cpr", "changing the VMM under a guest", false, doctor_faults },
};

static void doctor_print(const struct doctor_check *c, int r, const struct ferry_error *err,
			 bool json)
{
	struct json_object *o;

	if (!json) {
		printf("%-18s %-4s %s%s%s\n", c->name, r ? "no" : "yes", c->what, r ? ": " : "",
		       r ? err->text : "");
		return;
	}
	o = json_object_new_object();
	json_object_object_add(o, "feature", json_object_new_string(c->name));
	json_object_object_add(o, "works", json_object_new_boolean(!r));
	json_object_object_add(o, "for", json_object_new_string(c->what));
	json_object_object_add(o, "reason", r ? json_object_new_string(err->text) : NULL);
	ferry_report_print(o);
}

int ferry_command_doctor(const struct ferry_args *args)
{
	int code = FERRY_EXIT_DONE;
	bool live = false;
	size_t i;

	if (args->fault_points) {
		ferry_fault_point_list(stdout);
		return FERRY_EXIT_DONE;
	}
	fflush(stdout);
	for (i = 0; i < sizeof(doctor_checks) / sizeof(doctor_checks[0]); i++) {
		struct ferry_error err = { 0 };
		int r = doctor_checks[i].run(&err);

		doctor_print(&doctor_checks[i], r, &err, args->json);
		if (r && doctor_checks[i].needed)
			code = FERRY_EXIT_FAILED;
		if (!r && !strncmp(doctor_checks[i].name, "tracker-", 8))
			live = true;
	}
	if (!live && !code && !args->json)
		printf("No tracker works here: guests can only be moved stopped (--tracker none).\n");
	return code;
}
