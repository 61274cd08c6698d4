/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * req.c - requests and their answers; see req.h.
 *
 * Made on FUSE threads; answered on any thread, with no lock held.
 */
#include "fs/req.h"

#include <errno.h>
#include <signal.h>
#include <string.h>

#include "fs/attr.h"
#include "fs/file.h"

/* How often a caller is looked at again whose first signal was no reason. */
#define LOOK_AGAIN_MS 50

/* Signals that mean "I no longer want this"; all others are no reason. */
static const int ending_signals[] = {SIGKILL, SIGINT, SIGTERM, SIGHUP, SIGQUIT};

static void req_unref_cb(gpointer data)
{
    fs_req_unref(data);
}

int fs_error_errno(const GError *error)
{
    if (!error) {
        return 0;
    }
    if (error->domain != BE_ERROR || error->code <= 0) {
        return EIO;
    }
    switch (error->code) {
    case ENOTCONN:
    case ECONNABORTED:
    case ENOSYS:
    case ESTALE:
        return EIO;
    default:
        return error->code;
    }
}

FsReq *fs_req_new(Fs *fs, fuse_req_t fuse, const char *op, fuse_ino_t ino, const char *name,
                  const struct fuse_file_info *fi)
{
    const struct fuse_ctx *context = fuse_req_ctx(fuse);
    FsNode *node = fs_node_get(fs->nodes, ino);
    FsReq *req;

    g_atomic_int_inc(&fs->requests);
    if (!node || g_atomic_int_get(&fs->exiting)) {
        fuse_reply_err(fuse, node ? EIO : ENOENT);
        fs_node_unref(fs->nodes, node);
        return NULL;
    }
    req = g_new0(FsReq, 1);
    g_atomic_ref_count_init(&req->refs);
    g_mutex_init(&req->lock);
    req->fs = fs;
    req->fuse = fuse;
    req->op = op;
    req->node = node;
    req->name = g_strdup(name);
    req->caller.uid = context->uid;
    req->caller.gid = context->gid;
    req->caller.pid = context->pid;
    req->start_us = g_get_monotonic_time();
    if (fi) {
        req->fi = *fi;
        req->file = fi->fh ? fs_file_ref((FsFile *)(uintptr_t)fi->fh) : NULL;
    }
    req->link.data = req;
    g_mutex_lock(&fs->waiting_lock);
    g_queue_push_tail_link(&fs->waiting, &req->link);
    g_mutex_unlock(&fs->waiting_lock);
    return req;
}

void fs_req_refuse_all(Fs *fs)
{
    g_autoptr(GPtrArray) all = g_ptr_array_new_with_free_func(req_unref_cb);

    g_mutex_lock(&fs->waiting_lock);
    for (GList *link = fs->waiting.head; link; link = link->next) {
        g_ptr_array_add(all, fs_req_ref(link->data));
    }
    g_mutex_unlock(&fs->waiting_lock);
    for (guint i = 0; i < all->len; i++) {
        fs_req_error(g_ptr_array_index(all, i), EIO);
    }
}

FsReq *fs_req_ref(FsReq *req)
{
    g_atomic_ref_count_inc(&req->refs);
    return req;
}

void fs_req_unref(FsReq *req)
{
    if (!req || !g_atomic_ref_count_dec(&req->refs)) {
        return;
    }
    if (!fs_req_is_answered(req)) {
        g_critical("bug: request '%s' was dropped without an answer", req->op);
        fs_req_error(req, EIO);
    }
    fs_file_unref(req->file);
    fs_node_unref(req->fs->nodes, req->node);
    g_mutex_clear(&req->lock);
    g_free(req->name);
    g_free(req);
}

/* ---- Interrupts --------------------------------------------------------- */

static guint64 signal_mask_of(const char *status, const char *key)
{
    const char *line = strstr(status, key);

    return line ? g_ascii_strtoull(line + strlen(key), NULL, 16) : 0;
}

/*
 * The kernel says "interrupted" for any signal, Ctrl-Z and SIGCHLD too, and
 * not which; the signal is still pending in /proc then.  One that the caller
 * has blocked is not meant for now.  A caller that cannot be looked up (it is
 * in another PID namespace) is taken to want the end.
 */
static gboolean caller_is_ending(const FsReq *req)
{
    g_autofree char *path = g_strdup_printf("/proc/%d/status", (int)req->caller.pid);
    g_autofree char *status = NULL;
    guint64 pending;

    if (req->caller.pid <= 0 || !g_file_get_contents(path, &status, NULL, NULL)) {
        return TRUE;
    }
    pending = signal_mask_of(status, "\nSigPnd:") | signal_mask_of(status, "\nShdPnd:");
    pending &= ~signal_mask_of(status, "\nSigBlk:");
    for (gsize i = 0; i < G_N_ELEMENTS(ending_signals); i++) {
        if (pending & (G_GUINT64_CONSTANT(1) << (ending_signals[i] - 1))) {
            return TRUE;
        }
    }
    return FALSE;
}

gboolean fs_req_is_answered(FsReq *req)
{
    gboolean answered;

    g_mutex_lock(&req->lock);
    answered = req->fuse == NULL;
    g_mutex_unlock(&req->lock);
    return answered;
}

static gboolean interrupted_on_timer(gpointer data);

static void look_at_caller(FsReq *req, guint delay_ms)
{
    g_source_unref(fs_timer_add(req->fs, delay_ms, interrupted_on_timer, fs_req_ref(req),
                                req_unref_cb));
}

/*
 * The kernel tells of the first signal only: after a Ctrl-Z it keeps a Ctrl-C,
 * and even a SIGKILL, to itself.  So whoever got a signal is watched from then on.
 */
static gboolean interrupted_on_timer(gpointer data)
{
    FsReq *req = data;
    void (*cancel)(FsReq *, gpointer);
    gpointer cancel_data;

    g_mutex_lock(&req->lock);
    cancel = req->fuse ? req->cancel : NULL;
    cancel_data = req->cancel_data;
    g_mutex_unlock(&req->lock);
    if (cancel && caller_is_ending(req)) {
        cancel(req, cancel_data);
    } else if (cancel) {
        look_at_caller(req, LOOK_AGAIN_MS);
    }
    return G_SOURCE_REMOVE;
}

/*
 * libfuse calls this with the request's lock held, so nothing may be answered
 * from here: the timer thread does it.
 */
static void interrupted(fuse_req_t fuse G_GNUC_UNUSED, void *data)
{
    if (data) {
        look_at_caller(data, 0);
    }
}

void fs_req_on_cancel(FsReq *req, void (*cancel)(FsReq *req, gpointer data), gpointer data)
{
    g_mutex_lock(&req->lock);
    if (req->fuse) {
        req->cancel = cancel;
        req->cancel_data = data;
        fuse_req_interrupt_func(req->fuse, interrupted, req);
    }
    g_mutex_unlock(&req->lock);
}

/* ---- Answers ------------------------------------------------------------ */

/*
 * Takes the right to answer.  Clearing the interrupt function waits for one
 * that is running, so none can see the request after this.
 */
static fuse_req_t take(FsReq *req)
{
    fuse_req_t fuse;

    g_mutex_lock(&req->lock);
    fuse = g_steal_pointer(&req->fuse);
    g_mutex_unlock(&req->lock);
    if (!fuse) {
        return NULL;
    }
    g_mutex_lock(&req->fs->waiting_lock);
    g_queue_unlink(&req->fs->waiting, &req->link);
    g_mutex_unlock(&req->fs->waiting_lock);
    if (req->cancel) {
        fuse_req_interrupt_func(fuse, NULL, NULL);
    }
    return fuse;
}

static void answered(const FsReq *req, int errnum)
{
    if (req->fs->debug) {
        g_autofree char *path = fs_node_path(req->node);
        g_autofree char *line = fs_escape_line(req->name ? req->name : "");

        g_debug("%s %s %s: %s in %" G_GINT64_FORMAT " us", req->op, path, line,
                fs_errno_name(errnum), g_get_monotonic_time() - req->start_us);
    }
}

void fs_req_error(FsReq *req, int errnum)
{
    fuse_req_t fuse = take(req);

    if (fuse) {
        answered(req, errnum);
        fuse_reply_err(fuse, errnum);
    }
}

void fs_req_entry(FsReq *req, FsNode *child)
{
    struct fuse_entry_param entry = {0};
    fuse_req_t fuse = take(req);
    int result = -ENOENT;

    if (fuse) {
        answered(req, 0);
        entry.ino = child->number;
        /* First how long it holds: a size may become known in between. */
        entry.attr_timeout = fs_attr_timeout(child);
        fs_attr_fill(req->fs, child, &entry.attr);
        entry.entry_timeout = fs_entry_timeout(child);
        result = fuse_reply_entry(fuse, &entry);
    }
    if (result == -ENOENT) {
        fs_node_forget(req->fs->nodes, child->number, 1);
    }
    fs_node_unref(req->fs->nodes, child);
}

void fs_req_attr(FsReq *req, const struct stat *attr, double timeout)
{
    fuse_req_t fuse = take(req);

    if (fuse) {
        answered(req, 0);
        fuse_reply_attr(fuse, attr, timeout);
    }
}

void fs_req_open(FsReq *req, FsFile *file)
{
    fuse_req_t fuse = take(req);
    int result = -ENOENT;

    if (fuse) {
        answered(req, 0);
        req->fi.fh = (uintptr_t)file;
        /* close(2) has nothing to wait for: all errors come from reads and writes. */
        req->fi.noflush = 1;
        result = fuse_reply_open(fuse, &req->fi);
    }
    if (result == -ENOENT) {
        fs_file_close(file);
    }
}

gboolean fs_req_buf(FsReq *req, const void *data, gsize size)
{
    fuse_req_t fuse = take(req);

    if (!fuse) {
        return FALSE;
    }
    answered(req, 0);
    return fuse_reply_buf(fuse, data, size) == 0;
}

void fs_req_iov(FsReq *req, const struct iovec *iov, int count)
{
    fuse_req_t fuse = take(req);

    if (fuse) {
        answered(req, 0);
        fuse_reply_iov(fuse, iov, count);
    }
}

void fs_req_write(FsReq *req, gsize size)
{
    fuse_req_t fuse = take(req);

    if (fuse) {
        answered(req, 0);
        fuse_reply_write(fuse, size);
    }
}

void fs_req_readlink(FsReq *req, const char *target)
{
    fuse_req_t fuse = take(req);

    if (fuse) {
        answered(req, 0);
        fuse_reply_readlink(fuse, target);
    }
}

void fs_req_lseek(FsReq *req, off_t offset)
{
    fuse_req_t fuse = take(req);

    if (fuse) {
        answered(req, 0);
        fuse_reply_lseek(fuse, offset);
    }
}

void fs_req_xattr_size(FsReq *req, gsize size)
{
    fuse_req_t fuse = take(req);

    if (fuse) {
        answered(req, 0);
        fuse_reply_xattr(fuse, size);
    }
}

void fs_req_statfs(FsReq *req, const struct statvfs *statvfs)
{
    fuse_req_t fuse = take(req);

    if (fuse) {
        answered(req, 0);
        fuse_reply_statfs(fuse, statvfs);
    }
}

void fs_req_record(FsReq *req, int errnum, const char *text)
{
    g_autofree char *path = fs_node_path(req->node);
    g_autofree char *operation =
        req->name ? g_strdup_printf("%s %s/%s", req->op, path, req->name)
                  : g_strdup_printf("%s %s", req->op, path);

    fs_failures_add(req->fs->failures, req->node->item, &req->caller, operation, errnum, text);
}

void fs_req_fail(FsReq *req, int errnum, const char *format, ...)
{
    g_autofree char *text = NULL;
    va_list args;

    va_start(args, format);
    text = g_strdup_vprintf(format, args);
    va_end(args);
    fs_req_record(req, errnum, text);
    fs_req_error(req, errnum);
}
