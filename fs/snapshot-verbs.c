/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * snapshot-verbs.c - what the control file of a snapshot does; see def.h.
 *
 * Any thread.  A snapshot's item holds a BeSnapshot.
 */
#include <errno.h>

#include "fs/dir.h"
#include "fs/name.h"
#include "fs/private.h"
#include "fs/snapshot.h"

static const BeObject *object_of(const FsAct *act)
{
    const BeSnapshot *snapshot = act->item->data;

    return &snapshot->object;
}

static gboolean revert_word(const char *word, BeRevertOptions *options, GError **error)
{
    if (g_str_equal(word, "force")) {
        options->force = TRUE;
        return TRUE;
    }
    if (options->to == BE_REVERT_AS_WAS && be_revert_to_parse(word, &options->to)) {
        return TRUE;
    }
    g_set_error(error, BE_ERROR, EINVAL,
                "'%s' is no word of 'revert' here; allowed: one of running, paused, off; force",
                word);
    return FALSE;
}

static BeJob *run_revert(const FsAct *act, const FsCommand *command, GError **error)
{
    const BeObject *object = object_of(act);
    BeRevertOptions options = {.keep = g_hash_table_lookup(command->options, "keep")};

    for (guint i = 0; i < command->words->len; i++) {
        if (!revert_word(g_ptr_array_index(command->words, i), &options, error)) {
            return NULL;
        }
    }
    if (options.keep && !fs_name_check_new(options.keep, error)) {
        return NULL;
    }
    *act->ret_slow = TRUE;
    return be_snapshot_revert(act->be, object->domain_uuid, object->name, &options, act->done,
                              act->user);
}

/* As rmdir: by its owner alone, and not under somebody who reads it. */
static gboolean may_go(const FsAct *act, GError **error)
{
    return fs_dir_may_end(act->fs, act->item, act->caller, error)
           && fs_dir_item_unused(act->fs, act->item, NULL, error);
}

BeJob *fs_snapshot_drop(const FsAct *act, GError **error G_GNUC_UNUSED)
{
    const BeObject *object = object_of(act);

    return be_snapshot_delete(act->be, object->domain_uuid, object->name, BE_DELETE_MERGE,
                              act->done, act->user);
}

static BeJob *run_delete(const FsAct *act, const FsCommand *command, GError **error)
{
    const BeObject *object = object_of(act);
    const char *word = command->words->len ? g_ptr_array_index(command->words, 0) : NULL;
    BeDeleteHow how = BE_DELETE_MERGE;

    if (g_strcmp0(word, "children") == 0) {
        how = BE_DELETE_CHILDREN;
    } else if (g_strcmp0(word, "metadata") == 0) {
        how = BE_DELETE_METADATA;
    } else if (word) {
        g_set_error(error, BE_ERROR, EINVAL,
                    "'%s' is no word of 'delete'; allowed: children, metadata", word);
        return NULL;
    }
    if (!may_go(act, error)) {
        return NULL;
    }
    *act->ret_slow = TRUE;
    return be_snapshot_delete(act->be, object->domain_uuid, object->name, how, act->done,
                              act->user);
}

static BeJob *run_commit(const FsAct *act, const FsCommand *command G_GNUC_UNUSED, GError **error)
{
    const BeObject *object = object_of(act);

    if (!may_go(act, error)) {
        return NULL;
    }
    *act->ret_slow = TRUE;
    return be_snapshot_commit(act->be, object->domain_uuid, object->name, act->done, act->user);
}

static const char *const revert_keys[] = {"keep", NULL};

const FsVerb fs_snapshot_verbs[] = {
    {"revert", 0, 2, revert_keys,
     "revert [running|paused|off] [force] [keep=NAME] [async]   go back to this snapshot; keep: "
     "what is left becomes a snapshot",
     run_revert},
    {"commit", 0, 0, NULL,
     "commit [async]   write what changed since into the images of this snapshot, go on on them, "
     "and forget it",
     run_commit},
    {"delete", 0, 1, NULL,
     "delete [children|metadata] [async]   delete it, as rmdir; children: with all that stand on "
     "it; metadata: only have libvirt forget it",
     run_delete},
    {NULL, 0, 0, NULL, NULL, NULL},
};
