/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * file-stream.c - the stream of a local file; see file-stream.h.
 *
 * open() runs on a worker of the stream, requests on two threads of the source's
 * pool, small random reads on the caller's: the descriptor is set before any of
 * them and never changes until close() has joined all.
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
    int fd;                    /* -1 until open() */
    gint cancelled;            /* atomic */
    GThreadPool *pool;         /* of BeTransfer; NULL until open() */
} FileSource;

static void serve(gpointer item, gpointer user)
{
    BeTransfer *transfer = item;
    FileSource *source = user;
    int errnum = EIO;

    if (!g_atomic_int_get(&source->cancelled)) {
        errnum = be_pread_whole(source->fd, transfer->buffer, transfer->length, transfer->offset);
    }
    transfer->done(transfer, errnum);
}

static gboolean source_open(gpointer data, gint64 timeout_us G_GNUC_UNUSED,
                            BeSourceLimits *ret_limits, GError **error)
{
    FileSource *source = data;
    int fd = be_image_open(source->path, error);
    struct stat attr;

    if (fd < 0) {
        return FALSE;
    }
    if (fstat(fd, &attr) < 0 || (guint64)attr.st_size != source->size) {
        g_set_error(error, BE_ERROR, EIO, "the file '%s' has changed", source->path);
        close(fd);
        return FALSE;
    }
    source->fd = fd;
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
    int errnum;

    if (length > NOW_MAX) {
        return FALSE;
    }
    buffer = g_malloc(length);
    errnum = g_atomic_int_get(&source->cancelled)
                 ? EIO
                 : be_pread_whole(source->fd, buffer, length, offset);
    sink(buffer, errnum, user);
    return TRUE;
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
    if (source->fd >= 0) {
        close(source->fd);
    }
    g_free(source->path);
    g_free(source);
}

static const BeSourceOps file_ops = {
    .name = "file",
    .open = source_open,
    .pread = source_pread,
    .read_now = source_read_now,
    .extents = source_extents,
    .cancel = source_cancel,
    .close = source_close,
};

BeStream *be_stream_new_file(const char *path, guint64 size)
{
    FileSource *source = g_new0(FileSource, 1);

    source->path = g_strdup(path);
    source->size = size;
    source->fd = -1;
    return be_stream_new(size, size, &file_ops, source);
}
