/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * file-stream.c - the stream of a local file; see file-stream.h.
 *
 * open() runs on a worker of the stream, requests on two threads of the source's
 * pool, small random reads on the caller's.  The file is open while somebody reads: a
 * file that was removed meanwhile must not keep its space because it was read once.
 * The lock is held for a few instructions.
 */
#include "backend/file-stream.h"

#include <errno.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backend/error.h"
#include "backend/image.h"
#include "backend/wait.h"

#define THREADS 2
#define NOW_MAX ((guint32)64 * 1024)

typedef struct {
    char *path;
    guint64 size;
    gint cancelled;            /* atomic */
    GThreadPool *pool;         /* of BeTransfer; NULL until open() */
    dev_t dev;                 /* constant after open(), as ino */
    ino_t ino;
    GMutex lock;
    int fd;                    /* guarded by lock; -1: it is not open */
    guint users;               /* guarded by lock; those who have fd */
    gboolean resting;          /* guarded by lock; the last of them closes it */
} FileSource;

/* ---- The file ---- */

static int open_file(const char *path, guint64 size, struct stat *ret, GError **error)
{
    int fd = be_image_open(path, error);

    if (fd < 0) {
        return -1;
    }
    if (fstat(fd, ret) < 0 || (guint64)ret->st_size != size) {
        g_set_error(error, BE_ERROR, EIO, "the file '%s' has changed", path);
        close(fd);
        return -1;
    }
    return fd;
}

static int take_locked(FileSource *source)
{
    source->users += source->fd >= 0;
    return source->fd;
}

/* Returns: -1: it is not open; else give() gives it back. */
static int take_open(FileSource *source)
{
    int fd;

    g_mutex_lock(&source->lock);
    fd = take_locked(source);
    g_mutex_unlock(&source->lock);
    return fd;
}

/* The same, and opens it again; two may do so at once. */
static int take(FileSource *source)
{
    g_autoptr(GError) error = NULL;
    int fd = take_open(source);
    int mine = -1;
    struct stat attr;

    if (fd >= 0) {
        return fd;
    }
    mine = open_file(source->path, source->size, &attr, &error);
    if (mine < 0 || attr.st_dev != source->dev || attr.st_ino != source->ino) {
        g_info("%s", error ? error->message : "a file was replaced by another one");
    } else {
        g_mutex_lock(&source->lock);
        if (source->fd < 0) {
            source->fd = mine;
            source->resting = FALSE;
            mine = -1;
        }
        fd = take_locked(source);
        g_mutex_unlock(&source->lock);
    }
    if (mine >= 0) {
        close(mine);
    }
    return fd;
}

static void give(FileSource *source, guint users, gboolean rest)
{
    int unused = -1;

    g_mutex_lock(&source->lock);
    source->users -= users;
    source->resting = source->resting || rest;
    if (source->resting && source->users == 0) {
        unused = source->fd;
        source->fd = -1;
    }
    g_mutex_unlock(&source->lock);
    if (unused >= 0) {
        close(unused);
    }
}

/* ---- Requests ---- */

static char rest;

static void serve(gpointer item, gpointer user)
{
    BeTransfer *transfer = item;
    FileSource *source = user;
    int errnum = EIO;
    int fd;

    if (item == &rest) {
        give(source, 0, TRUE);
        return;
    }
    fd = g_atomic_int_get(&source->cancelled) ? -1 : take(source);
    if (fd >= 0) {
        errnum = be_pread_whole(fd, transfer->buffer, transfer->length, transfer->offset);
        give(source, 1, FALSE);
    }
    transfer->done(transfer, errnum);
}

static gboolean source_open(gpointer data, gint64 timeout_us G_GNUC_UNUSED,
                            BeSourceLimits *ret_limits, GError **error)
{
    FileSource *source = data;
    struct stat attr;
    int fd = open_file(source->path, source->size, &attr, error);

    if (fd < 0) {
        return FALSE;
    }
    source->dev = attr.st_dev;
    source->ino = attr.st_ino;
    g_mutex_lock(&source->lock);
    source->fd = fd;
    g_mutex_unlock(&source->lock);
    source->pool = g_thread_pool_new(serve, source, THREADS, FALSE, NULL);
    ret_limits->block_min = 1;
    ret_limits->request_max = BE_READ_MAX;
    return TRUE;
}

static void source_pread(gpointer data, BeTransfer *transfer)
{
    FileSource *source = data;

    /* Fails only where a thread cannot be started; those that run take it then. */
    (void)g_thread_pool_push(source->pool, transfer, NULL);
}

static gboolean source_read_now(gpointer data, guint64 offset, guint32 length,
                                gint64 timeout_us G_GNUC_UNUSED, BeSourceNow sink, gpointer user)
{
    FileSource *source = data;
    g_autofree char *buffer = NULL;
    int errnum = EIO;
    int fd = length <= NOW_MAX ? take_open(source) : -1;

    if (fd < 0) {
        return FALSE;
    }
    buffer = g_malloc(length);
    if (!g_atomic_int_get(&source->cancelled)) {
        errnum = be_pread_whole(fd, buffer, length, offset);
    }
    give(source, 1, FALSE);
    sink(buffer, errnum, user);
    return TRUE;
}

/* One of the threads does it: this one must not block. */
static void source_unread(gpointer data)
{
    FileSource *source = data;

    (void)g_thread_pool_push(source->pool, &rest, NULL);
}

static gboolean source_extents(gpointer data, BeExtentKind kind, guint64 offset,
                               gint64 timeout_us G_GNUC_UNUSED, GArray *out, GError **error)
{
    const FileSource *source = data;
    BeExtent all = {.start = offset, .length = source->size - offset, .flags = 0};

    if (kind != BE_EXTENTS_ALLOCATION) {
        g_set_error(error, BE_ERROR, EOPNOTSUPP, "a file has no map of that kind");
        return FALSE;
    }
    g_array_append_val(out, all);
    return TRUE;
}

static void source_cancel(gpointer data)
{
    FileSource *source = data;

    g_atomic_int_set(&source->cancelled, TRUE);
}

static void source_close(gpointer data)
{
    FileSource *source = data;

    if (source->pool) {
        g_thread_pool_free(source->pool, FALSE, TRUE);
    }
    give(source, 0, TRUE);
    g_mutex_clear(&source->lock);
    g_free(source->path);
    g_free(source);
}

static const BeSourceOps file_ops = {
    .name = "file",
    .open = source_open,
    .pread = source_pread,
    .read_now = source_read_now,
    .extents = source_extents,
    .unread = source_unread,
    .cancel = source_cancel,
    .close = source_close,
};

BeStream *be_stream_new_file(const char *path, guint64 size)
{
    FileSource *source = g_new0(FileSource, 1);

    source->path = g_strdup(path);
    source->size = size;
    source->fd = -1;
    g_mutex_init(&source->lock);
    return be_stream_new(size, size, &file_ops, source);
}
