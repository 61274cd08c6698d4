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
#include "backend/hold.h"
#include "backend/image-map.h"
#include "backend/lease.h"
#include "backend/split.h"
#include "backend/wait.h"

#define THREADS 4
#define NOW_MAX (64u * 1024)

/* Of what is in memory; cp and the kernel's read-ahead ask for no more. */
#define NOW_MEMORY_MAX (1024u * 1024)

/* The extents of one step of the map, and how much of the disk one look at it takes. */
#define STEP_EXTENTS 4096u
#define STEP_BYTES (G_GUINT64_CONSTANT(1) << 30)

typedef struct {
    guint64 size;
    gint cancelled;            /* atomic */
    gint64 timeout_us;         /* constant after open() */
    gboolean straight;         /* the same; FALSE: all of it is the server's */
    GPtrArray *chain;          /* of BeImage */
    gboolean (*check)(gpointer user, GError **error); /* NULL: none */
    gpointer check_user;
    BeHold *hold;              /* of BeImageMap: the images, open and locked */
    gboolean rests;            /* while nobody has it open */
    GThreadPool *pool;         /* of BeTransfer; NULL until open() */

    const BeSourceOps *server_ops;
    gpointer server;
    GMutex lock;
    gboolean server_open;      /* guarded by lock */
    BeSourceLimits server_limits; /* constant once it is open */
} ImageSource;

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

/* qemu-nbd takes any range of an image in a file; else this fails, and is not wrong. */
static gboolean server_takes(const ImageSource *source, guint64 offset, guint64 length)
{
    guint32 block = source->server_limits.block_min;

    return offset % block == 0 && (length % block == 0 || offset + length == source->size);
}

/* Returns: 0 or EIO. */
static int submit_to_server(ImageSource *source, BeSplit *split, guint64 offset, guint64 length,
                            guint8 *buffer)
{
    g_autoptr(GError) error = NULL;

    if (!server_open(source, &error) || !server_takes(source, offset, length)) {
        g_debug("image: %s", error ? error->message : "the server wants larger blocks");
        return EIO;
    }
    be_split_submit(split, source->server_ops, source->server, source->server_limits.request_max,
                    offset, length, buffer);
    return 0;
}

/* ---- The files ---- */

static void lease(const GPtrArray *chain, void (*change)(const BeImage *image))
{
    for (guint i = 0; i < chain->len; i++) {
        change(g_ptr_array_index(chain, i));
    }
}

/*
 * Whoever writes asks for the lease first, and whoever reads looks at the images under
 * it: so one of the two sees the other.
 */
static gpointer open_images(gpointer user, GError **error)
{
    const ImageSource *source = user;
    BeImageMap *map = NULL;

    lease(source->chain, be_lease_take);
    if (!source->check || source->check(source->check_user, error)) {
        map = be_image_map_open(source->chain, error);
    }
    lease(source->chain, be_lease_drop);
    return map;
}

static void close_images(gpointer map)
{
    be_image_map_free(map);
}

static const BeHoldOps hold_ops = {.open = open_images, .close = close_images};

/* Returns: 0 or EIO; for OTHER nothing is done. */
static int take_piece(const BeImagePiece *piece, guint8 *buffer)
{
    if (piece->kind == BE_IMAGE_ZERO) {
        memset(buffer, 0, piece->length);
    }
    return piece->kind == BE_IMAGE_PLAIN
               ? be_pread_whole(piece->fd, buffer, piece->length, piece->offset)
               : 0;
}

/* Joins what follows one another for the server, cluster by cluster. */
static guint64 other_length(BeImageMap *map, guint64 offset, guint64 end)
{
    BeImagePiece piece = {.kind = BE_IMAGE_OTHER, .length = 0};
    guint64 at = offset;

    while (at < end) {
        be_image_map_find(map, at, end - at, &piece);
        if (piece.kind != BE_IMAGE_OTHER) {
            break;
        }
        at += piece.length;
    }
    return at - offset;
}

static int serve_pieces(ImageSource *source, BeImageMap *map, BeSplit *split)
{
    const BeTransfer *transfer = be_split_transfer(split);
    guint64 end = transfer->offset + transfer->length;
    int errnum = 0;
    BeImagePiece piece;

    for (guint64 at = transfer->offset; at < end && errnum == 0; at += piece.length) {
        guint8 *buffer = (guint8 *)transfer->buffer + (at - transfer->offset);

        if (g_atomic_int_get(&source->cancelled)) {
            return EIO;
        }
        be_image_map_find(map, at, end - at, &piece);
        if (piece.kind == BE_IMAGE_OTHER) {
            piece.length = other_length(map, at, end);
            errnum = submit_to_server(source, split, at, piece.length, buffer);
        } else {
            errnum = take_piece(&piece, buffer);
        }
    }
    return errnum;
}

static char rest;

static void serve(gpointer item, gpointer user)
{
    ImageSource *source = user;
    g_autoptr(GError) error = NULL;
    BeImageMap *map;
    BeSplit *split;
    int errnum = EIO;

    if (item == &rest) {
        be_hold_rest(source->hold);
        return;
    }
    split = be_split_new(item, NULL, NULL);
    map = be_hold_take(source->hold, &error);
    if (map) {
        errnum = serve_pieces(source, map, split);
        be_hold_give(source->hold);
    } else {
        g_info("image: %s", error->message);
    }
    be_split_end(split, errnum);
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

static gboolean map_extents(ImageSource *source, BeImageMap *map, guint64 offset, GArray *out,
                            GError **error)
{
    while (offset < source->size && out->len < STEP_EXTENTS) {
        BeExtent extent = {.start = offset, .flags = 0};
        BeImagePiece piece;

        if (g_atomic_int_get(&source->cancelled)) {
            g_set_error(error, BE_ERROR, EIO, "the disk cannot be read any more");
            return FALSE;
        }
        be_image_map_find(map, offset, MIN(source->size - offset, STEP_BYTES), &piece);
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

    if (source->straight && kind == BE_EXTENTS_ALLOCATION) {
        BeImageMap *map = be_hold_take(source->hold, error);
        gboolean good = map && map_extents(source, map, offset, out, error);

        if (map) {
            be_hold_give(source->hold);
        }
        return good;
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
    if (be_hold_take(source->hold, &map_error)) {
        be_hold_give(source->hold);
        source->straight = TRUE;
        source->pool = g_thread_pool_new(serve, source, THREADS, FALSE, NULL);
        *ret_limits = (BeSourceLimits){.block_min = 1, .request_max = BE_READ_MAX,
                                       .now_max = NOW_MEMORY_MAX};
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

    if (!source->straight) {
        source->server_ops->pread(source->server, transfer);
        return;
    }
    /* Fails only where a thread cannot be started; those that run take it then. */
    (void)g_thread_pool_push(source->pool, transfer, NULL);
}

/* Of each thread of readers: the same memory again and again stays in its cache. */
static GPrivate now_buffer = G_PRIVATE_INIT(g_free);

static guint8 *now_buffer_get(void)
{
    guint8 *buffer = g_private_get(&now_buffer);

    if (!buffer) {
        buffer = g_malloc(NOW_MEMORY_MAX);
        g_private_set(&now_buffer, buffer);
    }
    return buffer;
}

/* A large piece is taken only when that needs no disk.  Returns: FALSE: it does. */
static gboolean take_piece_now(const BeImagePiece *piece, guint8 *buffer, gboolean small,
                               int *ret_errnum)
{
    if (small || piece->kind != BE_IMAGE_PLAIN) {
        *ret_errnum = take_piece(piece, buffer);
        return TRUE;
    }
    return be_pread_memory(piece->fd, buffer, piece->length, piece->offset) == piece->length;
}

/* Returns: whether @sink was called: not when the server has a part of it, nor when a
 * large one is not in memory. */
static gboolean read_plain(BeImageMap *map, guint64 offset, guint32 length, BeSourceNow sink,
                           gpointer user)
{
    guint8 *buffer = now_buffer_get();
    int errnum = 0;
    BeImagePiece piece;

    for (guint32 done = 0; done < length && errnum == 0; done += (guint32)piece.length) {
        be_image_map_find(map, offset + done, length - done, &piece);
        if (piece.kind == BE_IMAGE_OTHER
            || !take_piece_now(&piece, buffer + done, length <= NOW_MAX, &errnum)) {
            return FALSE;
        }
    }
    sink(buffer, errnum, user);
    return TRUE;
}

static gboolean source_read_now(gpointer data, guint64 offset, guint32 length, gint64 timeout_us,
                                BeSourceNow sink, gpointer user)
{
    ImageSource *source = data;
    BeImageMap *map;
    gboolean done;

    if (!source->straight) {
        return server_is_open(source)
               && source->server_ops->read_now(source->server, offset, length, timeout_us, sink,
                                               user);
    }
    map = length <= NOW_MEMORY_MAX ? be_hold_take_open(source->hold) : NULL;
    if (!map) {
        return FALSE;
    }
    done = read_plain(map, offset, length, sink, user);
    be_hold_give(source->hold);
    return done;
}

/* One of the threads does it: this one must not block. */
static void source_unread(gpointer data)
{
    ImageSource *source = data;

    if (source->rests && source->straight) {
        (void)g_thread_pool_push(source->pool, &rest, NULL);
    }
}

static void source_cancel(gpointer data)
{
    ImageSource *source = data;

    g_atomic_int_set(&source->cancelled, 1);
    source->server_ops->cancel(source->server);
}

/* First those who give work to the server, whose end frees what check() looks at. */
static void source_close(gpointer data)
{
    ImageSource *source = data;

    if (source->pool) {
        g_thread_pool_free(source->pool, FALSE, TRUE);
    }
    be_hold_free(source->hold);
    g_ptr_array_unref(source->chain);
    source->server_ops->close(source->server);
    g_mutex_clear(&source->lock);
    g_free(source);
}

static const BeSourceOps image_ops = {
    .name = "image",
    .open = source_open,
    .pread = source_pread,
    .read_now = source_read_now,
    .extents = source_extents,
    .unread = source_unread,
    .cancel = source_cancel,
    .close = source_close,
};

BeStream *be_stream_new_image_source(const BeImageSource *images, gboolean rests,
                                     const BeNbdExport *server)
{
    ImageSource *source = g_new0(ImageSource, 1);

    source->chain = g_ptr_array_ref(images->chain);
    source->check = images->check;
    source->check_user = images->check_user;
    source->hold = be_hold_new(&hold_ops, source);
    source->rests = rests;
    source->size = server->size;
    source->server = be_nbd_source_new(server, &source->server_ops);
    g_mutex_init(&source->lock);
    return be_stream_new(server->size, server->allocated, &image_ops, source);
}
