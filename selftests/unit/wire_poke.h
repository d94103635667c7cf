/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef SELFTESTS_UNIT_WIRE_POKE_H
#define SELFTESTS_UNIT_WIRE_POKE_H

#include <stddef.h>
#include <stdint.h>

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

/* One byte of a good encoding changed, and what must come of it. */
struct poke {
	size_t at;
	uint8_t value;
	int want;
};

#endif
