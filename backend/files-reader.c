/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * files-reader.c - reads of one open file of a guest, with read-ahead.
 *
 * A file is fetched in pieces: one that is read in order in pieces that grow,
 * the next one asked for before the last is there, so that the appliance
 * never waits; any other read in a small one.  A read waits for the pieces
 * that it covers.
 *
 * Any thread; the pieces come on the appliance's thread.  The reader's lock is
 * held for list work and for copying at most 1 MiB.
 */
#include <errno.h>
#include <string.h>

#include "backend/files-priv.h"

#define READ_MAX (1024u * 1024)
#define PIECE_SMALL (128u * 1024)
#define PIECE_FIRST (1024u * 1024)
#define PIECE_LARGE (8u * 1024 * 1024)

/* The kernel's own read-ahead comes a little out of order. */
#define SLACK (1024u * 1024)

/* Of all readers together; beyond it nobody reads ahead. */
#define BYTES_MAX (128u * 1024 * 1024)

#define PIECES_MAX 8

static gsize bytes_held;       /* atomic */

typedef struct {
    FilesCall call;            /* first */
    BeFileReader *reader;      /* a reference */
    gatomicrefcount refs;      /* the call's, and the reader's list */
    guint64 offset;
    gsize size;
    guint8 *bytes;             /* guarded by the reader's lock, as all below */
    gsize have;
    gboolean over;
    int errnum;
} Piece;

typedef struct {
    guint64 offset;
    gsize length;
    BeReadDone done;
    gpointer user;
    GList link;
} Waiter;

struct BeFileReader {
    gatomicrefcount refs;
    BeFiles *files;
    char *path;
    guint64 size;

    GMutex lock;
    GPtrArray *pieces;         /* of Piece, the oldest first; guarded by lock, as all below */
    GQueue waiters;            /* of Waiter */
    guint64 next;              /* where a reader in order would go on */
    gsize ahead;               /* size of the next piece; 0: not in order */
};

/* ---- Life -------------------------------------------------------------------- */

static void piece_unref(gpointer data)
{
    Piece *piece = data;

    if (g_atomic_ref_count_dec(&piece->refs)) {
        g_atomic_pointer_add(&bytes_held, -(gssize)piece->size);
        g_free(piece->bytes);
        g_free(piece);
    }
}

BeFileReader *be_file_reader_new(BeFiles *files, const char *path, guint64 size)
{
    BeFileReader *reader = g_new0(BeFileReader, 1);

    g_atomic_ref_count_init(&reader->refs);
    g_mutex_init(&reader->lock);
    reader->files = be_files_ref(files);
    reader->path = g_strdup(path);
    reader->size = size;
    reader->pieces = g_ptr_array_new_with_free_func(piece_unref);
    return reader;
}

static void reader_unref(BeFileReader *reader)
{
    if (!g_atomic_ref_count_dec(&reader->refs)) {
        return;
    }
    g_ptr_array_unref(reader->pieces);
    be_files_unref(reader->files);
    g_mutex_clear(&reader->lock);
    g_free(reader->path);
    g_free(reader);
}

void be_file_reader_free(BeFileReader *reader)
{
    if (reader) {
        reader_unref(reader);
    }
}

/* ---- Answers ----------------------------------------------------------------- */

static const Piece *piece_at_locked(const BeFileReader *reader, guint64 offset)
{
    for (guint i = reader->pieces->len; i-- > 0;) {
        const Piece *piece = g_ptr_array_index(reader->pieces, i);

        if (offset >= piece->offset && offset - piece->offset < piece->size) {
            return piece;
        }
    }
    return NULL;
}

/*
 * What there is for a waiter: TRUE when he can be answered: with bytes copied to
 * @bytes, or with *ret_errnum set.
 */
static gboolean gather_locked(const BeFileReader *reader, const Waiter *waiter, guint8 *bytes,
                              int *ret_errnum)
{
    gsize have = 0;

    *ret_errnum = 0;
    while (have < waiter->length) {
        guint64 offset = waiter->offset + have;
        const Piece *piece = piece_at_locked(reader, offset);
        gsize start, part;

        if (!piece) {
            return FALSE;
        }
        start = (gsize)(offset - piece->offset);
        part = piece->have > start ? MIN(piece->have - start, waiter->length - have) : 0;
        if (part > 0) {
            memcpy(bytes + have, piece->bytes + start, part);
            have += part;
        } else if (piece->over) {
            /* Its end came too early: the file is shorter than its directory says. */
            *ret_errnum = piece->errnum ? piece->errnum : EIO;
            return TRUE;
        } else {
            return FALSE;
        }
    }
    return TRUE;
}

static void answer(Waiter *waiter, guint8 *bytes, int errnum)
{
    struct iovec iov = {bytes, waiter->length};

    waiter->done(errnum ? NULL : &iov, errnum ? 0 : 1, errnum, waiter->user);
    g_free(waiter);
}

/* Answers all that can be answered now. */
static void serve_waiters(BeFileReader *reader)
{
    g_autofree guint8 *bytes = g_malloc(READ_MAX);
    Waiter *ready;

    do {
        int errnum = 0;

        ready = NULL;
        g_mutex_lock(&reader->lock);
        for (GList *link = reader->waiters.head; link && !ready; link = link->next) {
            if (gather_locked(reader, link->data, bytes, &errnum)) {
                ready = link->data;
                g_queue_unlink(&reader->waiters, link);
            }
        }
        g_mutex_unlock(&reader->lock);
        if (ready) {
            answer(ready, bytes, errnum);
        }
    } while (ready);
}

/* ---- Pieces ------------------------------------------------------------------ */

static gboolean piece_more(FilesCall *call, const guint8 *data, gsize length)
{
    Piece *piece = (Piece *)call;
    gboolean fits;

    g_mutex_lock(&piece->reader->lock);
    fits = length <= piece->size - piece->have;
    if (fits) {
        memcpy(piece->bytes + piece->have, data, length);
        piece->have += length;
    }
    g_mutex_unlock(&piece->reader->lock);
    if (fits) {
        serve_waiters(piece->reader);
    }
    return fits;
}

static void piece_done(FilesCall *call, const guint8 *data G_GNUC_UNUSED,
                       gsize length G_GNUC_UNUSED, const GError *error)
{
    Piece *piece = (Piece *)call;
    BeFileReader *reader = piece->reader;

    g_mutex_lock(&reader->lock);
    piece->over = TRUE;
    piece->errnum = error ? error->code : 0;
    reader->ahead = error ? 0 : reader->ahead;
    g_mutex_unlock(&reader->lock);
    serve_waiters(reader);
    piece_unref(piece);
    reader_unref(reader);
}

static Piece *piece_new_locked(BeFileReader *reader, guint64 offset, gsize size)
{
    Piece *piece = g_new0(Piece, 1);

    g_atomic_ref_count_init(&piece->refs);
    g_atomic_ref_count_inc(&piece->refs);
    g_atomic_ref_count_inc(&reader->refs);
    piece->reader = reader;
    piece->offset = offset;
    piece->size = (gsize)MIN((guint64)size, reader->size - offset);
    piece->bytes = g_malloc(piece->size);
    g_atomic_pointer_add(&bytes_held, (gssize)piece->size);
    piece->call.op = FILES_OP_READ;
    piece->call.path = g_strdup(reader->path);
    piece->call.offset = offset;
    piece->call.size = piece->size;
    piece->call.left = piece->size;
    piece->call.more = piece_more;
    piece->call.done = piece_done;
    g_ptr_array_add(reader->pieces, piece);
    return piece;
}

static gboolean is_awaited_locked(const BeFileReader *reader, const Piece *piece)
{
    for (const GList *link = reader->waiters.head; link; link = link->next) {
        const Waiter *waiter = link->data;

        if (waiter->offset < piece->offset + piece->size
            && piece->offset < waiter->offset + waiter->length) {
            return TRUE;
        }
    }
    return FALSE;
}

/* A failure is told to those who waited for it; whoever comes later asks again. */
static void drop_old_locked(BeFileReader *reader, guint64 offset)
{
    for (guint i = 0; i < reader->pieces->len;) {
        const Piece *piece = g_ptr_array_index(reader->pieces, i);
        gboolean passed = piece->offset + piece->size + SLACK <= offset;
        gboolean useless = piece->errnum || passed || reader->pieces->len > PIECES_MAX;

        if (piece->over && useless && !is_awaited_locked(reader, piece)) {
            g_ptr_array_remove_index(reader->pieces, i);
        } else {
            i++;
        }
    }
}

static gsize next_size_locked(BeFileReader *reader)
{
    gsize size = reader->ahead;

    if ((gsize)g_atomic_pointer_get(&bytes_held) > BYTES_MAX) {
        return PIECE_SMALL * 4;
    }
    reader->ahead = MIN(reader->ahead * 2, PIECE_LARGE);
    return size;
}

/* Starts what a read needs and there is not, and in order what comes next. */
static void plan_locked(BeFileReader *reader, const Waiter *waiter, GPtrArray *started)
{
    guint64 end = waiter->offset + waiter->length;
    gboolean in_order =
        waiter->offset <= reader->next + SLACK && waiter->offset + SLACK >= reader->next
        && (reader->next > 0 || waiter->offset == 0);
    guint64 at = waiter->offset;
    const Piece *piece = NULL;

    if (in_order && reader->ahead == 0) {
        reader->ahead = PIECE_FIRST;
    } else if (!in_order) {
        reader->ahead = 0;
    }
    while (at < end) {
        piece = piece_at_locked(reader, at);
        if (!piece) {
            gsize least = MAX(PIECE_SMALL, (gsize)(end - at));

            piece = piece_new_locked(reader, at,
                                     reader->ahead ? MAX(least, next_size_locked(reader)) : least);
            g_ptr_array_add(started, (gpointer)piece);
        }
        at = piece->offset + piece->size;
    }
    /*
     * The next one is due as soon as the last is read from, or the appliance would wait for
     * the reader; but not yet for who looks at the beginning alone.
     */
    if (piece && reader->ahead && reader->next > 0 && at < reader->size
        && !piece_at_locked(reader, at)
        && (gsize)g_atomic_pointer_get(&bytes_held) < BYTES_MAX) {
        g_ptr_array_add(started, piece_new_locked(reader, at, next_size_locked(reader)));
    }
    reader->next = end;
}

void be_file_reader_read(BeFileReader *reader, guint64 offset, gsize length, BeReadDone done,
                         gpointer user)
{
    g_autoptr(GPtrArray) started = g_ptr_array_new();
    struct iovec nothing = {NULL, 0};
    Waiter *waiter;

    if (offset >= reader->size || length == 0) {
        done(&nothing, 1, 0, user);
        return;
    }
    if (length > READ_MAX) {
        done(NULL, 0, EINVAL, user);
        return;
    }
    waiter = g_new0(Waiter, 1);
    waiter->offset = offset;
    waiter->length = (gsize)MIN((guint64)length, reader->size - offset);
    waiter->done = done;
    waiter->user = user;
    waiter->link.data = waiter;
    g_atomic_ref_count_inc(&reader->refs);
    g_mutex_lock(&reader->lock);
    drop_old_locked(reader, offset);
    plan_locked(reader, waiter, started);
    g_queue_push_tail_link(&reader->waiters, &waiter->link);
    g_mutex_unlock(&reader->lock);
    for (guint i = 0; i < started->len; i++) {
        Piece *piece = g_ptr_array_index(started, i);

        be_files_submit(reader->files, &piece->call);
    }
    serve_waiters(reader);
    reader_unref(reader);
}
