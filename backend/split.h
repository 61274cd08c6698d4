/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * split.h - a request of a stream of which another source reads parts; for sources that
 * are made of others.
 */
#pragma once

#include "backend/stream.h"

typedef struct BeSplit BeSplit;

/**
 * be_split_new:
 * @ended: (nullable): called with @user after the transfer is done()
 *
 * Returns: with one piece, the caller's own, so that it cannot end meanwhile.
 */
BeSplit *be_split_new(BeTransfer *transfer, void (*ended)(gpointer user), gpointer user);
BeTransfer *be_split_transfer(const BeSplit *split);

/**
 * be_split_submit: has @source read a part of the request, in pieces of at most
 * @request_max bytes.  Blocks no more than its pread(), which ends them.
 */
void be_split_submit(BeSplit *split, const BeSourceOps *ops, gpointer source, guint32 request_max,
                     guint64 offset, guint64 length, guint8 *buffer);

/**
 * be_split_end: the caller's piece has ended; the last one ends the request with the
 * error of any, and frees @split.
 */
void be_split_end(BeSplit *split, int errnum);

/**
 * be_split_leave: the same without an error, where done() must not be called.
 * Returns: FALSE: it was the last piece, and is the caller's again.
 */
gboolean be_split_leave(BeSplit *split);
