// SPDX-License-Identifier: GPL-2.0-or-later
#include "base/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"

static int log_level = -1;

/* -1 until first used: the environment decides unless a level was set. */
static int log_threshold(void)
{
	int level = __atomic_load_n(&log_level, __ATOMIC_RELAXED);

	if (level < 0) {
		const char *debug = getenv("FERRY_DEBUG");

		level = debug && *debug && *debug != '0' ? FERRY_LOG_DEBUG : FERRY_LOG_INFO;
		__atomic_store_n(&log_level, level, __ATOMIC_RELAXED);
	}
	return level;
}

void ferry_log_set_level(enum ferry_log_level level)
{
	__atomic_store_n(&log_level, (int)level, __ATOMIC_RELAXED);
}

void ferry_log(enum ferry_log_level level, const char *fmt, ...)
{
	static const char *const names[] = {
		[FERRY_LOG_ERROR] = "error: ",
		[FERRY_LOG_WARN] = "warning: ",
		[FERRY_LOG_INFO] = "",
		[FERRY_LOG_DEBUG] = "debug: ",
	};
	char line[2048];
	va_list ap;
	int n, m;

	if ((int)level > log_threshold())
		return;
	n = snprintf(line, sizeof(line), "ferry: %s", names[level]);
	if (level == FERRY_LOG_DEBUG)
		n = snprintf(line, sizeof(line), "ferry[%d] %.6f: ", (int)getpid(),
			     (double)ferry_clock_ns() / 1e9);
	va_start(ap, fmt);
	m = vsnprintf(line + n, sizeof(line) - (size_t)n - 1, fmt, ap);
	va_end(ap);
	if (m < 0)
		return;
	n = (int)strlen(line);
	line[n++] = '\n';
	/* One write, so that lines of several processes do not mix. */
	if (write(STDERR_FILENO, line, (size_t)n) < 0)
		return;
}
