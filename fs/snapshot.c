/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * snapshot.c - the rows of domains/<vm>/snapshots; see def.h for what each is.
 *
 * Any thread.  A snapshot's item holds a BeSnapshot.
 */
#include "fs/snapshot.h"

#include "fs/objects.h"
#include "fs/private.h"

/* ---- The collection ------------------------------------------------------- */

FsListing *fs_snapshots_list(Fs *fs, FsItem *item)
{
    return fs_objects_list(fs, item, BE_SNAPSHOTS);
}

static gboolean is_fresh(Fs *fs, FsItem *item)
{
    return be_objects_are_fresh(fs->be, BE_SNAPSHOTS, item->id);
}

static gboolean is_stale(Fs *fs, FsItem *item)
{
    return be_objects_are_stale(fs->be, BE_SNAPSHOTS, item->id);
}

static void refresh(Fs *fs, FsItem *item, BeRefreshDone done, gpointer user)
{
    be_objects_refresh(fs->be, BE_SNAPSHOTS, item->id, done, user);
}

const FsFresh fs_snapshots_fresh = {is_fresh, is_stale, refresh};

char *fs_snapshots_current(Fs *fs, FsItem *item)
{
    g_autoptr(BeObjectList) list = be_objects(fs->be, BE_SNAPSHOTS, item->id);

    return list->current ? fs_objects_file_name(fs, item, BE_SNAPSHOTS, list->current) : NULL;
}

/* ---- One snapshot ---------------------------------------------------------- */

gboolean fs_snapshot_show_state(Fs *fs G_GNUC_UNUSED, FsItem *item, GString *out,
                                GError **error G_GNUC_UNUSED)
{
    const BeSnapshot *snapshot = item->data;

    g_string_append_printf(out, "%s\n", snapshot->state);
    return TRUE;
}

void fs_snapshot_fetch_xml(Fs *fs, FsItem *item, BeTextDone done, gpointer user)
{
    be_snapshot_xml_fetch(fs->be, item->data, done, user);
}

void fs_snapshot_fetch_domain_xml(Fs *fs, FsItem *item, BeTextDone done, gpointer user)
{
    be_snapshot_domain_xml_fetch(fs->be, item->data, done, user);
}

void fs_snapshot_xattrs(FsItem *item, FsXattrAdd add, gpointer user)
{
    const BeSnapshot *snapshot = item->data;

    fs_object_xattrs(item, add, user);
    add("state", snapshot->state, user);
    add("memory", be_part_name(snapshot->memory), user);
}
