/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * child-keeper.h - the thread that forks, hears and reaps all children.
 *
 * Private to child.c.
 */
#pragma once

#include "child-exec.h"
#include "child.h"

/**
 * BeChild: see child.h.
 */
struct BeChild {
    gatomicrefcount refs;      /* the caller's, and the keeper's while it runs */
    pid_t pid;                 /* constant after the start, as the next four */
    int pidfd;
    const char *name;          /* in messages */
    char *socket_path;         /* NULL: it has none */
    dev_t socket_dev;
    GMutex lock;
    GCond changed;             /* when it ended */
    ino_t socket_ino;          /* guarded by lock: what we made and shall remove; 0: none */
    int stderr_fd;             /* the keeper's alone */
    GString *output;           /* guarded by lock: the end of standard error */
    gboolean ended;            /* guarded by lock */
    gboolean stopped;          /* guarded by lock: we ended it */
    int status;                /* guarded by lock: from waitpid() */
};

/**
 * child_keeper_fork: forks @child, whose stderr_fd is set, to run @exec; blocks
 * until that is done.  The first call starts the thread.
 *
 * Returns: 0, or an errno.
 */
int child_keeper_fork(BeChild *child, const ChildExec *exec);

/**
 * child_unref: gives back a reference; the last one frees.
 */
void child_unref(BeChild *child);
