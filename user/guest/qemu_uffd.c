// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A userfaultfd of QEMU's memory, though QEMU may have no right to make one and
 * a seccomp filter against it: we open /dev/userfaultfd, hand the descriptor
 * over by QMP getfd, and inject the one ioctl that makes the userfaultfd.
 *
 * A source keeps no copy: when the agent dies the kernel unregisters and the
 * guest runs on. A destination keeps its copy until undo(): a guest CPU that
 * waits for a page then goes on waiting, instead of reading stale bytes.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/io.h"
#include "base/log.h"
#include "guest/json.h"
#include "guest/qemu.h"
#include "inject/inject.h"

#define UFFD_DEVICE "/dev/userfaultfd"
#define UFFD_LINK "anon_inode:[userfaultfd]"
#define MAX_FDS 64

/* Note QEMU's own userfaultfds, once: a second call would take our leftovers for QEMU's. */
static int note_known(struct ferry_qemu *q, struct ferry_error *err)
{
	struct json_object *list;
	int fds[MAX_FDS], i, n;

	if (ferry_json_get(q->journal.undo, "userfaultfds", json_type_array))
		return 0;
	n = ferry_inject_find_fds(q->guest.pid, UFFD_LINK, fds, MAX_FDS);
	if (n < 0 || n > MAX_FDS)
		return ferry_error_set(err, n < 0 ? -n : E2BIG, "looking at the descriptors of QEMU "
				       "(pid %d): %s", (int)q->guest.pid,
				       n < 0 ? strerror(-n) : "too many userfaultfds");
	list = json_object_new_array();
	for (i = 0; i < n; i++)
		json_object_array_add(list, json_object_new_int(fds[i]));
	json_object_object_add(q->journal.undo, "userfaultfds", list);
	return ferry_qemu_journal(q, err);
}

static int make(struct ferry_qemu *q, int dev, int *uffd, struct ferry_error *err)
{
	struct ferry_inject *inj;
	int remote_dev, remote, r;

	remote_dev = ferry_qemu_pass_fd(q, FERRY_QEMU_UFFD_DEVICE, dev, err);
	if (remote_dev < 0)
		return remote_dev;
	r = ferry_inject_open(q->guest.pid, &inj, err);
	if (r)
		return r;
	r = ferry_inject_userfaultfd(inj, remote_dev, &remote, uffd, err);
	if (!r && q->role == FERRY_GUEST_SOURCE) {
		r = ferry_inject_close_fd(inj, remote, err);
		if (r)
			ferry_io_close(uffd);
	}
	ferry_inject_close(inj);
	return r;
}

int ferry_qemu_userfaultfd(struct ferry_guest *guest, int *uffd, struct ferry_error *err)
{
	struct ferry_qemu *q = ferry_qemu_of(guest);
	int dev, r;

	if (ferry_qemu_gone(q, 0))
		return ferry_qemu_command(q, "getfd", NULL, -1, NULL, err);
	dev = open(UFFD_DEVICE, O_RDWR | O_CLOEXEC);
	if (dev < 0)
		return ferry_error_set(err, errno, "opening " UFFD_DEVICE ": %s; it needs Linux 6.1 "
				       "and the right to open it (root)", strerror(errno));
	r = ferry_qemu_verify(q, err);
	if (!r)
		r = note_known(q, err);
	if (!r) {
		r = make(q, dev, uffd, err);
		if (ferry_qemu_drop_fd(q, FERRY_QEMU_UFFD_DEVICE, NULL))
			ferry_log_debug(UFFD_DEVICE " stays open in QEMU until undo");
		if (r)
			ferry_qemu_userfaultfd_undo(q, NULL);
	}
	close(dev);
	if (r)
		ferry_error_prefix(err, "making a userfaultfd for QEMU (pid %d)", (int)guest->pid);
	return r;
}

/* prealloc=on leaves every page mapped, and what is mapped does not fault. */
int ferry_qemu_zap(struct ferry_guest *guest, const struct ferry_ram *ram, struct ferry_error *err)
{
	struct ferry_inject *inj;
	unsigned int i;
	int r = ferry_inject_open(guest->pid, &inj, err);

	if (r)
		return r;
	for (i = 0; i < ram->count && !r; i++) {
		const struct ferry_ram_block *b = &ram->blocks[i];

		r = ferry_inject_madvise(inj, b->vmm_addr, b->size_bytes, MADV_DONTNEED, err);
		if (r == -EINVAL)
			ferry_error_prefix(err, "memory block '%s' is locked (start QEMU without "
					   "-overcommit mem-lock=on)", b->name);
	}
	ferry_inject_close(inj);
	return r;
}

static bool is_known(struct json_object *list, int fd)
{
	size_t i;

	for (i = 0; i < ferry_json_length(list); i++) {
		struct json_object *one = json_object_array_get_idx(list, i);

		if (json_object_is_type(one, json_type_int) && json_object_get_int(one) == fd)
			return true;
	}
	return false;
}

int ferry_qemu_userfaultfd_undo(struct ferry_qemu *q, struct ferry_error *err)
{
	struct json_object *known = ferry_json_get(q->journal.undo, "userfaultfds", json_type_array);
	struct ferry_inject *inj = NULL;
	int fds[MAX_FDS], i, n, r = 0;

	if (!known)
		return 0;
	n = ferry_inject_find_fds(q->guest.pid, UFFD_LINK, fds, MAX_FDS);
	if (n < 0)
		return ferry_error_set(err, -n, "reading its descriptors: %s", strerror(-n));
	for (i = 0; i < n && i < MAX_FDS; i++) {
		int one = 0;

		if (is_known(known, fds[i]))
			continue;
		if (!inj)
			one = ferry_inject_open(q->guest.pid, &inj, r ? NULL : err);
		if (one)
			return r ? r : one;
		one = ferry_inject_close_fd(inj, fds[i], r ? NULL : err);
		if (one && one != -EBADF && !r)
			r = one;
	}
	ferry_inject_close(inj);
	return r;
}
