/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_RAM_ZERO_H
#define FERRY_RAM_ZERO_H

#include <stdbool.h>
#include <stddef.h>

/** ferry_zero_is() - are all @len bytes zero? (isa-l, after a look at the first words) */
bool ferry_zero_is(const void *mem, size_t len);

#endif
