/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * wait.h - waiting on a thread that has other work too: be_thread_on_wait().
 */
#pragma once

#include "backend/backend.h"

/**
 * be_wait_fd: what is to be looked at together with what is waited for, or -1.
 */
int be_wait_fd(void);

/**
 * be_wait_told: it became readable, or the wait is of a kind that cannot look at it.
 */
void be_wait_told(void);

/**
 * be_poll_set_busy: for be_poll(), in the whole process; 0, as at first: it sleeps at once.
 */
void be_poll_set_busy(guint us);

/**
 * be_pread_whole: fills @buffer from a file, as far as it can be from memory; before it
 * waits for the disk it says so.
 * Returns: 0, or EIO: also for a file that became shorter.
 */
int be_pread_whole(int fd, void *buffer, gsize length, guint64 offset);

/**
 * be_pread_memory: what of it is in memory, from @offset on.  Never waits for a disk.
 * Returns: the bytes it got; 0 from a file system that cannot tell.
 */
gsize be_pread_memory(int fd, void *buffer, gsize length, guint64 offset);
