/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * map.c - the allocation map of a stream, and seeks, which wait for it.
 *
 * The map is fetched in steps by a worker and used while it grows: a seek is
 * answered as soon as the map reaches far enough.  Entered by any thread;
 * everything is guarded by stream->lock.
 */
#include "backend/stream-priv.h"

#include <errno.h>

typedef struct {
    guint64 offset;
    gboolean data;
    BeSeekDone done;
    gpointer user;
    gint64 result;
    int errnum;
} BeSeek;

/* ---- Seeks ---- */

/* Returns: whether the answer is known. */
static gboolean seek_try_locked(BeStream *stream, BeSeek *seek)
{
    guint64 result = 0;

    if (seek->offset >= stream->size) {
        seek->errnum = ENXIO;
        return TRUE;
    }
    if (stream->state == BE_STREAM_DOWN) {
        seek->errnum = EIO;
        return TRUE;
    }
    if (!stream->map) {
        return FALSE;
    }
    switch (be_extents_next(stream->map, seek->offset, seek->data, &result)) {
    case BE_NEXT_FOUND:
        seek->result = (gint64)result;
        return TRUE;
    case BE_NEXT_NONE:
        seek->errnum = ENXIO;
        return TRUE;
    case BE_NEXT_UNKNOWN:
        break;
    }
    return FALSE;
}

static void seeks_try_locked(BeStream *stream, GQueue *ended)
{
    for (guint left = stream->seeks.length; left > 0; left--) {
        BeSeek *seek = g_queue_pop_head(&stream->seeks);

        g_queue_push_tail(seek_try_locked(stream, seek) ? ended : &stream->seeks, seek);
    }
}

void be_seeks_end_locked(BeStream *stream, int errnum, GQueue *ended)
{
    BeSeek *seek;

    while ((seek = g_queue_pop_head(&stream->seeks))) {
        seek->errnum = errnum;
        g_queue_push_tail(ended, seek);
    }
}

void be_seeks_deliver(GQueue *seeks)
{
    BeSeek *seek;

    while ((seek = g_queue_pop_head(seeks))) {
        seek->done(seek->errnum ? -1 : seek->result, seek->errnum, seek->user);
        g_free(seek);
    }
}

/* ---- Map ---- */

/* Takes over what one step found; an extent of no length is a lie. */
static void map_append_locked(BeStream *stream, const GArray *found)
{
    guint64 before = be_extents_end(stream->map);

    for (guint i = 0; i < found->len && !be_extents_complete(stream->map); i++) {
        const BeExtent *extent = &g_array_index(found, BeExtent, i);

        if (!be_extents_append(stream->map, extent->length, extent->flags)) {
            stream->map_state = BE_MAP_FAILED;
            return;
        }
    }
    if (be_extents_complete(stream->map)) {
        stream->map_state = BE_MAP_COMPLETE;
        stream->allocated = be_extents_data_bytes(stream->map);
    } else if (be_extents_end(stream->map) == before) {
        stream->map_state = BE_MAP_FAILED;
    }
}

/* Returns: whether there is more to do.  Takes and gives back the lock. */
static gboolean map_step_locked(BeStream *stream, GArray *found, GQueue *seeks)
{
    guint64 offset = be_extents_end(stream->map);
    gint64 timeout_us = stream->timeout_us;
    gpointer source = stream->source;
    g_autoptr(GError) error = NULL;
    gboolean ok;

    g_mutex_unlock(&stream->lock);
    g_array_set_size(found, 0);
    ok = stream->ops->extents(source, BE_EXTENTS_ALLOCATION, offset, timeout_us, found, &error);
    g_mutex_lock(&stream->lock);
    if (ok) {
        map_append_locked(stream, found);
    } else {
        stream->map_state = BE_MAP_FAILED;
    }
    seeks_try_locked(stream, seeks);
    if (stream->map_state == BE_MAP_FAILED) {
        be_seeks_end_locked(stream, be_stream_errno(error), seeks);
    }
    return stream->map_state == BE_MAP_FETCHING && stream->state == BE_STREAM_OPEN;
}

static void map_task(BeStream *stream)
{
    g_autoptr(GArray) found = g_array_new(FALSE, FALSE, sizeof(BeExtent));
    GQueue reads = G_QUEUE_INIT;
    GQueue seeks = G_QUEUE_INIT;
    gboolean more;

    g_mutex_lock(&stream->lock);
    more = stream->state == BE_STREAM_OPEN;
    while (more) {
        more = map_step_locked(stream, found, &seeks);
        if (seeks.length > 0 && more) {
            be_stream_deliver_all_and_unlock(stream, &reads, &seeks);
            g_mutex_lock(&stream->lock);
        }
    }
    be_stream_unread_locked(stream);
    be_stream_task_end_and_unlock(stream, &reads, &seeks);
}

void be_stream_map_start_locked(BeStream *stream)
{
    stream->map_wanted = FALSE;
    if (stream->map_state == BE_MAP_FETCHING || stream->map_state == BE_MAP_COMPLETE) {
        return;
    }
    if (!stream->map) {
        stream->map = be_extents_new(BE_EXTENTS_ALLOCATION, stream->size);
    }
    stream->map_state = BE_MAP_FETCHING;
    be_stream_task_start_locked(stream, map_task);
}

/* ---- Seek ---- */

static void seeks_task(BeStream *stream)
{
    GQueue reads = G_QUEUE_INIT;

    g_mutex_lock(&stream->lock);
    be_stream_task_end_and_unlock(stream, &reads, &stream->seeks_ended);
}

void be_stream_seek(BeStream *stream, guint64 offset, gboolean data, BeSeekDone done, gpointer user)
{
    BeSeek *seek = g_new(BeSeek, 1);
    gboolean known;

    *seek = (BeSeek){.offset = offset, .data = data, .done = done, .user = user, .errnum = 0};
    g_mutex_lock(&stream->lock);
    known = seek_try_locked(stream, seek);
    if (!known && !be_stream_want_locked(stream, TRUE)) {
        seek->errnum = EIO;
        known = TRUE;
    }
    if (!known) {
        g_queue_push_tail(&stream->seeks, seek);
        if (stream->state == BE_STREAM_OPEN && stream->map_state == BE_MAP_FAILED) {
            be_stream_map_start_locked(stream);
        }
    } else {
        g_queue_push_tail(&stream->seeks_ended, seek);
        if (stream->attached) {
            be_clock_kick(0);
        } else {
            be_stream_task_start_locked(stream, seeks_task);
        }
    }
    g_mutex_unlock(&stream->lock);
}
