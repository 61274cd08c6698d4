/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * stream.h - files of point-in-time data.  Each function answers the request
 * it is given (transfer full), now or later.
 */
#pragma once

#include "fs/req.h"

/**
 * fs_stream_prepare: goes on with @resume when the size of the request's node is
 * known: at once, or on a backend thread where the row has `prepare`.  Answers
 * with its error, and with ETIMEDOUT after 1 s (FS_SLOW: 5 s).  The host goes on,
 * so asking again is worth it.
 * @req: (transfer full): of a node of any kind
 */
void fs_stream_prepare(FsReq *req, void (*resume)(FsReq *req));

/**
 * fs_stream_open: opens without starting anything, the first read does; but a
 * stream that has to be prepared is.
 */
void fs_stream_open(FsReq *req);
void fs_stream_read(FsReq *req);
void fs_stream_lseek(FsReq *req);
