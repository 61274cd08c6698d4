/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * split.c - a request of which another source reads parts; see split.h.
 *
 * Pieces end on any thread; what they share is atomic.
 */
#include "backend/split.h"

struct BeSplit {
    BeTransfer *transfer;
    void (*ended)(gpointer user);
    gpointer user;
    gint pieces;               /* atomic: at the other source, and the caller's own */
    gint errnum;               /* atomic: of the piece that failed last */
};

typedef struct {
    BeTransfer transfer;       /* first: the other source knows only this */
    BeSplit *split;
} Piece;

BeSplit *be_split_new(BeTransfer *transfer, void (*ended)(gpointer user), gpointer user)
{
    BeSplit *split = g_new(BeSplit, 1);

    *split = (BeSplit){.transfer = transfer, .ended = ended, .user = user, .pieces = 1};
    return split;
}

BeTransfer *be_split_transfer(const BeSplit *split)
{
    return split->transfer;
}

void be_split_end(BeSplit *split, int errnum)
{
    if (errnum) {
        g_atomic_int_set(&split->errnum, errnum);
    }
    if (!g_atomic_int_dec_and_test(&split->pieces)) {
        return;
    }
    split->transfer->done(split->transfer, g_atomic_int_get(&split->errnum));
    if (split->ended) {
        split->ended(split->user);
    }
    g_free(split);
}

gboolean be_split_leave(BeSplit *split)
{
    gboolean left = !g_atomic_int_dec_and_test(&split->pieces);

    if (!left) {
        g_atomic_int_set(&split->pieces, 1);
    }
    return left;
}

static void piece_done(BeTransfer *transfer, int errnum)
{
    Piece *piece = (Piece *)transfer;
    BeSplit *split = piece->split;

    g_free(piece);
    be_split_end(split, errnum);
}

void be_split_submit(BeSplit *split, const BeSourceOps *ops, gpointer source, guint32 request_max,
                     guint64 offset, guint64 length, guint8 *buffer)
{
    while (length > 0) {
        guint32 part = (guint32)MIN(length, request_max);
        Piece *piece = g_new0(Piece, 1);

        piece->split = split;
        piece->transfer.buffer = buffer;
        piece->transfer.offset = offset;
        piece->transfer.length = part;
        piece->transfer.done = piece_done;
        g_atomic_int_inc(&split->pieces);
        ops->pread(source, &piece->transfer);
        offset += part;
        buffer += part;
        length -= part;
    }
}
