/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * file-stream.c - the stream of a local file; see file-stream.h.
 *
 * open() runs on a worker of the stream, requests on two threads of the source's
 * pool, small random reads on the caller's.  The file is open while somebody reads: a
 * file that was removed meanwhile must not keep its space because it was read once.
 */
#include "backend/file-stream.h"

#include <errno.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backend/error.h"
#include "backend/hold.h"
#include "backend/image.h"
#include "backend/wait.h"

#define THREADS 2
#define NOW_MAX ((guint32)64 * 1024)

typedef struct {
    char *path;
    guint64 size;
    gint cancelled;            /* atomic */
    GThreadPool *pool;         /* of BeTransfer; NULL until open() */
    gboolean known;            /* dev and ino are; of open_held() alone, as they */
    dev_t dev;
    ino_t ino;
    BeHold *hold;              /* of OpenFile */
} FileSource;

typedef struct {
    int fd;
} OpenFile;

/* ---- The file ---- */

static void close_held(gpointer held)
{
    OpenFile *file = held;

    close(file->fd);
    g_free(file);
}

/* The first of the right size is the one that is read for ever. */
static gboolean is_the_same(FileSource *source, const struct stat *attr)
{
    if ((guint64)attr->st_size != source->size) {
        return FALSE;
    }
    if (!source->known) {
        source->dev = attr->st_dev;
        source->ino = attr->st_ino;
        source->known = TRUE;
    }
    return attr->st_dev == source->dev && attr->st_ino == source->ino;
}

static gpointer open_held(gpointer user, GError **error)
{
    FileSource *source = user;
    OpenFile *file;
    struct stat attr;
    int fd = be_image_open(source->path, error);

    if (fd < 0) {
        return NULL;
    }
    file = g_new(OpenFile, 1);
    file->fd = fd;
    if (fstat(fd, &attr) < 0 || !is_the_same(source, &attr)) {
        g_set_error(error, BE_ERROR, EIO, "the file '%s' has changed", source->path);
        close_held(file);
        return NULL;
    }
    return file;
}

static const BeHoldOps hold_ops = {.open = open_held, .close = close_held};

/* ---- Requests ---- */

static char rest;

static void serve(gpointer item, gpointer user)
{
    BeTransfer *transfer = item;
    FileSource *source = user;
    g_autoptr(GError) error = NULL;
    OpenFile *file = NULL;
    int errnum = EIO;

    if (item == &rest) {
        be_hold_rest(source->hold);
        return;
    }
    if (!g_atomic_int_get(&source->cancelled)) {
        file = be_hold_take(source->hold, &error);
    }
    if (file) {
        errnum = be_pread_whole(file->fd, transfer->buffer, transfer->length, transfer->offset);
        be_hold_give(source->hold);
    } else if (error) {
        g_info("%s", error->message);
    }
    transfer->done(transfer, errnum);
}

static gboolean source_open(gpointer data, gint64 timeout_us G_GNUC_UNUSED,
                            BeSourceLimits *ret_limits, GError **error)
{
    FileSource *source = data;

    if (!be_hold_take(source->hold, error)) {
        return FALSE;
    }
    be_hold_give(source->hold);
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
    const OpenFile *file = length <= NOW_MAX ? be_hold_take_open(source->hold) : NULL;

    if (!file) {
        return FALSE;
    }
    buffer = g_malloc(length);
    if (!g_atomic_int_get(&source->cancelled)) {
        errnum = be_pread_whole(file->fd, buffer, length, offset);
    }
    be_hold_give(source->hold);
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
    be_hold_free(source->hold);
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
    source->hold = be_hold_new(&hold_ops, source);
    return be_stream_new(size, size, &file_ops, source);
}
