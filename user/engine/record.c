// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/record.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

static const char *const phase_names[] = {
	[FERRY_PHASE_OPEN] = "open",
	[FERRY_PHASE_COMMIT] = "commit",
	[FERRY_PHASE_RAN] = "ran",
	[FERRY_PHASE_COMMIT_WAIT] = "commit-wait",
	[FERRY_PHASE_RUN_ACCEPTED] = "run-accepted",
	[FERRY_PHASE_REFUSED] = "refused",
	[FERRY_PHASE_ABORTED] = "aborted",
	[FERRY_PHASE_FENCED] = "fenced",
	[FERRY_PHASE_RAN_LACKS] = "ran-lacks",
};
static_assert(sizeof(phase_names) / sizeof(phase_names[0]) == FERRY_PHASE_COUNT,
	      "every phase has a name");

const char *ferry_phase_name(enum ferry_phase phase)
{
	return phase < FERRY_PHASE_COUNT ? phase_names[phase] : "invalid";
}

int ferry_phase_parse(const char *name)
{
	int i;

	for (i = 0; i < FERRY_PHASE_COUNT; i++)
		if (!strcmp(name, phase_names[i]))
			return i;
	return -EINVAL;
}

void ferry_record_free(struct ferry_record *record)
{
	free(record->undo);
	record->undo = NULL;
	free(record->to_undo);
	record->to_undo = NULL;
}

int ferry_uuid_make(uint8_t uuid[16])
{
	if (getrandom(uuid, 16, 0) != 16)
		return -EIO;
	uuid[6] = (uint8_t)((uuid[6] & 0x0f) | 0x40);
	uuid[8] = (uint8_t)((uuid[8] & 0x3f) | 0x80);
	return 0;
}

void ferry_uuid_format(const uint8_t uuid[16], char text[FERRY_UUID_TEXT])
{
	unsigned int i;
	char *p = text;

	for (i = 0; i < 16; i++) {
		if (i == 4 || i == 6 || i == 8 || i == 10)
			*p++ = '-';
		p += snprintf(p, 3, "%02x", uuid[i]);
	}
}

int ferry_uuid_parse(const char *text, uint8_t uuid[16])
{
	unsigned int i, at = 0;

	if (strlen(text) != FERRY_UUID_TEXT - 1)
		return -EINVAL;
	for (i = 0; i < 16; i++) {
		unsigned int byte;

		if (i == 4 || i == 6 || i == 8 || i == 10) {
			if (text[at++] != '-')
				return -EINVAL;
		}
		if (strspn(text + at, "0123456789abcdef") < 2 ||
		    sscanf(text + at, "%2x", &byte) != 1)
			return -EINVAL;
		uuid[i] = (uint8_t)byte;
		at += 2;
	}
	return 0;
}
