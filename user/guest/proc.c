// SPDX-License-Identifier: GPL-2.0-or-later
#include "guest/proc.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sysmacros.h>
#include <unistd.h>

static bool parse_area(const char *line, struct ferry_proc_area *area)
{
	unsigned long long start, end, off, ino;
	unsigned int maj, min;
	char perms[5];
	int at = 0;

	if (sscanf(line, "%llx-%llx %4s %llx %x:%x %llu %n", &start, &end, perms, &off, &maj,
		   &min, &ino, &at) != 7 || !at)
		return false;
	area->start = start;
	area->end = end;
	area->off_bytes = off;
	area->dev = makedev(maj, min);
	area->ino = (ino_t)ino;
	area->prot = (perms[0] == 'r' ? PROT_READ : 0) | (perms[1] == 'w' ? PROT_WRITE : 0) |
		     (perms[2] == 'x' ? PROT_EXEC : 0);
	area->shared = perms[3] == 's';
	area->flags[0] = '\0';
	snprintf(area->path, sizeof(area->path), "%s", line + at);
	area->path[strcspn(area->path, "\n")] = '\0';
	return start < end;
}

/* What of /proc/PID/maps or smaps a caller wants to see. */
struct walk {
	const char *file;
	bool anonymous, flags;
	int (*fn)(void *ctx, const struct ferry_proc_area *area);
	void *ctx;
};

static int walk_line(const struct walk *w, const char *line, struct ferry_proc_area *area)
{
	static const char flags[] = "VmFlags:";

	if (!w->flags)
		return parse_area(line, area) && (area->ino || w->anonymous) ?
		       w->fn(w->ctx, area) : 0;
	/* The flags are the last line of what is told about an area. */
	if (strncmp(line, flags, sizeof(flags) - 1)) {
		parse_area(line, area);
		return 0;
	}
	snprintf(area->flags, sizeof(area->flags), "%s",
		 line + sizeof(flags) - 1 + strspn(line + sizeof(flags) - 1, " "));
	area->flags[strcspn(area->flags, "\n")] = '\0';
	return area->ino || w->anonymous ? w->fn(w->ctx, area) : 0;
}

static int walk(pid_t pid, const struct walk *w)
{
	struct ferry_proc_area area = { 0 };
	char path[64], *line = NULL;
	size_t room = 0;
	int r = 0;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/%s", (int)pid, w->file);
	f = fopen(path, "re");
	if (!f)
		return -errno;
	errno = 0;
	while (!r && getline(&line, &room, f) > 0)
		r = walk_line(w, line, &area);
	if (!r && ferror(f))
		r = errno ? -errno : -EIO;
	free(line);
	fclose(f);
	return r;
}

int ferry_proc_maps(pid_t pid, int (*fn)(void *ctx, const struct ferry_proc_area *area),
		    void *ctx)
{
	const struct walk w = { .file = "maps", .fn = fn, .ctx = ctx };

	return walk(pid, &w);
}

int ferry_proc_layout(pid_t pid, int (*fn)(void *ctx, const struct ferry_proc_area *area),
		      void *ctx)
{
	const struct walk w = { .file = "maps", .anonymous = true, .fn = fn, .ctx = ctx };

	return walk(pid, &w);
}

int ferry_proc_smaps(pid_t pid, int (*fn)(void *ctx, const struct ferry_proc_area *area),
		     void *ctx)
{
	const struct walk w = { .file = "smaps", .anonymous = true, .flags = true, .fn = fn,
				.ctx = ctx };

	return walk(pid, &w);
}

/* The number a /proc entry is named by, or -1. */
static int entry_number(const struct dirent *entry)
{
	char *end;
	long n;

	if (!isdigit((unsigned char)entry->d_name[0]))
		return -1;
	n = strtol(entry->d_name, &end, 10);
	return *end || n > 0x7fffffff ? -1 : (int)n;
}

int ferry_proc_fds(pid_t pid, int (*fn)(void *ctx, int fd, const char *link), void *ctx)
{
	char path[64], link[512];
	struct dirent *entry;
	int r = 0;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/fd", (int)pid);
	dir = opendir(path);
	if (!dir)
		return -errno;
	while (!r && (entry = readdir(dir))) {
		int fd = entry_number(entry);
		ssize_t n;

		if (fd < 0)
			continue;
		n = readlinkat(dirfd(dir), entry->d_name, link, sizeof(link) - 1);
		if (n < 0)
			continue; /* closed meanwhile */
		link[n] = '\0';
		r = fn(ctx, fd, link);
	}
	closedir(dir);
	return r;
}

int ferry_proc_pids(int (*fn)(void *ctx, pid_t pid), void *ctx)
{
	DIR *dir = opendir("/proc");
	struct dirent *entry;
	int r = 0;

	if (!dir)
		return -errno;
	while (!r && (entry = readdir(dir))) {
		int pid = entry_number(entry);

		if (pid > 0)
			r = fn(ctx, pid);
	}
	closedir(dir);
	return r;
}

/* The beginning of a small /proc file. Return: bytes, NUL-terminated, or -errno. */
static ssize_t read_small(const char *path, char *buf, size_t room)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n;

	if (fd < 0)
		return -errno;
	n = read(fd, buf, room - 1);
	if (n < 0)
		n = -errno;
	close(fd);
	buf[n > 0 ? n : 0] = '\0';
	return n;
}

void ferry_proc_comm(pid_t pid, char comm[32])
{
	char path[64];
	size_t i;

	snprintf(path, sizeof(path), "/proc/%d/comm", (int)pid);
	if (read_small(path, comm, 32) <= 0)
		strcpy(comm, "?");
	comm[strcspn(comm, "\n")] = '\0';
	for (i = 0; comm[i]; i++)
		if (!isprint((unsigned char)comm[i]))
			comm[i] = '?';
}

uint64_t ferry_proc_start(pid_t pid)
{
	unsigned long long start;
	char path[64], buf[1024], *at;
	int field;

	snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
	if (read_small(path, buf, sizeof(buf)) <= 0)
		return 0;
	/* The name may hold blanks and brackets: fields count from the last bracket. */
	at = strrchr(buf, ')');
	for (field = 2; at && field < 22; field++)
		at = strchr(at + 1, ' ');
	return at && sscanf(at, " %llu", &start) == 1 ? start : 0;
}

uint64_t ferry_proc_ran_ns(pid_t pid, pid_t tid)
{
	unsigned long long ns;
	char path[64], buf[128];

	snprintf(path, sizeof(path), "/proc/%d/task/%d/schedstat", (int)pid, (int)tid);
	return read_small(path, buf, sizeof(buf)) > 0 && sscanf(buf, "%llu", &ns) == 1 ? ns : 0;
}

int ferry_proc_flags(pid_t pid, int fd)
{
	char path[64], buf[512], *at;
	unsigned int flags;
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/%d/fdinfo/%d", (int)pid, fd);
	n = read_small(path, buf, sizeof(buf));
	if (n < 0)
		return (int)n;
	at = strstr(buf, "flags:");
	if (!at || sscanf(at, "flags: %o", &flags) != 1)
		return -EPROTO;
	return (int)(flags & 0x7fffffff);
}
