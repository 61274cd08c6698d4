/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * readahead.c - how far the kernel reads ahead; see readahead.h.
 *
 * FUSE can only lower what the kernel begins with (max_readahead of FUSE_INIT), so it is
 * said where an administrator would say it.  What it is worth, contrib/bench/RESULTS.md
 * says.
 */
#include "mountd/readahead.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "mountd/mounts.h"

#define KIBIBYTES "1024"

static int write_setting(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    int errnum = 0;

    if (fd < 0) {
        return errno;
    }
    if (write(fd, text, strlen(text)) < 0) {
        errnum = errno;
    }
    close(fd);
    return errnum;
}

void vm_readahead_raise(const char *mountpoint)
{
    g_autoptr(GPtrArray) mounts = vm_mounts_read(NULL);
    const VmMount *mount = mounts ? vm_mounts_at(mounts, mountpoint) : NULL;
    g_autofree char *path = NULL;
    int errnum;

    /* Somebody may have mounted something over it. */
    if (!mount || !g_str_equal(mount->fstype, VM_FSTYPE)) {
        return;
    }
    path = g_strdup_printf("/sys/class/bdi/%s/read_ahead_kb", mount->device);
    errnum = write_setting(path, KIBIBYTES);
    if (errnum) {
        g_info("the kernel's read-ahead stays as it is: %s: %s", path, g_strerror(errnum));
    }
}
