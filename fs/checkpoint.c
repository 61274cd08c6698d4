/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * checkpoint.c - the rows of domains/<vm>/checkpoints; see def.h for what each is.
 *
 * Any thread.  A checkpoint's item holds a BeCheckpoint; that of a file in changed/
 * the target of a disk.
 */
#include "fs/checkpoint.h"

#include <errno.h>
#include <string.h>

#include "fs/dir.h"
#include "fs/name.h"
#include "fs/objects.h"
#include "fs/private.h"

/* ---- The collection ------------------------------------------------------- */

FsListing *fs_checkpoints_list(Fs *fs, FsItem *item)
{
    return fs_objects_list(fs, item, BE_CHECKPOINTS);
}

/*
 * The newest; libvirt counts in seconds, so of those made in the same second the
 * one that has no child.
 */
char *fs_checkpoints_latest(Fs *fs, FsItem *item)
{
    g_autoptr(BeObjectList) list = be_objects(fs->be, BE_CHECKPOINTS, item->id);
    g_autoptr(GHashTable) parents = g_hash_table_new(g_str_hash, g_str_equal);
    const BeObject *latest = NULL;

    for (guint i = 0; i < list->objects->len; i++) {
        const BeObject *object = g_ptr_array_index(list->objects, i);

        if (object->parent) {
            g_hash_table_add(parents, object->parent);
        }
    }
    for (guint i = list->objects->len; i > 0; i--) {
        const BeObject *object = g_ptr_array_index(list->objects, i - 1);

        if (latest && object->created_us != latest->created_us) {
            break;
        }
        if (!latest || !g_hash_table_contains(parents, object->name)) {
            latest = object;
        }
    }
    return latest ? fs_name_encode(latest->name, latest->id) : NULL;
}

static BeJob *create(const FsAct *act, const char *name, const BeCheckpointOptions *options)
{
    return be_checkpoint_create(act->be, act->item->id, name, options, act->caller, act->done,
                                act->user);
}

BeJob *fs_checkpoints_make(const FsAct *act, const char *name, GError **error G_GNUC_UNUSED)
{
    return create(act, name, NULL);
}

BeJob *fs_checkpoint_run_create(const FsAct *act, const FsCommand *command, GError **error)
{
    const char *name = g_ptr_array_index(command->words, 0);
    const char *only = g_hash_table_lookup(command->options, "only");
    const char *quiesce = g_hash_table_lookup(command->options, "quiesce");
    g_auto(GStrv) targets = only ? g_strsplit(only, ",", -1) : NULL;
    BeCheckpointOptions options = {
        .only = (const char *const *)targets,
        .description = g_hash_table_lookup(command->options, "description")};

    if (!fs_name_check_new(name, error)) {
        return NULL;
    }
    if (g_str_equal(name, "latest") || g_str_equal(name, "none")) {
        g_set_error(error, BE_ERROR, EINVAL, "'%s' is a name of the tree itself", name);
        return NULL;
    }
    if (quiesce && !be_quiesce_parse(quiesce, &options.quiesce)) {
        g_set_error(error, BE_ERROR, EINVAL, "quiesce is try, require or off");
        return NULL;
    }
    if (targets && targets[0] == NULL) {
        g_set_error(error, BE_ERROR, EINVAL, "only= names no disk");
        return NULL;
    }
    return create(act, name, &options);
}

/* ---- One checkpoint ------------------------------------------------------- */

BeJob *fs_checkpoint_drop(const FsAct *act, GError **error G_GNUC_UNUSED)
{
    return be_checkpoint_delete(act->be, act->item->data, BE_CHECKPOINT_ALONE, act->done,
                                act->user);
}

void fs_checkpoint_fetch_xml(Fs *fs, FsItem *item, BeTextDone done, gpointer user)
{
    be_checkpoint_xml_fetch(fs->be, item->data, done, user);
}

void fs_checkpoint_fetch_domain_xml(Fs *fs, FsItem *item, BeTextDone done, gpointer user)
{
    be_checkpoint_domain_xml_fetch(fs->be, item->data, done, user);
}

void fs_checkpoint_fetch_valid(Fs *fs, FsItem *item, BeTextDone done, gpointer user)
{
    be_checkpoint_valid_fetch(fs->be, item->data, done, user);
}

FsListing *fs_checkpoint_changed_list(Fs *fs G_GNUC_UNUSED, FsItem *item)
{
    const BeCheckpoint *checkpoint = item->data;
    FsListing *listing = fs_listing_new();

    for (char **target = checkpoint->targets; *target; target++) {
        g_autofree char *id = g_strdup_printf("%s/%s", item->id, *target);

        fs_listing_add(listing, fs_item_new(item, id, fs_name_encode(*target, id),
                                            g_strdup(*target), g_free));
    }
    return listing;
}

void fs_checkpoint_fetch_changed(Fs *fs, FsItem *item, BeTextDone done, gpointer user)
{
    be_checkpoint_changed_fetch(fs->be, item->parent->data, item->data, done, user);
}

static BeJob *run_delete(const FsAct *act, const FsCommand *command, GError **error)
{
    const char *word = command->words->len == 1 ? g_ptr_array_index(command->words, 0) : "";
    BeCheckpointRemoval how = BE_CHECKPOINT_ALONE;

    if (g_str_equal(word, "children")) {
        how = BE_CHECKPOINT_CHILDREN;
    } else if (g_str_equal(word, "metadata")) {
        how = BE_CHECKPOINT_METADATA;
    } else if (*word) {
        g_set_error(error, BE_ERROR, EINVAL,
                    "'%s' is no word of 'delete'; allowed: children, metadata", word);
        return NULL;
    }
    if (!fs_dir_may_end(act->fs, act->item, act->caller, error)) {
        return NULL;
    }
    return be_checkpoint_delete(act->be, act->item->data, how, act->done, act->user);
}

const FsVerb fs_checkpoint_verbs[] = {
    {"delete", 0, 1, NULL,
     "delete [children|metadata] [async]   delete it, as rmdir; children: and all made after it; "
     "metadata: libvirt forgets it, its bitmaps stay",
     run_delete},
    {NULL, 0, 0, NULL, NULL, NULL},
};
