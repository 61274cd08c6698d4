/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * follow.c - reads of events.follow; see follow.h.
 *
 * Entered by FUSE threads, by those that add an event, and by the timer thread
 * where the reader is interrupted.  While a read waits, its reference is the
 * feed's.
 */
#include "fs/follow.h"

#include <errno.h>

#include "fs/file.h"

/* Takes the place in the feed's list back, unless the feed is just waking it. */
static void stop_waiting(FsReq *req)
{
    if (fs_feed_cancel(req->fs->feed, req)) {
        fs_req_unref(req);
    }
}

static void cancelled(FsReq *req, gpointer data G_GNUC_UNUSED)
{
    fs_req_error(req, EINTR);
    stop_waiting(req);
}

/* Answers or waits on; what was answered meanwhile takes no event. */
static void serve(gpointer user)
{
    FsReq *req = user;
    g_autoptr(FsReq) held = fs_req_ref(req);
    g_autoptr(GString) out = g_string_new(NULL);
    FsFeed *feed = req->fs->feed;

    if (fs_req_is_answered(req)) {
        fs_req_unref(req);
        return;
    }
    if (fs_feed_next(feed, &req->file->cursor, req->size, out) || fs_feed_closed(feed)) {
        fs_req_buf(req, out->str, out->len);
        fs_req_unref(req);
        return;
    }
    fs_feed_wait(feed, &req->file->cursor, serve, req);
    if (fs_req_is_answered(held)) {
        stop_waiting(held);
    }
}

void fs_follow_read(FsReq *req)
{
    fs_req_on_cancel(req, cancelled, NULL);
    serve(req);
}
