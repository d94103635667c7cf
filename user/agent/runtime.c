// SPDX-License-Identifier: GPL-2.0-or-later
#include "agent/runtime.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "engine/record.h"

/* So long a process that was killed may still hold what it had open. */
#define RUNTIME_DYING_MS 1000
#define RUNTIME_RETRY_NS (5 * FERRY_NS_PER_MS)

static int runtime_make(const char *path)
{
	struct stat st;

	if (!mkdir(path, 0700))
		return 0;
	if (errno != EEXIST)
		return -errno;
	if (stat(path, &st))
		return -errno;
	if (!S_ISDIR(st.st_mode))
		return -ENOTDIR;
	return access(path, W_OK | X_OK) ? -errno : 0;
}

int ferry_runtime_dir(char path[FERRY_RUNTIME_PATH], struct ferry_error *err)
{
	const char *set = getenv("FERRY_RUNTIME_DIR"), *xdg = getenv("XDG_RUNTIME_DIR");
	int r;

	if (set && *set) {
		if (strlen(set) >= FERRY_RUNTIME_PATH - FERRY_ID_MAX - 8)
			return ferry_error_set(err, ENAMETOOLONG, "FERRY_RUNTIME_DIR is too long");
		snprintf(path, FERRY_RUNTIME_PATH, "%s", set);
		r = runtime_make(path);
		return r ? ferry_error_set(err, -r, "cannot use FERRY_RUNTIME_DIR=%s: %s", set,
					   strerror(-r)) : 0;
	}
	snprintf(path, FERRY_RUNTIME_PATH, "/run/ferry");
	r = runtime_make(path);
	if (r && xdg && *xdg && strlen(xdg) < FERRY_RUNTIME_PATH - FERRY_ID_MAX - 16) {
		snprintf(path, FERRY_RUNTIME_PATH, "%s/ferry", xdg);
		r = runtime_make(path);
	}
	return r ? ferry_error_set(err, -r, "cannot use %s for the records: %s; set "
				   "FERRY_RUNTIME_DIR to a folder you may write", path,
				   strerror(-r)) : 0;
}

int ferry_runtime_path(const char *id, const char *suffix, char path[FERRY_RUNTIME_PATH],
		       struct ferry_error *err)
{
	char dir[FERRY_RUNTIME_PATH];
	int r = ferry_runtime_dir(dir, err);

	if (r)
		return r;
	if (snprintf(path, FERRY_RUNTIME_PATH, "%s/%s.%s", dir, id, suffix) >= FERRY_RUNTIME_PATH)
		return ferry_error_set(err, ENAMETOOLONG, "the path of %s.%s is too long", id,
				       suffix);
	return 0;
}

/* What FERRY_JOB_KEPT files there may be of an id. */
static const char *const kept_names[] = { "placed", "layout" };

static bool is_kept(const char *name)
{
	size_t i;

	for (i = 0; i < sizeof(kept_names) / sizeof(kept_names[0]); i++)
		if (!strcmp(name, kept_names[i]))
			return true;
	return false;
}

int ferry_runtime_kept(const char *id, const char *name, bool fresh)
{
	char path[FERRY_RUNTIME_PATH];
	int fd, r = ferry_runtime_path(id, name, path, NULL);

	if (r || !is_kept(name))
		return r ? r : -ENOENT;
	if (fresh)
		unlink(path);
	fd = open(path, fresh ? O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC : O_RDWR | O_CLOEXEC, 0600);
	return fd < 0 ? -errno : fd;
}

void ferry_runtime_forget(const char *id, const char *name)
{
	char path[FERRY_RUNTIME_PATH];
	size_t i;

	for (i = 0; i < sizeof(kept_names) / sizeof(kept_names[0]); i++)
		if ((!name || !strcmp(name, kept_names[i])) &&
		    !ferry_runtime_path(id, kept_names[i], path, NULL))
			unlink(path);
}

int ferry_runtime_check_id(const char *id, struct ferry_error *err)
{
	const char *p;

	for (p = id; *p; p++)
		if (!isalnum((unsigned char)*p) && !strchr("._-", *p))
			break;
	if (*p || !*id || *id == '.' || *id == '-' || strlen(id) >= FERRY_ID_MAX)
		return ferry_error_set(err, EINVAL,
				       "'%s' is no id: up to %d letters, digits, '.', '_' or '-', "
				       "not starting with a dot or a dash", id, FERRY_ID_MAX - 1);
	return 0;
}

/* The last part of a path: from @path up to @end. */
static const char *path_part(const char *path, const char *end)
{
	while (end > path && end[-1] != '/')
		end--;
	return end;
}

int ferry_runtime_default_id(const char *guest, const char *suffix, char *id, unsigned int room,
			     struct ferry_error *err)
{
	static const char *const plain[] = { "qmp", "qmp.sock", "port", "port.sock" };
	const char *path = strchr(guest, ':');
	const char *end, *name, *dot;
	size_t i;

	path = path ? path + 1 : guest;
	end = path + strlen(path);
	name = path_part(path, end);
	for (i = 0; i < sizeof(plain) / sizeof(plain[0]); i++) {
		if (strcmp(name, plain[i]) || name == path)
			continue;
		end = name - 1;
		name = path_part(path, end);
		break;
	}
	dot = i < sizeof(plain) / sizeof(plain[0]) ? NULL : strrchr(name, '.');
	if (dot && dot > name)
		end = dot;
	if ((size_t)snprintf(id, room, "%.*s%s", (int)(end - name), name, suffix) >= room ||
	    ferry_runtime_check_id(id, NULL))
		return ferry_error_set(err, EINVAL,
				       "%s gives no usable id; choose one with --id ID", guest);
	return 0;
}

void ferry_runtime_hang_up(const char *id)
{
	char path[FERRY_RUNTIME_PATH];

	if (!ferry_runtime_path(id, "sock", path, NULL))
		unlink(path);
}

int ferry_runtime_lock(const char *id, struct ferry_error *err)
{
	uint64_t dying_ns = ferry_clock_in_ms(RUNTIME_DYING_MS);
	char path[FERRY_RUNTIME_PATH];
	int fd, r;

	r = ferry_runtime_path(id, "lock", path, err);
	if (r)
		return r;
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (fd < 0)
		return ferry_error_set(err, errno, "cannot open %s: %s", path, strerror(errno));
	while ((r = flock(fd, LOCK_EX | LOCK_NB) ? -errno : 0) == -EWOULDBLOCK &&
	       ferry_clock_ns() < dying_ns)
		ferry_clock_sleep_ns(RUNTIME_RETRY_NS);
	if (r) {
		close(fd);
		if (r == -EWOULDBLOCK)
			return ferry_error_set(err, EBUSY, "id %s is in use by a running ferry: "
					       "'ferry status %s' tells more", id, id);
		return ferry_error_set(err, -r, "cannot lock %s: %s", path, strerror(-r));
	}
	return fd;
}
