/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_TEST_HUGE_POOL_H
#define FERRY_TEST_HUGE_POOL_H

#include <stdbool.h>

#define HUGE_SIZE (2ul << 20)

/** huge_pool_take() - so many more huge pages for this test; false: skip, it has said why. */
bool huge_pool_take(unsigned long pages);

/** huge_pool_pages() - how many there are, taken or not. */
unsigned long huge_pool_pages(void);

/** huge_pool_give_back() - the same number again, at its end. */
void huge_pool_give_back(unsigned long pages);

#endif
