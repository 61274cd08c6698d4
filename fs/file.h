/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * file.h - an open file or directory, between OPEN and RELEASE.
 */
#pragma once

#include "fs/private.h"

typedef struct FsControl FsControl;
typedef struct FsFile FsFile;
typedef struct FsGuestList FsGuestList;

/* One entry of a directory as it was at opendir. */
typedef struct {
    char *name;
    guint64 ino;
    mode_t mode;               /* the type bits */
} FsDirEntry;

struct FsFile {
    gatomicrefcount refs;      /* the kernel's, and one of each request under way */
    Fs *fs;
    FsNode *node;              /* a reference */
    pid_t pid;                 /* who opened it */
    GPtrArray *entries;        /* DIR: of FsDirEntry */
    gboolean entries_read;     /* DIR: a rewind makes them anew */
    GBytes *text;              /* ATTR */
    FsControl *control;        /* CONTROL */
    BeReader *reader;          /* STREAM */
    gboolean streamed;         /* STREAM: counted in fs->streamed_files; set before its open */
    BeFileReader *guest;       /* GUEST: a file */
    FsGuestList *list;         /* GUEST: a directory */
    FsFeedCursor cursor;       /* FEED */
};

FsFile *fs_file_new(Fs *fs, FsNode *node, pid_t pid);

FsFile *fs_file_ref(FsFile *file);
void fs_file_unref(FsFile *file);

/**
 * fs_file_close: RELEASE: gives the kernel's reference back.  From here on the
 * file no longer counts as a reader.  Never blocks.
 */
void fs_file_close(FsFile *file);

/**
 * fs_file_reader_of: the pid of somebody who has data of @item open, 0 when
 * nobody has.
 */
pid_t fs_file_reader_of(Fs *fs, FsItem *item);
