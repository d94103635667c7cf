// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "inject/gadget.h"

static const uint8_t call_code[] = { 0x0f, 0x05, 0xc3 };
/* glibc and musl: mov $15, %rax; syscall */
static const uint8_t restorer_code[] = { 0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05 };

/* Text is read in pieces of this size. */
#define CHUNK_BYTES (256 * 1024)
/* An upper bound for a line of /proc/PID/maps: the numbers and a path. */
#define MAPS_LINE_BYTES 4352

struct mapping {
	uint64_t start;
	uint64_t end;
	char perms[5];
	char path[MAPS_LINE_BYTES];
};

static int parse_mapping(const char *line, struct mapping *m)
{
	int path_at = 0;
	unsigned long start, end;

	if (sscanf(line, "%lx-%lx %4s %*s %*s %*s %n", &start, &end, m->perms, &path_at) < 3)
		return 0;
	m->start = start;
	m->end = end;
	snprintf(m->path, sizeof(m->path), "%s", path_at ? line + path_at : "");
	m->path[strcspn(m->path, "\n")] = '\0';
	return 1;
}

/*
 * Only text that stays: private, not writable, from a file. Never a JIT buffer
 * (QEMU's is a memfd with -accel tcg,split-wx=on). The C library comes first,
 * since a plugin's text may be unmapped while a call is under way.
 */
static int mapping_wanted(const struct mapping *m, int pass)
{
	if (m->perms[0] != 'r' || m->perms[1] != '-' || m->perms[2] != 'x' || m->perms[3] != 'p')
		return 0;
	if (m->path[0] != '/' || !strncmp(m->path, "/memfd:", 7))
		return 0;
	return pass || strstr(m->path, "/libc.so") || strstr(m->path, "/libc-") ||
	       strstr(m->path, "/ld-musl");
}

static void search_code(const uint8_t *buf, size_t len, uint64_t addr, const uint8_t *code,
			size_t code_len, uint64_t *found)
{
	const uint8_t *hit;

	if (*found)
		return;
	hit = memmem(buf, len, code, code_len);
	if (hit)
		*found = addr + (uint64_t)(hit - buf);
}

static void search_mapping(int mem_fd, const struct mapping *m, uint8_t *buf,
			   struct ferry_gadgets *g)
{
	uint64_t addr = m->start;

	while (addr < m->end && (!g->call || !g->restorer)) {
		size_t want = m->end - addr < CHUNK_BYTES ? m->end - addr : CHUNK_BYTES;
		ssize_t n = pread(mem_fd, buf, want, (off_t)addr);

		if (n < (ssize_t)sizeof(restorer_code))
			return;
		search_code(buf, (size_t)n, addr, call_code, sizeof(call_code), &g->call);
		search_code(buf, (size_t)n, addr, restorer_code, sizeof(restorer_code),
			    &g->restorer);
		if (addr + (uint64_t)n >= m->end)
			return;
		/* The code may straddle two pieces. */
		addr += (uint64_t)n - (sizeof(restorer_code) - 1);
	}
}

int ferry_gadgets_find(pid_t pid, int mem_fd, struct ferry_gadgets *gadgets,
		       struct ferry_error *err)
{
	char path[64], line[MAPS_LINE_BYTES];
	struct mapping m;
	uint8_t *buf;
	FILE *maps;
	int pass;

	memset(gadgets, 0, sizeof(*gadgets));
	snprintf(path, sizeof(path), "/proc/%d/maps", pid);
	maps = fopen(path, "re");
	if (!maps)
		return ferry_error_set(err, errno, "reading %s: %s", path, strerror(errno));
	buf = malloc(CHUNK_BYTES);
	if (!buf) {
		fclose(maps);
		return ferry_error_set(err, ENOMEM, "reading the text of process %d: no memory",
				       pid);
	}
	for (pass = 0; pass < 2 && (!gadgets->call || !gadgets->restorer); pass++) {
		rewind(maps);
		while (fgets(line, sizeof(line), maps))
			if (parse_mapping(line, &m) && mapping_wanted(&m, pass))
				search_mapping(mem_fd, &m, buf, gadgets);
	}
	free(buf);
	fclose(maps);
	if (!gadgets->call || !gadgets->restorer)
		return ferry_error_set(err, ENOEXEC,
				       "running calls in process %d: its program text has no usable "
				       "%s; only x86-64 programs with an ordinary C library are "
				       "supported", pid,
				       gadgets->call ? "signal return" : "syscall instruction");
	return 0;
}

int ferry_gadgets_check(int mem_fd, const struct ferry_gadgets *gadgets)
{
	uint8_t call[sizeof(call_code)], restorer[sizeof(restorer_code)];

	/* Reads nothing once the address space this descriptor stands for is gone. */
	if (pread(mem_fd, call, sizeof(call), (off_t)gadgets->call) != sizeof(call) ||
	    pread(mem_fd, restorer, sizeof(restorer), (off_t)gadgets->restorer) != sizeof(restorer))
		return -ESRCH;
	if (memcmp(call, call_code, sizeof(call)) ||
	    memcmp(restorer, restorer_code, sizeof(restorer)))
		return -ENOEXEC;
	return 0;
}
