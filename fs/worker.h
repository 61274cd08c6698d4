/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * worker.h - the threads that read requests from the kernel.
 */
#pragma once

#include "fs/private.h"

/**
 * fs_workers_start: the session is mounted.  Sets fs->workers.
 * @ready: called once, on one of them, when the kernel can use the mount; may be NULL
 */
void fs_workers_start(Fs *fs, void (*ready)(gpointer user), gpointer user);

/**
 * fs_workers_stop: ends them, after fs->over was set, and frees @all.  Waits for what
 * they are at.
 */
void fs_workers_stop(FsWorkers *all);
