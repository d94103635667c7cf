/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_BASE_UFFD_H
#define FERRY_BASE_UFFD_H

#include "base/error.h"

/**
 * ferry_uffd_create() - a userfaultfd of this process, non-blocking, UFFDIO_API not done
 *
 * Not for user mode only: KVM and vhost fault in the kernel.
 * Return: descriptor; -ENOSYS the kernel has none; -errno no right, with what gives it.
 */
int ferry_uffd_create(struct ferry_error *err);

#endif
