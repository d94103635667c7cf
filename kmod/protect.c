// SPDX-License-Identifier: GPL-2.0-only
/*
 * Take away the right to write to pages, so that the next store faults, and find out who
 * may write to them all the same.
 *
 * The unit is a run of pages in a word of the bitmap. The folios of a long run are locked in
 * ascending order, as writeback and truncation do, then protected, then looked at, then
 * unlocked; of a short run that is done with one folio after the other. Holding the lock
 * meanwhile keeps out faults (view.c) and page migration, which would put a writable entry
 * back when it is done.
 *
 * A page table entry must become read-only *and* clean: of a shared mapping, mprotect(2) and
 * NUMA balancing make a dirty entry writable again without asking. folio_mkclean() does both
 * at once. For a run of small folios two passes over the page tables are cheaper, one that
 * protects and one that cleans; in between an entry may become writable, so they are
 * repeated until a pass found nothing writable and the next nothing dirty. Then nothing was
 * dirty at the first of the two, and a clean read-only entry becomes writable by a fault
 * alone. The dirty bit moves to the folio, or reclaim would drop the page's contents.
 *
 * Who pinned a page, or holds a reference that nobody explains, may write to it by DMA or
 * through the kernel's own mapping without any page table. That is asked after protecting:
 * GUP-fast takes its reference and then looks again whether the entry is unchanged, so either
 * it sees the change and lets go, or we see the reference.
 *
 * A page that is dirty alone in its word is the usual case and its cost the module's, so the
 * way of it has no array and no call that can be left out; make bench-kmod counts.
 */
#include <linux/cpu.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/pagemap.h>
#include <linux/percpu.h>
#include <linux/rmap.h>
#include <linux/workqueue.h>

#include "broken.h"
#include "compat.h"
#include "protect.h"
#include "tracker.h"

/*
 * From this many small folios in a row on, the passes over the page tables cost less than
 * folio_mkclean() for each: 1400 instructions a page against about 3200 once and 560 a page.
 */
#define BATCH_MIN_PAGES 4

/* Nobody toggles protection this fast for long; then each folio is done by itself. */
#define BATCH_MAX_PASSES 4

/**
 * struct group - folios of a run of pages, each locked and with a reference
 * @mapping: whose
 * @first: page number of the word's first bit
 * @pages: the run
 * @count: how many folios
 * @folios: ascending; tracker->scratch->folios, for it is too large to be cleared each time,
 *	    which is what Debian's kernels do with all of the stack
 */
struct group {
	struct address_space *mapping;
	unsigned long first;
	unsigned long pages;
	unsigned int count;
	struct folio **folios;
};

/* For the tests: what folio_mkclean() does right by itself, or insists on. */
static bool only_batches(void)
{
	return ferry_broken(FERRY_BROKEN_NOCLEAN) || ferry_broken(FERRY_BROKEN_NOLOCK);
}

static void unlock_and_put(struct folio *folio)
{
	if (!ferry_broken(FERRY_BROKEN_NOLOCK))
		folio_unlock(folio);
	folio_put(folio);
}

/* Whether a page is in a locked folio. */
static bool folio_has(struct folio *folio, unsigned long index)
{
	return index - folio->index < folio_nr_pages(folio);
}

/*
 * Lock a folio that was found at an index. Takes over the reference. It may have been
 * replaced meanwhile (migration, swap) and is looked up again then. NULL: it has gone.
 */
static __always_inline struct folio *lock_found(struct address_space *mapping, struct folio *folio,
				unsigned long index)
{
	while (folio) {
		if (!ferry_broken(FERRY_BROKEN_NOLOCK) && !folio_trylock(folio) &&
		    folio_lock_killable(folio)) {
			folio_put(folio);
			return ERR_PTR(-EINTR);
		}
		if (likely(folio->mapping == mapping && folio_has(folio, index)))
			return folio;
		unlock_and_put(folio);
		folio = ferry_compat_get_folio(mapping, index);
	}
	return NULL;
}

/* The bits of a word that are in a folio, of which there is at least one. */
static unsigned long folio_bits(struct folio *folio, unsigned long first)
{
	unsigned long start, end;

	if (likely(!folio_test_large(folio)))
		return BIT((folio->index - first) % BITS_PER_LONG);
	start = max(folio->index, first) - first;
	end = folio->index + folio_nr_pages(folio) - first;
	return GENMASK(min(end, (unsigned long)BITS_PER_LONG) - 1, start);
}

static void group_unlock(struct group *group)
{
	while (group->count)
		unlock_and_put(group->folios[--group->count]);
}

/* A large folio is found once for each batch that it reaches into. */
static bool group_has(const struct group *group, unsigned long index)
{
	return group->count && folio_has(group->folios[group->count - 1], index);
}

/* Lock what is there of the run's pages. Absent ones are mapped by nobody. */
static int group_lock(struct group *group)
{
	unsigned long start = group->first + __ffs(group->pages);
	unsigned long last = group->first + __fls(group->pages);
	struct folio_batch batch;
	struct folio *folio;
	unsigned int i;
	int err = 0;

	while (!err && start <= last) {
		pgoff_t next = start;

		folio_batch_init(&batch);
		if (!filemap_get_folios(group->mapping, &next, last, &batch))
			break;
		for (i = 0; i < folio_batch_count(&batch); i++) {
			unsigned long index;

			folio = batch.folios[i];
			index = max(folio->index, start);
			if (err || index > last || group_has(group, index)) {
				folio_put(folio);
				continue;
			}
			folio = lock_found(group->mapping, folio, index);
			if (IS_ERR(folio))
				err = PTR_ERR(folio);
			else if (folio)
				group->folios[group->count++] = folio;
		}
		start = next;
	}
	if (err)
		group_unlock(group);
	return err;
}

#if IS_ENABLED(CONFIG_MAPPING_DIRTY_HELPERS)
/* Return: whether every page is read-only and clean in every page table. */
static bool run_protect(struct address_space *mapping, pgoff_t first, pgoff_t npages)
{
	unsigned int pass;

	for (pass = 0; pass < BATCH_MAX_PASSES; pass++) {
		/* Who was dirty is of no interest; a word is room for a word's pages. */
		unsigned long dirty = 0;
		pgoff_t start = 0, end = 0;
		unsigned long changed;

		changed = wp_shared_mapping_range(mapping, first, npages);
		if (ferry_broken(FERRY_BROKEN_NOCLEAN))
			return true;
		changed |= clean_record_shared_mapping_range(mapping, first, npages, first,
							     &dirty, &start, &end);
		if (!changed)
			return true;
	}
	return false;
}
#else
static bool run_protect(struct address_space *mapping, pgoff_t first, pgoff_t npages)
{
	return false;
}
#endif

/*
 * How many folios from the i-th on are small and in a row. Large ones are not for passes
 * over page tables: those do not look into a huge entry and complain about one.
 */
static unsigned int group_row(const struct group *group, unsigned int i)
{
	unsigned int start = i;

	while (i < group->count && !folio_test_large(group->folios[i]) &&
	       group->folios[i]->index == group->folios[start]->index + (i - start))
		i++;
	return i - start;
}

static void group_protect(struct group *group)
{
	unsigned int i = 0, row, end;

	while (i < group->count) {
		bool done = false;

		row = group_row(group, i);
		end = i + max(row, 1u);
		if (row >= BATCH_MIN_PAGES || (row && only_batches()))
			done = run_protect(group->mapping, group->folios[i]->index, row);
		for (; i < end; i++) {
			struct folio *folio = group->folios[i];

			/* Which of a row were dirty is not known: all are. */
			if (!done && only_batches())
				continue;
			if ((done || folio_mkclean(folio)) && !folio_test_dirty(folio))
				folio_mark_dirty(folio);
		}
	}
}

/*
 * How many references there should be: the page cache's, the page tables' and ours. One more
 * is direct I/O on kernels where that does not pin, one of KVM's own mappings, udmabuf; of a
 * pin there are 1024 more.
 */
static __always_inline int folio_explained(struct folio *folio, int pages)
{
	return 1 + pages + folio_test_private(folio) + ferry_compat_mapcount(folio);
}

static noinline void look_closer(struct folio *folio, int references, unsigned long pages,
				 struct ferry_hold *hold)
{
	if (folio_maybe_dma_pinned(folio)) {
		if (!ferry_broken(FERRY_BROKEN_NOPINS))
			hold->held |= pages;
	} else if (references > folio_explained(folio, folio_nr_pages(folio)) &&
		   !ferry_broken(FERRY_BROKEN_NOUNEXPLAINED)) {
		hold->held |= pages;
		hold->unsure |= pages;
	}
}

/*
 * Whether somebody may write to a folio without a page table. The references are read first:
 * an unmapping in between then looks like one too many, and mapping needs the folio lock.
 * smp_mb() comes before; it pairs with the atomic increment of the reference in GUP-fast.
 */
static __always_inline void folio_look(struct folio *folio, unsigned long pages,
				       struct ferry_hold *hold)
{
	int references = folio_ref_count(folio);

	smp_rmb(); /* orders the two reads for the reason above; the folio lock is the partner */
	/* Of a large folio a pin is one reference, and the count of pins to be asked. */
	if (folio_test_large(folio) || references > folio_explained(folio, 1))
		look_closer(folio, references, pages, hold);
}

static void group_look(const struct group *group, struct ferry_hold *hold)
{
	unsigned int i;

	smp_mb(); /* see folio_look() */
	for (i = 0; i < group->count; i++)
		folio_look(group->folios[i], folio_bits(group->folios[i], group->first) &
			   group->pages, hold);
}

/* Not inlined, for its stack has to be guarded and that of run_of_one() has not. */
static noinline int run_of_many(struct ferry_tracker *tracker, unsigned long first, unsigned long pages,
		       bool protect, struct ferry_hold *hold)
{
	struct group group = {
		.mapping = tracker->mapping,
		.first = first,
		.pages = pages,
		.folios = tracker->scratch->folios,
	};
	int err;

	err = group_lock(&group);
	if (err)
		return err;
	if (ferry_broken(FERRY_BROKEN_PINFIRST))
		group_look(&group, hold);
	ferry_broken_widen(FERRY_BROKEN_PINFIRST);
	if (protect && !ferry_broken(FERRY_BROKEN_NOPROTECT))
		group_protect(&group);
	/* Else the reference of a fault under way would make up for it. */
	ferry_broken_widen(FERRY_BROKEN_NOLOCK);
	if (!ferry_broken(FERRY_BROKEN_PINFIRST))
		group_look(&group, hold);
	group_unlock(&group);
	return 0;
}

/*
 * The folio of the first of some pages. Return: which of them are in it, that one at least;
 * 0 after a fatal signal.
 */
static __always_inline unsigned long run_of_one(struct ferry_tracker *tracker,
						unsigned long first, unsigned long pages,
						bool protect, struct ferry_hold *hold)
{
	unsigned long bit = __ffs(pages);
	struct folio *folio;

	folio = ferry_compat_get_folio(tracker->mapping, first + bit);
	folio = lock_found(tracker->mapping, folio, first + bit);
	if (unlikely(IS_ERR_OR_NULL(folio)))
		return folio ? 0 : BIT(bit);
	pages &= folio_bits(folio, first);
	if (ferry_broken(FERRY_BROKEN_PINFIRST))
		folio_look(folio, pages, hold);
	ferry_broken_widen(FERRY_BROKEN_PINFIRST);
	if (protect && !ferry_broken(FERRY_BROKEN_NOPROTECT) && folio_mkclean(folio) &&
	    !folio_test_dirty(folio))
		folio_mark_dirty(folio);
	smp_mb(); /* see folio_look() */
	if (!ferry_broken(FERRY_BROKEN_PINFIRST))
		folio_look(folio, pages, hold);
	unlock_and_put(folio);
	return pages;
}

/* The lowest bits in a row. */
static unsigned long lowest_run(unsigned long bits)
{
	return bits & ~(bits + (bits & -bits));
}

/**
 * ferry_protect_word - protect pages and find those that can be written nevertheless
 * @tracker: the tracker
 * @word: index of a word of the bitmap
 * @pages: which of its pages; their bits were taken before
 * @protect: false to only look, when no view exists
 * @hold: receives what was found
 *
 * Pages that are not in the page cache (punched, never touched, swapped out) are mapped by
 * nobody, and become so again by a fault.
 *
 * Context: tracker->lock held; takes folio locks.
 * Return: 0, or -EINTR on a fatal signal; then only some were protected, so all of @pages
 * must be dirty again.
 */
int ferry_protect_word(struct ferry_tracker *tracker, unsigned long word, unsigned long pages,
		       bool protect, struct ferry_hold *hold)
{
	unsigned long first = word * BITS_PER_LONG;

	lockdep_assert_held(&tracker->lock);
	hold->held = 0;
	hold->unsure = 0;
	while (pages) {
		unsigned long run = lowest_run(pages);

		if (run >> __ffs(run) < BIT(BATCH_MIN_PAGES - 1) && !only_batches())
			run = run_of_one(tracker, first, pages, protect, hold);
		else if (run_of_many(tracker, first, run, protect, hold))
			run = 0;
		if (unlikely(!run))
			return -EINTR;
		pages &= ~run;
	}
	return 0;
}

/* --- LRU batches ------------------------------------------------------------ */

/*
 * A page that was just allocated or activated waits in a batch of its CPU, which holds a
 * reference, until more come. The function that empties the batches is not for modules, but
 * to release a batch of one's own begins with it. So let every CPU release one.
 */
static struct workqueue_struct *drain_queue;
static struct work_struct __percpu *drain_works;
static struct folio *drain_folio;
static DEFINE_MUTEX(drain_lock);

static void drain_cpu(struct work_struct *work)
{
	struct folio_batch batch;

	folio_batch_init(&batch);
	folio_get(drain_folio);
	folio_batch_add(&batch, drain_folio);
	folio_batch_release(&batch);
}

/**
 * ferry_protect_drain - make every CPU let go of the pages in its LRU batches
 *
 * Context: process context, sleeps; no folio locked.
 */
void ferry_protect_drain(void)
{
	int cpu;

	mutex_lock(&drain_lock);
	cpus_read_lock();
	for_each_online_cpu(cpu)
		queue_work_on(cpu, drain_queue, per_cpu_ptr(drain_works, cpu));
	for_each_online_cpu(cpu)
		flush_work(per_cpu_ptr(drain_works, cpu));
	cpus_read_unlock();
	mutex_unlock(&drain_lock);
}

/**
 * ferry_protect_init - what ferry_protect_drain() needs
 *
 * Return: 0 or -ENOMEM.
 */
int __init ferry_protect_init(void)
{
	struct page *page;
	int cpu;

	page = alloc_page(GFP_KERNEL);
	if (!page)
		return -ENOMEM;
	drain_folio = page_folio(page);
	drain_works = alloc_percpu(struct work_struct);
	if (!drain_works)
		goto err_page;
	for_each_possible_cpu(cpu)
		INIT_WORK(per_cpu_ptr(drain_works, cpu), drain_cpu);
	drain_queue = alloc_workqueue("ferry_drain", WQ_HIGHPRI | FERRY_COMPAT_WQ_PERCPU, 0);
	if (!drain_queue)
		goto err_works;
	return 0;

err_works:
	free_percpu(drain_works);
err_page:
	folio_put(drain_folio);
	return -ENOMEM;
}

/** ferry_protect_exit - undo ferry_protect_init() */
void ferry_protect_exit(void)
{
	destroy_workqueue(drain_queue);
	free_percpu(drain_works);
	folio_put(drain_folio);
}
