/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_BASE_LOG_H
#define FERRY_BASE_LOG_H

/*
 * Messages for a person, on standard error, one line each, prefixed "ferry: ".
 * Standard output belongs to results and --json. FERRY_DEBUG=1 in the
 * environment shows debug lines too. May be called from any thread.
 */
enum ferry_log_level {
	FERRY_LOG_ERROR,
	FERRY_LOG_WARN,
	FERRY_LOG_INFO,
	FERRY_LOG_DEBUG,
};

/** ferry_log_set_level() - the most talkative level that is still printed. */
void ferry_log_set_level(enum ferry_log_level level);

void ferry_log(enum ferry_log_level level, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));

#define ferry_log_error(...) ferry_log(FERRY_LOG_ERROR, __VA_ARGS__)
#define ferry_log_warn(...) ferry_log(FERRY_LOG_WARN, __VA_ARGS__)
#define ferry_log_info(...) ferry_log(FERRY_LOG_INFO, __VA_ARGS__)
#define ferry_log_debug(...) ferry_log(FERRY_LOG_DEBUG, __VA_ARGS__)

#endif
