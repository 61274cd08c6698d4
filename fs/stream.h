/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * stream.h - files of point-in-time data.  Each function answers the request
 * it is given (transfer full), now or later.
 */
#pragma once

#include "fs/req.h"

/**
 * fs_stream_open: opens without starting anything; the first read does.
 */
void fs_stream_open(FsReq *req);
void fs_stream_read(FsReq *req);
void fs_stream_lseek(FsReq *req);
