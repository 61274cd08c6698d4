/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * follow.h - events.follow: the one file whose reads wait for something to happen.
 */
#pragma once

#include "fs/req.h"

/**
 * fs_follow_read: answers with the events that follow, once there are any; with
 * the end of the file once the mount is ending.
 * @req: (transfer full)
 */
void fs_follow_read(FsReq *req);
