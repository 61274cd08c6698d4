/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * text.h - the text of an ATTR row: made once for stat and open together.
 */
#pragma once

#include "fs/def.h"

typedef struct FsText FsText;
typedef struct FsReq FsReq;

FsText *fs_text_new(void);
void fs_text_free(FsText *text);

/**
 * FsTextDone: @bytes, or NULL with @error; both belong to the caller.
 * @req: (transfer full)
 */
typedef void (*FsTextDone)(FsReq *req, GBytes *bytes, const GError *error);

/**
 * FsTextUse: what a text is wanted for.
 */
typedef enum {
    FS_TEXT_STAT,              /* its size */
    FS_TEXT_OPEN,              /* itself */
} FsTextUse;

/**
 * fs_text_get: makes the text of the request's node and calls @done, before it
 * returns where the row has `show`, later on a backend thread where it has
 * `fetch`.  A fetched text is kept for 0.5 s, and requests that come while it
 * is fetched share it.  When the host does not answer within 1 s (FS_SLOW: 5 s),
 * @done gets the last text there was, on the timer thread; ETIMEDOUT when there
 * was none.
 * @req: (transfer full)
 *
 * For 0.5 s after an open the size is that of the text that was opened, so that
 * who opens, asks for the size and reads (cp) gets the whole and no more.
 */
void fs_text_get(FsReq *req, FsTextUse use, FsTextDone done);

/**
 * fs_text_read, fs_text_lseek: of an open text (req->file).  Answer the request
 * (transfer full) at once.
 */
void fs_text_read(FsReq *req);
void fs_text_lseek(FsReq *req);
