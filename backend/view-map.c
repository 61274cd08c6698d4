/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * view-map.c - the allocation map of a disk as text, and waiting for a map.
 *
 * Entered by any thread.  What is made of a map can take a while (a million
 * extents), and a seek may end on the clock that all streams share: so the work
 * goes to a small pool of its own.  The stream is busy meanwhile, which is what
 * be_stream_close() waits for.
 */
#include "backend/view-map.h"

#include <errno.h>

#include "backend/error.h"
#include "backend/stream-priv.h"

#define WORKERS 2

/* As QEMU counts: the length of a disk is a number of sectors. */
#define SECTOR 512u

typedef struct {
    BeStream *stream;          /* a reference */
    BeMapReady ready;
    gpointer user;
    const BeExtents *map;
} MapWait;

/* ---- Waiting ---- */

static void map_wait_run(gpointer data, gpointer user G_GNUC_UNUSED)
{
    MapWait *wait = data;
    BeStream *stream = wait->stream;

    wait->ready(stream, wait->map, 0, wait->user);
    g_mutex_lock(&stream->lock);
    be_stream_busy_end_locked(stream);
    g_mutex_unlock(&stream->lock);
    be_stream_unref(stream);
    g_free(wait);
}

static void map_wait_push(MapWait *wait)
{
    static gsize once;
    static GThreadPool *pool;

    if (g_once_init_enter(&once)) {
        pool = g_thread_pool_new(map_wait_run, NULL, WORKERS, FALSE, NULL);
        g_once_init_leave(&once, 1);
    }
    g_thread_pool_push(pool, wait, NULL);
}

/*
 * The last byte was found, or found to be in a hole: so all before it is known.
 * An empty disk has nothing to ask for, and may have no map.
 */
static const BeExtents *known_map_locked(BeStream *stream)
{
    if (stream->state == BE_STREAM_DOWN) {
        return NULL;
    }
    if (!stream->map) {
        stream->map = be_extents_new(BE_EXTENTS_ALLOCATION, stream->size);
    }
    return stream->map;
}

static void map_sought(gint64 offset G_GNUC_UNUSED, int errnum, gpointer user)
{
    MapWait *wait = user;
    BeStream *stream = wait->stream;

    g_mutex_lock(&stream->lock);
    if (errnum == 0 || errnum == ENXIO) {
        wait->map = known_map_locked(stream);
        errnum = EIO;
    }
    /* A stream that did not fail is not being closed: that waits for us. */
    if (wait->map) {
        stream->busy++;
    }
    g_mutex_unlock(&stream->lock);
    if (wait->map) {
        map_wait_push(wait);
        return;
    }
    wait->ready(stream, NULL, errnum, wait->user);
    be_stream_unref(stream);
    g_free(wait);
}

void be_stream_with_map(BeStream *stream, BeMapReady ready, gpointer user)
{
    MapWait *wait = g_new0(MapWait, 1);

    wait->stream = be_stream_ref(stream);
    wait->ready = ready;
    wait->user = user;
    be_stream_seek(stream, stream->size ? stream->size - 1 : 0, TRUE, map_sought, wait);
}

/* ---- Text ---- */

static const char *truth(gboolean value)
{
    return value ? "true" : "false";
}

/*
 * An extent as get_block_status() and dump_map_entry() of qemu-img.c see it: the
 * driver gives an offset for all, and it is dropped with what is neither data
 * nor zero, because that would come from a backing file.
 */
static void print_entry(GString *out, const BeExtent *extent, gboolean has_offset)
{
    gboolean zero = (extent->flags & BE_EXTENT_ZERO) != 0;
    gboolean data = !(extent->flags & BE_EXTENT_HOLE);

    g_string_append_printf(out,
                           "%s{ \"start\": %" G_GUINT64_FORMAT ", \"length\": %" G_GUINT64_FORMAT
                           ", \"depth\": 0, \"present\": %s, \"zero\": %s, \"data\": %s",
                           out->len > 1 ? ",\n" : "", extent->start, extent->length,
                           truth(zero || data), truth(zero), truth(data));
    if (has_offset && (zero || data)) {
        g_string_append_printf(out, ", \"offset\": %" G_GUINT64_FORMAT, extent->start);
    }
    g_string_append_c(out, '}');
}

char *be_map_text(const BeExtents *map, guint64 size, GError **error)
{
    static const char empty[] = "[{ \"start\": 0, \"length\": 0, \"depth\": 0, \"present\": false,"
                                " \"zero\": false, \"data\": false}]\n";
    g_autoptr(GString) out = g_string_new("[");
    BeExtent extent;

    if (be_extents_count(map) == 0) {
        return g_strdup(empty);
    }
    for (guint i = 0; i < be_extents_count(map) && out->len < BE_MAP_TEXT_MAX; i++) {
        be_extents_get(map, i, &extent);
        print_entry(out, &extent, TRUE);
    }
    if (out->len >= BE_MAP_TEXT_MAX) {
        g_set_error(error, BE_ERROR, EFBIG,
                    "the map of this disk has %u extents, too many for one text; SEEK_DATA and "
                    "SEEK_HOLE find them",
                    be_extents_count(map));
        return NULL;
    }
    if (size % SECTOR) {
        extent.start = size;
        extent.length = SECTOR - size % SECTOR;
        extent.flags = BE_EXTENT_HOLE | BE_EXTENT_ZERO;
        print_entry(out, &extent, FALSE);
    }
    g_string_append(out, "]\n");
    return g_string_free(g_steal_pointer(&out), FALSE);
}

typedef struct {
    BeTextDone done;
    gpointer user;
} TextWait;

static void text_ready(BeStream *stream, const BeExtents *map, int errnum, gpointer user)
{
    g_autofree TextWait *wait = user;
    g_autoptr(GError) error = NULL;
    g_autofree char *text = map ? be_map_text(map, be_stream_size(stream), &error) : NULL;

    if (!map) {
        be_error_set_errno(&error, errnum, "the map of the disk cannot be had");
    }
    wait->done(text, error, wait->user);
}

void be_stream_map_fetch(BeStream *stream, BeTextDone done, gpointer user)
{
    TextWait *wait = g_new(TextWait, 1);

    *wait = (TextWait){.done = done, .user = user};
    be_stream_with_map(stream, text_ready, wait);
}
