// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Records on disk: one JSON object a file, replaced whole. A reader sees the
 * old record or the new one; a new one is on stable storage before save() returns.
 * The folder is normally on tmpfs: a record needs to outlive processes, not the
 * host, because a guest that was stopped or running here does not outlive it either.
 */
#include "agent/store.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "agent/runtime.h"
#include "base/io.h"
#include "wire/wire.h"

#define STORE_VERSION 1
#define STORE_MAX_BYTES (1u << 20)

static void put_str(struct json_object *o, const char *key, const char *value)
{
	json_object_object_add(o, key, json_object_new_string(value));
}

static void put_u64(struct json_object *o, const char *key, uint64_t value)
{
	json_object_object_add(o, key, json_object_new_uint64(value));
}

static void put_bool(struct json_object *o, const char *key, bool value)
{
	json_object_object_add(o, key, json_object_new_boolean(value));
}

/* Up to the last bucket that is not empty. */
static void put_histogram(struct json_object *o, const struct ferry_stats *st)
{
	struct json_object *list = json_object_new_array();
	unsigned int i, n = FERRY_STATS_BUCKETS;

	while (n && !st->fault_us[n - 1])
		n--;
	for (i = 0; i < n; i++)
		json_object_array_add(list, json_object_new_uint64(st->fault_us[i]));
	json_object_object_add(o, "fault_us", list);
}

static void put_threads(struct json_object *o, const struct ferry_stats *st)
{
	struct json_object *list = json_object_new_array();
	unsigned int i;

	for (i = 0; i < FERRY_STATS_THREADS && st->threads[i].tid; i++) {
		struct json_object *t = json_object_new_object();

		put_u64(t, "tid", (uint64_t)st->threads[i].tid);
		put_u64(t, "faults", st->threads[i].faults);
		put_u64(t, "ns", st->threads[i].wait_ns);
		put_u64(t, "max_ns", st->threads[i].max_ns);
		json_object_array_add(list, t);
	}
	json_object_object_add(o, "blocktime_threads", list);
}

void ferry_store_stats(struct json_object *o, const struct ferry_stats *st)
{
	put_u64(o, "total_ns", st->total_ns);
	put_u64(o, "downtime_ns", st->downtime_ns);
	put_u64(o, "rounds", st->rounds);
	put_u64(o, "ram_bytes", st->ram_bytes);
	put_u64(o, "sent_bytes", st->sent_bytes);
	put_u64(o, "normal_pages", st->normal_pages);
	put_u64(o, "zero_pages", st->zero_pages);
	put_u64(o, "device_bytes", st->device_bytes);
	put_u64(o, "faults", st->faults);
	put_u64(o, "fault_pages", st->fault_pages);
	put_u64(o, "background_pages", st->background_pages);
	put_u64(o, "missing_pages", st->missing_pages);
	put_u64(o, "waiting", st->waiting);
	put_u64(o, "blocktime_ns", st->blocktime_ns);
	put_u64(o, "blocktime_max_ns", st->blocktime_max_ns);
	put_u64(o, "fault_p50_ns", st->fault_p50_ns);
	put_u64(o, "fault_p99_ns", st->fault_p99_ns);
	put_threads(o, st);
	put_histogram(o, st);
	put_u64(o, "suspect_pages", st->suspect_pages);
	put_u64(o, "suspect_copied", st->suspect_copied);
	put_u64(o, "channels", st->channels);
	put_str(o, "tracker", st->tracker);
	put_bool(o, "verified", st->verified);
}

static struct json_object *store_encode(const struct ferry_record *r)
{
	struct json_object *o = json_object_new_object(), *stats = json_object_new_object();
	char uuid[FERRY_UUID_TEXT];

	ferry_uuid_format(r->uuid, uuid);
	put_u64(o, "version", STORE_VERSION);
	put_str(o, "id", r->id);
	put_str(o, "role", ferry_role_name(r->role));
	put_str(o, "state", ferry_state_name(r->state));
	put_str(o, "phase", ferry_phase_name(r->phase));
	put_bool(o, "settled", r->settled);
	put_str(o, "uuid", uuid);
	put_u64(o, "epoch", r->epoch);
	put_str(o, "guest", r->guest);
	put_str(o, "uri", r->uri);
	if (r->undo)
		put_str(o, "undo", r->undo);
	if (r->role == FERRY_ROLE_CPR) {
		if (r->to_undo)
			put_str(o, "to_undo", r->to_undo);
		put_u64(o, "to_vmm", (uint64_t)r->to_vmm);
		put_str(o, "kept", r->kept);
		put_bool(o, "takes_name", r->takes_name);
	}
	put_bool(o, "disturbed_peer", r->disturbed_peer);
	put_bool(o, "guest_paused", r->guest_paused);
	put_bool(o, "keep_source", r->keep_source);
	put_bool(o, "postcopy", r->postcopy);
	put_bool(o, "release_ram", r->release_ram);
	put_u64(o, "codec", r->codec);
	put_bool(o, "checksum", r->checksum);
	put_u64(o, "timeout_ms", r->timeout_ms);
	put_u64(o, "max_bandwidth", r->max_bandwidth);
	put_str(o, "spill_dir", r->spill_dir);
	put_u64(o, "guardian", (uint64_t)r->guardian);
	put_u64(o, "worker", (uint64_t)r->worker);
	put_u64(o, "vmm", (uint64_t)r->vmm);
	put_str(o, "error", r->error);
	put_str(stats, "mode", ferry_mode_name(r->stats.mode));
	ferry_store_stats(stats, &r->stats);
	json_object_object_add(o, "stats", stats);
	return o;
}

/* Write @text as the new contents of @path, durably. */
static int store_replace(const char *path, const char *text)
{
	char aside[FERRY_RUNTIME_PATH + 16], dir[FERRY_RUNTIME_PATH];
	int fd, dir_fd, r;
	char *slash;

	/* One writer at a time holds the lock of the id; a crash leaves at most this. */
	snprintf(aside, sizeof(aside), "%s.new", path);
	fd = open(aside, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0)
		return -errno;
	r = ferry_io_pwrite(fd, text, strlen(text), 0);
	if (!r && fsync(fd))
		r = -errno;
	close(fd);
	if (!r && rename(aside, path))
		r = -errno;
	if (r) {
		unlink(aside);
		return r;
	}
	snprintf(dir, sizeof(dir), "%s", path);
	slash = strrchr(dir, '/');
	if (slash)
		*slash = 0;
	dir_fd = open(slash ? dir : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (dir_fd < 0)
		return -errno;
	if (fsync(dir_fd) && errno != EINVAL)
		r = -errno;
	close(dir_fd);
	return r;
}

int ferry_store_save(const struct ferry_record *record, struct ferry_error *err)
{
	char path[FERRY_RUNTIME_PATH];
	struct json_object *o;
	const char *text;
	int r;

	r = ferry_runtime_path(record->id, "json", path, err);
	if (r)
		return r;
	o = store_encode(record);
	text = json_object_to_json_string_ext(o, JSON_C_TO_STRING_PRETTY);
	r = text ? store_replace(path, text) : -ENOMEM;
	json_object_put(o);
	return r ? ferry_error_set(err, -r, "cannot write the record %s: %s", path, strerror(-r)) :
		   0;
}

static const char *get_str(struct json_object *o, const char *key)
{
	struct json_object *v;

	if (!json_object_object_get_ex(o, key, &v) || !json_object_is_type(v, json_type_string))
		return NULL;
	return json_object_get_string(v);
}

static uint64_t get_u64(struct json_object *o, const char *key)
{
	struct json_object *v;

	if (!json_object_object_get_ex(o, key, &v) || !json_object_is_type(v, json_type_int))
		return 0;
	return json_object_get_uint64(v);
}

static bool get_bool(struct json_object *o, const char *key)
{
	struct json_object *v;

	return json_object_object_get_ex(o, key, &v) && json_object_get_boolean(v);
}

static int get_text(struct json_object *o, const char *key, char *to, size_t room)
{
	const char *text = get_str(o, key);

	if (!text || strlen(text) >= room)
		return -EPROTO;
	memcpy(to, text, strlen(text) + 1);
	return 0;
}

static void get_histogram(struct json_object *o, struct ferry_stats *st)
{
	struct json_object *list;
	size_t i;

	if (!json_object_object_get_ex(o, "fault_us", &list) ||
	    !json_object_is_type(list, json_type_array))
		return;
	for (i = 0; i < json_object_array_length(list) && i < FERRY_STATS_BUCKETS; i++)
		st->fault_us[i] = json_object_get_uint64(json_object_array_get_idx(list, i));
}

static void decode_stats(struct json_object *o, struct ferry_stats *st)
{
	const char *mode = get_str(o, "mode");
	int m = mode ? ferry_mode_parse(mode) : -1;

	st->mode = m < 0 ? FERRY_MODE_PRECOPY : (enum ferry_mode)m;
	st->total_ns = get_u64(o, "total_ns");
	st->downtime_ns = get_u64(o, "downtime_ns");
	st->rounds = get_u64(o, "rounds");
	st->ram_bytes = get_u64(o, "ram_bytes");
	st->sent_bytes = get_u64(o, "sent_bytes");
	st->normal_pages = get_u64(o, "normal_pages");
	st->zero_pages = get_u64(o, "zero_pages");
	st->device_bytes = get_u64(o, "device_bytes");
	st->faults = get_u64(o, "faults");
	st->fault_pages = get_u64(o, "fault_pages");
	st->background_pages = get_u64(o, "background_pages");
	st->fault_p50_ns = get_u64(o, "fault_p50_ns");
	st->fault_p99_ns = get_u64(o, "fault_p99_ns");
	st->missing_pages = get_u64(o, "missing_pages");
	st->blocktime_ns = get_u64(o, "blocktime_ns");
	st->blocktime_max_ns = get_u64(o, "blocktime_max_ns");
	get_histogram(o, st);
	st->suspect_pages = get_u64(o, "suspect_pages");
	st->suspect_copied = get_u64(o, "suspect_copied");
	st->channels = (uint32_t)get_u64(o, "channels");
	st->verified = get_bool(o, "verified");
	get_text(o, "tracker", st->tracker, sizeof(st->tracker));
}

static int decode_names(struct json_object *o, struct ferry_record *r)
{
	const char *role = get_str(o, "role"), *state = get_str(o, "state");
	const char *phase = get_str(o, "phase"), *uuid = get_str(o, "uuid");
	int s, p, n;

	if (!role || !state || !phase || !uuid || ferry_uuid_parse(uuid, r->uuid))
		return -EPROTO;
	s = ferry_state_parse(state);
	p = ferry_phase_parse(phase);
	if (s < 0 || p < 0)
		return -EPROTO;
	r->state = (enum ferry_state)s;
	r->phase = (enum ferry_phase)p;
	n = ferry_role_parse(role);
	if (n < 0)
		return -EPROTO;
	r->role = (enum ferry_role)n;
	return 0;
}

static int get_undo(struct json_object *o, const char *key, char **to)
{
	const char *undo = get_str(o, key);

	if (!undo)
		return 0;
	*to = strdup(undo);
	return *to ? 0 : -ENOMEM;
}

static int decode_cpr(struct json_object *o, struct ferry_record *r)
{
	if (r->role != FERRY_ROLE_CPR)
		return 0;
	r->to_vmm = (pid_t)get_u64(o, "to_vmm");
	r->takes_name = get_bool(o, "takes_name");
	if (get_text(o, "kept", r->kept, sizeof(r->kept)))
		return -EPROTO;
	return get_undo(o, "to_undo", &r->to_undo);
}

static int store_decode(struct json_object *o, struct ferry_record *r)
{
	struct json_object *stats;
	int ret;

	memset(r, 0, sizeof(*r));
	if (!json_object_is_type(o, json_type_object) || get_u64(o, "version") != STORE_VERSION)
		return -EPROTO;
	if (decode_names(o, r) || get_text(o, "id", r->id, sizeof(r->id)) ||
	    get_text(o, "guest", r->guest, sizeof(r->guest)) ||
	    get_text(o, "uri", r->uri, sizeof(r->uri)) ||
	    get_text(o, "error", r->error, sizeof(r->error)))
		return -EPROTO;
	r->settled = get_bool(o, "settled");
	r->epoch = (uint32_t)get_u64(o, "epoch");
	r->disturbed_peer = get_bool(o, "disturbed_peer");
	r->guest_paused = get_bool(o, "guest_paused");
	r->keep_source = get_bool(o, "keep_source");
	r->postcopy = get_bool(o, "postcopy");
	r->release_ram = get_bool(o, "release_ram");
	r->codec = (uint8_t)get_u64(o, "codec");
	r->checksum = get_bool(o, "checksum");
	r->timeout_ms = (uint32_t)get_u64(o, "timeout_ms");
	r->max_bandwidth = get_u64(o, "max_bandwidth");
	/* Not in records of before there was --spill. */
	if (get_str(o, "spill_dir") &&
	    (get_text(o, "spill_dir", r->spill_dir, sizeof(r->spill_dir)) ||
	     (r->spill_dir[0] && r->spill_dir[0] != '/')))
		return -EPROTO;
	r->guardian = (pid_t)get_u64(o, "guardian");
	r->worker = (pid_t)get_u64(o, "worker");
	r->vmm = (pid_t)get_u64(o, "vmm");
	if (json_object_object_get_ex(o, "stats", &stats))
		decode_stats(stats, &r->stats);
	if (r->stats.channels > FERRY_WIRE_MAX_CHANNELS)
		return -EPROTO;
	ret = get_undo(o, "undo", &r->undo);
	if (!ret)
		ret = decode_cpr(o, r);
	if (ret)
		ferry_record_free(r);
	return ret;
}

static int store_read(const char *path, char **text)
{
	/* Not to hang on a pipe. */
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	off_t size;
	int r = 0;

	if (fd < 0)
		return -errno;
	size = lseek(fd, 0, SEEK_END);
	if (size <= 0 || size > STORE_MAX_BYTES)
		r = -EPROTO;
	*text = r ? NULL : calloc(1, (size_t)size + 1);
	if (!r && !*text)
		r = -ENOMEM;
	if (!r)
		r = ferry_io_pread(fd, *text, (size_t)size, 0);
	close(fd);
	return r;
}

int ferry_store_load(const char *id, struct ferry_record *record, struct ferry_error *err)
{
	char path[FERRY_RUNTIME_PATH];
	struct json_object *o = NULL;
	char *text = NULL;
	int r;

	r = ferry_runtime_check_id(id, err);
	if (!r)
		r = ferry_runtime_path(id, "json", path, err);
	if (r)
		return r;
	r = store_read(path, &text);
	if (r == -ENOENT) {
		r = ferry_error_set(err, ENOENT,
				    "no migration '%s' is known here; 'ferry list' shows those "
				    "that are", id);
		goto out;
	}
	if (!r)
		o = json_tokener_parse(text);
	if (!r)
		r = o ? store_decode(o, record) : -EPROTO;
	if (!r && strcmp(record->id, id)) {
		ferry_record_free(record);
		r = -EPROTO;
	}
	if (r)
		ferry_error_set(err, -r, "the record %s cannot be used: %s", path, r == -EPROTO ?
				"it is damaged, or of another version of ferry; once you know where its "
				"guest is, remove it" : strerror(-r));
	json_object_put(o);
out:
	free(text);
	return r;
}

int ferry_store_unserved(const char *id, struct ferry_error *err)
{
	struct ferry_record record = { 0 };
	int r = ferry_store_load(id, &record, err);

	if (r)
		return r;
	if (record.settled)
		r = ferry_error_set(err, ECONNREFUSED, "%s is over: %s", id,
				    ferry_state_name(record.state));
	else
		r = ferry_error_set(err, ECONNREFUSED, "no process serves %s any more, its state is "
				    "%s; 'ferry status %s' tells what to do", id,
				    ferry_state_name(record.state), id);
	ferry_record_free(&record);
	return r;
}

static int store_filter(const struct dirent *d)
{
	size_t n = strlen(d->d_name);

	return n > 5 && d->d_name[0] != '.' && !strcmp(d->d_name + n - 5, ".json");
}

int ferry_store_list(void (*each)(void *ctx, const char *id), void *ctx, struct ferry_error *err)
{
	char dir[FERRY_RUNTIME_PATH];
	struct dirent **names;
	int i, n, r;

	r = ferry_runtime_dir(dir, err);
	if (r)
		return r;
	n = scandir(dir, &names, store_filter, alphasort);
	if (n < 0)
		return ferry_error_set(err, errno, "cannot read %s: %s", dir, strerror(errno));
	for (i = 0; i < n; i++) {
		names[i]->d_name[strlen(names[i]->d_name) - 5] = 0;
		each(ctx, names[i]->d_name);
		free(names[i]);
	}
	free(names);
	return 0;
}

struct store_claim {
	const char *mine;
	pid_t vmm;
	struct ferry_error *err;
	int result;
};

static void store_claim(void *ctx, const char *id)
{
	struct store_claim *c = ctx;
	struct ferry_record r = { 0 };

	if (c->result || !strcmp(id, c->mine) || ferry_store_load(id, &r, NULL))
		return;
	if (!r.settled && (r.vmm == c->vmm || r.to_vmm == c->vmm))
		c->result = ferry_error_set(c->err, EBUSY, "%s, a %s of this VMM (pid %d), is under way "
					    "(state %s): let it end first; 'ferry status %s' tells "
					    "more", r.id, ferry_mode_name(r.stats.mode), (int)c->vmm,
					    ferry_state_name(r.state), r.id);
	ferry_record_free(&r);
}

int ferry_store_claimed(const char *id, pid_t vmm, struct ferry_error *err)
{
	struct store_claim c = { .mine = id, .vmm = vmm, .err = err };
	int r = ferry_store_list(store_claim, &c, err);

	return r ? r : c.result;
}
