/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * feed.h - what happened: the lines of .vmsnapfs/events and events.follow.
 */
#pragma once

#include "backend/backend.h"

typedef struct FsFeed FsFeed;

FsFeed *fs_feed_new(void);
void fs_feed_free(FsFeed *feed);

/**
 * fs_feed_add: one event as a line of JSON.  Wakes the waiters.
 */
void fs_feed_add(FsFeed *feed, const BeEvent *event);

/**
 * fs_feed_print: appends all lines that are kept (the newest 1,000).
 */
void fs_feed_print(FsFeed *feed, GString *out);

/**
 * FsFeedCursor: how far one reader is; all 0 at first.
 */
typedef struct {
    guint64 line;              /* the next one, counted from the first ever added */
    gsize byte;                /* of it, where the reader took only a part */
} FsFeedCursor;

/**
 * fs_feed_next: takes what follows @cursor, at most @max bytes, and moves the
 * cursor: whole lines, or a part of one for a reader who has room for no more
 * (a shell's `read` takes byte by byte).
 * Returns: FALSE when there is nothing yet.
 */
gboolean fs_feed_next(FsFeed *feed, FsFeedCursor *cursor, gsize max, GString *out);

/**
 * fs_feed_wait: has @wake called once, on the thread that adds the next event
 * (or closes the feed), when nothing follows @cursor; at once otherwise.
 * @user: for @wake; what fs_feed_cancel() knows the waiter by
 */
typedef void (*FsFeedWake)(gpointer user);
void fs_feed_wait(FsFeed *feed, const FsFeedCursor *cursor, FsFeedWake wake, gpointer user);

/**
 * fs_feed_cancel: Returns: TRUE when @user waited and will not be woken any
 * more.
 */
gboolean fs_feed_cancel(FsFeed *feed, gconstpointer user);

/**
 * fs_feed_close: wakes all waiters for good; fs_feed_closed() is TRUE then.
 */
void fs_feed_close(FsFeed *feed);
gboolean fs_feed_closed(FsFeed *feed);
