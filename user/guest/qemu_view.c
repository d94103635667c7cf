// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Tracked views in the place of QEMU's mappings of guest RAM, and the way back.
 *
 * Journaled first: what each mapping was like, and the spare address where new ones
 * are made (view.c). With that alone another process finds whatever a killed one has
 * left, a view in place or a mapping at the spare address, and puts it right. A view
 * that nobody put back costs QEMU a fault a page and nothing else; the next migration
 * takes it for the plain mapping it stands for, and leaves that behind (except that
 * whether huge pages had been forbidden there cannot be told any more).
 *
 * The descriptors go by QMP getfd and are closed in QEMU at once: the mapping holds
 * its file. For the way back the file is opened anew by way of /proc, which gives the
 * memory file itself, not the tracker it is seen through.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "guest/json.h"
#include "guest/qemu.h"
#include "guest/view.h"
#include "inject/inject.h"

/* Mappings that guest RAM may be cut into. */
#define MAX_AREAS 128u

struct areas {
	struct ferry_view_area list[MAX_AREAS];
	unsigned int block[MAX_AREAS];
	unsigned int count;
	struct ferry_view view;
};

/* ---- the journal ---- */

static struct json_object *area_to_json(const struct ferry_view_area *area)
{
	struct json_object *o = json_object_new_object();
	char flags[FERRY_VMFLAGS_TEXT];

	ferry_vmflags_format(&area->flags, flags, sizeof(flags));
	json_object_object_add(o, "start", json_object_new_int64((int64_t)area->start));
	json_object_object_add(o, "end", json_object_new_int64((int64_t)area->end));
	json_object_object_add(o, "off", json_object_new_int64((int64_t)area->off_bytes));
	json_object_object_add(o, "dev", json_object_new_int64((int64_t)area->dev));
	json_object_object_add(o, "ino", json_object_new_int64((int64_t)area->ino));
	json_object_object_add(o, "prot", json_object_new_int(area->prot));
	json_object_object_add(o, "flags", json_object_new_string(flags));
	return o;
}

static int area_from_json(struct json_object *o, struct ferry_view_area *area)
{
	const char *flags = ferry_json_string(o, "flags");

	*area = (struct ferry_view_area){
		.start = ferry_json_uint(o, "start", 0),
		.end = ferry_json_uint(o, "end", 0),
		.off_bytes = ferry_json_uint(o, "off", 0),
		.dev = (dev_t)ferry_json_uint(o, "dev", 0),
		.ino = (ino_t)ferry_json_uint(o, "ino", 0),
		.prot = (int)(ferry_json_uint(o, "prot", 0) &
			      (PROT_READ | PROT_WRITE | PROT_EXEC)),
	};
	if (!flags || ferry_vmflags_parse(flags, &area->flags) || !area->ino ||
	    area->start >= area->end || (area->start | area->end) % FERRY_PAGE_SIZE)
		return -EPROTO;
	return 0;
}

static int journal_spare(struct ferry_qemu *q, struct areas *a, struct ferry_error *err)
{
	struct json_object *spare = json_object_new_array();

	json_object_array_add(spare, json_object_new_int64((int64_t)a->view.spare));
	json_object_array_add(spare, json_object_new_int64((int64_t)a->view.spare_bytes));
	json_object_object_add(q->journal.undo, "spare", spare);
	return ferry_qemu_journal(q, err);
}

static int journal_areas(struct ferry_qemu *q, struct areas *a, struct ferry_error *err)
{
	struct json_object *list = json_object_new_array();
	unsigned int i;

	for (i = 0; i < a->count; i++)
		json_object_array_add(list, area_to_json(&a->list[i]));
	json_object_object_add(q->journal.undo, "views", list);
	return journal_spare(q, a, err);
}

static int read_journal(struct ferry_qemu *q, struct json_object *list, struct areas *a,
			struct ferry_error *err)
{
	struct json_object *spare = ferry_json_get(q->journal.undo, "spare", json_type_array);
	size_t i, n = ferry_json_length(list);

	if (n > MAX_AREAS)
		return ferry_error_set(err, EPROTO, "the undo text names %zu mappings", n);
	for (i = 0; i < n; i++)
		if (area_from_json(json_object_array_get_idx(list, i), &a->list[i]))
			return ferry_error_set(err, EPROTO, "the undo text tells nonsense of a "
					       "mapping of guest RAM");
	a->count = (unsigned int)n;
	if (ferry_json_length(spare) == 2) {
		a->view.spare = (uint64_t)json_object_get_int64(
			json_object_array_get_idx(spare, 0));
		a->view.spare_bytes = (uint64_t)json_object_get_int64(
			json_object_array_get_idx(spare, 1));
	}
	return 0;
}

static void forget(struct ferry_qemu *q)
{
	json_object_object_del(q->journal.undo, "views");
	json_object_object_del(q->journal.undo, "spare");
	q->viewed = false;
}

/* ---- the way in ---- */

static int find_areas(struct ferry_qemu *q, const struct ferry_ram *ram, struct areas *a,
		      struct ferry_error *err)
{
	unsigned int i;
	int r = ferry_peers_ram(&q->peers, ram, err);

	if (r)
		return r;
	for (i = 0; i < ram->count; i++) {
		const struct ferry_peers_file *file = &q->peers.files[i];
		const struct ferry_ram_block *b = &ram->blocks[i];
		struct ferry_view_area *first = &a->list[a->count];
		int n = ferry_view_areas(q->guest.pid, file->dev, file->ino, b->vmm_addr,
					 b->size_bytes, first, MAX_AREAS - a->count, err);

		if (n >= 0 && first->off_bytes != b->fd_off_bytes)
			n = ferry_error_set(err, ESTALE, "it is mapped from another offset now");
		if (n < 0) {
			ferry_error_prefix(err, "guest RAM '%s'", b->name);
			return n;
		}
		while (n--) {
			struct ferry_view_area *area = &a->list[a->count];

			if (area->end - area->start > a->view.spare_bytes)
				a->view.spare_bytes = area->end - area->start;
			a->block[a->count++] = i;
		}
	}
	return 0;
}

/*
 * A mapping that cannot be expanded cannot be locked either: what was locked in QEMU is
 * locked in our mapping meanwhile, so that it stays in memory.
 */
static void keep_locked(const struct ferry_ram *ram, const struct areas *a)
{
	unsigned int i;

	for (i = 0; i < a->count; i++) {
		const struct ferry_ram_block *b = &ram->blocks[a->block[i]];

		if (!ferry_vmflags_has(&a->list[i].flags, "lo") || !b->map)
			continue;
		if (mlock2(b->map + (a->list[i].start - b->vmm_addr),
			   a->list[i].end - a->list[i].start, MLOCK_ONFAULT))
			ferry_log_warn("guest RAM '%s' is locked in QEMU, but cannot be kept so "
				       "while it is tracked: %s", b->name, strerror(errno));
	}
}

static int map_areas(struct ferry_qemu *q, const struct areas *a, const int *trackers,
		     struct ferry_error *err)
{
	unsigned int i;
	int remote = -1, r = 0;

	for (i = 0; !r && i < a->count; i++) {
		if (!i || a->block[i] != a->block[i - 1])
			remote = ferry_qemu_pass_fd(q, FERRY_QEMU_VIEW_FD, trackers[a->block[i]],
						    err);
		r = remote < 0 ? remote :
				 ferry_view_exchange(&a->view, &a->list[i], remote, err);
	}
	if (ferry_qemu_drop_fd(q, FERRY_QEMU_VIEW_FD, r ? NULL : err) && !r)
		r = -EIO;
	return r;
}

static int map_all(struct ferry_qemu *q, const struct ferry_ram *ram, const int *trackers,
		   struct areas *a, struct ferry_error *err)
{
	struct ferry_error late = { 0 };
	int r;

	r = find_areas(q, ram, a, err);
	if (!r)
		r = ferry_view_find_spare(q->guest.pid, a->view.spare_bytes, &a->view.spare, err);
	if (!r)
		r = ferry_inject_open(q->guest.pid, &a->view.inj, err);
	if (r)
		return r;
	r = journal_areas(q, a, err);
	if (!r) {
		keep_locked(ram, a);
		q->viewed = true;
		r = map_areas(q, a, trackers, err);
	}
	ferry_inject_close(a->view.inj);
	if (r && ferry_qemu_views_undo(q, &late))
		ferry_log_warn("%s", late.text);
	return r;
}

static int views_map(void *ctx, const struct ferry_ram *ram, const int *trackers,
		     struct ferry_error *err)
{
	struct ferry_qemu *q = ctx;
	struct areas *a = calloc(1, sizeof(*a));
	int r;

	if (!a)
		return ferry_error_set(err, ENOMEM, "tracked views: no memory");
	a->view.pid = q->guest.pid;
	r = ferry_qemu_verify(q, err);
	if (!r)
		r = map_all(q, ram, trackers, a, err);
	if (r)
		ferry_error_prefix(err, "putting tracked views of guest RAM into QEMU (pid %d)",
				   (int)q->guest.pid);
	free(a);
	return r;
}

/* ---- the way back ---- */

static int put_back(struct ferry_qemu *q, const struct ferry_view *view,
		    const struct ferry_view_area *area, struct ferry_error *err)
{
	const struct ferry_peers_file file = { .dev = area->dev, .ino = area->ino };
	int state = ferry_view_look(q->guest.pid, area);
	int fd, remote, r;

	if (state < 0)
		return ferry_error_set(err, -state, "reading /proc/%d/smaps: %s",
				       (int)q->guest.pid, strerror(-state));
	if (state == FERRY_VIEW_GONE) {
		ferry_log_debug("QEMU no longer maps that RAM at %#llx: left alone",
				(unsigned long long)area->start);
		return 0;
	}
	if (state == FERRY_VIEW_PLAIN && !q->viewed)
		return 0;
	fd = ferry_qemu_memory_open(q, &file, area->start, area->end);
	if (fd < 0)
		return ferry_error_set(err, -fd, "opening the memory file again: %s",
				       strerror(-fd));
	remote = ferry_qemu_pass_fd(q, FERRY_QEMU_VIEW_FD, fd, err);
	r = remote < 0 ? remote : ferry_view_exchange(view, area, remote, err);
	if (remote >= 0 && ferry_qemu_drop_fd(q, FERRY_QEMU_VIEW_FD, r ? NULL : err) && !r)
		r = -EIO;
	close(fd);
	return r;
}

static int clear_spare(struct ferry_qemu *q, struct areas *a, struct ferry_error *err)
{
	unsigned int i;
	int r = 0;

	for (i = 0; !r && i < a->count; i++)
		if (!i || a->list[i].ino != a->list[i - 1].ino ||
		    a->list[i].dev != a->list[i - 1].dev)
			r = ferry_view_clear_spare(&a->view, a->list[i].dev, a->list[i].ino, err);
	a->view.spare_bytes = 0;
	for (i = 0; i < a->count; i++)
		if (a->list[i].end - a->list[i].start > a->view.spare_bytes)
			a->view.spare_bytes = a->list[i].end - a->list[i].start;
	if (!r)
		r = ferry_view_find_spare(q->guest.pid, a->view.spare_bytes, &a->view.spare, err);
	return r ? r : journal_spare(q, a, err);
}

static int undo_areas(struct ferry_qemu *q, struct areas *a, struct ferry_error *err)
{
	struct ferry_error why;
	unsigned int i;
	int r, one;

	r = ferry_inject_open(q->guest.pid, &a->view.inj, err);
	if (r)
		return r;
	r = clear_spare(q, a, err);
	/* All are tried: one that cannot be put back is no reason to leave the others. */
	for (i = 0; i < a->count && (i == 0 || r != -ETIMEDOUT); i++) {
		one = put_back(q, &a->view, &a->list[i], r ? &why : err);
		if (!r)
			r = one;
	}
	ferry_inject_close(a->view.inj);
	return r;
}

int ferry_qemu_views_undo(struct ferry_qemu *q, struct ferry_error *err)
{
	struct json_object *list = ferry_json_get(q->journal.undo, "views", json_type_array);
	struct areas *a;
	int r;

	if (!list || ferry_qemu_gone(q, 0))
		return 0;
	if (!q->viewed)
		ferry_inject_settle(q->guest.pid);
	a = calloc(1, sizeof(*a));
	if (!a)
		return ferry_error_set(err, ENOMEM, "no memory");
	a->view.pid = q->guest.pid;
	r = read_journal(q, list, a, err);
	if (!r)
		r = undo_areas(q, a, err);
	free(a);
	if (ferry_qemu_gone(q, 0))
		return 0;
	if (r)
		return r;
	forget(q);
	ferry_journal_less(&q->journal, &q->host);
	return 0;
}

static int views_unmap(void *ctx, struct ferry_error *err)
{
	struct ferry_qemu *q = ctx;
	int r = ferry_qemu_views_undo(q, err);

	if (r)
		ferry_error_prefix(err, "putting back the plain mapping of guest RAM in QEMU (pid "
				   "%d)", (int)q->guest.pid);
	return r;
}

static int views_count(void *ctx, struct ferry_error *err)
{
	struct ferry_qemu *q = ctx;

	return ferry_peers_count(&q->peers, err);
}

static int views_others(void *ctx, int (*fn)(void *fn_ctx, pid_t pid, int fd), void *fn_ctx,
			struct ferry_error *err)
{
	struct ferry_qemu *q = ctx;

	return ferry_peers_others(&q->peers, fn, fn_ctx, err);
}

void ferry_qemu_views(struct ferry_guest *guest, struct ferry_dirty_views *views)
{
	*views = (struct ferry_dirty_views){
		.map = views_map,
		.unmap = views_unmap,
		.count = views_count,
		.others = views_others,
		.ctx = ferry_qemu_of(guest),
	};
}
