// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Memfds whose pages are huge ones: made by writing to a plain mapping, or collapsed under
 * the view. A view maps them in small pieces, and each store is seen.
 */
#include "harness.h"
#include "tracker.h"

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

FIXTURE(thp)
{
	struct tracker t;
	char *at;
	char *plain;
};

FIXTURE_VARIANT(thp)
{
	bool asked;	/* MADV_HUGEPAGE of the view */
};

FIXTURE_VARIANT_ADD(thp, as_it_is) { .asked = false };
FIXTURE_VARIANT_ADD(thp, asked_for) { .asked = true };

static long huge_kib(const void *mapping, const char *field)
{
	FILE *smaps = fopen("/proc/self/smaps", "r");
	unsigned long start, end;
	bool here = false;
	char line[512];
	long kib = 0;

	while (smaps && fgets(line, sizeof(line), smaps)) {
		if (sscanf(line, "%lx-%lx ", &start, &end) == 2)
			here = start == (uintptr_t)mapping;
		else if (here && !strncmp(line, field, strlen(field)))
			kib = atol(line + strlen(field));
	}
	if (smaps)
		fclose(smaps);
	return kib;
}

FIXTURE_SETUP(thp)
{
	enum { HUGE_PAGES = 4 };

	ASSERT_EQ(0, text_write("/sys/kernel/mm/transparent_hugepage/shmem_enabled", "always"));
	ASSERT_EQ(0, text_write("/proc/sys/vm/compact_memory", "1"));
	ASSERT_EQ(0, tracker_make(&self->t, HUGE_PAGES * HUGE / PAGE));
	self->plain = file_map_huge(self->t.memfd, HUGE_PAGES * HUGE / PAGE);
	ASSERT_NE(NULL, self->plain);
	memset(self->plain, 1, HUGE_PAGES * HUGE);
	if (!huge_kib(self->plain, "ShmemPmdMapped:"))
		SKIP(return, "no huge page was to be had");
	self->at = file_map_huge(self->t.fd, HUGE_PAGES * HUGE / PAGE);
	ASSERT_NE(NULL, self->at);
	if (variant->asked)
		madvise(self->at, HUGE_PAGES * HUGE, MADV_HUGEPAGE);
}

FIXTURE_TEARDOWN(thp)
{
	text_write("/sys/kernel/mm/transparent_hugepage/shmem_enabled", "never");
	tracker_end(&self->t);
}

/* Pages of one huge folio: marking more than was written is fine, less is a lost write. */
TEST_F(thp, neighbours_of_a_huge_folio)
{
	const uint64_t rounds[][4] = {
		{ 0, 1, 511, 300 }, { 0, 7, 8, 9 }, { 2, 510, 511, 509 },
		{ 512, 600, 601, 1023 }, { 1024, 513, 600, 1 },
	};

	for (int again = 0; again < 4; again++)
		for (unsigned int i = 0; i < 5; i++) {
			/* Reading first leaves read-only entries for all of them. */
			if (again % 2)
				for (uint64_t page = 0; page < self->t.npages; page++)
					load(self->at + page * PAGE);
			ASSERT_LE(0, tracker_sync(&self->t));
			for (int k = 0; k < 4; k++)
				store(self->at + rounds[i][k] * PAGE, (char)again);
			ASSERT_LE(4, tracker_sync(&self->t));
			for (int k = 0; k < 4; k++) {
				EXPECT_TRUE(bit_get(self->t.bits, rounds[i][k])) {
					TH_LOG("page %llu, round %u",
					       (unsigned long long)rounds[i][k], i);
				}
			}
		}
}

/* Before 6.12 a view is mapped huge all the same, whatever its flags: then all is marked. */
TEST_F(thp, one_store_marks_one_huge_page_at_most)
{
	for (uint64_t page = 0; page < self->t.npages; page++)
		load(self->at + page * PAGE);
	store(self->at + 700 * PAGE, 2);
	EXPECT_LE(1, tracker_sync(&self->t));
	EXPECT_TRUE(bit_get(self->t.bits, 700));
	EXPECT_GE(HUGE / PAGE, bits_count(self->t.bits, self->t.npages));
	for (uint64_t page = 0; page < 512; page++)
		EXPECT_FALSE(bit_get(self->t.bits, page));
}

TEST_F(thp, collapsed_under_the_view)
{
	uint64_t last = self->t.npages - 1;

	for (int round = 0; round < 3; round++) {
		/* Small pages first, through a hole. */
		ASSERT_EQ(0, text_write("/sys/kernel/mm/transparent_hugepage/shmem_enabled",
					"never"));
		ASSERT_EQ(0, madvise(self->plain, self->t.npages * PAGE, MADV_REMOVE));
		for (uint64_t page = 0; page <= last; page++)
			store(self->at + page * PAGE, 3);
		EXPECT_LE((long)last + 1, tracker_sync(&self->t));
		ASSERT_EQ(0, text_write("/sys/kernel/mm/transparent_hugepage/shmem_enabled",
					"always"));
		/* May fail while pages are busy; the stores must be seen all the same. */
		madvise(self->plain, self->t.npages * PAGE, MADV_COLLAPSE);
		store(self->at + 5 * PAGE, 4);
		store(self->at + last * PAGE, 4);
		EXPECT_LE(2, tracker_sync(&self->t));
		EXPECT_TRUE(bit_get(self->t.bits, 5) && bit_get(self->t.bits, last));
		EXPECT_EQ(4, load(self->plain + last * PAGE));
	}
}

HARNESS_MAIN
