/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * ops.c - the one struct fuse_lowlevel_ops: find the node, check the kind,
 * hand on.  Every operation is there: a missing one shows as ENOSYS.
 *
 * Entered by the FUSE threads, in parallel; nothing here waits.
 */
#include "fs/ops.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/statvfs.h>

#include "fs/attr.h"
#include "fs/control.h"
#include "fs/dir.h"
#include "fs/file.h"
#include "fs/follow.h"
#include "fs/guest.h"
#include "fs/stream.h"
#include "fs/text.h"
#include "fs/xattr.h"

static Fs *fs_of(fuse_req_t fuse)
{
    return fuse_req_userdata(fuse);
}

static gboolean is_guest(const FsReq *req)
{
    return req->node->def->kind == FS_KIND_GUEST;
}

/* A change of what is in a directory; @removal: something would go from it. */
static void change_entry(FsReq *req, void (*change)(FsReq *req), gboolean removal)
{
    if (req && is_guest(req)) {
        fs_guest_refuse(req, removal);
    } else if (req) {
        change(req);
    }
}

/* ---- Life of the session ------------------------------------------------ */

static void op_init(void *userdata, struct fuse_conn_info *conn)
{
    Fs *fs = userdata;

    /* Measured: splicing requests in costs more than it saves for 32-byte reads. */
    conn->want &= ~(unsigned)FUSE_CAP_SPLICE_READ;
    conn->max_background = 64;
    conn->congestion_threshold = 48;
    g_atomic_int_set(&fs->kernel_ready, 1);
}

/* ---- Waiting for what is fresh --------------------------------------------- */

static void resume_when_fresh(gpointer user)
{
    FsReq *req = user;

    req->resume(req);
}

static void resume_cancelled(FsReq *req, gpointer data G_GNUC_UNUSED)
{
    fs_req_error(req, EINTR);
}

/* Goes on with @resume, at once or when what the row shows was read again. */
static void when_fresh(FsReq *req, void (*resume)(FsReq *req))
{
    const FsFresh *fresh = req->node->def->fresh;

    if (!fresh || fresh->is_fresh(fresh, req->fs, req->node->item)) {
        resume(req);
        return;
    }
    req->resume = resume;
    fs_req_on_cancel(req, resume_cancelled, NULL);
    fresh->refresh(fresh, req->fs, req->node->item, resume_when_fresh, req);
}

/* ---- Names --------------------------------------------------------------- */

static void op_lookup(fuse_req_t fuse, fuse_ino_t parent, const char *name)
{
    FsReq *req = fs_req_new(fs_of(fuse), fuse, "lookup", parent, name, NULL);

    if (req && is_guest(req)) {
        fs_guest_lookup(req);
    } else if (req) {
        when_fresh(req, fs_dir_lookup);
    }
}

static void op_forget(fuse_req_t fuse, fuse_ino_t ino, uint64_t nlookup)
{
    fs_node_forget(fs_of(fuse)->nodes, ino, nlookup);
    fuse_reply_none(fuse);
}

static void op_forget_multi(fuse_req_t fuse, size_t count, struct fuse_forget_data *forgets)
{
    for (size_t i = 0; i < count; i++) {
        fs_node_forget(fs_of(fuse)->nodes, forgets[i].ino, forgets[i].nlookup);
    }
    fuse_reply_none(fuse);
}

static void op_mkdir(fuse_req_t fuse, fuse_ino_t parent, const char *name,
                     mode_t mode G_GNUC_UNUSED)
{
    FsReq *req = fs_req_new(fs_of(fuse), fuse, "mkdir", parent, name, NULL);
    change_entry(req, fs_dir_mkdir, FALSE);
}

static void op_rmdir(fuse_req_t fuse, fuse_ino_t parent, const char *name)
{
    FsReq *req = fs_req_new(fs_of(fuse), fuse, "rmdir", parent, name, NULL);
    change_entry(req, fs_dir_rmdir, TRUE);
}

static void op_unlink(fuse_req_t fuse, fuse_ino_t parent, const char *name)
{
    FsReq *req = fs_req_new(fs_of(fuse), fuse, "unlink", parent, name, NULL);
    change_entry(req, fs_dir_refuse_removal, TRUE);
}

static void op_rename(fuse_req_t fuse, fuse_ino_t parent, const char *name,
                      fuse_ino_t new_parent G_GNUC_UNUSED, const char *new_name G_GNUC_UNUSED,
                      unsigned int flags G_GNUC_UNUSED)
{
    FsReq *req = fs_req_new(fs_of(fuse), fuse, "rename", parent, name, NULL);
    change_entry(req, fs_dir_rename, TRUE);
}

static void refuse_creation(fuse_req_t fuse, const char *op, fuse_ino_t parent, const char *name)
{
    FsReq *req = fs_req_new(fs_of(fuse), fuse, op, parent, name, NULL);
    change_entry(req, fs_dir_refuse_creation, FALSE);
}

static void op_mknod(fuse_req_t fuse, fuse_ino_t parent, const char *name,
                     mode_t mode G_GNUC_UNUSED, dev_t rdev G_GNUC_UNUSED)
{
    refuse_creation(fuse, "mknod", parent, name);
}

static void op_create(fuse_req_t fuse, fuse_ino_t parent, const char *name,
                      mode_t mode G_GNUC_UNUSED, struct fuse_file_info *fi G_GNUC_UNUSED)
{
    refuse_creation(fuse, "create", parent, name);
}

static void op_symlink(fuse_req_t fuse, const char *target G_GNUC_UNUSED, fuse_ino_t parent,
                       const char *name)
{
    refuse_creation(fuse, "symlink", parent, name);
}

static void op_link(fuse_req_t fuse, fuse_ino_t ino G_GNUC_UNUSED, fuse_ino_t new_parent,
                    const char *new_name)
{
    refuse_creation(fuse, "link", new_parent, new_name);
}

static void op_readlink(fuse_req_t fuse, fuse_ino_t ino)
{
    FsReq *req = fs_req_new(fs_of(fuse), fuse, "readlink", ino, NULL, NULL);
    g_autofree char *target = NULL;

    if (!req) {
        return;
    }
    if (is_guest(req)) {
        fs_guest_readlink(req);
        return;
    }
    if (req->node->def->kind == FS_KIND_LINK) {
        target = req->node->def->target(req->fs, req->node->item);
    }
    if (target) {
        fs_req_readlink(req, target);
    } else {
        fs_req_error(req, req->node->def->kind == FS_KIND_LINK ? ENOENT : EINVAL);
    }
    fs_req_unref(req);
}

/* ---- Attributes ---------------------------------------------------------- */

static void getattr_text(FsReq *req, GBytes *bytes, const GError *error)
{
    struct stat attr;

    if (error) {
        fs_req_error(req, fs_error_errno(error));
    } else {
        fs_attr_fill(req->fs, req->node, &attr);
        fs_attr_set_size(&attr, g_bytes_get_size(bytes));
        fs_req_attr(req, &attr, fs_attr_timeout(req->node));
    }
    fs_req_unref(req);
}

static void getattr_live(FsReq *req)
{
    fs_text_get(req, FS_TEXT_STAT, getattr_text);
}

static void getattr_known(FsReq *req)
{
    double timeout = fs_attr_timeout(req->node);
    struct stat attr;

    fs_attr_fill(req->fs, req->node, &attr);
    fs_req_attr(req, &attr, timeout);
    fs_req_unref(req);
}

static void op_getattr(fuse_req_t fuse, fuse_ino_t ino, struct fuse_file_info *fi)
{
    FsReq *req = fs_req_new(fs_of(fuse), fuse, "getattr", ino, NULL, fi);

    if (!req) {
        return;
    }
    if (req->node->def->kind == FS_KIND_ATTR) {
        when_fresh(req, getattr_live);
    } else {
        fs_stream_prepare(req, getattr_known);
    }
}

/*
 * The shell's `>` truncates before it writes, which means nothing to a control
 * file.  Everything else is refused, with EROFS: libvirt, which tries to chown
 * an image it is given, takes that as an answer.
 */
static void op_setattr(fuse_req_t fuse, fuse_ino_t ino, struct stat *attr, int to_set,
                       struct fuse_file_info *fi)
{
    FsReq *req = fs_req_new(fs_of(fuse), fuse, "setattr", ino, NULL, fi);
    struct stat now;

    if (!req) {
        return;
    }
    if (req->node->def->kind == FS_KIND_CONTROL && (to_set & FUSE_SET_ATTR_SIZE)
        && !(to_set & (FUSE_SET_ATTR_MODE | FUSE_SET_ATTR_UID | FUSE_SET_ATTR_GID))) {
        if (attr->st_size == 0) {
            fs_attr_fill(req->fs, req->node, &now);
            fs_req_attr(req, &now, 0);
        } else {
            fs_req_fail(req, EINVAL, "a control file has no size");
        }
    } else {
        fs_req_fail(req, EROFS, "attributes come from the tree and cannot be changed");
    }
    fs_req_unref(req);
}

static void op_getxattr(fuse_req_t fuse, fuse_ino_t ino, const char *name, size_t size)
{
    FsReq *req = fs_req_new(fs_of(fuse), fuse, "getxattr", ino, NULL, NULL);

    if (req) {
        req->size = size;
        (is_guest(req) ? fs_guest_getxattr : fs_xattr_get)(req, name);
    }
}

static void op_listxattr(fuse_req_t fuse, fuse_ino_t ino, size_t size)
{
    FsReq *req = fs_req_new(fs_of(fuse), fuse, "listxattr", ino, NULL, NULL);

    if (req) {
        req->size = size;
        (is_guest(req) ? fs_guest_listxattr : fs_xattr_list)(req);
    }
}

static void refuse_change(fuse_req_t fuse, const char *op, fuse_ino_t ino)
{
    FsReq *req = fs_req_new(fs_of(fuse), fuse, op, ino, NULL, NULL);

    if (req) {
        fs_req_fail(req, EROFS, "attributes come from the tree and cannot be changed");
        fs_req_unref(req);
    }
}

static void op_setxattr(fuse_req_t fuse, fuse_ino_t ino, const char *name G_GNUC_UNUSED,
                        const char *value G_GNUC_UNUSED, size_t size G_GNUC_UNUSED,
                        int flags G_GNUC_UNUSED)
{
    refuse_change(fuse, "setxattr", ino);
}

static void op_removexattr(fuse_req_t fuse, fuse_ino_t ino, const char *name G_GNUC_UNUSED)
{
    refuse_change(fuse, "removexattr", ino);
}

/* The kernel has checked the modes already (default_permissions). */
static void op_access(fuse_req_t fuse, fuse_ino_t ino G_GNUC_UNUSED, int mask G_GNUC_UNUSED)
{
    fuse_reply_err(fuse, 0);
}

static void op_statfs(fuse_req_t fuse, fuse_ino_t ino)
{
    FsReq *req = fs_req_new(fs_of(fuse), fuse, "statfs", ino ? ino : FUSE_ROOT_ID, NULL, NULL);
    struct statvfs statvfs = {.f_bsize = 4096, .f_frsize = 4096, .f_namemax = 255};
    guint64 total, available;

    if (!req) {
        return;
    }
    be_scratch_space(req->fs->be, &total, &available);
    statvfs.f_blocks = total / 4096;
    statvfs.f_bfree = statvfs.f_bavail = available / 4096;
    statvfs.f_files = fs_node_table_size(req->fs->nodes);
    fs_req_statfs(req, &statvfs);
    fs_req_unref(req);
}

/* ---- Directories ---------------------------------------------------------- */

static void op_opendir(fuse_req_t fuse, fuse_ino_t ino, struct fuse_file_info *fi)
{
    FsReq *req = fs_req_new(fs_of(fuse), fuse, "opendir", ino, NULL, fi);

    if (req && is_guest(req)) {
        fs_guest_opendir(req);
    } else if (req) {
        when_fresh(req, fs_dir_open);
    }
}

static void read_entries(fuse_req_t fuse, fuse_ino_t ino, size_t size, off_t offset,
                         struct fuse_file_info *fi, gboolean plus)
{
    FsReq *req = fs_req_new(fs_of(fuse), fuse, "readdir", ino, NULL, fi);

    if (req) {
        req->size = size;
        req->offset = offset;
        req->plus = plus;
        (is_guest(req) ? fs_guest_readdir : fs_dir_read)(req);
    }
}

static void op_readdir(fuse_req_t fuse, fuse_ino_t ino, size_t size, off_t offset,
                       struct fuse_file_info *fi)
{
    read_entries(fuse, ino, size, offset, fi, FALSE);
}

static void op_readdirplus(fuse_req_t fuse, fuse_ino_t ino, size_t size, off_t offset,
                           struct fuse_file_info *fi)
{
    read_entries(fuse, ino, size, offset, fi, TRUE);
}

/* ---- Files ---------------------------------------------------------------- */

static void open_text(FsReq *req, GBytes *bytes, const GError *error)
{
    if (error) {
        fs_req_error(req, fs_error_errno(error) == ENOENT ? EIO : fs_error_errno(error));
    } else {
        FsFile *file = fs_file_new(req->fs, req->node, req->caller.pid);

        file->text = g_bytes_ref(bytes);
        req->fi.direct_io = 1;
        fs_req_open(req, file);
    }
    fs_req_unref(req);
}

static void open_live_text(FsReq *req)
{
    fs_text_get(req, FS_TEXT_OPEN, open_text);
}

static void open_plain(FsReq *req)
{
    FsFile *file = fs_file_new(req->fs, req->node, req->caller.pid);

    if (req->node->def->kind == FS_KIND_CONTROL) {
        file->control = fs_control_new();
    }
    /* Without ESPIPE a shell's `read` takes a block and seeks back in it. */
    req->fi.nonseekable = req->node->def->kind == FS_KIND_FEED;
    req->fi.direct_io = 1;
    fs_req_open(req, file);
    fs_req_unref(req);
}

static void open_by_kind(FsReq *req)
{
    switch (req->node->def->kind) {
    case FS_KIND_ATTR:
        when_fresh(req, open_live_text);
        return;
    case FS_KIND_STREAM:
        fs_stream_open(req);
        return;
    case FS_KIND_GUEST:
        fs_guest_open(req);
        return;
    case FS_KIND_CONTROL:
    case FS_KIND_FEED:
        open_plain(req);
        return;
    case FS_KIND_DIR:
    case FS_KIND_LINK:
        break;
    }
    fs_req_error(req, EISDIR);
    fs_req_unref(req);
}

static void op_open(fuse_req_t fuse, fuse_ino_t ino, struct fuse_file_info *fi)
{
    FsReq *req = fs_req_new(fs_of(fuse), fuse, "open", ino, NULL, fi);
    gboolean writes;

    if (!req) {
        return;
    }
    writes = (fi->flags & O_ACCMODE) != O_RDONLY || (fi->flags & O_TRUNC);
    if (writes && (req->node->def->kind != FS_KIND_CONTROL || req->fs->read_only)) {
        fs_req_fail(req, EROFS, "this file is not written to; commands go to 'control'");
        fs_req_unref(req);
        return;
    }
    open_by_kind(req);
}

static void op_read(fuse_req_t fuse, fuse_ino_t ino, size_t size, off_t offset,
                    struct fuse_file_info *fi)
{
    FsReq *req = fs_req_new(fs_of(fuse), fuse, "read", ino, NULL, fi);

    if (!req) {
        return;
    }
    req->size = size;
    req->offset = offset;
    switch (req->node->def->kind) {
    case FS_KIND_ATTR:
        fs_text_read(req);
        return;
    case FS_KIND_CONTROL:
        fs_control_read(req);
        return;
    case FS_KIND_STREAM:
        fs_stream_read(req);
        return;
    case FS_KIND_FEED:
        fs_follow_read(req);
        return;
    case FS_KIND_GUEST:
        fs_guest_read(req);
        return;
    case FS_KIND_DIR:
    case FS_KIND_LINK:
        break;
    }
    fs_req_error(req, EISDIR);
    fs_req_unref(req);
}

static void op_write(fuse_req_t fuse, fuse_ino_t ino, const char *data, size_t size,
                     off_t offset G_GNUC_UNUSED, struct fuse_file_info *fi)
{
    FsReq *req = fs_req_new(fs_of(fuse), fuse, "write", ino, NULL, fi);

    if (!req) {
        return;
    }
    req->size = size;
    if (req->node->def->kind == FS_KIND_CONTROL) {
        fs_control_write(req, data);
    } else {
        fs_req_error(req, EROFS);
        fs_req_unref(req);
    }
}

static void op_lseek(fuse_req_t fuse, fuse_ino_t ino, off_t offset, int whence,
                     struct fuse_file_info *fi)
{
    FsReq *req = fs_req_new(fs_of(fuse), fuse, "lseek", ino, NULL, fi);

    if (!req) {
        return;
    }
    req->offset = offset;
    req->whence = whence;
    if (req->node->def->kind == FS_KIND_STREAM) {
        fs_stream_lseek(req);
    } else if (is_guest(req)) {
        fs_guest_lseek(req);
    } else if (req->node->def->kind == FS_KIND_ATTR) {
        fs_text_lseek(req);
    } else {
        fs_req_error(req, EINVAL);
        fs_req_unref(req);
    }
}

static void op_release(fuse_req_t fuse, fuse_ino_t ino G_GNUC_UNUSED, struct fuse_file_info *fi)
{
    fs_file_close((FsFile *)(uintptr_t)fi->fh);
    fuse_reply_err(fuse, 0);
}

/* All errors of a command come from its write: flush and fsync have none. */
static void op_flush(fuse_req_t fuse, fuse_ino_t ino G_GNUC_UNUSED,
                     struct fuse_file_info *fi G_GNUC_UNUSED)
{
    fuse_reply_err(fuse, 0);
}

static void op_fsync(fuse_req_t fuse, fuse_ino_t ino G_GNUC_UNUSED, int datasync G_GNUC_UNUSED,
                     struct fuse_file_info *fi G_GNUC_UNUSED)
{
    fuse_reply_err(fuse, 0);
}

static void op_fallocate(fuse_req_t fuse, fuse_ino_t ino G_GNUC_UNUSED, int mode G_GNUC_UNUSED,
                         off_t offset G_GNUC_UNUSED, off_t length G_GNUC_UNUSED,
                         struct fuse_file_info *fi G_GNUC_UNUSED)
{
    fuse_reply_err(fuse, EOPNOTSUPP);
}

static void op_ioctl(fuse_req_t fuse, fuse_ino_t ino G_GNUC_UNUSED, unsigned int cmd G_GNUC_UNUSED,
                     void *arg G_GNUC_UNUSED, struct fuse_file_info *fi G_GNUC_UNUSED,
                     unsigned flags G_GNUC_UNUSED, const void *in G_GNUC_UNUSED,
                     size_t in_size G_GNUC_UNUSED, size_t out_size G_GNUC_UNUSED)
{
    fuse_reply_err(fuse, ENOTTY);
}

const struct fuse_lowlevel_ops fs_ops = {
    .init = op_init,
    .lookup = op_lookup,
    .forget = op_forget,
    .forget_multi = op_forget_multi,
    .getattr = op_getattr,
    .setattr = op_setattr,
    .readlink = op_readlink,
    .mknod = op_mknod,
    .mkdir = op_mkdir,
    .unlink = op_unlink,
    .rmdir = op_rmdir,
    .symlink = op_symlink,
    .rename = op_rename,
    .link = op_link,
    .open = op_open,
    .read = op_read,
    .write = op_write,
    .flush = op_flush,
    .release = op_release,
    .fsync = op_fsync,
    .opendir = op_opendir,
    .readdir = op_readdir,
    .readdirplus = op_readdirplus,
    .releasedir = op_release,
    .fsyncdir = op_fsync,
    .statfs = op_statfs,
    .setxattr = op_setxattr,
    .getxattr = op_getxattr,
    .listxattr = op_listxattr,
    .removexattr = op_removexattr,
    .access = op_access,
    .create = op_create,
    .ioctl = op_ioctl,
    .fallocate = op_fallocate,
    .lseek = op_lseek,
};
