/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * files-wire.h - what the daemon and vmsnapfs-files say to each other.
 *
 * One stream socket between two programs of one build on one machine, so
 * numbers are in the machine's own order.  A request is a FilesRequest and its
 * path; requests are done one after the other.  The answer is any number of
 * FILES_MORE frames and one FILES_END.  The daemon trusts nothing in them: the
 * other side has looked at a hostile disk.
 */
#pragma once

#include <glib.h>

/* The descriptor that vmsnapfs-files finds the socket on. */
#define FILES_FD 3

#define FILES_FRAME_MAX (1024 * 1024)
#define FILES_PATH_MAX 16384
#define FILES_NAME_MAX 255
#define FILES_LINK_MAX 4095
#define FILES_ENTRIES_MAX 1000000
#define FILES_DISKS_MAX 200
#define FILES_VOLUMES_MAX 1000

/* One frame of a listing has the entries of so many files. */
#define FILES_BATCH 1000

typedef enum {
    FILES_OP_START,            /* launches; END: the volumes' names, NUL after each */
    FILES_OP_STAT,             /* END: one FilesEntry */
    FILES_OP_LIST,             /* MORE: FilesEntry, many */
    FILES_OP_XATTR,            /* of one file; MORE: FilesXattr, many, with empty file names */
    FILES_OP_XATTRS,           /* of all files in a directory; MORE: FilesXattr, many */
    FILES_OP_READ,             /* MORE: bytes from offset; fewer at the end of the file */
} FilesOp;

typedef struct {
    guint32 op;
    guint32 id;
    guint64 offset;
    guint64 size;
    guint32 path_length;
    guint32 spare;
} FilesRequest;

typedef enum {
    FILES_HELLO,               /* the first frame; brings one listening socket for each disk */
    FILES_STAGE,               /* one byte, FilesStage: a part of START is over */
    FILES_MORE,
    FILES_END,                 /* errnum 0; or an errno, and the payload is a sentence */
} FilesKind;

typedef enum {
    FILES_STAGE_BUILD,         /* the appliance itself is being built: minutes */
    FILES_STAGE_BOOT,          /* it boots */
    FILES_STAGE_SCAN,          /* its kernel runs; file systems are looked for */
} FilesStage;

typedef struct {
    guint32 kind;
    guint32 id;
    gint32 errnum;
    guint32 length;            /* of the payload that follows */
} FilesFrame;

enum {
    FILES_TARGET_PLAIN = 1 << 0,
};

/* Followed by the name and the link's text. */
typedef struct {
    guint64 dev;
    guint64 ino;
    guint64 size;
    guint64 blocks;            /* of 512 bytes */
    gint64 atime;
    gint64 mtime;
    gint64 ctime;
    guint32 atime_nsec;
    guint32 mtime_nsec;
    guint32 ctime_nsec;
    guint32 mode;
    guint32 nlink;
    guint32 uid;
    guint32 gid;
    guint16 name_length;
    guint16 target_length;
    guint32 flags;
    guint32 spare;
} FilesEntry;

/* Followed by the file's name, the attribute's name and its value. */
typedef struct {
    guint16 file_length;
    guint16 name_length;
    guint32 value_length;
} FilesXattr;
