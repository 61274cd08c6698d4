/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * control.h - control files: one write(2) is one command.
 */
#pragma once

#include "fs/req.h"

typedef struct FsControl FsControl;

FsControl *fs_control_new(void);
void fs_control_unref(FsControl *control);

/**
 * fs_control_write: runs the command that is written.  Answers the full size
 * when it succeeded, its errno when not.
 * @req: (transfer full): WRITE; req->size bytes are at @data, valid only now
 */
void fs_control_write(FsReq *req, const char *data);

/**
 * fs_control_read: the outcome of the command written through this open file,
 * from whatever offset the first read has; the usage when none was written.
 * @req: (transfer full)
 */
void fs_control_read(FsReq *req);
