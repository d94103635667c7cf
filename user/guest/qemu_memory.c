// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Guest RAM of QEMU: from memory backends to open files.
 *
 * QMP names the backends (query-memdev) and how they were made (qom-get); the
 * file behind one is found by its identity: stat of its mem-path as QEMU sees
 * it (/proc/PID/root, /proc/PID/fd), or, for a name that is gone and for
 * memfds, the name in /proc/PID/maps. The mapping is then looked for by device
 * and inode, and may be cut into several areas (userfaultfd registrations,
 * madvise); contiguous pieces count as one. A block is named by its backend's
 * id, so both sides agree whatever the files are called.
 *
 * Only shared memory on tmpfs, or hugetlb memory, is taken: QEMU leaves private memory and (from
 * 8.1 on) anonymous memfds in its own migration stream.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "dirty/kmod.h"
#include "guest/json.h"
#include "guest/proc.h"
#include "guest/qemu.h"
#include "inject/inject.h"
#include "ram/hugetlb.h"

/* How a person should give the guest its RAM instead. */
static int refuse(const struct ferry_qemu_memory *m, int errnum, const char *why,
		  struct ferry_error *err)
{
	unsigned long long mib = m->size_bytes >> 20;

	return ferry_error_set(err, errnum,
			       "guest RAM '%s': %s; start QEMU with -object memory-backend-file,"
			       "id=%s,size=%lluM,share=on,mem-path=/dev/shm/NAME -machine "
			       "memory-backend=%s", m->id, why, m->id, mib, m->id);
}

static int get_property(struct ferry_qemu *q, const char *id, const char *property,
			struct json_object **value, struct ferry_error *err)
{
	struct json_object *args = json_object_new_object();
	char path[FERRY_RAM_NAME_MAX + 16];

	snprintf(path, sizeof(path), "/objects/%s", id);
	json_object_object_add(args, "path", json_object_new_string(path));
	json_object_object_add(args, "property", json_object_new_string(property));
	return ferry_qemu_command(q, "qom-get", args, -1, value, err);
}

/* A property as text; "" when the backend has none of that name. */
static int get_text(struct ferry_qemu *q, const char *id, const char *property, char *text,
		    size_t room, struct ferry_error *err)
{
	struct json_object *value;
	int r = get_property(q, id, property, &value, err);

	text[0] = '\0';
	if (r == -EREMOTEIO)
		return 0;
	if (r)
		return r;
	if (json_object_is_type(value, json_type_string))
		snprintf(text, room, "%s", json_object_get_string(value));
	json_object_put(value);
	return 0;
}

int ferry_qemu_memory_bool(struct ferry_qemu *q, const char *id, const char *property, bool *on,
			   struct ferry_error *err)
{
	struct json_object *value;
	int r = get_property(q, id, property, &value, err);

	*on = false;
	if (r == -EREMOTEIO)
		return 0;
	if (r)
		return r;
	*on = json_object_is_type(value, json_type_boolean) && json_object_get_boolean(value);
	json_object_put(value);
	return 0;
}

/* What QMP knows against it; fills in the path, which stays empty for a memfd. */
static int check_backend(struct ferry_qemu *q, struct ferry_qemu_memory *m, bool share,
			 struct ferry_error *err)
{
	char type[64];
	bool on;
	int r;

	r = get_text(q, m->id, "type", type, sizeof(type), err);
	if (!r && !share)
		return refuse(m, EOPNOTSUPP, "it is private to QEMU (share=off)", err);
	if (!r)
		r = ferry_qemu_memory_bool(q, m->id, "discard-data", &on, err);
	if (!r && on)
		return refuse(m, EOPNOTSUPP, "discard-data=on zeroes it when QEMU quits", err);
	if (!r)
		r = get_text(q, m->id, "mem-path", m->path, sizeof(m->path), err);
	if (r || (!strcmp(type, "memory-backend-file") && m->path[0]))
		return r;
	if (strcmp(type, "memory-backend-memfd")) {
		char why[128];

		snprintf(why, sizeof(why), "ferry cannot use a %s", type);
		return refuse(m, EOPNOTSUPP, why, err);
	}
	m->path[0] = '\0';
	if (q->major > 8 || (q->major == 8 && q->minor >= 1))
		return refuse(m, EOPNOTSUPP,
			      "QEMU 8.1 and later puts a memory-backend-memfd in its own stream "
			      "(a memfd works as mem-path=/proc/self/fd/N)", err);
	return 0;
}

/* The file as QEMU sees it: its own descriptors, its own root or working directory. */
static bool stat_path(pid_t pid, const char *path, struct stat *st)
{
	static const char *const own[] = { "/proc/self/fd/", "/dev/fd/" };
	char there[600];
	size_t i;

	for (i = 0; i < sizeof(own) / sizeof(own[0]); i++) {
		size_t n = strlen(own[i]);

		if (strncmp(path, own[i], n))
			continue;
		snprintf(there, sizeof(there), "/proc/%d/fd/%s", (int)pid, path + n);
		return !stat(there, st);
	}
	snprintf(there, sizeof(there), "/proc/%d/%s/%s", (int)pid, path[0] == '/' ? "root" : "cwd",
		 path);
	return !stat(there, st);
}

/* Looking for the mapping of one backend. */
struct search {
	struct ferry_qemu_memory *m;
	bool identified; /* by device and inode, else by name */
	char name[672];	 /* how the path of the area begins */
	struct ferry_proc_area run, found; /* contiguous pieces so far; the one that fits */
	uint64_t first_end;
	unsigned int hits;
	bool mapped_private;
};

static void run_ends(struct search *s)
{
	struct ferry_proc_area *run = &s->run;

	if (run->end - run->start >= s->m->size_bytes && run->off_bytes == s->m->fd_off_bytes) {
		/* For an unnamed file the size is all that tells: it must be exact. */
		if (s->identified || run->end - run->start == s->m->size_bytes) {
			if (!s->hits++) {
				s->found = *run;
				s->m->area_start = run->start;
				s->m->area_end = s->first_end;
			}
		}
	}
	run->start = run->end = 0;
}

static bool is_wanted(const struct search *s, const struct ferry_proc_area *area)
{
	if (s->identified)
		return area->dev == s->m->dev && area->ino == s->m->ino;
	return !strncmp(area->path, s->name, strlen(s->name));
}

static int search_area(void *ctx, const struct ferry_proc_area *area)
{
	struct search *s = ctx;
	struct ferry_proc_area *run = &s->run;

	if (!is_wanted(s, area))
		return 0;
	if (!area->shared) {
		s->mapped_private = true;
		return 0;
	}
	if (run->end && area->start == run->end && area->dev == run->dev &&
	    area->ino == run->ino &&
	    area->off_bytes == run->off_bytes + (run->end - run->start)) {
		run->end = area->end;
		return 0;
	}
	if (run->end)
		run_ends(s);
	*run = *area;
	s->first_end = area->end;
	return 0;
}

static int not_mapped(struct ferry_qemu *q, const struct ferry_qemu_memory *m,
		      struct ferry_error *err)
{
	char comm[32];

	ferry_proc_comm(q->guest.pid, comm);
	return ferry_error_set(err, ENXIO,
			       "guest RAM '%s' (%s) is not mapped by pid %d (%s), which made the "
			       "QMP socket %s; when another program (libvirt, a proxy) made that "
			       "socket, give ferry one QEMU makes itself: -qmp "
			       "unix:PATH,server=on,wait=off", m->id,
			       m->path[0] ? m->path : "memfd", (int)q->guest.pid, comm,
			       q->guest.path);
}

/* How the area's path begins when the file has no reachable name. */
static void search_name(struct search *s, bool is_directory)
{
	const struct ferry_qemu_memory *m = s->m;

	if (!m->path[0])
		snprintf(s->name, sizeof(s->name), "/memfd:memory-backend-memfd");
	else if (is_directory)
		snprintf(s->name, sizeof(s->name), "%s/qemu_back_mem.%s.", m->path, m->id);
	else
		snprintf(s->name, sizeof(s->name), "%s (deleted)", m->path);
}

static int find_mapping(struct ferry_qemu *q, struct ferry_qemu_memory *m, struct ferry_error *err)
{
	struct search s = { .m = m };
	struct stat st;
	bool there = m->path[0] && stat_path(q->guest.pid, m->path, &st);
	int r;

	if (there && S_ISREG(st.st_mode)) {
		m->dev = st.st_dev;
		m->ino = st.st_ino;
		s.identified = true;
	} else {
		search_name(&s, there && S_ISDIR(st.st_mode));
	}
	r = ferry_proc_maps(q->guest.pid, search_area, &s);
	if (r)
		return ferry_error_set(err, -r, "reading /proc/%d/maps of QEMU: %s%s",
				       (int)q->guest.pid, strerror(-r),
				       r == -EACCES || r == -EPERM ?
				       "; run ferry as root (CAP_SYS_PTRACE)" : "");
	if (s.run.end)
		run_ends(&s);
	if (s.hits > 1)
		return ferry_error_set(err, ENOTUNIQ, "guest RAM '%s': QEMU (pid %d) maps it %u "
				       "times, or has several of that kind; give each backend a "
				       "file of its own (mem-path=/dev/shm/NAME)", m->id,
				       (int)q->guest.pid, s.hits);
	if (!s.hits && s.mapped_private)
		return refuse(m, EOPNOTSUPP, "QEMU maps it privately", err);
	if (!s.hits)
		return not_mapped(q, m, err);
	m->dev = s.found.dev;
	m->ino = s.found.ino;
	m->vmm_addr = s.found.start;
	snprintf(m->path, sizeof(m->path), "%.*s", (int)sizeof(m->path) - 1, s.found.path);
	return 0;
}

/* Is @fd the file we mean, and not a tracked view of it? Closes it if not. */
static int keep_if_same(const struct ferry_peers_file *file, int fd)
{
	struct stat st;

	if (fd < 0)
		return fd;
	if (!fstat(fd, &st) && st.st_dev == file->dev && st.st_ino == file->ino &&
	    !ferry_kmod_is_tracker(fd))
		return fd;
	close(fd);
	return -ESTALE;
}

struct fd_search {
	const struct ferry_peers_file *file;
	pid_t pid;
};

/* Return: number + 1 of a descriptor of the file in QEMU. */
static int search_fd(void *ctx, int fd, const char *link)
{
	const struct fd_search *s = ctx;
	char path[64];
	struct stat st;

	(void)link;
	snprintf(path, sizeof(path), "/proc/%d/fd/%d", (int)s->pid, fd);
	return !stat(path, &st) && st.st_dev == s->file->dev && st.st_ino == s->file->ino ?
	       fd + 1 : 0;
}

/* Opening what /proc names opens the file itself, also where a view of it is meant. */
int ferry_qemu_memory_open(const struct ferry_qemu *q, const struct ferry_peers_file *file,
			   uint64_t start, uint64_t end)
{
	struct fd_search s = { .file = file, .pid = q->guest.pid };
	char path[96];
	int fd, r;

	snprintf(path, sizeof(path), "/proc/%d/map_files/%llx-%llx", (int)q->guest.pid,
		 (unsigned long long)start, (unsigned long long)end);
	fd = keep_if_same(file, open(path, O_RDWR | O_CLOEXEC));
	if (fd >= 0)
		return fd;
	/* map_files needs more rights than a descriptor of QEMU, which keeps one open. */
	r = ferry_proc_fds(q->guest.pid, search_fd, &s);
	if (r <= 0)
		return r < 0 ? r : -ENOENT;
	snprintf(path, sizeof(path), "/proc/%d/fd/%d", (int)q->guest.pid, r - 1);
	fd = keep_if_same(file, open(path, O_RDWR | O_CLOEXEC));
	return fd >= 0 ? fd : keep_if_same(file, ferry_inject_take_fd(q->guest.pid, r - 1));
}

/* Open it and look at what kind of file it is. Return: descriptor or -errno. */
static int open_memory(const struct ferry_qemu *q, const struct ferry_qemu_memory *m,
		       uint32_t *page_size, struct ferry_error *err)
{
	const struct ferry_peers_file file = { .dev = m->dev, .ino = m->ino };
	struct ferry_error why;
	struct stat st;
	int r = 0, fd = ferry_qemu_memory_open(q, &file, m->area_start, m->area_end);

	if (fd < 0)
		return ferry_error_set(err, -fd, "opening guest RAM '%s' (%s) of QEMU (pid %d): %s; "
				       "run ferry as root", m->id, m->path, (int)q->guest.pid,
				       strerror(-fd));
	if (fstat(fd, &st))
		r = ferry_error_set(err, errno, "guest RAM '%s' (%s): %s", m->id, m->path,
				    strerror(errno));
	else if (ferry_hugetlb_page_size(fd, page_size, &why))
		r = refuse(m, why.errnum, why.text, err);
	else if ((uint64_t)st.st_size < m->fd_off_bytes + m->size_bytes)
		r = ferry_error_set(err, EINVAL, "guest RAM '%s' (%s): the file has %lld bytes, the "
				    "backend %llu", m->id, m->path, (long long)st.st_size,
				    (unsigned long long)m->size_bytes);
	if (r) {
		close(fd);
		return r;
	}
	return fd;
}

static int find_one(struct ferry_qemu *q, struct json_object *memdev, struct ferry_qemu_memory *m,
		    struct ferry_error *err)
{
	const char *id = ferry_json_string(memdev, "id");
	struct json_object *off;
	struct ferry_error why;
	uint32_t page_size;
	int fd, r;

	memset(m, 0, sizeof(*m));
	if (!id || !id[0] || strlen(id) >= sizeof(m->id) || strchr(id, '/'))
		return ferry_error_set(err, EINVAL, "QEMU has a memory backend without a usable id; "
				       "give each one id=NAME");
	strcpy(m->id, id);
	m->size_bytes = ferry_json_uint(memdev, "size", 0);
	r = check_backend(q, m, ferry_json_bool(memdev, "share", false), err);
	if (r)
		return r;
	r = get_property(q, id, "offset", &off, &why); /* from QEMU 8.1 on */
	if (!r) {
		if (json_object_is_type(off, json_type_int) && json_object_get_int64(off) > 0)
			m->fd_off_bytes = (uint64_t)json_object_get_int64(off);
		json_object_put(off);
	} else if (r != -EREMOTEIO) {
		return ferry_error_set(err, -r, "offset of guest RAM '%s': %s", id, why.text);
	}
	r = find_mapping(q, m, err);
	if (r)
		return r;
	fd = open_memory(q, m, &page_size, err);
	if (fd < 0)
		return fd;
	close(fd);
	return 0;
}

int ferry_qemu_memory(struct ferry_qemu *q, struct ferry_qemu_memory **list, unsigned int *count,
		      struct ferry_error *err)
{
	struct ferry_qemu_memory *all = NULL;
	struct json_object *reply;
	size_t i, n;
	int r = ferry_qemu_command(q, "query-memdev", NULL, -1, &reply, err);

	if (r)
		return r;
	n = ferry_json_length(reply);
	if (!n || n > FERRY_RAM_MAX_BLOCKS)
		r = ferry_error_set(err, n ? E2BIG : ENOENT, "QEMU (pid %d) has %zu memory backends; "
				    "ferry needs 1 to %d", (int)q->guest.pid, n,
				    FERRY_RAM_MAX_BLOCKS);
	if (!r) {
		all = calloc(n, sizeof(*all));
		if (!all)
			r = ferry_error_set(err, ENOMEM, "guest RAM list: no memory");
	}
	for (i = 0; !r && i < n; i++)
		r = find_one(q, json_object_array_get_idx(reply, i), &all[i], err);
	json_object_put(reply);
	if (r) {
		free(all);
		return r;
	}
	q->pid_checked = true; /* find_mapping() saw the RAM there */
	*list = all;
	*count = (unsigned int)n;
	return 0;
}

int ferry_qemu_verify(struct ferry_qemu *q, struct ferry_error *err)
{
	struct ferry_qemu_memory *list;
	unsigned int n;
	int r;

	if (q->pid_checked)
		return 0;
	r = ferry_qemu_memory(q, &list, &n, err);
	if (!r)
		free(list);
	return r;
}

static int by_id(const void *a, const void *b)
{
	return strcmp(((const struct ferry_qemu_memory *)a)->id,
		      ((const struct ferry_qemu_memory *)b)->id);
}

/* What check() has just seen, once; each question to QEMU costs a guest half a millisecond. */
static int take_list(struct ferry_qemu *q, struct ferry_qemu_memory **list, unsigned int *n,
		     struct ferry_error *err)
{
	if (!q->checked)
		return ferry_qemu_memory(q, list, n, err);
	*list = q->checked;
	*n = q->n_checked;
	q->checked = NULL;
	return 0;
}

int ferry_qemu_describe(struct ferry_guest *guest, struct ferry_ram *ram, struct ferry_error *err)
{
	struct ferry_qemu *q = ferry_qemu_of(guest);
	struct ferry_qemu_memory *list;
	unsigned int i, n;
	int r = take_list(q, &list, &n, err);

	if (r)
		return r;
	/* query-memdev has no order; both sides shall have the same one. */
	qsort(list, n, sizeof(*list), by_id);
	for (i = 0; !r && i < n; i++) {
		struct ferry_ram_block block = {
			.size_bytes = list[i].size_bytes,
			.fd_off_bytes = list[i].fd_off_bytes,
			.vmm_addr = list[i].vmm_addr,
		};

		strcpy(block.name, list[i].id);
		block.fd = open_memory(q, &list[i], &block.page_size, err);
		if (block.fd < 0) {
			r = block.fd;
			break;
		}
		r = ferry_ram_add(ram, &block, err);
		if (r)
			close(block.fd);
	}
	free(list);
	return r;
}
