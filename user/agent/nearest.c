// SPDX-License-Identifier: GPL-2.0-or-later
#include "agent/nearest.h"

#include <string.h>

/* Longer words are nobody's slip of the finger. */
#define NEAREST_MAX 40

static unsigned int least(unsigned int a, unsigned int b, unsigned int c)
{
	unsigned int m = a < b ? a : b;

	return m < c ? m : c;
}

/* What leads from the first i letters of @a to the first j of @b is d[i][j]. */
static unsigned int distance(const char *a, size_t la, const char *b, size_t lb)
{
	unsigned int d[NEAREST_MAX + 1][NEAREST_MAX + 1];
	size_t i, j;

	for (i = 0; i <= la; i++) {
		d[i][0] = (unsigned int)i;
		for (j = 1; j <= lb; j++) {
			if (!i) {
				d[i][j] = (unsigned int)j;
				continue;
			}
			d[i][j] = least(d[i - 1][j] + 1, d[i][j - 1] + 1,
					d[i - 1][j - 1] + (a[i - 1] != b[j - 1]));
			if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
				d[i][j] = least(d[i][j], d[i - 2][j - 2] + 1, d[i][j]);
		}
	}
	return d[la][lb];
}

void ferry_nearest_try(struct ferry_nearest *n, const char *name)
{
	size_t length = strlen(name);
	unsigned int mistakes;

	if (n->length > NEAREST_MAX || length > NEAREST_MAX)
		return;
	/* Cut short. */
	if (n->length > 3 && n->length < length && !memcmp(n->word, name, n->length))
		mistakes = 1;
	else
		mistakes = distance(n->word, n->length, name, length);
	if (mistakes * 3 > length || (n->best && mistakes >= n->mistakes))
		return;
	n->best = name;
	n->mistakes = mistakes;
}
