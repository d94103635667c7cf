// SPDX-License-Identifier: GPL-2.0-or-later
#include "store/aside.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/io.h"
#include "store/format.h"

static const char *base_name(const char *path)
{
	const char *slash = strrchr(path, '/');

	return slash ? slash + 1 : path;
}

/* The folder of @path, "." when there is none in it. */
static void dir_name(const char *path, char dir[PATH_MAX])
{
	char *slash;

	snprintf(dir, PATH_MAX, "%s", path);
	slash = strrchr(dir, '/');
	if (slash)
		slash[slash == dir] = 0;
	else
		snprintf(dir, PATH_MAX, ".");
}

static int part_name(const char *path, const char *id, char part[PATH_MAX])
{
	char dir[PATH_MAX];
	int n;

	dir_name(path, dir);
	n = snprintf(part, PATH_MAX, "%s/.%s.%s.part", dir, base_name(path), id);
	return n < 0 || n >= PATH_MAX ? -ENAMETOOLONG : 0;
}

/* Is what has that name now an older snapshot, or nothing? */
static int may_replace(const char *path, struct ferry_error *err)
{
	uint64_t magic = 0;
	struct stat st;
	int fd, r;

	if (lstat(path, &st))
		return errno == ENOENT ? 0 :
					 ferry_error_set(err, errno, "cannot write %s: %s", path,
							 strerror(errno));
	if (!S_ISREG(st.st_mode))
		return ferry_error_set(err, EEXIST, "%s exists and is %s: name a file to write the "
				       "guest to", path, S_ISDIR(st.st_mode) ? "a folder" :
				       S_ISLNK(st.st_mode) ? "a symbolic link" : "no file");
	if (!st.st_size)
		return 0;
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return ferry_error_set(err, errno, "cannot look into %s, which exists: %s", path,
				       strerror(errno));
	r = ferry_io_pread(fd, &magic, sizeof(magic), 0);
	close(fd);
	if (r || magic != htole64(FERRY_STORE_MAGIC))
		return ferry_error_set(err, EEXIST, "%s exists and is no snapshot of ferry's: it is "
				       "not replaced; remove it or choose another name", path);
	return 0;
}

static int open_error(const struct ferry_store_aside *a, struct ferry_error *err)
{
	return ferry_error_set(err, errno, "cannot make a file beside %s: %s%s", a->path,
			       strerror(errno), errno == EROFS || errno == EACCES || errno == EPERM ?
			       "; choose a folder that can be written to" : "");
}

int ferry_store_aside_open(struct ferry_store_aside *a, const char *path, const char *id,
			   struct ferry_error *err)
{
	char dir[PATH_MAX];
	int r;

	memset(a, 0, sizeof(*a));
	a->dir_fd = a->fd = -1;
	if (!*base_name(path) || strlen(path) >= sizeof(a->path))
		return ferry_error_set(err, EINVAL, "'%s' is no name of a file", path);
	snprintf(a->path, sizeof(a->path), "%s", path);
	snprintf(a->id, sizeof(a->id), "%s", id);
	dir_name(path, dir);
	a->dir_fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (a->dir_fd < 0)
		return ferry_error_set(err, errno, "cannot write %s: the folder %s: %s", path, dir,
				       strerror(errno));
	r = may_replace(path, err);
	if (r)
		goto err_close;
	a->fd = openat(a->dir_fd, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	if (a->fd < 0 && (errno == EOPNOTSUPP || errno == EISDIR || errno == ENOENT)) {
		r = part_name(path, id, a->part);
		errno = -r;
		if (!r)
			a->fd = open(a->part, O_RDWR | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC,
				     0600);
	}
	if (a->fd < 0) {
		r = open_error(a, err);
		a->part[0] = 0;
		goto err_close;
	}
	return 0;

err_close:
	ferry_io_close(&a->dir_fd);
	return r;
}

/* A file without a name gets one of its own first: link(2) replaces nothing, rename(2) does. */
static int give_part_name(struct ferry_store_aside *a)
{
	char self[32];
	int r;

	snprintf(self, sizeof(self), "/proc/self/fd/%d", a->fd);
	r = part_name(a->path, a->id, a->part);
	if (r)
		return r;
	unlink(a->part);
	if (linkat(AT_FDCWD, self, AT_FDCWD, a->part, AT_SYMLINK_FOLLOW)) {
		r = -errno;
		a->part[0] = 0;
	}
	return r;
}

int ferry_store_aside_publish(struct ferry_store_aside *a,
			      int (*step)(void *ctx, const char *stage, struct ferry_error *err),
			      void *ctx, struct ferry_error *err)
{
	int r = a->part[0] ? 0 : give_part_name(a);

	if (!r && rename(a->part, a->path))
		r = -errno;
	if (r)
		return ferry_error_set(err, -r, "%s is written and cannot get its name: %s", a->path,
				       strerror(-r));
	a->part[0] = 0;
	r = step ? step(ctx, "file-named", err) : 0;
	if (r)
		return r;
	/* Folders of some file systems cannot be synced and need not be. */
	if (fsync(a->dir_fd) && errno != EINVAL)
		return ferry_error_set(err, errno, "%s is written, and its folder cannot be synced: "
				       "%s; after a power loss the name may be missing", a->path,
				       strerror(errno));
	return 0;
}

void ferry_store_aside_close(struct ferry_store_aside *a)
{
	if (a->part[0])
		unlink(a->part);
	a->part[0] = 0;
	ferry_io_close(&a->fd);
	ferry_io_close(&a->dir_fd);
}

void ferry_store_aside_remove(const char *path, const char *id)
{
	char part[PATH_MAX];

	if (!part_name(path, id, part))
		unlink(part);
}
