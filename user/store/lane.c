// SPDX-License-Identifier: GPL-2.0-or-later
#include "store/lane.h"

#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <stdlib.h>
#include <string.h>

#include "base/io.h"
#include "store/extent.h"

/*
 * Direct writes of a lane that may be under way. A disk wants a few of a MiB each; an extent
 * of alternating pages makes 128 of a page each.
 */
#define LANE_BUFFERS 6
#define LANE_WRITES 128

struct write {
	const uint8_t *from;
	size_t len;
	off_t off;
	unsigned int buffer;
	bool registered; /* it lies in that buffer */
};

struct ferry_store_lane {
	int fd;
	unsigned int buffers;
	uint8_t *memory;
	/* direct only: */
	bool direct;
	struct io_uring ring;
	unsigned int now;		    /* the buffer handed out last */
	unsigned int busy[LANE_BUFFERS]; /* writes under way from each */
	struct write writes[LANE_WRITES];
	unsigned int spare[LANE_WRITES]; /* indexes of those that are free */
	unsigned int spares;
	int failed; /* -errno of the first that failed */
};

static int start_ring(struct ferry_store_lane *l, struct ferry_error *err)
{
	struct iovec iov[LANE_BUFFERS];
	unsigned int i;
	int r = io_uring_queue_init(LANE_WRITES, &l->ring, 0);

	if (r)
		return ferry_error_set(err, -r, "--direct needs io_uring, which cannot be had here "
				       "(%s); leave --direct out", strerror(-r));
	for (i = 0; i < LANE_BUFFERS; i++) {
		iov[i].iov_base = l->memory + (size_t)i * FERRY_STORE_EXTENT_BYTES;
		iov[i].iov_len = FERRY_STORE_EXTENT_BYTES;
	}
	r = io_uring_register_buffers(&l->ring, iov, LANE_BUFFERS);
	if (r) {
		io_uring_queue_exit(&l->ring);
		return ferry_error_set(err, -r, "--direct: the kernel does not take %u MiB of "
				       "buffers for io_uring (%s): raise the limit of locked memory "
				       "or leave --direct out", LANE_BUFFERS, strerror(-r));
	}
	for (i = 0; i < LANE_WRITES; i++)
		l->spare[l->spares++] = i;
	return 0;
}

int ferry_store_lane_create(int fd, bool direct, struct ferry_store_lane **out,
			    struct ferry_error *err)
{
	struct ferry_store_lane *l = calloc(1, sizeof(*l));
	int r;

	*out = NULL;
	if (!l)
		return ferry_error_set(err, ENOMEM, "no memory for a channel to the file");
	l->fd = fd;
	l->direct = direct;
	l->buffers = direct ? LANE_BUFFERS : 1;
	l->memory = aligned_alloc(FERRY_STORE_PAGE_BYTES,
				  (size_t)l->buffers * FERRY_STORE_EXTENT_BYTES);
	if (!l->memory) {
		r = ferry_error_set(err, ENOMEM, "no memory for a channel to the file");
		goto err_free;
	}
	r = direct ? start_ring(l, err) : 0;
	if (r)
		goto err_free;
	*out = l;
	return 0;

err_free:
	free(l->memory);
	free(l);
	return r;
}

static int submit(struct ferry_store_lane *l, unsigned int index)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&l->ring);
	const struct write *w = &l->writes[index];
	int r;

	/* There are as many entries as writes, so there is always one. */
	if (!sqe)
		return -EIO;
	if (w->registered)
		io_uring_prep_write_fixed(sqe, l->fd, w->from, (unsigned int)w->len,
					  (uint64_t)w->off, (int)w->buffer);
	else
		io_uring_prep_write(sqe, l->fd, w->from, (unsigned int)w->len, (uint64_t)w->off);
	sqe->user_data = index;
	r = io_uring_submit(&l->ring);
	return r < 0 ? r : 0;
}

/* One write has ended; what a short one left is written again. */
static void ended(struct ferry_store_lane *l, unsigned int index, int result)
{
	struct write *w = &l->writes[index];

	if (result > 0 && (size_t)result < w->len) {
		w->from += result;
		w->len -= (size_t)result;
		w->off += result;
		result = submit(l, index);
		if (!result)
			return;
	}
	if (result <= 0 && !l->failed)
		l->failed = result ? result : -EIO;
	l->busy[w->buffer]--;
	l->spare[l->spares++] = index;
}

static int wait_one(struct ferry_store_lane *l)
{
	struct io_uring_cqe *cqe;
	int r;

	do {
		r = io_uring_wait_cqe(&l->ring, &cqe);
	} while (r == -EINTR);
	if (r)
		return r;
	r = cqe->res;
	io_uring_cqe_seen(&l->ring, cqe);
	ended(l, (unsigned int)cqe->user_data, r);
	return 0;
}

int ferry_store_lane_buffer(struct ferry_store_lane *l, uint8_t **buf)
{
	int r = l->failed;

	l->now = (l->now + 1) % l->buffers;
	while (!r && l->busy[l->now]) {
		r = wait_one(l);
		r = r ? r : l->failed;
	}
	*buf = l->memory + (size_t)l->now * FERRY_STORE_EXTENT_BYTES;
	return r;
}

int ferry_store_lane_write(struct ferry_store_lane *l, const uint8_t *from, size_t len, off_t off)
{
	const uint8_t *buffer = l->memory + (size_t)l->now * FERRY_STORE_EXTENT_BYTES;
	unsigned int index;
	int r = l->failed;

	/*
	 * The disk is not told to begin before all is synced: as a whole that is no faster, and
	 * each write, for which a guest may be standing still, takes longer.
	 */
	if (!l->direct)
		return ferry_io_pwrite(l->fd, from, len, off);
	while (!r && !l->spares)
		r = wait_one(l);
	if (r)
		return r;
	index = l->spare[--l->spares];
	l->writes[index] = (struct write){
		.from = from,
		.len = len,
		.off = off,
		.buffer = l->now,
		.registered = from >= buffer && from < buffer + FERRY_STORE_EXTENT_BYTES,
	};
	l->busy[l->now]++;
	r = submit(l, index);
	if (r)
		ended(l, index, r);
	return l->failed;
}

int ferry_store_lane_flush(struct ferry_store_lane *l)
{
	int r = 0;

	while (!r && l->direct && l->spares < LANE_WRITES)
		r = wait_one(l);
	return r ? r : l->failed;
}

void ferry_store_lane_free(struct ferry_store_lane *l)
{
	if (!l)
		return;
	if (l->direct) {
		ferry_store_lane_flush(l);
		io_uring_queue_exit(&l->ring);
	}
	free(l->memory);
	free(l);
}
