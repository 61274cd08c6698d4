/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * snapshot.c - the rows of domains/<vm>/snapshots; see def.h for what each is.
 *
 * Any thread.  A snapshot's item holds a BeSnapshot.
 */
#include "fs/snapshot.h"

#include <errno.h>

#include "fs/name.h"
#include "fs/objects.h"
#include "fs/private.h"

/* ---- The collection ------------------------------------------------------- */

FsListing *fs_snapshots_list(Fs *fs, FsItem *item)
{
    return fs_objects_list(fs, item, BE_SNAPSHOTS);
}

char *fs_snapshots_current(Fs *fs, FsItem *item)
{
    g_autoptr(BeObjectList) list = be_objects(fs->be, BE_SNAPSHOTS, item->id);

    return list->current ? fs_objects_file_name(fs, item, BE_SNAPSHOTS, list->current) : NULL;
}

static BeJob *create(const FsAct *act, const char *name, const BeSnapshotOptions *options)
{
    return be_snapshot_create(act->be, act->item->id, name, options, act->caller, act->done,
                              act->user);
}

BeJob *fs_snapshots_make(const FsAct *act, const char *name, GError **error G_GNUC_UNUSED)
{
    return create(act, name, NULL);
}

const char *const fs_snapshot_keys[] = {"memory", "disk", "quiesce", "only", "description", NULL};

static gboolean parse_options(const FsCommand *command, BeSnapshotOptions *options, GError **error)
{
    const char *memory = g_hash_table_lookup(command->options, "memory");
    const char *disk = g_hash_table_lookup(command->options, "disk");
    const char *quiesce = g_hash_table_lookup(command->options, "quiesce");
    const char *description = g_hash_table_lookup(command->options, "description");
    const char *wrong = NULL;

    options->description = description && *description ? description : NULL;
    options->live = command->words->len == 2;
    if (options->live && !g_str_equal(g_ptr_array_index(command->words, 1), "live")) {
        wrong = "the only word behind the name is live";
    } else if (memory && !be_part_parse(memory, &options->memory)) {
        wrong = "memory is none, internal or external";
    } else if (disk && (!be_part_parse(disk, &options->disk) || options->disk == BE_PART_NONE)) {
        wrong = "disk is internal or external";
    } else if (quiesce && !be_quiesce_parse(quiesce, &options->quiesce)) {
        wrong = "quiesce is try, require or off";
    } else if (options->only && options->only[0] == NULL) {
        wrong = "only= names no disk";
    }
    if (wrong) {
        g_set_error_literal(error, BE_ERROR, EINVAL, wrong);
    }
    return wrong == NULL;
}

BeJob *fs_snapshot_run_create(const FsAct *act, const FsCommand *command, GError **error)
{
    const char *name = g_ptr_array_index(command->words, 0);
    const char *only = g_hash_table_lookup(command->options, "only");
    g_auto(GStrv) targets = only ? g_strsplit(only, ",", -1) : NULL;
    BeSnapshotOptions options = {.only = (const char *const *)targets};

    if (!fs_name_check_new(name, error) || !parse_options(command, &options, error)) {
        return NULL;
    }
    /* The guest's memory, or internal disks, which take it in: minutes. */
    if (options.memory == BE_PART_INTERNAL || options.memory == BE_PART_EXTERNAL
        || options.disk == BE_PART_INTERNAL) {
        *act->ret_slow = TRUE;
    }
    return create(act, name, &options);
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
