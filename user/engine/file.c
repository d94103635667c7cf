// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/file.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

const char *ferry_file_path(const struct ferry_record *record)
{
	size_t n = strlen(FERRY_FILE_SCHEME);

	return strncmp(record->uri, FERRY_FILE_SCHEME, n) ? NULL : record->uri + n;
}

enum ferry_where ferry_file_where_before(const struct ferry_record *record)
{
	return record->role == FERRY_ROLE_DESTINATION && ferry_file_path(record) ?
		       FERRY_WHERE_NONE : FERRY_WHERE_SOURCE;
}

int ferry_file_uri(const char *path, char uri[FERRY_SPEC_MAX], struct ferry_error *err)
{
	char cwd[FERRY_SPEC_MAX] = "";
	int n;

	if (!*path)
		return ferry_error_set(err, EINVAL, "name a file");
	if (*path != '/' && !getcwd(cwd, sizeof(cwd)))
		return ferry_error_set(err, errno, "cannot tell where %s is: %s", path,
				       strerror(errno));
	n = snprintf(uri, FERRY_SPEC_MAX, "%s%s%s%s", FERRY_FILE_SCHEME, cwd, *path == '/' ? "" : "/",
		     path);
	if (n < 0 || n >= FERRY_SPEC_MAX)
		return ferry_error_set(err, ENAMETOOLONG, "the file's path is too long: %s", path);
	return 0;
}
