// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * member PORT PID - a further process that maps the RAM of the ferry-vmm PID
 *
 * Registers with its port, says "joined", and for each line on its input reads one word of every
 * page and says how many are not zero.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "include/ferry.h"

#define MARK "/memfd:ferry-vmm-ram"
#define BLOCKS 8

static struct ferry_port_ram ram[BLOCKS];
static char names[BLOCKS][8];

/* ferry-vmm calls its blocks ram0, ram1, ... in the order in which it made the files. */
static unsigned int map_ram(const char *pid)
{
	char dir[64], path[512], link[256];
	ino_t seen[BLOCKS];
	unsigned int n = 0, i;
	int number;

	snprintf(dir, sizeof(dir), "/proc/%s/fd", pid);
	for (number = 0; number < 256 && n < BLOCKS; number++) {
		struct stat st;
		ssize_t got;
		int fd;

		snprintf(path, sizeof(path), "%s/%d", dir, number);
		got = readlink(path, link, sizeof(link) - 1);
		if (got < 0 || (link[got] = '\0', strncmp(link, MARK, strlen(MARK))))
			continue;
		fd = open(path, O_RDWR | O_CLOEXEC);
		if (fd < 0 || fstat(fd, &st))
			return 0;
		for (i = 0; i < n && seen[i] != st.st_ino; i++)
			;
		if (i < n) {
			close(fd);
			continue;
		}
		seen[n] = st.st_ino;
		snprintf(names[n], sizeof(names[n]), "ram%u", n);
		ram[n] = (struct ferry_port_ram){
			.struct_size = sizeof(ram[n]), .name = names[n], .fd = fd,
			.bytes = (uint64_t)st.st_size,
			.addr = mmap(NULL, (size_t)st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd,
				     0),
		};
		if (ram[n].addr == MAP_FAILED)
			return 0;
		n++;
	}
	return n;
}

static unsigned long look(unsigned int n)
{
	unsigned long filled = 0;
	unsigned int i;
	uint64_t at;

	for (i = 0; i < n; i++)
		for (at = 0; at < ram[i].bytes; at += 4096)
			filled += *(volatile uint64_t *)((char *)ram[i].addr + at) != 0;
	return filled;
}

int main(int argc, char **argv)
{
	struct ferry_port *port;
	unsigned int n, i;
	int r;

	if (argc != 3 || !(n = map_ram(argv[2]))) {
		fprintf(stderr, "usage: member PORT PID-OF-FERRY-VMM\n");
		return 2;
	}
	r = ferry_port_create(NULL, NULL, 0, &port);
	for (i = 0; i < n && !r; i++)
		r = ferry_port_add_ram(port, &ram[i]);
	if (!r)
		r = ferry_port_join(port, argv[1]);
	if (!r)
		r = ferry_port_start(port);
	if (r) {
		fprintf(stderr, "member: %s\n", strerror(-r));
		return 1;
	}
	printf("joined\n");
	fflush(stdout);
	while (getchar() != EOF) {
		printf("%lu\n", look(n));
		fflush(stdout);
	}
	ferry_port_destroy(port);
	return 0;
}
