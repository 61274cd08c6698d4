/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * disk.c - a disk with its stream and views; see disk.h.
 *
 * Any thread; what changes in a disk has locks of its own.
 */
#include "backend/disk.h"

#include "backend/view-qcow2.h"

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
    return (disk->stream ? be_stream_bytes_read(disk->stream) : 0)
           + be_view_bytes_read(disk->full) + be_view_bytes_read(disk->incremental);
}

guint be_disk_readers(const BeDisk *disk)
{
    return (disk->stream ? be_stream_readers(disk->stream) : 0) + be_view_readers(disk->full)
           + be_view_readers(disk->incremental);
}

gboolean be_disk_was_taken(const BeDisk *disk)
{
    return (disk->stream && be_stream_was_read_whole(disk->stream))
           || be_view_was_read_whole(disk->full) || be_view_was_read_whole(disk->incremental);
}
