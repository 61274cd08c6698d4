/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * image-source.c - reading a chain of images straight from the files; see
 * image-source.h and BeSourceOps.
 *
 * open() and extents() run on workers, requests on a few threads of the source's pool,
 * small random reads on the caller's.  A request is split into pieces: what is plain is
 * read at once, what is not goes to the server, whose poller then ends the request.
 * The lock is held while the server is opened: who else needs it waits for that anyway.
 */
#include "backend/image-source.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "backend/error.h"
#include "backend/image-map.h"

#define THREADS 4
#define NOW_MAX (64u * 1024)

/* The extents of one step of the map, and how much of the disk one look at it takes. */
#define STEP_EXTENTS 4096u
#define STEP_BYTES (G_GUINT64_CONSTANT(1) << 30)

typedef struct {
    GPtrArray *chain;          /* of BeImage */
    guint64 size;
    gint cancelled;            /* atomic */
    gint64 timeout_us;         /* constant after open() */
    BeImageMap *map;           /* the same; NULL: all of it is the server's */
    GThreadPool *pool;         /* of BeTransfer; NULL until open() */

    const BeSourceOps *server_ops;
    gpointer server;
    GMutex lock;
    gboolean server_open;      /* guarded by lock */
    BeSourceLimits server_limits; /* constant once it is open */
} ImageSource;

/* One request of the stream. */
typedef struct {
    BeTransfer *transfer;
    gint pieces;               /* atomic: those at the server, and one for us */
    gint errnum;               /* atomic: of the piece that failed last */
} Request;

/* A part of it that the server reads. */
typedef struct {
    BeTransfer transfer;       /* first: the server's source knows only this */
    Request *request;
} ServerPiece;

/* ---- The server ---- */

static gboolean server_open(ImageSource *source, GError **error)
{
    gboolean open;

    g_mutex_lock(&source->lock);
    if (!source->server_open) {
        source->server_open = source->server_ops->open(source->server, source->timeout_us,
                                                       &source->server_limits, error);
    }
    open = source->server_open;
    g_mutex_unlock(&source->lock);
    return open;
}

static gboolean server_is_open(ImageSource *source)
{
    gboolean open;

    g_mutex_lock(&source->lock);
    open = source->server_open;
    g_mutex_unlock(&source->lock);
    return open;
}

static void request_piece_done(Request *request, int errnum)
{
    if (errnum) {
        g_atomic_int_set(&request->errnum, errnum);
    }
    if (g_atomic_int_dec_and_test(&request->pieces)) {
        request->transfer->done(request->transfer, g_atomic_int_get(&request->errnum));
        g_free(request);
    }
}

static void server_done(BeTransfer *transfer, int errnum)
{
    ServerPiece *piece = (ServerPiece *)transfer;
    Request *request = piece->request;

    g_free(piece);
    request_piece_done(request, errnum);
}

/* qemu-nbd takes any range of an image in a file; else this fails, and is not wrong. */
static gboolean server_takes(const ImageSource *source, guint64 offset, guint64 length)
{
    guint32 block = source->server_limits.block_min;

    return offset % block == 0 && (length % block == 0 || offset + length == source->size);
}

static void submit_to_server(ImageSource *source, Request *request, guint64 offset,
                             guint64 length, guint8 *buffer)
{
    g_autoptr(GError) error = NULL;

    g_atomic_int_inc(&request->pieces);
    if (!server_open(source, &error) || !server_takes(source, offset, length)) {
        g_debug("image: %s", error ? error->message : "the server wants larger blocks");
        request_piece_done(request, EIO);
        return;
    }
    while (length > 0) {
        guint32 part = (guint32)MIN(length, source->server_limits.request_max);
        ServerPiece *piece = g_new0(ServerPiece, 1);

        piece->request = request;
        piece->transfer.buffer = buffer;
        piece->transfer.offset = offset;
        piece->transfer.length = part;
        piece->transfer.done = server_done;
        g_atomic_int_inc(&request->pieces);
        source->server_ops->pread(source->server, &piece->transfer);
        offset += part;
        buffer += part;
        length -= part;
    }
    request_piece_done(request, 0);
}

/* ---- The files ---- */

/* A file that became shorter is an error, and no zeroes. */
static gboolean read_plain(const BeImagePiece *piece, guint8 *buffer)
{
    guint64 done = 0;

    while (done < piece->length) {
        ssize_t got = pread(piece->fd, buffer + done, piece->length - done,
                            (off_t)(piece->offset + done));

        if (got > 0) {
            done += (guint64)got;
        } else if (got == 0 || errno != EINTR) {
            return FALSE;
        }
    }
    return TRUE;
}

/* Returns: 0 or EIO; for OTHER nothing is done. */
static int take_piece(const BeImagePiece *piece, guint8 *buffer)
{
    if (piece->kind == BE_IMAGE_ZERO) {
        memset(buffer, 0, piece->length);
    }
    return piece->kind == BE_IMAGE_PLAIN && !read_plain(piece, buffer) ? EIO : 0;
}

/* Joins what follows one another for the server, cluster by cluster. */
static guint64 other_length(ImageSource *source, guint64 offset, guint64 end)
{
    BeImagePiece piece = {.kind = BE_IMAGE_OTHER, .length = 0};
    guint64 at = offset;

    while (at < end) {
        be_image_map_find(source->map, at, end - at, &piece);
        if (piece.kind != BE_IMAGE_OTHER) {
            break;
        }
        at += piece.length;
    }
    return at - offset;
}

static void serve(gpointer item, gpointer user)
{
    BeTransfer *transfer = item;
    ImageSource *source = user;
    Request *request = g_new0(Request, 1);
    guint64 end = transfer->offset + transfer->length;
    guint8 *buffer = transfer->buffer;
    int errnum = 0;
    BeImagePiece piece;

    *request = (Request){.transfer = transfer, .pieces = 1};
    for (guint64 at = transfer->offset; at < end && errnum == 0; at += piece.length) {
        if (g_atomic_int_get(&source->cancelled)) {
            errnum = EIO;
            break;
        }
        be_image_map_find(source->map, at, end - at, &piece);
        if (piece.kind == BE_IMAGE_OTHER) {
            piece.length = other_length(source, at, end);
            submit_to_server(source, request, at, piece.length, buffer + (at - transfer->offset));
        } else {
            errnum = take_piece(&piece, buffer + (at - transfer->offset));
        }
    }
    request_piece_done(request, errnum);
}

/* ---- Map ---- */

/* What of a plain piece is a hole of the file reads as zeroes. */
static guint32 look_at_file(BeImagePiece *piece)
{
    guint32 hole = BE_EXTENT_ZERO | (piece->raw ? BE_EXTENT_HOLE : 0);
    off_t start = (off_t)piece->offset;
    off_t data, end;

    if (!piece->sparse) {
        return 0;
    }
    data = lseek(piece->fd, start, SEEK_DATA);
    if (data < 0) {
        return errno == ENXIO ? hole : 0;
    }
    if (data > start) {
        piece->length = MIN(piece->length, (guint64)(data - start));
        return hole;
    }
    end = lseek(piece->fd, start, SEEK_HOLE);
    if (end > start) {
        piece->length = MIN(piece->length, (guint64)(end - start));
    }
    return 0;
}

static gboolean map_extents(ImageSource *source, guint64 offset, GArray *out, GError **error)
{
    while (offset < source->size && out->len < STEP_EXTENTS) {
        BeExtent extent = {.start = offset, .flags = 0};
        BeImagePiece piece;

        if (g_atomic_int_get(&source->cancelled)) {
            g_set_error(error, BE_ERROR, EIO, "the disk cannot be read any more");
            return FALSE;
        }
        be_image_map_find(source->map, offset, MIN(source->size - offset, STEP_BYTES), &piece);
        if (piece.kind == BE_IMAGE_ZERO) {
            extent.flags = BE_EXTENT_HOLE | BE_EXTENT_ZERO;
        } else if (piece.kind == BE_IMAGE_PLAIN) {
            extent.flags = look_at_file(&piece);
        }
        extent.length = piece.length;
        g_array_append_val(out, extent);
        offset += piece.length;
    }
    return TRUE;
}

static gboolean source_extents(gpointer data, BeExtentKind kind, guint64 offset, gint64 timeout_us,
                               GArray *out, GError **error)
{
    ImageSource *source = data;

    if (source->map && kind == BE_EXTENTS_ALLOCATION) {
        return map_extents(source, offset, out, error);
    }
    return server_open(source, error)
           && source->server_ops->extents(source->server, kind, offset, timeout_us, out, error);
}

/* ---- Open, read, end ---- */

static gboolean source_open(gpointer data, gint64 timeout_us, BeSourceLimits *ret_limits,
                            GError **error)
{
    ImageSource *source = data;
    g_autoptr(GError) map_error = NULL;

    source->timeout_us = timeout_us;
    source->map = be_image_map_open(source->chain, &map_error);
    if (source->map) {
        source->pool = g_thread_pool_new(serve, source, THREADS, FALSE, NULL);
        *ret_limits = (BeSourceLimits){.block_min = 1, .request_max = BE_READ_MAX};
        return TRUE;
    }
    if (map_error->code != EOPNOTSUPP) {
        g_propagate_error(error, g_steal_pointer(&map_error));
        return FALSE;
    }
    g_info("%s; qemu-nbd reads it", map_error->message);
    if (!server_open(source, error)) {
        return FALSE;
    }
    *ret_limits = source->server_limits;
    return TRUE;
}

static void source_pread(gpointer data, BeTransfer *transfer)
{
    ImageSource *source = data;

    if (!source->map) {
        source->server_ops->pread(source->server, transfer);
        return;
    }
    /* Fails only where a thread cannot be started; those that run take it then. */
    (void)g_thread_pool_push(source->pool, transfer, NULL);
}

static gboolean source_read_now(gpointer data, guint64 offset, guint32 length, gint64 timeout_us,
                                BeSourceNow sink, gpointer user)
{
    ImageSource *source = data;
    g_autofree guint8 *buffer = NULL;
    int errnum = 0;
    BeImagePiece piece;

    if (!source->map) {
        return server_is_open(source)
               && source->server_ops->read_now(source->server, offset, length, timeout_us, sink,
                                               user);
    }
    if (length > NOW_MAX) {
        return FALSE;
    }
    buffer = g_malloc(length);
    for (guint32 done = 0; done < length && errnum == 0; done += (guint32)piece.length) {
        be_image_map_find(source->map, offset + done, length - done, &piece);
        if (piece.kind == BE_IMAGE_OTHER) {
            return FALSE;
        }
        errnum = take_piece(&piece, buffer + done);
    }
    sink(buffer, errnum, user);
    return TRUE;
}

static void source_cancel(gpointer data)
{
    ImageSource *source = data;

    g_atomic_int_set(&source->cancelled, 1);
    source->server_ops->cancel(source->server);
}

/* First those who give work to the server, then the server, then what both use. */
static void source_close(gpointer data)
{
    ImageSource *source = data;

    if (source->pool) {
        g_thread_pool_free(source->pool, FALSE, TRUE);
    }
    source->server_ops->close(source->server);
    be_image_map_free(source->map);
    g_ptr_array_unref(source->chain);
    g_mutex_clear(&source->lock);
    g_free(source);
}

static const BeSourceOps image_ops = {
    .name = "image",
    .open = source_open,
    .pread = source_pread,
    .read_now = source_read_now,
    .extents = source_extents,
    .cancel = source_cancel,
    .close = source_close,
};

BeStream *be_stream_new_image_source(GPtrArray *chain, const BeNbdExport *server)
{
    ImageSource *source = g_new0(ImageSource, 1);

    source->chain = g_ptr_array_ref(chain);
    source->size = server->size;
    source->server = be_nbd_source_new(server, &source->server_ops);
    g_mutex_init(&source->lock);
    return be_stream_new(server->size, server->allocated, &image_ops, source);
}
