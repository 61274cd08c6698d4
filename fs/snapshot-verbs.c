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
    return be_snapshot_revert(act->be, object->domain_uuid, object->name, &options, act->done,
                              act->user);
}

static const char *const revert_keys[] = {"keep", NULL};

const FsVerb fs_snapshot_verbs[] = {
    {"revert", 0, 2, revert_keys,
     "revert [running|paused|off] [force] [keep=NAME] [async]   go back to this snapshot; keep: "
     "what is left becomes a snapshot",
     run_revert},
    {NULL, 0, 0, NULL, NULL, NULL},
};
