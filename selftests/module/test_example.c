// SPDX-License-Identifier: GPL-2.0-or-later
/* The example of Documentation/uapi.rst does what the page says. */
#include "harness.h"

#undef _GNU_SOURCE
#define main example_main
#include "example.h" /* cut out of the page by selftests/uapi/example.sh */
#undef main

#include <sys/wait.h>

/* What comes out of a pipe, until its end. */
static size_t drain(int fd, char *buf, size_t room)
{
	size_t len = 0;
	ssize_t n;

	while (len < room && (n = read(fd, buf + len, room - len)) > 0)
		len += (size_t)n;
	return len;
}

TEST(prints_what_the_page_says)
{
	char said[4096] = "";
	int ends[2], status = -1;
	pid_t child;

	ASSERT_EQ(0, pipe(ends));
	child = fork();
	ASSERT_LE(0, child);
	if (!child) {
		dup2(ends[1], STDOUT_FILENO);
		status = example_main();
		fflush(stdout);
		_exit(status);
	}
	close(ends[1]);
	drain(ends[0], said, sizeof(said) - 1);
	close(ends[0]);
	ASSERT_EQ(child, waitpid(child, &status, 0));
	EXPECT_EQ(0, status);
	EXPECT_LT(10, strlen(example_output));
	EXPECT_STREQ(example_output, said);
}

HARNESS_MAIN
