// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Keeping pages before they are touched.
 *
 * The process maps the RAM but has no page of it in its page tables, and its mapping is
 * armed for missing and minor faults. So whoever touches a page first, reading or writing,
 * user or kernel, waits; the thread here copies the page into the file and then maps it. What is
 * touched by loading a device state is some ten pages (rings, vmgenid), and the RAM's size
 * does not matter at all.
 *
 * Write protection would keep only pages that are written, but it needs a page table entry
 * for each page of RAM.
 *
 * The file: struct entry, then the page's bytes, unless it was a hole. An entry is written
 * by one call before the page is mapped: one that is cut short is of a page that
 * nobody touched. The file being there at all means that its pages must be put back; so it is
 * removed after that was done and before the guest runs again.
 */
#include "fault/keep.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/io.h"

#define KEEP_MAGIC 0x4b45455059525246ull
#define KEEP_HOLE 1u
/* 64 MiB: device state that touches more is none. */
#define KEEP_MAX_PAGES 16384u
#define KEEP_EVENTS 16

struct entry {
	uint64_t magic;
	uint32_t block;
	uint32_t flags;
	uint64_t page;
};
static_assert(sizeof(struct entry) == 24, "the same in every build");

struct ferry_keep {
	struct ferry_keep_params p;
	pthread_t thread;
	int file;
	int stop_fd;

	pthread_mutex_t lock; /* protects all below */
	uint64_t pages;
	struct ferry_error error;

	/* The thread's own: which pages, to map one again whose entry the kernel dropped. */
	struct {
		uint32_t block;
		uint64_t page;
	} *list;
};

static int fail(struct ferry_keep *k, int r, const char *what)
{
	pthread_mutex_lock(&k->lock);
	ferry_error_set(&k->error, -r, "keeping a page of guest RAM that loading touches: %s: %s",
			what, strerror(-r));
	pthread_mutex_unlock(&k->lock);
	return r;
}

/* Is this page of a block's file a hole? Return: 1, 0 or -errno. */
static int is_hole(const struct ferry_ram_block *b, uint64_t page)
{
	off_t off = (off_t)(b->fd_off_bytes + (page << FERRY_PAGE_SHIFT));
	off_t data = lseek(b->fd, off, SEEK_DATA);

	if (data < 0)
		return errno == ENXIO ? 1 : -errno;
	return data >= off + (off_t)FERRY_PAGE_SIZE;
}

static int append(struct ferry_keep *k, uint32_t block, uint64_t page)
{
	const struct ferry_ram_block *b = &k->p.ram->blocks[block];
	struct entry e = { .magic = KEEP_MAGIC, .block = block, .page = page };
	uint8_t bytes[FERRY_PAGE_SIZE];
	struct iovec iov[] = { { &e, sizeof(e) }, { bytes, sizeof(bytes) } };
	size_t total = sizeof(e) + sizeof(bytes);
	int r = is_hole(b, page);

	if (r < 0)
		return r;
	if (r) {
		e.flags = KEEP_HOLE;
		total = sizeof(e);
	} else {
		r = ferry_io_pread(b->fd, bytes, sizeof(bytes),
				   (off_t)(b->fd_off_bytes + (page << FERRY_PAGE_SHIFT)));
		if (r)
			return r;
	}
	if (writev(k->file, iov, e.flags & KEEP_HOLE ? 1 : 2) != (ssize_t)total)
		return -EIO;
	return 0;
}

static bool is_kept(const struct ferry_keep *k, uint32_t block, uint64_t page)
{
	uint64_t i;

	for (i = 0; i < k->pages; i++)
		if (k->list[i].block == block && k->list[i].page == page)
			return true;
	return false;
}

static int keep_one(struct ferry_keep *k, uint32_t block, uint64_t page)
{
	int r;

	if (!is_kept(k, block, page)) {
		if (k->pages == KEEP_MAX_PAGES)
			return fail(k, -E2BIG, "it is far more than a device state");
		r = append(k, block, page);
		if (r)
			return fail(k, r, k->p.path);
		k->list[k->pages].block = block;
		k->list[k->pages].page = page;
		pthread_mutex_lock(&k->lock);
		k->pages++;
		pthread_mutex_unlock(&k->lock);
	}
	r = ferry_fault_uffd_map(&k->p.mapper, block, page, 1, true);
	/* A process that has ended, or is about to, needs no page. */
	return r && r != -ESRCH && r != -ENOENT ? fail(k, r, "mapping it") : 0;
}

static int on_fault(struct ferry_keep *k, uint64_t addr)
{
	const struct ferry_ram *ram = k->p.ram;
	unsigned int i;

	for (i = 0; i < ram->count; i++) {
		uint64_t base = k->p.mapper.addr[i];

		if (base && addr >= base && addr - base < ram->blocks[i].size_bytes)
			return keep_one(k, i, (addr - base) >> FERRY_PAGE_SHIFT);
	}
	return fail(k, -EFAULT, "a fault outside of it");
}

/* Return: 0; -errno nothing more can be done. */
static int take_events(struct ferry_keep *k)
{
	struct uffd_msg msg[KEEP_EVENTS];
	ssize_t n = read(k->p.mapper.uffd, msg, sizeof(msg));
	size_t i;

	if (n < 0)
		return errno == EAGAIN || errno == EINTR ? 0 : -errno;
	for (i = 0; i < (size_t)n / sizeof(msg[0]); i++) {
		int r = 0;

		if (msg[i].event == UFFD_EVENT_PAGEFAULT)
			r = on_fault(k, msg[i].arg.pagefault.address);
		if (r)
			return r;
	}
	return 0;
}

static void *keep_thread(void *arg)
{
	struct ferry_keep *k = arg;
	struct pollfd p[] = {
		{ .fd = k->p.mapper.uffd, .events = POLLIN },
		{ .fd = k->stop_fd, .events = POLLIN },
	};
	int r = 0;

	while (!r) {
		if (poll(p, 2, -1) < 0 && errno != EINTR)
			r = fail(k, -errno, "waiting");
		if (p[1].revents)
			return NULL;
		if (p[0].revents)
			r = take_events(k);
	}
	if (ferry_keep_failed(k, NULL))
		k->p.stuck(k->p.ctx);
	return NULL;
}

static void keep_free(struct ferry_keep *k)
{
	ferry_io_close(&k->file);
	ferry_io_close(&k->stop_fd);
	pthread_mutex_destroy(&k->lock);
	free(k->list);
	free(k);
}

int ferry_keep_start(const struct ferry_keep_params *params, struct ferry_keep **out,
		     struct ferry_error *err)
{
	struct ferry_keep *k = calloc(1, sizeof(*k));
	int r;

	if (!k)
		return ferry_error_set(err, ENOMEM, "out of memory");
	k->p = *params;
	k->p.mapper.ram = params->ram;
	pthread_mutex_init(&k->lock, NULL);
	k->list = calloc(KEEP_MAX_PAGES, sizeof(*k->list));
	k->stop_fd = eventfd(0, EFD_CLOEXEC);
	k->file = open(params->path, O_RDWR | O_CREAT | O_EXCL | O_APPEND | O_CLOEXEC, 0600);
	if (k->file < 0 || k->stop_fd < 0 || !k->list) {
		r = ferry_error_set(err, k->list ? errno : ENOMEM, "making %s for the pages that "
				    "loading touches: %s", params->path, strerror(errno));
		goto err_free;
	}
	r = ferry_fault_uffd_arm(&params->mapper, params->ram, false, err);
	if (r)
		goto err_unlink;
	r = -pthread_create(&k->thread, NULL, keep_thread, k);
	if (r) {
		ferry_error_set(err, -r, "cannot start a thread: %s", strerror(-r));
		goto err_disarm;
	}
	*out = k;
	return 0;

err_disarm:
	ferry_fault_uffd_disarm(&params->mapper, params->ram);
err_unlink:
	unlink(params->path);
err_free:
	keep_free(k);
	return r;
}

uint64_t ferry_keep_pages(struct ferry_keep *k)
{
	uint64_t pages;

	pthread_mutex_lock(&k->lock);
	pages = k->pages;
	pthread_mutex_unlock(&k->lock);
	return pages;
}

int ferry_keep_failed(struct ferry_keep *k, struct ferry_error *err)
{
	int r;

	pthread_mutex_lock(&k->lock);
	r = -k->error.errnum;
	if (r && err)
		*err = k->error;
	pthread_mutex_unlock(&k->lock);
	return r;
}

void ferry_keep_stop(struct ferry_keep *k, bool release)
{
	uint64_t one = 1;

	if (!k)
		return;
	if (write(k->stop_fd, &one, sizeof(one)) == sizeof(one))
		pthread_join(k->thread, NULL);
	if (release)
		ferry_fault_uffd_disarm(&k->p.mapper, k->p.ram);
	keep_free(k);
}

static int put_back_one(int file, const struct entry *e, off_t *at, const struct ferry_ram *ram)
{
	const struct ferry_ram_block *b;
	uint8_t bytes[FERRY_PAGE_SIZE];
	off_t off;
	int r;

	if (e->magic != KEEP_MAGIC || e->block >= ram->count || e->flags & ~KEEP_HOLE ||
	    e->page >= ferry_ram_block_pages(&ram->blocks[e->block]))
		return -EPROTO;
	b = &ram->blocks[e->block];
	off = (off_t)(b->fd_off_bytes + (e->page << FERRY_PAGE_SHIFT));
	if (e->flags & KEEP_HOLE)
		return fallocate(b->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, off,
				 FERRY_PAGE_SIZE) ? -errno : 0;
	r = ferry_io_pread(file, bytes, sizeof(bytes), *at);
	if (r == -EPIPE) {
		*at = -1; /* cut: nobody touched that page */
		return 0;
	}
	if (!r)
		r = ferry_io_pwrite(b->fd, bytes, sizeof(bytes), off);
	*at += (off_t)sizeof(bytes);
	return r;
}

int ferry_keep_put_back(const char *path, const struct ferry_ram *ram, struct ferry_error *err)
{
	int file = open(path, O_RDONLY | O_CLOEXEC), r = 0;
	off_t at = 0;

	if (file < 0 && errno == ENOENT)
		return 0;
	while (file >= 0 && !r && at >= 0) {
		struct entry e;

		r = ferry_io_pread(file, &e, sizeof(e), at);
		if (r == -EPIPE) {
			r = 0;
			break;
		}
		at += (off_t)sizeof(e);
		if (!r)
			r = put_back_one(file, &e, &at, ram);
	}
	if (file < 0 || (!r && unlink(path)))
		r = -errno;
	ferry_io_close(&file);
	return r ? ferry_error_set(err, -r, "putting back the pages of guest RAM kept in %s: %s", path,
				   r == -EPROTO ? "it is of another guest, or damaged" :
						  strerror(-r)) : 0;
}

void ferry_keep_drop(const char *path)
{
	unlink(path);
}
