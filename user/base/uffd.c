// SPDX-License-Identifier: GPL-2.0-or-later
/* See uffd.h. */
#include "base/uffd.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/io.h"
#include "base/uapi_compat.h"

int ferry_uffd_create(struct ferry_error *err)
{
	int saved, dev, fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	if (fd >= 0)
		return fd;
	if (errno == ENOSYS)
		return ferry_error_set(err, ENOSYS,
				       "this kernel has no userfaultfd (CONFIG_USERFAULTFD)");
	/* The system call's errno says more than that the device is not there either. */
	saved = errno;
	dev = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	if (dev >= 0) {
		fd = ioctl(dev, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
		saved = errno;
		ferry_io_close(&dev);
	}
	if (fd >= 0)
		return fd;
	return ferry_error_set(err, saved, "no right to make a userfaultfd (%s): run ferry as root, or "
			       "give its user access to /dev/userfaultfd", strerror(saved));
}
