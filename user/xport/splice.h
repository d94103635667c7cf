/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_XPORT_SPLICE_H
#define FERRY_XPORT_SPLICE_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

/*
 * From a socket into a file with one copy: splice(2) hands the socket's buffers to a pipe as
 * they are, and the file's write copies out of them. One thread's own.
 */
struct ferry_splice {
	int pipe[2];
	size_t room_bytes; /* of the pipe */
};

/** ferry_splice_init() - make the pipe. Return: 0 or -errno, with nothing to free. */
int ferry_splice_init(struct ferry_splice *s);

/** ferry_splice_free() - also of one that is all zeros. */
void ferry_splice_free(struct ferry_splice *s);

/**
 * ferry_splice_to_file() - move exactly @len bytes
 * @sock: blocks until they have come; shutting it down ends that
 * @off: in the file
 * @writing: held while the file is written, not while the socket is waited for
 *
 * When it fails the file may hold a part of the bytes.
 *
 * Return: 0; -EPIPE when the stream ended, -ENOSPC and what else writing the file answers:
 * *@at_file tells whether it was the file.
 */
int ferry_splice_to_file(struct ferry_splice *s, int sock, int file, off_t off, size_t len,
			 pthread_mutex_t *writing, bool *at_file);

#endif
