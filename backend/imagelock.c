/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * imagelock.c - QEMU's image lock, taken by us; see imagelock.h.
 *
 * Any thread, no locks of our own; blocks on local files.
 *
 * The protocol is that of QEMU block/file-posix.c (raw_apply_lock_bytes,
 * raw_check_lock_bytes) over the permissions of include/block/block-common.h.
 * Byte 100 + bit says "I use this permission", byte 200 + bit "I do not share it
 * with others".  All are shared OFD locks, so setting them never conflicts; the
 * conflict is found by asking, afterwards, whether anybody holds the opposite
 * byte.  Since both sides set first and ask then, one of two racing ones sees the
 * other.
 */
#include "imagelock.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "error.h"

enum {
    USED_BASE = 100,           /* RAW_LOCK_PERM_BASE */
    UNSHARED_BASE = 200,       /* RAW_LOCK_SHARED_BASE */
};

enum {
    PERM_CONSISTENT_READ = 0,
    PERM_WRITE = 1,
    PERM_RESIZE = 3,
};

/* We read, and share neither writing nor resizing. */
static const off_t held_bytes[] = {
    USED_BASE + PERM_CONSISTENT_READ,
    UNSHARED_BASE + PERM_WRITE,
    UNSHARED_BASE + PERM_RESIZE,
};

/* What must not be held by anybody else, and what it means when it is. */
typedef struct {
    off_t byte;
    const char *meaning;
} Conflict;

static const Conflict conflicts[] = {
    {USED_BASE + PERM_WRITE, "is open for writing by a running machine or a tool"},
    {USED_BASE + PERM_RESIZE, "may be resized by a running machine or a tool"},
    {UNSHARED_BASE + PERM_CONSISTENT_READ,
     "is open in a running machine or a tool that allows no readers"},
};

struct BeImageLock {
    GArray *fds;               /* of int; closing one releases its locks */
};

void be_image_lock_free(BeImageLock *lock)
{
    if (!lock) {
        return;
    }
    for (guint i = 0; i < lock->fds->len; i++) {
        close(g_array_index(lock->fds, int, i));
    }
    g_array_unref(lock->fds);
    g_free(lock);
}

static gboolean hold(int fd, const BeImage *image, GError **error)
{
    for (size_t i = 0; i < G_N_ELEMENTS(held_bytes); i++) {
        struct flock range = {
            .l_type = F_RDLCK,
            .l_whence = SEEK_SET,
            .l_start = held_bytes[i],
            .l_len = 1,
        };

        if (fcntl(fd, F_OFD_SETLK, &range) == 0) {
            continue;
        }
        if (errno == EAGAIN || errno == EACCES) {
            g_set_error(error, BE_ERROR, EBUSY, "the image '%s' is locked by another program",
                        image->path);
        } else {
            be_error_set_errno(error, errno, "cannot lock the image '%s'", image->path);
        }
        return FALSE;
    }
    return TRUE;
}

static gboolean check(int fd, const BeImage *image, GError **error)
{
    for (size_t i = 0; i < G_N_ELEMENTS(conflicts); i++) {
        /* An exclusive lock we never take, but which any holder would prevent. */
        struct flock range = {
            .l_type = F_WRLCK,
            .l_whence = SEEK_SET,
            .l_start = conflicts[i].byte,
            .l_len = 1,
        };

        if (fcntl(fd, F_OFD_GETLK, &range) < 0) {
            be_error_set_errno(error, errno, "cannot test the lock of the image '%s'",
                               image->path);
            return FALSE;
        }
        if (range.l_type != F_UNLCK) {
            g_set_error(error, BE_ERROR, EBUSY, "the image '%s' %s", image->path,
                        conflicts[i].meaning);
            return FALSE;
        }
    }
    return TRUE;
}

static gboolean lock_image(BeImageLock *lock, const BeImage *image, GError **error)
{
    int fd = be_image_open(image->path, error);

    if (fd < 0) {
        return FALSE;
    }
    g_array_append_val(lock->fds, fd);
    return hold(fd, image, error) && check(fd, image, error);
}

/* Whether what we locked is what was inspected, and still is the chain. */
static gboolean check_chain(const BeImageLock *lock, const GPtrArray *chain, GError **error)
{
    const BeImage *top = g_ptr_array_index(chain, 0);
    g_autoptr(GPtrArray) now = be_image_chain_inspect(top->path, top->format, error);
    gboolean same = FALSE;

    if (!now) {
        return FALSE;
    }
    same = be_image_chain_equal(chain, now);
    for (guint i = 0; same && i < chain->len; i++) {
        const BeImage *image = g_ptr_array_index(chain, i);
        struct stat st;

        same = fstat(g_array_index(lock->fds, int, i), &st) == 0
               && (image->block_device ? st.st_rdev == image->dev
                                       : st.st_dev == image->dev && st.st_ino == image->ino);
    }
    if (!same) {
        g_set_error(error, BE_ERROR, EBUSY,
                    "the images of '%s' changed while they were being locked", top->path);
    }
    return same;
}

BeImageLock *be_image_lock_take(const GPtrArray *chain, GError **error)
{
    g_autoptr(BeImageLock) lock = g_new0(BeImageLock, 1);

    lock->fds = g_array_new(FALSE, FALSE, sizeof(int));
    for (guint i = 0; i < chain->len; i++) {
        if (!lock_image(lock, g_ptr_array_index(chain, i), error)) {
            return NULL;
        }
    }
    if (!check_chain(lock, chain, error)) {
        return NULL;
    }
    return g_steal_pointer(&lock);
}
