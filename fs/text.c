/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * text.c - texts of ATTR rows, and those who wait for them; see text.h.
 *
 * Entered by FUSE threads and backend workers.  `lock` guards the cache of one
 * node and is never held while a text is made or a request answered.
 */
#include "fs/text.h"

#include <errno.h>
#include <string.h>

#include "fs/file.h"
#include "fs/req.h"

#define KEPT_US (G_USEC_PER_SEC / 2)

/* No listed file blocks: a hanging host is waited for as long as this. */
#define WAIT_MS 1000
#define WAIT_SLOW_MS 5000

typedef struct {
    FsReq *req;
    FsTextDone done;
} Waiter;

/* One fetch under way: keeps the node, and so the text, alive; a counted box. */
typedef struct {
    Fs *fs;
    FsNode *node;
    GArray *waiters;           /* guarded by the text's lock */
    gboolean hangs;            /* guarded by the text's lock; nobody waits for it any more */
    GSource *deadline;
} Fetch;

struct FsText {
    GMutex lock;
    GBytes *bytes;             /* guarded by lock; the last one that was fetched */
    GError *error;             /* guarded by lock; why there is none */
    gint64 made_us;            /* guarded by lock; monotonic, 0: never */
    GBytes *opened;            /* guarded by lock; what the last open was given */
    gint64 opened_us;          /* guarded by lock; monotonic */
    Fetch *fetch;              /* guarded by lock; NULL: none is under way */
};

FsText *fs_text_new(void)
{
    FsText *text = g_new0(FsText, 1);

    g_mutex_init(&text->lock);
    return text;
}

void fs_text_free(FsText *text)
{
    if (!text) {
        return;
    }
    g_clear_pointer(&text->bytes, g_bytes_unref);
    g_clear_pointer(&text->opened, g_bytes_unref);
    g_clear_error(&text->error);
    g_mutex_clear(&text->lock);
    g_free(text);
}

/* ---- Texts that are made from what is known ------------------------------- */

static GBytes *opened_just_now(FsText *text)
{
    GBytes *bytes = NULL;

    g_mutex_lock(&text->lock);
    if (text->opened && g_get_monotonic_time() - text->opened_us < KEPT_US) {
        bytes = g_bytes_ref(text->opened);
    }
    g_mutex_unlock(&text->lock);
    return bytes;
}

static void remember_opened(FsText *text, GBytes *bytes)
{
    g_mutex_lock(&text->lock);
    g_clear_pointer(&text->opened, g_bytes_unref);
    text->opened = g_bytes_ref(bytes);
    text->opened_us = g_get_monotonic_time();
    g_mutex_unlock(&text->lock);
}

static void show(FsReq *req, FsTextUse use, FsTextDone done)
{
    FsText *text = req->node->text;
    g_autoptr(GError) error = NULL;
    g_autoptr(GBytes) bytes = use == FS_TEXT_STAT ? opened_just_now(text) : NULL;

    if (!bytes) {
        g_autoptr(GString) out = g_string_new(NULL);

        if (req->node->def->show(req->fs, req->node->item, out, &error)) {
            bytes = g_bytes_new(out->str, out->len);
        }
    }
    if (bytes && use == FS_TEXT_OPEN) {
        remember_opened(text, bytes);
    }
    done(req, bytes, error);
}

/* ---- Texts that the host is asked for ------------------------------------- */

static void fetch_free(gpointer data)
{
    Fetch *fetch = data;

    g_array_unref(fetch->waiters);
    fs_node_unref(fetch->fs->nodes, fetch->node);
}

static void fetch_release(gpointer fetch)
{
    g_atomic_rc_box_release_full(fetch, fetch_free);
}

static void tell(GArray *waiters, GBytes *bytes, const GError *error)
{
    for (guint i = 0; i < waiters->len; i++) {
        const Waiter *waiter = &g_array_index(waiters, Waiter, i);

        waiter->done(waiter->req, bytes, error);
    }
}

/* What there is when the host was not waited for. */
static void tell_stale(GArray *waiters, GBytes *bytes)
{
    g_autoptr(GError) error = g_error_new(BE_ERROR, ETIMEDOUT, "the host does not answer");

    tell(waiters, bytes, bytes ? NULL : error);
}

static GArray *steal_waiters_locked(Fetch *fetch)
{
    GArray *waiters = fetch->waiters;

    fetch->waiters = g_array_new(FALSE, FALSE, sizeof(Waiter));
    return waiters;
}

static void fetched(const char *string, const GError *error, gpointer user)
{
    Fetch *fetch = user;
    FsText *text = fetch->node->text;
    g_autoptr(GBytes) bytes = string ? g_bytes_new(string, strlen(string)) : NULL;
    g_autoptr(GArray) waiters = NULL;

    g_mutex_lock(&text->lock);
    g_clear_pointer(&text->bytes, g_bytes_unref);
    g_clear_error(&text->error);
    text->bytes = bytes ? g_bytes_ref(bytes) : NULL;
    text->error = error ? g_error_copy(error) : NULL;
    text->made_us = g_get_monotonic_time();
    text->fetch = NULL;
    waiters = steal_waiters_locked(fetch);
    g_mutex_unlock(&text->lock);

    g_source_destroy(fetch->deadline);
    g_source_unref(fetch->deadline);
    tell(waiters, bytes, error);
    fetch_release(fetch);
}

/* The deadline, on the timer thread: who waits is told what there is. */
static gboolean give_up(gpointer data)
{
    Fetch *fetch = data;
    FsText *text = fetch->node->text;
    g_autoptr(GArray) waiters = NULL;
    g_autoptr(GBytes) bytes = NULL;

    g_mutex_lock(&text->lock);
    fetch->hangs = TRUE;
    waiters = steal_waiters_locked(fetch);
    bytes = text->bytes ? g_bytes_ref(text->bytes) : NULL;
    g_mutex_unlock(&text->lock);
    tell_stale(waiters, bytes);
    return G_SOURCE_REMOVE;
}

/* Transfers @node. */
static Fetch *fetch_new(Fs *fs, FsNode *node)
{
    Fetch *fetch = g_atomic_rc_box_new0(Fetch);

    fetch->fs = fs;
    fetch->node = node;
    fetch->waiters = g_array_new(FALSE, FALSE, sizeof(Waiter));
    return fetch;
}

static void fetch_start(Fetch *fetch)
{
    const FsDef *def = fetch->node->def;

    fetch->deadline = fs_timer_add(fetch->fs, def->flags & FS_SLOW ? WAIT_SLOW_MS : WAIT_MS,
                                   give_up, g_atomic_rc_box_acquire(fetch), fetch_release);
    def->fetch(fetch->fs, fetch->node->item, fetched, fetch);
}

static void fetch_cancelled(FsReq *req, gpointer data G_GNUC_UNUSED)
{
    fs_req_error(req, EINTR);
}

/* Joins a fetch, or starts one; does neither behind one that hangs. */
static void wait_for_fetch(FsReq *req, FsTextDone done)
{
    FsText *text = req->node->text;
    g_autoptr(GArray) late = g_array_new(FALSE, FALSE, sizeof(Waiter));
    g_autoptr(GBytes) bytes = NULL;
    Waiter waiter = {.req = req, .done = done};
    Fetch *fresh = fetch_new(req->fs, fs_node_ref(req->fs->nodes, req->node));
    gboolean first;

    fs_req_on_cancel(req, fetch_cancelled, NULL);
    g_mutex_lock(&text->lock);
    first = text->fetch == NULL;
    if (first) {
        text->fetch = fresh;
    }
    if (text->fetch->hangs) {
        bytes = text->bytes ? g_bytes_ref(text->bytes) : NULL;
        g_array_append_val(late, waiter);
    } else {
        g_array_append_val(text->fetch->waiters, waiter);
    }
    g_mutex_unlock(&text->lock);
    tell_stale(late, bytes);
    if (first) {
        fetch_start(fresh);
    } else {
        fetch_release(fresh);
    }
}

void fs_text_get(FsReq *req, FsTextUse use, FsTextDone done)
{
    FsText *text = req->node->text;
    g_autoptr(GBytes) bytes = NULL;
    g_autoptr(GError) error = NULL;

    if (req->node->def->show) {
        show(req, use, done);
        return;
    }
    g_mutex_lock(&text->lock);
    if (text->made_us && g_get_monotonic_time() - text->made_us < KEPT_US) {
        bytes = text->bytes ? g_bytes_ref(text->bytes) : NULL;
        error = text->error ? g_error_copy(text->error) : NULL;
    }
    g_mutex_unlock(&text->lock);
    if (bytes || error) {
        done(req, bytes, error);
    } else {
        wait_for_fetch(req, done);
    }
}

/* ---- Reading an open one ------------------------------------------------------ */

void fs_text_read(FsReq *req)
{
    gsize size;
    const char *text = g_bytes_get_data(req->file->text, &size);
    gsize start = MIN((gsize)req->offset, size);

    (void)fs_req_buf(req, text ? text + start : "", MIN(req->size, size - start));
    fs_req_unref(req);
}

/* A text is all data. */
void fs_text_lseek(FsReq *req)
{
    off_t size = (off_t)g_bytes_get_size(req->file->text);

    if (req->whence != SEEK_DATA && req->whence != SEEK_HOLE) {
        fs_req_error(req, EINVAL);
    } else if (req->offset < 0 || req->offset >= size) {
        fs_req_error(req, ENXIO);
    } else {
        fs_req_lseek(req, req->whence == SEEK_DATA ? req->offset : size);
    }
    fs_req_unref(req);
}
