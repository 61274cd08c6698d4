/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * guestfs-helper.h - vmsnapfs-files: the program around one libguestfs handle.
 *
 * A program of its own, because libguestfs decodes what an appliance says that
 * has looked at a hostile disk, and because no call of it has a time limit: the
 * daemon kills this process, and with it everything it has started.  One thread,
 * and a second one while the appliance is launched (guestfs-volume.c) and while bytes
 * are sent (guestfs-read.c).
 */
#pragma once

#include <glib.h>
#include <guestfs.h>

#include "backend/files-wire.h"

typedef struct {
    char *name;                /* as the daemon says it; "root" for the first */
    char *device;              /* NULL for the first */
    char *type;                /* "ext4"; "" for the first */
    char *mountpoint;          /* where it is in the appliance */
    gboolean mounted;
    int errnum;                /* 0, or why it is not to be mounted */
    char *text;
} Volume;

typedef struct {
    int fd;                    /* of the daemon */
    guestfs_h *guestfs;
    gboolean tcg;
    char *cache_dir;           /* of the appliance */
    GPtrArray *targets;        /* of char *: the disks' names, in their order */
    GPtrArray *volumes;        /* of Volume; empty before the start */
    GThread *sender;           /* or NULL; of the bytes of a long read */
} Helper;

/* ---- guestfs-main.c ---- */

/**
 * helper_send: one frame, after what is being sent; ends the process when the daemon
 * is gone.
 * helper_flush: waits for the thread that sends.
 * helper_send_frame: for that thread.
 */
void helper_flush(Helper *helper);
void helper_send_frame(Helper *helper, FilesKind kind, guint32 id, int errnum, const void *data,
                       gsize length);
void helper_send(Helper *helper, FilesKind kind, guint32 id, int errnum, const void *data,
                 gsize length);

/**
 * helper_fail: FILES_END with an errno and a sentence.
 */
void helper_fail(Helper *helper, guint32 id, int errnum, const char *format, ...)
    G_GNUC_PRINTF(4, 5);

/**
 * helper_fail_guestfs: the same with libguestfs's last error; ends the process when the
 * appliance is gone.
 */
void helper_fail_guestfs(Helper *helper, guint32 id, const char *what);

/* ---- guestfs-volume.c ---- */

void helper_start(Helper *helper, guint32 id);

/**
 * helper_resolve: the path in the appliance of a path of the daemon's; mounts
 * its file system when that has not been done.
 * Returns: the path, to be freed; NULL when the failure was sent.
 */
char *helper_resolve(Helper *helper, guint32 id, const char *path);

/* ---- guestfs-list.c ---- */

void helper_stat(Helper *helper, guint32 id, const char *path, const char *volume_root);
void helper_list(Helper *helper, guint32 id, const char *path, const char *volume_root);

/* ---- guestfs-read.c ---- */

void helper_xattr(Helper *helper, guint32 id, const char *path);
void helper_xattrs(Helper *helper, guint32 id, const char *path);
void helper_read(Helper *helper, guint32 id, const char *path, guint64 offset, guint64 size);

/* ---- guestfs-jail.c ---- */

/**
 * jail_enter: forks; the parent waits for the end of the child and ends as it
 * did, the child returns in namespaces of its own: no network, no processes but
 * its own, and a root with nothing in it but programs, /tmp and @cache_dir on
 * JAIL_CACHE, all but the last two read-only.  Ends the process with a sentence
 * on standard error where that cannot be had.
 */
#define JAIL_CACHE "/cache"
void jail_enter(const char *cache_dir);
