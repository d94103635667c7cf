// SPDX-License-Identifier: GPL-2.0-or-later
/* Devices people attached to QEMU, and those a migration must refuse. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "guest/json.h"
#include "guest/proc.h"
#include "guest/qemu.h"

/* Devices that pin guest memory for as long as they live, so that DMA is never seen. */
static const char *const pinning_types[] = { "vfio-", "vhost-scsi", "vhost-vdpa" };
static const char *const pinning_links[] = {
	"/dev/vfio/", "anon_inode:[vfio", "anon_inode:vfio", "/dev/vhost-vdpa", "/dev/vhost-scsi",
	"/dev/iommu", "/dev/infiniband/", "/dev/udmabuf",
};

static bool starts_with_any(const char *text, const char *const *list, size_t n)
{
	size_t i;

	for (i = 0; i < n; i++)
		if (!strncmp(text, list[i], strlen(list[i])))
			return true;
	return false;
}

/* The T of a QOM property type "child<T>". */
static bool child_type(const char *type, char *out, size_t room)
{
	size_t n = type ? strlen(type) : 0;

	if (n < 8 || strncmp(type, "child<", 6) || type[n - 1] != '>')
		return false;
	snprintf(out, room, "%.*s", (int)(n - 7 < 200 ? n - 7 : 200), type + 6);
	return true;
}

int ferry_qemu_devices(struct ferry_qemu *q,
		       int (*fn)(void *ctx, const char *id, const char *type), void *ctx,
		       struct ferry_error *err)
{
	static const char *const places[] = { "/machine/peripheral", "/machine/peripheral-anon" };
	size_t i, k;
	int r = 0;

	for (i = 0; !r && i < sizeof(places) / sizeof(places[0]); i++) {
		struct json_object *args = json_object_new_object(), *reply;

		json_object_object_add(args, "path", json_object_new_string(places[i]));
		r = ferry_qemu_command(q, "qom-list", args, -1, &reply, err);
		if (r)
			return r;
		for (k = 0; !r && k < ferry_json_length(reply); k++) {
			struct json_object *one = json_object_array_get_idx(reply, k);
			const char *id = ferry_json_string(one, "name");
			char type[208];

			if (id && child_type(ferry_json_string(one, "type"), type, sizeof(type)))
				r = fn(ctx, id, type);
		}
		json_object_put(reply);
	}
	return r;
}

static int refuse_pinning(void *ctx, const char *id, const char *type)
{
	if (!starts_with_any(type, pinning_types, sizeof(pinning_types) / sizeof(char *)))
		return 0;
	return ferry_error_set(ctx, EOPNOTSUPP, "device '%.64s' (%.64s) pins guest memory: its DMA "
			       "is seen by no tracker; unplug it first (QMP device_del)", id, type);
}

static int refuse_pinning_fd(void *ctx, int fd, const char *link)
{
	if (!starts_with_any(link, pinning_links, sizeof(pinning_links) / sizeof(char *)))
		return 0;
	return ferry_error_set(ctx, EOPNOTSUPP, "QEMU has %.128s open (descriptor %d), which pins "
			       "guest memory: its DMA is seen by no tracker; unplug that device "
			       "first", link, fd);
}

/* Net backends are in no QMP list. */
static int refuse_vdpa_net(struct ferry_qemu *q, struct ferry_error *err)
{
	struct json_object *args = json_object_new_object(), *reply;
	int r;

	json_object_object_add(args, "command-line", json_object_new_string("info network"));
	r = ferry_qemu_command(q, "human-monitor-command", args, -1, &reply, err);
	if (r == -EREMOTEIO)
		return 0; /* built without HMP: the descriptors were looked at */
	if (r)
		return r;
	if (json_object_is_type(reply, json_type_string) &&
	    strstr(json_object_get_string(reply), "type=vhost-vdpa"))
		r = ferry_error_set(err, EOPNOTSUPP, "a network backend of type vhost-vdpa pins "
				    "guest memory: its DMA is seen by no tracker; unplug it first");
	json_object_put(reply);
	return r;
}

/* A virtio-mem device on its way to another size. */
static int refuse_resizing(struct ferry_qemu *q, struct ferry_error *err)
{
	struct json_object *reply;
	size_t i;
	int r = ferry_qemu_command(q, "query-memory-devices", NULL, -1, &reply, err);

	if (r == -EREMOTEIO)
		return 0; /* a machine without pluggable memory */
	if (r)
		return r;
	for (i = 0; !r && i < ferry_json_length(reply); i++) {
		struct json_object *one = json_object_array_get_idx(reply, i);
		struct json_object *data = ferry_json_get(one, "data", json_type_object);
		const char *id = ferry_json_string(data, "id");
		uint64_t now = ferry_json_uint(data, "size", 0);
		uint64_t asked = ferry_json_uint(data, "requested-size", now);

		if (asked != now)
			r = ferry_error_set(err, EBUSY, "memory device '%.64s' is being resized "
					    "(%llu of %llu bytes plugged); wait until it is done",
					    id ? id : "?", (unsigned long long)now,
					    (unsigned long long)asked);
	}
	json_object_put(reply);
	return r;
}

int ferry_qemu_devices_check(struct ferry_qemu *q, struct ferry_error *err)
{
	int r = ferry_qemu_devices(q, refuse_pinning, err, err);

	if (!r)
		r = ferry_proc_fds(q->guest.pid, refuse_pinning_fd, err);
	if (!r)
		r = refuse_vdpa_net(q, err);
	if (!r)
		r = refuse_resizing(q, err);
	return r;
}
