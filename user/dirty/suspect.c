// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A bit a page says "suspect"; a hash a page, in memory that is untouched (and
 * therefore free) for all other pages, says what was sent last. Hash 0 means
 * that nothing was sent since the page became suspect. A page whose real hash is
 * 0 is thus sent once more: wrong by one page in 2^64, on the safe side.
 *
 * sent() of a page may race with add() of that page only if the caller sends
 * pages that it has not passed to add() yet; the hash is then not recorded
 * and the page counts as changed, again the safe side.
 *
 * settle() reads by pread(2): a hole gives zeros and stays a hole. Asking for holes
 * first (SEEK_HOLE) walks to the end of the data, once for each run of suspects;
 * while the guest is stopped that cost 40 us a page, more the more RAM there is.
 */
#include "dirty/suspect.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/io.h"
#include "ram/hash.h"

/* 256 KiB of pread at a time. */
#define CHUNK_PAGES 64u

struct ferry_suspect {
	const struct ferry_ram *ram;
	struct ferry_bitmap pages;
	uint64_t **hash; /* an array a block */
	unsigned int count;
	uint8_t *buf;
};

/* What one settle() works on. */
struct settle {
	struct ferry_suspect *s;
	unsigned int block;
	struct ferry_bitmap *changed;
	uint64_t found;
};

static size_t hash_bytes(const struct ferry_suspect *s, unsigned int block)
{
	return s->pages.pages[block] * sizeof(uint64_t);
}

int ferry_suspect_create(const struct ferry_ram *ram, struct ferry_suspect **out)
{
	struct ferry_suspect *s = calloc(1, sizeof(*s));

	if (!s)
		return -ENOMEM;
	s->ram = ram;
	if (ferry_bitmap_init(&s->pages, ram))
		goto err_free;
	s->hash = calloc(ram->count ? ram->count : 1, sizeof(*s->hash));
	s->buf = malloc(CHUNK_PAGES * FERRY_PAGE_SIZE);
	if (!s->hash || !s->buf)
		goto err_free;
	while (s->count < ram->count) {
		void *mem = mmap(NULL, hash_bytes(s, s->count), PROT_READ | PROT_WRITE,
				 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

		if (mem == MAP_FAILED)
			goto err_free;
		s->hash[s->count++] = mem;
	}
	*out = s;
	return 0;

err_free:
	ferry_suspect_free(s);
	return -ENOMEM;
}

void ferry_suspect_free(struct ferry_suspect *s)
{
	unsigned int i;

	if (!s)
		return;
	for (i = 0; s->hash && i < s->count; i++)
		munmap(s->hash[i], hash_bytes(s, i));
	free(s->hash);
	free(s->buf);
	ferry_bitmap_free(&s->pages);
	free(s);
}

void ferry_suspect_add(struct ferry_suspect *s, const struct ferry_bitmap *collected)
{
	struct ferry_bitmap_run run = { 0 };

	/* Of a page that is suspect already the hash stays: it still says what was sent last. */
	while (ferry_bitmap_next_run(collected, &run, 0))
		ferry_bitmap_set_atomic(&s->pages, run.block, run.first_page, run.pages);
}

void ferry_suspect_sent(struct ferry_suspect *s, unsigned int block, uint64_t page, uint64_t hash)
{
	if (ferry_bitmap_test(&s->pages, block, page))
		__atomic_store_n(&s->hash[block][page], hash, __ATOMIC_RELAXED);
}

uint64_t ferry_suspect_pages(const struct ferry_suspect *s)
{
	return ferry_bitmap_count(&s->pages);
}

static void settle_page(struct settle *st, uint64_t page, uint64_t hash)
{
	uint64_t sent = __atomic_load_n(&st->s->hash[st->block][page], __ATOMIC_RELAXED);

	if (sent && sent == hash)
		return;
	if (ferry_bitmap_test(st->changed, st->block, page))
		return;
	ferry_bitmap_set(st->changed, st->block, page, 1);
	st->found++;
}

static int settle_run(struct settle *st, uint64_t page, uint64_t end)
{
	const struct ferry_ram_block *block = &st->s->ram->blocks[st->block];
	uint64_t i, n;
	int ret;

	for (; page < end; page += n) {
		n = end - page < CHUNK_PAGES ? end - page : CHUNK_PAGES;
		ret = ferry_io_pread(block->fd, st->s->buf, n << FERRY_PAGE_SHIFT,
				     (off_t)(block->fd_off_bytes + (page << FERRY_PAGE_SHIFT)));
		if (ret)
			return ret;
		for (i = 0; i < n; i++)
			settle_page(st, page + i,
				    ferry_hash_page(st->s->buf + i * FERRY_PAGE_SIZE));
	}
	return 0;
}

static void forget(struct ferry_suspect *s)
{
	unsigned int i;

	ferry_bitmap_zero(&s->pages);
	for (i = 0; i < s->count; i++) {
		/* Refused only for locked memory. */
		if (madvise(s->hash[i], hash_bytes(s, i), MADV_DONTNEED))
			memset(s->hash[i], 0, hash_bytes(s, i));
	}
}

int ferry_suspect_settle(struct ferry_suspect *s, struct ferry_bitmap *changed, uint64_t *checked,
			 uint64_t *found)
{
	struct settle st = { .s = s, .changed = changed };
	struct ferry_bitmap_run run = { 0 };
	int ret;

	*checked = 0;
	*found = 0;
	while (ferry_bitmap_next_run(&s->pages, &run, 0)) {
		st.block = run.block;
		ret = settle_run(&st, run.first_page, run.first_page + run.pages);
		if (ret)
			return ret;
		*checked += run.pages;
	}
	*found = st.found;
	forget(s);
	return 0;
}
