/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * wait.c - waiting on a thread that has other work too; see wait.h.
 *
 * Any thread; what is kept is the thread's own.
 */
#include "backend/wait.h"

#include <errno.h>
#include <sys/uio.h>
#include <unistd.h>

static _Thread_local struct {
    gboolean set;
    int fd;
    BeOnWait func;
    gpointer user;
} other_work;

void be_thread_on_wait(int fd, BeOnWait func, gpointer user)
{
    other_work.set = TRUE;
    other_work.fd = fd;
    other_work.func = func;
    other_work.user = user;
}

int be_wait_fd(void)
{
    return other_work.set ? other_work.fd : -1;
}

void be_wait_told(void)
{
    if (other_work.set) {
        other_work.func(other_work.user);
    }
}

gsize be_pread_memory(int fd, void *buffer, gsize length, guint64 offset)
{
    struct iovec iov = {.iov_base = buffer, .iov_len = length};
    ssize_t got = preadv2(fd, &iov, 1, (off_t)offset, RWF_NOWAIT);

    return got > 0 ? (gsize)got : 0;
}

int be_pread_whole(int fd, void *buffer, gsize length, guint64 offset)
{
    gsize done = other_work.set ? be_pread_memory(fd, buffer, length, offset) : 0;

    if (done < length) {
        be_wait_told();
    }
    while (done < length) {
        ssize_t got = pread(fd, (char *)buffer + done, length - done, (off_t)(offset + done));

        if (got > 0) {
            done += (gsize)got;
        } else if (got == 0 || errno != EINTR) {
            return EIO;
        }
    }
    return 0;
}
