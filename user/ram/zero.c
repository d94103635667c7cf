// SPDX-License-Identifier: GPL-2.0-or-later
#include "ram/zero.h"

#include <isa-l/mem_routines.h>
#include <stdint.h>
#include <string.h>

/* Most pages that are not zero show it here; a call into isa-l costs more than this look. */
#define FIRST_LOOK_BYTES 16u

bool ferry_zero_is(const void *mem, size_t len)
{
	uint64_t word[2];

	if (len >= FIRST_LOOK_BYTES) {
		memcpy(word, mem, sizeof(word));
		if (word[0] | word[1])
			return false;
	}
	/* isa-l only reads; its prototype lacks the const. */
	return isal_zero_detect((void *)(uintptr_t)mem, len) == 0;
}
