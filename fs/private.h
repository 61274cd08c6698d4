/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * private.h - what the files of fs/ share: the mount itself.
 *
 * Threads of fs/:
 *   fuse-N    read requests from the kernel, answer what is known, submit the
 *             rest; may wait for a short mutex, or for one small random read
 *   fs-timer  a GMainContext: deadlines and interrupts
 * and, calling in: the backend's workers, with the ends of jobs, texts, reads.
 *
 * Locks, outer first; none is held across a reply, a library or backend call,
 * a callback or a log line:
 *   node table > action > text > guard > journal of failures and events
 */
#pragma once

#include "fs/def.h"
#include "fs/failures.h"
#include "fs/feed.h"
#include "fs/guard.h"
#include "fs/node.h"

struct fuse_session;
typedef struct FsWorkers FsWorkers;

struct Fs {
    Be *be;
    char *mountpoint;
    char *version;
    char *fuse_options;
    uid_t uid;
    gid_t gid;
    gid_t data_gid;
    mode_t umask;
    gboolean read_only;
    gboolean allow_other;
    gboolean mkdir_off;
    FsFilesMode guest_files;
    gboolean links_raw;
    gboolean guest_owner;      /* the guest's files are shown as the mount owner's */
    gboolean debug;
    guint action_timeout;      /* seconds */
    gint64 started_us;

    struct fuse_session *session;
    FsNodeTable *nodes;
    FsFailures *failures;
    FsFeed *feed;
    FsGuard *guard;

    GMainContext *timer_context;
    GMainLoop *timer_loop;
    GThread *timer_thread;
    gint timer_over;           /* atomic: the thread has ended, nothing is scheduled any more */

    GMutex domains_lock;
    FsListing *domains;        /* guarded by domains_lock; of domains_generation */
    guint64 domains_generation;

    GMutex files_lock;
    GHashTable *files;         /* guarded by files_lock; set of open FsFile */

    GMutex waiting_lock;
    GQueue waiting;            /* guarded by waiting_lock; of FsReq without an answer */

    FsWorkers *workers;        /* from fs_loop() to fs_finish() */
    GMutex exit_lock;
    GCond exit_cond;           /* exiting was set */

    GMutex commands_lock;
    GHashTable *commands;      /* guarded by commands_lock; ids of objects whose control is busy */

    gint exiting;              /* atomic: requests are answered with EIO */
    gint over;                 /* atomic: requests are not read any more */
    gint kernel_ready;         /* atomic: INIT was answered */
    gint requests;             /* atomic counters for stats */
    gint open_files;
    gint streamed_files;       /* atomic: those that are read once, from start to end */
};

/**
 * fs_timer_add: calls @func on the timer thread after @delay_ms.
 * Returns: a source to destroy and unref, never NULL.
 */
GSource *fs_timer_add(Fs *fs, guint delay_ms, GSourceFunc func, gpointer data,
                      GDestroyNotify destroy);

