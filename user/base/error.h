/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_BASE_ERROR_H
#define FERRY_BASE_ERROR_H

/**
 * struct ferry_error - why an operation failed, in words for a person
 * @errnum: positive errno; 0 while nothing failed
 * @text: what was being done, to what, what went wrong and what to do next
 *
 * Callers pass one down; functions fill it where the cause is known and return
 * the negative errno. Every function accepts a NULL pointer.
 */
struct ferry_error {
	int errnum;
	char text[1024];
};

/**
 * ferry_error_set() - record a failure, replacing an earlier one
 * @err: where to put it, or NULL
 * @errnum: positive errno
 * @fmt: printf format of the whole sentence
 *
 * Return: -@errnum, so that a caller can return it.
 */
int ferry_error_set(struct ferry_error *err, int errnum, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

/**
 * ferry_error_prefix() - put what was being done before the text there is
 * @err: a filled error, or NULL
 * @fmt: printf format; ": " follows it
 */
void ferry_error_prefix(struct ferry_error *err, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));

#endif
