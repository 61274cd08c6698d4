/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * disk.c - a disk with its stream and views; see disk.h.
 *
 * Any thread; what changes in a disk has locks of its own.
 */
#include "backend/disk.h"

#include "backend/view-qcow2.h"

/* The stream of the disk and those of its views, as far as there are any. */
#define STREAMS 3

static void streams_of(const BeDisk *disk, BeStream *ret_streams[STREAMS])
{
    ret_streams[0] = disk->stream;
    ret_streams[1] = be_view_stream(disk->full);
    ret_streams[2] = be_view_stream(disk->incremental);
}

BeDisk *be_disk_new(const char *target, guint64 size, guint64 allocated, BeStream *stream)
{
    BeDisk *disk = g_new0(BeDisk, 1);

    disk->target = g_strdup(target);
    disk->size = size;
    disk->allocated = allocated;
    disk->stream = stream;
    disk->full = be_view_new();
    disk->incremental = be_view_new();
    return disk;
}

void be_disk_set_backing(BeDisk *disk, const char *name, const char *format)
{
    g_free(disk->backing_name);
    disk->backing_name = g_strdup(name);
    disk->backing_format = g_intern_string(format);
}

void be_disk_free(gpointer data)
{
    BeDisk *disk = data;

    if (!disk) {
        return;
    }
    be_view_free(disk->full);
    be_view_free(disk->incremental);
    be_stream_unref(disk->stream);
    g_free(disk->backing_name);
    g_free(disk->full_because);
    g_free(disk->target);
    g_free(disk);
}

void be_disk_fail(const BeDisk *disk, const char *reason)
{
    if (disk->stream) {
        be_stream_fail(disk->stream, reason);
    }
    be_view_fail(disk->full, reason);
    be_view_fail(disk->incremental, reason);
}

/* In this order: what the views have under way ends when the disk's stream fails. */
void be_disk_close(const BeDisk *disk)
{
    if (!disk->stream) {
        return;
    }
    be_stream_fail(disk->stream, "closed");
    be_view_close(disk->full);
    be_view_close(disk->incremental);
    be_stream_close(disk->stream);
}

guint64 be_disk_bytes_read(const BeDisk *disk)
{
    BeStream *streams[STREAMS];
    guint64 bytes = 0;

    streams_of(disk, streams);
    for (guint i = 0; i < STREAMS; i++) {
        bytes += streams[i] ? be_stream_bytes_read(streams[i]) : 0;
    }
    return bytes;
}

guint64 be_disk_read_rate(const BeDisk *disk)
{
    BeStream *streams[STREAMS];
    guint64 rate = 0;

    streams_of(disk, streams);
    for (guint i = 0; i < STREAMS; i++) {
        rate += streams[i] ? be_stream_read_rate(streams[i]) : 0;
    }
    return rate;
}

double be_disk_progress(const BeDisk *disk)
{
    BeStream *streams[STREAMS];
    double progress = 0;

    streams_of(disk, streams);
    for (guint i = 0; i < STREAMS; i++) {
        progress = MAX(progress, streams[i] ? be_stream_progress(streams[i]) : 0);
    }
    return progress;
}

/* A view takes over the rate of the disk's stream when it is made. */
void be_disk_set_rate(const BeDisk *disk, BeRate *rate)
{
    BeStream *streams[STREAMS];

    if (disk->stream) {
        be_stream_set_rate(disk->stream, rate);
    }
    streams_of(disk, streams);
    for (guint i = 1; i < STREAMS; i++) {
        if (streams[i]) {
            be_stream_set_rate(streams[i], rate);
        }
    }
}

static guint count_readers(const BeDisk *disk, guint (*count)(BeStream *stream))
{
    BeStream *streams[STREAMS];
    guint readers = 0;

    streams_of(disk, streams);
    for (guint i = 0; i < STREAMS; i++) {
        readers += streams[i] ? count(streams[i]) : 0;
    }
    return readers;
}

guint be_disk_readers(const BeDisk *disk)
{
    return count_readers(disk, be_stream_readers);
}

guint be_disk_takers(const BeDisk *disk)
{
    return count_readers(disk, be_stream_takers);
}

gboolean be_disk_was_taken(const BeDisk *disk)
{
    BeStream *streams[STREAMS];
    gboolean taken = FALSE;

    streams_of(disk, streams);
    for (guint i = 0; i < STREAMS; i++) {
        taken = taken || (streams[i] && be_stream_was_read_whole(streams[i]));
    }
    return taken;
}
