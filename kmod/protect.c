// SPDX-License-Identifier: GPL-2.0-only
/*
 * Take away the right to write to pages, so that the next store faults, and find out who
 * may write to them all the same.
 *
 * The unit is a word of the bitmap, 64 pages. Their folios are locked in ascending order, as
 * writeback and truncation do, then protected, then looked at, then unlocked. Holding the
 * locks meanwhile keeps out faults (view.c) and page migration, which would put a writable
 * entry back when it is done.
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
 * folio_mkclean() for each: 1400 instructions a page against about 5000 once and 500 a page.
 */
#define BATCH_MIN_PAGES 6

/* Nobody toggles protection this fast for long; then each folio is done by itself. */
#define BATCH_MAX_PASSES 4

/**
 * struct group - folios of one word of the bitmap, each locked and with a reference
 * @tracker: the tracker
 * @first: page number of the word's first bit
 * @count: how many folios
 * @folios: ascending
 * @pages: which of the word's bits each stands for
 */
struct group {
	struct ferry_tracker *tracker;
	unsigned long first;
	unsigned int count;
	struct folio *folios[BITS_PER_LONG];
	unsigned long pages[BITS_PER_LONG];
};

static void group_unlock(struct group *group)
{
	while (group->count) {
		struct folio *folio = group->folios[--group->count];

		if (!ferry_broken(FERRY_BROKEN_NOLOCK))
			folio_unlock(folio);
		folio_put(folio);
	}
}

/* For the tests: what folio_mkclean() does right by itself, or insists on. */
static bool only_batches(void)
{
	return ferry_broken(FERRY_BROKEN_NOCLEAN) || ferry_broken(FERRY_BROKEN_NOLOCK);
}

/* The bits of a word from page @from on that are in a folio. */
static unsigned long folio_bits(struct folio *folio, unsigned long first, unsigned long from)
{
	unsigned long end = folio->index + folio_nr_pages(folio) - first;

	return GENMASK(min(end, (unsigned long)BITS_PER_LONG) - 1, from - first);
}

/*
 * Lock a folio that was found at an index, and add it. Takes over the reference. It may
 * have been replaced meanwhile (migration, swap) and is looked up again then.
 */
static int group_add(struct group *group, struct folio *folio, unsigned long index,
		     unsigned long wanted)
{
	struct address_space *mapping = group->tracker->mapping;

	while (folio) {
		if (!ferry_broken(FERRY_BROKEN_NOLOCK) && folio_lock_killable(folio)) {
			folio_put(folio);
			return -EINTR;
		}
		if (folio->mapping == mapping && folio_contains(folio, index)) {
			group->folios[group->count] = folio;
			group->pages[group->count++] =
				folio_bits(folio, group->first, index) & wanted;
			return 0;
		}
		if (!ferry_broken(FERRY_BROKEN_NOLOCK))
			folio_unlock(folio);
		folio_put(folio);
		folio = ferry_compat_get_folio(mapping, index);
	}
	return 0;
}

static bool group_has(const struct group *group, unsigned long index)
{
	return group->count && folio_contains(group->folios[group->count - 1], index);
}

/* Lock what is there of pages @start to @last. Absent ones are mapped by nobody. */
static int group_add_run(struct group *group, unsigned long start, unsigned long last,
			 unsigned long wanted)
{
	struct address_space *mapping = group->tracker->mapping;
	struct folio_batch batch;
	struct folio *folio;
	unsigned int i;
	int err = 0;

	/* Often a page is alone, and to look for one costs half as much. */
	if (start == last) {
		if (group_has(group, start))
			return 0;
		folio = ferry_compat_get_folio(mapping, start);
		return folio ? group_add(group, folio, start, wanted) : 0;
	}
	while (!err && start <= last) {
		pgoff_t next = start;

		folio_batch_init(&batch);
		if (!filemap_get_folios(mapping, &next, last, &batch))
			break;
		for (i = 0; i < folio_batch_count(&batch); i++) {
			unsigned long index;

			folio = batch.folios[i];
			index = max_t(unsigned long, folio->index, start);
			/* A large one may have been there for the run before, too. */
			if (err || index > last || group_has(group, index))
				folio_put(folio);
			else
				err = group_add(group, folio, index, wanted);
		}
		start = next;
	}
	return err;
}

static int group_lock(struct group *group, unsigned long wanted)
{
	unsigned long rest = wanted;
	int err = 0;

	while (rest && !err) {
		unsigned long start = __ffs(rest);
		unsigned long filled = rest | (BIT(start) - 1);
		unsigned long last = ~filled ? ffz(filled) - 1 : BITS_PER_LONG - 1;

		err = group_add_run(group, group->first + start, group->first + last, wanted);
		rest &= ~GENMASK(last, start);
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
static unsigned int group_run(const struct group *group, unsigned int i)
{
	unsigned int start = i;

	while (i < group->count && !folio_test_large(group->folios[i]) &&
	       (i == start || group->pages[i] == group->pages[i - 1] << 1))
		i++;
	return i - start;
}

static void group_protect(struct group *group)
{
	struct address_space *mapping = group->tracker->mapping;
	unsigned int i = 0, run, end;

	while (i < group->count) {
		bool done = false;

		run = group_run(group, i);
		end = i + max(run, 1u);
		if (run >= BATCH_MIN_PAGES || (run && only_batches()))
			done = run_protect(mapping, group->first + __ffs(group->pages[i]), run);
		for (; i < end; i++) {
			struct folio *folio = group->folios[i];

			/* Which of a run were dirty is not known: all are. */
			if (!done && only_batches())
				continue;
			if ((done || folio_mkclean(folio)) && !folio_test_dirty(folio))
				folio_mark_dirty(folio);
		}
	}
}

/*
 * Whether there is a reference that is neither the page cache's, a page table's nor ours:
 * direct I/O on kernels where it does not pin, KVM's own mappings, udmabuf. The references
 * are read first: an unmapping in between then looks like one too many, and mapping needs
 * the folio lock.
 */
static bool folio_is_unexplained(struct folio *folio)
{
	int references = folio_ref_count(folio);

	smp_rmb(); /* orders the two reads for the reason above; the folio lock is the partner */
	return references > 1 + folio_nr_pages(folio) + folio_test_private(folio) +
			    ferry_compat_mapcount(folio);
}

static void group_look(const struct group *group, struct ferry_hold *hold)
{
	unsigned int i;

	/* Pairs with the atomic increment of the reference in GUP-fast, see above. */
	smp_mb();
	for (i = 0; i < group->count; i++) {
		struct folio *folio = group->folios[i];

		if (folio_maybe_dma_pinned(folio)) {
			if (!ferry_broken(FERRY_BROKEN_NOPINS))
				hold->held |= group->pages[i];
		} else if (folio_is_unexplained(folio)) {
			if (ferry_broken(FERRY_BROKEN_NOUNEXPLAINED))
				continue;
			hold->held |= group->pages[i];
			hold->unsure |= group->pages[i];
		}
	}
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
 * Return: 0, or -EINTR on a fatal signal; then nothing was protected.
 */
int ferry_protect_word(struct ferry_tracker *tracker, unsigned long word, unsigned long pages,
		       bool protect, struct ferry_hold *hold)
{
	struct group group; /* not initialised as a whole: it is large, and this is hot */
	int err;

	lockdep_assert_held(&tracker->lock);
	*hold = (struct ferry_hold){};
	group.tracker = tracker;
	group.first = word * BITS_PER_LONG;
	group.count = 0;
	err = group_lock(&group, pages);
	if (err)
		return err;
	if (ferry_broken(FERRY_BROKEN_PINFIRST))
		group_look(&group, hold);
	ferry_broken_widen(FERRY_BROKEN_PINFIRST);
	if (protect && !ferry_broken(FERRY_BROKEN_NOPROTECT))
		group_protect(&group);
	if (!ferry_broken(FERRY_BROKEN_PINFIRST))
		group_look(&group, hold);
	group_unlock(&group);
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
