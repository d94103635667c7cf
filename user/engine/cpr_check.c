// SPDX-License-Identifier: GPL-2.0-or-later
/* Is what the new VMM maps the very memory of the guest? */
#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "engine/cpr.h"

static int check_block(const struct ferry_ram_block *b, const struct ferry_ram_block *n,
		       struct ferry_error *err)
{
	struct stat old, new;

	if (b->size_bytes != n->size_bytes)
		return ferry_error_set(err, EINVAL, "memory block '%s' has %llu bytes in the new VMM, "
				       "the guest has %llu: give both the same size", b->name,
				       (unsigned long long)n->size_bytes,
				       (unsigned long long)b->size_bytes);
	if (fstat(b->fd, &old) || fstat(n->fd, &new))
		return ferry_error_set(err, errno, "memory block '%s': %s", b->name,
				       strerror(errno));
	if (old.st_dev != new.st_dev || old.st_ino != new.st_ino)
		return ferry_error_set(err, EXDEV, "memory block '%s' of the new VMM is another file "
				       "(inode %llu) than the guest's (inode %llu): start it with the "
				       "same file as its memory (QEMU: mem-path=)", b->name,
				       (unsigned long long)new.st_ino,
				       (unsigned long long)old.st_ino);
	if (b->fd_off_bytes != n->fd_off_bytes)
		return ferry_error_set(err, EINVAL, "memory block '%s' begins at byte %llu of its file "
				       "in the new VMM, the guest's at %llu", b->name,
				       (unsigned long long)n->fd_off_bytes,
				       (unsigned long long)b->fd_off_bytes);
	return 0;
}

int ferry_cpr_check_kind(const struct ferry_cpr *c, struct ferry_error *err)
{
	unsigned int i;

	/* Pages that loading touches are kept one by one (fault/keep.h). */
	for (i = 0; i < c->ram.count; i++)
		if (ferry_ram_is_huge(&c->ram.blocks[i]))
			return ferry_error_set(err, EOPNOTSUPP, "memory block '%s' is of huge pages "
					       "(hugetlb): such a guest cannot be handed to another "
					       "VMM yet; migrate it to one on this host (ferry send)",
					       c->ram.blocks[i].name);
	return 0;
}

int ferry_cpr_check_ram(const struct ferry_cpr *c, struct ferry_error *err)
{
	unsigned int i;
	int r = 0;

	if (c->ram.count != c->to_ram.count)
		return ferry_error_set(err, EINVAL, "the new VMM has %u memory blocks, the guest %u",
				       c->to_ram.count, c->ram.count);
	for (i = 0; i < c->ram.count && !r; i++) {
		int at = ferry_ram_find(&c->to_ram, c->ram.blocks[i].name);

		/* Kept pages are put back by number: the order is the same too. */
		if (at != (int)i)
			return ferry_error_set(err, EINVAL, "the new VMM has no memory block '%s' in "
					       "the guest's place: give the blocks the same names",
					       c->ram.blocks[i].name);
		r = check_block(&c->ram.blocks[i], &c->to_ram.blocks[i], err);
	}
	return r;
}
