/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * dirty-map.c - what has changed on a disk: fetching it, and as text.
 *
 * Entered by any thread.  The map of allocation comes first, because it opens the
 * stream (view-map.c); the dirty one is then fetched on a worker of the streams, once
 * for all who wait for it, and they are called on that worker.
 */
#include <errno.h>

#include "backend/error.h"
#include "backend/stream-priv.h"
#include "backend/view-map.h"

typedef struct {
    BeStream *stream;          /* a reference */
    const BeExtents *map;
    BeDirtyReady ready;
    gpointer user;
} DirtyWait;

/* ---- Fetching ---- */

static void wait_end(DirtyWait *wait, const BeExtents *dirty, int errnum)
{
    wait->ready(wait->stream, dirty ? wait->map : NULL, dirty, errnum, wait->user);
    be_stream_unref(wait->stream);
    g_free(wait);
}

static int errno_of(const GError *error)
{
    return g_error_matches(error, BE_ERROR, EUCLEAN) ? EUCLEAN : be_stream_errno(error);
}

/* Returns: 0 when there is something new.  Takes and gives back the lock. */
static int step_locked(BeStream *stream, GArray *found)
{
    guint64 offset = be_extents_end(stream->dirty);
    gint64 timeout_us = stream->timeout_us;
    gpointer source = stream->source;
    g_autoptr(GError) error = NULL;
    gboolean ok;

    g_mutex_unlock(&stream->lock);
    g_array_set_size(found, 0);
    ok = stream->ops->extents(source, BE_EXTENTS_DIRTY, offset, timeout_us, found, &error);
    g_mutex_lock(&stream->lock);
    if (!ok) {
        return errno_of(error);
    }
    for (guint i = 0; i < found->len && !be_extents_complete(stream->dirty); i++) {
        const BeExtent *extent = &g_array_index(found, BeExtent, i);

        /* An extent of no length is a lie. */
        if (!be_extents_append(stream->dirty, extent->length, extent->flags)) {
            return EIO;
        }
    }
    return be_extents_end(stream->dirty) > offset ? 0 : EIO;
}

/* Calls all who wait, without the lock. */
static void waits_end_locked(BeStream *stream, int errnum)
{
    const BeExtents *dirty = errnum ? NULL : stream->dirty;
    DirtyWait *wait;

    stream->dirty_state = errnum ? BE_MAP_FAILED : BE_MAP_COMPLETE;
    while ((wait = g_queue_pop_head(&stream->dirty_waits))) {
        g_mutex_unlock(&stream->lock);
        wait_end(wait, dirty, errnum);
        g_mutex_lock(&stream->lock);
    }
}

static void dirty_task(BeStream *stream)
{
    g_autoptr(GArray) found = g_array_new(FALSE, FALSE, sizeof(BeExtent));
    GQueue reads = G_QUEUE_INIT;
    GQueue seeks = G_QUEUE_INIT;
    int errnum = 0;

    g_mutex_lock(&stream->lock);
    while (errnum == 0 && !be_extents_complete(stream->dirty)) {
        errnum = stream->state == BE_STREAM_OPEN ? step_locked(stream, found) : EIO;
    }
    waits_end_locked(stream, errnum);
    be_stream_task_end_and_unlock(stream, &reads, &seeks);
}

/* Goes on where it stopped, should it have failed. */
static void start_locked(BeStream *stream)
{
    if (!stream->dirty) {
        stream->dirty = be_extents_new(BE_EXTENTS_DIRTY, stream->size);
    }
    stream->dirty_state = BE_MAP_FETCHING;
    be_stream_task_start_locked(stream, dirty_task);
}

static void allocation_ready(BeStream *stream, const BeExtents *map, int errnum, gpointer user)
{
    DirtyWait *wait = user;
    const BeExtents *dirty = NULL;

    wait->map = map;
    if (!map) {
        wait_end(wait, NULL, errnum);
        return;
    }
    g_mutex_lock(&stream->lock);
    if (stream->dirty_state == BE_MAP_COMPLETE) {
        dirty = stream->dirty;
    } else {
        g_queue_push_tail(&stream->dirty_waits, wait);
        if (stream->dirty_state != BE_MAP_FETCHING) {
            start_locked(stream);
        }
    }
    g_mutex_unlock(&stream->lock);
    if (dirty) {
        wait_end(wait, dirty, 0);
    }
}

void be_stream_with_dirty(BeStream *stream, BeDirtyReady ready, gpointer user)
{
    DirtyWait *wait = g_new0(DirtyWait, 1);

    wait->stream = be_stream_ref(stream);
    wait->ready = ready;
    wait->user = user;
    be_stream_with_map(stream, allocation_ready, wait);
}

/* ---- Text ---- */

typedef struct {
    guint64 start;
    guint64 length;
    gboolean dirty;
    gboolean zero;
} Entry;

static void print_entry(GString *out, const Entry *entry)
{
    g_string_append_printf(out,
                           "%s{ \"start\": %" G_GUINT64_FORMAT ", \"length\": %" G_GUINT64_FORMAT
                           ", \"dirty\": %s, \"zero\": %s}",
                           out->len > 1 ? ",\n" : "", entry->start, entry->length,
                           entry->dirty ? "true" : "false", entry->zero ? "true" : "false");
}

/* What both maps say of the byte at @offset, and how far that holds. */
static gboolean entry_at(const BeExtents *map, const BeExtents *dirty, guint64 offset, Entry *ret)
{
    BeExtent allocation, change;
    guint64 end;

    if (!be_extents_lookup(map, offset, &allocation)
        || !be_extents_lookup(dirty, offset, &change)) {
        return FALSE;
    }
    end = MIN(allocation.start + allocation.length, change.start + change.length);
    *ret = (Entry){.start = offset, .length = end - offset,
                   .dirty = be_extents_is_data(dirty, change.flags),
                   .zero = !be_extents_is_data(map, allocation.flags)};
    return TRUE;
}

char *be_dirty_map_text(const BeExtents *map, const BeExtents *dirty, GError **error)
{
    g_autoptr(GString) out = g_string_new("[");
    Entry last = {.length = 0};
    Entry entry;

    for (guint64 at = 0; entry_at(map, dirty, at, &entry); at += entry.length) {
        if (last.length > 0 && last.dirty == entry.dirty && last.zero == entry.zero) {
            last.length += entry.length;
            continue;
        }
        if (last.length > 0) {
            print_entry(out, &last);
        }
        if (out->len >= BE_MAP_TEXT_MAX) {
            g_set_error(error, BE_ERROR, EFBIG,
                        "what changed on this disk are too many extents for one text");
            return NULL;
        }
        last = entry;
    }
    if (last.length > 0) {
        print_entry(out, &last);
    }
    g_string_append(out, "]\n");
    return g_string_free(g_steal_pointer(&out), FALSE);
}

typedef struct {
    BeTextDone done;
    gpointer user;
} TextWait;

static void text_ready(BeStream *stream G_GNUC_UNUSED, const BeExtents *map,
                       const BeExtents *dirty, int errnum, gpointer user)
{
    g_autofree TextWait *wait = user;
    g_autoptr(GError) error = NULL;
    g_autofree char *text = dirty ? be_dirty_map_text(map, dirty, &error) : NULL;

    if (!dirty) {
        be_error_set_errno(&error, errnum, "what changed on the disk cannot be found out");
    }
    wait->done(text, error, wait->user);
}

void be_disk_dirty_map_fetch(const BeDisk *disk, BeTextDone done, gpointer user)
{
    TextWait *wait = g_new(TextWait, 1);

    *wait = (TextWait){.done = done, .user = user};
    be_stream_with_dirty(disk->stream, text_ready, wait);
}
