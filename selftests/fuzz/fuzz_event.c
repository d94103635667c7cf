// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Datagrams of a kernel that need not be ours. The first byte says what is being waited
 * for. Every event that comes out has a kind and a name, every rejection has a text, and
 * the numbers of a family are never half known.
 */
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "event/message.h"

/* Those of the seeds, which were handmade. */
#define FAMILY 29
#define SEQUENCE 7

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(int good)
{
	if (!good)
		abort();
}

static int check(void *ctx, const struct ferry_event *event)
{
	unsigned int *count = ctx;

	must(event->kind < FERRY_EVENT_LOST);
	must(ferry_event_name(event->kind)[0] != 0);
	++*count;
	return *count == 100 ? 1 : 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct ferry_message_walk walk = { 0 };
	struct ferry_error err = { 0 };
	unsigned int count = 0;
	char *copy;
	int r;

	if (!size)
		return 0;
	walk.family = data[0] & 1 ? FAMILY : 0;
	walk.sequence = data[0] & 2 ? SEQUENCE : 0;
	/* A copy of its exact size, aligned, so that one byte too far is seen. */
	copy = malloc(size - 1 ? size - 1 : 1);
	if (!copy)
		return 0;
	memcpy(copy, data + 1, size - 1);
	r = ferry_message_walk(&walk, copy, size - 1, check, &count, &err);
	free(copy);
	must(r == 1 || (r <= 0 && r >= -4095));
	must((r == -EBADMSG) == (err.errnum == EBADMSG) || walk.answered);
	must(!err.errnum == !err.text[0]);
	must(!walk.group == (!walk.family || data[0] & 1));
	must(!walk.answered || walk.sequence);
	return 0;
}
