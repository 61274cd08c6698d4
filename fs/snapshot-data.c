/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * snapshot-data.c - the disks of a snapshot, and its memory; see def.h for what each
 * function is.
 *
 * Any thread.  A disk's item holds the BeSnapshotFile of its parent's snapshot.
 */
#include "fs/name.h"
#include "fs/private.h"
#include "fs/snapshot.h"

static gboolean is_memory(const BeSnapshotFile *file)
{
    return file->part == BE_PART_NONE;
}

/* One file for each disk; @suffix tells the views of a disk apart. */
static FsListing *list_disks(FsItem *item, const char *suffix)
{
    const BeSnapshot *snapshot = item->data;
    const GPtrArray *files = snapshot->files;
    FsListing *listing = fs_listing_new();

    for (guint i = 0; i < files->len; i++) {
        BeSnapshotFile *file = g_ptr_array_index(files, i);
        g_autofree char *id = g_strdup_printf("%s/%s%s", item->id, file->target, suffix);
        g_autofree char *name = fs_name_encode(file->target, id);

        if (!is_memory(file)) {
            fs_listing_add(listing,
                           fs_item_new(item, id, g_strconcat(name, suffix, NULL), file, NULL));
        }
    }
    return listing;
}

FsListing *fs_snapshot_disks_list(Fs *fs G_GNUC_UNUSED, FsItem *item)
{
    return list_disks(item, ".raw");
}

FsListing *fs_snapshot_full_list(Fs *fs G_GNUC_UNUSED, FsItem *item)
{
    return list_disks(item, ".qcow2");
}

FsListing *fs_snapshot_maps_list(Fs *fs G_GNUC_UNUSED, FsItem *item)
{
    return list_disks(item, ".json");
}

/* ---- Disks ---------------------------------------------------------------------- */

BeStream *fs_snapshot_disk_stream(FsItem *item)
{
    const BeDisk *disk = be_snapshot_file_disk(item->data);

    return disk ? disk->stream : NULL;
}

void fs_snapshot_disk_prepare(FsItem *item, BeDone done, gpointer user)
{
    be_snapshot_file_prepare(item->parent->data, item->data, done, user);
}

void fs_snapshot_disk_xattrs(FsItem *item, FsXattrAdd add, gpointer user)
{
    fs_snapshot_xattrs(item->parent, add, user);
}

BeStream *fs_snapshot_full_stream(FsItem *item)
{
    const BeDisk *disk = be_snapshot_file_disk(item->data);

    return disk ? be_disk_full(disk) : NULL;
}

/* What goes on once the disk is prepared; keeps its item. */
typedef struct {
    FsItem *item;
    BeDone done;
    BeTextDone text_done;
    gpointer user;
} Next;

static Next *next_new(FsItem *item, BeDone done, BeTextDone text_done, gpointer user)
{
    Next *next = g_new0(Next, 1);

    next->item = fs_item_ref(item);
    next->done = done;
    next->text_done = text_done;
    next->user = user;
    return next;
}

static void next_free(Next *next)
{
    fs_item_unref(next->item);
    g_free(next);
}

static void full_prepared(const GError *error, gpointer user)
{
    Next *next = user;

    next->done(error, next->user);
    next_free(next);
}

static void prepare_full(const GError *error, gpointer user)
{
    Next *next = user;

    if (error) {
        full_prepared(error, next);
    } else {
        be_disk_full_prepare(be_snapshot_file_disk(next->item->data), full_prepared, next);
    }
}

void fs_snapshot_full_prepare(FsItem *item, BeDone done, gpointer user)
{
    fs_snapshot_disk_prepare(item, prepare_full, next_new(item, done, NULL, user));
}

static void map_fetched(const char *text, const GError *error, gpointer user)
{
    Next *next = user;

    next->text_done(text, error, next->user);
    next_free(next);
}

static void fetch_map(const GError *error, gpointer user)
{
    Next *next = user;

    if (error) {
        map_fetched(NULL, error, next);
    } else {
        be_stream_map_fetch(fs_snapshot_disk_stream(next->item), map_fetched, next);
    }
}

void fs_snapshot_fetch_map(Fs *fs G_GNUC_UNUSED, FsItem *item, BeTextDone done, gpointer user)
{
    fs_snapshot_disk_prepare(item, fetch_map, next_new(item, NULL, done, user));
}

/* ---- Memory ----------------------------------------------------------------------- */

/* The last of the files, and always there where the snapshot has external memory. */
static BeSnapshotFile *memory_of(FsItem *item)
{
    const BeSnapshot *snapshot = item->data;

    return g_ptr_array_index(snapshot->files, snapshot->files->len - 1);
}

gboolean fs_snapshot_has_memory(FsItem *item)
{
    const BeSnapshot *snapshot = item->data;

    return snapshot->memory_file != NULL;
}

BeStream *fs_snapshot_memory_stream(FsItem *item)
{
    const BeDisk *disk = be_snapshot_file_disk(memory_of(item));

    return disk ? disk->stream : NULL;
}

void fs_snapshot_memory_prepare(FsItem *item, BeDone done, gpointer user)
{
    be_snapshot_file_prepare(item->data, memory_of(item), done, user);
}

/* ---- The guest's files ------------------------------------------------------------ */

BeFiles *fs_snapshot_files(FsItem *item)
{
    return be_snapshot_guest_files(item->data);
}
