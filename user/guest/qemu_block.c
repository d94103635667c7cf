// SPDX-License-Identifier: GPL-2.0-or-later
/* Disks of QEMU: which pin guest memory for good, and which do direct I/O. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "base/log.h"
#include "guest/json.h"
#include "guest/proc.h"
#include "guest/qemu.h"

#define SG_MAJOR 21 /* /dev/sgN: SCSI generic, DMA straight into the caller's pages */

/* Block drivers that map guest memory into a device or another address space for good. */
static const char *const pinning_drivers[] = {
	"nvme", "nvme-io_uring", "io_uring", "virtio-blk-vfio-pci", "virtio-blk-vhost-user",
	"virtio-blk-vhost-vdpa",
};
/* SCSI pass-through: SG_IO is direct whatever the node's cache mode. */
static const char *const passthrough_types[] = { "scsi-block", "scsi-generic" };

static int query_nodes(struct ferry_qemu *q, struct json_object **nodes, struct ferry_error *err)
{
	struct json_object *args = json_object_new_object();

	json_object_object_add(args, "flat", json_object_new_boolean(1));
	return ferry_qemu_command(q, "query-named-block-nodes", args, -1, nodes, err);
}

static const char *node_name(struct json_object *node)
{
	const char *name = ferry_json_string(node, "node-name");

	return name ? name : "?";
}

/* The image lock is the second fence against two owners: say so when it is off. */
static void warn_unlocked(const struct ferry_qemu *q)
{
	char path[64], text[65536];
	ssize_t i, n;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/cmdline", (int)q->guest.pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return;
	n = read(fd, text, sizeof(text) - 1);
	close(fd);
	if (n <= 0)
		return;
	for (i = 0; i < n; i++)
		if (!text[i])
			text[i] = ' ';
	text[n] = '\0';
	if (strstr(text, "locking=off") || strstr(text, "\"locking\":\"off\"") ||
	    strstr(text, "\"locking\": \"off\""))
		ferry_log_warn("QEMU (pid %d) runs with file.locking=off: nothing but ferry keeps "
			       "two guests from writing the same disk image",
			       (int)q->guest.pid);
}

int ferry_qemu_blocks_check(struct ferry_qemu *q, struct ferry_error *err)
{
	struct json_object *nodes;
	size_t i, k;
	int r = query_nodes(q, &nodes, err);

	if (r)
		return r;
	for (i = 0; !r && i < ferry_json_length(nodes); i++) {
		struct json_object *node = json_object_array_get_idx(nodes, i);
		const char *driver = ferry_json_string(node, "drv");

		for (k = 0; driver && k < sizeof(pinning_drivers) / sizeof(char *); k++)
			if (!strcmp(driver, pinning_drivers[k]))
				r = ferry_error_set(err, EOPNOTSUPP, "block node '%.64s' (%s) pins "
						    "guest memory: its DMA is seen by no tracker; "
						    "detach it first", node_name(node), driver);
	}
	json_object_put(nodes);
	warn_unlocked(q);
	return r;
}

/* Where the answer goes. */
struct direct {
	pid_t pid;
	char *why;
	size_t why_bytes;
};

static int direct_node(struct json_object *nodes, const struct direct *d)
{
	size_t i;

	for (i = 0; i < ferry_json_length(nodes); i++) {
		struct json_object *node = json_object_array_get_idx(nodes, i);
		struct json_object *cache = ferry_json_get(node, "cache", json_type_object);

		if (!ferry_json_get(cache, "direct", json_type_boolean)) {
			snprintf(d->why, d->why_bytes, "block node '%.64s': cache mode unknown",
				 node_name(node));
			return 1;
		}
		if (ferry_json_bool(cache, "direct", true)) {
			snprintf(d->why, d->why_bytes, "block node '%.64s': direct I/O",
				 node_name(node));
			return 1;
		}
	}
	return 0;
}

static int direct_device(void *ctx, const char *id, const char *type)
{
	const struct direct *d = ctx;
	size_t i;

	for (i = 0; i < sizeof(passthrough_types) / sizeof(char *); i++)
		if (!strcmp(type, passthrough_types[i])) {
			snprintf(d->why, d->why_bytes, "device '%.64s' (%s): SCSI pass-through",
				 id, type);
			return 1;
		}
	return 0;
}

/* Descriptors no block node tells of: O_DIRECT files, SCSI generic devices. */
static int direct_fd(void *ctx, int fd, const char *link)
{
	const struct direct *d = ctx;
	char path[64];
	struct stat st;
	int flags;

	snprintf(path, sizeof(path), "/proc/%d/fd/%d", (int)d->pid, fd);
	if (stat(path, &st))
		return 0; /* closed meanwhile */
	if (S_ISCHR(st.st_mode) && major(st.st_rdev) == SG_MAJOR) {
		snprintf(d->why, d->why_bytes, "descriptor %d (%.64s): SCSI generic", fd, link);
		return 1;
	}
	if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
		return 0;
	flags = ferry_proc_flags(d->pid, fd);
	if (flags < 0 || !(flags & O_DIRECT))
		return 0;
	snprintf(d->why, d->why_bytes, "descriptor %d (%.64s): O_DIRECT", fd, link);
	return 1;
}

int ferry_qemu_direct_io(struct ferry_guest *guest, char *why, size_t why_bytes,
			 struct ferry_error *err)
{
	struct ferry_qemu *q = ferry_qemu_of(guest);
	struct direct d = { .pid = guest->pid, .why = why, .why_bytes = why_bytes };
	struct json_object *nodes;
	int r;

	if (why_bytes)
		why[0] = '\0';
	r = query_nodes(q, &nodes, err);
	if (r)
		return r;
	r = direct_node(nodes, &d);
	json_object_put(nodes);
	if (!r)
		r = ferry_qemu_devices(q, direct_device, &d, err);
	if (r)
		return r;
	r = ferry_proc_fds(guest->pid, direct_fd, &d);
	if (r < 0)
		return ferry_error_set(err, -r, "reading descriptors of QEMU (pid %d): %s",
				       (int)guest->pid, strerror(-r));
	return r;
}
