// SPDX-License-Identifier: GPL-2.0-or-later
/* Descriptors handed over to QEMU by QMP getfd, and their numbers there. */
#include <errno.h>
#include <linux/kcmp.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "guest/proc.h"
#include "guest/qemu.h"

#define MAX_FDS 256

/* Descriptors of QEMU that are the same file, whatever its path there. */
struct same_file {
	pid_t pid;
	struct stat st;
	int fds[MAX_FDS];
	int count;
};

static int add_same(void *ctx, int fd, const char *link)
{
	struct same_file *s = ctx;
	char path[64];
	struct stat st;

	(void)link;
	snprintf(path, sizeof(path), "/proc/%d/fd/%d", (int)s->pid, fd);
	if (!stat(path, &st) && st.st_dev == s->st.st_dev && st.st_ino == s->st.st_ino &&
	    st.st_rdev == s->st.st_rdev && s->count < MAX_FDS)
		s->fds[s->count++] = fd;
	return 0;
}

static bool has_fd(const struct same_file *s, int fd)
{
	int i;

	for (i = 0; i < s->count; i++)
		if (s->fds[i] == fd)
			return true;
	return false;
}

/* QEMU itself may open the same file just now; the very same open file it cannot make. */
static bool is_passed(pid_t pid, int remote, int fd)
{
	long r = syscall(SYS_kcmp, getpid(), pid, KCMP_FILE, fd, remote);

	return r == 0 || (r < 0 && errno != EBADF);
}

int ferry_qemu_pass_fd(struct ferry_qemu *q, const char *name, int fd, struct ferry_error *err)
{
	struct same_file before = { .pid = q->guest.pid }, after;
	struct json_object *args;
	int i, r;

	if (fstat(fd, &before.st))
		return ferry_error_set(err, errno, "looking at %s: %s", name, strerror(errno));
	/* A leftover of that name would be closed by getfd, and its number used again. */
	r = ferry_qemu_drop_fd(q, name, err);
	if (r)
		return r;
	after = before;
	ferry_proc_fds(q->guest.pid, add_same, &before);
	args = json_object_new_object();
	json_object_object_add(args, "fdname", json_object_new_string(name));
	r = ferry_qemu_command(q, "getfd", args, fd, NULL, err);
	if (r)
		return r;
	ferry_proc_fds(q->guest.pid, add_same, &after);
	for (i = 0; i < after.count; i++)
		if (!has_fd(&before, after.fds[i]) && is_passed(q->guest.pid, after.fds[i], fd))
			return after.fds[i];
	ferry_qemu_drop_fd(q, name, NULL);
	return ferry_error_set(err, ENOENT, "QEMU (pid %d) took %s but does not show it in "
			       "/proc/%d/fd", (int)q->guest.pid, name, (int)q->guest.pid);
}

int ferry_qemu_drop_fd(struct ferry_qemu *q, const char *name, struct ferry_error *err)
{
	struct json_object *args = json_object_new_object();
	int r;

	json_object_object_add(args, "fdname", json_object_new_string(name));
	r = ferry_qemu_command(q, "closefd", args, -1, NULL, err);
	return r == -EREMOTEIO ? 0 : r; /* there was none */
}
