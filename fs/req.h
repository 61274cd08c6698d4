/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * req.h - one request of the kernel: owned, answered exactly once.
 *
 * A handler makes an FsReq, and either answers it or hands it on: into a job,
 * a text that is being fetched, a read.  Whoever holds the last reference of an
 * unanswered request answers EIO and says that this is a bug.
 */
#pragma once

#define FUSE_USE_VERSION 314
#include <fuse_lowlevel.h>

#include "fs/private.h"

typedef struct FsFile FsFile;
typedef struct FsReq FsReq;

struct FsReq {
    gatomicrefcount refs;
    Fs *fs;
    GList link;                /* in fs->waiting until it is answered */
    GMutex lock;               /* between an answer and fs_req_on_cancel() */
    fuse_req_t fuse;           /* guarded by lock; NULL once somebody took it to answer */
    const char *op;            /* "mkdir"; static */
    FsNode *node;              /* the node named by the request; a reference */
    char *name;                /* of a child, for the operations that have one */
    BeCaller caller;
    gint64 start_us;
    struct fuse_file_info fi;
    FsFile *file;              /* of fi.fh; a reference */
    gsize size;
    off_t offset;
    int whence;
    gboolean plus;             /* READDIR: with attributes */
    gboolean looked_again;     /* LOOKUP: the inventory was read for it */
    gpointer data;             /* of whoever works on the request */
    void (*resume)(FsReq *req);
    void (*cancel)(FsReq *req, gpointer data);
    gpointer cancel_data;
};

/**
 * fs_req_new: takes the request of a handler.
 * @op: static name
 * Returns: the request, or NULL when it has been answered: with ENOENT, the node
 *   is unknown; with EIO, the mount is ending.
 */
FsReq *fs_req_new(Fs *fs, fuse_req_t fuse, const char *op, fuse_ino_t ino, const char *name,
                  const struct fuse_file_info *fi);
FsReq *fs_req_ref(FsReq *req);

/**
 * fs_req_refuse_all: answers all that wait with EIO: the mount is about to end.
 */
void fs_req_refuse_all(Fs *fs);
void fs_req_unref(FsReq *req);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(FsReq, fs_req_unref)

/**
 * fs_req_on_cancel: has @cancel called, on the timer thread, when the caller
 * is being ended by a signal (KILL, INT, TERM, HUP, QUIT pending).  The kernel
 * reports every other signal as well, and those are ignored.  Takes the place
 * of an earlier one; does nothing once the request is answered.  @cancel holds
 * a reference of @req while it runs.
 */
void fs_req_on_cancel(FsReq *req, void (*cancel)(FsReq *req, gpointer data), gpointer data);

/**
 * fs_req_is_answered: whether nobody waits for the end of @req any more.
 */
gboolean fs_req_is_answered(FsReq *req);

/*
 * The answers.  Each answers at most once and is silently ignored after that,
 * because a cancelled request and its job may both come to an end.
 */
void fs_req_error(FsReq *req, int errnum);          /* 0: success without data */
void fs_req_entry(FsReq *req, FsNode *child);       /* (transfer full): from fs_node_lookup() */
void fs_req_attr(FsReq *req, const struct stat *attr, double timeout);
void fs_req_open(FsReq *req, FsFile *file);         /* (transfer full): req->fi is sent */
gboolean fs_req_buf(FsReq *req, const void *data, gsize size);   /* whether it was taken */
void fs_req_iov(FsReq *req, const struct iovec *iov, int count);
void fs_req_write(FsReq *req, gsize size);
void fs_req_readlink(FsReq *req, const char *target);
void fs_req_lseek(FsReq *req, off_t offset);
void fs_req_xattr_size(FsReq *req, gsize size);
void fs_req_statfs(FsReq *req, const struct statvfs *statvfs);

/**
 * fs_req_fail: records a failure in the `error` files of the node's objects
 * and answers with @errnum.
 */
void fs_req_fail(FsReq *req, int errnum, const char *format, ...) G_GNUC_PRINTF(3, 4);

/**
 * fs_req_record: the first half of fs_req_fail(), for an answer that differs.
 */
void fs_req_record(FsReq *req, int errnum, const char *text);

/**
 * fs_error_errno: the errno a GError stands for; EIO for a foreign one, and
 * never one that means "the daemon is dead".
 */
int fs_error_errno(const GError *error);
