/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * fs.h - the file system as the programs in mountd/ see it.
 *
 * Order of life: fs_new(), fs_mount(), [fork], be_start(), fs_loop(), be_stop(),
 * fs_finish(), fs_unmount(), fs_free().  All from the main thread, except fs_exit().
 */
#pragma once

#include <glib.h>
#include <stdio.h>
#include <sys/types.h>

#include "backend/backend.h"

typedef struct Fs Fs;

/**
 * FsFilesMode: the directories `files` with the guest's own files.
 */
typedef enum {
    FS_FILES_HIDDEN,           /* open by name, readdir does not list them */
    FS_FILES_LISTED,
    FS_FILES_OFF,
} FsFilesMode;

/**
 * FsConfig: how the tree shows itself; strings are copied.
 */
typedef struct {
    const char *mountpoint;
    const char *version;       /* shown in .vmsnapfs/version */
    uid_t uid;                 /* owner of what nobody in particular made */
    gid_t gid;
    gid_t data_gid;            /* group of the data files; (gid_t)-1: gid */
    mode_t umask;              /* bits taken from the table's modes */
    gboolean read_only;        /* -o ro: nothing can be made, ended or commanded */
    gboolean allow_other;
    gboolean mkdir_off;        /* -o mkdir=off: only the control files make objects */
    FsFilesMode files;
    gboolean links_raw;        /* links of a guest show its own text, wherever it leads */
    gboolean debug;            /* log each request */
    guint action_timeout;      /* seconds until an action answers ETIMEDOUT; 0: 30 */
    const char *fuse_options;  /* further options for the kernel, comma separated, or NULL */
} FsConfig;

/**
 * fs_new: Returns: a file system over @be, which must outlive it; sets itself
 * as the observer of @be.  Starts no thread.
 */
Fs *fs_new(const FsConfig *config, Be *be, GError **error);

/**
 * fs_mount: mounts.  Blocks on fusermount3 or mount(2).
 * Returns: FALSE with the errno of the failure (EBUSY, EACCES, ENOENT...).
 */
gboolean fs_mount(Fs *fs, GError **error);

/**
 * fs_loop: serves the kernel until it is unmounted or fs_exit() is called.
 * @ready: called once, from a worker thread, when the kernel has been answered
 *   for the first time (FUSE INIT); may be NULL
 *
 * Starts all threads of the file system.  After the return they go on to answer,
 * so that nobody waits for the end of the daemon: what comes now gets EIO at once,
 * what is being worked on EIO soon, unless be_stop() ends it before.
 */
void fs_loop(Fs *fs, void (*ready)(gpointer user), gpointer user);

/**
 * fs_finish: ends the threads that read the kernel's requests.  Harmless when
 * there are none.
 */
void fs_finish(Fs *fs);

/**
 * fs_exit: makes fs_loop() return.  Any thread; not from a signal handler.
 */
void fs_exit(Fs *fs);

/**
 * fs_unmount: takes the mount away, lazily where it is still in use; harmless
 * when somebody else has done it.
 */
void fs_unmount(Fs *fs);

void fs_free(Fs *fs);

/**
 * fs_dump_tree: prints one line for each row of the table: path, kind, mode,
 * what can be done with it.  For `--dump-tree` and the tests that hold table
 * and man page together.
 */
void fs_dump_tree(FILE *out);
