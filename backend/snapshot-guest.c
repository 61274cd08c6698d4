/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * snapshot-guest.c - the guest's files as of a snapshot: BeFiles over its disks.
 *
 * A snapshot's disks have no stream before somebody asks for one.  So its BeFiles has
 * disks of its own, which get the streams of the snapshot's before an appliance starts,
 * and may outlive the snapshot as long as an appliance takes to end.
 *
 * Any thread asks; query workers prepare.
 */
#include <errno.h>

#include "backend/disk.h"
#include "backend/error.h"
#include "backend/files.h"
#include "backend/readings.h"
#include "backend/snapshot.h"

typedef struct {
    BeSnapshot *snapshot;      /* a reference */
    guint next;                /* index in its files */
    GPtrArray *disks;          /* of BeDisk, of the BeFiles that waits */
    BeDone done;
    gpointer user;
} Preparation;

static gboolean is_disk(const BeSnapshotFile *file)
{
    return file->part != BE_PART_NONE;
}

static void finish(Preparation *preparation, const GError *error)
{
    preparation->done(error, preparation->user);
    be_object_unref(&preparation->snapshot->object);
    g_ptr_array_unref(preparation->disks);
    g_free(preparation);
}

static void prepare_next(Preparation *preparation);

/* The disks are in the order of the files, the memory file comes last. */
static void disk_prepared(const GError *error, gpointer user)
{
    Preparation *preparation = user;
    BeSnapshotFile *file =
        g_ptr_array_index(preparation->snapshot->files, preparation->next);
    BeDisk *disk = g_ptr_array_index(preparation->disks, preparation->next);

    if (error) {
        finish(preparation, error);
        return;
    }
    if (!disk->stream) {
        const BeDisk *from = be_snapshot_file_disk(file);

        disk->size = from->size;
        disk->stream = be_stream_ref(from->stream);
    }
    preparation->next++;
    prepare_next(preparation);
}

static void prepare_next(Preparation *preparation)
{
    const BeSnapshot *snapshot = preparation->snapshot;
    g_autoptr(GError) error = NULL;

    if (!be_readings_are_allowed(snapshot->object.be, snapshot->object.domain_uuid, &error)
        || preparation->next == preparation->disks->len) {
        finish(preparation, error);
        return;
    }
    be_snapshot_file_prepare(preparation->snapshot,
                             g_ptr_array_index(snapshot->files, preparation->next), disk_prepared,
                             preparation);
}

/* Whoever asks for a path has the snapshot. */
static void prepare(gpointer user, BeDone done, gpointer done_user)
{
    BeSnapshot *snapshot = user;
    Preparation *preparation = g_new0(Preparation, 1);

    be_object_ref(&snapshot->object);
    preparation->snapshot = snapshot;
    preparation->disks = g_ptr_array_ref(be_files_disks(snapshot->guest_files));
    preparation->done = done;
    preparation->user = done_user;
    prepare_next(preparation);
}

static BeFiles *make(BeSnapshot *snapshot)
{
    const BeObject *object = &snapshot->object;
    g_autoptr(BeDomain) domain = be_domain_find(object->be, object->domain_uuid);
    g_autofree char *name = g_strdup_printf("the snapshot '%s' of '%s'", object->name,
                                            domain ? domain->name : object->domain_uuid);
    GPtrArray *disks = g_ptr_array_new_with_free_func(be_disk_free);

    for (guint i = 0; i < snapshot->files->len; i++) {
        const BeSnapshotFile *file = g_ptr_array_index(snapshot->files, i);

        if (is_disk(file)) {
            g_ptr_array_add(disks, be_disk_new(file->target, 0, 0, NULL));
        }
    }
    return be_files_new_prepared(object->be->files_pool, name, disks, object->domain_uuid, prepare,
                                 snapshot);
}

BeFiles *be_snapshot_guest_files(BeSnapshot *snapshot)
{
    BeFiles *files = g_atomic_pointer_get(&snapshot->guest_files);

    if (!files) {
        files = make(snapshot);
        if (!g_atomic_pointer_compare_and_exchange(&snapshot->guest_files, NULL, files)) {
            be_files_discard(files);
            files = g_atomic_pointer_get(&snapshot->guest_files);
        }
    }
    return files;
}
