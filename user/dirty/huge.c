// SPDX-License-Identifier: GPL-2.0-or-later
#include "dirty/huge.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define THP_DIR "/sys/kernel/mm/transparent_hugepage/"

/* The chosen word of a sysfs file like "always [never] deny"; "" when there is no such file. */
static void read_choice(const char *path, char *word, size_t len)
{
	char line[256] = "";
	char *begin, *end;
	FILE *f = fopen(path, "re");

	word[0] = '\0';
	if (!f)
		return;
	if (fgets(line, sizeof(line), f)) {
		begin = strchr(line, '[');
		end = begin ? strchr(begin, ']') : NULL;
		if (end) {
			*end = '\0';
			snprintf(word, len, "%s", begin + 1);
		}
	}
	fclose(f);
}

/* Since 6.11 memfds have a setting for each page size too; only the PMD's drops page tables. */
static void read_pmd_choice(char *word, size_t len)
{
	unsigned long bytes = 0;
	char path[160];
	FILE *f = fopen(THP_DIR "hpage_pmd_size", "re");

	word[0] = '\0';
	if (!f)
		return;
	if (fscanf(f, "%lu", &bytes) == 1) {
		snprintf(path, sizeof(path), THP_DIR "hugepages-%lukB/shmem_enabled", bytes >> 10);
		read_choice(path, word, len);
	}
	fclose(f);
}

/*
 * The super block options of the mount with device number @dev, in @pid's view.
 * Return: false when it is not mounted there.
 */
static bool mount_options(const char *path, dev_t dev, char *options, size_t len)
{
	char *line = NULL;
	size_t room = 0;
	bool found = false;
	FILE *f = fopen(path, "re");

	if (!f)
		return false;
	while (!found && getline(&line, &room, f) > 0) {
		unsigned int major_no, minor_no;
		char *tail = strstr(line, " - ");

		if (sscanf(line, "%*d %*d %u:%u", &major_no, &minor_no) != 2 || !tail)
			continue;
		if (makedev(major_no, minor_no) != dev)
			continue;
		/* " - TYPE SOURCE OPTIONS" */
		snprintf(options, len, "%s", strrchr(tail, ' ') + 1);
		found = true;
	}
	free(line);
	fclose(f);
	return found;
}

/* A memfd lives on a mount of the kernel's own, which no mountinfo shows. */
static bool is_memfd(int fd)
{
	char path[64], link[32];
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	n = readlink(path, link, sizeof(link));
	return n >= 7 && !strncmp(link, "/memfd:", 7);
}

static bool is_off(const char *word)
{
	return !word[0] || !strcmp(word, "never") || !strcmp(word, "deny");
}

static bool memfd_huge(const char *global, char *why, size_t why_len)
{
	char pmd[32];

	if (!is_off(global)) {
		snprintf(why, why_len, THP_DIR "shmem_enabled is \"%s\"", global);
		return true;
	}
	read_pmd_choice(pmd, sizeof(pmd));
	if (is_off(pmd) || !strcmp(pmd, "inherit") || !strcmp(global, "deny"))
		return false;
	snprintf(why, why_len, THP_DIR "hugepages-*kB/shmem_enabled is \"%s\"", pmd);
	return true;
}

bool ferry_huge_possible(int fd, pid_t pid, char *why, size_t why_len)
{
	char global[32], options[512], path[64];
	const char *huge;
	struct stat st;

	/* No such file: a kernel without transparent huge pages for shared memory. */
	read_choice(THP_DIR "shmem_enabled", global, sizeof(global));
	if (!global[0] || !strcmp(global, "deny"))
		return false;
	if (!strcmp(global, "force")) {
		snprintf(why, why_len, THP_DIR "shmem_enabled is \"force\"");
		return true;
	}
	if (is_memfd(fd))
		return memfd_huge(global, why, why_len);
	snprintf(path, sizeof(path), "/proc/%d/mountinfo", (int)pid);
	if (fstat(fd, &st) ||
	    (!mount_options("/proc/self/mountinfo", st.st_dev, options, sizeof(options)) &&
	     !mount_options(path, st.st_dev, options, sizeof(options)))) {
		snprintf(why, why_len, "the mount of the memory file cannot be found");
		return true;
	}
	huge = strstr(options, "huge=");
	if (!huge || !strncmp(huge, "huge=never", 10))
		return false;
	snprintf(why, why_len, "its file system is mounted with \"%.*s\"",
		 (int)strcspn(huge, ",\n"), huge);
	return true;
}
