/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * view-qcow2.c - the source of the qcow2 views of a disk; see view-qcow2.h.
 *
 * A request is split into pieces: data goes to the source of the disk, straight
 * into the buffer of the request; metadata is computed by a worker.  What ends
 * last ends the request.  While one is under way the disk's stream is busy, so
 * its source stays.
 *
 * Order of locks: the view's stream > the disk's stream > its source.
 */
#include "backend/view-qcow2.h"

#include <errno.h>
#include <string.h>

#include "backend/error.h"
#include "backend/view-map.h"
#include "backend/qcow2-layout.h"
#include "backend/split.h"
#include "backend/stream-priv.h"

#define WORKERS 2

typedef struct {
    BeStream *disk;            /* a reference */
    BeQcow2Layout *layout;

    GMutex lock;
    GCond quiet;               /* requests became 0 */
    guint requests;            /* guarded by lock; those under way */
} Qcow2Source;

struct BeView {
    GMutex lock;
    BeStream *stream;          /* guarded by lock; constant once it is there */
    gboolean closed;           /* guarded by lock */
};

/* ---- Requests ---- */

/* One is over; its source may now be closed, and that of the disk. */
static void request_ended(gpointer data)
{
    Qcow2Source *source = data;
    BeStream *disk = source->disk;

    g_mutex_lock(&disk->lock);
    be_stream_busy_end_locked(disk);
    g_mutex_unlock(&disk->lock);
    g_mutex_lock(&source->lock);
    source->requests--;
    if (source->requests == 0) {
        g_cond_broadcast(&source->quiet);
    }
    g_mutex_unlock(&source->lock);
}

/* Metadata and padding are computed by a worker. */
typedef struct {
    Qcow2Source *source;
    BeSplit *split;
    int errnum;                /* of what could not be asked for */
} Computation;

/* The metadata and padding of a request, on a worker. */
static void request_compute(gpointer data, gpointer user G_GNUC_UNUSED)
{
    g_autofree Computation *computation = data;
    const BeTransfer *transfer = be_split_transfer(computation->split);
    const BeQcow2Layout *layout = computation->source->layout;
    guint64 end = transfer->offset + transfer->length;
    BeQcow2Piece piece;

    for (guint64 at = transfer->offset;
         at < end && be_qcow2_layout_find(layout, at, &piece); at += piece.length) {
        guint8 *buffer = (guint8 *)transfer->buffer + (at - transfer->offset);
        gsize length = MIN(piece.length, end - at);

        switch (piece.kind) {
        case BE_QCOW2_METADATA:
            be_qcow2_layout_fill(layout, at, length, buffer);
            break;
        case BE_QCOW2_PADDING:
            memset(buffer, 0, length);
            break;
        case BE_QCOW2_DATA:
            break;
        }
    }
    be_split_end(computation->split, computation->errnum);
}

static void request_push(Qcow2Source *source, BeSplit *split, int errnum)
{
    static gsize once;
    static GThreadPool *pool;
    Computation *computation = g_new(Computation, 1);

    if (g_once_init_enter(&once)) {
        pool = g_thread_pool_new(request_compute, NULL, WORKERS, FALSE, NULL);
        g_once_init_leave(&once, 1);
    }
    *computation = (Computation){.source = source, .split = split, .errnum = errnum};
    g_thread_pool_push(pool, computation, NULL);
}

/* Returns: whether something is left to be computed. */
static gboolean submit_locked(const Qcow2Source *source, BeSplit *split)
{
    const BeTransfer *transfer = be_split_transfer(split);
    BeStream *disk = source->disk;
    guint64 start = transfer->offset;
    guint64 end = start + transfer->length;
    guint8 *buffer = transfer->buffer;
    gboolean compute = FALSE;
    BeQcow2Piece piece;

    for (guint64 at = start;
         at < end && be_qcow2_layout_find(source->layout, at, &piece);
         at += piece.length) {
        if (piece.kind == BE_QCOW2_DATA) {
            be_split_submit(split, disk->ops, disk->source, disk->limits.request_max,
                            piece.disk_offset, MIN(piece.length, end - at), buffer + (at - start));
        } else {
            compute = TRUE;
        }
    }
    return compute;
}

/* ---- Source ---- */

/* The map was read from the disk, so it is open, or it failed. */
static gboolean source_open(gpointer data, gint64 timeout_us G_GNUC_UNUSED,
                            BeSourceLimits *ret_limits, GError **error)
{
    const Qcow2Source *source = data;
    BeStream *disk = source->disk;
    gboolean usable;

    g_mutex_lock(&disk->lock);
    usable = disk->state == BE_STREAM_OPEN || disk->size == 0;
    *ret_limits = disk->limits;
    g_mutex_unlock(&disk->lock);
    if (disk->size == 0) {
        *ret_limits = (BeSourceLimits){.block_min = 1, .request_max = BE_CHUNK_SIZE};
    }
    if (!usable) {
        g_set_error(error, BE_ERROR, EIO, "the disk cannot be read any more");
    }
    return usable;
}

/*
 * The piece of the request that is ours keeps it alive in here.  It is given to
 * a worker when it is the only one too: done() must not be called in here.
 */
static void source_pread(gpointer data, BeTransfer *transfer)
{
    Qcow2Source *source = data;
    BeStream *disk = source->disk;
    BeSplit *split = be_split_new(transfer, request_ended, source);
    gboolean compute = TRUE;
    int errnum = 0;

    g_mutex_lock(&source->lock);
    source->requests++;
    g_mutex_unlock(&source->lock);
    g_mutex_lock(&disk->lock);
    disk->busy++;
    if (disk->state == BE_STREAM_OPEN) {
        compute = submit_locked(source, split);
    } else if (disk->size > 0) {
        errnum = EIO;
    }
    g_mutex_unlock(&disk->lock);
    /* No data, or all of it is here already: then ours is the last piece. */
    if (compute || !be_split_leave(split)) {
        request_push(source, split, errnum);
    }
}

static gboolean source_read_now(gpointer data, guint64 offset, guint32 length, gint64 timeout_us,
                                BeSourceNow sink, gpointer user)
{
    Qcow2Source *source = data;
    BeStream *disk = source->disk;
    BeQcow2Piece piece;
    gboolean done = FALSE;

    if (!be_qcow2_layout_find(source->layout, offset, &piece) || piece.kind != BE_QCOW2_DATA
        || piece.length < length || !disk->ops->read_now) {
        return FALSE;
    }
    g_mutex_lock(&disk->lock);
    if (disk->state == BE_STREAM_OPEN) {
        disk->busy++;
        g_mutex_unlock(&disk->lock);
        done = disk->ops->read_now(disk->source, piece.disk_offset, length, timeout_us, sink,
                                   user);
        g_mutex_lock(&disk->lock);
        be_stream_busy_end_locked(disk);
    }
    g_mutex_unlock(&disk->lock);
    return done;
}

/* What is a hole in the disk is not in the image. */
static gboolean source_extents(gpointer data, BeExtentKind kind, guint64 offset,
                               gint64 timeout_us G_GNUC_UNUSED, GArray *out, GError **error)
{
    const Qcow2Source *source = data;
    BeExtent all = {.start = offset, .flags = 0};

    if (kind != BE_EXTENTS_ALLOCATION) {
        g_set_error(error, BE_ERROR, EOPNOTSUPP, "a view has no map of that kind");
        return FALSE;
    }
    all.length = be_qcow2_layout_file_size(source->layout) - offset;
    g_array_append_val(out, all);
    return TRUE;
}

static void source_unread(gpointer data)
{
    const Qcow2Source *source = data;

    g_mutex_lock(&source->disk->lock);
    be_stream_unread_locked(source->disk);
    g_mutex_unlock(&source->disk->lock);
}

/* What is under way ends with the disk's stream, which fails together with ours. */
static void source_cancel(gpointer data G_GNUC_UNUSED)
{
}

static void source_close(gpointer data)
{
    Qcow2Source *source = data;

    g_mutex_lock(&source->lock);
    while (source->requests > 0) {
        g_cond_wait(&source->quiet, &source->lock);
    }
    g_mutex_unlock(&source->lock);
    be_qcow2_layout_free(source->layout);
    be_stream_unref(source->disk);
    g_cond_clear(&source->quiet);
    g_mutex_clear(&source->lock);
    g_free(source);
}

static const BeSourceOps qcow2_ops = {
    .name = "qcow2",
    .open = source_open,
    .pread = source_pread,
    .read_now = source_read_now,
    .extents = source_extents,
    .unread = source_unread,
    .cancel = source_cancel,
    .close = source_close,
};

/* Takes @layout. */
static BeStream *stream_new(BeStream *disk, BeQcow2Layout *layout)
{
    guint64 size = be_qcow2_layout_file_size(layout);
    Qcow2Source *source = g_new0(Qcow2Source, 1);
    guint64 essence_start, essence_end;
    BeStream *stream;

    source->disk = be_stream_ref(disk);
    source->layout = layout;
    g_mutex_init(&source->lock);
    g_cond_init(&source->quiet);
    stream = be_stream_new(size, size, &qcow2_ops, source);
    be_qcow2_layout_essence(layout, &essence_start, &essence_end);
    be_stream_set_essence(stream, essence_start, essence_end);
    be_stream_share_rate(stream, disk);
    return stream;
}

/* ---- View ---- */

BeView *be_view_new(void)
{
    BeView *view = g_new0(BeView, 1);

    g_mutex_init(&view->lock);
    return view;
}

void be_view_free(BeView *view)
{
    if (!view) {
        return;
    }
    be_stream_unref(view->stream);
    g_mutex_clear(&view->lock);
    g_free(view);
}

BeStream *be_view_stream(BeView *view)
{
    BeStream *stream;

    g_mutex_lock(&view->lock);
    stream = view->stream;
    g_mutex_unlock(&view->lock);
    return stream;
}

typedef struct {
    const BeDisk *disk;
    BeView *view;
    BeDone done;
    gpointer user;
} Preparation;

/* Takes @layout.  Two may come to this at once; the first one's stream is taken. */
static gboolean take_layout(BeView *view, BeStream *disk, BeQcow2Layout *layout, GError **error)
{
    gboolean closed;

    g_mutex_lock(&view->lock);
    closed = view->closed;
    if (!closed && !view->stream) {
        view->stream = stream_new(disk, g_steal_pointer(&layout));
    }
    g_mutex_unlock(&view->lock);
    be_qcow2_layout_free(layout);
    if (closed) {
        g_set_error(error, BE_ERROR, EIO, "the disk cannot be read any more");
    }
    return !closed;
}

static void preparation_end(Preparation *preparation, const GError *error)
{
    preparation->done(error, preparation->user);
    g_free(preparation);
}

static Preparation *preparation_new(const BeDisk *disk, BeView *view, BeDone done, gpointer user)
{
    Preparation *preparation = g_new(Preparation, 1);

    *preparation = (Preparation){.disk = disk, .view = view, .done = done, .user = user};
    return preparation;
}

/* ---- The full image ---- */

static void map_ready(BeStream *disk, const BeExtents *map, int errnum, gpointer user)
{
    Preparation *preparation = user;
    g_autoptr(GError) error = NULL;
    BeQcow2Layout *layout = NULL;

    if (!map) {
        be_error_set_errno(&error, errnum, "the map of the disk cannot be had");
    } else if (!be_view_stream(preparation->view)) {
        layout = be_qcow2_layout_new(map, be_stream_size(disk), &error);
        if (layout) {
            take_layout(preparation->view, disk, layout, &error);
        }
    }
    preparation_end(preparation, error);
}

void be_disk_full_prepare(const BeDisk *disk, BeDone done, gpointer user)
{
    be_stream_with_map(disk->stream, map_ready, preparation_new(disk, disk->full, done, user));
}

BeStream *be_disk_full(const BeDisk *disk)
{
    return be_view_stream(disk->full);
}

/* ---- The incremental image ---- */

static guint32 block_min(BeStream *disk)
{
    guint32 bytes;

    g_mutex_lock(&disk->lock);
    bytes = disk->limits.block_min;
    g_mutex_unlock(&disk->lock);
    return bytes;
}

static void dirty_ready(BeStream *stream, const BeExtents *map, const BeExtents *dirty, int errnum,
                        gpointer user)
{
    Preparation *preparation = user;
    const BeDisk *disk = preparation->disk;
    g_autoptr(GError) error = NULL;
    BeQcow2Layout *layout = NULL;

    if (!dirty) {
        be_error_set_errno(&error, errnum, "what changed on the disk cannot be found out");
    } else if (!be_view_stream(preparation->view)) {
        BeQcow2Increment increment = {.map = map, .dirty = dirty, .size = be_stream_size(stream),
                                      .block_min = block_min(stream),
                                      .backing_name = disk->backing_name,
                                      .backing_format = disk->backing_format};

        layout = be_qcow2_layout_new_incremental(&increment, &error);
        if (layout) {
            take_layout(preparation->view, stream, layout, &error);
        }
    }
    preparation_end(preparation, error);
}

void be_disk_incremental_prepare(const BeDisk *disk, BeDone done, gpointer user)
{
    if (!disk->backing_name) {
        be_disk_full_prepare(disk, done, user);
        return;
    }
    be_stream_with_dirty(disk->stream, dirty_ready,
                         preparation_new(disk, disk->incremental, done, user));
}

BeStream *be_disk_incremental(const BeDisk *disk)
{
    return be_view_stream(disk->backing_name ? disk->incremental : disk->full);
}

/* ---- Life ---- */

static BeStream *set_closed(BeView *view)
{
    BeStream *stream;

    g_mutex_lock(&view->lock);
    view->closed = TRUE;
    stream = view->stream;
    g_mutex_unlock(&view->lock);
    return stream;
}

void be_view_fail(BeView *view, const char *reason)
{
    BeStream *stream = set_closed(view);

    if (stream) {
        be_stream_fail(stream, reason);
    }
}

void be_view_close(BeView *view)
{
    BeStream *stream = set_closed(view);

    if (stream) {
        be_stream_close(stream);
    }
}
